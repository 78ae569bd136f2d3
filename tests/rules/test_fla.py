"""Rules beside the naive references of flash-linear-attention, in float32."""

import importlib.metadata
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from fastweights.rules import Delta, GatedDelta, LinearAttention, run

torch = pytest.importorskip("torch")

HEADS, LENGTH, K, V = 3, 128, 16, 8


def naive(op):
    """The module `fla/ops/{op}/naive.py` by its path: the package needs Triton to be imported."""
    try:
        files = importlib.metadata.files("fla-core")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fla-core is not installed: in the checkout, pip install -e '.[parity]'")
    (file,) = (f for f in files or () if str(f) == f"fla/ops/{op}/naive.py")
    spec = importlib.util.spec_from_file_location(f"fla_naive_{op}", file.locate())
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Their layout is [B, T, H, ...], of the delta rule [B, H, T, ...]; ours is [H, T, ...]. They scale
# q by K^-1/2, unless told otherwise where that can be said.


def linear_attention(S, q, k, v):
    op = naive("linear_attn").naive_recurrent_linear_attn
    by_time = (x.transpose(0, 1)[None] for x in (q, k, v))
    ys, final = op(*by_time, scale=1.0, initial_state=S[None], output_final_state=True)
    return ys[0].transpose(0, 1), final[0]


def delta(S, q, k, v, beta):
    op = naive("delta_rule").delta_rule_recurrence
    ys, final = op(*(x[None] for x in (q * K**0.5, k, v, beta)), initial_state=S[None])
    return ys[0], final[0]


def gated_delta(S, q, k, v, beta, g):
    op = naive("gated_delta_rule").naive_recurrent_gated_delta_rule
    by_time = (x.transpose(0, 1)[None] for x in (q, k, v, beta, g))
    ys, final = op(*by_time, scale=1.0, initial_state=S[None], output_final_state=True)
    return ys[0].transpose(0, 1), final[0]


def gated_delta_chunk(S, q, k, v, beta, g):
    op = naive("gated_delta_rule").naive_chunk_gated_delta_rule
    by_time = (x.transpose(0, 1)[None] for x in (q, k, v, g, beta))
    ys, final = op(*by_time, scale=1.0, initial_state=S[None], output_final_state=True)
    return ys[0].transpose(0, 1), final[0]


PAIRS = [
    (LinearAttention(), linear_attention),
    (Delta(), delta),
    (GatedDelta(), gated_delta),
    (GatedDelta(), gated_delta_chunk),
]


@pytest.mark.parametrize("chunk", [None, 64])
@pytest.mark.parametrize("rule,theirs", PAIRS, ids=[theirs.__name__ for _, theirs in PAIRS])
def test_outputs_final_state_and_gradients(rule, theirs, chunk):
    rng = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    slots = {
        "q": rng.normal(size=(HEADS, LENGTH, K)),
        "k": unit(rng.normal(size=(HEADS, LENGTH, K))),
        "v": rng.normal(size=(HEADS, LENGTH, V)),
        "beta": rng.uniform(size=(HEADS, LENGTH)),
        "g": -rng.exponential(size=(HEADS, LENGTH)) / 4,
    }
    start = rng.normal(size=(HEADS, K, V))
    given = {"S": start} | {name: slots[name] for name in rule.slots}
    given = {name: x.astype(np.float32) for name, x in given.items()}
    d_ys = rng.normal(size=(HEADS, LENGTH, V)).astype(np.float32)
    d_S = rng.normal(size=(HEADS, K, V)).astype(np.float32)

    inputs = {name: torch.tensor(x, requires_grad=True) for name, x in given.items()}
    ys, final = theirs(**inputs)
    (ys.mul(torch.tensor(d_ys)).sum() + final.mul(torch.tensor(d_S)).sum()).backward()

    def value(given):
        def one(S, tokens):
            state = rule.init(K, V)._replace(S=S)
            state, ys = run(rule, state, rule.token(**tokens), chunk=chunk)
            return ys, state.S

        ours = jax.vmap(one)(given["S"], {name: given[name] for name in rule.slots})
        return jnp.sum(ours[0] * d_ys) + jnp.sum(ours[1] * d_S), ours

    (_, ours), grads = jax.jit(jax.value_and_grad(value, has_aux=True))(given)
    assert_close(ours[0], ys.detach(), what="outputs")
    assert_close(ours[1], final.detach(), what="final state")
    for name, grad in grads.items():
        assert_close(grad, inputs[name].grad, what=f"gradient to {name}")
