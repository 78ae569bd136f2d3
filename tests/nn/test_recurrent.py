"""Recurrent cells against float64 NumPy loops; batch by vmap."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from fastweights.errors import ConfigError
from fastweights.nn import LSTM, RNN, CellName, FastWeightCell, kernel_start, make_cell, unroll
from fastweights.rules import Hebbian

LENGTH, FEATURES, HIDDEN = 9, 5, 7


def inputs(seed=0):
    return np.random.default_rng(seed).normal(size=(LENGTH, FEATURES))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("norm", [False, True])
def test_rnn_equals_its_equation(norm):
    cell = RNN(FEATURES, HIDDEN, norm=norm, rngs=nnx.Rngs(3))
    cell.input.bias = nnx.Param(jnp.linspace(-0.5, 0.5, HIDDEN))
    W, C = np.float64(cell.recurrent.kernel[...]), np.float64(cell.input.kernel[...])
    b, h, expected = np.linspace(-0.5, 0.5, HIDDEN), np.zeros(HIDDEN), []
    np.testing.assert_array_equal(W, 0.5 * np.eye(HIDDEN))
    for x in inputs():
        z = h @ W + x @ C + b
        if norm:
            z = (z - z.mean()) / np.sqrt(z.var() + 1e-5)
        h = np.maximum(z, 0)
        expected.append(h)
    last, hs = unroll(cell, jnp.asarray(inputs(), jnp.float32))
    assert_close(hs, expected)
    assert_close(last, expected[-1])


def test_lstm_equals_its_equations():
    """i, f, g, o gates; c <- f c + i g; h = o tanh(c) (Hochreiter & Schmidhuber 1997, with f)."""
    cell = LSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(1))
    dense_i, dense_h = cell.cell.dense_i, cell.cell.dense_h
    Wi, Wh, b = (np.float64(x[...]) for x in (dense_i.kernel, dense_h.kernel, dense_h.bias))
    h, c, expected = np.zeros(HIDDEN), np.zeros(HIDDEN), []
    for x in inputs():
        i, f, g, o = np.split(x @ Wi + h @ Wh + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        expected.append(h)
    assert_close(unroll(cell, jnp.asarray(inputs(), jnp.float32))[1], expected)


@pytest.mark.parametrize("name", ["fast-weights", "irnn", "ln-rnn", "lstm"])
def test_a_batch_is_its_sequences(name):
    cell = make_cell(name, FEATURES, HIDDEN, Hebbian(), rngs=nnx.Rngs(0))
    xs = np.stack([inputs(seed) for seed in range(3)]).astype(np.float32)
    batched = jax.jit(jax.vmap(lambda x: unroll(cell, x)[1]))(xs)
    for row, x in zip(batched, xs, strict=True):
        assert_close(row, unroll(cell, jnp.asarray(x))[1])


def test_a_cell_there_is_not_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="no recurrent cell 'gru'") as raised:
        make_cell("gru", FEATURES, HIDDEN, Hebbian(), rngs=nnx.Rngs(0))
    assert all(name in str(raised.value) for name in get_args(CellName))


def test_cells_start_as_the_paper_says():
    cell = FastWeightCell(FEATURES, HIDDEN, Hebbian(), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(cell.recurrent.kernel[...], 0.05 * np.eye(HIDDEN), rtol=1e-6)
    np.testing.assert_array_equal(cell.slow.gain[...], np.ones(HIDDEN))
    np.testing.assert_array_equal(cell.slow.bias[...], np.zeros(HIDDEN))
    weights = np.asarray(kernel_start("paper")(jax.random.key(0), (300, 16)))
    assert 0.24 < np.abs(weights).max() <= 0.25  # 1/sqrt(16)
    assert weights.std() == pytest.approx(0.25 / np.sqrt(3), rel=0.03)


def test_unit_start_keeps_a_signal_at_unit_size():
    weights = np.asarray(kernel_start("unit")(jax.random.key(0), (300, 200)))
    signal = np.random.default_rng(0).normal(size=(50, 300)) @ weights
    assert signal.std() == pytest.approx(1.0, rel=0.05)
