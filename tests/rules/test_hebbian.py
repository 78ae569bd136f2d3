"""The Hebbian rule and the fast-weight RNN against float64 NumPy loops written from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from fastweights.nn import FastWeightCell, unroll
from fastweights.nn.recurrent import FastCarry
from fastweights.rules import Form, Hebbian, run, scan
from fastweights.rules.hebbian import History, Matrix, Token
from rules import reference

HIDDEN, FEATURES = 6, 4


def problem(seed, length, past=3, decay=0.9, lr=0.5):
    """Random parameters, inputs, and a past that has written a non-zero matrix."""
    rng = np.random.default_rng(seed)
    p = {
        "W": rng.normal(size=(HIDDEN, HIDDEN)) * 0.4,
        "C": rng.normal(size=(HIDDEN, FEATURES)),
        "gain": rng.uniform(0.5, 1.5, HIDDEN),
        "bias": rng.normal(size=HIDDEN) * 0.3,
    }
    old = rng.uniform(0, 1, (past, HIDDEN))
    A = sum(lr * decay ** (past - 1 - i) * np.outer(h, h) for i, h in enumerate(old))
    d_hs, d_A = rng.normal(size=(length, HIDDEN)), rng.normal(size=(HIDDEN, HIDDEN))
    return p, rng.normal(size=(length, FEATURES)), old, A + 0 * d_A, old[-1], d_hs, d_A


def cell_of(p, rule, dtype):
    cell = FastWeightCell(FEATURES, HIDDEN, rule, rngs=nnx.Rngs(0))
    cell.recurrent.kernel = nnx.Param(jnp.asarray(p["W"].T, dtype))
    cell.input.kernel = nnx.Param(jnp.asarray(p["C"].T, dtype))
    cell.slow.gain = nnx.Param(jnp.asarray(p["gain"], dtype))
    cell.slow.bias = nnx.Param(jnp.asarray(p["bias"], dtype))
    return cell


def start_of(rule, old, A, length, dtype):
    if rule.choose(HIDDEN, length) is Form.MATRIX:
        return Matrix(jnp.asarray(A, dtype))
    state = rule.init(HIDDEN, length=length + len(old), dtype=dtype)
    for h in old:
        state = rule.write(state, jnp.asarray(h, dtype))
    return state


def carry_of(cell, h, fast):
    """A carry with the cell's own gain and bias."""
    return FastCarry(h, fast._replace(gain=cell.slow.gain[...], bias=cell.slow.bias[...]))


@pytest.mark.parametrize("form", [Form.MATRIX, Form.ATTENTION])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    "length,decay,lr", [(1, 0.9, 0.5), (11, 0.9, 0.5), (7, 0.0, 2.0), (7, 1.0, 0.0)]
)
def test_network_equals_the_paper_in_float64(form, steps, length, decay, lr):
    """Outputs, final fast weights, and gradients to every parameter, input and start."""
    p, xs, old, A0, h0, d_hs, d_A = problem(length + steps, length, decay=decay, lr=lr)
    hs, matrices, tape = reference.forward(p, xs, A0, h0, decay, lr, steps)
    grads, d_xs, d_A0, d_h0 = reference.backward(p, tape, d_hs, d_A, decay, lr)
    with jax.enable_x64(True):
        rule = Hebbian(decay=decay, lr=lr, steps=steps, form=form)
        cell = cell_of(p, rule, jnp.float64)
        fast = start_of(rule, old, A0, length, jnp.float64)

        def value(cell, xs, h0):
            carry, ys = jax.lax.scan(cell.step, carry_of(cell, h0, fast), cell.project(xs))
            A = rule.matrix(carry.fast)
            return jnp.sum(ys * d_hs) + jnp.sum(A * d_A), (ys, A)

        (_, (ys, A)), (d_cell, dx, dh0) = jax.jit(
            jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)
        )(cell, jnp.asarray(xs), jnp.asarray(h0))
        assert_close(ys, hs, "float64", "activities")
        assert_close(A, matrices[-1], "float64", "fast weights")
        assert_close(d_cell.recurrent.kernel[...].T, grads["W"], "float64", "dW")
        assert_close(d_cell.input.kernel[...].T, grads["C"], "float64", "dC")
        assert_close(d_cell.slow.gain[...], grads["gain"], "float64", "dgain")
        assert_close(d_cell.slow.bias[...], grads["bias"], "float64", "dbias")
        assert_close(dx, d_xs, "float64", "dx")
        assert_close(dh0, d_h0, "float64", "dh0")


