"""XLA's own count of the memory of outputs and every outer gradient; compiled, never run."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from fastweights.rules import TTTMLP, Online, TTTLinear, memories, outputs, scan

D = 64
MIB = 2**20

RULES = {
    "momentum": Online(optimizer=optax.sgd(0.1, momentum=0.9)),
    "MLP, mini-batches of 16": Online(
        memory=memories.MLP(width=1), optimizer=optax.sgd(0.1), batch=16
    ),
    "TTT-Linear": TTTLinear(),
    "TTT-MLP": TTTMLP(),
}


@functools.cache
def temporary(name, length, form=outputs):
    """MiB of temporaries at T tokens, K = V = 64, float32, for a cotangent that is given."""
    rule = RULES[name]
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    slots = {n: shape(length, D) for n in ("q", "k", "v")} | {"beta": shape(length)}
    slow = jax.eval_shape(
        lambda: {n: make(jax.random.key(0)) for n, make in rule.parameters(D, D).items()}
    )

    def forward_and_backward(slow, slots, dy):
        run = lambda slow, slots: form(rule, rule.init(D, D, **slow), rule.token(**slots))
        ys, pull = jax.vjp(run, slow, slots)
        return ys, pull(dy)

    compiled = jax.jit(forward_and_backward).lower(slow, slots, shape(length, D)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / MIB


def every_step(rule, state, tokens):
    """The outputs of a plain scan, which saves every inner step."""
    return scan(rule, state, tokens)[1]


@pytest.mark.parametrize("name", RULES)
def test_memory_grows_with_the_root_of_the_length(name):
    """16 times the tokens: about 4 times the memory, where a plain scan has 16 times as much."""
    short, long = temporary(name, 256), temporary(name, 4096)
    assert long <= 5 * short
    short_scan, long_scan = (temporary(name, n, every_step) for n in (256, 4096))
    assert long_scan >= 15 * short_scan
    assert long_scan >= 25 * long
