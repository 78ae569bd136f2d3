"""The inverse of a unit lower triangular matrix, made of matrix products alone.

    [[A, 0], [B, C]]⁻¹ = [[A⁻¹, 0], [-C⁻¹ B A⁻¹, C⁻¹]]

applied to halves of halves. Substitution row by row has the same accuracy but n dependent steps,
and the triangular solve of a batch is slow on every platform. A product of powers,
(I - L)(I + L²)(I + L⁴)..., has as few steps and is wrong: for equal keys the entries of L^m are
binomial coefficients, up to 1e18 at n = 64, and float32 keeps no digit of their sum.

All products here are float32 at full precision. Accelerators would by default round factors to
TF32 or bfloat16, and the error would be multiplied by the inverse at every level. The inverse is a
small part of a chunk's products, so it costs little.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

#: size up to which the levels are products of whole matrices, which are fewer operations
BASE = 16

_multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@jax.custom_jvp
def unit_lower_inverse(A: Array) -> Array:
    """(I + L)⁻¹ `[n, n]`, where L is the part of `A [n, n]` below the diagonal.

    The diagonal of A and the part above it are not read. The backward pass needs the inverse only.
    """
    return _inverse(A)


@unit_lower_inverse.defjvp
def _jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    X = unit_lower_inverse(*primals)
    return X, -_multiply(X, _multiply(jnp.tril(tangents[0], -1), X))


def _inverse(A: Array) -> Array:
    # two calls and not one on a stack of halves: of products with several batch axes, as `vmap`
    # makes of those, XLA on CPU ended the process (jax 0.10.2)
    n = len(A)
    if n <= BASE:
        return _small_inverse(A)
    half = n // 2
    first, second = _inverse(A[:half, :half]), _inverse(A[half:, half:])
    corner = -_multiply(second, _multiply(A[half:, :half], first))
    return jnp.block([[first, jnp.zeros((half, n - half), A.dtype)], [corner, second]])


def _small_inverse(A: Array) -> Array:
    """The same with all blocks of one level in one product of `[n, n]` matrices."""
    place = jnp.arange(len(A))
    X, size = jnp.eye(len(A), dtype=A.dtype), 1
    while size < len(A):
        block = place // size
        # the blocks below the diagonal that join the blocks 2m and 2m + 1
        joins = (block[:, None] == block[None, :] + 1) & (block[:, None] % 2 == 1)
        B = jnp.where(joins, A, 0)
        X = X - (B if size == 1 else _multiply(X, _multiply(B, X)))
        size *= 2
    return X
