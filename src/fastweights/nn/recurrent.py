"""Recurrent layers on one unbatched sequence; batch comes from `jax.vmap`.

Every cell has `initial(length) -> carry`, `project(xs) -> drives` (the part of its input that does
not wait for the past, one matrix product for the whole sequence) and `step(carry, drive) -> (carry,
h)`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from fastweights.errors import ConfigError
from fastweights.nn.associative_lstm import AssociativeLSTM
from fastweights.nn.initializers import Start, kernel_start, scaled_identity
from fastweights.nn.slots import Slots, is_driven, slow_weights
from fastweights.rules import Rule

CellName = Literal["fast-weights", "irnn", "ln-rnn", "lstm", "associative-lstm"]


class Cell(Protocol):
    """What `unroll` needs of a recurrent cell."""

    def initial(self, length: int) -> Any:
        """The carry before the first of `length` steps."""
        ...

    def project(self, xs: Array) -> Array:
        """Inputs `[T, I]` to what each step takes, `[T, ...]`, every row by itself."""
        ...

    def step(self, carry: Any, drive: Array) -> tuple[Any, Array]:
        """One time step: the next carry and the activity `[H]`."""
        ...


def unroll(cell: Cell, xs: Array) -> tuple[Any, Array]:
    """Run a cell over one sequence `[T, I]`; returns the final carry and activities `[T, H]`."""
    return unroll_drives(cell, cell.project(xs))


def unroll_drives(cell: Cell, drives: Array) -> tuple[Any, Array]:
    """`unroll` from what `cell.project` makes of the sequence, `[T, ...]`.

    For callers that need not project every step, such as those whose inputs repeat.
    """
    if isinstance(cell, FastWeightCell):
        return cell.unroll(drives)
    return jax.lax.scan(cell.step, cell.initial(len(drives)), drives)


class FastCarry(NamedTuple):
    """Activity and fast weights between two steps of `FastWeightCell`."""

    h: Array  # [H]
    fast: Any  # the rule's state


class FastWeightCell(nnx.Module):
    """A recurrent layer with fast weights beside its activity (Ba et al. 2016, arXiv 1610.06258).

    z = W h(t) + C x(t). A rule with a slot of range "drive" gets z as it is and answers with the
    activity h(t+1): the paper's rule, `Hebbian`, settles under z (equations 2 and 5) with a layer
    norm whose gain and bias are parameters of the rule. Any other rule gets its slots as
    projections of f(z), f = ReLU, and h(t+1) = f(LN[z + y]) with y what it reads, the paper's
    equation for one settling step. W starts at `identity` · I.

    Args:
        features: input size I.
        hidden: number of units H, also the size of keys and values.
        rule: the update rule.
        identity: scale of the recurrent weights' start.
        start: how the input weights start.
        rngs: flax's source of random keys.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        rule: Rule,
        *,
        identity: float = 0.05,
        start: Start = "paper",
        rngs: nnx.Rngs,
    ):
        self.rule = rule
        self.hidden = hidden
        self.input = nnx.Linear(
            features, hidden, use_bias=False, kernel_init=kernel_start(start), rngs=rngs
        )
        self.recurrent = nnx.Linear(
            hidden, hidden, use_bias=False, kernel_init=scaled_identity(identity), rngs=rngs
        )
        self.slow = slow_weights(rule, hidden, hidden, rngs=rngs)
        driven = is_driven(rule)
        linear = lambda out: nnx.Linear(hidden, out, rngs=rngs)
        self.slots = None if driven else Slots(rule, 1, hidden, hidden, linear, rngs=rngs)
        self.norm = (
            None
            if driven
            else nnx.LayerNorm(hidden, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        )

    def initial(self, length: int) -> FastCarry:
        """Zero activity and empty fast weights, in the form that is cheaper for `length` writes."""
        slow = {name: x[...] for name, x in self.slow.items()}
        fast = self.rule.init(self.hidden, self.hidden, length=length, **slow)
        return FastCarry(jnp.zeros(self.hidden), fast)

    def project(self, xs: Array) -> Array:
        """C x for the whole sequence: `[T, I] -> [T, H]`."""
        return self.input(xs)

    def boundary(self, h: Array, drive: Array) -> Array:
        """W h + C x, the slow weights' part of the input: `[H]`."""
        return self.recurrent(h) + drive

    def step(self, carry: FastCarry, drive: Array) -> tuple[FastCarry, Array]:
        """One step of the rule and the next activity."""
        z = self.boundary(carry.h, drive)
        if self.slots is None or self.norm is None:
            (name,) = self.rule.slots
            fast, h = self.rule.step(carry.fast, self.rule.token(**{name: z}))
            return FastCarry(h, fast), h
        slots = self.slots.in_range(self.slots.projected(jax.nn.relu(z)))
        token = self.rule.token(**{name: x[0] for name, x in slots.items()})  # of the one head
        fast, y = self.rule.step(carry.fast, token)
        h = jax.nn.relu(self.norm(z + y))
        return FastCarry(h, fast), h

    def unroll(self, drives: Array) -> tuple[FastCarry, Array]:
        """`step` over a whole sequence `[T, H]` from zero activity, in the rule's form; T >= 1."""

        def body(fast: Any, h: Array, drive: Array) -> tuple[Any, Array, Array]:
            after, y = self.step(FastCarry(h, fast), drive)
            return after.fast, after.h, y

        h, fast = self.initial(len(drives))
        fast, h, hs = self.rule.recur(fast, h, body, drives, fresh=True)
        return FastCarry(h, fast), hs


class RNN(nnx.Module):
    """h(t+1) = ReLU(norm(W h(t) + C x(t) + b)), with W started at `identity` · I.

    Without a norm this is the IRNN (Le, Jaitly, Hinton 2015), at the 0.5 · I of Ba et al. 2016.
    With layer norm it is a control for fast weights, which have that norm and the IRNN has not.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        norm: bool = False,
        identity: float = 0.5,
        start: Start = "paper",
        rngs: nnx.Rngs,
    ):
        self.hidden = hidden
        self.input = nnx.Linear(features, hidden, kernel_init=kernel_start(start), rngs=rngs)
        self.recurrent = nnx.Linear(
            hidden, hidden, use_bias=False, kernel_init=scaled_identity(identity), rngs=rngs
        )
        self.norm = (
            nnx.LayerNorm(hidden, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
            if norm
            else None
        )

    def initial(self, length: int) -> Array:
        """Zero activity `[H]`, whatever the length."""
        return jnp.zeros(self.hidden)

    def project(self, xs: Array) -> Array:
        """C x + b for the whole sequence: `[T, I] -> [T, H]`."""
        return self.input(xs)

    def step(self, carry: Array, drive: Array) -> tuple[Array, Array]:
        """One step; carry and output are the activity."""
        z = self.recurrent(carry) + drive
        h = jax.nn.relu(z if self.norm is None else self.norm(z))
        return h, h


class LSTM(nnx.Module):
    """Flax's LSTM (Hochreiter & Schmidhuber 1997) behind the cell interface."""

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs):
        self.hidden = hidden
        self.cell = nnx.OptimizedLSTMCell(features, hidden, rngs=rngs)

    def initial(self, length: int) -> tuple[Array, Array]:
        """Zero cell and zero activity, `[H]` each."""
        return jnp.zeros(self.hidden), jnp.zeros(self.hidden)

    def project(self, xs: Array) -> Array:
        """The inputs themselves: flax's cell projects them in its step."""
        return xs

    def step(self, carry: tuple[Array, Array], drive: Array) -> tuple[tuple[Array, Array], Array]:
        """One step of flax's cell."""
        return self.cell(carry, drive)


def make_cell(
    name: CellName,
    features: int,
    hidden: int,
    rule: Rule,
    *,
    start: Start = "paper",
    rngs: nnx.Rngs,
) -> FastWeightCell | RNN | LSTM | AssociativeLSTM:
    """The recurrent cell a config names.

    `rule` matters to "fast-weights" only; the LSTMs keep their own start.

    Raises:
        ConfigError: there is no cell of that name.
    """
    makers: dict[str, Callable[[], FastWeightCell | RNN | LSTM | AssociativeLSTM]] = {
        "fast-weights": lambda: FastWeightCell(features, hidden, rule, start=start, rngs=rngs),
        "irnn": lambda: RNN(features, hidden, start=start, rngs=rngs),
        "ln-rnn": lambda: RNN(features, hidden, norm=True, start=start, rngs=rngs),
        "lstm": lambda: LSTM(features, hidden, rngs=rngs),
        "associative-lstm": lambda: AssociativeLSTM(features, hidden, rngs=rngs),
    }
    if name not in makers:
        raise ConfigError(
            f"there is no recurrent cell {name!r}",
            where="model.cell",
            next=f"use one of: {', '.join(makers)}",
        )
    return makers[name]()
