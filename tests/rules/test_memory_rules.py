"""Linear attention, the delta rule and its gated form against float64 NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from fastweights.rules import GatedDelta, run
from rules.memory_cases import (
    RULES,
    K,
    V,
    agree,
    check,
    every_rule,
    example,
    expected,
    extremes,
    outcome,
    packed_rows,
    segment_ids,
    stack,
)


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
