"""In-Place TTT: its forms against each other, a NumPy loop, and the gradient of the inner loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from fastweights.rules import InPlace, chunk_scan, run, scan
from fastweights.rules.in_place import Token, attention, inner_loss
from fastweights.rules.losses import squared

D, F = 3, 5


def problem(seed, length):
    """Slow weights, a state to start from, keys, values, and cotangents of outputs and state."""
    rng = np.random.default_rng(seed)
    w0, start = rng.normal(size=(2, D, F))
    z, v = rng.normal(size=(length, F)), rng.normal(size=(length, D))
    return (w0, start, z, v), (rng.normal(size=(length, D)), rng.normal(size=(D, F)))


def shortened(delta, limit):
    norm = np.sqrt((delta**2).sum())
    return delta * min(1.0, limit / norm) if norm > 0 else delta


def read_by(xp, w0, W, cap=None, row_norm=False):
    """The matrix that a token reads; `xp` is NumPy or jax.numpy."""
    if cap is not None and (norm := np.linalg.norm(W - w0)) > cap * np.linalg.norm(w0):
        W = w0 + (W - w0) * cap * np.linalg.norm(w0) / norm
    if row_norm:
        rows = lambda x: xp.sqrt(xp.sum(x**2, 1, keepdims=True))
        W = W * rows(w0) / rows(W)
    return W


def loop(w0, start, z, v, *, chunk, lr, segments, limit=np.inf, decay=1.0, residual=False, **reads):
    """The definition, a token at a time: what it reads was written by earlier chunks of its own."""
    ids = np.ones(len(z), int) if segments is None else np.asarray(segments)
    documents = [i for i in ids if i > 0]

    def weights(document, chunks):
        W = start if document == documents[0] else w0
        for j in range(chunks):
            own = [s for s in range(j * chunk, j * chunk + chunk) if ids[s] == document]
            said = {s: decay * (W - w0) @ z[s] if residual else 0 for s in own}
            write = lr * sum((np.outer(v[s] - said[s], z[s]) for s in own), 0 * w0)
            if residual and own:
                write = write / sum(z[s] @ z[s] for s in own)
            write = shortened(write, limit)
            W = w0 + decay * (W - w0) + write
        return W

    look = lambda W: read_by(np, w0, W, **reads)
    y = [look(weights(i, t // chunk)) @ z[t] if i else w0 @ z[t] for t, i in enumerate(ids)]
    return np.array(y), weights(documents[-1], len(z) // chunk)


def read_jax(w0, W, cap=None, row_norm=False):
    """As `read_by`, traced."""
    if cap is not None:
        square, most = jnp.sum((W - w0) ** 2), cap * jnp.sqrt(jnp.sum(w0**2))
        long = square > most**2
        W = jnp.where(long, w0 + (W - w0) * most / jnp.sqrt(jnp.where(long, square, 1)), W)
    return read_by(jnp, w0, W, row_norm=row_norm)


def by_gradient(
    w0, start, z, v, *, chunk, lr, segments, limit=None, decay=1.0, residual=False, **reads
):
    """Each document's chunks in turn, each write a gradient step on the inner loss."""
    ids = np.ones(len(z), int) if segments is None else np.asarray(segments)
    documents = list(dict.fromkeys(i for i in ids.tolist() if i > 0))
    y, W = jnp.where((ids == 0)[:, None], z @ w0.T, 0), start
    look = lambda W: read_jax(w0, W, **reads)
    for document in documents:
        W = start if document == documents[0] else w0
        for first in range(0, len(z), chunk):
            rows = [s for s in range(first, min(first + chunk, len(z))) if ids[s] == document]
            if first + chunk <= len(z):
                after = w0 + decay * (W - w0)
            if rows:
                y = y.at[np.array(rows)].set(z[np.array(rows)] @ look(W).T)
            if rows and first + chunk <= len(z):
                own, pulled = z[np.array(rows)], v[np.array(rows)]
                if residual:  # the squared loss of what D alone says
                    square = lambda D, own=own, pulled=pulled: (
                        0.5 * jnp.sum((own @ D.T - pulled) ** 2)
                    )
                    step = -lr * jax.grad(square)(decay * (W - w0)) / jnp.sum(own**2)
                else:
                    step = -lr * jax.grad(inner_loss)(W, own, pulled)
                norm = jnp.sqrt(jnp.sum(step**2))
                after += step if limit is None else step * jnp.minimum(1.0, limit / norm)
            if first + chunk <= len(z):
                W = after
    return y, W


