"""The closed-form write: least squares in float64, ragged rows, later tokens, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoders import CASES, LLAMA, change, decoder, random_tokens, randomised
from tolerances import assert_close

import fastweights as fw
from fastweights.errors import ConfigError
from fastweights.models.decoder_config import InPlaceTTT
from fastweights.nn.in_place_ridge import Ridge, fitted
from fastweights.nn.rope import document_positions

LENGTHS = np.array([7, 20, 13])


def least_squares(ridge, slow, weights, z, v):
    """By an augmented system, which has no normal equations."""
    e = v - z @ (weights - slow).T
    rows = np.concatenate([z, np.sqrt(ridge.penalty) * np.eye(z.shape[1])])
    right = np.concatenate([e, np.zeros((z.shape[1], e.shape[1]))])
    delta = np.linalg.lstsq(rows, right)[0].T
    shorter = min(1, np.linalg.norm(slow) / np.linalg.norm(delta)) if delta.any() else 1
    return weights + ridge.step * shorter * delta


@pytest.mark.parametrize("size", [0.1, 10.0])  # of the targets: a short write, and a long one
@pytest.mark.parametrize("n,f", [(5, 9), (9, 9), (23, 9), (1, 4)])
def test_it_is_ridge_regression_in_float64(n, f, size):
    rng = np.random.default_rng(n)
    ridge = Ridge(penalty=0.3, step=0.4, tokens=7)
    slow, weights = rng.normal(size=(2, 3, f))
    weights = slow + 0.1 * weights
    z, v = rng.normal(size=(n + 2, f)), size * rng.normal(size=(n + 2, 3))
    used = slice(max(0, n - 7), n)
    with jax.enable_x64(True):
        valid = jnp.arange(n + 2) < n
        found = np.asarray(fitted(ridge, *map(jnp.asarray, (slow, weights, z, v)), valid))
    expected = least_squares(ridge, slow, weights, z[used], v[used])
    assert_close(found, expected, "float64")
    assert (np.linalg.norm(found - weights) / np.linalg.norm(slow) > 0.399) == (size > 1)


@pytest.mark.parametrize("size", [1.0, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("n,f,distinct", [(512, 64, 20), (40, 64, 2), (300, 64, 1)])
def test_keys_that_repeat_or_are_large_leave_finite_weights(n, f, distinct, size):
    """And the fit of what was written is no worse than without it."""
    rng = np.random.default_rng(0)
    keys, targets = size * rng.normal(size=(distinct, f)), rng.normal(size=(distinct, 3))
    which = rng.integers(0, distinct, n)
    slow = rng.normal(size=(3, f))
    given = [jnp.asarray(x, jnp.float32) for x in (slow, slow, keys[which], targets[which])]
    found = fitted(Ridge(step=1.0), *given, jnp.ones(n, bool))
    assert np.isfinite(found).all()
    error = np.linalg.norm(targets - keys @ (np.asarray(found, np.float64) - slow).T)
    assert error < 0.5 * np.linalg.norm(targets)


def test_padding_does_not_change_the_fit():
    """A short text alone, and in a row as long as the longest of a batch."""
    rng = np.random.default_rng(1)
    slow = rng.normal(size=(3, 32)).astype(np.float32)
    z = (10 * rng.normal(size=(100, 32))).astype(np.float32)
    v = rng.normal(size=(100, 3)).astype(np.float32)
    for tokens in (8192, 20):
        alone = fitted(
            Ridge(step=1.0, tokens=tokens), slow, slow, z[:24], v[:24], np.ones(24, bool)
        )
        long = fitted(Ridge(step=1.0, tokens=tokens), slow, slow, z, v, np.arange(100) < 24)
        moved = np.abs(np.asarray(alone) - slow).max()
        assert np.abs(np.asarray(alone) - np.asarray(long)).max() < 1e-3 * moved


def first_layer(model, tokens):
    """Keys and targets of layer 0 for one text, convolved by a loop over tokens and taps."""
    block, embedded = model.layer(0), model.embedded(jnp.asarray(tokens)[None])
    places = document_positions(jnp.ones((1, len(tokens)), int))
    x = embedded + block.attention(block.attention_norm(embedded), places)
    x = block.mlp_norm(x)
    ttt, mlp = model.config.ttt, block.mlp
    t = np.asarray((embedded if ttt.target == "input_embed" else x)[0], np.float64)
    kernel, v = np.asarray(mlp.conv[...], np.float64), np.zeros_like(t)
    for at in range(len(t)):
        for tap in range(5):
            if 0 <= at + tap - 2 < len(t):
                v[at] += kernel[:, tap] * t[at + tap - 2]
    v = v @ np.asarray(mlp.proj[...], np.float64) if ttt.proj else v
    return np.asarray(mlp.hidden(x)[0], np.float64), v


@pytest.mark.parametrize("case", ["ttt", "ttt_capped", "ttt_row_norm"])
def test_a_prompt_is_fitted_after_its_chunks(case):
    """The first layer of every row, from the sum that its chunks have written."""
    model, tokens, ridge = decoder(case), random_tokens((3, 20)), Ridge(0.5, 0.2)
    before = fw.inference.prefill(model, tokens, LENGTHS)
    after = fw.inference.prefill(model, tokens, LENGTHS, ridge=ridge)
    assert_close(after.logits, before.logits)  # the text is read before it
    slow = np.asarray(model.layer(0).mlp.slow, np.float64)
    for row, length in enumerate(LENGTHS):
        begun, found = (
            np.asarray(state.layers[0]["mlp"].sum[0, row], np.float64) for state in (before, after)
        )
        z, v = first_layer(model, tokens[row, :length])
        expected = least_squares(ridge, slow, begun, z, v)
        assert np.abs(expected - begun).max() > 1e-3
        assert_close(found, expected)
    read = after.layers[0]["mlp"].weights
    seen = jax.vmap(model.layer(0).mlp.effective)(after.layers[0]["mlp"].sum[0])
    assert_close(read[0], seen)


@pytest.mark.parametrize("case", [name for name, x in CASES.items() if x.ttt])
def test_a_ragged_batch_is_each_row_alone_and_goes_on_from_there(case):
    model, tokens, more = decoder(case), random_tokens((3, 20)), random_tokens((3, 9), 1)
    ridge = Ridge(0.5, 0.2)
    how = {"max_length": 40}
    state = fw.inference.prefill(model, tokens, LENGTHS, ridge=ridge, **how)
    together = fw.inference.extend(model, state, more).logits
    plain = fw.inference.prefill(model, tokens, LENGTHS, **how)
    assert np.abs(together - fw.inference.extend(model, plain, more).logits).max() > 1e-3
    for row, length in enumerate(LENGTHS):
        alone = fw.inference.prefill(model, tokens[row : row + 1, :length], ridge=ridge, **how)
        assert_close(
            fw.inference.extend(model, alone, more[row : row + 1]).logits[0], together[row]
        )


def test_only_new_tokens_are_fitted_and_a_row_without_any_stays():
    model, tokens, more = decoder("ttt"), random_tokens((3, 11)), random_tokens((3, 4), 1)
    state = fw.inference.prefill(model, tokens, max_length=40)
    counts = np.array([4, 0, 2])
    after = fw.inference.extend(model, state, more, counts, ridge=Ridge())
    plain = fw.inference.extend(model, state, more, counts)
    moved = np.abs(after.layers[0]["mlp"].weights - plain.layers[0]["mlp"].weights).max((2, 3))
    assert (moved > 0).tolist() == [[True, False, True]] * 2  # layers 0 and 2
    # at most the last tokens: those of 2 are the first row's last two
    two = fw.inference.extend(model, state, more, counts, ridge=Ridge(tokens=2))
    one = fw.inference.extend(model, state, more, counts, ridge=Ridge(tokens=1))
    assert_close(two.layers[0]["mlp"].weights[0, 2], after.layers[0]["mlp"].weights[0, 2])
    assert np.abs(two.layers[0]["mlp"].weights - one.layers[0]["mlp"].weights)[0, 2].max() > 1e-5


def test_without_a_target_the_weights_stay():
    """Convolutions at their start: no write changes the model."""
    ttt = InPlaceTTT(layers=(0, 1), chunk=5)
    model = randomised(change(LLAMA, layers=2, ttt=ttt))
    for block in model.blocks:
        block.mlp.conv[...] = jnp.zeros_like(block.mlp.conv[...])
    state = fw.inference.prefill(model, random_tokens((2, 12)), ridge=Ridge())
    np.testing.assert_array_equal(fw.inference.drift(model, state), 0)


def test_a_fitted_layer_says_the_targets_of_the_text():
    """A small penalty, a whole step, and fewer tokens than keys: D z = v for every token."""
    ttt = InPlaceTTT(layers=(0,), chunk=64)
    model = randomised(change(LLAMA, layers=1, ttt=ttt))
    model.blocks[0].mlp.conv[...] = 0.01 * model.blocks[0].mlp.conv[...]
    tokens = random_tokens((1, 12))
    state = fw.inference.prefill(model, tokens, ridge=Ridge(penalty=1e-6, step=1.0))
    z, v = first_layer(model, tokens[0])
    d = state.layers[0]["mlp"].weights[0, 0] - model.layer(0).mlp.slow
    assert np.abs(v).max() > 1e-3
    np.testing.assert_allclose(z @ np.asarray(d).T, v, atol=1e-3 * np.abs(v).max())


def test_a_fitted_state_is_forked_and_saved(tmp_path):
    model, tokens = decoder("ttt_capped"), random_tokens((2, 13))
    state = fw.inference.prefill(model, tokens, max_length=40, ridge=Ridge())
    fw.inference.save(model, state, tmp_path / "state")
    for other in (fw.inference.load(model, tmp_path / "state"), fw.inference.fork(state, 2)):
        same = fw.inference.extend(model, other, np.repeat(tokens, len(other.lengths) // 2, 0))
        expected = fw.inference.extend(model, state, tokens)
        assert_close(same.logits[:: len(other.lengths) // 2], expected.logits)


@pytest.mark.parametrize(
    "case,ridge,more,message",
    [
        ("llama", Ridge(), {}, "needs in-place layers"),
        ("ttt", Ridge(penalty=0.0), {}, "ridge.penalty is 0.0; it must be a positive finite"),
        ("ttt", Ridge(step=float("inf")), {}, "ridge.step is inf"),
        ("ttt", Ridge(tokens=2.5), {}, "ridge.tokens is 2.5; it must be a positive whole number"),
        ("ttt", Ridge(step=-1.0), {}, "ridge.step is -1.0"),
        ("ttt", Ridge(step=float("nan")), {}, "ridge.step is nan"),
        ("ttt", Ridge(tokens=0), {}, "ridge.tokens is 0"),
        ("ttt", Ridge(), {"piece": 4}, "read at once"),
    ],
)
def test_what_cannot_be_is_refused(case, ridge, more, message):
    with pytest.raises(ConfigError, match=message):
        fw.inference.prefill(decoder(case), random_tokens((1, 8)), ridge=ridge, **more)