def test_gradient_to_the_initial_matrix_in_float64():
    """dL/dA(0): fast weights that a sequence starts from can be learned."""
    p, xs, _, A0, h0, d_hs, d_A = problem(5, 9)
    _, _, tape = reference.forward(p, xs, A0, h0, 0.9, 0.5, 2)
    _, _, d_A0, _ = reference.backward(p, tape, d_hs, d_A, 0.9, 0.5)
    with jax.enable_x64(True):
        rule = Hebbian(steps=2, form=Form.MATRIX)
        cell = cell_of(p, rule, jnp.float64)

        def value(A):
            carry = carry_of(cell, jnp.asarray(h0), Matrix(A))
            carry, ys = jax.lax.scan(cell.step, carry, cell.project(jnp.asarray(xs)))
            return jnp.sum(ys * d_hs) + jnp.sum(carry.fast.S * d_A)

        assert_close(jax.grad(value)(jnp.asarray(A0)), d_A0, "float64", "dA0")


def test_the_reference_gradients_are_the_slope_of_the_reference():
    """The hand-written backward pass agrees with central differences of the forward pass."""
    p, xs, _, A0, h0, d_hs, d_A = problem(3, 5)

    def value(p, xs, A):
        hs, matrices, _ = reference.forward(p, xs, A, h0, 0.9, 0.5, 2)
        return np.sum(hs * d_hs) + np.sum(matrices[-1] * d_A)

    _, _, tape = reference.forward(p, xs, A0, h0, 0.9, 0.5, 2)
    grads, d_xs, d_A0, _ = reference.backward(p, tape, d_hs, d_A, 0.9, 0.5)
    rng, eps = np.random.default_rng(0), 1e-6
    for name, grad in [*grads.items(), ("xs", d_xs), ("A", d_A0)]:
        direction = rng.normal(size=grad.shape)
        ends = []
        for sign in (1, -1):
            moved = {k: v + sign * eps * direction * (k == name) for k, v in p.items() if k == name}
            ends.append(
                value(
                    p | moved,
                    xs + sign * eps * direction if name == "xs" else xs,
                    A0 + sign * eps * direction if name == "A" else A0,
                )
            )
        slope = (ends[0] - ends[1]) / (2 * eps)
        assert slope == pytest.approx(np.sum(grad * direction), rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize(
    "batch,length,hidden,steps", [(3, 11, 50, 1), (2, 33, 20, 3), (2, 64, 16, 1)]
)
def test_both_forms_agree_to_1e_6_in_float32(batch, length, hidden, steps):
    """The issue of one meaning in two forms, at real sizes, through a whole network."""
    xs = jax.random.normal(jax.random.key(length), (batch, length, 30))
    ys = []
    for form in (Form.MATRIX, Form.ATTENTION):
        cell = FastWeightCell(30, hidden, Hebbian(steps=steps, form=form), rngs=nnx.Rngs(1))
        ys.append(jax.jit(jax.vmap(lambda x, c=cell: unroll(c, x)[1]))(xs))
    # rounding is fed back through the recurrence, so a long sequence has a few larger ones
    difference = np.abs(np.asarray(ys[0]) - np.asarray(ys[1])) / np.abs(ys[0]).max()
    assert np.median(difference) <= 1e-6 and np.quantile(difference, 0.99) <= 1e-6
    assert difference.max() <= 1e-4
    assert np.abs(ys[0]).max() > 0.5


@pytest.mark.parametrize("steps,size,crossover", [(1, 40, 80), (2, 40, 60)])
def test_auto_takes_attention_below_the_crossover(steps, size, crossover):
    """T < (1 + 1/S) H by counting FLOPs: 2 H at S = 1, 1.5 H at S = 2."""
    rule = Hebbian(steps=steps)
    assert isinstance(rule.init(size, length=crossover - 1), History)
    assert isinstance(rule.init(size, length=crossover), Matrix)
    assert isinstance(rule.init(size), Matrix)


def test_a_full_history_forgets_the_oldest_write_only():
    """A ring of M writes is the matrix of the last M."""
    rule = Hebbian(decay=0.8, lr=0.3, form=Form.ATTENTION)
    hs = np.random.default_rng(0).uniform(size=(7, 5))
    state = rule.init(5, length=4)
    for h in hs:
        state = rule.write(state, jnp.asarray(h, jnp.float32))
    expected = sum(0.3 * 0.8 ** (6 - i) * np.outer(hs[i], hs[i]) for i in range(3, 7))
    assert_close(rule.matrix(state), expected, "float32")


def test_attention_form_without_a_length_is_refused():
    with pytest.raises(ValueError, match="number of writes"):
        Hebbian(form=Form.ATTENTION).init(5)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"decay": 1.01}, r"decay must be in \[0, 1\], got 1.01"),
        ({"decay": -0.1}, "decay must be in"),
        ({"decay": float("nan")}, "decay must be in"),
        ({"lr": -0.5}, "lr must not be negative, got -0.5"),
    ],
)
def test_values_out_of_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Hebbian(**options).init(3, 4)


