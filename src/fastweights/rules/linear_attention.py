"""Linear attention (Katharopoulos et al. 2020, arXiv:2006.16236; Schmidhuber 1992).

    write    S <- S + k vᵀ
    read     y = Sᵀ q            after the write

Keys and queries come as they are: no feature map, scale or normaliser is hidden in the rule. With
S = Σ_j k_j v_jᵀ a read is y_i = Σ_{j <= i} (q_i · k_j) v_j, attention without softmax, which is the
form inside a chunk.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.ops import decays
from fastweights.rules.base import Memory, Rule, Slot


def linear_write(S: Array, k: Array, v: Array) -> Array:
    """S + k vᵀ: `[K, V]`, `[K]`, `[V]` -> `[K, V]`."""
    return S + jnp.outer(k, v)


def recall(S: Array, q: Array) -> Array:
    """Sᵀ q: `[K, V]`, `[K] -> [V]`, or `[T, K] -> [T, V]`."""
    return q @ S


def linear_chunk(
    S: Array, q: Array, k: Array, v: Array, g: Array | None = None, starts: Array | None = None
) -> tuple[Array, Array]:
    """C tokens of S <- e^g S + k vᵀ, y = Sᵀ q in closed form: the final S and `[C, V]` outputs.

    Args:
        S: `[K, V]`, the state before the chunk.
        q: `[C, K]` queries.
        k: `[C, K]` keys.
        v: `[C, V]` values.
        g: `[C]` log decays; None is no decay.
        starts: `[C]` bool, the first tokens of new documents, at which S is 0.
    """
    writes, state = decays(len(k), g, starts, S.dtype)
    y = (q @ k.T * writes) @ v + state[:, None] * recall(S, q)
    return state[-1] * S + (writes[-1][:, None] * k).T @ v, y


def zeros_unless(valid: Array, tokens: Any) -> Any:
    """`tokens` with every leaf 0 where `valid` is False; leaves `[...]` lead with its shape."""

    def one(x: Array) -> Array:
        return jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - valid.ndim)), x, 0)

    return jax.tree.map(one, tokens)


@dataclasses.dataclass(frozen=True)
class LinearAttention(Rule):
    """Linear attention: the sum of outer products of keys and values."""

    citation = "Schmidhuber 1992; Katharopoulos, Vyas, Pappas, Fleuret 2020, arXiv:2006.16236"
    # a unit key bounds a write by its value, where no write strength and no normaliser does
    slots = {"q": Slot("K", "unit"), "k": Slot("K", "unit"), "v": Slot("V")}

    def write(self, state: Memory, token: Any) -> Memory:
        """Add the token's k vᵀ."""
        k, v = token.k.astype(state.S.dtype), token.v.astype(state.S.dtype)
        return state._replace(S=linear_write(state.S, k, v))

    def read(self, state: Memory, query: Array) -> Array:
        """Sᵀ q: `[K] -> [V]`, in the dtype of the query."""
        return recall(state.S, query.astype(state.S.dtype)).astype(query.dtype)

    def mask(self, tokens: Any, valid: Array) -> Any:
        """Tokens of zeros where `valid` is False: they add 0."""
        return zeros_unless(valid, tokens)

    def chunk(
        self, state: Memory, tokens: Any, starts: Array | None = None
    ) -> tuple[Memory, Array]:
        """Masked attention inside the chunk, one product with the state before it."""
        q, k, v = (x.astype(state.S.dtype) for x in tokens)
        S, y = linear_chunk(state.S, q, k, v, starts=starts)
        return state._replace(S=S), y.astype(tokens.q.dtype)
