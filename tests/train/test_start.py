"""Runs whose slow weights start from a Hugging Face checkpoint."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf.tiny import LLAMA, QWEN3, assert_same, logits, model

from fastweights import hf
from fastweights.errors import CheckpointError, ConfigError
from fastweights.models.decoder_config import InPlaceTTT, Rope
from fastweights.models.retrieval import RetrievalModel
from fastweights.tasks.language import Language
from fastweights.tasks.retrieval import Retrieval
from fastweights.train import Config, Data, Mesh, Optim, Train, train
from fastweights.train.config import check, from_json, to_json
from fastweights.train.loop import restore_run
from fastweights.train.mesh import make_mesh
from fastweights.train.start import start_state
from fastweights.train.state import abstract_state

BASE = dataclasses.replace(QWEN3, vocab=264, layers=2, max_length=32)
TTT = InPlaceTTT(layers=(0, 1), chunk=8, lr=3.0)
TOKENS = np.random.default_rng(0).integers(0, 264, (2, 30))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of random numbers, and a text."""
    folder = tmp_path_factory.mktemp("start")
    hf.save(model(BASE, seed=3), folder / "base")
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("the cat and the other cat " * 40)
    return folder


def config(folder, **model_fields):
    return Config(
        task=Language(length=32, short="drop", drift=False),
        model=dataclasses.replace(BASE, **{"ttt": TTT} | model_fields),
        # a learning rate of 0 leaves every weight as it was, to the bit
        optim=Optim(lr=0.0, weight_decay=0.1),
        train=Train(steps=1, batch=2),
        data=Data(dir=str(folder / "text")),
        start=str(folder / "base"),
    )


def test_at_step_0_the_logits_are_those_of_the_base_to_the_bit(folder):
    """30 tokens are four chunks: layers write, and what they write is 0 until they are trained."""
    begun = start_state(config(folder), make_mesh(Mesh()))
    assert begun.model.config.ttt == TTT and int(begun.step) == 0
    base = hf.load(folder / "base")
    np.testing.assert_array_equal(logits(begun.model, TOKENS), logits(base, TOKENS))
    # and not because nothing is written: with another convolution they differ
    mlp = begun.model.blocks[0].mlp
    mlp.conv[...] = jnp.ones_like(mlp.conv[...])
    assert np.abs(logits(begun.model, TOKENS) - logits(base, TOKENS)).max() > 0.01


def test_a_run_starts_there_and_needs_it_no_more(folder, tmp_path):
    settings = config(folder, ttt=None)
    train(settings, tmp_path / "run", quiet=True)
    restored = restore_run(tmp_path / "run", settings, make_mesh(Mesh()), "last")
    expected = hf.load(folder / "base")
    for ours, theirs in zip(*map(jax.tree.leaves, (restored.state.model, expected)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert restored.step == int(restored.state.step) == 1

    gone = dataclasses.replace(settings, start=str(tmp_path / "gone"))
    assert_same(train(gone, tmp_path / "run", quiet=True).state.model, restored.state.model)


def test_the_state_lies_on_the_mesh_as_a_fresh_one_does(folder):
    settings = dataclasses.replace(config(folder), mesh=Mesh(2, 4), seed=7)
    mesh = make_mesh(settings.mesh)
    begun, fresh = start_state(settings, mesh), abstract_state(settings, mesh)
    assert jax.tree.structure(begun) == jax.tree.structure(fresh)
    for ours, theirs in zip(*map(jax.tree.leaves, (begun, fresh)), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
    kernel = begun.model.blocks[0].mlp.gate.kernel[...]  # [2, 32, 40], the largest axis split
    assert kernel.addressable_shards[0].data.shape == (2, 32, 10)
    np.testing.assert_array_equal(
        begun.model.embed.embedding[...], model(BASE, seed=3).embed.embedding[...]
    )
    # all but the model is what a fresh run begins with
    assert not any(np.any(x) for x in jax.tree.leaves(begun.optimizer))
    assert begun.key == jax.random.split(jax.random.key(7))[1]


def test_weights_are_of_the_configs_dtype(folder):
    settings = config(folder, param_dtype="bfloat16", dtype="bfloat16", ttt=None)
    begun = start_state(settings, make_mesh(Mesh()))
    there = hf.load(folder / "base")
    for ours, theirs in zip(*map(jax.tree.leaves, (begun.model, there)), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours, theirs.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "change,words",
    [
        ({"hidden": 16}, "model.hidden: the checkpoint has 32, the config 16"),
        ({"family": "llama"}, "model.family: the checkpoint has qwen3, the config llama"),
        ({"tie_embeddings": False}, "model.tie_embeddings: the checkpoint has True"),
        ({"rope": Rope(theta=1e4)}, "model.rope: the checkpoint has Rope(theta=1000000.0"),
        ({"norm_eps": 1e-5}, "model.norm_eps: the checkpoint has 1e-06, the config 1e-05"),
        ({"windows": (8, None)}, "model.windows: the checkpoint has (None, None)"),
        ({"layers": 4}, "model.layers: the checkpoint has 2, the config 4"),
    ],
)
def test_another_network_is_refused_before_anything_is_made(change, words, folder, tmp_path):
    with pytest.raises(ConfigError) as caught:
        train(config(folder, **change), tmp_path / "run", quiet=True)
    assert words in str(caught.value) and "import-hf" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_all_differences_are_named_at_once(folder, tmp_path):
    with pytest.raises(ConfigError) as caught:
        train(config(folder, hidden=16, kv_heads=4), tmp_path / "run", quiet=True)
    assert "model.hidden" in str(caught.value) and "model.kv_heads" in str(caught.value)
    assert "model.vocab" not in str(caught.value)


def test_what_is_a_runs_own_may_differ(folder):
    """Lengths, numerics, in-place layers, and () for windows of None."""
    from fastweights.train.start import check_start

    own = config(
        folder, max_length=64, windows=(None, None), ttt=None, dtype="bfloat16", remat="dots"
    )
    check_start(own, folder / "nowhere")
    assert start_state(own, make_mesh(Mesh())).model.config == own.model


def test_no_checkpoint_or_one_that_does_not_fit(folder, tmp_path):
    gone = dataclasses.replace(config(folder), start=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match="is not a directory"):
        train(gone, tmp_path / "run", quiet=True)
    hf.save(model(LLAMA), tmp_path / "other")
    raw = json.loads((folder / "base" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(raw))
    mixed = dataclasses.replace(config(folder), start=str(tmp_path / "other"))
    with pytest.raises(CheckpointError, match=r"has shape|is missing"):
        train(mixed, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_only_language_models_start_from_one():
    other = Config(task=Retrieval(), model=RetrievalModel(), start="somewhere")
    with pytest.raises(ConfigError, match="start is 'somewhere'"):
        check(other)


def test_old_runs_have_no_start(folder):
    """A config.json from before there was one."""
    data = to_json(dataclasses.replace(config(folder), start=None))
    assert from_json({k: v for k, v in data.items() if k != "start"}).start is None
