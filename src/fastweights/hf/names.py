"""Which tensor of a Hugging Face checkpoint is which array of the decoder.

A Linear of PyTorch keeps `[out, in]`, ours `[in, out]`. Layer i is block i % p at index i // p.
`mlp.ttt_conv.weight` is `[D, 1, 5]` there and `[D, 5]` here; `mlp.ttt_proj.weight` is multiplied
from the right without a transpose in the released code, so it is stored as it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from fastweights.models.decoder_config import DecoderConfig

Layout = Literal["plain", "linear", "conv"]

#: (path, name, layout) of what stands outside the layers
OUTER: tuple[tuple[str, str, Layout], ...] = (
    ("embed.embedding", "model.embed_tokens.weight", "plain"),
    ("final_norm.scale", "model.norm.weight", "plain"),
    ("head.kernel", "lm_head.weight", "linear"),
)
#: (path in a block, name after `model.layers.i.`, layout)
INNER: tuple[tuple[str, str, Layout], ...] = (
    ("attention_norm.scale", "input_layernorm.weight", "plain"),
    ("attention.q.kernel", "self_attn.q_proj.weight", "linear"),
    ("attention.k.kernel", "self_attn.k_proj.weight", "linear"),
    ("attention.v.kernel", "self_attn.v_proj.weight", "linear"),
    ("attention.o.kernel", "self_attn.o_proj.weight", "linear"),
    ("attention.q_norm.scale", "self_attn.q_norm.weight", "plain"),
    ("attention.k_norm.scale", "self_attn.k_norm.weight", "plain"),
    ("mlp_norm.scale", "post_attention_layernorm.weight", "plain"),
    ("mlp.gate.kernel", "mlp.gate_proj.weight", "linear"),
    ("mlp.up.kernel", "mlp.up_proj.weight", "linear"),
    ("mlp.down.kernel", "mlp.down_proj.weight", "linear"),
    ("mlp.conv", "mlp.ttt_conv.weight", "conv"),
    ("mlp.proj", "mlp.ttt_proj.weight", "plain"),
    ("mlp.log_gain", "mlp.fastweights_ttt_log_gain", "plain"),
    ("mlp.decay_logit", "mlp.fastweights_ttt_decay_logit", "plain"),
)
#: tensors of an in-place layer, by the field of `InPlaceMLP` that holds each
TTT = {name: path.removeprefix("mlp.") for path, name, _ in INNER if "ttt_" in name}
#: buffers that old checkpoints hold and every implementation computes
IGNORED = ("rotary_emb.inv_freq",)
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of the decoder and the tensors it is made of.

    Attributes:
        path: attributes and indices from the decoder, e.g. "blocks.0.mlp.down.kernel".
        tensors: names in the checkpoint; more than one are stacked along a leading axis.
        stacked: whether there is such an axis.
        layout: how a tensor lies in the checkpoint.
    """

    path: str
    tensors: tuple[str, ...]
    stacked: bool
    layout: Layout


def arrays(config: DecoderConfig, paths: Callable[[str], bool]) -> list[Array]:
    """Every array of the decoder that `paths` says there is, the outer ones first.

    Args:
        config: of the decoder.
        paths: whether the decoder has an array at a path.
    """
    outer = [Array(path, (name,), False, layout) for path, name, layout in OUTER]
    inner = [
        Array(
            f"blocks.{place}.{path}",
            tuple(layer_name(i, name) for i in range(place, config.layers, config.period)),
            True,
            layout,
        )
        for place in range(config.period)
        for path, name, layout in INNER
    ]
    return [array for array in outer + inner if paths(array.path)]


def layer_name(layer: int, name: str) -> str:
    """The full name of a tensor of a layer."""
    return f"model.layers.{layer}.{name}"


def in_order(tensor: str) -> tuple[int, int, str]:
    """Sort key: embeddings, the layers by number, the last norm and the head."""
    parts = tensor.split(".")
    if parts[:2] == ["model", "layers"]:
        return (1, int(parts[2]), "")
    return (0, 0, "") if tensor == EMBEDDING else (2, 0, tensor)


def is_ttt(tensor: str) -> bool:
    """Whether a tensor belongs to in-place test-time training."""
    return tensor.endswith(tuple("." + name for name in TTT))


def theirs(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """The shape in the checkpoint of an array of ours of one layer."""
    if layout == "linear":
        return shape[::-1]
    return (shape[0], 1, *shape[1:]) if layout == "conv" else shape


def to_ours(x: np.ndarray, layout: Layout) -> np.ndarray:
    """A view of a tensor of the checkpoint as ours."""
    if layout == "linear":
        return x.T
    return x[:, 0] if layout == "conv" else x


def to_theirs(x: np.ndarray, layout: Layout) -> np.ndarray:
    """A view of an array of ours, of one layer, as the checkpoint has it."""
    if layout == "linear":
        return x.T
    return x[:, None] if layout == "conv" else x
