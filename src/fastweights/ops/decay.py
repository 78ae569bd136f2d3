"""Decay between the tokens of a chunk, summed as logarithms and cut at document starts.

A write of token j has decayed by exp(g_{j+1} + ... + g_i) when token i reads it, and the state from
before the chunk by exp(g_1 + ... + g_i).
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

#: lower log decays count as this one, of which exp is 0 in float64 too: -inf times 0 is NaN
FLOOR = -1e4


def reachable(length: int, starts: Array | None = None) -> tuple[Array, Array]:
    """The writes and the states that each token of a chunk may read.

    Args:
        length: number of tokens C.
        starts: `[C]` bool, the first tokens of new documents; None is no document start.

    Returns:
        `[C, C]` bool, token i (row) may read the write of token j (column): j <= i, in the same
        document. `[C]` bool, token i may read the state from before the chunk.
    """
    place = jnp.arange(length)
    causal = place[:, None] >= place[None, :]
    if starts is None:
        return causal, jnp.ones(length, bool)
    document = jnp.cumsum(starts)
    return causal & (document[:, None] == document[None, :]), document == 0


def decays(
    length: int, g: Array | None, starts: Array | None, dtype: DTypeLike
) -> tuple[Array, Array]:
    """The remaining part of each write, and of the state from before the chunk, at each token.

    Args:
        length: number of tokens C.
        g: `[C]`, log decay of each token, applied before its write; None is no decay.
        starts: `[C]` bool, the first tokens of new documents; None is no document start.
        dtype: of the result.

    Returns:
        `[C, C]`, of the write of token j (column) at token i (row), 0 where i may not read it.
        `[C]`, of the state from before the chunk at token i, 0 from the first document start on.
    """
    writes, state = reachable(length, starts)
    if g is None:
        return writes.astype(dtype), state.astype(dtype)
    g = jnp.maximum(g.astype(dtype), FLOOR)
    # Σ_l [l <= i] g_l [l > j], each pair's sum by itself. A difference of two sums from the start
    # of the chunk would lose digits: near -1280, after 64 tokens of -20, float32 is 6e-5 wrong. The
    # product costs no more, and like a sum it must have all digits.
    place = jnp.arange(length)
    until = jnp.where(place[:, None] >= place[None, :], g[None, :], 0)
    after = (place[:, None] > place[None, :]).astype(dtype)
    between = jnp.matmul(until, after, precision=jax.lax.Precision.HIGHEST)
    return _exp(between, writes), _exp(jnp.cumsum(g), state)


def _exp(x: Array, where: Array) -> Array:
    """exp(x), and 0 with a gradient of 0 where `where` is False."""
    # the inner `where` keeps exp finite in both branches: 0 times an infinite slope is NaN
    return jnp.where(where, jnp.exp(jnp.where(where, x, 0)), 0)
