"""Generated tokens are those of running the model again on everything, for every token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoders import (
    CASES,
    VOCAB,
    decoder,
    forward,
    greedy,
    log_softmax,
    random_tokens,
    randomised,
)
from tolerances import assert_close

import fastweights as fw
from fastweights.errors import ConfigError
from fastweights.inference.generate import _generate

LENGTHS = np.array([11, 4, 5])


@pytest.mark.parametrize("case", [case for case in CASES if case != "llama"])
def test_greedy_is_the_naive_loop(case):
    model, tokens = decoder(case), random_tokens((3, 11), seed=2)
    out = fw.inference.generate(model, tokens, LENGTHS, max_new_tokens=14)
    assert out.tokens.shape == out.log_probs.shape == (3, 14)
    assert out.lengths.tolist() == [14, 14, 14]
    for row, length in enumerate(LENGTHS):
        prompt = tokens[row, :length].tolist()
        assert out.tokens[row].tolist() == greedy(model, prompt, 14)
        logits = forward(model, [prompt + out.tokens[row].tolist()])[0, length - 1 : -1]
        expected = log_softmax(logits)[np.arange(14), out.tokens[row]]
        assert_close(out.log_probs[row], expected)


@pytest.mark.parametrize("case", ["ttt", "ttt_embed_clip"])
def test_pieces_streams_and_states_go_on_alike(case):
    """One call, two calls, a stream: the same tokens, and the same state at the end."""
    model, tokens = decoder(case), random_tokens((3, 11))
    whole = fw.inference.generate(model, tokens, LENGTHS, max_new_tokens=12)
    state = fw.inference.prefill(model, tokens, LENGTHS)
    kept = jax.tree.map(np.array, state)
    from_state = fw.inference.generate(model, state=state, max_new_tokens=12)
    first, middle = fw.inference.decode(model, state, max_new_tokens=5)
    second, end = fw.inference.decode(model, middle, max_new_tokens=7)
    steps = fw.inference.stream(model, state, max_new_tokens=12)
    streamed = []
    while True:
        try:
            streamed.append(next(steps).tokens)
        except StopIteration as stop:
            last = stop.value
            break
    assert np.array_equal(from_state.tokens, whole.tokens)
    assert np.array_equal(np.concatenate([first.tokens, second.tokens], 1), whole.tokens)
    assert np.array_equal(np.stack(streamed, 1), whole.tokens)
    assert end.lengths.tolist() == last.lengths.tolist() == (LENGTHS + 12).tolist()
    for row, length in enumerate(LENGTHS):
        text = np.concatenate([tokens[row, :length], whole.tokens[row]])
        expected = forward(model, text[None])[0, -1]
        assert_close(end.logits[row], expected)
        assert_close(last.logits[row], expected)
    jax.tree.map(np.testing.assert_array_equal, state, kept)


@pytest.mark.parametrize("unstacked", [False, True])
def test_a_state_in_bfloat16_stays_one(unstacked):
    """A CPU keeps it in float32 while it writes; the text goes on as it would from the start."""
    config = dataclasses.replace(CASES["ttt"], dtype="bfloat16", param_dtype="bfloat16")
    model, tokens = randomised(config), random_tokens((2, 7))
    form = fw.inference.unstacked(model) if unstacked else model
    before = fw.inference.prefill(form, tokens)
    out, state = fw.inference.decode(form, before, max_new_tokens=11)  # two chunks end in it
    dtypes = lambda state: [x.dtype for x in jax.tree.leaves(state)]
    assert dtypes(state) == dtypes(before) and jnp.bfloat16 in dtypes(state)
    text = np.concatenate([tokens, out.tokens], 1)
    assert_close(state.logits, forward(model, text)[:, -1], "bfloat16")


def test_a_row_ends_with_its_first_stop_token():
    model, tokens = decoder("ttt"), random_tokens((3, 11), seed=2)
    free = fw.inference.generate(model, tokens, LENGTHS, max_new_tokens=12)
    stops = (int(free.tokens[0, 6]), int(free.tokens[1, 2]))
    ends = [next((i + 1 for i, t in enumerate(r) if t in stops), 12) for r in free.tokens.tolist()]
    assert len({*ends}) > 1  # rows end at different times
    out = fw.inference.generate(model, tokens, LENGTHS, max_new_tokens=12, stop_tokens=stops)
    inside = np.arange(12) < np.array(ends)[:, None]
    assert out.lengths.tolist() == ends
    assert np.array_equal(out.tokens, np.where(inside, free.tokens, 0))
    assert_close(out.log_probs, np.where(inside, free.log_probs, 0))

    state = fw.inference.prefill(model, tokens, LENGTHS)
    out, state = fw.inference.decode(model, state, max_new_tokens=12, stop_tokens=stops)
    assert state.lengths.tolist() == (LENGTHS + ends).tolist()
    for row, (length, end) in enumerate(zip(LENGTHS, ends, strict=True)):
        text = np.concatenate([tokens[row, :length], out.tokens[row, :end]])
        assert_close(state.logits[row], forward(model, text[None])[0, -1])


def test_streams_stop_too():
    model, tokens = decoder("ttt"), random_tokens((3, 11), seed=2)
    state = fw.inference.prefill(model, tokens, LENGTHS)
    free = fw.inference.generate(model, state=state, max_new_tokens=12)
    stops = [int(t) for t in free.tokens[:, 3]]
    whole = fw.inference.generate(model, state=state, max_new_tokens=12, stop_tokens=stops)
    steps = [*fw.inference.stream(model, state, max_new_tokens=12, stop_tokens=stops)]
    assert len(steps) == max(whole.lengths) < 12
    assert np.array_equal(np.stack([s.tokens for s in steps], 1), whole.tokens[:, : len(steps)])
    assert np.array_equal(sum(s.drawn for s in steps), whole.lengths)


def test_samples_have_the_log_probability_they_say():
    model, tokens = decoder("ttt"), random_tokens((3, 11))
    state = fw.inference.prefill(model, tokens, LENGTHS)
    out, _ = fw.inference.decode(
        model, state, max_new_tokens=10, temperature=0.7, key=jax.random.key(0)
    )
    for row, length in enumerate(LENGTHS):
        text = np.concatenate([tokens[row, :length], out.tokens[row]])
        log_p = log_softmax(forward(model, text[None])[0, length - 1 : -1] / 0.7)
        assert_close(out.log_probs[row], log_p[np.arange(10), out.tokens[row]])
    assert not np.array_equal(
        out.tokens, fw.inference.generate(model, state=state, max_new_tokens=10).tokens
    )


def test_chance_is_the_keys_rows_and_positions():
    """The same key gives the same text: in one call, in two, in a stream."""
    model, tokens = decoder("ttt"), random_tokens((3, 11))
    hot = {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "key": jax.random.key(3)}
    whole = fw.inference.generate(model, tokens, LENGTHS, max_new_tokens=9, **hot).tokens
    state = fw.inference.prefill(model, tokens, LENGTHS)
    first, middle = fw.inference.decode(model, state, max_new_tokens=4, **hot)
    second = fw.inference.generate(model, state=middle, max_new_tokens=5, **hot)
    assert np.array_equal(np.concatenate([first.tokens, second.tokens], 1), whole)
    steps = [*fw.inference.stream(model, state, max_new_tokens=9, **hot)]
    assert np.array_equal(np.stack([s.tokens for s in steps], 1), whole)
    other = {**hot, "key": jax.random.key(4)}
    again = fw.inference.generate(model, tokens, LENGTHS, max_new_tokens=9, **other).tokens
    assert not np.array_equal(again, whole)


def test_other_lengths_do_not_compile_again():
    """Sizes are 1, multiples of 16 up to 64, and multiples of 64: one program for each pair."""
    model = decoder("qwen3")
    for known, others in (
        ((9, 5), ((11, 5), (16, 16), (2, 3))),
        ((65, 66), ((128, 70), (100, 128))),
    ):
        fw.inference.generate(model, random_tokens((3, known[0])), max_new_tokens=known[1])
        size = _generate._cache_size()
        for length, new in others:
            fw.inference.generate(model, random_tokens((3, length)), max_new_tokens=new)
        assert _generate._cache_size() == size


WRONG = {
    "nothing asked for": ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    "negative temperature": ({"temperature": -1.0}, "temperature is -1"),
    "no key": ({"temperature": 1.0}, "needs a random key"),
    "no token left": ({"top_k": 0}, "top_k is 0"),
    "no probability left": ({"top_p": 0.0}, "top_p is 0"),
    "a stop token of another vocabulary": ({"stop_tokens": [VOCAB]}, f"stop token {VOCAB}"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_refused(case):
    changed, message = WRONG[case]
    model = decoder("qwen3")
    with pytest.raises(ConfigError, match=message):
        fw.inference.generate(model, [[1, 2]], **{"max_new_tokens": 3, **changed})
    with pytest.raises(ConfigError, match=message):
        state = fw.inference.prefill(model, [[1, 2]])
        fw.inference.stream(model, state, **{"max_new_tokens": 3, **changed})


def test_states_that_cannot_go_on_are_refused():
    model = decoder("qwen3")
    state = fw.inference.prefill(model, [[1, 2]], max_length=4)
    with pytest.raises(ConfigError, match="row 0 comes to 5 tokens, the state holds 4"):
        fw.inference.decode(model, state, max_new_tokens=3)
    with pytest.raises(ConfigError, match="row 0 has read no token"):
        fw.inference.decode(model, fw.inference.empty(model, 1, 8), max_new_tokens=3)
    with pytest.raises(ConfigError, match="one of them"):
        fw.inference.generate(model, [[1]], state=state, max_new_tokens=1)
    with pytest.raises(ConfigError, match="one of them"):
        fw.inference.generate(model, max_new_tokens=1)
