"""The gated MLP of a transformer block: down(silu(gate x) * up x)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from fastweights.nn.layer import Layer, Reading, Stacked
from fastweights.nn.linear import linear


class MLP(Layer):
    """SwiGLU without biases (Shazeer 2020, arXiv 2002.05202), as in Llama and Qwen3.

    Args:
        hidden: size D of the input and output.
        intermediate: size F between.
        initializer_range: standard deviation of every weight's start.
        dtype: of the computation; products of bfloat16 are accumulated in float32.
        param_dtype: of the weights.
        rngs: flax's source of random keys.
    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        *,
        initializer_range: float = 0.02,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = functools.partial(
            linear,
            initializer_range=initializer_range,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.gate = make(hidden, intermediate)
        self.up = make(hidden, intermediate)
        self.down = make(intermediate, hidden)

    def hidden(self, x: Array) -> Array:
        """Z = silu(gate x) * (up x): `[..., D] -> [..., F]`."""
        return jax.nn.silu(self.gate(x)) * self.up(x)

    def __call__(self, x: Array) -> Array:
        """`[..., D] -> [..., D]`."""
        return self.down(self.hidden(x))

    def advance(
        self, x: Array, reading: Reading, state: Stacked | None = None
    ) -> tuple[Array, Stacked | None, dict[str, Array]]:
        """See `Layer.advance`."""
        return self(x), state, {}
