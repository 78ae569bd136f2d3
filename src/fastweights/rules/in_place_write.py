"""The write of In-Place TTT (Feng et al. 2026, arXiv 2604.06169), and the attention form."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from fastweights.ops import root, shortening
from fastweights.rules.base import sequence_length

#: the sum of an array; of all parts of a matrix where only some of its columns are at hand
Total = Callable[[Array], Array]


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


def commit(weights: Array, delta: Array, limit: Array | None, total: Total = jnp.sum) -> Array:
    """The write of one chunk, W + ΔW with ΔW clipped: `[d, f]`.

    Args:
        weights: `[d, f]`, before.
        delta: `[d, f]`, η Σ v zᵀ of the chunk.
        limit: `[]`, the largest norm of a write; None is no limit.
        total: as in `clip_norm`.
    """
    return weights + clip_norm(delta, limit, total)


def attention(w0: Array, z: Array, v: Array, *, chunk: int, lr: float) -> Array:
    """Y = Z W0ᵀ + η M(Z Zᵀ) V, with M keeping the pairs whose value is of an earlier chunk.

    Its memory grows with T², and it has no state to hand on: for short prefixes. Writes cannot be
    clipped in this form.

    Args:
        w0: `[d, f]`, the weights the sequence starts from.
        z: `[T, f]` keys and queries.
        v: `[T, d]` values.
        chunk: tokens C per chunk.
        lr: η.

    Returns:
        `[T, d]`.

    Raises:
        ValueError: `chunk` is not positive, or `z` and `v` differ in length.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    place = jnp.arange(sequence_length((z, v))) // chunk
    scores = jnp.where(place[:, None] > place[None, :], z @ z.T, 0)
    return z @ w0.T.astype(z.dtype) + lr * (scores @ v)
