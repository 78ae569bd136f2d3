"""The weight matrices of a decoder: products without a bias whose gradient costs what it should.

XLA on a CPU takes the weight gradient of `[B, T, D] @ [D, F]` from a transposed copy of what comes
in, as of jax 0.10.2; that of `[B T, D] @ [D, F]`, the same numbers, without one and in less time.
"""

from typing import Any

import jax
from flax import nnx
from jax import Array
from jax.nn.initializers import normal
from jax.typing import DTypeLike


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
