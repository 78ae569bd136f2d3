"""Muon against float64 NumPy from its equations, which parameters it takes, and on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers
from tolerances import assert_close

from fastweights.models.catch import CatchModel, CatchNet
from fastweights.models.convnet import ConvNet, ConvNetModel
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT
from fastweights.models.decoder_mesh import path_name
from fastweights.models.glimpse import GlimpseModel, GlimpseNet
from fastweights.models.retrieval import RetrievalModel, RetrievalNet
from fastweights.tasks.hint_corpus import HintCorpus
from fastweights.train import train
from fastweights.train.config import Config, Mesh, Optim, Train
from fastweights.train.mesh import make_mesh, put_batch
from fastweights.train.optim import matrices, optimizer
from fastweights.train.state import init_state
from fastweights.train.step import make_train_step

LR, BETA, DECAY = 0.05, 0.95, 0.1
MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "proj")
SMALL = DecoderConfig(
    family="qwen3",
    vocab=264,
    hidden=16,
    intermediate=32,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=8,
    max_length=32,
)


def orthogonal(matrix):
    """Five Newton-Schulz steps with the quintic polynomial of Jordan et al. 2024."""
    a, b, c = 3.4445, -4.775, 2.0315
    x = matrix / np.linalg.norm(matrix)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def reference(start, grads):
    """Nesterov momentum without its bias, made orthogonal, of a root mean square of 0.2."""
    w, mu = start.astype(np.float64), 0.0
    for t, g in enumerate(grads, 1):
        mu = BETA * mu + (1 - BETA) * g
        ahead = BETA * mu / (1 - BETA ** (t + 1)) + (1 - BETA) * g / (1 - BETA**t)
        w = w - LR * (0.2 * np.sqrt(max(w.shape)) * orthogonal(ahead) + DECAY * w)
    return w


@pytest.mark.parametrize("shape", [(6, 6), (5, 12), (12, 5)])
def test_matrices_move_as_the_equations_say(shape):
    """Stacked layers too, each by itself: one has gradients a thousand times the other's."""
    rng = np.random.default_rng(0)
    alone, blocks = rng.standard_normal(shape), rng.standard_normal((2, *shape))
    params = {"kernel": jnp.asarray(alone, jnp.float32), "blocks": jnp.asarray(blocks, jnp.float32)}
    transform = optimizer(Optim(lr=LR, clip=None, weight_decay=DECAY, method="muon"))
    state, grads = transform.init(params), []
    for _ in range(4):
        g = {"kernel": rng.standard_normal(shape), "blocks": rng.standard_normal((2, *shape))}
        g["blocks"][1] *= 1000
        updates, state = transform.update(
            jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), g), state, params
        )
        params = optax.apply_updates(params, updates)
        grads.append(g)
    assert_close(params["kernel"], reference(alone, [g["kernel"] for g in grads]))
    for i in (0, 1):
        assert_close(params["blocks"][i], reference(blocks[i], [g["blocks"][i] for g in grads]))


def test_a_step_has_the_singular_vectors_of_the_gradient():
    """And equal singular values, within what the polynomial is known to leave: 0.7 to 1.2."""
    g = np.random.default_rng(1).standard_normal((8, 20)).astype(np.float32)
    transform = optimizer(Optim(lr=1.0, clip=None, method="muon"))
    params = {"kernel": jnp.zeros((8, 20))}
    update = transform.update({"kernel": jnp.asarray(g)}, transform.init(params), params)[0]
    u, _, v = np.linalg.svd(g.astype(np.float64), full_matrices=False)
    turned = -u.T @ np.asarray(update["kernel"]) @ v.T / (0.2 * np.sqrt(20))
    assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-4
    assert 0.65 < np.diag(turned).min() and np.diag(turned).max() < 1.25


def test_what_is_a_matrix():
    """Kernels of layers are; embeddings, heads, norms and convolutions are not."""
    model = jax.eval_shape(
        lambda: Decoder(
            dataclasses.replace(SMALL, ttt=InPlaceTTT(layers=(0, 1), chunk=8)), rngs=nnx.Rngs(0)
        )
    )
    named = lambda tree: {
        path_name(keys): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda x: isinstance(x, MuonDimensionNumbers)
        )
    }
    kind = lambda name: name.removesuffix(".kernel").split(".")[-1]
    taken = {name for name in named(model) if kind(name) in MATRICES}
    found = named(matrices(model))
    # the axis before these two stacks the layers
    assert found == dict.fromkeys(taken, MuonDimensionNumbers(1, 2))
    assert {kind(name) for name in found} == set(MATRICES)


@pytest.mark.parametrize(
    ("net", "for_adam"),
    [
        (lambda: RetrievalNet(RetrievalModel(), 30, 10, rngs=nnx.Rngs(0)), {"embed", "out"}),
        (lambda: GlimpseNet(GlimpseModel(), 10, rngs=nnx.Rngs(0)), {"out"}),
        (lambda: ConvNet(ConvNetModel(), 10, rngs=nnx.Rngs(0)), {"out"}),
        (lambda: CatchNet(CatchModel(), 16, 3, rngs=nnx.Rngs(0)), {"policy", "value"}),
    ],
)
def test_of_other_nets_the_hidden_matrices_are_taken(net, for_adam):
    """`head` is hidden there and so is a dense `embed`; tables and read-outs are Adam's."""
    model = jax.eval_shape(net)
    found = jax.tree_util.tree_leaves_with_path(matrices(model), is_leaf=lambda x: x is None)
    taken = {path_name(keys).split(".")[0] for keys, leaf in found if leaf is not None}
    two = {
        path_name(keys).split(".")[0]
        for keys, leaf in jax.tree_util.tree_leaves_with_path(model)
        if leaf.ndim == 2
    }
    assert two - taken == for_adam


def test_convolutions_and_vectors_are_left_to_adam():
    shapes = {"conv": (3, 3, 1, 8), "dense": (8, 4), "bias": (4,)}
    found = matrices({name: jnp.zeros(shape) for name, shape in shapes.items()})
    assert found == {"conv": None, "dense": MuonDimensionNumbers(0, 1), "bias": None}


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path):
    """Momentum is in the checkpoint: without it the third and fourth update would differ."""
    config = Config(
        HintCorpus(examples=200, held_out=10, length=32),
        SMALL,
        Optim(lr=1e-2, method="muon"),
        Train(steps=4, batch=8, eval_every=2, checkpoint_every=2, log_every=2),
    )
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    train(half, tmp_path / "stopped", quiet=True)
    ends = [train(config, tmp_path / name, quiet=True).state for name in ("stopped", "whole")]
    for a, b in zip(*map(jax.tree.leaves, (ends[0][:3], ends[1][:3])), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_mesh_computes_what_one_device_does():
    task = HintCorpus(examples=200, held_out=10, length=32)
    rows = task.load("train", None)
    ends = []
    for mesh_config in (Mesh(), Mesh(data=2, fsdp=2, tensor=2)):
        config = Config(
            task, SMALL, Optim(lr=1e-3, method="muon"), Train(steps=3, batch=8), mesh=mesh_config
        )
        mesh = make_mesh(mesh_config)
        state, step = init_state(config, mesh), make_train_step(config)
        for i in range(3):
            batch = {k: v[8 * i : 8 * i + 8] for k, v in rows.items()}
            state, _ = step(state, put_batch(mesh, batch))
        ends.append(state.model)
    assert ends[1].blocks[0].mlp.up.kernel[...].sharding.spec == P(None, "fsdp", "tensor")
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        assert_close(b, a, what=str(a.shape))
