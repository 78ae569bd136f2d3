"""In-Place TTT with an inner loss and optimiser: the released rule as a case of it, and others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from tolerances import assert_close

from fastweights.rules import InPlace, outputs, run, scan
from fastweights.rules.losses import dot_product, squared
from fastweights.rules.optimizers import clip_by_global_norm

D, F, LR = 3, 5, 0.4


def problem(seed, length, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = ((D, F), (length, F), (length, D))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def one(length):
    return None


def many(length):
    """Documents that start inside of chunks, two in one chunk, and padding."""
    return jnp.asarray([0, *[1] * 5, *[2] * 2, 0, 3, *[4] * (length - 12), 0, 0])


def outcome(form, rule, w0, z, v, ids):
    """Outputs of tokens, final weights, and gradients of both to W0 and tokens."""
    valid = jnp.ones(len(z), bool) if ids is None else ids > 0

    def value(w0, z, v):
        final, ys = form(rule, rule.init(w0, w0.dtype), rule.token(z=z, v=v), ids)
        ys = jnp.where(valid[:, None], ys, 0)
        total = jnp.sum(jnp.sin(ys)) + jnp.sum(jnp.cos(final.weights))
        return total, (ys, final.weights)

    (_, results), slopes = jax.jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True))(w0, z, v)
    return [*results, *slopes]


def in_pieces(size):
    return lambda r, s, t, ids: run(r, s, t, chunk=size, segment_ids=ids)


def own(rule, state, tokens, ids):
    """The rule's own form for rows, with the final state of a scan."""
    return run(rule, state, tokens, segment_ids=ids)[0], outputs(
        rule, state, tokens, segment_ids=ids
    )


FORMS = {"scan": in_pieces(None), "3": in_pieces(3), "4": in_pieces(4), "64": in_pieces(64)}
#: the released rule's options, and the optimiser that they stand for
LEARNERS = {
    "free": ({}, lambda: optax.sgd(LR)),
    "clip after": ({"clip": 0.7}, lambda: optax.chain(optax.sgd(LR), clip_by_global_norm(0.7))),
    "clip before": (
        {"clip": 1.9, "clip_after_lr": False},
        lambda: optax.chain(optax.clip_by_global_norm(1.9), optax.sgd(LR)),
    ),
    # options of a read go with any loss and optimiser
    "cap": ({"cap": 0.2}, lambda: optax.sgd(LR)),
    "row norm": ({"row_norm": True}, lambda: optax.sgd(LR)),
    # D <- D - η (g + w D)
    "decay": (
        {"decay": 0.75},
        lambda: optax.chain(optax.add_decayed_weights(0.25 / LR), optax.sgd(LR)),
    ),
}


@pytest.mark.parametrize("documents", [one, many])
@pytest.mark.parametrize("learner", LEARNERS)
def test_the_released_rule_is_a_case_and_its_reversible_scan_is_equal(learner, documents):
    """Outputs, final weights and every outer gradient, in float32."""
    clip, make = LEARNERS[learner]
    released = InPlace(lr=LR, chunk_size=4, **clip)
    reads = {name: clip[name] for name in ("cap", "row_norm") if name in clip}
    rule = InPlace(chunk_size=4, optimizer=make(), **reads)
    w0, z, v = problem(1, 22)
    ids = documents(22)
    expected = outcome(own, released, w0, z, v, ids)
    for name, form in (FORMS | {"own": own}).items():
        for a, b in zip(outcome(form, rule, w0, z, v, ids), expected, strict=True):
            assert_close(a, b, what=name)


def test_the_clipped_cases_clip():
    w0, z, v = problem(1, 22)
    free, *clipped = (
        outcome(own, InPlace(chunk_size=4, optimizer=make()), w0, z, v, None)[1]
        for name, (_, make) in LEARNERS.items()
        if name in ("free", "clip after", "clip before")
    )
    assert all(np.abs(x - free).max() > 0.1 for x in clipped)


def test_the_default_loss_and_rate_are_the_paper_s():
    """A loss alone learns by gradient descent of rate `lr`; an optimiser alone, the dot product."""
    w0, z, v = problem(2, 9)
    results = [
        outcome(own, rule, w0, z, v, None)
        for rule in (
            InPlace(lr=LR, chunk_size=4),
            InPlace(lr=LR, chunk_size=4, loss=dot_product),
            InPlace(lr=9.0, chunk_size=4, optimizer=optax.sgd(LR)),
            InPlace(lr=9.0, chunk_size=4, loss=dot_product, optimizer=optax.sgd(LR)),
        )
    ]
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert_close(a, b)


