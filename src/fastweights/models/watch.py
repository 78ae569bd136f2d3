"""Look into a fast-weight network while it reads: what it asks its memory, what it writes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.errors import ConfigError
from fastweights.models.retrieval import RetrievalNet
from fastweights.nn.recurrent import FastCarry, FastWeightCell
from fastweights.rules import Hebbian
from fastweights.rules.hebbian import layer_norm, settle


class Activity(NamedTuple):
    """Recurrent activity of one sequence at the two moments of each step that touch the memory."""

    query: Array  # [T, H], h_{S-1}: what the last settling step multiplies the fast weights with
    settled: Array  # [T, H], h_S: the step's result, which is then written


def watch(net: RetrievalNet, tokens: Array) -> Activity:
    """Run the network over one string and keep what meets its fast weights.

    Args:
        net: a network with a `FastWeightCell`, trained or not.
        tokens: `[T]` int, one string.

    Returns:
        Float32 `[T, H]` each; `settled` is `net.activities(tokens)`.

    Raises:
        ConfigError: the network's recurrent layer has no fast weights.
    """
    cell = net.cell
    rule = cell.rule if isinstance(cell, FastWeightCell) else None
    if not isinstance(cell, FastWeightCell) or not isinstance(rule, Hebbian):
        raise ConfigError(
            f"a network with {type(cell).__name__} has no fast weights to watch",
            where="model.cell",
            next='build it with cell="fast-weights"',
        )

    def step(carry: FastCarry, drive: Array) -> tuple[FastCarry, Activity]:
        query = settle(
            lambda h: rule.recall(carry.fast, h),
            cell.boundary(carry.h, drive),
            steps=rule.steps - 1,
            norm=lambda x: layer_norm(x, carry.fast.gain, carry.fast.bias),
        )
        carry, settled = cell.step(carry, drive)
        return carry, Activity(query, settled)

    drives = net.drives(tokens)
    return jax.lax.scan(step, cell.initial(len(drives)), drives)[1]


def fast_weight_matrices(rule: Hebbian, settled: Array) -> Array:
    """The matrix A after each write: activities `[T, H]` -> `[T, H, H]`."""

    def step(state, h):
        state = rule.write(state, h)
        return state, rule.matrix(state)

    length, size = settled.shape
    return jax.lax.scan(step, rule.init(size, length=length), settled)[1]


def attention_to_past(rule: Hebbian, activity: Activity) -> Array:
    """How strongly each step's read recalls each earlier step (Ba et al. 2016, equation 4).

    Row t, column i holds η λ^(t-1-i) (settled_i · query_t) for i < t and zero for the rest: A times
    query_t is the sum of the settled activities with these weights. No softmax; a row has no fixed
    sum.

    Args:
        rule: gives λ and η.
        activity: from `watch`, `[T, H]` each.

    Returns:
        `[T, T]`, lower triangular with a zero diagonal.
    """
    steps = jnp.arange(len(activity.settled))
    age = steps[:, None] - 1 - steps[None, :]
    fading = jnp.where(age >= 0, rule.lr * rule.decay ** jnp.maximum(age, 0), 0.0)
    return fading * (activity.query @ activity.settled.T)
