"""`Online` is the delta rule and linear attention: outputs, final state, every outer gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import assert_close

from fastweights.rules import Delta, LinearAttention, Online, memories, run, scan
from fastweights.rules.losses import dot_product, squared
from fastweights.rules.optimizers import SGD

K, V, LENGTH = 8, 5, 40


def outcome(drive, rule, S, slots):
    """Outputs, final matrix, and gradients of both to the start and every slot."""
    rng = np.random.default_rng(9)
    weights = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((LENGTH, V), (K, V))]

    def value(S, slots):
        state = rule.init(K, V)._replace(S=S)
        final, ys = drive(rule, state, rule.token(**slots))
        return jnp.sum(weights[0] * ys) + jnp.sum(weights[1] * final.S), (ys, final.S)

    return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(S, slots)


def problem():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    slots = {"q": draw(LENGTH, K), "k": draw(LENGTH, K), "v": draw(LENGTH, V)}
    slots["k"] /= jnp.linalg.norm(slots["k"], axis=-1, keepdims=True)
    return draw(K, V), slots | {"beta": jnp.asarray(rng.uniform(size=LENGTH), jnp.float32)}


DRIVES = [scan, lambda *a: run(*a, chunk=16), lambda *a: run(*a, chunk=7)]
IDS = ["scan", "chunk 16", "chunk 7"]


def all_close(actual, expected):
    jax.tree.map(assert_close, actual[0][1], expected[0][1])
    jax.tree.map(assert_close, actual[1], expected[1])


@pytest.mark.parametrize("drive", DRIVES, ids=IDS)
@pytest.mark.parametrize("optimizer", [optax.sgd(1.0), SGD(1.0)], ids=["optax", "ours"])
def test_squared_error_and_gradient_descent_are_the_delta_rule(optimizer, drive):
    S, slots = problem()
    rule = Online(memory=memories.linear, loss=squared, optimizer=optimizer)
    all_close(outcome(drive, rule, S, slots), outcome(scan, Delta(), S, slots))


@pytest.mark.parametrize("drive", DRIVES, ids=IDS)
@pytest.mark.parametrize("optimizer", [optax.sgd(1.0), SGD(1.0)], ids=["optax", "ours"])
def test_dot_product_and_gradient_descent_are_linear_attention(optimizer, drive):
    """A token without β, and one with its β as a factor of v."""
    S, slots = problem()
    beta = slots.pop("beta")
    rule = Online(memory=memories.linear, loss=dot_product, optimizer=optimizer)
    all_close(outcome(drive, rule, S, slots), outcome(scan, LinearAttention(), S, slots))
    scaled = slots | {"v": beta[:, None] * slots["v"]}
    ours = outcome(drive, rule, S, slots | {"beta": beta})
    theirs = outcome(scan, LinearAttention(), S, scaled)
    jax.tree.map(assert_close, ours[0][1], theirs[0][1])
    for name in ("q", "k"):
        assert_close(ours[1][1][name], theirs[1][1][name])
    assert_close(ours[1][1]["v"], beta[:, None] * theirs[1][1]["v"])


def test_sums_over_a_mini_batch_of_the_linear_loss_are_linear_attention_too():
    """The gradient of −⟨Sᵀk, v⟩ does not depend on S: after whole mini-batches S is the same."""
    S, slots = problem()
    rule = Online(loss=dot_product, optimizer=optax.sgd(1.0), batch=8)
    del slots["beta"]
    state = rule.init(K, V)._replace(S=S)
    final, _ = scan(
        LinearAttention(),
        LinearAttention().init(K, V)._replace(S=S),
        LinearAttention().token(**slots),
    )
    assert_close(run(rule, state, rule.token(**slots), chunk=16)[0].S, final.S)


def test_the_closed_forms_are_picked_by_themselves():
    plain = {"optimizer": SGD(0.5)}
    assert Online(**plain).closed_chunk() is not None
    assert Online(loss=dot_product, **plain).closed_chunk() is not None
    state = Online().init(K, V)
    tokens = Online().token(**problem()[1])
    closed = str(jax.make_jaxpr(lambda s, t: run(Online(), s, t, chunk=8))(state, tokens))
    assert closed.count("scan[") == 1  # over chunks, and no loop over tokens inside
    others = (
        {"loss": lambda y, v: jnp.sum((y - v) ** 4)},
        {"memory": lambda S, x: jnp.tanh(x @ S)},
        {"optimizer": optax.sgd(0.5)},
        {"batch": 2},
        {"first_order": True},
    )
    for other in others:
        assert Online(**(plain | other)).closed_chunk() is None


@pytest.mark.parametrize("loss", [squared, dot_product], ids=lambda loss: loss.__name__)
def test_the_closed_form_keeps_documents_and_skipped_tokens(loss):
    """Every gradient of a packed row with padding, against token by token."""
    rule = Online(loss=loss, optimizer=SGD(0.7))
    S, slots = problem()
    ids = jnp.asarray([1] * 9 + [2] * 3 + [0] * 2 + [3] * 20 + [4] * 6)
    store = jnp.asarray(np.random.default_rng(1).uniform(size=LENGTH) < 0.8)

    def drive(chunk):
        return lambda rule, state, tokens: run(
            rule, state, tokens._replace(store=store), chunk=chunk, segment_ids=ids
        )

    all_close(outcome(drive(8), rule, S, slots), outcome(drive(None), rule, S, slots))
