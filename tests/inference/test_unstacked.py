"""A decoder with its layers apart is the same decoder."""

import jax
import numpy as np
import pytest
from small_decoders import CASES, decoder, forward, greedy, random_tokens
from tolerances import assert_close

import fastweights as fw
from fastweights.errors import ConfigError

LENGTHS = np.array([9, 3])


@pytest.mark.parametrize("case", ["qwen3", "windows", "ttt", "ttt_every_layer"])
def test_it_writes_and_reads_as_the_stacked_one(case):
    model, tokens = decoder(case), random_tokens((2, 9), seed=4)
    apart = fw.inference.unstacked(model)
    assert len(apart.blocks) == CASES[case].layers
    assert {len(x) for block in apart.blocks for x in jax.tree.leaves(block)} == {1}
    out, state = fw.inference.decode(
        apart, fw.inference.prefill(apart, tokens, LENGTHS), max_new_tokens=8
    )
    for row, length in enumerate(LENGTHS):
        prompt = tokens[row, :length].tolist()
        assert out.tokens[row].tolist() == greedy(model, prompt, 8)
        text = prompt + out.tokens[row].tolist()
        assert_close(state.logits[row], forward(model, [text])[0, -1])


def test_its_layers_are_those_of_the_stacked_one():
    model = decoder("ttt")
    for i in range(model.config.layers):
        pair = model.layer(i), fw.inference.unstacked(model).layer(i)
        jax.tree.map(np.testing.assert_array_equal, *pair)


def test_states_and_checkpoints_of_the_other_form_are_refused(tmp_path):
    model, tokens = decoder("qwen3"), random_tokens((1, 4))
    apart = fw.inference.unstacked(model)
    state = fw.inference.prefill(model, tokens)
    with pytest.raises(ConfigError, match="in 1 stacks, the model in 4"):
        fw.inference.decode(apart, state, max_new_tokens=2)
    with pytest.raises(ConfigError, match="unstacked"):
        fw.hf.save(apart, tmp_path / "model")
