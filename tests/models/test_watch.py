"""What `watch` keeps is what the network did."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastweights.errors import ConfigError
from fastweights.models.retrieval import RetrievalModel, RetrievalNet
from fastweights.models.watch import attention_to_past, fast_weight_matrices, watch
from fastweights.rules import Form, Hebbian

TOKENS = jnp.array([2, 35, 10, 34, 9, 29, 5, 27, 36, 36, 10])  # c9k8j3f1??k


def make(steps=1, form=Form.AUTO, **changes):
    rule = Hebbian(steps=steps, form=form)
    model = RetrievalModel(hidden=12, rule=rule, start="unit", **changes)
    return RetrievalNet(model, 37, 10, rngs=nnx.Rngs(0))


def by_hand(net, tokens):
    """The paper's equations in float64: queries, settled activities and A before each read."""
    f64 = lambda x: np.asarray(x, np.float64)
    embedded = f64(net.embed.embedding)[np.asarray(tokens)]
    xs = embedded @ f64(net.expand.kernel) + f64(net.expand.bias)
    W, C, rule = f64(net.cell.recurrent.kernel), f64(net.cell.input.kernel), net.cell.rule
    h, A, rows = np.zeros(12), np.zeros((12, 12)), []
    for x in xs:
        z = h @ W + x @ C
        h = np.maximum(z, 0)
        for _ in range(rule.steps):
            query, total = h, z + A @ h
            h = np.maximum((total - total.mean()) / np.sqrt(total.var() + 1e-5), 0)
        rows.append((query, h, A))
        A = rule.decay * A + rule.lr * np.outer(h, h)
    return [np.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("form", [Form.MATRIX, Form.ATTENTION])
def test_activity_is_that_of_the_equations(steps, form):
    net = make(steps, form)
    query, settled, before = by_hand(net, TOKENS)
    activity = watch(net, TOKENS)
    np.testing.assert_allclose(activity.query, query, atol=1e-4)
    np.testing.assert_allclose(activity.settled, settled, atol=1e-4)
    np.testing.assert_allclose(activity.settled, net.activities(TOKENS), atol=1e-5)
    matrices = fast_weight_matrices(net.cell.rule, activity.settled)
    np.testing.assert_allclose(matrices[:-1], before[1:], atol=1e-3)
    # attention times what was written is what the matrix answers
    recalled = attention_to_past(net.cell.rule, activity) @ activity.settled
    np.testing.assert_allclose(recalled, np.einsum("tij,tj->ti", before, query), atol=1e-3)


def test_attention_never_looks_ahead():
    net = make()
    assert (np.triu(attention_to_past(net.cell.rule, watch(net, TOKENS))) == 0).all()


def test_no_learning_rate_no_attention():
    net = make()
    activity = watch(net, TOKENS)
    assert attention_to_past(net.cell.rule, activity).max() > 0
    off = dataclasses.replace(net.cell.rule, lr=0.0)
    assert (attention_to_past(off, activity) == 0).all()


def test_it_works_on_a_batch():
    net = make()
    batch = jnp.stack([TOKENS, TOKENS[::-1]])
    together = jax.jit(jax.vmap(lambda tokens: watch(net, tokens)))(batch)
    np.testing.assert_allclose(together.settled[1], watch(net, TOKENS[::-1]).settled, atol=1e-5)


def test_a_network_without_fast_weights_is_refused():
    with pytest.raises(ConfigError, match="LSTM has no fast weights"):
        watch(make(cell="lstm"), TOKENS)
