"""In-Place TTT with options that need the matrix of every chunk in the backward pass.

These are a residual write, and a cap or row norm together with a decay or with several documents in
a row: subtracting writes does not recover the matrices. The backward pass is
autodiff's. The forward pass keeps about √n matrices of n chunks, and the backward pass recomputes
the √n matrices between two of them: memory grows with √n.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from fastweights.rules.in_place_packed import begun, layout, stored
from fastweights.rules.in_place_write import (
    Plan,
    Scales,
    commit,
    effective,
    num_writes,
    read,
    summed,
)


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
    chunk, count = plan.chunk, num_writes(len(z), plan.chunk)
    at = layout(segments, chunk)
    reads, stores, goes_on = (None, None, None) if at is None else at
    tokens, last = (z, v, reads, stores), count * chunk

    def look(weights: Array, z: Array, reads: Array | None) -> Array:
        y = read(effective(scales, w0, weights, plan.total), z)
        return y if reads is None else jnp.where(reads, y, read(w0, z))

    def write(weights: Array, z: Array, v: Array, stores: Array | None, goes_on: Any) -> Array:
        weights = begun(goes_on, weights, w0)
        delta = summed(plan, w0, weights, stored(stores, z), stored(stores, v))
        return commit(plan, scales, w0, weights, delta)

    def body(weights: Array, inputs: Any) -> tuple[Array, Array]:
        (z, v, reads, stores), goes_on = inputs
        return write(weights, z, v, stores, goes_on), look(weights, z, reads)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(weights: Array, inputs: Any) -> tuple[Array, Array]:
        return lax.scan(body, weights, inputs)

    size = max(1, math.isqrt(count))
    blocks, rest = divmod(count, size)
    weights, ys, first = start, [], 0
    for many, length in ((blocks, size), (1, rest)):
        if many * length:
            rows = slice(first * chunk, (first + many * length) * chunk)
            shape = (many, length)
            here = jax.tree.map(functools.partial(_rows, rows, (*shape, chunk)), tokens)
            ends = None
            if goes_on is not None:
                ends = goes_on[first : first + many * length].reshape(shape)
            weights, y = lax.scan(block, weights, (here, ends))
            ys.append(y.reshape(-1, v.shape[1]))
            first += many * length
    zl, vl, reads, stores = jax.tree.map(lambda x: x[last:], tokens)
    ys.append(look(weights, zl, reads))
    final = None
    if plan.final:
        ends = None if goes_on is None else goes_on[count]
        whole = len(zl) == chunk
        final = write(weights, zl, vl, stores, ends) if whole else begun(ends, weights, w0)
    return jnp.concatenate(ys), final


def _rows(rows: slice, shape: tuple[int, ...], x: Array) -> Array:
    """Some rows of an array, with the leading axis cut into `shape`."""
    return x[rows].reshape(*shape, *x.shape[1:])
