"""In-Place TTT over a whole sequence: a scan over chunks that carries one matrix.

What a chunk writes does not depend on the fast weights, so the backward pass can walk them back: it
subtracts what each chunk wrote. With G the gradient to the weights after chunk i, and dY to what
the chunk read, it goes from the last chunk to the first:

    W   <- W - η Vᵀ Z              what this chunk read
    dZ   = dY W + η V G            dV = η Z Gᵀ
    G   <- G + dYᵀ Z               at the first chunk: the gradient to the weights at the start

It saves one matrix, not one per chunk. Forgetting cannot be walked back, at a document border or by
a decay: in_place_packed.py. Both write their results into one array inside the loop, because
stacking and joining pieces would copy arrays of the size of Z.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.rules.base import sequence_length
from fastweights.rules.in_place_packed import packed_scan
from fastweights.rules.in_place_write import (
    Plan,
    Total,
    commit,
    contract,
    deltas,
    num_writes,
    outer,
    over_chunks,
    piece,
    put,
    read,
    write_limit,
    written_and_back,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(plan: Plan, start: Array, limit: Array | None, z: Array, v: Array):
    return _forward(plan, start, limit, z, v)[0]


def _forward(plan, start, limit, z, v):
    count = num_writes(len(z), plan.chunk)
    last = count * plan.chunk

    def body(carry, i):
        weights, y = carry
        zi, vi = piece(z, i, plan.chunk), piece(v, i, plan.chunk)
        y = put(y, read(weights, zi), i * plan.chunk)
        return commit(weights, deltas(zi, vi, plan.lr), limit, plan.total), y

    y = jnp.zeros((len(z), v.shape[1]), z.dtype)
    weights, y = over_chunks(body, (start, y), count)
    y = put(y, read(weights, z[last:]), last)
    final = None
    if plan.final:
        final = weights
        if len(z) - last == plan.chunk:
            final = commit(weights, deltas(z[last:], v[last:], plan.lr), limit, plan.total)
    return (y, final), (weights, limit, z, v)


def _backward(plan, saved, cotangents):
    weights, limit, z, v = saved
    dy, d_final = cotangents
    count = num_writes(len(z), plan.chunk)
    last = count * plan.chunk
    zl, vl, dl = z[last:], v[last:], dy[last:]
    grad = jnp.zeros_like(weights) if d_final is None else d_final
    d_limit = None if limit is None else jnp.zeros_like(limit)
    dz, dv = jnp.zeros_like(z), jnp.zeros_like(v)
    dz_last = contract(dl, weights, (1, 0))
    if plan.final and len(zl) == plan.chunk:
        d_delta, d_limit = written_and_back(plan, zl, vl, limit)[1](grad)
        dz_last += plan.lr * contract(vl, d_delta, (1, 0))
        dv = put(dv, plan.lr * contract(zl, d_delta, (1, 1)), last)
    dz = put(dz, dz_last, last)
    grad = grad + outer(dl, zl)

    def body(carry, i):
        weights, grad, d_limit, dz, dv = carry
        zi, vi, di = (piece(x, i, plan.chunk) for x in (z, v, dy))
        delta, pull = written_and_back(plan, zi, vi, limit)
        weights = weights - delta
        d_delta, more = pull(grad)
        dz_i = contract(di, weights, (1, 0)) + plan.lr * contract(vi, d_delta, (1, 0))
        dz = put(dz, dz_i, i * plan.chunk)
        dv = put(dv, plan.lr * contract(zi, d_delta, (1, 1)), i * plan.chunk)
        d_limit = None if d_limit is None else d_limit + more
        return weights, grad + outer(di, zi), d_limit, dz, dv

    carry = (weights, grad, d_limit, dz, dv)
    _, grad, d_limit, dz, dv = over_chunks(body, carry, count, reverse=True)
    return grad, d_limit, dz, dv


_scan.defvjp(_forward, _backward)


def scan_chunks(
    plan: Plan,
    w0: Array,
    start: Array,
    limit: Array | None,
    z: Array,
    v: Array,
    segments: Array | None,
) -> tuple[Array, Array | None]:
    """`chunk_scan` from a `Plan` and the limit `[]` of a write."""
    if segments is None and plan.decay == 1:
        return _scan(plan, start, limit, z, v)
    return packed_scan(plan, w0, start, limit, z, v, segments)


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
    decay: float = 1.0,
    segments: Array | None = None,
    start: Array | None = None,
    final: bool = True,
    total: Total = jnp.sum,
) -> tuple[Array, Array | None]:
    """In-Place TTT on one sequence: every chunk of `chunk` tokens is read, then written.

    Products are taken in the dtype of `z` and `v` and summed in float32, the dtype of the fast
    weights. Cost: 2 products of the size of Z W0ᵀ forward and 5 backward (a plain layer: 1 and 2),
    with a decay too; with `segments` 3 and 7. Memory does not grow with the number of chunks.

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
            written too, as a chunk of zeros.
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
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be from 0 to 1, got {decay}")
    if sequence_length((z, v, segments)) < 1:
        raise ValueError("there must be at least one token, got none")
    limit = write_limit(w0, lr, clip, relative=clip_relative, after_lr=clip_after_lr, total=total)
    state_dtype = jnp.promote_types(w0.dtype, jnp.float32)
    state = w0.astype(state_dtype) if start is None else start.astype(state_dtype)
    return scan_chunks(Plan(chunk, lr, final, total, decay), w0, state, limit, z, v, segments)
