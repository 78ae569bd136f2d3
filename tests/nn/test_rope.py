"""Rotary embedding against complex numbers in float64, and what it is for: relative positions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from fastweights.errors import ConfigError
from fastweights.nn.parts import RMSNorm
from fastweights.nn.rope import Rope, amplitude, document_positions, frequencies, rotate

LLAMA3 = Rope(theta=5e5, scaling="llama3", factor=8.0, original_length=8192)
YARN = Rope(theta=1e6, scaling="yarn", factor=4.0, original_length=32768)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rope", [Rope(), Rope(theta=1e6), LLAMA3, YARN], ids=str)
def test_a_pair_of_channels_is_a_complex_number_that_turns(rope):
    x, positions = draw(0, 2, 5, 3, 12), np.array([[0, 1, 2, 3, 4], [7, 0, 1, 90, 2]])
    turn = frequencies(rope, 12).astype(np.float64)
    z = x[..., :6] + 1j * x[..., 6:].astype(np.float64)
    z = z * np.exp(1j * positions[:, :, None, None] * turn) * amplitude(rope)
    right = np.concatenate([z.real, z.imag], -1)
    assert_close(rotate(jnp.asarray(x), jnp.asarray(positions), rope), right)


def test_a_scaling_there_is_not_is_refused():
    rope = Rope(scaling="linear", factor=2.0)
    right = "scaling is 'linear'; it must be one of 'none', 'llama3', 'yarn'"
    assert rope.problems(8) == [f"rope.{right}"]
    with pytest.raises(ConfigError, match=right):
        frequencies(rope, 8)


def test_scores_depend_on_the_distance_only():
    q, k = (jnp.asarray(draw(seed, 1, 1, 1, 16)) for seed in (0, 1))

    def score(at, to):
        turned = (rotate(x, jnp.full((1, 1), p), Rope()) for x, p in ((q, at), (k, to)))
        return float(jnp.vdot(*turned))

    assert score(3, 1) == pytest.approx(score(52, 50), abs=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-2


def test_frequencies_fall_from_one_by_the_power():
    right = [1e6 ** (-2 * i / 128) for i in range(64)]
    np.testing.assert_allclose(frequencies(Rope(theta=1e6), 128), right, rtol=1e-6)


def test_llama3_slows_long_waves_keeps_short_ones_and_blends_between():
    plain, found = frequencies(Rope(theta=5e5), 128), frequencies(LLAMA3, 128)
    for old, new in zip(plain.astype(float), found, strict=True):
        wave = 2 * math.pi / old
        if wave < 8192 / 4:
            right = old
        elif wave > 8192 / 1:
            right = old / 8
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            right = (1 - smooth) * old / 8 + smooth * old
        assert new == pytest.approx(right, rel=1e-5)
    between = (found < plain * 0.999) & (found > plain / 8 * 1.001)
    assert between.sum() > 3  # the blend was there to be checked


def test_yarn_blends_by_the_turns_within_the_original_length():
    plain, found = frequencies(Rope(theta=1e6), 128), frequencies(YARN, 128)
    turns = 32768 * plain / (2 * math.pi)
    np.testing.assert_allclose(found[turns > 33], plain[turns > 33], rtol=1e-6)
    np.testing.assert_allclose(found[turns < 0.9], plain[turns < 0.9] / 4, rtol=1e-5)
    between = found[(turns < 30) & (turns > 1.2)] / plain[(turns < 30) & (turns > 1.2)]
    assert (np.diff(between) < 0).all()  # slower and slower
    assert amplitude(YARN) == pytest.approx(1 + 0.1 * math.log(4))


def test_rotation_is_float32_inside():
    x = jnp.asarray(draw(0, 1, 3, 2, 8)).astype(jnp.bfloat16)
    positions = jnp.array([[500, 1001, 30_001]])
    wide = rotate(x.astype(jnp.float32), positions, Rope())
    found = rotate(x, positions, Rope())
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("ids", "right"),
    [
        ([1, 1, 1, 2, 2, 3, 0, 0], [0, 1, 2, 0, 1, 0, 0, 1]),
        ([0, 0, 5, 5, 5, 5, 5, 2], [0, 1, 0, 1, 2, 3, 4, 0]),
        ([1, 1, 1, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_positions_start_again_with_every_document(ids, right):
    found = document_positions(jnp.array([ids, ids[::-1]]))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found[0], right)


@pytest.mark.parametrize(
    ("rope", "head_dim", "says"),
    [
        (Rope(), 7, "head_dim is 7"),
        (Rope(theta=0.5), 8, "rope.theta"),
        (Rope(scaling="yarn", factor=0.5, original_length=9), 8, "rope.factor"),
        (Rope(scaling="yarn", factor=2.0), 8, "rope.original_length"),
        (Rope(scaling="llama3", original_length=9, low_freq=4.0), 8, "rope.low_freq"),
        (Rope(scaling="yarn", original_length=9, beta_slow=64.0), 8, "rope.beta_slow"),
    ],
)
def test_impossible_values_are_named(rope, head_dim, says):
    (found,) = rope.problems(head_dim)
    assert found.startswith(says)


def test_possible_values_have_no_problems():
    assert not [p for rope in (Rope(), LLAMA3, YARN) for p in rope.problems(128)]


def test_norm_is_taken_in_float32_and_rounded_once():
    norm = RMSNorm(33, eps=1e-3)
    norm.scale.set_value(jnp.asarray(draw(0, 33)))
    x = jnp.asarray(draw(1, 2, 5, 33)).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    right = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-3) * draw(0, 33)
    assert_close(norm(x.astype(jnp.float32)), right)
    found = norm(x)
    assert found.dtype == jnp.bfloat16
    exact = jnp.asarray(right, jnp.float32).astype(jnp.bfloat16)
    assert (np.asarray(found == exact)).mean() > 0.99  # but for ties of the rounding


def test_norm_gradient_is_finite_at_zero():
    grad = jax.grad(lambda x: jnp.sum(RMSNorm(4)(x)))(jnp.zeros((1, 4)))
    assert np.isfinite(grad).all()
