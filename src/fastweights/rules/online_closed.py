"""Closed chunk forms of inner learning: the cases that are rules with a form of their own.

They are known by the optimiser's class: `SGD` of this package. `optax.sgd` is made of functions,
which do not tell their rate.
"""

from collections.abc import Callable
from typing import Any

from jax import Array

from fastweights.rules.delta import delta_chunk
from fastweights.rules.linear_attention import linear_chunk
from fastweights.rules.losses import Loss, dot_product, squared
from fastweights.rules.memories import linear
from fastweights.rules.optimizers import SGD

#: S, q, k, v, β and document starts of a chunk to S and the outputs
ClosedChunk = Callable[
    [Array, Array, Array, Array, Array, Array | None],
    tuple[Array, Array],
]


def closed_chunk(memory: Any, loss: Loss, optimizer: Any) -> ClosedChunk | None:
    """The form of a rule with these parts and mini-batches of one token, or None.

    The linear memory under gradient descent is the delta rule with ½‖f(k) − v‖², where the rate is
    a factor of β, and linear attention with −⟨f(k), v⟩, where it is one of v, as β is.
    """
    if memory is not linear or not isinstance(optimizer, SGD):
        return None
    lr = optimizer.lr

    def delta(
        S: Array, q: Array, k: Array, v: Array, beta: Array, starts: Array | None
    ) -> tuple[Array, Array]:
        return delta_chunk(S, q, k, v, lr * beta, starts=starts)

    def attention(
        S: Array, q: Array, k: Array, v: Array, beta: Array, starts: Array | None
    ) -> tuple[Array, Array]:
        return linear_chunk(S, q, k, lr * beta[:, None] * v, starts=starts)

    if loss is squared:
        return delta
    return attention if loss is dot_product else None
