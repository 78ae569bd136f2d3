"""Memories of inner learning: pure functions of fast weights and a query `[K]` to `[V]`.

The simplest memory is a function of one matrix `S [K, V]`, which starts from zeros: `linear`, or
any function of yours. An `InnerModel` has weights by name that start from slow weights, because a
network of several layers cannot learn from zeros.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.rules.settle import layer_norm

Makers = dict[str, Callable[[Array], Array]]  # functions of a random key to start values, by name


def linear(S: Array, x: Array) -> Array:
    """Sᵀ x: `[K, V]`, `[K] -> [V]`."""
    return x @ S


class InnerModel(abc.ABC):
    """A memory of weights by name; subclasses are frozen dataclasses.

    A rule's state has a field for each weight as the outer optimiser trains it: `W_0` for the value
    that W starts from in every document, the name itself for a fixed weight.

    Attributes:
        fixed: names of weights that the inner step reads and does not write, such as the gain of a
            layer norm.
    """

    fixed: tuple[str, ...] = ()

    @abc.abstractmethod
    def parameters(self, K: int, V: int) -> Makers:
        """Functions of a random key to the weights that a document starts from, by name."""

    @abc.abstractmethod
    def __call__(self, weights: Mapping[str, Array], x: Array) -> Array:
        """The answer `[V]` to a query `[K]`."""

    def slow(self, K: int, V: int) -> Makers:
        """`parameters` by the names of their fields in a state."""
        makers = self.parameters(K, V)
        return {n if n in self.fixed else f"{n}_0": make for n, make in makers.items()}

    def start(self, state: Any) -> dict[str, Array]:
        """The weights that a document starts from, without the fixed ones."""
        return {n[:-2]: getattr(state, n) for n in state._fields if n.endswith("_0")}

    def constants(self, state: Any) -> dict[str, Array]:
        """The fixed weights."""
        return {n: getattr(state, n) for n in self.fixed}


def normal(*shape: int, std: float | None = None) -> Callable[[Array], Array]:
    """Normal numbers, of variance 1 / fan-in, the first size of `shape`, unless `std` is given."""
    scale = shape[0] ** -0.5 if std is None else std
    return lambda key: scale * jax.random.normal(key, shape)


def zeros(*shape: int) -> Callable[[Array], Array]:
    """Zeros, whatever the key."""
    return lambda key: jnp.zeros(shape)


def gelu(x: Array) -> Array:
    """The tanh form of GELU (Hendrycks, Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=True)


@dataclasses.dataclass(frozen=True)
class Affine(InnerModel):
    """Sᵀ x + b, the inner model of TTT-Linear without its norm.

    Attributes:
        std: standard deviation of the start of S; b starts from zeros.
    """

    std: float = 0.02
    layers = (("S", "b"),)

    def parameters(self, K: int, V: int) -> Makers:
        """`S [K, V]` and `b [V]`."""
        return {"S": normal(K, V, std=self.std), "b": zeros(V)}

    def __call__(self, weights: Mapping[str, Array], x: Array) -> Array:
        """`[K] -> [V]`."""
        return x @ weights["S"] + weights["b"]


@dataclasses.dataclass(frozen=True)
class MLP(InnerModel):
    """W2ᵀ GELU(W1ᵀ x + b1) + b2.

    Attributes:
        width: hidden units, in units of V.
        std: standard deviation of the start of both matrices; None is 1 / √fan-in.
    """

    width: int = 4
    std: float | None = None
    layers = (("W1", "b1"), ("W2", "b2"))

    def parameters(self, K: int, V: int) -> Makers:
        """`W1 [K, width V]`, `b1`, `W2 [width V, V]`, `b2`."""
        hidden = self.width * V
        return {
            "W1": normal(K, hidden, std=self.std),
            "b1": zeros(hidden),
            "W2": normal(hidden, V, std=self.std),
            "b2": zeros(V),
        }

    def __call__(self, weights: Mapping[str, Array], x: Array) -> Array:
        """`[K] -> [V]`."""
        hidden = gelu(x @ weights["W1"] + weights["b1"])
        return hidden @ weights["W2"] + weights["b2"]


@dataclasses.dataclass(frozen=True)
class SwiGLU(InnerModel):
    """W2ᵀ (silu(W1ᵀ x) ∘ W3ᵀ x), the fast network of LaCT (Zhang et al. 2025, arXiv 2505.23884).

    Attributes:
        width: hidden units, in units of V.
    """

    width: int = 2

    def parameters(self, K: int, V: int) -> Makers:
        """`W1 [K, width V]`, `W3` of the same shape, `W2 [width V, V]`."""
        hidden = self.width * V
        return {
            "W1": normal(K, hidden),
            "W3": normal(K, hidden),
            "W2": normal(hidden, V),
        }

    def __call__(self, weights: Mapping[str, Array], x: Array) -> Array:
        """`[K] -> [V]`."""
        return (jax.nn.silu(x @ weights["W1"]) * (x @ weights["W3"])) @ weights["W2"]


@dataclasses.dataclass(frozen=True)
class ResidualNorm(InnerModel):
    """x + LN(f(x)) with gain and bias that only the outer optimiser trains; K = V.

    The inner model of TTT-Linear and TTT-MLP (Sun et al. 2024, arXiv 2407.04620).

    Attributes:
        inner: f, with weights of other names.
        eps: added to the variance.
    """

    inner: Affine | MLP = Affine()
    eps: float = 1e-6
    fixed = ("gain", "bias")

    def parameters(self, K: int, V: int) -> Makers:
        """The weights of f, and `gain [V]` and `bias [V]`.

        Raises:
            ValueError: K and V differ.
        """
        if K != V:
            raise ValueError(f"x + LN(f(x)) takes and returns vectors of one size, got {K} and {V}")
        return self.inner.parameters(K, V) | {"gain": lambda key: jnp.ones(V), "bias": zeros(V)}

    def norm(self, weights: Mapping[str, Array], z: Array) -> Array:
        """LN(z): `[V]`."""
        return layer_norm(z, weights["gain"], weights["bias"], self.eps)

    def __call__(self, weights: Mapping[str, Array], x: Array) -> Array:
        """`[K] -> [K]`."""
        return x + self.norm(weights, self.inner(weights, x))


def slow_weights(makers: Makers, given: dict[str, Array]) -> dict[str, Array]:
    """Slow weights by name, float32: the given ones, and the others drawn from `key(0)`.

    Raises:
        TypeError: an array that no maker makes.
    """
    unknown = sorted(set(given) - set(makers))
    if unknown:
        raise TypeError(f"the rule has parameters {sorted(makers)}, got {unknown}")
    slow = {}
    for salt, (name, make) in enumerate(makers.items()):
        x = given[name] if name in given else make(jax.random.fold_in(jax.random.key(0), salt))
        slow[name] = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return slow