def one_document(length):
    return None


def two(length):
    """The border is inside a chunk for most chunk sizes."""
    return jnp.asarray([4] * (length // 2 + 1) + [9] * (length - length // 2 - 1))


def many(length):
    """A short document in the middle of a chunk, padding before, between and after."""
    ids = [0] + [1] * (length // 3) + [2, 2, 0, 3] + [5] * length
    return jnp.asarray([*ids[: length - 2], 0, 0])


def late(length):
    """The last document begins in the last chunk, which padding ends."""
    return jnp.asarray([1] * (length - 2) + [2, 0])


CASES = [  # length, chunk, documents, clip, seed
    (1, 4, one_document, {}, 0),
    (13, 4, one_document, {}, 1),
    (12, 4, one_document, {}, 2),
    (7, 1, one_document, {}, 3),
    (8, 8, one_document, {}, 4),
    (13, 4, one_document, {"clip": 0.7}, 5),
    (12, 4, one_document, {"clip": 0.9, "clip_relative": True}, 6),
    (13, 4, two, {}, 7),
    (20, 4, many, {}, 8),
    (19, 5, many, {}, 9),
    (9, 9, two, {}, 10),
    (16, 3, many, {"clip": 0.3, "clip_relative": True}, 11),
    (15, 5, two, {"clip": 0.8, "clip_after_lr": False}, 12),
    (7, 4, two, {}, 13),
    (3, 4, late, {}, 14),
    (11, 4, late, {"clip": 0.7, "clip_relative": True}, 15),
    (13, 4, one_document, {"decay": 0.9}, 16),
    (12, 4, one_document, {"decay": 0.5}, 17),
    (3, 4, one_document, {"decay": 0.5}, 18),
    (13, 1, one_document, {"decay": 0.0}, 19),
    (12, 4, one_document, {"decay": 0.8, "clip": 0.9, "clip_relative": True}, 20),
    (20, 4, many, {"decay": 0.7}, 21),
    (16, 3, many, {"decay": 0.7, "clip": 0.3}, 22),
    (11, 4, late, {"decay": 0.6}, 23),
    (13, 4, one_document, {"cap": 0.5}, 24),
    (12, 1, one_document, {"cap": 0.3, "clip": 0.1, "clip_relative": True}, 25),
    (12, 4, one_document, {"row_norm": True}, 26),
    (7, 3, one_document, {"row_norm": True, "clip": 0.5, "cap": 0.4}, 27),
    (20, 4, many, {"cap": 0.5}, 28),
    (19, 5, many, {"row_norm": True, "clip": 0.7, "clip_relative": True}, 29),
    (22, 3, one_document, {"cap": 0.4, "decay": 0.8}, 30),
    (23, 2, two, {"cap": 0.6, "row_norm": True, "decay": 0.5}, 31),
    (11, 4, late, {"cap": 0.2}, 32),
    (17, 1, one_document, {"row_norm": True, "decay": 0.9}, 33),
    (3, 4, late, {"row_norm": True}, 34),
    (13, 4, one_document, {"residual": True}, 35),
    (12, 4, one_document, {"residual": True, "clip": 0.1, "decay": 0.8}, 36),
    (7, 1, one_document, {"residual": True}, 37),
    (20, 4, many, {"residual": True, "cap": 0.1}, 38),
    (11, 4, late, {"residual": True, "row_norm": True, "decay": 0.6}, 39),
    (23, 3, two, {"residual": True}, 40),
]
#: options that by_gradient and loop take as they are
SAME = ("decay", "cap", "row_norm", "residual")
LR = 0.4


def limit_of(w0, clip=np.inf, clip_relative=False, clip_after_lr=True, **_):
    xp = np if isinstance(w0, np.ndarray) else jnp
    return clip * (xp.sqrt(xp.sum(w0**2)) if clip_relative else 1.0) * (1 if clip_after_lr else LR)


def outcome(form, inputs, cotangents):
    """Outputs, final state, and the gradients of their inner product with `cotangents`."""
    cotangents = [jnp.asarray(c) for c in cotangents]

    def value(*inputs):
        y, final = form(*inputs)
        return jnp.sum(y * cotangents[0]) + jnp.sum(final * cotangents[1]), (y, final)

    derive = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3), has_aux=True))
    (_, (y, final)), grads = derive(*map(jnp.asarray, inputs))
    return {"y": y, "final": final} | dict(zip(("dw0", "dstart", "dz", "dv"), grads, strict=True))


