"""The inverse of unit lower triangular matrices against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from tolerances import assert_close

from fastweights.ops import unit_lower_inverse

SIZES = [1, 7, 16, 33, 64, 129]


def of_keys(kind, size, seed=0):
    """diag(beta) K Kᵀ of the delta rule: `[size, size]` float64 with values of float32."""
    rng = np.random.default_rng(seed)
    keys, beta = rng.normal(size=(size, 8)), rng.uniform(size=size)
    if kind == "equal keys":
        keys, beta = np.repeat(keys[:1], size, 0), np.ones(size)
    elif kind == "close keys":
        keys, beta = keys[:1] + 0.05 * keys, np.ones(size)
    elif kind == "some keys equal":
        keys = np.where(np.arange(size)[:, None] % 4 < 2, keys[:1], keys)
        beta = np.where(np.arange(size) % 4 < 1, 1.0, beta)
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    return (beta[:, None] * keys @ keys.T).astype(np.float32).astype(np.float64)


def exact(A):
    return np.linalg.inv(np.eye(len(A)) + np.tril(A, -1))


@pytest.mark.parametrize("kind", ["random", "equal keys", "close keys", "some keys equal"])
def test_inverse_and_its_gradient(kind):
    """A product of powers is wrong by 1e9 for equal keys: errors here are of float32's size."""
    rng = np.random.default_rng(1)
    for size in SIZES:
        A = of_keys(kind, size)
        X, weights = exact(A), rng.normal(size=(size, size))
        X32, pull = jax.vjp(unit_lower_inverse, jnp.asarray(A, jnp.float32))
        (d_A,) = pull(jnp.asarray(weights, jnp.float32))
        assert_close(X32, X, what=f"inverse, {size}")
        assert_close(d_A, np.tril(-X.T @ weights @ X.T, -1), what=f"gradient, {size}")
        np.testing.assert_array_equal(X32, np.tril(X32))


def test_only_the_part_below_the_diagonal_is_read():
    A = of_keys("random", 40)
    other = np.tril(A, -1) + np.triu(np.full((40, 40), np.nan))
    np.testing.assert_array_equal(unit_lower_inverse(jnp.asarray(A)), unit_lower_inverse(other))
    assert not np.triu(jax.grad(lambda A: jnp.sum(unit_lower_inverse(A)))(jnp.asarray(A))).any()


def test_float64_and_forward_mode():
    """Of a function of the inverse, against central differences."""
    with jax.enable_x64(True):
        A = jnp.asarray(of_keys("random", 21))
        assert_close(unit_lower_inverse(A), exact(np.asarray(A)), "float64")
        check_grads(lambda A: jnp.sin(unit_lower_inverse(A)), (A,), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_batches(axis):
    """Under vmap over any axis, and under two levels of it."""
    A = np.stack([[of_keys("random", 33, 3 * i + j) for j in range(3)] for i in range(2)])
    X = np.stack([[exact(one) for one in row] for row in A])
    A = jnp.asarray(A, jnp.float32)
    inner = jax.vmap(unit_lower_inverse, in_axes=axis)
    assert_close(jax.jit(inner)(jnp.moveaxis(A[0], 0, axis)), X[0])
    assert_close(jax.jit(jax.vmap(inner))(jnp.moveaxis(A, 1, axis + 1)), X)
