"""Inner learning: against NumPy loops in float64, against itself in other forms; its options."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from tolerances import assert_close

from fastweights.rules import Online, memories, run, scan
from fastweights.rules.losses import dot_product, squared
from fastweights.rules.optimizers import SGD, clip_by_global_norm

K, V = 4, 3


def problem(seed, length, x64=False):
    """Keys of norm 1, queries, targets, write strengths and which tokens are stored."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, length, K))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    tokens = {"q": q, "k": k, "v": rng.normal(size=(length, V)), "beta": rng.uniform(size=length)}
    return rng.normal(size=(K, V)), tokens


def momentum(rate, decay):
    """One matrix under heavy-ball momentum."""
    moment = 0.0

    def step(g):
        nonlocal moment
        moment = decay * moment + g
        return -rate * moment

    return step


def adam(rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=1e-8):
    """One matrix under Adam (Kingma, Ba 2015)."""
    first, second, count = 0.0, 0.0, 0

    def step(g):
        nonlocal first, second, count
        count += 1
        first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g * g
        mean, square = first / (1 - b1**count), second / (1 - b2**count)
        return -rate * mean / (np.sqrt(square + eps_root) + eps)

    return step


def loop(S, tokens, step, *, batch, error):
    """The definition: gradients of a mini-batch at its first weights, one step at its end."""
    ys, pending, count = [], 0.0, 0
    for q, k, v, beta in zip(*(tokens[n] for n in ("q", "k", "v", "beta")), strict=True):
        pending, count = pending + beta * np.outer(k, error(S.T @ k, v)), count + 1
        if count == batch:
            S, pending, count = S + step(pending), 0.0, 0
        ys.append(S.T @ q)
    return np.array(ys), S


