"""Distributions against sorting and counting in NumPy, and draws against their frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoders import log_softmax
from tolerances import assert_close

from fastweights.inference.sampling import log_distribution, method, sample


def by_hand(logits, temperature, top_k, top_p):
    """Probabilities of one row, token by token from the likeliest on."""
    p = np.exp(log_softmax(np.asarray(logits, np.float64) / temperature))
    order = np.argsort(-p)
    if top_k is not None:
        order = order[:top_k]
    p_left = p[order] / p[order].sum()
    kept, total = [], 0.0
    for token, share in zip(order, p_left, strict=True):
        if top_p is not None and total >= top_p:
            break
        kept.append(token)
        total += share
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 4, 100])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.5, 0.93, 1.0])
def test_distributions(temperature, top_k, top_p):
    logits = 2 * np.random.default_rng(0).standard_normal((6, 17)).astype(np.float32)
    asked = method(temperature, top_k, top_p, jax.random.key(0))
    actual = np.exp(log_distribution(jnp.asarray(logits), *asked))
    expected = [by_hand(row, temperature, top_k, top_p) for row in logits]
    assert_close(actual, expected)
    assert np.array_equal(actual > 0, np.asarray(expected) > 0)


def test_cuts_come_after_the_temperature_and_top_p_after_top_k():
    """By hand: of p = .4 .3 .2 .1, top-k 2 leaves 4/7 3/7, of which top-p 0.5 leaves the first."""
    logits = jnp.log(jnp.array([[0.3, 0.4, 0.1, 0.2]]))
    left = lambda *a: np.exp(log_distribution(logits, *method(*a, jax.random.key(0))))[0]
    assert_close(left(1.0, 2, 0.5), [0, 1, 0, 0])
    assert_close(left(1.0, None, 0.5), [3 / 7, 4 / 7, 0, 0])
    assert_close(left(0.5, None, 0.5), [0, 1, 0, 0])  # .16 of .3 is more than half


def test_equal_tokens_stay_together():
    logits = jnp.array([[1.0, 1.0, 1.0, 0.0]])
    for asked in ((1.0, 1, None), (1.0, None, 0.2)):
        p = np.exp(log_distribution(logits, *method(*asked, jax.random.key(0))))[0]
        assert_close(p, [1 / 3, 1 / 3, 1 / 3, 0])


def test_draws_have_their_frequencies():
    """20,000 draws: every frequency within five standard errors."""
    logits = np.random.default_rng(1).standard_normal(7).astype(np.float32)
    asked = method(0.8, 5, 0.9, jax.random.key(1))
    draw = jax.jit(lambda at: sample(jnp.asarray(logits)[None], at[None], *asked))
    tokens, log_p = jax.lax.map(draw, jnp.arange(20_000))
    expected = by_hand(logits, 0.8, 5, 0.9)
    found = np.bincount(np.asarray(tokens[:, 0]), minlength=7) / 20_000
    assert np.all(np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / 20_000))
    assert_close(np.exp(log_p[:, 0]), expected[tokens[:, 0]])


def test_a_row_draws_the_same_in_any_batch_and_others_otherwise():
    logits, at = jnp.zeros((64, 50)), jnp.full(64, 3)
    asked = method(1.0, None, None, jax.random.key(2))
    many, few = sample(logits, at, *asked)[0], sample(logits[:5], at[:5], *asked)[0]
    assert np.array_equal(many[:5], few)
    assert len(np.unique(many)) > 25  # 36 are expected of 64 fair draws from 50
    assert not np.array_equal(many, sample(logits, at + 1, *asked)[0])


@pytest.mark.parametrize("temperature", [1e-44, 1e-38, 1e-37, 1e-6])
@pytest.mark.parametrize("cut", [(None, None), (3, 0.9)])
def test_the_lowest_temperatures_take_the_likeliest(temperature, cut):
    """With a distribution of all there is on it, or as 0 where float32 has no such temperature."""
    logits = jnp.array([[-30.0, 55.0, 54.0, 3.0], [-9.0, -7.0, -8.0, -90.0]])
    asked = method(temperature, *cut, jax.random.key(0))
    tokens, log_p = sample(logits, jnp.zeros(2, jnp.int32), *asked)
    assert tokens.tolist() == [1, 1]
    cold = log_softmax(logits)[:, 1] if temperature < 1.1754943e-38 else [0, 0]
    assert_close(log_p, cold)


def test_greedy_takes_the_first_of_the_likeliest():
    logits = jnp.array([[0.0, 2.0, 2.0], [3.0, 1.0, 2.0]])
    tokens, log_p = sample(logits, jnp.zeros(2, jnp.int32), *method(0.0, None, None, None))
    assert tokens.tolist() == [1, 0]
    assert_close(log_p, log_softmax(logits)[[0, 1], [1, 0]])