def loop(w0, z, v, ids, *, chunk, rate, momentum, decay):
    """Squared error, heavy-ball momentum, and a decay of D = W − W0, in float64."""
    ids = np.ones(len(z), int) if ids is None else np.asarray(ids)
    ys, newest = [], None
    added = moment = pending = 0 * w0
    for t, document in enumerate(ids):
        if document > 0 and document != newest:
            if newest is not None:
                added = moment = pending = 0 * w0
            newest = document
        y = (w0 + added) @ z[t]
        ys.append(y if document > 0 else 0 * y)
        if document > 0:
            pending = pending + np.outer(y - v[t], z[t])
        if (t + 1) % chunk == 0:
            moment = momentum * moment + pending + decay * added
            added, pending = added - rate * moment, 0 * w0
    return np.array(ys), w0 + added


@pytest.mark.parametrize("documents", [one, many])
def test_it_is_the_loop_in_float64(documents):
    with jax.enable_x64(True):
        w0, z, v = problem(3, 23, np.float64)
        ids = documents(23)
        learner = optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.05, momentum=0.6))
        rule = InPlace(chunk_size=4, loss=squared, optimizer=learner)
        ys, final = loop(
            *map(np.asarray, (w0, z, v)), ids, chunk=4, rate=0.05, momentum=0.6, decay=0.3
        )
        for name, form in (FORMS | {"own": own}).items():
            actual = outcome(form, rule, w0, z, v, ids)
            assert_close(actual[0], ys, "float64", name)
            assert_close(actual[1], final, "float64", name)


def test_weight_decay_is_forgetting():
    """Each chunk without a gradient brings W back to W0 by a factor."""
    rule = InPlace(
        chunk_size=2, optimizer=optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.5))
    )
    w0, z, v = problem(4, 2)
    state = scan(rule, rule.init(w0), rule.token(z=z, v=v))[0]
    silent = rule.token(z=jnp.zeros((6, F)), v=jnp.zeros((6, D)))
    after = scan(rule, state, silent)[0]
    assert_close(after.weights - w0, 0.75**3 * (state.weights - w0))


@pytest.mark.parametrize("form", [in_pieces(None), own], ids=["scan", "own"])
def test_second_order_gradients_are_the_slope(form):
    """A loss that is not linear in W: a write depends on the writes before."""
    learner = optax.chain(clip_by_global_norm(2.0), optax.sgd(0.1, momentum=0.5))
    rule = InPlace(chunk_size=3, loss=squared, optimizer=learner)
    with jax.enable_x64(True):
        inputs = problem(5, 11, np.float64)

        def value(w0, z, v):
            final, ys = form(rule, rule.init(w0, jnp.float64), rule.token(z=z, v=v), None)
            return jnp.sum(jnp.sin(ys)) + jnp.sum(final.weights**2)

        check_grads(jax.jit(value), inputs, 1, ("rev",), atol=1e-6, rtol=1e-6, eps=1e-5)


def test_a_write_of_zeros_passes_gradients_on():
    """As at the start of continual training, where the values are zeros that are to be trained."""
    learner = optax.chain(clip_by_global_norm(1.0), optax.sgd(LR))
    w0, z, _ = problem(6, 8)
    slope = lambda rule: jax.grad(
        lambda v: jnp.sum(outputs(rule, rule.init(w0), rule.token(z=z, v=v)))
    )(jnp.zeros((8, D)))
    expected = slope(InPlace(lr=LR, chunk_size=4, clip=1.0))
    assert_close(slope(InPlace(chunk_size=4, optimizer=learner)), expected)
    assert np.abs(expected).max() > 0.1


def test_memory_grows_with_the_root_of_the_chunks():
    """XLA's count, float32: 64 and 1,024 chunks, and a scan that keeps every step."""
    d, f, size = 64, 96, 8
    rule = InPlace(chunk_size=size, loss=squared, optimizer=optax.sgd(0.01, momentum=0.9))

    def used(form, chunks):
        shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)

        def both(w0, z, v, dy):
            ys, pull = jax.vjp(lambda w0, z, v: form(rule.init(w0), rule.token(z=z, v=v)), w0, z, v)
            return ys, pull(dy)

        length = chunks * size
        args = shape(d, f), shape(length, f), shape(length, d), shape(length, d)
        return jax.jit(both).lower(*args).compile().memory_analysis().temp_size_in_bytes

    ours = lambda state, tokens: outputs(rule, state, tokens)
    plain = lambda state, tokens: scan(rule, state, tokens)[1]
    assert used(ours, 1024) <= 6 * used(ours, 64)
    assert used(plain, 1024) >= 50 * used(ours, 1024)


@pytest.mark.parametrize("more", [{"clip": 1.0}, {"total": lambda x: x}])
def test_options_of_the_released_rule_are_refused(more):
    message = "clip, decay, spectral, residual and total go without loss"
    with pytest.raises(ValueError, match=message):
        InPlace(optimizer=optax.sgd(1.0), **more)
