"""The slow weights around an update rule: projections to the slots of its token, trained starts."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from fastweights.rules import Rule, Slot


def is_driven(rule: Rule) -> bool:
    """Whether the rule takes the input as it is, in its only slot."""
    return [slot.range for slot in rule.slots.values()] == ["drive"]


def slow_weights(rule: Rule, K: int, V: int, *, heads: int | None = None, rngs: nnx.Rngs):
    """`rule.parameters` as flax parameters by name, with a leading axis of `heads` if given."""

    def made(make: Callable[[Array], Array]) -> Array:
        if heads is None:
            return make(rngs.params())
        return jax.vmap(make)(jax.random.split(rngs.params(), heads))

    return nnx.Dict({name: nnx.Param(made(f)) for name, f in rule.parameters(K, V).items()})


class Slots(nnx.Module):
    """Projections of one input to every slot of a rule's token, a token a head.

    Args:
        rule: the update rule.
        heads: H.
        K: size of keys and queries.
        V: size of values.
        make: a linear layer from the input to a number of outputs.
        rngs: flax's source of random keys.
    """

    def __init__(
        self,
        rule: Rule,
        heads: int,
        K: int,
        V: int,
        make: Callable[[int], nnx.Linear],
        *,
        rngs: nnx.Rngs,
    ):
        self.rule, self.heads, self.K, self.V = rule, heads, K, V
        sizes = self.sizes
        self.project = nnx.Dict({name: make(heads * n) for name, n in sizes.items()})
        decaying = [name for name, slot in rule.slots.items() if slot.range == "log_decay"]
        self.decays = nnx.Dict({name: Decay(heads, sizes[name], rngs=rngs) for name in decaying})

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers a head and token, by slot name."""
        axes = {"K": self.K, "V": self.V, "": 1}
        return {name: axes[slot.axis] for name, slot in self.rule.slots.items()}

    def projected(self, x: Array) -> dict[str, Array]:
        """`[..., D]` to `[..., H n]` by slot name, of any size."""
        return {name: project(x) for name, project in self.project.items()}

    def in_range(self, projected: dict[str, Array]) -> dict[str, Array]:
        """Projections `[..., H n]` to slots `[..., H, n]` or `[..., H]`, each in its range.

        Gates and decays are float32.
        """
        made = {}
        for name, slot in self.rule.slots.items():
            y = projected[name]
            y = y.reshape(*y.shape[:-1], self.heads, self.sizes[name])
            y = self.decays[name](y) if name in self.decays else in_range(y, slot)
            made[name] = y if slot.axis else y[..., 0]
        return made


def in_range(x: Array, slot: Slot, eps: float = 1e-6) -> Array:
    """A projection `[..., n]` as a unit vector or a float32 gate; other ranges as it is."""
    if slot.range not in ("unit", "gate"):
        return x
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if slot.range == "gate":
        return jax.nn.sigmoid(wide)
    size = jax.lax.rsqrt(jnp.sum(wide * wide, -1, keepdims=True) + eps)
    return (wide * size).astype(x.dtype)


class Decay(nnx.Module):
    """A log decay from a projection: -exp(r) softplus(x + b), r a number a head.

    The parametrisation of Mamba-2 (Dao, Gu 2024, arXiv 2405.21060), which gated delta networks
    share. It starts with exp(r) uniform in [1, 16] and softplus(b) log-uniform in [0.001, 0.1]:
    heads forget over tens to thousands of tokens. Parameters and result are float32, because a
    bfloat16 decay near 1 has three digits and multiplies the state at every token.

    Args:
        heads: H.
        size: values a head, n.
        rngs: flax's source of random keys.
    """

    def __init__(self, heads: int, size: int, *, rngs: nnx.Rngs):
        rate = jax.random.uniform(rngs.params(), (heads,), jnp.float32, 1.0, 16.0)
        low, high = math.log(1e-3), math.log(1e-1)
        step = jnp.exp(jax.random.uniform(rngs.params(), (heads * size,), jnp.float32, low, high))
        self.rate = nnx.Param(jnp.log(rate))
        self.bias = nnx.Param(step + jnp.log(-jnp.expm1(-step)))  # the inverse of softplus
        self.size = size

    def __call__(self, x: Array) -> Array:
        """`[..., H, n] -> [..., H, n]` float32, below 0."""
        heads = (1,) * (x.ndim - 2) + (-1,)
        bias = self.bias[...].reshape(*heads, self.size)
        rate = jnp.exp(self.rate[...]).reshape(*heads, 1)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return -rate * jax.nn.softplus(wide + bias)
