"""The state of a run on the device, made in one jitted call so that every leaf has its sharding."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from fastweights.tasks.base import Task
from fastweights.train.config import Config
from fastweights.train.mesh import state_shardings
from fastweights.train.optim import optimizer


class TrainState(NamedTuple):
    """What an update reads and writes."""

    step: Array  # [] int32, updates done
    model: Any  # a flax module: the slow weights
    optimizer: optax.OptState
    key: Array  # [] typed PRNG key; randomness of update n is fold_in(key, n)


def init_state(config: Config, mesh: jax.sharding.Mesh) -> TrainState:
    """A fresh state on the mesh, the same numbers on any mesh."""

    def init() -> TrainState:
        return fresh_state(config, config.seed)

    shardings = state_shardings(mesh, jax.eval_shape(init))
    return jax.jit(init, out_shardings=shardings)()


def abstract_state(config: Config, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, with nothing allocated."""
    shapes = jax.eval_shape(lambda: fresh_state(config, config.seed))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding, weak_type=x.weak_type
        ),
        shapes,
        state_shardings(mesh, shapes),
    )


def fresh_state(config: Config, seed: int | Array) -> TrainState:
    """The state before the first update: a pure function of config and seed."""
    weights, run = jax.random.split(jax.random.key(seed))
    model: Any = cast(Task, config.task).build(config.model, nnx.Rngs(weights))
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer(config.optim).init(model), run)


def parameter_count(model: Any) -> int:
    """Numbers in the slow weights."""
    return sum(leaf.size for leaf in jax.tree.leaves(model))
