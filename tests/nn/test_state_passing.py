"""State passing: a row starts where the row before it ended, beside loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn.test_in_place import layer
from tolerances import assert_close

from fastweights.errors import ConfigError
from fastweights.rules import scan

ROWS, T, D, C = 4, 19, 8, 4
PASSED = np.array([True, True, False, False]), np.array([True, False, True, True])
OPTIONS = [
    {},
    {"decay": 0.7},
    {"cap": 0.2},
    {"cap": 0.2, "decay": 0.7, "row_norm": True},
    {"clip": 0.3},
    {"residual": True, "decay": 0.7},
    {"decay": 0.6, "decay_learned": True, "lr_learned": True},
]


def inputs(seed):
    return jax.random.normal(jax.random.key(seed), (2, ROWS, T, D))


call = jax.jit(lambda mlp, x, t, ids, passed: mlp(x, t, ids, passed=passed))


def loops(mlp, x, t, ids, passed):
    """A row, a chunk, and a document at a time, with the layer's own z and v; float64."""
    ttt, w0 = mlp.ttt, np.asarray(mlp.slow, np.float64)
    z, v = (np.asarray(a, np.float64) for a in (mlp.hidden(x), mlp.targets(t, ids)))
    norm = np.linalg.norm

    def seen(added):
        w = w0 + added * min(1, (ttt.cap or np.inf) * norm(w0) / max(norm(added), 1e-12))
        rows = norm(w0, axis=1) / norm(w, axis=1) if ttt.row_norm else np.ones(len(w))
        return w * rows[:, None]

    out, added, owner = np.zeros(x.shape), np.zeros_like(w0), None
    for row in range(ROWS):
        names = np.ones(T, int) if ids is None else np.asarray(ids[row])
        if not (row % 2 and passed[row]):
            added = np.zeros_like(w0)
        owner = next(name for name in names if name)
        for at in range(0, T, C):
            here = names[at : at + C]
            for i, name in enumerate(here):
                w = seen(added) if name == owner else w0
                out[row, at + i] = w @ z[row, at + i]
            if len(here) < C:
                break
            mine = here[-1] if here[-1] else owner  # padding lets its document go on
            if here[-1] and mine != owner:
                added, owner = np.zeros_like(w0), mine
            keys = z[row, at : at + C] * (here == mine)[:, None]
            write = ttt.lr * v[row, at : at + C].T @ keys
            if ttt.residual:
                write = write - ttt.lr * ttt.decay * added @ keys.T @ keys
                write /= max(norm(keys) ** 2, 1e-12)
            size = norm(write)
            if ttt.clip and size > ttt.clip:
                write *= ttt.clip / size
            added = ttt.decay * added + write
    return out


@pytest.mark.parametrize("passed", PASSED)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_row_starts_where_the_row_before_ended(options, passed):
    mlp = layer(**options)
    x, t = inputs(1)
    found = call(mlp, x, t, None, passed)
    assert_close(found, loops(mlp, x, t, None, passed))
    alone = call(mlp, x, t, None, None)
    goes_on = np.asarray(passed) & (np.arange(ROWS) % 2 == 1)
    for row in range(ROWS):  # the others are what they are without it
        same = np.allclose(found[row], alone[row], rtol=1e-5, atol=1e-6)
        assert same == (not goes_on[row])


@pytest.mark.parametrize("options", [{}, {"decay": 0.7}, {"cap": 0.2}])
def test_of_packed_rows_the_last_document_goes_on_in_the_first(options):
    """Also with padding after it. A chunk is of one document, which keeps the loop above simple."""
    mlp = layer(**options)
    x, t = inputs(2)
    ids = jnp.asarray(
        [[1] * 8 + [2] * 4 + [0] * 7, [1] * 12 + [2] * 7, [1] * 19, [1] * 4 + [2] * 4 + [3] * 11]
    )
    passed = jnp.ones(ROWS, bool)
    found = call(mlp, x, t, ids, passed)
    assert_close(found, loops(mlp, x, t, ids, passed))
    assert np.abs(found[1, :12] - call(mlp, x, t, ids, None)[1, :12]).max() > 1e-3


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_are_those_of_rows_read_one_after_another(options):
    """Token by token by the rule's definition, with no gradient between the two rows."""
    mlp, (x, t) = layer(**{"lr": 0.01} | options), inputs(3)  # a sine of large outputs rounds

    def one_by_one(mlp, x, t):
        rule, ys, added = mlp.rule(), [], None
        z, v = mlp.hidden(x), mlp.targets(t)
        for row in range(ROWS):
            state = rule.init(mlp.slow, **mlp.learned())
            if row % 2 and PASSED[0][row]:
                state = state._replace(weights=state.weights + added)
            state, y = scan(rule, state, rule.token(z=z[row], v=v[row]))
            added = jax.lax.stop_gradient(state.weights - state.slow)
            ys.append(y)
        return jnp.stack(ys)

    whole = lambda mlp, x, t: mlp(x, t, passed=jnp.asarray(PASSED[0]))
    slope = lambda form: jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(form(*a))), argnums=(0, 1, 2)))
    found, right = slope(whole)(mlp, x, t), slope(one_by_one)(mlp, x, t)
    leaves = jax.tree.leaves(found), jax.tree.leaves(right)
    for a, b in zip(*leaves, strict=True):
        assert_close(a, b)


def test_rows_of_one_chunk_pass_their_write_on():
    """Without state passing no token reads it, and the layer is the plain MLP."""
    mlp, (x, t) = layer(chunk=T), inputs(4)
    found = call(mlp, x, t, None, jnp.ones(ROWS, bool))
    z, v = mlp.hidden(x), mlp.targets(t)
    w0 = np.asarray(mlp.slow, np.float64)
    after = w0 + mlp.ttt.lr * np.asarray(v[0], np.float64).T @ np.asarray(z[0], np.float64)
    assert_close(found[1], np.asarray(z[1], np.float64) @ after.T)
    np.testing.assert_allclose(found[0], mlp.down(z)[0], rtol=1e-5, atol=1e-6)


def test_an_odd_batch_is_refused():
    mlp, (x, t) = layer(), inputs(5)
    with pytest.raises(ConfigError, match="even number of rows, this batch has 3"):
        mlp(x[:3], t[:3], passed=jnp.ones(3, bool))
