"""TTT-Linear and TTT-MLP: NumPy loops, the dual form against the definition, and mini-batches."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from fastweights.rules import TTTMLP, Online, TTTLinear, run, scan
from fastweights.rules.losses import squared
from fastweights.rules.optimizers import SGD
from rules import ttt_reference as reference

D = 6
PAIRS = [
    (TTTLinear, reference.linear_gradient, reference.linear_read),
    (TTTMLP, reference.mlp_gradient, reference.mlp_read),
]
KINDS = [TTTLinear, TTTMLP]


def slots(seed, length):
    rng = np.random.default_rng(seed)
    made = {name: rng.normal(size=(length, D)) for name in ("q", "k", "v")}
    return made | {"beta": rng.uniform(size=length)}


def slow(rule, seed=0):
    """Slow weights of the size of one, so that a step is felt; gain, bias and position moved."""
    rng = np.random.default_rng(100 + seed)
    shapes = {n: make(jax.random.key(0)).shape for n, make in rule.parameters(D, D).items()}
    made = {name: rng.normal(size=shape) / 2 for name, shape in shapes.items()}
    made["gain"] = made["gain"] + 1
    made["position"] = 1 / np.arange(1, rule.batch + 1) + 0.1 * made["position"]
    return made


@pytest.mark.parametrize("length,batch", [(13, 4), (12, 4), (3, 16), (5, 1)])
@pytest.mark.parametrize("kind,gradient,read", PAIRS, ids=lambda x: getattr(x, "__name__", ""))
def test_it_is_the_loop_in_float64(kind, gradient, read, length, batch):
    """Token by token, in the dual form by pieces of any size, and over the whole row."""
    rule = kind(lr=0.7, batch=batch)
    given, weights = slots(length, length), slow(rule)
    start = {name[:-2]: x for name, x in weights.items() if name.endswith("_0")}
    ys, final, pending = reference.loop(
        start,
        *(weights[n] for n in ("gain", "bias", "position")),
        given,
        lr=0.7,
        batch=batch,
        gradient=gradient,
        read=read,
    )
    with jax.enable_x64(True):
        state = rule.init(D, D, **jax.tree.map(jnp.asarray, weights))
        tokens = rule.token(**jax.tree.map(jnp.asarray, given))
        for drive in (scan, *(lambda *a, c=c: run(*a, chunk=c) for c in (3, 4, 16))):
            after, answers = drive(rule, state, tokens)
            assert_close(answers, ys, "float64")
            assert after.count == length % batch
            for name in start:
                assert_close(getattr(after, name), final[name], "float64", name)
                assert_close(after.pending[name], pending[name], "float64", name)
        assert_close(rule.sequence(state, tokens, None), ys, "float64")


def outcome(form, rule, tokens, ids=None):
    """Outputs, final state, and gradients of both to slow weights and slots."""

    def value(weights, moving):
        state = rule.init(D, D, **weights)
        final, ys = form(rule, state, tokens._replace(**moving), ids)
        leaves = [ys, *(x for x in jax.tree.leaves(final) if x.dtype == jnp.float32)]
        return sum(jnp.sum(jnp.sin(x + i)) for i, x in enumerate(leaves)), (final, ys)

    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), slow(rule))
    moving = {n: x for n, x in tokens._asdict().items() if n != "store"}
    return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(weights, moving)


def single(rule, length, store=None):
    tokens = rule.token(**{n: jnp.asarray(x, jnp.float32) for n, x in slots(1, length).items()})
    return tokens._replace(store=store)


@pytest.mark.parametrize("kind", KINDS)
def test_the_dual_form_is_the_definition(kind):
    """Packed documents, padding, tokens that are not stored: final state and every gradient."""
    rule = kind(lr=0.5, batch=4)
    store = jnp.asarray(np.random.default_rng(2).uniform(size=26) < 0.8)
    ids = jnp.asarray([1] * 6 + [2] * 2 + [3] + [0, 0] + [4] * 11 + [0] + [5] * 3)
    tokens = single(rule, 26, store)
    expected = outcome(lambda r, s, t, i: run(r, s, t, segment_ids=i), rule, tokens, ids)
    for size in (2, 4, 11, 64):
        form = lambda r, s, t, i, c=size: run(r, s, t, segment_ids=i, chunk=c)
        jax.tree.map(assert_close, outcome(form, rule, tokens, ids), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_from_the_start_takes_whole_mini_batches(kind):
    """`sequence` with no ids, which leaves out the work of the general block."""
    rule = kind(lr=0.5, batch=4)
    tokens = single(rule, 23)
    expected = outcome(lambda r, s, t, i: scan(r, s, t), rule, tokens)
    form = lambda r, s, t, i: (scan(r, s, t)[0], r.sequence(s, t, None))
    jax.tree.map(assert_close, outcome(form, rule, tokens), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_begins_a_mini_batch_and_padding_takes_no_place(kind):
    """In a row each document is to rounding what it is alone, wherever it starts."""
    rule = kind(lr=0.5, batch=4)
    ids = np.array([1] * 6 + [2] * 2 + [3] + [0, 0] + [4] * 6 + [0] * 3 + [4] * 5)
    tokens = single(rule, len(ids))
    state = rule.init(D, D, **jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), slow(rule)))
    ys = rule.sequence(state, tokens, jnp.asarray(ids))
    for document in (1, 2, 3, 4):
        place = np.flatnonzero(ids == document)
        alone = scan(rule, state, jax.tree.map(lambda x, p=place: x[p], tokens))[1]
        assert_close(ys[place], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mini_batch_of_one_is_online_learning(kind):
    """With factors of 1: `Online` with the same memory, squared error, gradient descent."""
    rule = kind(lr=0.5, batch=1)
    online = Online(memory=rule.memory, loss=squared, optimizer=SGD(0.5))
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), slow(rule))
    weights["position"] = jnp.ones(1)
    tokens = single(rule, 9)
    state, ys = scan(rule, rule.init(D, D, **weights), tokens)
    del weights["position"]
    final, answers = scan(online, online.init(D, D, **weights), tokens)
    assert_close(ys, answers)
    for name, x in final.S.items():
        assert_close(getattr(state, name), x)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_mini_batches_are_those_of_online_learning(kind):
    """At the end of a mini-batch of b the step is that of rate p_b η on the sum of gradients."""
    rule = kind(lr=0.5, batch=4)
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), slow(rule))
    rate = 0.5 * float(weights["position"][-1])
    online = Online(memory=rule.memory, loss=squared, optimizer=SGD(rate), batch=4)
    tokens = single(rule, 12)
    state, ys = scan(rule, rule.init(D, D, **weights), tokens)
    del weights["position"]
    final, answers = scan(online, online.init(D, D, **weights), tokens)
    assert_close(ys[3::4], answers[3::4])  # inside a mini-batch `Online` reads its first weights
    for name, x in final.S.items():
        assert_close(getattr(state, name), x)


def test_the_factors_start_as_a_mean_and_never_turn_the_step_round():
    rule = TTTLinear(batch=3)
    np.testing.assert_allclose(rule.init(D, D).position, [1, 1 / 2, 1 / 3], rtol=1e-6)
    state = rule.init(D, D, position=-jnp.ones(3))
    after = scan(rule, state, single(rule, 3))[0]
    np.testing.assert_array_equal(after.S, state.S)


@pytest.mark.parametrize("kind", KINDS)
def test_fields_are_plain_and_named_in_a_config(kind):
    fields = dataclasses.asdict(kind(batch=8))
    assert kind(**json.loads(json.dumps(fields))) == kind(batch=8)
    assert kind().problems() == []
    assert kind(batch=0, lr=-1.0).problems() == [
        "lr is -1.0; it must not be negative",
        "batch is 0; it must be at least 1",
    ]
    assert TTTMLP(width=0).problems() == ["width is 0; it must be at least 1"]
    with pytest.raises(ValueError, match="batch is 0"):
        kind(batch=0).init(4, 4)
    with pytest.raises(ValueError, match="vectors of one size, got 4 and 3"):
        kind().init(4, 3)
