"""TTT-Linear beside the naive reference of flash-linear-attention, in float32.

Two conventions differ. The rate is of the token that reads only, so β is 1 here and the factors p
are given as that rate. And the residual is added to z = Sᵀ q + b, not to q: the outputs are
z + LN(z), where Sun et al. 2024 and the code released with the paper have q + LN(z). So the outputs
are made of the states: after a mini-batch of its first t tokens a state has the weights that token
t reads.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from fastweights.rules import TTTLinear, outputs, run, scan
from rules.test_fla import naive

torch = pytest.importorskip("torch")

HEADS, LENGTH, D, BATCH = 2, 24, 8, 8


def problem():
    """Slow weights by head, slots, and the rates of the places of a mini-batch."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    weights = {
        "S_0": 0.5 * draw(HEADS, D, D),
        "b_0": 0.5 * draw(HEADS, D),
        "gain": 1 + 0.2 * draw(HEADS, D),
        "bias": 0.2 * draw(HEADS, D),
    }
    slots = {name: draw(HEADS, LENGTH, D) for name in ("q", "k", "v")}
    position = (1 / np.arange(1, BATCH + 1) + 0.05 * np.abs(draw(BATCH))).astype(np.float32)
    return weights, slots, position


def learned(op, rate, S, b, gain, bias, q, k, v):
    """Their final state of tokens `[H, t, D]` in mini-batches of at most 8, and their outputs."""
    by_time = [x.transpose(0, 1)[None].clone() for x in (q, k, v)]  # they write into q
    length = q.shape[1]
    ys, S, b = op(
        *by_time,
        gain,
        bias,
        rate.repeat(-(-length // BATCH))[None, :length, None, None].expand(1, length, HEADS, 1),
        scale=1.0,
        mini_batch_size=min(BATCH, length),
        initial_state=S[None],
        initial_state_bias=b[None, :, None],
        output_final_state=True,
    )
    return S[0], b[0, :, 0]


def theirs(op, position, S_0, b_0, gain, bias, q, k, v):
    """Outputs `[H, T, D]` of the paper, from the states of every prefix of every mini-batch."""
    S, b, ys = S_0, b_0, []
    for first in range(0, LENGTH, BATCH):
        for t in range(1, BATCH + 1):
            rows = slice(first, first + t)
            rate = torch.full((BATCH,), float(position[t - 1]))
            slots = (x[:, rows] for x in (q, k, v))
            S_t, b_t = learned(op, rate, S, b, gain, bias, *slots)
            query = q[:, first + t - 1]
            z = torch.einsum("hk,hkv->hv", query, S_t) + b_t
            norm = torch.nn.functional.layer_norm(z, (D,), eps=1e-6)
            ys.append(query + norm * gain + bias)
        S, b = S_t, b_t
    return torch.stack(ys, 1), S, b


def ours(form, position, weights, slots):
    rule = TTTLinear(lr=1.0, batch=BATCH)

    def head(weights, slots):
        state = rule.init(D, D, position=jnp.asarray(position), **weights)
        final, ys = form(rule, state, rule.token(**slots))
        return ys, final.S, final.b

    return jax.vmap(head)(weights, slots)


FORMS = {
    "step": scan,
    "dual": lambda *a: run(*a, chunk=16),
    "whole": lambda r, s, t: (scan(r, s, t)[0], outputs(r, s, t)),
}


@pytest.mark.parametrize("form", FORMS)
def test_outputs_final_state_and_gradients(form):
    weights, slots, position = problem()
    op = naive("ttt").chunk_ttt_linear_ref
    leaves = {n: torch.tensor(x, requires_grad=True) for n, x in (weights | slots).items()}
    expected = theirs(op, position, **leaves)
    sum(torch.sin(x + i).sum() for i, x in enumerate(expected)).backward()

    def value(weights, slots):
        results = ours(FORMS[form], position, weights, slots)
        return sum(jnp.sum(jnp.sin(x + i)) for i, x in enumerate(results)), results

    (_, results), gradients = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(
        weights, slots
    )
    for name, a, b in zip(("ys", "S", "b"), results, expected, strict=True):
        assert_close(a, b.detach(), what=name)
    for name, gradient in (gradients[0] | gradients[1]).items():
        assert_close(gradient, leaves[name].grad, what=f"gradient to {name}")
    # the state of all mini-batches in one call is the one of the prefixes
    rate = torch.tensor(position)
    with torch.no_grad():
        S, b = learned(op, rate, *(leaves[n] for n in ("S_0", "b_0", "gain", "bias", *slots)))
    assert_close(results[1], S)
    assert_close(results[2], b)