@pytest.mark.parametrize("length,chunk,documents,clip,seed", CASES)
def test_chunk_scan_is_the_definition_in_float64(length, chunk, documents, clip, seed):
    """Outputs, final state and every gradient: a NumPy loop, its slope, and autodiff's loss."""
    inputs, cotangents = problem(seed, length)
    segments = documents(length)
    how = {"chunk": chunk, "lr": LR, "segments": segments}
    how |= {name: clip[name] for name in SAME if name in clip}
    with jax.enable_x64(True):
        ours = outcome(
            lambda w0, start, z, v: chunk_scan(w0, z, v, start=start, **how | clip),
            inputs,
            cotangents,
        )
        theirs = outcome(
            lambda w0, *rest: by_gradient(
                w0, *rest, **how, limit=limit_of(w0, **clip) if "clip" in clip else None
            ),
            inputs,
            cotangents,
        )
    plain = lambda w0, *rest: loop(w0, *rest, **how, limit=limit_of(w0, **clip))
    y, final = plain(*inputs)
    assert_close(ours["y"], y, "float64", "y")
    assert_close(ours["final"], final, "float64", "final")
    for name in ours:
        assert_close(ours[name], theirs[name], "float64", name)
    # the same gradients as the slope of the NumPy loop
    for i, name in enumerate(("dw0", "dstart", "dz", "dv")):
        direction = np.random.default_rng(seed).normal(size=inputs[i].shape)
        ends = []
        for sign in (1, -1):
            moved = [x + sign * 1e-6 * direction if k == i else x for k, x in enumerate(inputs)]
            ends.append(sum(np.sum(a * c) for a, c in zip(plain(*moved), cotangents, strict=True)))
        slope = (ends[0] - ends[1]) / 2e-6
        assert slope == pytest.approx(
            np.sum(np.asarray(ours[name]) * direction), rel=1e-6, abs=1e-7
        )


LEARNED = [
    (13, 4, one_document, {"decay": 0.9}, 16),
    (12, 4, one_document, {"decay": 0.5, "clip": 0.9}, 17),
    (3, 4, one_document, {"decay": 0.5}, 18),
    (20, 4, many, {"decay": 0.7}, 21),
    (16, 3, many, {"decay": 0.7, "clip": 0.3}, 22),
    (11, 4, late, {"decay": 0.6}, 23),
    (12, 4, late, {"decay": 0.6}, 24),
    (22, 3, one_document, {"cap": 0.4, "decay": 0.8}, 30),
    (23, 2, two, {"residual": True, "decay": 0.8}, 31),
]


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("length,chunk,documents,options,seed", LEARNED)
def test_a_learned_decay_has_every_gradient_of_autodiff(
    length, chunk, documents, options, seed, final
):
    """From a start with writes, to outputs and, if they are wanted, the last weights."""
    inputs, (dy, d_final) = problem(seed, length)
    how = {"chunk": chunk, "lr": LR, "segments": documents(length)}
    limit = {"limit": options["clip"]} if "clip" in options else {}
    reads = {name: options[name] for name in ("cap", "residual") if name in options}

    def ours(decay, w0, start, z, v):
        more = {name: x for name, x in options.items() if name != "decay"}
        return chunk_scan(w0, z, v, start=start, decay=decay, final=final, **how, **more)

    def theirs(decay, *inputs):
        y, last = by_gradient(*inputs, decay=decay, **how, **limit, **reads)
        return y, last if final else None

    found = []
    with jax.enable_x64(True):
        for form in (ours, theirs):

            def value(*given, form=form):
                y, last = form(*given)
                return jnp.sum(y * dy) + (jnp.sum(last * d_final) if final else 0)

            given = [jnp.asarray(options["decay"]), *map(jnp.asarray, inputs)]
            found.append(jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3, 4)))(*given))
    (one, slopes), (other, expected) = found
    assert_close(one, other, "float64")
    for a, b, name in zip(slopes, expected, ("decay", "w0", "start", "z", "v"), strict=True):
        assert_close(a, b, "float64", name)
    assert (float(slopes[0]) != 0) == (length > chunk)


