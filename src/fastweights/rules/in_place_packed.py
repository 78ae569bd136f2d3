"""In-Place TTT that forgets: a row of several documents, and a decay of what was written.

The row is cut in the same chunks whatever lies in it. At the border of two chunks at most one
document goes on, so one matrix is carried: it belongs to the document of the last token so far, the
owner. Tokens of the owner read it, all others read the weights a document starts from, and a chunk
that ends in another document than its owner starts that document's matrix. A row of one document
has no such layout, and its matrix is always its own.

Forgetting cannot be walked back, so the backward pass goes over the row twice: forwards for the
fast weights that the gradient to Z needs, then backwards for the gradient to them. A learned decay
λ needs the fast weights with their gradient, and one pass has the one, the other pass the other. So
its gradient is taken forwards: with D = W - W0, the slope E = ∂D/∂λ goes E <- λ E + D at a write,
and a chunk adds Σ_t <dy_t, E z_t>.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fastweights.rules.in_place_write import (
    Plan,
    Scales,
    commit,
    contract,
    deltas,
    num_writes,
    outer,
    over_chunks,
    piece,
    put,
    read,
    written_and_back,
)


class Layout(NamedTuple):
    """Who owns what in a row; n chunks."""

    reads: Array  # [T, 1] bool, the token reads the carried matrix
    stores: Array  # [T, 1] bool, the token is of the document that its chunk ends in
    goes_on: Array  # [n] bool, the chunk ends in the document that it began with


def layout(segments: Array | None, chunk: int) -> Layout | None:
    """`[T]` document numbers, 0 for padding, to what each token and chunk does; None is None.

    The matrix a row starts with belongs to the first document.
    """
    if segments is None:
        return None
    length = len(segments)
    chunks = -(-length // chunk)
    place = jnp.arange(length)
    valid = segments > 0
    newest = lax.cummax(jnp.where(valid, place, -1))
    ends = jnp.minimum((jnp.arange(chunks) + 1) * chunk, length) - 1
    first = segments[jnp.argmax(valid)]
    last = jnp.where(newest[ends] < 0, first, segments[jnp.maximum(newest[ends], 0)])
    owner = jnp.concatenate([first[None], last[:-1]])
    of = lambda document: (valid & (segments == document[place // chunk]))[:, None]
    return Layout(of(owner), of(last), owner == last)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def packed_scan(
    plan: Plan,
    w0: Array,
    start: Array,
    scales: Scales,
    z: Array,
    v: Array,
    segments: Array | None,
) -> tuple[Array, Array | None]:
    """`chunk_scan` with documents or a decay: outputs `[T, d]` and the last document's weights."""
    return _forward(plan, w0, start, scales, z, v, segments)[0]


def stored(stores: Array | None, x: Array) -> Array:
    """Targets or keys `[C, n]` with 0 for what a chunk does not store."""
    return x if stores is None else jnp.where(stores, x, 0)


def begun(goes_on: Array | None, weights: Array, w0: Array) -> Array:
    """The matrix that a chunk writes to: its own document's, W0 where that begins in it."""
    return weights if goes_on is None else jnp.where(goes_on, weights, w0.astype(weights.dtype))


def after(
    plan: Plan,
    goes_on: Array | None,
    weights: Array,
    w0: Array,
    delta: Array | None,
    scales: Scales,
) -> Array:
    """The matrix after a chunk, which writes `delta`; None for a chunk that is not complete."""
    weights = begun(goes_on, weights, w0)
    return weights if delta is None else commit(plan, scales, w0, weights, delta)


def _chunk(plan: Plan, at: Layout | None, i, z, v):
    """Rows of chunk i, and if it ends in its first document."""
    zi, vi = piece(z, i, plan.chunk), piece(v, i, plan.chunk)
    if at is None:
        return zi, vi, None
    return zi, stored(piece(at.stores, i, plan.chunk), vi), at.goes_on[i]


def _before(
    at: Layout | None, i, grad: Array, d_w0: Array, decay: Array | float
) -> tuple[Array, Array]:
    """Back through `after`: the gradients to the matrix before chunk i, and to w0."""
    if isinstance(decay, Array) or decay != 1:
        d_w0, grad = d_w0 + (1 - decay) * grad, decay * grad
    if at is None:
        return grad, d_w0
    return jnp.where(at.goes_on[i], grad, 0), d_w0 + jnp.where(at.goes_on[i], 0, grad)


