"""The gated delta rule (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464).

    write    S <- e^g S, then S <- S + beta k (v - Sᵀ k)ᵀ
    read     y = Sᵀ q                                        after the write

The log decay g forgets all keys at once, beta replaces the value of one. The error v - Sᵀ k is that
of the decayed state. At g = 0 it is the delta rule.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from fastweights.rules.base import Slot
from fastweights.rules.delta import delta_chunk, delta_write
from fastweights.rules.matrix import MatrixRule


def gated_delta_write(S: Array, k: Array, v: Array, beta: Array, g: Array) -> Array:
    """`delta_write` to e^g S: `[K, V]`, `[K]`, `[V]`, `[]`, `[]` -> `[K, V]`."""
    return delta_write(jnp.exp(g) * S, k, v, beta)


@dataclasses.dataclass(frozen=True)
class GatedDelta(MatrixRule):
    """The gated delta rule: a decay of the memory, then a write of the delta rule."""

    citation = "Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464"
    slots = {
        "q": Slot("K", "unit"),
        "k": Slot("K", "unit"),
        "v": Slot("V"),
        "beta": Slot("", "gate"),
        "g": Slot("", "log_decay"),
    }

    def update(self, S: Array, q: Array, k: Array, v: Array, *rest: Array) -> Array:
        """Decay the memory by e^g, then move the answer to k towards v by the fraction beta."""
        return gated_delta_write(S, k, v, *rest)

    def closed(
        self, S: Array, tokens: tuple[Array, ...], starts: Array | None
    ) -> tuple[Array, Array]:
        """`delta_chunk` with decays between tokens summed in log space."""
        return delta_chunk(S, *tokens, starts=starts)
