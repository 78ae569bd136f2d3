"""The Catch network against the paper's equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from fastweights.models.catch import CatchModel, CatchNet
from fastweights.rules import Form, Hebbian


def make(**changes):
    model = CatchModel(hidden=7, features=9, **changes)
    net = CatchNet(model, 4, 3, rngs=nnx.Rngs(0))
    # heads start at zero; give them values, so that a wrong one is seen
    net.policy.kernel[...] = jax.random.normal(jax.random.key(1), (7, 3))
    net.value.kernel[...] = jax.random.normal(jax.random.key(2), (7, 1))
    net.see.bias[...] = jax.random.normal(jax.random.key(3), (9,))
    return net


def outputs(net, screens):
    memory, found = net.initial(len(screens)), []
    for screen in screens:
        memory, logits, value = net.step(memory, screen)
        found.append(np.concatenate([logits, value[None]]))
    return np.stack(found)


@pytest.mark.parametrize("form", [Form.ATTENTION, Form.MATRIX])
def test_fast_weights_by_hand(form):
    net = make(rule=Hebbian(decay=0.8, lr=0.3, steps=2, form=form))
    screens = jax.random.bernoulli(jax.random.key(4), 0.2, (5, 4, 4)).astype(jnp.float32)
    f64 = lambda x: np.asarray(x, np.float64)
    h, A, expected = np.zeros(7), np.zeros((7, 7)), []
    for screen in f64(screens):
        x = np.maximum(screen.ravel() @ f64(net.see.kernel) + f64(net.see.bias), 0)
        z = h @ f64(net.cell.recurrent.kernel) + x @ f64(net.cell.input.kernel)
        h = np.maximum(z, 0)
        for _ in range(2):
            s = z + A @ h
            h = np.maximum((s - s.mean()) / np.sqrt(s.var() + 1e-5), 0)
        A = 0.8 * A + 0.3 * np.outer(h, h)
        expected.append(np.concatenate([h @ f64(net.policy.kernel), h @ f64(net.value.kernel)]))
    assert_close(outputs(net, screens), np.stack(expected))


@pytest.mark.parametrize("cell", ["fast-weights", "irnn", "lstm"])
def test_a_blank_screen_leaves_what_was_seen_in_memory(cell):
    net = make(cell=cell)
    first = jnp.zeros((2, 4, 4)).at[0, 0, 1].set(1.0).at[1, 0, 3].set(1.0)
    blank = jnp.zeros((3, 4, 4))
    one, other = (outputs(net, jnp.concatenate([x[None], blank])) for x in first)
    assert np.abs(one[-1] - other[-1]).max() > 1e-3


@pytest.mark.parametrize("cell", ["fast-weights", "irnn", "lstm"])
def test_untrained_it_plays_at_random(cell):
    net = CatchNet(CatchModel(cell=cell), 16, 3, rngs=nnx.Rngs(0))
    memory, logits, value = net.step(net.initial(15), jnp.ones((16, 16)))
    assert_close(logits, np.zeros(3))
    assert float(value) == 0.0
    # the paper's sizes: 128 ReLU units, 128 recurrent
    assert net.see.kernel.shape == (256, 128) and net.policy.kernel.shape == (128, 3)
    assert all(leaf.shape in ((128,), (15, 128), ()) for leaf in jax.tree.leaves(memory))


def test_pixels_of_unit_variance():
    """Three lit pixels give units of variance 1; 576 · 128 draws, so within two percent."""
    net = CatchNet(CatchModel(), 24, 3, rngs=nnx.Rngs(5))
    assert float(np.var(np.asarray(net.see.kernel))) * 3 == pytest.approx(1, rel=0.02)
    paper = CatchNet(CatchModel(start="paper"), 24, 3, rngs=nnx.Rngs(5))
    assert float(np.abs(np.asarray(paper.see.kernel)).max()) == pytest.approx(128**-0.5, rel=0.01)
