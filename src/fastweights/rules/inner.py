"""One step of inner learning: the gradient of a local loss, and an optimiser's step along it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.rules.base import select
from fastweights.rules.losses import Loss
from fastweights.rules.optimizers import Optimizer


def inner_gradient(
    answer: Callable[[Any, Array], Array],
    loss: Loss,
    weights: Any,
    tokens: Any,
    stored: Array | None = None,
) -> Any:
    """∇ of Σ_t β_t loss(answer(weights, k_t), v_t) to the weights, in their structure.

    Args:
        answer: the memory, `(weights, [K]) -> [V]`.
        loss: the local loss of one token.
        weights: pytree.
        tokens: keys `k [n, K]`, targets `v [n, V]` and strengths `beta [n]`, None for 1; they are
            cast to the dtype of the weights.
        stored: `[n]` bool, tokens that count; None is all.
    """
    dtype = jax.tree.leaves(weights)[0].dtype
    k, v, beta = tokens.k.astype(dtype), tokens.v.astype(dtype), tokens.beta

    def total(weights: Any) -> Array:
        losses = jax.vmap(lambda k, v: loss(answer(weights, k), v))(k, v)
        if beta is not None:
            losses = beta.astype(dtype) * losses
        return jnp.sum(losses if stored is None else jnp.where(stored, losses, 0))

    return jax.grad(total)(weights)


def inner_step(
    optimizer: Optimizer, weights: Any, state: Any, gradient: Any, taken: Array | None
) -> tuple[Any, Any]:
    """A step of the optimiser and its state after it, which stays where `taken []` is False."""
    if taken is not None:
        # the derivative of a step that is not taken is multiplied by 0, so it must be finite:
        # 1 is a gradient at which it is, also for optimisers with NaN at 0
        gradient = jax.tree.map(lambda g: jnp.where(taken, g, jnp.ones_like(g)), gradient)
    step, after = optimizer.update(gradient, state, weights)
    return step, select(taken, after, state)


def descend(
    optimizer: Optimizer, weights: Any, state: Any, gradient: Any, taken: Array | None
) -> tuple[Any, Any]:
    """Weights and optimiser state after one step, or as they are where `taken []` is False."""
    step, after = inner_step(optimizer, weights, state, gradient, taken)
    moved = jax.tree.map(lambda w, u: w + u.astype(w.dtype), weights, step)
    return select(taken, moved, weights), after
