"""The slow weights around an update rule: projections to the slots of its token, trained starts."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from fastweights.rules import Rule, Slot


def is_driven(rule: Rule) -> bool:
    """Whether the rule takes the input as it is, in its only slot."""
    return [slot.range for slot in rule.slots.values()] == ["drive"]


def slow_weights(rule: Rule, K: int, V: int, *, rngs: nnx.Rngs) -> nnx.Dict:
    """`rule.parameters` as flax parameters, by name."""
    makers = rule.parameters(K, V)
    return nnx.Dict({name: nnx.Param(make(rngs.params())) for name, make in makers.items()})


def in_range(x: Array, slot: Slot, eps: float = 1e-6) -> Array:
    """A projection `[..., n]` brought into the range of its slot; a gate or decay in float32."""
    if slot.range == "unit":
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        size = jax.lax.rsqrt(jnp.sum(wide * wide, -1, keepdims=True) + eps)
        return (wide * size).astype(x.dtype)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if slot.range == "gate":
        return jax.nn.sigmoid(wide)
    if slot.range == "log_decay":
        return -jax.nn.softplus(wide)
    return x


class SlotProjections(nnx.Module):
    """Projections of one input to every slot of a rule's token.

    Args:
        features: size of the input.
        rule: the update rule.
        K: size of keys and queries.
        V: size of values.
        rngs: flax's source of random keys.
    """

    def __init__(self, features: int, rule: Rule, K: int, V: int, *, rngs: nnx.Rngs):
        sizes = {"K": K, "V": V, "": 1}
        self.rule = rule
        self.projections = nnx.Dict(
            {
                name: nnx.Linear(features, sizes[slot.axis], rngs=rngs)
                for name, slot in rule.slots.items()
            }
        )

    def __call__(self, x: Array) -> dict[str, Array]:
        """`[..., features]` to `[..., K]`, `[..., V]` or `[...]` by slot name."""
        made = {}
        for name, slot in self.rule.slots.items():
            y = in_range(self.projections[name](x), slot)
            made[name] = y if slot.axis else y[..., 0]
        return made


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
        return -rate * jax.nn.softplus(x.astype(jnp.float32) + bias)
