"""In-Place TTT with options that need the matrix of every chunk in the backward pass.

These are a residual write, and a cap or row norm together with a decay or with several documents in
a row: subtracting writes does not recover the matrices. The forward pass keeps the matrix before
every block of about √n of n chunks. The backward pass takes the blocks from the last to the first:
it computes the matrices within the block again, and then goes back through its chunks. So memory
grows with √n. All else is written into one array inside the loops, as in in_place_scan.py.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fastweights.rules.in_place_packed import Layout, begun, layout, stored
from fastweights.rules.in_place_write import (
    Plan,
    Scales,
    commit,
    effective,
    num_writes,
    over_chunks,
    piece,
    put,
    read,
    summed,
)


class Chunk(NamedTuple):
    """Tokens of a chunk, and their part of the `Layout`; None for a row of one document."""

    z: Array
    v: Array
    reads: Array | None
    stores: Array | None
    goes_on: Array | None


def _chunk(plan: Plan, at: Layout | None, i, z: Array, v: Array) -> Chunk:
    """Chunk i, a complete one."""
    of = lambda x: piece(x, i, plan.chunk)
    if at is None:
        return Chunk(of(z), of(v), None, None, None)
    return Chunk(of(z), of(v), of(at.reads), of(at.stores), at.goes_on[i])


def _look(plan: Plan, w0: Array, scales: Scales, weights: Array, chunk: Chunk) -> Array:
    """Outputs of a chunk, from W before it."""
    y = read(effective(scales, w0, weights, plan.total), chunk.z)
    return y if chunk.reads is None else jnp.where(chunk.reads, y, read(w0, chunk.z))


def _write(plan: Plan, w0: Array, scales: Scales, weights: Array, chunk: Chunk) -> Array:
    """W after a complete chunk."""
    weights = begun(chunk.goes_on, weights, w0)
    z, v = stored(chunk.stores, chunk.z), stored(chunk.stores, chunk.v)
    return commit(plan, scales, w0, weights, summed(plan, scales, w0, weights, z, v))


def _last(plan: Plan, at: Layout | None, z: Array, v: Array) -> Chunk:
    """The last chunk, which may be a part of one."""
    count = num_writes(len(z), plan.chunk)
    cut = lambda x: x[count * plan.chunk :]
    if at is None:
        return Chunk(cut(z), cut(v), None, None, None)
    return Chunk(cut(z), cut(v), cut(at.reads), cut(at.stores), at.goes_on[count])


def _end(plan: Plan, w0: Array, scales: Scales, weights: Array, chunk: Chunk) -> Any:
    """Outputs of the last chunk, and W after it if that is wanted."""
    y = _look(plan, w0, scales, weights, chunk)
    if not plan.final:
        return y, None
    if len(chunk.z) == plan.chunk:
        return y, _write(plan, w0, scales, weights, chunk)
    return y, begun(chunk.goes_on, weights, w0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed_scan(
    plan: Plan,
    w0: Array,
    start: Array,
    scales: Scales,
    z: Array,
    v: Array,
    segments: Array | None,
) -> tuple[Array, Array | None]:
    """`chunk_scan` with any options: outputs `[T, d]` and the last document's weights."""
    return _forward(plan, w0, start, scales, z, v, segments)[0]


def _blocks(count: int) -> tuple[int, int, int]:
    """Chunks of a block, whole blocks, and chunks after them."""
    size = max(1, math.isqrt(count))
    return size, *divmod(count, size)


def _forward(plan, w0, start, scales, z, v, segments):
    at = layout(segments, plan.chunk)
    size, whole, rest = _blocks(num_writes(len(z), plan.chunk))

    def body(carry, i):
        weights, y = carry
        chunk = _chunk(plan, at, i, z, v)
        y = put(y, _look(plan, w0, scales, weights, chunk), i * plan.chunk)
        return _write(plan, w0, scales, weights, chunk), y

    def block(carry, b):
        after = over_chunks(lambda inner, j: body(inner, b * size + j), carry, size)
        return after, carry[0]

    carry, starts = (start, jnp.zeros((len(z), v.shape[1]), z.dtype)), None
    if whole:  # a loop that never runs is traced, and its chunk may be longer than the row
        carry, starts = lax.scan(block, carry, jnp.arange(whole))
    rest_start = carry[0]
    weights, y = over_chunks(lambda inner, j: body(inner, whole * size + j), carry, rest)
    y_last, final = _end(plan, w0, scales, weights, _last(plan, at, z, v))
    y = put(y, y_last, len(z) - len(y_last))
    return (y, final), (w0, starts, rest_start, weights, scales, z, v, segments)


def _backward(plan, saved, cotangents):
    w0, starts, rest_start, weights, scales, z, v, segments = saved
    dy, d_final = cotangents
    at = layout(segments, plan.chunk)
    size, whole, rest = _blocks(num_writes(len(z), plan.chunk))
    # its gradient is summed over chunks, so not in the dtype that it may have
    dtype, w0 = w0.dtype, w0.astype(weights.dtype)
    add = functools.partial(jax.tree.map, jnp.add)
    of_chunk = lambda call, chunk: (
        lambda w0, scales, weights, z, v: call(plan, w0, scales, weights, chunk._replace(z=z, v=v))
    )

    def both(plan, w0, scales, weights, chunk):
        y = _look(plan, w0, scales, weights, chunk)
        return y, _write(plan, w0, scales, weights, chunk)

    def unread(carry, i, weights):
        """Back through the read and the write of chunk i, from W before it."""
        grad, slow, dz, dv = carry
        chunk = _chunk(plan, at, i, z, v)
        pull = jax.vjp(of_chunk(both, chunk), w0, scales, weights, chunk.z, chunk.v)[1]
        d_w0, d_scales, grad, dz_i, dv_i = pull((piece(dy, i, plan.chunk), grad))
        row = i * plan.chunk
        return grad, add(slow, (d_w0, d_scales)), put(dz, dz_i, row), put(dv, dv_i, row)

    def unroll(carry, first, many: int, weights):
        """Back through `many` chunks from chunk `first` on, from W before them."""

        def walk(weights, j):
            chunk = _chunk(plan, at, first + j, z, v)
            return _write(plan, w0, scales, weights, chunk), weights

        if many == 0:
            return carry
        _, before = lax.scan(walk, weights, jnp.arange(many))
        step = lambda carry, x: (unread(carry, first + x[0], x[1]), None)
        return lax.scan(step, carry, (jnp.arange(many), before), reverse=True)[0]

    chunk = _last(plan, at, z, v)
    pull = jax.vjp(of_chunk(_end, chunk), w0, scales, weights, chunk.z, chunk.v)[1]
    row = len(z) - len(chunk.z)
    d_w0, d_scales, grad, dz_last, dv_last = pull((dy[row:], d_final))
    dz, dv = put(jnp.zeros_like(z), dz_last, row), put(jnp.zeros_like(v), dv_last, row)
    carry = grad, (d_w0, d_scales), dz, dv
    carry = unroll(carry, whole * size, rest, rest_start)
    step = lambda carry, x: (unroll(carry, x[0] * size, size, x[1]), None)
    if whole:
        carry = lax.scan(step, carry, (jnp.arange(whole), starts), reverse=True)[0]
    grad, (d_w0, d_scales), dz, dv = carry
    return d_w0.astype(dtype), grad, d_scales, dz, dv, None


recomputed_scan.defvjp(_forward, _backward)
