"""One update and one evaluation step: pure functions of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from fastweights.errors import ConfigError
from fastweights.tasks.base import Task
from fastweights.train.config import Config, Optim
from fastweights.train.optim import learning_rate, optimizer, with_inner_warmup, without_frozen
from fastweights.train.state import TrainState

Batch = dict[str, Array]
EvalStep = Callable[[Any, Batch], dict[str, Array]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def make_train_step(config: Config) -> TrainStep:
    """The jitted update; it takes the old state's memory."""
    return jax.jit(make_update(config), donate_argnums=0)


def make_update(config: Config) -> TrainStep:
    """The update as a pure function.

    An update whose loss or gradient is not finite leaves model and optimiser as they were, so that
    the last good weights are still there when the loop reads the metric and stops.
    """

    def loss(model: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        scores = config.task.measure(model, batch)
        if "loss" not in scores:
            raise ConfigError(
                f'{type(config.task).__name__}.measure gives no "loss", only {", ".join(scores)}',
                where="task",
                next='return {"loss": ..., ...}, each score an array with an entry an example',
            )
        weight = scores.pop("weight", None)
        if weight is not None:  # ones, to the bit, where all examples count the same
            share = weight * (len(weight) / jnp.sum(weight))
            scores = {name: x * share for name, x in scores.items()}
        scores = {name: jnp.mean(x) for name, x in scores.items()}
        return scores["loss"], scores

    return descend(config.optim, loss)


def descend(
    optim: Optim, loss: Callable[..., tuple[Array, dict[str, Array]]]
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """One update down a loss's gradient, unless loss or gradient is not finite: it then changes
    nothing but the number of updates.

    Args:
        optim: the optimiser.
        loss: `(model, *inputs) -> (loss, scores)`.

    Returns:
        `(state, *inputs) -> (state, scores)`, with "grad_norm", "lr" and "not_finite", 0 or 1,
        among the scores.
    """
    transform, schedule = optimizer(optim), learning_rate(optim)

    def step(state: TrainState, *inputs: Any) -> tuple[TrainState, dict[str, Array]]:
        def trained(model: Any, *inputs: Any) -> tuple[Array, dict[str, Array]]:
            used = with_inner_warmup(optim, without_frozen(optim, model), state.step)
            return loss(used, *inputs)

        (value, scores), grads = jax.value_and_grad(trained, has_aux=True)(state.model, *inputs)
        norm = optax.tree.norm(grads)
        updates, new = transform.update(grads, state.optimizer, state.model)
        model = optax.apply_updates(state.model, updates)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        model, new = jax.tree.map(
            lambda a, b: jnp.where(finite, a, b), (model, new), (state.model, state.optimizer)
        )
        scores |= {"grad_norm": norm, "lr": jnp.asarray(schedule(state.step), jnp.float32)}
        scores["not_finite"] = (~finite).astype(jnp.float32)
        return TrainState(state.step + 1, model, new, state.key), scores

    return step


def make_eval_step(task: Task) -> EvalStep:
    """The jitted evaluation of one batch."""
    return jax.jit(make_evaluation(task))


def make_evaluation(task: Task) -> EvalStep:
    """Sums of every score over the examples of a batch that `mask` marks, and their "count".

    Where examples have weights, the scores are weighted, and the count is the sum of the weights.
    """

    def eval_step(model: Any, batch: Batch) -> dict[str, Array]:
        mask = batch["mask"].astype(jnp.float32)
        scores = task.measure(model, {k: v for k, v in batch.items() if k != "mask"})
        mask = mask * scores.pop("weight", 1.0)
        return {name: jnp.sum(x * mask) for name, x in scores.items()} | {"count": jnp.sum(mask)}

    return eval_step
