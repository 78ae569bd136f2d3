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
from fastweights.rules import Hebbian
from fastweights.rules.hebbian import Matrix

#: steps per block that has the matrix before it
MATRIX_BLOCK = 16
#: fewest steps per block, and most blocks, with a history that grows; each block is compiled
MIN_BLOCK, MAX_BLOCKS = 8, 6

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
    """The fast-weight RNN of Ba et al. 2016 (arXiv 1610.06258, equations 1, 2 and 5).

    z = W h(t) + C x(t); h_0 = f(z); h_{s+1} = f(LN[z + A(t) h_s]); h(t+1) = h_S; then A is written
    with h(t+1). The layer norm works over the units, inside f, at every settling step and not on
    h_0; its gain and bias are shared by all steps. W starts at `identity` · I.

    Args:
        features: input size I.
        hidden: number of units H.
        rule: what is written and how it is read.
        identity: scale of the recurrent weights' start.
        start: how the input weights start.
        rngs: flax's source of random keys.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        rule: Hebbian,
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
        self.norm = nnx.LayerNorm(hidden, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def initial(self, length: int) -> FastCarry:
        """Zero activity and empty fast weights, in the form that is cheaper for `length` writes."""
        return FastCarry(jnp.zeros(self.hidden), self.rule.init(self.hidden, length))

    def project(self, xs: Array) -> Array:
        """C x for the whole sequence: `[T, I] -> [T, H]`."""
        return self.input(xs)

    def boundary(self, h: Array, drive: Array) -> Array:
        """W h + C x, the part of the input that stays while the activity settles: `[H]`."""
        return self.recurrent(h) + drive

    def step(self, carry: FastCarry, drive: Array) -> tuple[FastCarry, Array]:
        """Settle under the boundary condition, then write what settled."""
        z = self.boundary(carry.h, drive)
        h = self.rule.read(carry.fast, z, norm=self.norm)
        return FastCarry(h, self.rule.write(carry.fast, h)), h

    def _block(self, carry: FastCarry, drives: Array) -> tuple[FastCarry, Array]:
        """Some steps, `drives [C, H]`, folded into the fast weights before them at the end.

        Those are a matrix, or a history of the steps before and nothing more: see `Hebbian.close`.
        """
        opened = FastCarry(carry.h, self.rule.open(carry.fast, len(drives)))
        after, hs = jax.lax.scan(self.step, opened, drives)
        return FastCarry(after.h, self.rule.close(after.fast)), hs

    def unroll(self, drives: Array) -> tuple[FastCarry, Array]:
        """`step` over a whole sequence `[T, H]` from zero activity, block by block; T >= 1.

        The same as a scan over `step`, but for the backward pass it saves the fast weights at the
        borders of blocks, where a scan saves them at every step and spends most of its time there.
        """
        carry, length, pieces = self.initial(len(drives)), len(drives), []
        if isinstance(carry.fast, Matrix):
            size = min(length, MATRIX_BLOCK)
            whole = drives[: length // size * size]
            carry, hs = jax.lax.scan(self._block, carry, whole.reshape(-1, size, self.hidden))
            pieces.append(hs.reshape(whole.shape))
            drives = drives[len(whole) :]
        else:
            # a scan's carry has one size; this one grows, so early steps do not pay for late ones
            carry = FastCarry(carry.h, self.rule.init(self.hidden, 0))
            size = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
        for start in range(0, len(drives), size):
            carry, hs = self._block(carry, drives[start : start + size])
            pieces.append(hs)
        return carry, jnp.concatenate(pieces)


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
    rule: Hebbian,
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