def test_the_clipped_cases_clip():
    """A case whose writes were all short, or all long, would show nothing."""
    for length, chunk, documents, clip, seed in CASES:
        if "clip" in clip:
            (w0, start, z, v), _ = problem(seed, length)
            how = {"chunk": chunk, "lr": LR, "segments": documents(length)}
            how |= {name: clip[name] for name in SAME if name in clip}
            free, _ = loop(w0, start, z, v, **how)
            clipped, _ = loop(w0, start, z, v, **how, limit=limit_of(w0, **clip))
            assert np.abs(free - clipped).max() > (0.01 if "residual" in clip else 0.1)


def test_the_capped_cases_are_capped():
    for length, chunk, documents, options, seed in CASES:
        if "cap" in options:
            inputs, _ = problem(seed, length)
            how = {"chunk": chunk, "lr": LR, "segments": documents(length)}
            how |= {"limit": limit_of(inputs[0], **options)}
            how |= {name: options[name] for name in SAME if name in options}
            assert (
                np.abs(loop(*inputs, **how)[0] - loop(*inputs, **how | {"cap": None})[0]).max()
                > 0.1
            )


def test_the_residual_takes_off_what_was_written():
    """A case whose second write did not depend on the first would show nothing."""
    cases = [case for case in CASES if "residual" in case[3]]
    assert len(cases) >= 5
    for length, chunk, documents, options, seed in cases:
        (w0, start, z, v), _ = problem(seed, length)
        how = {"chunk": chunk, "lr": LR, "segments": documents(length)}
        how |= {name: options[name] for name in SAME if name in options}
        free, _ = loop(w0, start, z, v, **how | {"residual": False})
        assert np.abs(free - loop(w0, start, z, v, **how)[0]).max() > 0.01


def test_a_residual_write_is_a_step_on_the_squared_loss():
    """By the general form, with unit keys and the read of W0 added to the targets."""
    (w0, _, z, v), _ = problem(3, 14)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    w0, z, v = (jnp.asarray(x, jnp.float32) for x in (w0, z, v))
    y, final = chunk_scan(w0, z, v, chunk=4, lr=LR, residual=True)
    general = InPlace(lr=LR / 4, chunk_size=4, loss=squared)
    state, ys = run(general, general.init(w0), Token(z, v + z @ w0.T))
    assert_close(ys, y)
    assert_close(state.weights, final)


@pytest.mark.parametrize("decay", [1.0, 0.9, 0.5])
def test_a_residual_write_is_stable_for_a_rate_below_two(decay):
    """Equal unit keys, one a chunk: the error is multiplied by 1 - η after forgetting."""
    z, v = np.tile(np.eye(1, F), (200, 1)), np.tile(np.ones((1, D)), (200, 1))
    how = {"chunk": 1, "lr": 1.9, "residual": True, "decay": decay}
    final = chunk_scan(jnp.zeros((D, F)), *map(jnp.float32, (z, v)), **how)[1]
    # D = λ D + η (1 - λ D)
    assert_close(final[:, 0], np.full(D, 1.9 / (1 + 0.9 * decay)))


