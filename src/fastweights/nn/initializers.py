"""Initial values of Ba et al. 2016 (arXiv 1610.06258, appendix A.1, with the fix of version 3), and
of in-place layers.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal, normal

#: "paper": every weight that is not recurrent from `fan_out_uniform`. "unit": embeddings N(0, 1)
#: and LeCun normal, which keep a signal at unit size up to the recurrence. Retrieval is learnt many
#: times sooner from it; docs/fast_weight_rnn.md has the numbers.
Start = Literal["paper", "unit"]


def fan_out_uniform() -> Initializer:
    """U(-1/√fan_out, 1/√fan_out), the paper's start for every weight that is not recurrent.

    Version 2 of the paper prints ±√fan_out, a misprint that its version 3 corrects.
    """

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        bound = shape[-1] ** -0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def scaled_identity(scale: float) -> Initializer:
    """`scale` · I, the start of recurrent weights: 0.05 with fast weights, 0.5 for the IRNN."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return scale * jnp.eye(*shape, dtype=dtype)

    return init


def kernel_start(start: Start) -> Initializer:
    """Start of a layer's weights `[in, out]`."""
    return fan_out_uniform() if start == "paper" else lecun_normal()


def embedding_start(start: Start) -> Initializer:
    """Start of an embedding table `[symbols, features]`."""
    return fan_out_uniform() if start == "paper" else normal(1.0)


def diagonal_normal(scale: float) -> Initializer:
    """diag(N(0, scale²)), a small matrix that mixes no features."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jnp.diag(scale * jax.random.normal(key, shape[:1], dtype))

    return init
