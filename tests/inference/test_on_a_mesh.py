"""Inference on meshes of eight devices: the answers of one device, and rows that stay at home."""

import dataclasses
import functools
import importlib
import re

import jax
import numpy as np
import pytest
from collectives import ARRAY, KINDS
from small_decoders import LLAMA, QWEN3, randomised

from fastweights import inference
from fastweights.inference.state import laid_out
from fastweights.models.decoder_config import InPlaceTTT
from fastweights.models.decoder_mesh import shardings
from fastweights.train.config import Mesh
from fastweights.train.mesh import make_mesh

generation = importlib.import_module("fastweights.inference.generate")
prompts = importlib.import_module("fastweights.inference.prompt")

#: rows of a batch; no weight has an axis of this size, so that it tells what belongs to rows
ROWS = 40
EVEN = {"vocab": 64, "layers": 2}
TTT = InPlaceTTT(layers=(0, 1), chunk=5, lr=0.3)
CASES = {
    "plain": dataclasses.replace(QWEN3, **EVEN, windows=(7, None)),
    "ttt": dataclasses.replace(LLAMA, **EVEN, ttt=TTT),
    "ttt_options": dataclasses.replace(
        LLAMA,
        **EVEN,
        ttt=dataclasses.replace(
            TTT, decay=0.8, decay_learned=True, lr_learned=True, cap=0.1, row_norm=True
        ),
    ),
}
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "all": (2, 2, 2)}


@functools.cache
def model(case, mesh=None):
    alone = randomised(CASES[case])
    if mesh is None:
        return alone
    return jax.device_put(alone, shardings(make_mesh(Mesh(*MESHES[mesh])), alone))


def prompt(length=11):
    """Ragged rows; some are at the end of a chunk, some are within one."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, length + 1, ROWS)
    lengths[:2] = 5, 10
    return rng.integers(0, 64, (ROWS, length)), lengths


HOW = {"max_new_tokens": 7, "temperature": 0.9, "stop_tokens": (3,)}


@functools.cache
def answers(case, mesh=None):
    """A prompt read at once and one read in two pieces, both continued; as NumPy arrays."""
    tokens, lengths = prompt()
    at = model(case, mesh)
    whole = inference.prefill(at, tokens, lengths, max_length=37)
    pieces = inference.prefill(at, tokens[:, :1], max_length=37)
    pieces = inference.extend(at, pieces, tokens[:, 1:], lengths - 1)
    forks = inference.fork(whole, 2)
    out, after = inference.decode(at, forks, key=jax.random.key(0), **HOW)
    again, _ = inference.decode(at, pieces, key=jax.random.key(1), **HOW)
    return jax.tree.map(np.asarray, (whole, out, after, again)), (whole, after)


@pytest.mark.parametrize("case, mesh", [("plain", "all"), *(("ttt", mesh) for mesh in MESHES)])
def test_answers_are_those_of_one_device(case, mesh):
    found, _ = answers(case, mesh)
    expected, _ = answers(case)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if one.dtype.kind == "f":
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)
        else:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_state_is_split_by_rows_and_as_the_layers_are(mesh):
    tensor = MESHES[mesh][2]
    for state in answers("ttt", mesh)[1]:
        arrays = jax.tree.leaves((state.layers, state.lengths, state.logits))
        for x in arrays:
            within = x.addressable_shards[0].data.shape
            rows = x.shape.index(len(state.lengths))
            assert within[rows] * MESHES[mesh][0] * MESHES[mesh][1] == x.shape[rows]
            # keys and values by heads, what the MLP computes by F, targets not at all
            rest = x.size // len(state.lengths) // (np.prod(within) // within[rows])
            assert rest == (1 if x.ndim == 1 or x.shape[-2:] == (5, 32) else tensor)


def compiled(program, *given, **static):
    """The compiled text of a function of inference."""
    return program.lower(*given, **static).compile().as_text()


@pytest.mark.parametrize("case", CASES)
def test_rows_split_over_devices_have_nothing_to_say_to_each_other(case):
    """But whether any of them goes on, or has a chunk to write."""
    tokens, lengths = prompt()
    at = model(case, "data")
    text = compiled(prompts._prefill, at, tokens, lengths, 37, case == "ttt")
    if case == "plain":
        assert not arrays_sent(text)
    text += decoding_text(at, answers(case, "data")[1][0], case)
    assert set(arrays_sent(text)) == {("pred", "")}


def decoding_text(at, state, case):
    given = {"top_k": None, "top_p": None, "key": jax.random.key(0)}
    numbers, method, size = generation._plan(at, **HOW, **given)
    how = {"size": size, "method": method, "commits": case == "ttt"}
    return compiled(generation._decode, at, state, *numbers, **how)


def arrays_sent(text):
    """(dtype, shape) of every array in a collective, each as often as it stands in the text."""
    results = re.findall(rf" = (.*?) (?:{KINDS})(?:-start)?\(", text)
    return [array for result in results for array in ARRAY.findall(result)]


@pytest.mark.parametrize("case", CASES)
def test_no_array_of_all_rows_goes_round(case):
    """Weights are put together and sums over `tensor` made, each of a device's own rows."""
    tokens, lengths = prompt()
    at = model(case, "all")
    text = compiled(prompts._prefill, at, tokens, lengths, 37, case == "ttt")
    text += decoding_text(at, answers(case, "all")[1][0], case)
    shapes = [shape.split(",") for _, shape in arrays_sent(text)]
    assert len(shapes) > 4
    assert not [shape for shape in shapes if str(ROWS) in shape]


@pytest.mark.parametrize("mesh", [None, "data"])
def test_only_on_a_mesh_is_anything_laid_out(mesh):
    state = answers("plain")[1][0]
    text = jax.jit(laid_out).lower(model("plain", mesh), jax.tree.map(np.asarray, state)).as_text()
    body = text.split("func.func")[1].partition("{")[2]
    assert ("sharding_constraint" in body) == (mesh is not None)
