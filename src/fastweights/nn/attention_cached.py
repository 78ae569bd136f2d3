"""Attention of new tokens to a cache of keys and values.

On a CPU only filled slots in the window are read, in blocks: a state has room for the longest text,
and most of it is empty. One token a row has a form of its own elsewhere too, whose products take
the cache in its layout: `jax.nn.dot_product_attention` transposes keys and values at every token.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from fastweights.nn.mesh import BATCH, sizes

#: slots of keys and values that a CPU reads at once, so that they stay in its cache
BLOCK = 256


class Cache(NamedTuple):
    """Keys and values of S slots; a layer with a sliding window keeps all of them too.

    Heads come before slots: a product over one head reads adjacent memory, and no token has the
    cache transposed for it.
    """

    k: Array  # [B, K, S, h]
    v: Array  # [B, K, S, h]


def attend_cached(
    q: Array, cache: Cache, turn: ArrayLike, positions: Array, window: int | None
) -> Array:
    """Attention over the cache of one layer of a stack.

    Args:
        q: `[B, T, N, h]`.
        cache: keys and values `[turns, B, K, S, h]`.
        turn: `[]` int, which layer.
        positions: `[B, T]` int, of the queries.
        window: how many tokens a query sees, itself included; None is all before it.

    Returns:
        `[B, T, N, h]` in the dtype of the cache.
    """
    q, turn = q.astype(cache.k.dtype), jnp.asarray(turn)
    room, filled = (functools.partial(f, window=window) for f in (attend_room, attend_filled))
    if q.shape[1] > 1:
        room = functools.partial(attend_piece, window=window)
    # with rows split over devices, no device knows the positions of the other rows
    if any(sizes(q).get(axis, 1) > 1 for axis in BATCH):
        filled = room
    return lax.platform_dependent(q, cache, turn, positions, cpu=filled, default=room)


def in_sight(positions: Array, slots: Array, window: int | None) -> Array:
    """Whether a query at `positions [B, T]` sees `slots [S]`: `[B, T, S]`."""
    ago = positions[:, :, None] - slots[None, None, :]
    return (ago >= 0) if window is None else (ago >= 0) & (ago < window)


def attend_piece(
    q: Array, cache: Cache, turn: Array, positions: Array, window: int | None
) -> Array:
    """`attend_cached` over all S slots at once."""
    seen = in_sight(positions, jnp.arange(cache.k.shape[3]), window)
    k, v = (jnp.swapaxes(x[turn], 1, 2) for x in cache)
    return jax.nn.dot_product_attention(q, k, v, mask=seen[:, None], implementation="xla")


def grouped(q: Array, kv_heads: int) -> Array:
    """Queries by the head of keys that they read: `[B, T, N, h] -> [B, K, T N/K, h]`."""
    rows, length, _, size = q.shape
    q = q.reshape(rows, length, kv_heads, -1, size)
    return jnp.swapaxes(q, 1, 2).reshape(rows, kv_heads, -1, size)


def ungrouped(y: Array, length: int) -> Array:
    """The inverse of `grouped`: `[B, K, T N/K, h] -> [B, T, N, h]`."""
    rows, kv_heads, _, size = y.shape
    y = jnp.swapaxes(y.reshape(rows, kv_heads, length, -1, size), 1, 2)
    return y.reshape(rows, length, -1, size)


def attend_room(q: Array, cache: Cache, turn: Array, positions: Array, window: int | None) -> Array:
    """`attend_cached` of one token a row over all S slots at once."""
    k, v = cache.k[turn], cache.v[turn]
    seen = in_sight(positions, jnp.arange(k.shape[2]), window)
    weights = jax.nn.softmax(scores_of(grouped(q, k.shape[1]), k, seen)).astype(v.dtype)
    y = lax.dot_general(weights, v, (((3,), (2,)), ((0, 1), (0, 1))))
    return ungrouped(y, q.shape[1])


def scores_of(q: Array, k: Array, seen: Array) -> Array:
    """Scores of `q [B, K, T N/K, h]` over `k [B, K, S, h]`, float32 `[B, K, T N/K, S]`.

    `seen` is `[B, T, S]`, of the queries of a token.
    """
    each = ((0, 1), (0, 1))
    seen = jnp.repeat(seen, q.shape[2] // seen.shape[1], axis=1)
    scores = lax.dot_general(k, q, (((3,), (3,)), each), preferred_element_type=jnp.float32)
    scores = jnp.swapaxes(scores, 2, 3) * q.shape[-1] ** -0.5
    return jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min)


def attend_filled(
    q: Array, cache: Cache, turn: Array, positions: Array, window: int | None
) -> Array:
    """`attend_cached` over the filled slots in the window, in blocks.

    Softmax is summed up as in FlashAttention (Dao et al. 2022, arXiv 2205.14135).
    """
    length, room = q.shape[1], cache.k.shape[3]
    q = grouped(q, cache.k.shape[2])
    block = min(room, BLOCK)
    last = jnp.minimum(jnp.max(positions), room - 1)
    first = jnp.zeros_like(last)
    if window is not None:
        first = jnp.clip(jnp.min(positions) - window + 1, 0, last)

    def read(i: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, mixed = sums
        start = jnp.minimum(i * block, room - block)  # the last block may overlap the one before
        cut = lambda x: lax.dynamic_slice(
            x, (turn, 0, 0, start, 0), (1, *x.shape[1:3], block, x.shape[4])
        )[0]
        k, v = cut(cache.k), cut(cache.v)
        slots = start + jnp.arange(block)
        scores = scores_of(
            q, k, in_sight(positions, slots, window) & (slots >= i * block)[None, None, :]
        )
        most = jnp.maximum(highest, jnp.max(scores, -1))
        weights, kept = jnp.exp(scores - most[..., None]), jnp.exp(highest - most)
        more = lax.dot_general(
            weights.astype(v.dtype),
            v,
            (((3,), (2,)), ((0, 1), (0, 1))),
            preferred_element_type=jnp.float32,
        )
        return most, total * kept + jnp.sum(weights, -1), mixed * kept[..., None] + more

    none = jnp.zeros(q.shape[:3], jnp.float32)
    lowest = jnp.full_like(none, jnp.finfo(jnp.float32).min)
    start = lowest, none, jnp.zeros(q.shape, jnp.float32)
    _, total, mixed = lax.fori_loop(first // block, last // block + 1, read, start)
    return ungrouped((mixed / total[..., None]).astype(q.dtype), length)
