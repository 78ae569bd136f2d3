"""The JAX contenders of `rnn.py`: this library's layer, its cell in a plain scan, flax's LSTM."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from harness import Contender
from jax import Array
from rnn_reference import DECAY, FEATURES, LR, Arrays

from fastweights.nn import FastWeightCell, unroll
from fastweights.rules import Form, Hebbian

Layer = Callable[[Any, Array], Array]  # (parameters, xs [B, T, I]) -> activities [B, T, H]


def fast_layer(form: Form, hidden: int, steps: int, blocks: bool = True) -> Layer:
    """The fast-weight layer as `unroll` runs it or, not `blocks`, as one scan over `step`."""
    rule = Hebbian(decay=DECAY, lr=LR, steps=steps, form=form)
    graph, _ = nnx.split(FastWeightCell(FEATURES, hidden, rule, rngs=nnx.Rngs(0)))

    def layer(p: Any, xs: Array) -> Array:
        state = {
            "input": {"kernel": p["C"]},
            "recurrent": {"kernel": p["W"]},
            "slow": {"bias": p["bias"], "gain": p["gain"]},
        }
        cell = nnx.merge(graph, state)
        if blocks:
            return jax.vmap(lambda x: unroll(cell, x)[1])(xs)
        scan = lambda x: jax.lax.scan(cell.step, cell.initial(len(x)), cell.project(x))[1]
        return jax.vmap(scan)(xs)

    return layer


def lstm_layer(hidden: int) -> Layer:
    """`flax.nnx.LSTMCell` in a scan over time."""
    graph, _ = nnx.split(nnx.LSTMCell(FEATURES, hidden, rngs=nnx.Rngs(0)))

    def layer(p: Any, xs: Array) -> Array:
        state = {}
        columns = [jnp.split(p[name], 4, -1) for name in ("U", "R", "b")]
        for gate, U, R, b in zip(("i", "f", "g", "o"), *columns, strict=True):
            state["if_" if gate == "f" else "i" + gate] = {"kernel": U}
            state["h" + gate] = {"kernel": R, "bias": b}
        cell = nnx.merge(graph, state)
        zeros = jnp.zeros((len(xs), hidden), xs.dtype)
        return jax.lax.scan(cell, (zeros, zeros), xs.swapaxes(0, 1))[1].swapaxes(0, 1)

    return layer


def value_and_grad(layer: Layer):
    """(parameters, xs, d) -> value and gradients of sum(d * activities), to parameters and xs."""
    return jax.value_and_grad(lambda p, xs, d: jnp.sum(layer(p, xs) * d), argnums=(0, 1))


def contender(layer: Layer, p: Arrays, xs: np.ndarray, d: np.ndarray, training: bool) -> Contender:
    """Compile a layer ahead of time, forward or with its gradients."""
    function = value_and_grad(layer) if training else (lambda p, xs, d: layer(p, xs))
    arguments = jax.tree.map(jnp.asarray, (p, xs, d))
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    temp = None if memory is None else int(memory.temp_size_in_bytes)
    return Contender(lambda: jax.block_until_ready(compiled(*arguments)), seconds, temp)


def result(outcome: Any, training: bool) -> list[np.ndarray]:
    """What is compared with the reference: activities, or gradients by name and then of xs."""
    if not training:
        return [np.asarray(outcome)]
    _, (grads, d_xs) = outcome
    return [np.asarray(grads[name]) for name in sorted(grads)] + [np.asarray(d_xs)]


def float64_gradients(layer: Layer, p: Arrays, xs: np.ndarray, d: np.ndarray) -> list[np.ndarray]:
    """Gradients of a layer in float64."""
    with jax.enable_x64(True):
        arguments = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (p, xs, d))
        return result(jax.jit(value_and_grad(layer))(*arguments), True)
