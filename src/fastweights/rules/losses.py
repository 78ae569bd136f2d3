"""Local losses of an inner step: functions of one prediction `[V]` and its target `[V]` to `[]`.

Any other function of this kind may take their place in `Online`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

#: `(prediction [V], target [V]) -> []`
Loss = Callable[[Array, Array], Array]


def squared(y: Array, v: Array) -> Array:
    """½‖y − v‖²; a gradient step on it writes the error of the prediction (the delta rule)."""
    return 0.5 * jnp.sum((y - v) ** 2)


def dot_product(y: Array, v: Array) -> Array:
    """−⟨y, v⟩; a gradient step on it writes the target itself (linear attention)."""
    return -jnp.sum(y * v)
