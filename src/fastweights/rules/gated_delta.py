"""The gated delta rule (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464).

    write    S <- e^g S, then S <- S + beta k (v - Sᵀ k)ᵀ
    read     y = Sᵀ q                                        after the write

The log decay g forgets all keys at once, beta replaces the value of one. The error v - Sᵀ k is that
of the decayed state. At g = 0 it is the delta rule.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from fastweights.rules.base import Memory, Rule, Slot
from fastweights.rules.delta import delta_chunk, delta_write
from fastweights.rules.linear_attention import recall, zeros_unless


def gated_delta_write(S: Array, k: Array, v: Array, beta: Array, g: Array) -> Array:
    """`delta_write` to e^g S: `[K, V]`, `[K]`, `[V]`, `[]`, `[]` -> `[K, V]`."""
    return delta_write(jnp.exp(g) * S, k, v, beta)


@dataclasses.dataclass(frozen=True)
class GatedDelta(Rule):
    """The gated delta rule: a decay of the memory, then a write of the delta rule."""

    citation = "Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464"
    slots = {
        "q": Slot("K", "unit"),
        "k": Slot("K", "unit"),
        "v": Slot("V"),
        "beta": Slot("", "gate"),
        "g": Slot("", "log_decay"),
    }

    def write(self, state: Memory, token: Any) -> Memory:
        """Decay the memory by e^g, then move the answer to k towards v by the fraction beta."""
        token = (x.astype(state.S.dtype) for x in (token.k, token.v, token.beta, token.g))
        return state._replace(S=gated_delta_write(state.S, *token))

    def read(self, state: Memory, query: Array) -> Array:
        """Sᵀ q: `[K] -> [V]`, in the dtype of the query."""
        return recall(state.S, query.astype(state.S.dtype)).astype(query.dtype)

    def mask(self, tokens: Any, valid: Array) -> Any:
        """Tokens of zeros where `valid` is False: their decay is e^0, their write strength 0."""
        return zeros_unless(valid, tokens)

    def chunk(
        self, state: Memory, tokens: Any, starts: Array | None = None
    ) -> tuple[Memory, Array]:
        """`delta_chunk` with decays between tokens summed in log space."""
        q, k, v, beta, g = (x.astype(state.S.dtype) for x in tokens)
        S, y = delta_chunk(state.S, q, k, v, beta, g, starts)
        return state._replace(S=S), y.astype(tokens.q.dtype)
