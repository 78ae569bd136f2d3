"""The Associative LSTM against its equations in complex128; storage, redundancy, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from fastweights.errors import ConfigError
from fastweights.nn import unroll
from fastweights.nn.associative_lstm import (
    AssociativeCarry,
    AssociativeLSTM,
    bound,
    multiply,
    permutations,
    recall,
    store,
)

LENGTH, FEATURES, HIDDEN = 7, 5, 14  # 7 complex cells


def pairs(z):
    """Complex `[..., M]` as real `[..., 2, M]`."""
    return np.stack([z.real, z.imag], axis=-2).astype(np.float32)


def numbers(x):
    x = np.asarray(x, np.float64)
    return x[..., 0, :] + 1j * x[..., 1, :]


def inputs(seed=0, length=LENGTH):
    return np.random.default_rng(seed).normal(size=(length, FEATURES))


def randomised(seed=1, **kinds):
    """A cell whose every weight and bias is away from its start."""
    cell = AssociativeLSTM(FEATURES, HIDDEN, **kinds, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(seed)
    noisy = lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), jnp.float32)
    return jax.tree.map(noisy, cell)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cut(z):
    return z / np.maximum(1, np.abs(z))


def reference(cell, xs, h, memory):
    """The equations with NumPy's own complex numbers, copy by copy and head by head."""
    W, U, b = (
        np.float64(p[...]) for p in (cell.input.kernel, cell.recurrent.kernel, cell.input.bias)
    )
    orders, M, hs = permutations(cell.copies, HIDDEN // 2), HIDDEN // 2, []
    for x in xs:
        blocks = iter((x @ W + h @ U + b).reshape(-1, M))
        complex_block = lambda blocks=blocks: next(blocks) + 1j * next(blocks)
        f = sigmoid(next(blocks))
        heads = []
        for _ in range(cell.heads):
            i, o = sigmoid(next(blocks)), sigmoid(next(blocks))
            heads.append((i, o, cut(complex_block()), cut(complex_block()), cut(complex_block())))
        memory = [
            f * c + sum(r[order] * (i * u) for i, o, r, q, u in heads)
            for c, order in zip(memory, orders, strict=True)
        ]
        y = 0
        for _, o, _, q, _ in heads:
            y = y + o * cut(
                np.mean([q[p] * c for p, c in zip(orders, memory, strict=True)], axis=0)
            )
        h = np.concatenate([y.real, y.imag])
        hs.append(h)
    return h, memory, hs


@pytest.mark.parametrize("copies,heads", [(4, 3), (1, 1), (3, 1), (1, 2)])
def test_equals_its_equations(copies, heads):
    cell = randomised(copies=copies, heads=heads)
    rng = np.random.default_rng(5)
    h0 = rng.normal(size=HIDDEN)
    m0 = rng.normal(size=(copies, HIDDEN // 2)) + 1j * rng.normal(size=(copies, HIDDEN // 2))
    h, memory, expected = reference(cell, inputs(), h0, list(m0))
    start = AssociativeCarry(jnp.asarray(h0, jnp.float32), jnp.asarray(pairs(m0)))
    last, hs = jax.lax.scan(cell.step, start, cell.project(jnp.asarray(inputs(), jnp.float32)))
    assert_close(hs, expected)
    assert_close(last.h, h)
    assert_close(last.memory, pairs(np.stack(memory)))


def test_unroll_starts_from_nothing():
    cell = randomised()
    zeros = [np.zeros(HIDDEN // 2, complex)] * cell.copies
    expected = reference(cell, inputs(), np.zeros(HIDDEN), zeros)[2]
    assert_close(unroll(cell, jnp.asarray(inputs(), jnp.float32))[1], expected)


def test_product_and_bound_are_those_of_complex_numbers():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(3, 9)) + 1j * rng.normal(size=(3, 9)) for _ in range(2))
    assert_close(multiply(jnp.asarray(pairs(a)), jnp.asarray(pairs(b))), pairs(a * b))
    assert_close(bound(jnp.asarray(pairs(a))), pairs(cut(a)))
    assert (np.abs(a) > 1).any() and (np.abs(a) < 1).any()
    slope = jax.grad(lambda z: jnp.sum(bound(z)))(jnp.zeros((2, 3)))
    np.testing.assert_array_equal(slope, np.ones((2, 3)))  # bound(z) = z near 0: no 0 / 0


def remembered(copies, items, cells=40, seed=0):
    """Store random values under random keys of unit modulus; values, and what is recalled."""
    rng = np.random.default_rng(seed)
    order = permutations(copies, cells)
    keys = np.exp(2j * np.pi * rng.random((items, cells)))
    values = cut(rng.normal(size=(items, cells)) + 1j * rng.normal(size=(items, cells)))
    memory = jnp.zeros((copies, 2, cells))
    for key, value in zip(keys, values, strict=True):
        memory = store(memory, jnp.asarray(pairs(key)), jnp.asarray(pairs(value)), order)
    read = jnp.asarray(pairs(keys.conj()))
    return values, numbers(jnp.stack([recall(memory, key, order) for key in read]))


@pytest.mark.parametrize("copies", [1, 4])
def test_one_pair_comes_back_exactly(copies):
    values, recalled = remembered(copies, items=1)
    np.testing.assert_allclose(recalled, values, atol=1e-6)


def test_copies_reduce_the_noise_of_recall():
    """Noise of other pairs, independent in each copy, averages to 1 / √copies of its size."""
    noise = {}
    for copies in (1, 4, 16):
        values, recalled = remembered(copies, items=10)
        noise[copies] = np.sqrt(np.mean(np.abs(recalled - values) ** 2))
    # one copy: nine other values of mean square modulus E min(|v|², 1) = 2 (1 - e^-1/2) = 0.787
    assert noise[1] == pytest.approx(np.sqrt(9 * 0.787), rel=0.15)
    assert noise[4] == pytest.approx(noise[1] / 2, rel=0.2)
    assert noise[16] == pytest.approx(noise[1] / 4, rel=0.25)


def test_recall_names_the_value_stored_under_its_key():
    values, recalled = remembered(copies=16, items=6)
    matches = np.argmax((recalled @ values.conj().T).real / np.linalg.norm(values, axis=1), axis=1)
    np.testing.assert_array_equal(matches, np.arange(6))


def test_permutations_are_fixed_and_differ_between_copies():
    first = permutations(4, 10)
    np.testing.assert_array_equal(first, permutations(4, 10))
    np.testing.assert_array_equal(np.sort(first), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(row) for row in first}) == 4


def test_every_weight_gets_a_gradient():
    """Column by column: every gate, key and value of every head takes part."""
    cell = randomised()
    loss = lambda cell: jnp.sum(jnp.sin(unroll(cell, jnp.asarray(inputs(), jnp.float32))[1]))
    grads = jax.jit(jax.grad(loss))(cell)
    for grad in (grads.input.kernel, grads.recurrent.kernel, grads.input.bias[...][None]):
        grad = np.asarray(grad[...])
        assert np.isfinite(grad).all()
        assert (np.abs(grad).max(axis=0) > 0).all()
    silent = AssociativeLSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(0))  # all z are 0 but the forget gate
    still = jax.grad(lambda cell: jnp.sum(unroll(cell, jnp.zeros((3, FEATURES)))[1]))(silent)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(still))