LEARNERS = {
    "sgd": (lambda: optax.sgd(0.7), lambda: lambda g: -0.7 * g),
    "momentum": (lambda: optax.sgd(0.2, momentum=0.9), lambda: momentum(0.2, 0.9)),
    "adam": (lambda: optax.adam(0.1, eps_root=1e-8), lambda: adam(0.1)),
}
ERRORS = {squared: lambda y, v: y - v, dot_product: lambda y, v: -v}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("loss", ERRORS, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("learner", LEARNERS)
def test_it_is_the_loop_in_float64(learner, loss, batch):
    """Outputs and weights, token by token and in pieces that do not fit the mini-batches."""
    S, tokens = problem(0, 13)
    make, by_hand = LEARNERS[learner]
    ys, final = loop(S, tokens, by_hand(), batch=batch, error=ERRORS[loss])
    with jax.enable_x64(True):
        rule = Online(memory=memories.linear, loss=loss, optimizer=make(), batch=batch)
        S = jnp.asarray(S)
        state = rule.init(K, V)._replace(S=S, optimizer=rule.optimizer.init(S))
        if batch > 1:
            state = state._replace(pending=jnp.zeros_like(S))
        given = rule.token(**jax.tree.map(jnp.asarray, tokens))
        for drive in (scan, lambda *a: run(*a, chunk=5), lambda *a: run(*a, chunk=8)):
            after, answers = drive(rule, state, given)
            assert_close(answers, ys, "float64")
            assert_close(after.S, final, "float64")
        assert_close(rule.sequence(state, given, None), ys, "float64")


def mixed(batch, **options):
    """A rule of two-layer memory and momentum, a row of documents, padding and skipped tokens."""
    learner = optax.chain(clip_by_global_norm(1.0), optax.sgd(0.3, momentum=0.5))
    rule = Online(memory=memories.MLP(width=2), optimizer=learner, batch=batch, **options)
    _, tokens = problem(1, 23)
    store = np.random.default_rng(2).uniform(size=23) < 0.8
    tokens = rule.token(**{n: jnp.asarray(x, jnp.float32) for n, x in tokens.items()})
    ids = jnp.asarray([1] * 6 + [2] * 2 + [3] + [0, 0] + [4] * 9 + [0] + [5, 5])
    return rule, tokens._replace(store=jnp.asarray(store)), ids


def outputs_and_slopes(form, rule, tokens, ids):
    """Outputs, final state, and gradients of both to slow weights and tokens."""

    def value(slow, moving):
        state = rule.init(K, V, **slow)
        final, ys = form(rule, state, tokens._replace(**moving), ids)
        leaves = [ys, *(x for x in jax.tree.leaves(final) if x.dtype == jnp.float32)]
        return sum(jnp.sum(jnp.sin(x + i)) for i, x in enumerate(leaves)), (final, ys)

    slow = {name: make(jax.random.key(i)) for i, (name, make) in enumerate(makers(rule))}
    moving = {n: x for n, x in tokens._asdict().items() if n != "store"}
    return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(slow, moving)


def makers(rule):
    return rule.parameters(K, V).items()


@pytest.mark.parametrize("batch", [1, 4])
def test_pieces_of_a_packed_row_are_its_scan(batch):
    """Documents that start inside of mini-batches, skipped tokens; every gradient."""
    rule, tokens, ids = mixed(batch)
    expected = outputs_and_slopes(
        lambda r, s, t, ids: run(r, s, t, segment_ids=ids), rule, tokens, ids
    )
    for size in (1, 3, 4, 9, 64):
        form = lambda r, s, t, ids, size=size: run(r, s, t, segment_ids=ids, chunk=size)
        actual = outputs_and_slopes(form, rule, tokens, ids)
        jax.tree.map(assert_close, actual, expected)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_document_in_a_row_is_the_document_alone(batch):
    rule, tokens, ids = mixed(batch)
    state = rule.init(K, V)
    ys = rule.sequence(state, tokens, ids)
    for document in (1, 2, 3, 4, 5):
        place = np.flatnonzero(ids == document)
        alone = scan(rule, state, jax.tree.map(lambda x, p=place: x[p], tokens))[1]
        assert_close(ys[place], alone)


def test_mini_batches_of_the_same_tokens_can_be_cut_anywhere():
    """A stream in pieces, token by token in between, ends in the state of one call."""
    rule, tokens, _ = mixed(4)
    state, ys = rule.init(K, V), []
    expected = scan(rule, state, tokens)
    for first, last, size in ((0, 3, None), (3, 12, 4), (12, 13, None), (13, 23, 16)):
        piece = jax.tree.map(lambda x, a=first, b=last: x[a:b], tokens)
        state, y = run(rule, state, piece, chunk=size)
        ys.append(y)
    jax.tree.map(assert_close, (state, jnp.concatenate(ys)), expected)


def test_a_row_from_the_start_takes_whole_mini_batches():
    """`sequence` without ids, which skips the work of the general block: outputs and gradients."""
    rule, tokens, _ = mixed(4)
    tokens = tokens._replace(store=None)
    expected = outputs_and_slopes(lambda r, s, t, ids: scan(r, s, t), rule, tokens, None)
    actual = outputs_and_slopes(
        lambda r, s, t, ids: (scan(r, s, t)[0], r.sequence(s, t, None)), rule, tokens, None
    )
    jax.tree.map(assert_close, actual, expected)


MODELS = [
    memories.MLP(width=2),
    memories.SwiGLU(width=2),
    memories.ResidualNorm(memories.Affine(std=1.0)),
    memories.linear,
    lambda S, x: jnp.tanh(x @ S),
]


@pytest.mark.parametrize("loss", [squared, dot_product, lambda y, v: jnp.sum(jnp.cosh(y - v))])
@pytest.mark.parametrize("memory", MODELS, ids=lambda m: getattr(m, "__name__", repr(m)))
def test_second_order_gradients_are_the_slope(memory, loss):
    """Through inner gradients of any memory and loss, float64, with momentum."""
    with jax.enable_x64(True):
        rule = Online(memory=memory, loss=loss, optimizer=optax.sgd(0.2, momentum=0.5), batch=2)
        rng = np.random.default_rng(3)
        shape = (5, K)
        tokens = [jnp.asarray(rng.normal(size=shape)) / 2 for _ in range(3)]
        double = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x
        names = enumerate(rule.parameters(K, K).items())
        slow = {name: 0.3 + double(make(jax.random.key(i))) for i, (name, make) in names}

        def value(slow, q, k, v, beta):
            state = jax.tree.map(double, rule.init(K, K, **slow))
            final, ys = scan(rule, state, rule.token(q=q, k=k, v=v, beta=beta))
            return jnp.sum(jnp.sin(ys)) + sum(jnp.sum(x * x) for x in jax.tree.leaves(final.S))

        beta = jnp.asarray(rng.uniform(size=5))
        moving = (slow, *tokens, beta)
        check_grads(value, moving, order=1, modes=("rev",), atol=1e-6, rtol=1e-6, eps=1e-5)


def test_first_order_drops_the_second_derivative_by_the_weights():
    """One step of rate r from S: dy/dS is q, not (1 − r β k kᵀ) q; keys and targets still count."""
    S, tokens = problem(4, 1)
    tokens = {n: jnp.asarray(x, jnp.float32) for n, x in tokens.items()}

    def slopes(first_order):
        rule = Online(optimizer=SGD(0.5), first_order=first_order)

        def value(S, tokens):
            state = rule.init(K, V)._replace(S=S)
            return jnp.sum(scan(rule, state, rule.token(**tokens))[1])

        return jax.grad(value, (0, 1))(jnp.asarray(S, jnp.float32), tokens)

    (full, _), (first, moving) = slopes(False), slopes(True)
    q, k, beta = tokens["q"][0], tokens["k"][0], tokens["beta"][0]
    assert_close(first, jnp.outer(q, jnp.ones(V)))
    assert_close(full, jnp.outer(q - 0.5 * beta * k * jnp.dot(k, q), jnp.ones(V)))
    assert np.abs(moving["k"]).max() > 0.01 and np.abs(moving["v"]).max() > 0.01


def test_a_skipped_token_leaves_the_optimiser_alone():
    """Counters and moments too, to the bit, and no NaN where the skipped step has no slope."""
    rule = Online(optimizer=optax.contrib.muon(0.1))
    zeros = rule.token(q=jnp.ones(K), k=jnp.zeros(K), v=jnp.zeros(V), beta=jnp.zeros(()))
    skipped = rule.mask(zeros, jnp.asarray(False))
    state = rule.init(K, V)
    jax.tree.map(np.testing.assert_array_equal, rule.write(state, skipped), state)

    def value(k):
        return jnp.sum(rule.write(state, skipped._replace(k=k)).S)

    np.testing.assert_array_equal(jax.grad(value)(jnp.zeros(K)), 0)


def test_the_clip_of_this_package_has_a_slope_at_zero():
    """At every other gradient it is optax's clip, which has NaN there."""
    ours, theirs = clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
    tree = {"a": jnp.asarray([3.0, -4.0]), "b": jnp.asarray([[0.5]])}
    for scale in (0.1, 1.0, 7.0):
        given = jax.tree.map(lambda x, s=scale: s * x, tree)
        jax.tree.map(assert_close, ours.update(given, ())[0], theirs.update(given, ())[0])
    slope = lambda clip: jax.grad(lambda x: jnp.sum(clip.update(x, clip.init(x))[0]))(jnp.zeros(2))
    np.testing.assert_array_equal(slope(ours), 1)
    assert np.isnan(slope(theirs)).all()
    chained = optax.chain(ours, optax.sgd(0.1))
    assert chained.update(tree, chained.init(tree))[0]["b"].shape == (1, 1)


def test_documents_start_from_slow_weights_that_outer_gradients_reach():
    rule, tokens, ids = mixed(4)
    (_, (final, _)), (slow, _) = outputs_and_slopes(
        lambda r, s, t, ids: run(r, s, t, segment_ids=ids), rule, tokens, ids
    )
    assert all(np.abs(x).max() > 1e-3 for x in slow.values())
    fresh = rule.reset(final)
    assert fresh.count == 0 and {*fresh.S} == {"W1", "b1", "W2", "b2"}
    for name, x in fresh.S.items():
        np.testing.assert_array_equal(x, getattr(final, f"{name}_0"))
    # the optimiser's state is new as well
    jax.tree.map(np.testing.assert_array_equal, fresh.optimizer, rule.init(K, V).optimizer)


def test_bfloat16_tokens_and_a_float32_state():
    rule, tokens, _ = mixed(4)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, tokens)
    final, ys = run(rule, rule.init(K, V), low, chunk=8)
    assert ys.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(final.S)} == {jnp.dtype("float32")}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, low)
    expected, answers = run(rule, rule.init(K, V), wide, chunk=8)
    jax.tree.map(assert_close, final.S, expected.S)
    assert_close(ys, answers, "bfloat16")


@pytest.mark.parametrize(
    "make,error,message",
    [
        (lambda: Online(batch=0), ValueError, "batch is 0; it must be at least 1"),
        (lambda: Online().init(2, 2, W1_0=jnp.zeros(2)), TypeError, "got \\['W1_0'\\]"),
        (
            lambda: Online(memory=memories.ResidualNorm()).init(2, 3),
            ValueError,
            "vectors of one size",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
