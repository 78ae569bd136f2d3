"""The state of an in-place layer in inference: read, store, and write each complete chunk.

A write happens at multiples of the chunk size, counted from the start of each row's own sequence,
in pieces of any size: so the fast weights are those of one forward pass over the whole sequence.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from fastweights.nn.in_place_ridge import fitted
from fastweights.nn.layer import Reading, put


class Fast(NamedTuple):
    """Fast weights of a layer that learns in place, and the chunk it is reading.

    Rows without a write of their own share one matrix: with G matrices and B rows, matrix g belongs
    to rows g B/G to (g + 1) B/G. It is only copied when a row can complete a chunk.
    """

    weights: Array  # [G, d, f] float32, read by tokens
    z: Array  # [B, C, f], activities of the MLP
    target: Array  # [B, C, d], before convolution
    #: [G, d, f] float32, W0 and all writes, where a cap or a row norm makes tokens read another one
    written: Array | None = None

    #: fields whose rows may be shared
    shared = ("weights", "written")  # pyright: ignore[reportGeneralTypeIssues]

    @property
    def sum(self) -> Array:
        """W0 and all writes: `[G, d, f]`."""
        return self.weights if self.written is None else self.written


def read_rows(mlp: Any, weights: Array, z: Array) -> Array:
    """The outputs of rows that share G matrices: `[G, d, f]`, `[B, T, f] -> [B, T, d]`."""
    groups = weights.shape[0]
    together = z.reshape(groups, -1, z.shape[-1])
    return jax.vmap(mlp.apply)(weights, together).reshape(*z.shape[:2], -1)


def remember(pending: Array, turn: ArrayLike, new: Array, reading: Reading, chunk: int) -> Array:
    """Put new values into the slots of their chunk, which they must not leave.

    Args:
        pending: `[turns, B, C, n]`.
        turn: `[]` int, which layer of the stack.
        new: `[B, T, n]`.
        reading: the tokens; padding is not put anywhere.
        chunk: C.
    """
    assert reading.lengths is not None and reading.valid is not None
    place = (reading.lengths % chunk)[:, None] + jnp.arange(new.shape[1])[None, :]
    return put(pending, turn, jnp.where(reading.valid, place, chunk), new)


def read_and_write(
    mlp: Any, fast: Fast, z: Array, target: Array, reading: Reading
) -> tuple[Array, Fast]:
    """Any number of tokens through one layer, with the writes of the chunks they complete.

    Args:
        mlp: the layer.
        fast: its state, a matrix per row.
        z: `[B, T, f]`.
        target: `[B, T, d]`.
        reading: the tokens.

    Returns:
        Outputs `[B, T, d]` and the new state.
    """
    assert reading.lengths is not None and reading.valid is not None
    chunk, length, valid = mlp.ttt.chunk, z.shape[1], reading.valid
    offset = reading.lengths % chunk
    pieces = -(-(length if reading.fresh else chunk - 1 + length) // chunk)
    place = offset[:, None] + jnp.arange(length)[None, :]

    def line_up(pending: Array, new: Array) -> Array:
        """Pending and new values on the grid of chunks: `[pieces, B, C, n]`."""
        line = jnp.pad(pending, [(0, 0), (0, (pieces - 1) * chunk), (0, 0)])
        line = put(line[None], 0, jnp.where(valid, place, pieces * chunk), new)[0]
        return jnp.moveaxis(line.reshape(len(z), pieces, chunk, -1), 1, 0).astype(new.dtype)

    complete = (offset + valid.sum(1)) // chunk  # [B], chunks that complete
    lined_z, lined_target = line_up(fast.z, z), line_up(fast.target, target)

    look = lambda weights: weights if mlp.reads_sum else jax.vmap(mlp.effective)(weights)

    def body(weights: Array, piece: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        z, target, j = piece
        y = read_rows(mlp, look(weights), z)
        return lax.cond(jnp.any(complete > j), write, lambda w, *_: w, weights, z, target, j), y

    def write(weights: Array, z: Array, target: Array, j: Array) -> Array:
        written = jax.vmap(mlp.update)(weights, z, mlp.targets(target))
        return jnp.where((complete > j)[:, None, None], written, weights)

    weights, y = lax.scan(body, fast.sum, (lined_z, lined_target, jnp.arange(pieces)))
    y = jnp.moveaxis(y, 0, 1).reshape(len(z), pieces * chunk, -1)
    y = jnp.take_along_axis(y, place[:, :, None], 1)
    left = jnp.minimum(complete, pieces - 1)  # if the last piece is complete, no token waits
    rest = lambda line: jnp.take_along_axis(line, left[None, :, None, None], 0)[0]
    written = None if mlp.reads_sum else weights
    return y, Fast(look(weights), rest(lined_z), rest(lined_target), written)


def fit(mlp: Any, fast: Fast, z: Array, target: Array, reading: Reading) -> Fast:
    """The state after the closed-form write of the tokens that were just read.

    Args:
        mlp: the layer.
        fast: its state after them, a matrix per row.
        z: `[B, T, f]`.
        target: `[B, T, d]`.
        reading: the tokens, and the numbers of the write.
    """
    assert reading.ridge is not None and reading.valid is not None
    there = jnp.where(reading.valid[:, :, None], target, 0)  # convolutions see no padding
    v = mlp.targets(there, chunk=z.shape[1])
    write = functools.partial(fitted, reading.ridge, mlp.slow)
    after = jax.vmap(write)(fast.sum, z, v, reading.valid)
    if mlp.reads_sum:
        return fast._replace(weights=after)
    return fast._replace(weights=jax.vmap(mlp.effective)(after), written=after)
