"""Linear attention, the delta rule and its gated form against float64 NumPy loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from fastweights.rules import Delta, GatedDelta, LinearAttention, run
from rules import memory_reference as reference

RULES = [LinearAttention(), Delta(), GatedDelta()]
K, V = 6, 5

every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def example(rule, seed, length, size=(K, V), **given):
    """A float32-valued start, tokens and output weights in float64; `given` replaces slots."""
    rng = np.random.default_rng([seed, length])
    slots = {
        "q": rng.normal(size=(length, size[0])),
        "k": unit(rng.normal(size=(length, size[0]))),
        "v": rng.normal(size=(length, size[1])),
        "beta": rng.uniform(size=length),
        "g": -rng.exponential(size=length) * rng.choice([1e-3, 0.1, 3.0], size=length),
    }
    tokens = {name: given.get(name, slots[name]) for name in rule.slots}
    start, d_S, d_ys = (
        rng.normal(size=size),
        rng.normal(size=size),
        rng.normal(size=(length, size[1])),
    )
    as_float32 = lambda x: np.asarray(x, np.float32).astype(np.float64)
    return jax.tree.map(as_float32, {"S": start, "tokens": tokens, "d_S": d_S, "d_ys": d_ys})


@functools.cache
def program(rule, chunk):
    """Values and gradients of a batch of rows."""

    def value(S, tokens, d_S, d_ys, segments):
        state = rule.init(*S.shape)._replace(S=S)
        final, ys = run(rule, state, rule.token(**tokens), chunk=chunk, segment_ids=segments)
        return jnp.sum(ys * d_ys) + jnp.sum(final.S * d_S), (ys, final.S)

    return jax.jit(jax.vmap(jax.value_and_grad(value, argnums=(0, 1), has_aux=True)))


def outcome(rule, case, segments=None, chunk=None, dtype=jnp.float32):
    """Outputs, the final S, and gradients to the start and every slot, of a batch of rows."""
    case = jax.tree.map(lambda x: jnp.asarray(x, dtype), case)
    arguments = (case["S"], case["tokens"], case["d_S"], case["d_ys"], segments)
    (_, (ys, final)), (d_S, d_tokens) = program(rule, chunk)(*arguments)
    return {"y": ys, "S": final} | {f"d{name}": d for name, d in (d_tokens | {"S": d_S}).items()}


def expected(rule, case, segments=None):
    """The same from the equations, row by row."""
    rows = []
    for row in range(len(case["S"])):
        one = jax.tree.map(lambda x, r=row: x[r], case)
        ids = np.ones(len(one["d_ys"]), int) if segments is None else segments[row]
        slots = {"beta": None, "g": None} | one["tokens"]
        ys, final, grads = reference.run(
            one["S"], **slots, segments=ids, d_ys=one["d_ys"], d_S=one["d_S"]
        )
        kept = {f"d{name}": grads[name] for name in (*rule.slots, "S")}
        rows.append({"y": ys, "S": final} | kept)
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def stack(*cases):
    return jax.tree.map(lambda *x: np.stack(x), *cases)


def agree(actual, wanted, dtype="float32"):
    """Every leaf, row by row."""
    for name, rows in wanted.items():
        for row, (a, e) in enumerate(zip(actual[name], rows, strict=True)):
            assert_close(a, e, dtype, f"{name} of row {row}")


def check(rule, case, segments=None, chunk=64):
    """Chunks and token scan against the equations, and against each other."""
    wanted = expected(rule, case, segments)
    scanned = outcome(rule, case, segments)
    chunked = outcome(rule, case, segments, chunk)
    agree(scanned, wanted)
    agree(chunked, wanted)
    agree(chunked, jax.tree.map(np.asarray, scanned))


@every_rule
@pytest.mark.parametrize("length", [1, 7, 63, 65, 129])
def test_chunks_equal_the_scan_and_the_equations(rule, length):
    """Outputs, final state and every gradient, from random starts, for odd lengths."""
    check(rule, stack(*(example(rule, seed, length) for seed in range(4))))


@every_rule
def test_long_sequences(rule):
    """2,048 tokens, 32 chunks."""
    check(rule, stack(*(example(rule, seed, 2048, (16, 8)) for seed in range(2))))


@every_rule
@pytest.mark.parametrize("chunk", [None, 16])
def test_float64_equals_the_equations(rule, chunk):
    case = stack(*(example(rule, seed, 50) for seed in range(2)))
    with jax.enable_x64(True):
        agree(outcome(rule, case, None, chunk, jnp.float64), expected(rule, case), "float64")


def extremes(length):
    """Slots at the ends of their ranges, alone and mixed: rows of one batch."""
    turn, first, half = (
        np.arange(length) % 4,
        np.arange(length) == 0,
        np.arange(length) < length // 2,
    )
    rng = np.random.default_rng(0)
    equal = np.repeat(unit(rng.normal(size=(1, K))), length, 0)
    close = unit(equal + 0.05 * rng.normal(size=(length, K)))
    ones, zeros = np.ones(length), np.zeros(length)
    return {
        "all forgotten": {"g": -20 * ones},
        "forgotten, then kept": {"g": np.where(half, -20.0, -1e-3)},
        "kept, then forgotten": {"g": np.where(half, 0.0, -20.0)},
        "nothing forgotten": {"g": zeros, "beta": ones},
        "gates in turn": {
            "g": np.choose(turn, [-20.0, 0.0, -1.0, -0.01]),
            "beta": np.choose(turn, [1.0, 0.0, 1.0, 0.5]),
        },
        "no write": {"g": zeros, "beta": zeros},
        "equal keys": {"k": equal, "g": zeros, "beta": ones},
        "close keys": {"k": close, "g": zeros, "beta": ones},
        "equal keys, gates in turn": {"k": equal, "g": np.choose(turn, [-20.0, 0.0, -1.0, -0.01])},
        "near reflections": {"g": zeros, "beta": 1.9 * ones},
        "no keys": {"k": 0 * equal, "q": 0 * equal},
        "one write": {"k": np.where(first[:, None], equal, 0)},
    }


@every_rule
@pytest.mark.parametrize("length", [64, 150])
def test_extreme_gates_and_keys(rule, length):
    """Log decays of -20 and 0, write strengths of 0, 1 and 1.9, equal and nearly equal keys."""
    check(rule, stack(*(example(rule, 3, length, **row) for row in extremes(length).values())))


def test_a_gate_of_minus_infinity_forgets_all():
    case = stack(example(GatedDelta(), 0, 70))
    case["tokens"]["g"][0, [0, 30, 31, 66]] = -np.inf
    chunked, scanned = (outcome(GatedDelta(), case, None, chunk) for chunk in (64, None))
    agree(chunked, jax.tree.map(np.asarray, scanned))
    alone = jax.tree.map(lambda x: x[:, 66:] if x.shape[1] == 70 else 0 * x, case)
    assert_close(chunked["S"], expected(GatedDelta(), alone | {"d_S": case["d_S"]})["S"])


def packed_rows():
    """Rows of 150 tokens, as `(document, length)`; document 0 is padding. Chunks are of 64."""
    rng = np.random.default_rng(1)
    cuts = np.sort(rng.choice(np.arange(1, 150), 12, replace=False))
    pieces = np.diff([0, *cuts, 150])
    return [
        [(1, 150)],
        [(1, 64), (2, 64), (3, 22)],
        [(1, 30), (2, 70), (3, 40), (0, 10)],
        [(1, 10), (0, 5), (2, 1), (3, 1), (4, 20), (0, 90), (5, 23)],
        [(0, 70), (1, 20), (0, 3), (2, 57)],
        [(1, 20), (0, 50), (1, 80)],
        [(1, 63), (2, 2), (3, 62), (4, 23)],
        [(0, 150)],
        [(i + 1, int(n)) for i, n in enumerate(pieces)],
    ]


def segment_ids(row):
    return np.repeat(*np.transpose(row))


@every_rule
def test_packed_documents_equal_the_equations(rule):
    """Documents that end inside a chunk, several in one, padding between and at the end."""
    segments = np.stack([segment_ids(row) for row in packed_rows()])
    rows = [example(rule, seed, 150) for seed in range(len(segments) - 1)]
    # the last row has hard gates as well
    rows.append(example(rule, 9, 150, **extremes(150)["gates in turn"]))
    check(rule, stack(*rows), segments)


@every_rule
def test_packed_documents_equal_each_document_alone(rule):
    row = [(1, 20), (0, 5), (2, 20), (3, 20), (4, 20), (0, 40), (5, 20), (6, 20)]
    case = example(rule, 5, 165)
    together = outcome(rule, stack(case), segment_ids(row)[None], 64)
    at = 0
    for document, length in row:
        piece = lambda x, a=at, n=length: x[a : a + n]
        if document:
            start = case["S"] if document == 1 else 0 * case["S"]
            alone = {"S": start, "tokens": jax.tree.map(piece, case["tokens"])}
            # the final state is that of the last document
            alone |= {"d_S": case["d_S"] * (at + length == 165), "d_ys": piece(case["d_ys"])}
            result = outcome(rule, stack(alone), None, 64)
            for name in ("y", *(f"d{slot}" for slot in rule.slots)):
                assert_close(piece(together[name][0]), result[name][0], what=f"{name}, {document}")
        at += length
    assert_close(together["S"], result["S"])


@every_rule
def test_starts_of_documents_are_arguments_of_a_chunk(rule):
    """A document may start at the first token of a chunk, and at every token."""
    case = example(rule, 2, 9)
    state = rule.init(K, V)._replace(S=jnp.asarray(case["S"], jnp.float32))
    tokens = rule.token(**jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), case["tokens"]))
    for starts in (np.arange(9) == 0, np.arange(9) % 4 == 0, np.ones(9, bool)):
        final, ys = rule.chunk(state, tokens, jnp.asarray(starts))
        ids, fresh = 1 + np.cumsum(starts), case | {"S": 0 * case["S"]}
        wanted = expected(rule, stack(fresh), ids[None])
        assert_close(ys, wanted["y"][0])
        assert_close(final.S, wanted["S"][0])


@every_rule
def test_masked_tokens_leave_the_state_bitwise_unchanged(rule):
    """Whatever they hold, and padding behind a sequence leaves its final state as it is."""
    rng = np.random.default_rng(0)
    start = rule.init(K, V)._replace(S=jnp.asarray(rng.normal(size=(K, V)), jnp.float32))
    for value in (1e3, -np.inf, np.nan):
        sizes = {"K": (9, K), "V": (9, V), "": (9,)}
        tokens = rule.token(**{n: jnp.full(sizes[s.axis], value) for n, s in rule.slots.items()})
        nothing = rule.mask(tokens, jnp.zeros(9, bool))
        for chunk in (None, 4, 16):
            final, ys = run(rule, start, nothing, chunk=chunk)
            np.testing.assert_array_equal(final.S, start.S)
            assert np.isfinite(ys).all()


@every_rule
@pytest.mark.parametrize("chunk", [None, 16])
def test_bfloat16_tokens(rule, chunk):
    """Outputs have the dtype of q; the state stays float32 and is that of the rounded tokens."""
    case = example(rule, 0, 50)
    low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), case["tokens"])
    state = rule.init(K, V)._replace(S=jnp.asarray(case["S"], jnp.float32))
    final, ys = run(rule, state, rule.token(**low), chunk=chunk)
    assert final.S.dtype == jnp.float32 and ys.dtype == jnp.bfloat16
    case["tokens"] = jax.tree.map(lambda x: np.asarray(x, np.float64), low)
    wanted = expected(rule, stack(case))
    assert_close(final.S, wanted["S"][0])
    assert_close(ys, wanted["y"][0], "bfloat16")


@every_rule
def test_queries_and_states_of_any_batch(rule):
    """Two levels of vmap, heads in a batch, as a layer has; each is what it is alone."""
    rows = [example(rule, seed, 70) for seed in range(6)]
    case = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), stack(*rows))
    grid = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), case)

    def one(case):
        state = rule.init(K, V)._replace(S=case["S"])
        final, ys = run(rule, state, rule.token(**case["tokens"]), chunk=64)
        return jnp.sum(ys * case["d_ys"]) + jnp.sum(final.S * case["d_S"])

    grads = jax.jit(jax.vmap(jax.vmap(jax.grad(one))))(grid)
    wanted = expected(rule, stack(*rows))
    for name in rule.slots:
        flat = np.reshape(grads["tokens"][name], wanted[f"d{name}"].shape)
        for row in range(6):
            assert_close(flat[row], wanted[f"d{name}"][row], what=name)


def test_a_second_write_under_a_key_adds_or_replaces():
    """Linear attention answers with the sum, the delta rules with the last value."""
    k = np.eye(K)[[0, 1, 0]]
    v = np.random.default_rng(0).normal(size=(3, V))
    slots = {"q": k, "k": k, "v": v, "beta": np.ones(3), "g": np.zeros(3)}
    for rule, answer in zip(RULES, (v[0] + v[2], v[2], v[2]), strict=True):
        tokens = rule.token(**{n: jnp.asarray(slots[n], jnp.float32) for n in rule.slots})
        for chunk in (None, 4):
            _, ys = run(rule, rule.init(K, V), tokens, chunk=chunk)
            assert_close(ys[2], answer)
            assert_close(ys[1], v[1])


def test_the_backward_pass_of_the_reference_is_the_slope_of_its_forward_pass():
    """The gradients by hand against float64 autodiff of the token scan, for a packed row."""
    for rule in RULES:
        case = stack(example(rule, 4, 150))
        segments = segment_ids(packed_rows()[3])[None]
        with jax.enable_x64(True):
            actual = outcome(rule, case, segments, None, jnp.float64)
        agree(actual, expected(rule, case, segments), "float64")


def test_higher_derivatives_and_forward_mode():
    """Forward over reverse equals that of the token scan."""
    rule = GatedDelta()
    with jax.enable_x64(True):
        case = jax.tree.map(jnp.asarray, example(rule, 0, 20))
        tangent = jax.tree.map(jnp.sin, case)

        def derivatives(chunk):
            def value(case):
                state = rule.init(K, V)._replace(S=case["S"])
                final, ys = run(rule, state, rule.token(**case["tokens"]), chunk=chunk)
                return jnp.sum(jnp.sin(ys)) + jnp.sum(final.S**3)

            return jax.jit(lambda c, t: jax.jvp(jax.grad(value), (c,), (t,)))(case, tangent)

        for a, b in zip(*map(jax.tree.leaves, map(derivatives, (7, None))), strict=True):
            assert_close(a, b, "float64")
