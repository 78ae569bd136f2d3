"""Decays inside a chunk against float64 loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from fastweights.ops import decays, reachable


def expected(g, starts):
    """Products of e^g from write to read, one by one."""
    length = len(g)
    writes, state = np.zeros((length, length)), np.zeros(length)
    for i in range(length):
        state[i] = 0.0 if any(starts[: i + 1]) else np.prod(np.exp(g[: i + 1]))
        for j in range(i + 1):
            cut = any(starts[j + 1 : i + 1])
            writes[i, j] = 0.0 if cut else np.prod(np.exp(g[j + 1 : i + 1]))
    return writes, state


GATES = {
    "mild": lambda t, rng: -rng.exponential(size=len(t)) / 10,
    "mixed": lambda t, rng: -rng.exponential(size=len(t)) * rng.choice([0.01, 1, 20], len(t)),
    "all -20": lambda t, rng: np.full(len(t), -20.0),
    "small after -20": lambda t, rng: np.where(t < 50, -20.0, -1e-3 * t),
    "none": lambda t, rng: np.zeros(len(t)),
}


@pytest.mark.parametrize("start", [None, [0], [1], [5, 6, 40], [63], range(64)], ids=repr)
@pytest.mark.parametrize("kind", GATES)
def test_decays(kind, start):
    """Also after a sum of -1000, where a difference of two float32 sums has errors of 6e-5."""
    place = np.arange(64)
    g = GATES[kind](place, np.random.default_rng(0)).astype(np.float32)
    starts = np.isin(place, [] if start is None else list(start))
    actual = decays(64, jnp.asarray(g), None if start is None else starts, jnp.float32)
    for a, e in zip(actual, expected(g.astype(np.float64), starts), strict=True):
        np.testing.assert_allclose(a, e, atol=2e-7, rtol=2e-6)


@pytest.mark.parametrize("kind", GATES)
def test_gradients_are_finite_and_right(kind):
    """To each g from every pair that it lies between, in float32 as in float64."""
    place, rng = np.arange(64), np.random.default_rng(1)
    g = GATES[kind](place, rng).astype(np.float32)
    starts = np.isin(place, [20, 21])
    weights = rng.normal(size=(64, 64)), rng.normal(size=64)
    writes, state = expected(g.astype(np.float64), starts)
    slope = np.zeros(64)
    for i in range(64):
        slope[: i + 1] += weights[1][i] * state[i]
        for j in range(i):
            slope[j + 1 : i + 1] += weights[0][i, j] * writes[i, j]

    def value(g):
        pair = decays(64, g, starts, jnp.float32)
        return sum(
            jnp.sum(jnp.asarray(w, jnp.float32) * x) for w, x in zip(weights, pair, strict=True)
        )

    assert_close(jax.jit(jax.grad(value))(jnp.asarray(g)), slope)


def test_without_decay_they_are_the_pairs_that_may_interact():
    starts = jnp.asarray([False, True, False, False, True])
    writes, state = reachable(5, starts)
    np.testing.assert_array_equal(
        np.asarray(writes, int),
        [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]],
    )
    np.testing.assert_array_equal(state, [True, False, False, False, False])
    for a, b in zip(decays(5, None, starts, jnp.float32), (writes, state), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


def test_a_decay_to_zero_has_a_gradient_of_zero():
    g = jnp.asarray([-1.0, -jnp.inf, -1.0, -1.0])
    writes, state = decays(4, g, None, jnp.float32)
    np.testing.assert_allclose(writes[3], [0, np.exp(-2), np.exp(-1), 1], rtol=1e-6)
    np.testing.assert_allclose(state, [np.exp(-1), 0, 0, 0], rtol=1e-6)
    slope = jax.grad(lambda g: sum(jnp.sum(x) for x in decays(4, g, None, jnp.float32)))(g)
    assert np.isfinite(slope).all() and slope[1] == 0


def test_growth_across_a_document_start_is_not_computed():
    """Positive g, e^62 inside each document and e^126, more than float32 has, across the start."""
    g, starts = jnp.full(64, 2.0), jnp.arange(64) == 32
    value = lambda g: sum(jnp.sum(jnp.log1p(x)) for x in decays(64, g, starts, jnp.float32))
    assert np.isfinite(jax.grad(value)(g)).all()
