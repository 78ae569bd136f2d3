"""Norms, and the factor that shortens an array to a norm, with finite gradients at zero."""

import jax.numpy as jnp
from jax import Array


def root(square: Array) -> Array:
    """sqrt(x) of x >= 0, with gradient 0 at 0."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def shortening(norm: Array, limit: Array | float) -> Array:
    """The factor that scales norm `norm` down to `limit`, 1 if it is not longer: `[]`."""
    long = norm > limit
    # zeros within a limit of 0 must not be divided by, or their gradient is NaN
    return jnp.where(long, limit / jnp.where(long, norm, 1), 1)
