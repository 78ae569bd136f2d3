"""One chunk of In-Place TTT: its products, and the pullback of its write."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fastweights.rules.in_place_write import Total, clip_norm


class Plan(NamedTuple):
    """Constants of a scan over chunks."""

    chunk: int  # C, tokens per write
    lr: float  # η
    final: bool  # is the last chunk's write wanted
    total: Total  # sums over all columns, of which z and the weights may be a part


def contract(a: Array, b: Array, axes: tuple[int, int], dtype=None) -> Array:
    """Product over `axes` of two matrices, in a's dtype; summed and returned in at least float32.

    With `dtype` the result has that one, as a plain linear layer has.
    """
    dtype = jnp.promote_types(a.dtype, jnp.float32) if dtype is None else dtype
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b.astype(a.dtype), dimensions, preferred_element_type=dtype)


def read(weights: Array, z: Array) -> Array:
    """Z Wᵀ: `[d, f]`, `[C, f] -> [C, d]`; in the dtype of z, as the layer it stands for."""
    return contract(z, weights, (1, 1), z.dtype)


def outer(a: Array, b: Array) -> Array:
    """Aᵀ B, a sum over tokens: `[C, m]`, `[C, n] -> [m, n]`, as `contract`."""
    # the fast product of a CPU wants A turned before, and XLA would fold the turn into it
    turned = lambda a, b: contract(lax.optimization_barrier(a.T), b, (1, 0))
    return lax.platform_dependent(a, b, cpu=turned, default=lambda a, b: contract(a, b, (0, 0)))


def deltas(z: Array, v: Array, lr: float) -> Array:
    """η Vᵀ Z: `[C, f]`, `[C, d] -> [d, f]`."""
    return lr * outer(v, z)


def written_and_back(plan: Plan, z: Array, v: Array, limit: Array | None):
    """A chunk's clipped ΔW and its pullback: `(ΔW, G -> (gradient to η Vᵀ Z, to limit))`."""
    delta = deltas(z, v, plan.lr)
    if limit is None:
        return delta, lambda g: (g, None)
    return jax.vjp(lambda delta, limit: clip_norm(delta, limit, plan.total), delta, limit)


def piece(x: Array, index: Array, chunk: int) -> Array:
    """Rows of chunk `index`."""
    return lax.dynamic_slice_in_dim(x, index * chunk, chunk)


def put(x: Array, rows: Array, start: Array | int) -> Array:
    """`x` with `rows` from row `start` on."""
    return lax.dynamic_update_slice_in_dim(x, rows.astype(x.dtype), start, 0)


def over_chunks(body: Callable, carry: Any, count: int, reverse: bool = False) -> Any:
    """`carry = body(carry, i)` for `count` chunks."""
    if count == 0:  # a loop that never runs is traced, and its chunk may be longer than the row
        return carry
    step = lambda carry, i: (body(carry, i), None)
    return lax.scan(step, carry, jnp.arange(count), reverse=reverse)[0]


def num_writes(length: int, chunk: int) -> int:
    """Complete chunks before the last one, which may be a part of one."""
    return -(-length // chunk) - 1
