"""One chunk of In-Place TTT (Feng et al. 2026, arXiv 2604.06169): its products and its write.

The write is `commit`. `written_and_back` is its pullback, for the backward passes of the scans.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fastweights.ops import root, shortening
from fastweights.rules.base import sequence_length

#: the sum of an array; of all parts of a matrix where only some of its columns are at hand
Total = Callable[[Array], Array]


class Plan(NamedTuple):
    """Constants of a scan over chunks."""

    chunk: int  # C, tokens per write
    lr: float  # η
    final: bool  # is the last chunk's write wanted
    total: Total  # sums over all columns, of which z and the weights may be a part
    decay: float = 1.0  # λ


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


def inner_loss(weights: Array, z: Array, v: Array) -> Array:
    """-<Z Wᵀ, V>, summed over the tokens: `[d, f]`, `[C, f]`, `[C, d]` -> `[]`.

    One step of gradient descent on it, of size η, is one chunk's write.
    """
    return -jnp.sum((z @ weights.T) * v)


def frobenius(x: Array, total: Total = jnp.sum) -> Array:
    """sqrt(Σ x²), with gradient 0 at 0; `total` as in `clip_norm`."""
    return root(total(x * x))


def clip_norm(delta: Array, limit: Array | None, total: Total = jnp.sum) -> Array:
    """`delta` scaled down to Frobenius norm `limit` if it is longer; None leaves it.

    Args:
        delta: `[d, f]`, or the part of its columns that is at hand.
        limit: `[]`.
        total: sums an array over all of the matrix; by default `delta` is all of it.
    """
    if limit is None:
        return delta
    return delta * shortening(frobenius(delta, total), limit).astype(delta.dtype)


def write_limit(
    w0: Array,
    lr: float,
    tau: float | None,
    *,
    relative: bool = False,
    after_lr: bool = True,
    total: Total = jnp.sum,
) -> Array | None:
    """What `tau` means as a limit on the norm of η Σ v zᵀ: `[] float32`; None if it is None.

    Args:
        w0: `[d, f]`, the weights a sequence starts from.
        lr: η.
        tau: the largest norm of a write.
        relative: `tau` is in units of the norm of `w0`; gradients flow to it.
        after_lr: `tau` limits η Σ v zᵀ; otherwise it limits Σ v zᵀ.
        total: sums an array over all of the weights, of which `w0` may be a part; see `clip_norm`.
    """
    if tau is None:
        return None
    dtype = jnp.promote_types(w0.dtype, jnp.float32)
    size = frobenius(w0.astype(dtype), total) if relative else jnp.ones((), dtype)
    return size * (tau if after_lr else tau * abs(lr))


def commit(
    weights: Array,
    delta: Array,
    limit: Array | None,
    total: Total = jnp.sum,
    *,
    slow: Array | None = None,
    decay: float = 1.0,
) -> Array:
    """The write of one chunk, W0 + λ (W - W0) + ΔW with ΔW clipped: `[d, f]`.

    Args:
        weights: `[d, f]`, before.
        delta: `[d, f]`, η Σ v zᵀ of the chunk.
        limit: `[]`, the largest norm of a write; None is no limit.
        total: as in `clip_norm`.
        slow: `[d, f]`, W0; a write with a decay needs it.
        decay: λ.
    """
    if decay != 1.0:
        assert slow is not None
        slow = slow.astype(weights.dtype)
        weights = slow + decay * (weights - slow)
    return weights + clip_norm(delta, limit, total)


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


def attention(w0: Array, z: Array, v: Array, *, chunk: int, lr: float, decay: float = 1.0) -> Array:
    """Y = Z W0ᵀ + η M(Z Zᵀ) V, with M keeping the pairs whose value is of an earlier chunk.

    A pair that is n chunks apart counts λ^(n - 1).

    Its memory grows with T², and it has no state to hand on: for short prefixes. Writes cannot be
    clipped in this form.

    Args:
        w0: `[d, f]`, the weights the sequence starts from.
        z: `[T, f]` keys and queries.
        v: `[T, d]` values.
        chunk: tokens C per chunk.
        lr: η.
        decay: λ.

    Returns:
        `[T, d]`.

    Raises:
        ValueError: `chunk` is not positive, `decay` is not from 0 to 1, or `z` and `v` differ in
            length.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be from 0 to 1, got {decay}")
    place = jnp.arange(sequence_length((z, v))) // chunk
    apart = place[:, None] - place[None, :]
    scores = jnp.where(apart > 0, z @ z.T, 0)
    if decay != 1:
        scores *= (decay ** jnp.maximum(apart - 1, 0)).astype(z.dtype)
    return z @ w0.T.astype(z.dtype) + lr * (scores @ v)
