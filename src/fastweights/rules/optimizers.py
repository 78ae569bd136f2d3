"""Inner optimisers: the interface of optax, of which this package needs no more than two members.

Every `optax.GradientTransformation` fits `Optimizer`. The two here are written so that outer
gradients are finite at an inner gradient of zero.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.ops import root, shortening


class Optimizer(Protocol):
    """`init(weights) -> state`, `update(gradient, state, weights) -> (step, state)`."""

    @property
    def init(self) -> Callable[[Any], Any]: ...

    @property
    def update(self) -> Callable[..., tuple[Any, Any]]: ...


class Transformation(NamedTuple):
    """An optimiser made of two functions; `optax.chain` takes it."""

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class SGD:
    """Gradient descent without state.

    Attributes:
        lr: the step is −lr times the gradient.
    """

    lr: float = 1.0

    def init(self, weights: Any) -> tuple[()]:
        """The empty state."""
        del weights
        return ()

    def update(self, gradient: Any, state: Any, weights: Any = None) -> tuple[Any, Any]:
        """−lr times the gradient, and the state."""
        del weights
        return jax.tree.map(lambda g: -self.lr * g, gradient), state


def global_norm(tree: Any) -> Array:
    """sqrt(Σ x²) over all leaves, with gradient 0 at 0: `[]`."""
    return root(jnp.asarray(sum(jnp.sum(x * x) for x in jax.tree.leaves(tree))))


def clip_by_global_norm(max_norm: float) -> Transformation:
    """Scales a gradient down to norm `max_norm` if it is longer, for `optax.chain`.

    It equals `optax.clip_by_global_norm`, but its derivative at a gradient of zeros is the
    identity, where optax's is NaN. A model that writes zeros before it is trained starts at that
    gradient.
    """

    def update(gradient: Any, state: Any, weights: Any = None) -> tuple[Any, Any]:
        del weights
        factor = shortening(global_norm(gradient), max_norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradient), state

    return Transformation(lambda weights: (), update)