def _forward(plan, w0, start, scales, z, v, segments):
    at = layout(segments, plan.chunk)
    count = num_writes(len(z), plan.chunk)
    last = count * plan.chunk

    def body(carry, i):
        weights, y = carry
        zi, vi, goes_on = _chunk(plan, at, i, z, v)
        y = put(y, read(weights, zi), i * plan.chunk)
        delta = deltas(zi, vi, plan.lr)
        return after(plan, goes_on, weights, w0, delta, scales), y

    y = jnp.zeros((len(z), v.shape[1]), z.dtype)
    weights, y = over_chunks(body, (start, y), count)
    y = put(y, read(weights, z[last:]), last)
    if at is not None:
        y = jnp.where(at.reads, y, read(w0, z))
    final = None
    if plan.final:
        delta, goes_on = None, None if at is None else at.goes_on[count]
        if len(z) - last == plan.chunk:
            zi, vi, _ = _chunk(plan, at, count, z, v)
            delta = deltas(zi, vi, plan.lr)
        final = after(plan, goes_on, weights, w0, delta, scales)
    return (y, final), (w0, start, scales, z, v, segments)


def _backward(plan, saved, cotangents):
    w0, start, scales, z, v, segments = saved
    dy, d_final = cotangents
    at = layout(segments, plan.chunk)
    count = num_writes(len(z), plan.chunk)
    last = count * plan.chunk
    dz, d_w0 = jnp.zeros_like(z), jnp.zeros_like(start)
    if at is not None:
        fresh = jnp.where(at.reads, 0, dy)  # what was read from w0
        dy = jnp.where(at.reads, dy, 0)
        dz = contract(fresh, w0, (1, 0), z.dtype)
        d_w0 = outer(fresh, z).astype(start.dtype)

    decay = plan.decay if scales.decay is None else scales.decay

    def by_decay(e: Array, z: Array, dy: Array) -> Array:
        """What the outputs of a chunk add to the gradient of a learned decay."""
        return jnp.sum(dy.astype(e.dtype) * contract(z, e, (1, 1)))

    def steepened(e: Array, weights: Array, at: Layout | None, i, writes: bool = True) -> Array:
        """E after chunk i, which is complete or not, from W before it."""
        if writes:
            e = decay * e + weights - w0.astype(weights.dtype)
        return e if at is None else jnp.where(at.goes_on[i], e, 0)

    def forwards(carry, i):
        weights, dz, slope = carry
        zi, vi, goes_on = _chunk(plan, at, i, z, v)
        row, di = i * plan.chunk, piece(dy, i, plan.chunk)
        dz = put(dz, piece(dz, i, plan.chunk) + contract(di, weights, (1, 0)), row)
        if slope is not None:
            e, found = slope
            slope = steepened(e, weights, at, i), found + by_decay(e, zi, di)
        delta = deltas(zi, vi, plan.lr)
        return after(plan, goes_on, weights, w0, delta, scales), dz, slope

    slope = None if scales.decay is None else (jnp.zeros_like(start), jnp.zeros_like(scales.decay))
    weights, dz, slope = over_chunks(forwards, (start, dz, slope), count)
    dz = put(dz, dz[last:] + contract(dy[last:], weights, (1, 0)), last)
    if slope is not None:
        slope = slope[0], slope[1] + by_decay(slope[0], z[last:], dy[last:])

    def unwrite(carry, i):
        """Back through the write of chunk i: `grad` is the gradient to the weights after it."""
        grad, d_w0, d_scales, dz, dv = carry
        zi, vi, goes_on = _chunk(plan, at, i, z, v)
        d_delta, more = written_and_back(plan, zi, vi, scales)[1](grad)
        d_scales = jax.tree.map(jnp.add, d_scales, more)
        row = i * plan.chunk
        dz = put(dz, piece(dz, i, plan.chunk) + plan.lr * contract(vi, d_delta, (1, 0)), row)
        dv_i = plan.lr * contract(zi, d_delta, (1, 1))
        if at is not None:
            dv_i = stored(piece(at.stores, i, plan.chunk), dv_i)
        return *_before(at, i, grad, d_w0, decay), d_scales, dz, put(dv, dv_i, row)

    def backwards(carry, i):
        grad, *rest = unwrite(carry, i)
        zi, di = piece(z, i, plan.chunk), piece(dy, i, plan.chunk)
        return grad + outer(di, zi), *rest

    grad = jnp.zeros_like(start) if d_final is None else d_final
    d_scales = jax.tree.map(jnp.zeros_like, scales)
    if slope is not None:
        e, found = slope
        if d_final is not None:
            e = steepened(e, weights, at, count, writes=len(z) - last == plan.chunk)
            found += jnp.sum(d_final * e)
        d_scales = d_scales._replace(decay=found)
    carry = (grad, d_w0, d_scales, dz, jnp.zeros_like(v))
    if plan.final and len(z) - last == plan.chunk:
        carry = unwrite(carry, count)
    elif plan.final:
        carry = (*_before(at, count, grad, d_w0, 1.0), *carry[2:])
    grad, *rest = carry
    carry = (grad + outer(dy[last:], z[last:]), *rest)
    grad, d_w0, d_scales, dz, dv = over_chunks(backwards, carry, count, reverse=True)
    return jnp.asarray(d_w0, w0.dtype), grad, d_scales, dz, dv, None


packed_scan.defvjp(_forward, _backward)
