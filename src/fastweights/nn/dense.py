"""The dense parts of a decoder: weight matrices, the norm, and the gated MLP."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn.initializers import normal
from jax.typing import DTypeLike

from fastweights.nn.layer import Layer, Reading, Stacked


def linear(
    inside: int,
    outside: int,
    *,
    initializer_range: float,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """`[..., inside] -> [..., outside]`, without a bias.

    XLA on a CPU takes the weight gradient of `[B, T, D] @ [D, F]` from a transposed copy of the
    input, as of jax 0.10.2; that of `[B T, D] @ [D, F]`, the same numbers, without the copy.

    Args:
        inside: size of the last axis of the input.
        outside: that of the output.
        initializer_range: standard deviation of the weights' start.
        dtype: of the computation; products of bfloat16 are accumulated in float32.
        param_dtype: of the weights.
        rngs: flax's source of random keys.
    """
    return nnx.Linear(
        inside,
        outside,
        use_bias=False,
        kernel_init=normal(initializer_range),
        dot_general=_of_flat_rows,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def _of_flat_rows(x: Array, kernel: Array, _dimensions: Any, **kwargs: Any) -> Array:
    """`x @ kernel` with all axes of `x` but its last made one: flax asks for no other product."""
    product = jax.lax.dot_general(
        x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **kwargs
    )
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


class RMSNorm(nnx.Module):
    """scale * x / √(mean(x²) + eps) over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467).

    `nnx.RMSNorm` rounds `scale` to the dtype of the computation before it multiplies. Here the
    statistics and the products are float32 whatever `x` is, and one rounding ends it.

    Args:
        features: size of the last axis.
        eps: added to the mean square.
        param_dtype: of `scale`, which starts at 1.
    """

    def __init__(self, features: int, *, eps: float = 1e-6, param_dtype: DTypeLike = jnp.float32):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(features, param_dtype))

    def __call__(self, x: Array) -> Array:
        """`[..., features]`, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        return (wide * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


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
