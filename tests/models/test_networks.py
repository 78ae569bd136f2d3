"""Whole networks: the wiring of the two-level reader; every part takes part in learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from fastweights.models.glimpse import GlimpseModel, GlimpseNet
from fastweights.models.glimpse_views import glimpses
from fastweights.models.retrieval import RetrievalModel, RetrievalNet
from fastweights.nn import unroll
from fastweights.rules import Hebbian

CELLS = ["fast-weights", "irnn", "ln-rnn", "lstm", "associative-lstm"]


def images(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)


def randomise(net, seed=1):
    """Weights away from their start, so that no term of an equation hides behind another."""
    leaves, tree = jax.tree.flatten(net)
    rng = np.random.default_rng(seed)
    noisy = [jnp.asarray(x + 0.3 * rng.normal(size=x.shape), jnp.float32) for x in leaves]
    return jax.tree.unflatten(tree, noisy)


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("decay,lr", [(0.9, 0.5), (0.5, 2.0), (0.95, 0.0)])
def test_two_level_reader_follows_the_figure(decay, lr):
    """Coarse and stored, wiped, four fine, coarse again and recalled: in a float64 NumPy loop."""
    config = GlimpseModel(hidden=8, embed=6, expand=10, head=7, rule=Hebbian(decay=decay, lr=lr))
    net = randomise(GlimpseNet(config, 10, rngs=nnx.Rngs(0)))
    w = lambda layer: np.float64(layer.kernel[...])
    b = lambda layer: np.float64(layer.bias[...])
    cell, V = net.reader.cell, w(net.reader.integrate)
    W, C = w(cell.recurrent), w(cell.input)
    gain, bias = np.float64(cell.slow.gain[...]), np.float64(cell.slow.bias[...])
    for image, logits in zip(images(), np.asarray(net(images())), strict=True):
        xs = np.float64(glimpses(image[None])[0])
        xs = relu(xs @ w(net.embed) + b(net.embed)) @ w(net.expand) + b(net.expand)
        A, h = np.zeros((8, 8)), np.zeros(8)
        for quadrant in range(4):
            x = xs[6 * quadrant : 6 * quadrant + 6]
            h = relu(h @ W + x[0] @ C)
            A = decay * A + lr * np.outer(h, h)
            h = np.zeros(8)
            for fine in x[1:5]:
                h = relu(h @ W + fine @ C)
            z = h @ V + x[5] @ C
            z = z + A @ relu(x[5] @ C)
            h = relu(gain * (z - z.mean()) / np.sqrt(z.var() + 1e-5) + bias)
        expected = relu(h @ w(net.head) + b(net.head)) @ w(net.out) + b(net.out)
        assert_close(logits, expected)


def test_retrieval_net_reads_the_last_step():
    """Embedding and expansion are linear; the head sees the activity after the last symbol."""
    net = randomise(
        RetrievalNet(RetrievalModel(hidden=8, embed=6, expand=5, head=7), 37, 10, rngs=nnx.Rngs(0))
    )
    tokens = np.random.default_rng(0).integers(0, 37, (2, 11))
    activity = np.float64(net.activities(jnp.asarray(tokens[1])))[-1]
    head = relu(activity @ np.float64(net.head.kernel[...]) + np.float64(net.head.bias[...]))
    expected = head @ np.float64(net.out.kernel[...]) + np.float64(net.out.bias[...])
    assert_close(net(jnp.asarray(tokens))[1], expected)


@pytest.mark.parametrize("cell", CELLS)
def test_working_out_a_symbol_once_is_working_it_out_at_every_step(cell):
    """Activities and all gradients of a batch in which symbols repeat and most do not occur."""
    config = RetrievalModel(cell=cell, hidden=8, embed=6, expand=5, head=7)
    net = randomise(RetrievalNet(config, 37, 10, rngs=nnx.Rngs(0)))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 9, (4, 11)))
    graph, weights = nnx.split(net)

    def loss(weights, at_every_step):
        net = nnx.merge(graph, weights)
        plain = lambda row: unroll(net.cell, net.expand(net.embed(row)))[1]
        hs = jax.vmap(plain if at_every_step else net.activities)(tokens)
        return jnp.sum(jnp.sin(hs)), hs

    (_, hs), gradient = jax.value_and_grad(loss, has_aux=True)(weights, False)
    (_, expected), wanted = jax.value_and_grad(loss, has_aux=True)(weights, True)
    assert_close(hs, expected)
    jax.tree.map(assert_close, gradient, wanted)
    assert np.all(np.isnan(net.drives(jnp.array([37]))))  # no such symbol


@pytest.mark.parametrize("cell", CELLS)
def test_every_weight_gets_a_gradient(cell):
    """A layer that is not wired in has a gradient of exactly zero."""
    nets = [
        (GlimpseNet(GlimpseModel(cell=cell, hidden=8), 10, rngs=nnx.Rngs(0)), images(8)),
        (
            RetrievalNet(
                RetrievalModel(cell=cell, hidden=8, start="unit"), 37, 10, rngs=nnx.Rngs(0)
            ),
            np.random.default_rng(0).integers(0, 37, (64, 11)),
        ),
    ]
    for net, batch in nets:
        net = randomise(net)
        grads = jax.jit(jax.grad(lambda net, x: jnp.sum(jnp.sin(net(x)))))(net, batch)
        for path, leaf in jax.tree.leaves_with_path(grads):
            assert np.abs(np.asarray(leaf)).max() > 0, jax.tree_util.keystr(path)


def test_the_control_cannot_use_its_fast_weights():
    """η = 0: what a quadrant stored makes no difference to what is recalled in it."""

    def last(lr):
        config = GlimpseModel(hidden=8, rule=Hebbian(lr=lr))
        return randomise(GlimpseNet(config, 10, rngs=nnx.Rngs(0)))

    first, changed = images(1), images(1)
    changed[:, :14, :14] = 255 - changed[:, :14, :14]  # another first quadrant
    assert np.array_equal(last(0.0)(first), last(0.0)(changed))
    assert not np.allclose(last(0.5)(first), last(0.5)(changed))