def test_keys_of_almost_no_size_have_a_finite_gradient():
    (w0, _, z, v), _ = problem(0, 8)
    for size in (1e-6, 1e-10, 1e-20, 0.0):
        given = [jnp.asarray(x, jnp.float32) for x in (w0, size * z, v)]
        value = lambda w0, z, v: jnp.sum(chunk_scan(w0, z, v, chunk=2, lr=1.0, residual=True)[0])
        for grad in jax.grad(value, (0, 1, 2))(*given):
            assert np.isfinite(grad).all()


def test_residual_writes_of_equal_keys_do_not_grow():
    """64 chunks with the same keys and targets: D says the target, where plain writes say 64."""
    z, v = np.tile(np.eye(2, F), (64, 1)), np.tile(np.ones((2, D)), (64, 1))
    sums = {
        residual: chunk_scan(
            jnp.zeros((D, F)), *map(jnp.float32, (z, v)), chunk=2, lr=1.0, residual=residual
        )[1]
        for residual in (False, True)
    }
    assert_close(sums[False][:, :2], np.full((D, 2), 64.0))
    assert_close(sums[True][:, :2], np.ones((D, 2)), "float32")


@pytest.mark.parametrize("decay", [1.0, 0.8])
@pytest.mark.parametrize("seed,length,chunk", [(0, 13, 4), (1, 12, 4), (2, 3, 5)])
def test_attention_form_is_the_scan(seed, length, chunk, decay):
    """Outputs and every gradient, in float64."""
    (w0, _, z, v), (dy, _) = problem(seed, length)
    with jax.enable_x64(True):
        results = []
        for form in (lambda *a, **k: chunk_scan(*a, **k, final=False)[0], attention):
            how = {"chunk": chunk, "lr": LR, "decay": decay}
            value = lambda w0, z, v, form=form, how=how: jnp.sum(dy * form(w0, z, v, **how))
            results.append(
                jax.value_and_grad(value, argnums=(0, 1, 2))(*map(jnp.asarray, (w0, z, v)))
            )
        jax.tree.map(lambda a, b: assert_close(a, b, "float64"), *results)


@pytest.mark.parametrize(
    "clip",
    [
        {},
        {"clip": 0.5},
        {"clip": 0.1, "clip_relative": True},
        {"clip": 0.5, "decay": 0.7},
        {"cap": 0.2, "spectral": True},
        {"row_norm": True, "decay": 0.7},
        {"residual": True, "decay": 0.7, "clip": 0.1},
    ],
)
@pytest.mark.parametrize("length,chunk", [(13, 4), (6, 1), (3, 5)])
def test_the_rule_is_the_scan(length, chunk, clip):
    """Token by token, in odd chunks, and over the whole: outputs, weights, and what is pending."""
    (w0, _, z, v), _ = problem(length, length)
    w0, z, v = (jnp.asarray(x, jnp.float32) for x in (w0, z, v))
    rule = InPlace(lr=LR, chunk_size=chunk, **clip)
    y, final = chunk_scan(w0, z, v, chunk=chunk, lr=LR, **clip)
    for drive in (scan, lambda *a: run(*a, chunk=5)):
        state, ys = drive(rule, rule.init(w0), Token(z, v))
        assert_close(ys, y)
        assert_close(state.weights, final)
        rest = length // chunk * chunk
        assert state.count == length - rest
        pulled = v - z @ (rule.decay * (final - w0)).T if rule.residual else v
        assert_close(state.pending, LR * pulled[rest:].T @ z[rest:])


