"""Rules on one matrix S `[K, V]` that answer y = Sᵀ q after the write."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.rules.base import Memory, Rule, scan


def recall(S: Array, q: Array) -> Array:
    """Sᵀ q: `[K, V]`, `[K] -> [V]`, or `[T, K] -> [T, V]`."""
    return q @ S


def zeros_unless(valid: Array, tokens: Any) -> Any:
    """`tokens` with every leaf 0 where `valid` is False; leaves `[...]` lead with its shape."""

    def one(x: Array) -> Array:
        return jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - valid.ndim)), x, 0)

    return jax.tree.map(one, tokens)


class MatrixRule(Rule):
    """A rule on `Memory(S)` for which a token of zeros is an identity token.

    A subclass has `slots`, `update`, and `closed` if it has a closed form of a chunk. Both get the
    slots in their order, in the dtype of S, whatever the dtype of the token.
    """

    @abc.abstractmethod
    def update(self, S: Array, q: Array, k: Array, v: Array, *rest: Array) -> Array:
        """S after one token: `[K, V]`, and a token's slots -> `[K, V]`."""

    def closed(
        self, S: Array, tokens: tuple[Array, ...], starts: Array | None
    ) -> tuple[Array, Array] | None:
        """S after C tokens and the outputs `[C, V]`, or None. Optional; see `Rule.chunk`."""
        del S, tokens, starts
        return None

    def write(self, state: Memory, token: Any) -> Memory:
        """`update`, in the dtype of S."""
        return state._replace(S=self.update(state.S, *(x.astype(state.S.dtype) for x in token)))

    def read(self, state: Memory, query: Array) -> Array:
        """Sᵀ q: `[K] -> [V]`, in the dtype of the query."""
        return recall(state.S, query.astype(state.S.dtype)).astype(query.dtype)

    def mask(self, tokens: Any, valid: Array) -> Any:
        """Tokens of zeros where `valid` is False."""
        return zeros_unless(valid, tokens)

    def chunk(
        self, state: Memory, tokens: Any, starts: Array | None = None
    ) -> tuple[Memory, Array]:
        """`closed`, or a scan; see `Rule.chunk`."""
        made = self.closed(state.S, tuple(x.astype(state.S.dtype) for x in tokens), starts)
        if made is None:
            return scan(self, state, tokens, starts)
        S, y = made
        return state._replace(S=S), y.astype(tokens.q.dtype)
