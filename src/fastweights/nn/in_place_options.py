"""The options of layers that learn in place."""

import dataclasses
from typing import Literal

Window = Literal["centred", "forward", "reconstruction"]


@dataclasses.dataclass(frozen=True)
class InPlaceTTT:
    """Options of in-place layers.

    Attributes:
        layers: indices of the in-place layers; an index beyond the last layer is ignored, as in
            the released code.
        chunk: C, tokens per write.
        lr: η, the inner learning rate. A write is a sum over the chunk: a larger chunk, or larger
            activations, need a smaller η. The paper gives no value; the released configs have 3 at
            C = 4096.
        target: T, the input of the convolution. "input_embed" is the paper's, for training from
            scratch; "hidden_states", the layer's own input, is the released code's default, for
            continual training.
        proj: V is multiplied by a trained [D, D] matrix.
        conv: V is a trained mixture of the tokens around. Without it V is the token's own T (proj):
            it carries no next token, and the first writes already change the outputs.
        window: "centred" uses all five taps, as released; "forward" the token and the two after it;
            "reconstruction" only the token itself.
        clip: τ, the largest Frobenius norm of one write; None, as released, for no limit.
        clip_relative: τ is in units of the norm of the slow weights.
        clip_after_lr: τ limits η Σ v zᵀ; otherwise Σ v zᵀ. The paper leaves it open.
        decay: λ, from 0 to 1: before a write, W - W0 is multiplied by it. The paper has none.
        decay_learned: every layer learns a λ of its own, which starts at `decay`, between 0 and 1.
        lr_learned: every layer learns an η of its own, which starts at `lr`.
        spectral: Σ v zᵀ is divided by its largest singular value, so η is the norm of a write
            (arXiv 2606.21803).
        residual: a write takes off what λ (W - W0) says of the chunk's own tokens, and is divided
            by their squared norm: η / Σ|z|² Σ (v - λ (W - W0) z) zᵀ. Any η below 2 is then stable,
            without `spectral`.
        cap: r, the largest ‖W - W0‖ / ‖W0‖ that a token reads; W itself stays the sum of all
            writes. None, as released, for no cap.
        row_norm: a token reads the rows of W scaled to the norms of those of W0; W itself stays the
            sum (arXiv 2606.21803).
    """

    layers: tuple[int, ...] = (0, 6, 12, 18, 24, 30)
    chunk: int = 1024
    lr: float = 0.3
    target: Literal["hidden_states", "input_embed"] = "hidden_states"
    proj: bool = True
    conv: bool = True
    window: Window = "centred"
    clip: float | None = None
    clip_relative: bool = False
    clip_after_lr: bool = True
    decay: float = 1.0
    decay_learned: bool = False
    lr_learned: bool = False
    spectral: bool = False
    residual: bool = False
    cap: float | None = None
    row_norm: bool = False