def test_a_sequence_can_go_on_from_the_state_of_its_first_part():
    """Whole chunks, then the rest from there: outputs, state and gradients of one scan.

    It is what a row that is cut over devices rests on.
    """
    (w0, _, z, v), cotangents = problem(3, 22)
    how = {"chunk": 4, "lr": LR}

    def split(w0, start, z, v, ids):
        # the document that goes on starts from the state; a new one would start from w0
        cut = lambda x, s: None if x is None else x[s]
        a, b = slice(0, 12), slice(12, 22)
        y1, middle = chunk_scan(w0, z[a], v[a], start=start, segments=cut(ids, a), **how)
        y2, final = chunk_scan(w0, z[b], v[b], start=middle, segments=cut(ids, b), **how)
        return jnp.concatenate([y1, y2]), final

    def whole(w0, start, z, v, ids):
        return chunk_scan(w0, z, v, start=start, segments=ids, **how)

    with jax.enable_x64(True):
        for ids in (None, jnp.asarray([1] * 9 + [2] * 9 + [3] * 4)):
            forms = [lambda *a, f=f, ids=ids: f(*a, ids) for f in (whole, split)]
            one, two = (outcome(form, (w0, w0 + 1, z, v), cotangents) for form in forms)
            for name in one:
                assert_close(two[name], one[name], "float64", name)


@pytest.mark.parametrize(
    "clip",
    [
        {},
        {"clip": 0.5},
        {"decay": 0.9},
        {"decay": 0.3},
        {"cap": 0.1},
        {"row_norm": True},
        {"spectral": True},
        {"cap": 0.1, "decay": 0.3},
        {"residual": True},
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_walking_back_keeps_float32_gradients(packed, clip):
    """64 chunks: the weights that were subtracted back are those that were read, to rounding."""
    length = 512
    (w0, start, z, v), cotangents = problem(0, length)
    inputs = (w0, start, z, 0.1 * v)
    ids = jnp.repeat(jnp.asarray([1, 2]), length // 2) if packed else None
    form = lambda w0, start, z, v: chunk_scan(
        w0, z, v, chunk=8, lr=LR, start=start, segments=ids, **clip
    )
    single = outcome(form, [np.float32(x) for x in inputs], [np.float32(c) for c in cotangents])
    with jax.enable_x64(True):
        double = outcome(form, inputs, cotangents)
    for name in single:
        assert single[name].dtype == jnp.float32
        expected = np.asarray(double[name])
        worst = np.abs(np.asarray(single[name], np.float64) - expected).max()
        assert worst <= 1e-5 * np.abs(expected).max(), name


def test_bfloat16_products_and_a_float32_state():
    """Writes too small to change a bfloat16 weight add up."""
    length, chunk = 64, 2
    (w0, _, z, v), _ = problem(1, length)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (w0, z, v)]
    y, final = chunk_scan(*low, chunk=chunk, lr=1e-3)
    assert y.dtype == jnp.bfloat16 and final.dtype == jnp.float32
    w, z, v = (np.asarray(x, np.float64) for x in low)
    expected, W = loop(w, w, z, v, chunk=chunk, lr=1e-3, segments=None)
    assert_close(y, expected, "bfloat16")
    assert_close(final - w, W - w, "float32")
    grads = jax.grad(lambda w: jnp.sum(chunk_scan(w, *low[1:], chunk=chunk, lr=1e-3)[0]))(low[0])
    assert grads.dtype == jnp.bfloat16


@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_the_attention_form_keeps_bfloat16(decay):
    (w0, _, z, v), _ = problem(1, 12)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (w0, z, v)]
    y = attention(*low, chunk=3, lr=0.1, decay=decay)
    assert y.dtype == jnp.bfloat16
    wide = [x.astype(jnp.float32) for x in low]
    assert_close(y, attention(*wide, chunk=3, lr=0.1, decay=decay), "bfloat16")


def test_a_write_of_nothing_is_not_divided_by_its_size():
    """Zeros and a limit: finite gradients."""
    zeros = jnp.zeros((D, F)), jnp.zeros((6, F)), jnp.zeros((6, D))
    how = {"chunk": 2, "lr": 1.0, "clip": 1.0, "clip_relative": True}
    for ids, more in [(None, {}), (jnp.zeros(6, int), {}), (None, {"residual": True})]:
        value = lambda *a, ids=ids, more=more: jnp.sum(
            chunk_scan(*a, **how | more, segments=ids)[0]
        )
        for grad in jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*zeros):
            assert np.isfinite(grad).all()


