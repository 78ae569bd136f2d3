"""One chunk of In-Place TTT (Feng et al. 2026, arXiv 2604.06169): products, read and write.

The write is `commit`. `written_and_back` is its pullback, for the backward passes of the scans.

A read takes W, or with an option another matrix; D = W - W0 is the sum of the writes:

    cap r       W0 + D min(1, r ‖W0‖ / ‖D‖)     Frobenius norms
    row norm    row i of W, scaled to the norm of row i of W0

Both change the read only: the state is still a sum, and the writes do not depend on it. The row
norm is from TTT-NTP (arXiv 2606.21803), the cap is ours.

A residual write is not η Σ v zᵀ but a step on the error of D itself, as normalised least mean
squares has it (Widrow and Hoff 1960), of the length η over the squared norm of the chunk's keys.
With a decay, it is the error of what is left of D:

    ΔW = η / Σ_t |z_t|² Σ_t (v_t - λ D z_t) z_tᵀ      for 0 < η < 2 the error shrinks

It is the one write that depends on D, so a scan cannot walk it back.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fastweights.ops import root, shortening
from fastweights.rules.base import sequence_length

#: the sum of an array, or over an axis of it; over all columns of a matrix where only some of them
#: are at hand
Total = Callable[..., Array]
#: power iterations of `spectral_norm`
ITERATIONS = 5
#: the least norm of a row that the row norm divides by
LEAST_ROW = 1e-5
#: the least squared norm of a chunk's keys at which a residual write is made
LEAST_ENERGY = 1e-15


class Scales(NamedTuple):
    """Numbers of a sequence that a write or a read needs; None is without the option."""

    write: Array | None = None  # [], largest norm of a chunk's write
    cap: Array | None = None  # [], largest norm of D at a read
    rows: Array | None = None  # [d], norms of the rows at a read
    decay: Array | None = None  # [], λ if it is learned
    gain: Array | None = None  # [], η over the plan's, if it is learned

    @property
    def reads_sum(self) -> bool:
        """Tokens read W itself, without cap and row norm."""
        return self.cap is None and self.rows is None


class Plan(NamedTuple):
    """Constants of a scan over chunks."""

    chunk: int  # C, tokens per write
    lr: float  # η
    final: bool  # is the last chunk's write wanted
    total: Total  # sums over all columns, of which z and the weights may be a part
    decay: float = 1.0  # λ, if it is not learned
    spectral: bool = False  # is Σ v zᵀ divided by its spectral norm
    residual: bool = False  # is a write the error of D, over the squared norm of the keys


def contract(a: Array, b: Array, axes: tuple[int, int], dtype=None) -> Array:
    """Product over `axes` of two matrices, in a's dtype; summed and returned in at least float32.

    With `dtype` the result has that one, as a plain linear layer has.
    """
    dtype = jnp.promote_types(a.dtype, jnp.float32) if dtype is None else dtype
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b.astype(a.dtype), dimensions, preferred_element_type=dtype)


def read(weights: Array, z: Array) -> Array:
    """Z Wᵀ: `[d, f]`, `[C, f] -> [C, d]`; in the dtype of z, as the layer it stands for."""
    return _read(weights, z)


@jax.custom_vjp
def _read(weights: Array, z: Array) -> Array:
    return contract(z, weights, (1, 1), z.dtype)


def _read_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    weights, z = saved
    dz = contract(dy, weights, (1, 0), z.dtype)
    return outer(dy, z).astype(weights.dtype), dz


_read.defvjp(lambda weights, z: (_read(weights, z), (weights, z)), _read_backward)


def outer(a: Array, b: Array) -> Array:
    """Aᵀ B, a sum over tokens: `[C, m]`, `[C, n] -> [m, n]`, as `contract`."""
    # the fast product of a CPU wants A turned before, and XLA would fold the turn into it
    turned = lambda a, b: contract(lax.optimization_barrier(a.T), b, (1, 0))
    return lax.platform_dependent(a, b, cpu=turned, default=lambda a, b: contract(a, b, (0, 0)))


def deltas(z: Array, v: Array, lr: float) -> Array:
    """η Vᵀ Z: `[C, f]`, `[C, d] -> [d, f]`."""
    return _deltas(z, v, lr)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _deltas(z: Array, v: Array, lr: float) -> Array:
    return lr * outer(v, z)


def _deltas_backward(lr: float, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    z, v = saved
    back = lambda a, axis, like: (lr * contract(a, g, (1, axis))).astype(like.dtype)
    return back(v, 0, z), back(z, 1, v)


_deltas.defvjp(lambda z, v, lr: (_deltas(z, v, lr), (z, v)), _deltas_backward)


def errors(added: Array, z: Array, v: Array, total: Total = jnp.sum) -> Array:
    """V - Z Dᵀ, the part of V that the writes so far leave: `[C, d]` in the dtype of `v`.

    Args:
        added: `[d, f]`, D.
        z: `[C, f]`.
        v: `[C, d]`.
        total: sums over all columns, of which D and `z` may be a part.
    """
    said = contract(z, added, (1, 1))
    return (v - total(said[None], 0)).astype(v.dtype)


def over_energy(delta: Array, energy: Array) -> Array:
    """`delta [d, f]` over `energy []`, the squared norm of the keys; 0 where that is about 0."""
    there = energy > LEAST_ENERGY  # the derivative has energy² below
    return delta * jnp.where(there, 1 / jnp.where(there, energy, 1), 0)


def remaining(plan: Plan, scales: Scales, slow: Array, weights: Array) -> Array:
    """λ (W - W0), D after it has been forgotten in part: `[d, f]` in the dtype of `weights`."""
    decay = plan.decay if scales.decay is None else scales.decay
    return decay * (weights - slow.astype(weights.dtype))


def summed(plan: Plan, scales: Scales, slow: Array, weights: Array, z: Array, v: Array) -> Array:
    """The write of a chunk before its options, from the weights before it: `[d, f]`.

    η Σ v zᵀ, or with `plan.residual` its residual form. `z` is 0 for tokens that write nothing.
    """
    if not plan.residual:
        return deltas(z, v, plan.lr)
    wide = z.astype(weights.dtype)
    error = errors(remaining(plan, scales, slow, weights), z, v, plan.total)
    return over_energy(deltas(z, error, plan.lr), plan.total(wide * wide))


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
    """The limit on the norm of η Σ v zᵀ that `tau` sets: `[] float32`; None without `tau`.

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


