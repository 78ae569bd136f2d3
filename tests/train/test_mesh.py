"""The same training on one device and on a mesh of eight."""

import dataclasses

import jax
import numpy as np
import pytest
from tolerances import assert_close

from fastweights.models.retrieval import RetrievalModel
from fastweights.tasks.retrieval import Retrieval
from fastweights.tasks.retrieval_strings import sample
from fastweights.train.config import Config, Mesh, Optim, Train
from fastweights.train.mesh import make_mesh, put_batch
from fastweights.train.state import init_state
from fastweights.train.step import make_eval_step, make_train_step

CONFIG = Config(
    task=Retrieval(pairs=2),
    model=RetrievalModel(hidden=16, embed=8, expand=24, head=32, start="unit"),
    optim=Optim(lr=1e-2, warmup=2),
    train=Train(batch=16),
)


def batches(count):
    rng = np.random.default_rng(0)
    return [sample(rng, CONFIG.train.batch, CONFIG.task.pairs) for _ in range(count)]


def trained(mesh_config, updates=3):
    """State and scores after some updates on a mesh."""
    config = dataclasses.replace(CONFIG, mesh=mesh_config)
    mesh = make_mesh(config.mesh)
    state, step, losses = init_state(config, mesh), make_train_step(config), []
    for batch in batches(updates):
        state, scores = step(state, put_batch(mesh, batch))
        losses.append(scores["loss"])
    return state, losses, mesh, config


@pytest.mark.parametrize("data,fsdp", [(8, 1), (1, 8), (2, 4)])
def test_a_mesh_computes_what_one_device_does(data, fsdp):
    alone, losses, _, _ = trained(Mesh())
    state, sharded, mesh, config = trained(Mesh(data, fsdp))
    assert_close(sharded, losses, what="losses")
    for leaf, expected in zip(*map(jax.tree.leaves, (state.model, alone.model)), strict=True):
        assert_close(leaf, expected, what=str(leaf.shape))
    kernel = state.model.head.kernel[...]  # [16, 32]: both axes divide; the larger one is split
    assert kernel.addressable_shards[0].data.shape == (16, 32 // fsdp)
    moments = [m for m in jax.tree.leaves(state.optimizer) if m.shape == (16, 32)]
    assert len(moments) == 2  # Adam's two, each split like its parameter
    assert {m.addressable_shards[0].data.shape for m in moments} == {(16, 32 // fsdp)}
    scores = make_eval_step(config.task)(
        state.model, put_batch(mesh, batches(1)[0] | {"mask": np.arange(16) < 5})
    )
    assert float(scores["count"]) == 5


def test_a_fresh_state_is_the_same_on_every_mesh():
    one, eight = init_state(CONFIG, make_mesh(Mesh())), init_state(CONFIG, make_mesh(Mesh(2, 4)))
    for a, b in zip(*map(jax.tree.leaves, (one.model, eight.model)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_batch_is_split_over_both_axes():
    mesh = make_mesh(Mesh(2, 4))
    placed = put_batch(mesh, batches(1)[0])
    assert {s.data.shape[0] for s in placed["inputs"].addressable_shards} == {2}


def test_an_update_that_is_not_finite_changes_nothing():
    """Weights and optimiser stay, the step counts on, and the score says so."""
    config = dataclasses.replace(CONFIG, optim=Optim(lr=1e-2))
    mesh = make_mesh(config.mesh)
    state, step = init_state(config, mesh), make_train_step(config)
    state = state._replace(model=jax.tree.map(lambda x: x.at[...].set(np.nan), state.model))
    before = [np.asarray(x) for x in jax.tree.leaves((state.model, state.optimizer))]
    after, scores = step(state, put_batch(mesh, batches(1)[0]))
    for a, b in zip(before, jax.tree.leaves((after.model, after.optimizer)), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b))
    assert scores["not_finite"] == 1 and int(after.step) == 1


def test_training_learns_two_pairs():
    """Fast weights fall below the chance line of a net that knows only the digits (45 %)."""
    config = dataclasses.replace(
        CONFIG,
        model=RetrievalModel(hidden=48, start="unit"),
        optim=Optim(lr=3e-3, warmup=50),
        train=Train(batch=64),
    )
    mesh = make_mesh(config.mesh)
    state, step, rng = init_state(config, mesh), make_train_step(config), np.random.default_rng(1)
    for _ in range(500):
        state, scores = step(state, put_batch(mesh, sample(rng, 64, 2)))
    test = put_batch(mesh, sample(rng, 2000, 2) | {"mask": np.ones(2000, bool)})
    sums = make_eval_step(config.task)(state.model, test)
    assert float(sums["error"] / sums["count"]) < 0.3 < config.task.chance
