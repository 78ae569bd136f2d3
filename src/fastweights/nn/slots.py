"""The slow weights around an update rule: projections to the slots of its token, trained starts."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from fastweights.rules import Rule, Slot

#: gates and decays are products of the input plus a bias, in float32: a bfloat16 decay near 1 has
#: three digits, and is multiplied with itself for every token
SCALARS = ("gate", "log_decay")


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
    if slot.range == "gate":
        return jax.nn.sigmoid(x)
    if slot.range == "log_decay":
        return -jax.nn.softplus(x)
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
