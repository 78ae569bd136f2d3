"""Prompts read at once, in pieces, or token by token: the logits of the training forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoders import CASES, VOCAB, change, decoder, forward, random_tokens, randomised
from tolerances import assert_close

import fastweights as fw
from fastweights.errors import ConfigError
from fastweights.inference import prompt

#: around the multiples of a chunk of 5
LENGTHS = np.array([[1, 5, 9], [4, 6, 10], [11, 17, 23]])


@pytest.mark.parametrize("case", CASES)
def test_a_ragged_batch_of_prompts_is_the_forward_pass(case):
    model, tokens = decoder(case), random_tokens((3, 40))
    for lengths in LENGTHS:
        state = fw.inference.prefill(model, tokens, lengths)
        assert_close(state.logits, forward(model, tokens)[np.arange(3), lengths - 1])
        assert state.lengths.tolist() == lengths.tolist()


@pytest.mark.parametrize(
    "case", ["windows", "ttt", "ttt_embed_clip", "ttt_residual", "ttt_every_layer"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_pieces_of_any_size_are_the_forward_pass(case, seed):
    """Every row is cut elsewhere, and some get nothing in a piece."""
    model, tokens = decoder(case), random_tokens((3, 40), seed)
    expected, rng = forward(model, tokens), np.random.default_rng(seed)
    done = rng.integers(1, 8, 3)
    state = fw.inference.prefill(model, tokens, done)
    for most in (2, 3, 12, 2, 7, 5):
        counts = np.minimum(rng.integers(0, most + 1, 3), 40 - done)
        at = np.minimum(done[:, None] + np.arange(most), 39)
        state = fw.inference.extend(model, state, np.take_along_axis(tokens, at, 1), counts)
        done = done + counts
        assert_close(state.logits, expected[np.arange(3), done - 1], what=f"at {done}")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("piece", [1, 9, 16, 64])
def test_a_prompt_is_read_in_pieces(case, piece, monkeypatch):
    """Pieces are of one size, no larger than asked for, and the state goes on as it should."""
    model, tokens, lengths = decoder(case), random_tokens((3, 40)), np.array([37, 9, 4])
    if piece == 1:
        tokens, lengths = tokens[:, :12], np.array([12, 9, 4])
    expected, sizes, whole = forward(model, tokens), [], prompt.padded
    monkeypatch.setattr(prompt, "padded", lambda x: sizes.append(x.shape[1]) or whole(x))
    state = fw.inference.prefill(model, tokens, lengths, piece=piece)
    assert sizes == {1: [1] * 12, 9: [8] * 5, 16: [14] * 3, 64: [40]}[piece]
    assert state.lengths.tolist() == lengths.tolist()
    assert_close(state.logits, expected[np.arange(3), lengths - 1])
    # what was read is there for what comes: each row goes on with its own text
    more = np.minimum(tokens.shape[1] - lengths, 7)
    at = np.minimum(lengths[:, None] + np.arange(7), tokens.shape[1] - 1)
    state = fw.inference.extend(model, state, np.take_along_axis(tokens, at, 1), more)
    assert_close(state.logits, expected[np.arange(3), lengths + more - 1])


def test_a_piece_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="piece is 0"):
        fw.inference.prefill(decoder("llama"), random_tokens((1, 4)), piece=0)


def test_token_by_token_is_the_forward_pass():
    model, tokens = decoder("ttt"), random_tokens((3, 16))
    expected = forward(model, tokens)
    state = fw.inference.empty(model, 3, 16)
    for i in range(16):
        state = fw.inference.extend(model, state, tokens[:, i : i + 1])
        assert_close(state.logits, expected[:, i], what=str(i))


def test_the_fast_weights_matter():
    """Without writes the numbers differ by far more than any tolerance: from the second chunk."""
    model, tokens = decoder("ttt"), random_tokens((1, 23))
    off = randomised(change(CASES["ttt"], ttt=change(CASES["ttt"].ttt, lr=0.0)))
    logits = [fw.inference.prefill(m, tokens, [n]).logits for n in (5, 23) for m in (model, off)]
    assert np.array_equal(logits[0], logits[1])
    assert np.abs(logits[2] - logits[3]).max() > 0.1


@pytest.mark.parametrize("case", ["windows", "ttt"])
def test_padding_is_never_seen(case):
    model, lengths = decoder(case), np.array([3, 12, 14])
    tokens = random_tokens((3, 14))
    garbage = np.where(np.arange(14) < lengths[:, None], tokens, [[-7], [VOCAB + 1000], [0]])
    states = [fw.inference.prefill(model, t, lengths) for t in (tokens, garbage)]
    states += [fw.inference.extend(model, s, garbage[:, 1:], [2, 0, 0]) for s in states]
    for a, b in (states[:2], states[2:]):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_rows_do_not_see_each_other():
    model, tokens = decoder("ttt"), random_tokens((3, 14))
    lengths = np.array([14, 5, 9])
    together = fw.inference.prefill(model, tokens, lengths)
    for row, length in enumerate(lengths):
        alone = fw.inference.prefill(model, tokens[row : row + 1, :length])
        assert_close(alone.logits[0], together.logits[row])
    changed = tokens.copy()
    changed[0] = (changed[0] + 1) % VOCAB
    other = fw.inference.prefill(model, changed, lengths)
    assert np.array_equal(other.logits[1:], together.logits[1:])
    assert not np.allclose(other.logits[0], together.logits[0])


def test_what_was_read_does_not_depend_on_what_comes():
    """A state stays as it is when it is read further: bitwise."""
    model, tokens = decoder("ttt"), random_tokens((3, 20))
    before = fw.inference.prefill(model, tokens[:, :12])
    kept = jax.tree.map(np.array, before)
    fw.inference.extend(model, before, tokens[:, 12:])
    jax.tree.map(np.testing.assert_array_equal, before, kept)


def test_bfloat16():
    """A bfloat16 model decodes as it reads, within the tolerance of bfloat16."""
    config = change(CASES["ttt"], dtype="bfloat16", param_dtype="bfloat16")
    model = randomised(change(config, layers=2, ttt=change(config.ttt, layers=(0, 1))))
    tokens = random_tokens((2, 16))
    expected, state = forward(model, tokens), fw.inference.empty(model, 2, 16)
    for i in range(16):
        state = fw.inference.extend(model, state, tokens[:, i : i + 1])
        assert_close(state.logits, expected[:, i], "bfloat16", str(i))
    assert state.layers[0]["mlp"].weights.dtype == jnp.float32


WRONG = {
    "longer than the tokens": (random_tokens((1, 4)), [5], {}, r"lengths\[0\] is 5"),
    "empty row": (random_tokens((2, 4)), [4, 0], {}, r"lengths\[1\] is 0"),
    "a length for another batch": (random_tokens((1, 4)), [4, 4], {}, "lengths must be"),
    "too little room": (random_tokens((1, 9)), None, {"max_length": 8}, "max_length=9"),
    "another vocabulary": ([[1, VOCAB]], None, {}, f"token {VOCAB} at row 0, position 1"),
    "negative token": ([[-1]], None, {}, "token -1"),
    "no batch": ([1, 2], None, {}, r"give \[\[...\]\]"),
    "not integers": ([[1.0]], None, {}, "integers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_prompts_are_refused(case):
    tokens, lengths, more, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        fw.inference.prefill(decoder("qwen3"), tokens, lengths, **more)


def test_wrong_pieces_are_refused():
    model = decoder("qwen3")
    state = fw.inference.prefill(model, [[1, 2, 3]], max_length=5)
    with pytest.raises(ConfigError, match="row 0 comes to 6 tokens, the state holds 5"):
        fw.inference.extend(model, state, [[1, 2, 3]])
    with pytest.raises(ConfigError, match="2 rows, the state 1"):
        fw.inference.extend(model, state, [[1], [2]])
