"""In-place layers while tokens come in pieces: read, remember, and write a chunk when it is whole.

A write happens at multiples of the chunk size, counted from the start of each row's own sequence,
whatever the pieces: so the fast weights are those of one forward pass over the whole sequence.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from fastweights.inference.state import Fast, State, put
from fastweights.models.decoder import Decoder
from fastweights.nn.in_place import InPlaceMLP
from fastweights.nn.mesh import BATCH, sizes


def read(mlp: InPlaceMLP, weights: Array, z: Array) -> Array:
    """What rows read from their fast weights: `[G, d, f]`, `[B, T, f] -> [B, T, d]`."""
    groups = weights.shape[0]
    together = z.reshape(groups, -1, z.shape[-1])
    return jax.vmap(mlp.apply)(weights, together).reshape(*z.shape[:2], -1)


def remember(
    pending: Array, turn: Array, new: Array, lengths: Array, valid: Array, chunk: int
) -> Array:
    """Put what came of tokens into the slots of their chunk, which they must not leave.

    Args:
        pending: `[turns, B, C, n]`.
        turn: `[]` int, which layer of the stack.
        new: `[B, T, n]`.
        lengths: `[B]` tokens read before.
        valid: `[B, T]` bool; what is padding is not put anywhere.
        chunk: C.
    """
    place = (lengths % chunk)[:, None] + jnp.arange(new.shape[1])[None, :]
    return put(pending, turn, jnp.where(valid, place, chunk), new)


def read_and_write(
    mlp: InPlaceMLP,
    fast: Fast,
    z: Array,
    target: Array,
    lengths: Array,
    valid: Array,
    *,
    fresh: bool,
) -> tuple[Array, Fast]:
    """Any number of tokens through one layer, with the writes of the chunks they complete.

    Args:
        mlp: the layer.
        fast: its state, without the axis of turns, a matrix per row.
        z: `[B, T, f]`.
        target: `[B, T, d]`.
        lengths: `[B]` tokens read before; 0 if `fresh`.
        valid: `[B, T]` bool.
        fresh: no row has read anything.

    Returns:
        Outputs `[B, T, d]` and the new state.
    """
    chunk, length = mlp.ttt.chunk, z.shape[1]
    offset = lengths % chunk
    pieces = -(-(length if fresh else chunk - 1 + length) // chunk)
    place = offset[:, None] + jnp.arange(length)[None, :]

    def line_up(pending: Array, new: Array) -> Array:
        """What waits and what comes, on the grid of chunks: `[pieces, B, C, n]`."""
        line = jnp.pad(pending, [(0, 0), (0, (pieces - 1) * chunk), (0, 0)])
        line = put(line[None], 0, jnp.where(valid, place, pieces * chunk), new)[0]
        return jnp.moveaxis(line.reshape(len(z), pieces, chunk, -1), 1, 0)

    whole = (offset + valid.sum(1)) // chunk  # [B], chunks that complete
    lined_z, lined_target = line_up(fast.z, z), line_up(fast.target, target)

    def body(weights: Array, piece: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        z, target, j = piece
        y = read(mlp, weights, z)
        return lax.cond(jnp.any(whole > j), write, lambda w, *_: w, weights, z, target, j), y

    def write(weights: Array, z: Array, target: Array, j: Array) -> Array:
        written = update(mlp, weights, z, target)
        return jnp.where((whole > j)[:, None, None], written, weights)

    weights, y = lax.scan(body, fast.weights, (lined_z, lined_target, jnp.arange(pieces)))
    y = jnp.moveaxis(y, 0, 1).reshape(len(z), pieces * chunk, -1)
    y = jnp.take_along_axis(y, place[:, :, None], 1)
    left = jnp.minimum(whole, pieces - 1)  # if the last piece is whole, nothing waits
    rest = lambda line: jnp.take_along_axis(line, left[None, :, None, None], 0)[0]
    return y, Fast(weights, rest(lined_z), rest(lined_target))


def update(mlp: InPlaceMLP, weights: Array, z: Array, target: Array) -> Array:
    """The write of one whole chunk a row: `[B, d, f]`, `[B, C, f]`, `[B, C, d] -> [B, d, f]`."""
    return jax.vmap(mlp.update)(weights, z, mlp.targets(target))


def write_due(model: Decoder, state: State, due: Array) -> State:
    """Write the chunk of the rows that `due [B]` names, in every layer that learns.

    Rows are taken one after the other, and one that is not due costs nothing. Where rows are split
    over devices they are taken at once: one after the other would bring each to all devices.
    """
    there = sizes(model.embed.embedding[...])
    at_once = any(there.get(axis, 1) > 1 for axis in BATCH)

    def row(mlp: InPlaceMLP, weights: Array, z: Array, target: Array, due: Array) -> Array:
        one = lambda w: update(mlp, w[None], z[None], target[None])[0]
        return lax.cond(due, one, lambda w: w, weights)

    def layer(_: None, stack: tuple[InPlaceMLP, Fast]) -> tuple[None, Array]:
        mlp, fast = stack
        if at_once:
            written = update(mlp, *fast)
            return None, jnp.where(due[:, None, None], written, fast.weights)
        return None, lax.map(lambda x: row(mlp, *x), (*fast, due))

    def place(mlp: object, fast: Fast | None) -> Fast | None:
        if fast is None or not isinstance(mlp, InPlaceMLP):
            return None
        return fast._replace(weights=lax.scan(layer, None, (mlp, fast))[1])

    fast = tuple(place(b.mlp, f) for b, f in zip(model.blocks, state.fast, strict=True))
    return state._replace(fast=fast)
