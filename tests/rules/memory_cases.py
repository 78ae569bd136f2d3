"""Examples of linear attention and the delta rules, run by the library and by the reference."""

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
