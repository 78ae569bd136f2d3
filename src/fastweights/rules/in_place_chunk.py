"""What one chunk of In-Place TTT computes: the products, and how their gradients go back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fastweights.rules.in_place import clip_norm


class Plan(NamedTuple):
    """What is known when the scan is traced."""

    chunk: int  # C, tokens per write
    lr: float  # η
    final: bool  # is the last chunk's write wanted
    axis_name: str | None  # mapped axis over which f is split


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
    if jax.default_backend() != "cpu":
        return contract(a, b, (0, 0))
    # the fast product of a CPU wants A turned before, and XLA would fold the turn into it
    return contract(lax.optimization_barrier(a.T), b, (1, 0))


def deltas(z: Array, v: Array, lr: float) -> Array:
    """η Vᵀ Z: `[C, f]`, `[C, d] -> [d, f]`."""
    return lr * outer(v, z)


def written(plan: Plan, z: Array, v: Array, limit: Array | None) -> Array:
    """What a chunk writes: η Vᵀ Z, clipped."""
    return clip_norm(deltas(z, v, plan.lr), limit, plan.axis_name)


def written_and_back(plan: Plan, z: Array, v: Array, limit: Array | None):
    """`written` and its gradient's way back: `(written, G -> (gradient to η Vᵀ Z, to limit))`."""
    delta = deltas(z, v, plan.lr)
    if limit is None:
        return delta, lambda g: (g, None)
    return jax.vjp(lambda delta, limit: clip_norm(delta, limit, plan.axis_name), delta, limit)


def piece(x: Array, index: Array, chunk: int) -> Array:
    """Rows of chunk `index`."""
    return lax.dynamic_slice_in_dim(x, index * chunk, chunk)


def put(x: Array, rows: Array, start: Array | int) -> Array:
    """`x` with `rows` from row `start` on."""
    return lax.dynamic_update_slice_in_dim(x, rows.astype(x.dtype), start, 0)


def over_chunks(body: Callable, carry: Any, count: int, reverse: bool = False) -> Any:
    """`carry = body(carry, i)` for every chunk that somebody reads after."""
    if count == 0:  # a loop that never runs is traced, and its chunk may be longer than the row
        return carry
    step = lambda carry, i: (body(carry, i), None)
    return lax.scan(step, carry, jnp.arange(count), reverse=reverse)[0]


def writes(length: int, chunk: int) -> int:
    """Chunks that somebody reads after: all but the last, which may be a part of one."""
    return -(-length // chunk) - 1