def spectral_norm(matrix: Array, total: Total = jnp.sum) -> Array:
    """The largest singular value by five power iterations, a lower bound of it: `[d, f] -> []`.

    Args:
        matrix: `[d, f]`, or the part of its columns that is at hand.
        total: as in `clip_norm`.
    """

    def iterate(left: Array, _) -> tuple[Array, None]:
        right = matrix.T @ left
        size = frobenius(right, total)
        left = total((matrix @ right)[None], 0) / jnp.where(size > 0, size, 1)
        norm = root(jnp.sum(left * left))
        return left / jnp.where(norm > 0, norm, 1), None

    start = jax.random.normal(jax.random.key(0), matrix.shape[:1], jnp.float32)
    left, _ = lax.scan(iterate, start.astype(matrix.dtype), length=ITERATIONS)
    return frobenius(matrix.T @ left, total)


def shaped(plan: Plan, delta: Array, scales: Scales) -> Array:
    """The write of a chunk from η Σ v zᵀ: divided by its spectral norm, then clipped: `[d, f]`."""
    if plan.spectral:
        norm = spectral_norm(delta, plan.total)
        delta = delta * (abs(plan.lr) / jnp.where(norm > 0, norm, 1))
    if scales.gain is not None:
        delta = delta * scales.gain.astype(delta.dtype)
    return clip_norm(delta, scales.write, plan.total)


def commit(plan: Plan, scales: Scales, slow: Array, weights: Array, delta: Array) -> Array:
    """The write of one chunk, W0 + λ (W - W0) + ΔW: `[d, f]`.

    Args:
        plan: of the scan.
        scales: of the sequence.
        slow: `[d, f]`, W0.
        weights: `[d, f]`, before.
        delta: `[d, f]`, η Σ v zᵀ of the chunk, of which `shaped` makes ΔW.
    """
    if scales.decay is not None or plan.decay != 1.0:
        weights = slow.astype(weights.dtype) + remaining(plan, scales, slow, weights)
    return weights + shaped(plan, delta, scales)


def read_scales(
    w0: Array, cap: float | None, row_norm: bool, total: Total = jnp.sum
) -> tuple[Array | None, Array | None]:
    """The largest norm of D at a read `[]` and the norms of rows `[d]`, of W0 `[d, f]`."""
    wide = w0.astype(jnp.promote_types(w0.dtype, jnp.float32))
    largest = None if cap is None else cap * frobenius(wide, total)
    return largest, root(total(wide * wide, 1)) if row_norm else None


def effective(scales: Scales, slow: Array, weights: Array, total: Total = jnp.sum) -> Array:
    """The matrix that tokens read, of the state W and of W0: `[d, f]`; see the module."""
    if scales.cap is not None:
        slow = slow.astype(weights.dtype)
        weights = slow + clip_norm(weights - slow, scales.cap, total)
    if scales.rows is not None:
        norms = jnp.maximum(root(total(weights * weights, 1)), LEAST_ROW)
        weights = weights * (scales.rows / norms).astype(weights.dtype)[:, None]
    return weights


def written_and_back(plan: Plan, z: Array, v: Array, scales: Scales):
    """A chunk's ΔW and its pullback: `(ΔW, G -> (gradient to η Vᵀ Z, to scales))`."""
    delta = deltas(z, v, plan.lr)
    if scales.write is None and scales.gain is None and not plan.spectral:
        return delta, lambda g: (g, jax.tree.map(jnp.zeros_like, scales))
    return jax.vjp(functools.partial(shaped, plan), delta, scales)


def check_options(decay: float | None, cap: float | None) -> None:
    """Raises ValueError for a decay that is not from 0 to 1, or a cap that is not positive."""
    if decay is not None and not 0 <= decay <= 1:
        raise ValueError(f"decay must be from 0 to 1, got {decay}")
    if cap is not None and not cap > 0:
        raise ValueError(f"cap must be positive or None, got {cap}")


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