def test_a_batch_is_its_sequences():
    cell = randomised()
    xs = np.stack([inputs(seed) for seed in range(3)]).astype(np.float32)
    batched = jax.jit(jax.vmap(lambda x: unroll(cell, x)[1]))(xs)
    for row, x in zip(batched, xs, strict=True):
        assert_close(row, unroll(cell, jnp.asarray(x))[1])


def test_units_are_real_numbers_and_copies_are_free():
    """R units: activity [R]; weights (1 + 8 heads) R/2 · (I + R + 1), whatever the copies."""
    for copies in (1, 4):
        cell = AssociativeLSTM(FEATURES, 20, copies=copies, rngs=nnx.Rngs(0))
        assert unroll(cell, jnp.ones((3, FEATURES)))[1].shape == (3, 20)
        count = sum(leaf.size for leaf in jax.tree.leaves(cell))
        assert count == 25 * 10 * (FEATURES + 20 + 1)


@pytest.mark.parametrize("kinds", [{"hidden": 7}, {"copies": 0}, {"heads": 0}, {"hidden": 0}])
def test_impossible_sizes(kinds):
    with pytest.raises(ConfigError, match="Associative LSTM of"):
        AssociativeLSTM(**{"features": 3, "hidden": 8, **kinds}, rngs=nnx.Rngs(0))
