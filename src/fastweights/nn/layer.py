"""The interface of a decoder's layers: one call for training, prefill and decoding.

Whatever a layer remembers between tokens is its state: keys and values of attention, the fast
weights of a memory layer, the pending chunk of a layer that learns in place. A state is made by
`empty`, passed in and passed out. Training is the call without a state: every row starts from the
empty state, and the state at its end is dropped.

Layers are stacked (`models/decoder`), and so are their states: arrays lead with [turns, B]. A layer
gets the stack and its own place in it, so that it can write into the stack where it stands.
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import ArrayLike

from fastweights.nn.in_place_ridge import Ridge


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["embedded", "positions", "segment_ids", "lengths", "valid", "passed"],
    meta_fields=["fresh", "commits", "stats", "ridge"],
)
@dataclasses.dataclass(frozen=True)
class Reading:
    """The tokens that a forward pass reads, and their places.

    Attributes:
        embedded: token embeddings `[B, T, D]`.
        positions: `[B, T]` int, from 0 at the start of each document.
        segment_ids: `[B, T]` int, documents of a packed row, 0 for padding; None is a document a
            row.
        lengths: `[B]` int, tokens that each row has read before; None without a state.
        valid: `[B, T]` bool, a prefix of each row; None without a state, every token is read.
        fresh: no row has read a token before.
        commits: a row may complete a chunk of a layer that writes by chunks. Otherwise the tokens
            end before the chunk does, or at its end, and `commit` is called after them.
        stats: measure what is costly to measure.
        passed: `[B]` bool, state passing in training: rows that start from the final fast weights
            of the row before them, see `InPlaceMLP`; None for no row.
        ridge: after the tokens, in-place layers fit them by a closed-form write; it needs a state,
            and `commits`.
    """

    embedded: Array
    positions: Array
    segment_ids: Array | None = None
    lengths: Array | None = None
    valid: Array | None = None
    fresh: bool = True
    commits: bool = True
    stats: bool = False
    passed: Array | None = None
    ridge: Ridge | None = None


class Stacked(NamedTuple):
    """The states of stacked layers, and the one that is meant."""

    arrays: Any  # pytree with leaves [turns, ...]
    turn: ArrayLike  # [] int

    def one(self) -> Any:
        """The state of this layer: leaves `[...]`."""
        return jax.tree.map(lambda x: x[self.turn], self.arrays)

    def replaced(self, new: Any) -> "Stacked":
        """The stack with another state for this layer; a leaf that is None stays as it is."""
        put = lambda new, old: old if new is None else old.at[self.turn].set(new)
        is_none = lambda x: x is None
        return Stacked(jax.tree.map(put, new, self.arrays, is_leaf=is_none), self.turn)


class Layer(nnx.Module):
    """Base of a decoder's layers; the defaults are those of a layer that remembers no token."""

    #: the state holds past tokens, and is no memory that can be unlearned
    is_cache: ClassVar[bool] = False

    @property
    def commit_every(self) -> int | None:
        """Tokens of a chunk after which `commit` is called; None for a layer without chunks."""
        return None

    def empty(self, rows: int, room: int) -> Any:
        """The state of one layer before the first token, a NamedTuple of arrays `[B, ...]` or None.

        Args:
            rows: B.
            room: tokens that a row can hold.
        """
        del rows, room

    def axes(self) -> dict[str, Any]:
        """By field of the state, the `PartitionSpec` of each array, without its axis of turns."""
        return {}

    def advance(
        self, x: Array, reading: Reading, state: Stacked | None = None
    ) -> tuple[Array, Stacked | None, dict[str, Array]]:
        """Read `x [B, T, D]`: the output `[B, T, D]`, the next state, and statistics."""
        raise NotImplementedError

    def commit(self, state: Stacked, due: Array, *, at_once: bool) -> Stacked:
        """Write the pending chunk of the rows that `due [B]` names; a matrix per row.

        Args:
            state: of stacked layers.
            due: `[B]` bool.
            at_once: compute all rows together. Otherwise rows are taken one after the other, and a
                row that is not due costs no time.
        """
        del due, at_once
        return state

    def drift_of(self, state: Any) -> Array | None:
        """The distance of fast weights from the slow weights, `[B]` float32; None for no such."""
        del state


def put(x: Array, turn: ArrayLike, slots: Array, new: Array, axis: int = 2) -> Array:
    """`x [turns, B, .., S, ..]` with `new [B, T, ..]` in one layer's `slots [B, T]`.

    S is at `axis`, and slots beyond it are dropped. At axis 2 it is
    `x.at[turn, arange(B)[:, None], slots].set(new, mode="drop")`, said so that XLA sees that
    a row only goes to its own row: rows that are split over devices stay where they are.
    """
    where = jnp.stack([jnp.broadcast_to(turn, slots.shape), slots], -1)
    dimensions = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(2, new.ndim)),
        inserted_window_dims=(0, axis),
        scatter_dims_to_operand_dims=(0, axis),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    drop = lax.GatherScatterMode.FILL_OR_DROP
    return lax.scatter(x, where, new.astype(x.dtype), dimensions, mode=drop)
