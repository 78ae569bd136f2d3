"""Advantages by hand; losses by hand, by autodiff and by enumeration of every answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastweights.fastslow.objective import (
    EPSILON,
    PolicyGradient,
    advantages,
    divergence_loss,
    policy_loss,
)


def test_advantages_by_hand():
    rewards = np.array([1.0, 0, 0, 0, 0.5, 0.5, np.nan, 1.0, 0, np.nan])
    groups = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 3])
    found, used = advantages(rewards, groups, "mean")
    assert found.tolist() == [0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0.5, -0.5, 0]
    assert used.tolist() == [True] * 4 + [False] * 3 + [True, True, False]
    found, _ = advantages(rewards, groups, "rloo")
    # the first: 1 - mean(0, 0, 0); the others: 0 - 1/3
    np.testing.assert_allclose(found[:4], [1, -1 / 3, -1 / 3, -1 / 3])
    np.testing.assert_allclose(found[7:9], [1, -1])
    found, _ = advantages(rewards, groups, "std")
    deviation = np.sqrt(0.75**2 / 4 + 3 * 0.25**2 / 4)
    np.testing.assert_allclose(
        found[:4], np.array([0.75, -0.25, -0.25, -0.25]) / (deviation + EPSILON)
    )


@pytest.mark.parametrize("kind", ["std", "mean", "rloo"])
def test_a_group_that_agrees_teaches_nothing(kind):
    found, used = advantages(np.full(8, 0.3), np.zeros(8, int), kind)
    assert not used.any() and not found.any()


def numbers(seed=0, shape=(4, 3)):
    rng = np.random.default_rng(seed)
    log_p, behaviour = -rng.exponential(1.0, shape), -rng.exponential(1.0, shape)
    mask = rng.random(shape) < 0.7
    return log_p, behaviour, rng.normal(size=shape[0]), mask


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["cispo", "grpo", "reinforce"])
def test_losses_and_gradients_are_the_formulas(kind, seed):
    log_p, behaviour, advantage, mask = numbers(seed)
    config = PolicyGradient(loss=kind, truncate=1.5, clip_low=0.2, clip_high=0.3)
    value, grad = jax.value_and_grad(
        lambda x: policy_loss(config, x, *map(jnp.asarray, (behaviour, advantage, mask)))
    )(jnp.asarray(log_p, jnp.float32))
    total, expected, count = 0.0, np.zeros_like(log_p), mask.sum()
    for b in range(log_p.shape[0]):
        for t in range(log_p.shape[1]):
            if not mask[b, t]:
                continue
            ratio, a = np.exp(log_p[b, t] - behaviour[b, t]), advantage[b]
            if kind == "cispo":
                weight = min(ratio, 1.5)
                total -= weight * a * log_p[b, t]
                expected[b, t] = -weight * a / count
            elif kind == "grpo":
                clipped = min(max(ratio, 0.8), 1.3)
                total -= min(ratio * a, clipped * a)
                expected[b, t] = -ratio * a / count if ratio * a <= clipped * a else 0.0
            else:
                total -= a * log_p[b, t]
                expected[b, t] = -a / count
    assert float(value) == pytest.approx(total / count, rel=1e-5)
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-7)


def test_cispo_drops_no_token_and_ppo_does():
    behaviour, advantage = jnp.full((1, 1), -3.0), jnp.ones(1)
    grads = {
        kind: jax.grad(
            lambda x, kind=kind: policy_loss(
                PolicyGradient(loss=kind), x, behaviour, advantage, jnp.ones((1, 1))
            )
        )(jnp.full((1, 1), -0.5))
        for kind in ("cispo", "grpo")
    }
    assert float(grads["cispo"][0, 0]) == pytest.approx(-4.0) and float(grads["grpo"][0, 0]) == 0


@pytest.mark.parametrize("kind", ["cispo", "grpo", "reinforce"])
def test_tokens_that_are_not_there_may_hold_anything(kind):
    log_p, behaviour, advantage, mask = numbers()
    config = PolicyGradient(loss=kind)
    loss = lambda x, y: policy_loss(config, x, y, jnp.asarray(advantage), jnp.asarray(mask))
    clean = jax.value_and_grad(loss)(jnp.asarray(log_p), jnp.asarray(behaviour))
    wild = jax.value_and_grad(loss)(
        jnp.asarray(np.where(mask, log_p, 80.0)), jnp.asarray(np.where(mask, behaviour, -900.0))
    )
    np.testing.assert_array_equal(clean[0], wild[0])
    np.testing.assert_array_equal(clean[1], wild[1])
    assert np.isfinite(wild[1]).all()
    nothing = policy_loss(config, *map(jnp.asarray, (log_p, behaviour, advantage, mask * 0)))
    assert float(nothing) == 0


def test_the_policy_gradient_is_that_of_the_expected_reward():
    """A softmax over 5 answers: weighting every answer by its chance is the exact expectation."""
    rng = np.random.default_rng(3)
    logits, reward = jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.random(5))
    exact = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * reward))(logits)
    p = jax.nn.softmax(logits)

    def loss(x, answer):
        log_p = jax.nn.log_softmax(x)[answer][None, None]
        return policy_loss(
            PolicyGradient(),
            log_p,
            jax.lax.stop_gradient(log_p),
            reward[answer][None],
            jnp.ones((1, 1)),
        )

    estimate = sum(p[i] * jax.grad(loss)(logits, i) for i in range(5))
    np.testing.assert_allclose(estimate, -exact, atol=1e-6)


@pytest.mark.parametrize("uniform", [False, True])
def test_the_divergence_loss_has_the_divergences_gradient(uniform):
    rng = np.random.default_rng(4)
    logits, other = (
        jnp.asarray(rng.normal(size=6)),
        jax.nn.log_softmax(jnp.asarray(rng.normal(size=6))),
    )

    def exact(x):
        p = jax.nn.log_softmax(x)
        return jnp.sum(jnp.exp(p) * (p if uniform else p - other))

    p = jax.nn.softmax(logits)

    def loss(x, answer):
        reference = None if uniform else other[answer][None, None]
        return divergence_loss(
            jax.nn.log_softmax(x)[answer][None, None], reference, jnp.ones((1, 1))
        )

    estimate = sum(p[i] * jax.grad(loss)(logits, i) for i in range(6))
    np.testing.assert_allclose(estimate, jax.grad(exact)(logits), atol=1e-6)
