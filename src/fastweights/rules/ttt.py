"""TTT-Linear and TTT-MLP (Sun et al. 2024, arXiv 2407.04620): the memories of `ttt_base.py`.

A residual layer learns, mini-batch by mini-batch, to map keys to values; its layer norm is trained
by the outer optimiser alone.
"""

import dataclasses
from typing import NamedTuple

from jax import Array

from fastweights.rules.memories import MLP, Affine, ResidualNorm
from fastweights.rules.ttt_base import TTT


class LinearState(NamedTuple):
    """State of TTT-Linear."""

    S: Array  # [K, V] float32, weights of the mini-batch's start
    b: Array  # [V] float32
    pending: dict[str, Array]  # G, the sum of the gradients to both since
    count: Array  # [] int32, tokens in that sum
    S_0: Array  # [K, V] float32, weights of the document's start
    b_0: Array  # [V] float32
    gain: Array  # [V], of the layer norm
    bias: Array  # [V], of the layer norm
    position: Array  # [b], the factors p


class MLPState(NamedTuple):
    """State of TTT-MLP with H hidden units; fields as of `LinearState`."""

    W1: Array  # [K, H]
    b1: Array  # [H]
    W2: Array  # [H, V]
    b2: Array  # [V]
    pending: dict[str, Array]
    count: Array
    W1_0: Array
    b1_0: Array
    W2_0: Array
    b2_0: Array
    gain: Array
    bias: Array
    position: Array


@dataclasses.dataclass(frozen=True)
class TTTLinear(TTT):
    """TTT-Linear: g(x) = Sᵀ x + b.

    Attributes:
        lr: η, 1 over a head of 64 in the released code.
        batch: b, tokens of a mini-batch. A new document begins a new one, and padding takes no
            place in it.
    """

    state_type = LinearState

    @property
    def memory(self) -> ResidualNorm:
        """The function x + LN(Sᵀ x + b)."""
        return ResidualNorm(Affine())


@dataclasses.dataclass(frozen=True)
class TTTMLP(TTT):
    """TTT-MLP: g(x) = W2ᵀ GELU(W1ᵀ x + b1) + b2.

    Attributes:
        lr: η, 0.1 over a head of 64 in the released code, which begins its training with 0.01.
        batch: b, tokens of a mini-batch. A new document begins a new one, and padding takes no
            place in it.
        width: hidden units, in units of V.
    """

    lr: float = 0.1 / 64
    width: int = 4

    state_type = MLPState

    def problems(self) -> list[str]:
        """See `Rule.problems`."""
        good = self.width >= 1
        return super().problems() + (
            [] if good else [f"width is {self.width}; it must be at least 1"]
        )

    @property
    def memory(self) -> ResidualNorm:
        """The function x + LN(MLP(x))."""
        return ResidualNorm(MLP(self.width, std=0.02))