def test_a_form_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="'matrices' is not a valid Form"):
        Hebbian(form="matrices")


def test_a_form_may_be_named_by_its_value():
    assert Hebbian(form="matrix") == Hebbian(form=Form.MATRIX)
    assert isinstance(Hebbian(form="matrix").init(5, length=2), Matrix)
    assert isinstance(Hebbian(form="attention").init(5, length=99), History)


def test_rates_may_be_traced():
    """The gradient to λ and η: of the second read, through what the first token wrote."""
    _, tokens = Hebbian().example(jax.random.key(0), 2)

    def value(decay, lr):
        rule = Hebbian(decay=decay, lr=lr)
        state, ys = scan(rule, rule.init(5), Token(tokens.boundary))
        return jnp.sum(ys[1]) + jnp.sum(rule.matrix(state))

    found = jax.jit(jax.grad(value, argnums=(0, 1)))(0.9, 0.5)
    for i in range(2):
        ends = [float(value(*np.add((0.9, 0.5), np.eye(2)[i] * e))) for e in (1e-2, -1e-2)]
        assert found[i] == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=1e-2)


def test_no_fast_weights_when_lr_is_zero():
    """η = 0 leaves the two-stage update: relu(norm(z)), whatever was before."""
    rule = Hebbian(lr=0.0)
    _, tokens = rule.example(jax.random.key(0), 5)
    _, ys = scan(rule, rule.init(5), tokens)
    z = np.asarray(tokens.boundary, np.float64)
    centred = z - z.mean(-1, keepdims=True)
    expected = np.maximum(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5), 0)
    assert_close(ys, expected)


def test_bfloat16_inputs_keep_a_float32_state():
    rule = Hebbian(form=Form.MATRIX)
    state, tokens = rule.example(jax.random.key(0), 7)
    low = tokens._replace(boundary=tokens.boundary.astype(jnp.bfloat16))
    final, ys = run(rule, state, low, chunk=4)
    assert final.S.dtype == jnp.float32 and ys.dtype == jnp.bfloat16
    expected, _ = scan(rule, state, tokens)
    assert_close(final.S, expected.S, "bfloat16")


def test_tokens_without_a_store_signal_always_store():
    rule = Hebbian()
    state, tokens = rule.example(jax.random.key(1), 6)
    always = tokens._replace(store=jnp.ones(6, bool))
    a, b = scan(rule, state, Token(tokens.boundary)), scan(rule, state, always)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_run_refuses_a_chunk_of_nothing():
    rule = Hebbian()
    state, tokens = rule.example(jax.random.key(1), 6)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        run(rule, state, tokens, chunk=0)
