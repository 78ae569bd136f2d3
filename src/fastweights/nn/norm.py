"""Root-mean-square norm (Zhang and Sennrich 2019, arXiv 1910.07467), taken in float32."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike


class RMSNorm(nnx.Module):
    """scale * x / √(mean(x²) + eps) over the last axis.

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