@pytest.mark.parametrize("lr,clip_after_lr", [(0.0, False), (0.0, True), (1e-3, False)])
def test_a_write_within_its_limit_has_the_gradient_of_a_free_one(lr, clip_after_lr):
    """With η = 0 the limit on η Σ v zᵀ may be 0 too: nothing is cut, nothing divided by 0."""
    inputs = [jnp.asarray(problem(0, 6)[0][i], jnp.float32) for i in (0, 2, 3)]
    clip = {"clip": 9.0, "clip_relative": True, "clip_after_lr": clip_after_lr}
    for ids in (None, jnp.asarray([1, 1, 1, 2, 2, 2])):
        how = {"chunk": 2, "lr": lr, "segments": ids}
        slopes = []
        for limit in (clip, {}):
            value = lambda *a, more=how | limit: jnp.sum(chunk_scan(*a, **more)[0])
            slopes.append(jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*inputs))
        for clipped, free in zip(*slopes, strict=True):
            assert_close(clipped, free)


def test_a_token_that_is_not_stored_is_not_written():
    """By `write` itself, as by `step`: the state stays to the bit, even before a chunk's last."""
    rule = InPlace(chunk_size=2)
    state, tokens = rule.example(jax.random.key(0), 1)
    token = jax.tree.map(lambda x: x[0], tokens)
    assert state.count == 1  # the next one completes a chunk
    kept = rule.write(state, token._replace(store=jnp.asarray(False)))
    jax.tree.map(np.testing.assert_array_equal, kept, state)
    stored = rule.write(state, token._replace(store=jnp.asarray(True)))
    jax.tree.map(np.testing.assert_array_equal, stored, rule.write(state, Token(token.z, token.v)))
    assert stored.count == 0 and (stored.weights != state.weights).any()


def test_without_the_final_state_there_is_none():
    (w0, _, z, v), _ = problem(1, 12)
    args = [jnp.asarray(x, jnp.float32) for x in (w0, z, v)]
    for ids in (None, jnp.ones(12, int)):
        y, final = chunk_scan(*args, chunk=4, lr=LR, segments=ids, final=False)
        assert final is None
        np.testing.assert_array_equal(y, chunk_scan(*args, chunk=4, lr=LR, segments=ids)[0])


ONES = jnp.ones((2, 2)), jnp.ones((3, 2)), jnp.ones((3, 2))


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: InPlace(chunk_size=0), "chunk_size must be at least 1"),
        (lambda: InPlace(clip=0.0), "clip must be positive"),
        (lambda: InPlace(decay=1.1), "decay must be from 0 to 1"),
        (lambda: InPlace(decay=0.5, loss=inner_loss), "clip, decay, spectral, residual and"),
        (lambda: InPlace(cap=0.0), "cap must be positive"),
        (lambda: InPlace(spectral=True, loss=inner_loss), "go without loss and optimizer"),
        (lambda: InPlace(residual=True, loss=inner_loss), "go without loss and optimizer"),
        (lambda: chunk_scan(*ONES, chunk=0, lr=1.0), "chunk must be at least 1"),
        (lambda: chunk_scan(*ONES, chunk=1, lr=1.0, decay=-0.1), "decay must be from 0 to 1"),
        (
            lambda: chunk_scan(jnp.ones((2, 2)), jnp.ones((3, 2)), jnp.ones((4, 2)), chunk=1, lr=1),
            "one leading time axis",
        ),
        (lambda: chunk_scan(*ONES, segments=jnp.ones(4, int), chunk=1, lr=1), "leading time axis"),
        (lambda: chunk_scan(ONES[0], *jnp.ones((2, 0, 2)), chunk=2, lr=1.0), "at least one token"),
        (lambda: attention(*ONES, chunk=0, lr=1.0), "chunk must be at least 1"),
        (lambda: attention(*ONES, chunk=1, lr=1.0, decay=2.0), "decay must be from 0 to 1"),
        (lambda: attention(*ONES, chunk=-1, lr=1.0), "chunk must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
