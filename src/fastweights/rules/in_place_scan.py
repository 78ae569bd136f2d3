"""In-Place TTT over a whole sequence: a scan over chunks that carries one matrix.

The write of a chunk does not depend on the fast weights. So the backward pass recomputes each write
and subtracts it, from the last chunk to the first. With G the gradient to the weights after a
chunk, and dY to the outputs of the chunk:

    W   <- W - η Vᵀ Z              the weights that this chunk read
    dZ   = dY W + η V G            dV = η Z Gᵀ
    G   <- G + dYᵀ Z               at the first chunk: the gradient to the weights at the start

It saves one matrix, not one per chunk. With a cap or a row norm, dY W and dYᵀ Z go through the
pullback of that read at the W that is walked back.

Forgetting cannot be walked back, at a document border or by a decay: in_place_packed.py. Both write
their results into one array inside the loop, because stacking and joining pieces would copy arrays
of the size of Z. Forgetting together with a cap or a row norm, and a residual write, which depends
on W, are in in_place_recomputed.py.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.rules.base import sequence_length
from fastweights.rules.in_place_packed import packed_scan
from fastweights.rules.in_place_recomputed import recomputed_scan
from fastweights.rules.in_place_write import (
    Plan,
    Scales,
    Total,
    check_options,
    commit,
    contract,
    deltas,
    effective,
    num_writes,
    outer,
    over_chunks,
    piece,
    put,
    read,
    read_scales,
    write_limit,
    written_and_back,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(plan: Plan, w0: Array, start: Array, scales: Scales, z: Array, v: Array):
    return _forward(plan, w0, start, scales, z, v)[0]


def _forward(plan, w0, start, scales, z, v):
    count = num_writes(len(z), plan.chunk)
    last = count * plan.chunk
    look = lambda weights, z: read(effective(scales, w0, weights, plan.total), z)

    def body(carry, i):
        weights, y = carry
        zi, vi = piece(z, i, plan.chunk), piece(v, i, plan.chunk)
        y = put(y, look(weights, zi), i * plan.chunk)
        return commit(plan, scales, w0, weights, deltas(zi, vi, plan.lr)), y

    y = jnp.zeros((len(z), v.shape[1]), z.dtype)
    weights, y = over_chunks(body, (start, y), count)
    y = put(y, look(weights, z[last:]), last)
    final = None
    if plan.final:
        final = weights
        if len(z) - last == plan.chunk:
            final = commit(plan, scales, w0, weights, deltas(z[last:], v[last:], plan.lr))
    return (y, final), (w0, weights, scales, z, v)


def _unread(plan, w0, scales, weights, z, dy):
    """Back through the read of a chunk: gradients to Z, and to W, W0 and the scales."""
    if scales.reads_sum:
        return contract(dy, weights, (1, 0)), (outer(dy, z), None, None)
    look = lambda scales, w0, weights: effective(scales, w0, weights, plan.total)
    matrix, pull = jax.vjp(look, scales, w0, weights)
    d_scales, d_w0, grad = pull(outer(dy, z))
    return contract(dy, matrix, (1, 0)), (grad, d_w0, d_scales)


def _backward(plan, saved, cotangents):
    w0, weights, scales, z, v = saved
    dy, d_final = cotangents
    count = num_writes(len(z), plan.chunk)
    last = count * plan.chunk
    # its gradient is summed over chunks, so not in the dtype that it may have
    dtype, w0 = w0.dtype, w0.astype(weights.dtype)
    zl, vl, dl = z[last:], v[last:], dy[last:]
    add = lambda a, b: a if b is None else jax.tree.map(jnp.add, a, b)
    slow = (jnp.zeros_like(w0), jax.tree.map(jnp.zeros_like, scales))  # gradients to W0 and scales
    grad = jnp.zeros_like(weights) if d_final is None else d_final
    dz, dv = jnp.zeros_like(z), jnp.zeros_like(v)
    dz_last, (d_read, *more) = _unread(plan, w0, scales, weights, zl, dl)
    slow = tuple(map(add, slow, more))
    if plan.final and len(zl) == plan.chunk:
        d_delta, d_scales = written_and_back(plan, zl, vl, scales)[1](grad)
        slow = slow[0], add(slow[1], d_scales)
        dz_last += plan.lr * contract(vl, d_delta, (1, 0))
        dv = put(dv, plan.lr * contract(zl, d_delta, (1, 1)), last)
    dz = put(dz, dz_last, last)
    grad = grad + d_read

    def body(carry, i):
        weights, grad, (d_w0, d_scales), dz, dv = carry
        zi, vi, di = (piece(x, i, plan.chunk) for x in (z, v, dy))
        delta, pull = written_and_back(plan, zi, vi, scales)
        weights = weights - delta
        d_delta, more = pull(grad)
        dz_i, (d_read, more_w0, more_scales) = _unread(plan, w0, scales, weights, zi, di)
        dz = put(dz, dz_i + plan.lr * contract(vi, d_delta, (1, 0)), i * plan.chunk)
        dv = put(dv, plan.lr * contract(zi, d_delta, (1, 1)), i * plan.chunk)
        slow = add(d_w0, more_w0), add(add(d_scales, more), more_scales)
        return weights, grad + d_read, slow, dz, dv

    carry = (weights, grad, slow, dz, dv)
    _, grad, (d_w0, d_scales), dz, dv = over_chunks(body, carry, count, reverse=True)
    return d_w0.astype(dtype), grad, d_scales, dz, dv


_scan.defvjp(_forward, _backward)


def scan_chunks(
    plan: Plan,
    w0: Array,
    start: Array,
    scales: Scales,
    z: Array,
    v: Array,
    segments: Array | None,
) -> tuple[Array, Array | None]:
    """`chunk_scan` from a `Plan` and the scales of the sequence."""
    forgets = plan.decay != 1 or scales.decay is not None
    if plan.residual:
        return recomputed_scan(plan, w0, start, scales, z, v, segments)
    if segments is None and not forgets:
        return _scan(plan, w0, start, scales, z, v)
    if scales.reads_sum:
        return packed_scan(plan, w0, start, scales, z, v, segments)
    return recomputed_scan(plan, w0, start, scales, z, v, segments)


def chunk_scan(
    w0: Array,
    z: Array,
    v: Array,
    *,
    chunk: int,
    lr: float,
    clip: float | None = None,
    clip_relative: bool = False,
    clip_after_lr: bool = True,
    decay: float | Array = 1.0,
    spectral: bool = False,
    residual: bool = False,
    cap: float | None = None,
    row_norm: bool = False,
    segments: Array | None = None,
    start: Array | None = None,
    final: bool = True,
    total: Total = jnp.sum,
) -> tuple[Array, Array | None]:
    """In-Place TTT on one sequence: every chunk of `chunk` tokens is read, then written.

    Products are taken in the dtype of `z` and `v` and summed in float32, the dtype of the fast
    weights. Cost: 2 products of the size of Z W0ᵀ forward and 5 backward (a plain layer: 1 and 2),
    with a decay too, and 6 with a learned one; with `segments` 3 and 7. Memory does not grow with
    the number of chunks n; it grows with √n where `cap` or `row_norm` meet a decay or `segments`,
    and with `residual`, which has 3 products forward and 10 backward.

    Args:
        w0: `[d, f]`, the weights a document starts from.
        z: `[T, f]` keys and queries.
        v: `[T, d]` values.
        chunk: tokens C per write, counted from the start of the sequence.
        lr: η.
        clip: largest norm τ of one chunk's write, see `write_limit`; None for no limit.
        clip_relative: τ is in units of the norm of `w0`.
        clip_after_lr: τ limits η Σ v zᵀ; otherwise it limits Σ v zᵀ.
        decay: λ, from 0 to 1: before a write, W - W0 is multiplied by it. A chunk of padding is
            written too, as a chunk of zeros. An array `[]` is learned: it has a gradient.
        spectral: Σ v zᵀ is divided by its largest singular value, before the clip.
        residual: a chunk writes η / Σ|z|² Σ (v - λ D z) zᵀ, with D = W - W0 before it.
        cap: r, the largest ‖W - W0‖ / ‖W0‖ at a read; None for no cap. See `effective`.
        row_norm: a read scales the rows of W to the norms of those of W0.
        segments: `[T]` int, documents 1, 2, ... that each lie in one piece, and 0 for padding.
            A token reads the writes of earlier chunks of its own document; padding reads `w0` and
            is not written. None is one document.
        start: `[d, f]` float32, the state to go on from, of the first document; `w0` by default.
        final: is the state at the end wanted; False saves the last write.
        total: sums an array over all columns f, of which `w0` and `z` may be a part while `v` is
            complete. The outputs are then summands, one a part, which the caller adds up, and so is
            the gradient to `v`. A part needs one number a chunk of the other parts, with `clip`.

    Returns:
        Outputs `[T, d]`, and the fast weights `[d, f]` float32 of the last document after its last
        complete chunk, or None without `final`. They are the `start` of the next piece if T is a
        multiple of `chunk`, since tokens of an incomplete chunk are not in them, and if the next
        piece continues the last document.

    Raises:
        ValueError: `chunk` is not positive, `decay` is not from 0 to 1, there is no token, or `z`,
            `v` and `segments` differ in length.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    check_options(None if isinstance(decay, Array) else decay, cap)
    if sequence_length((z, v, segments)) < 1:
        raise ValueError("there must be at least one token, got none")
    limit = write_limit(w0, lr, clip, relative=clip_relative, after_lr=clip_after_lr, total=total)
    learned = decay if isinstance(decay, Array) else None
    scales = Scales(limit, *read_scales(w0, cap, row_norm, total), learned)
    state_dtype = jnp.promote_types(w0.dtype, jnp.float32)
    state = w0.astype(state_dtype) if start is None else start.astype(state_dtype)
    fixed = 1.0 if isinstance(decay, Array) else decay
    plan = Plan(chunk, lr, final, total, fixed, spectral, residual)
    return scan_chunks(plan, w0, state, scales, z, v, segments)
