"""Read a prompt, or more of it: ragged rows, right-padded, in pieces of any size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fastweights.errors import ConfigError
from fastweights.inference import checks
from fastweights.inference.state import State, advance, batch, capacity, empty, own_rows
from fastweights.models.decoder import Decoder
from fastweights.nn.in_place_ridge import Ridge

#: sizes are rounded up to multiples of it, so that few programs are compiled; short ones to
#: multiples of a quarter, since the padding would outweigh the text
BUCKET = 64


def bucket(size: int) -> int:
    """`size` rounded up; 1 stays 1, for reading token by token."""
    step = BUCKET if size > BUCKET else BUCKET // 4
    return 1 if size == 1 else -(-size // step) * step


def padded(tokens: np.ndarray) -> np.ndarray:
    """`[B, T]` padded to a bucket."""
    return np.pad(tokens, [(0, 0), (0, bucket(tokens.shape[1]) - tokens.shape[1])])


def completes(model: Decoder, before: np.ndarray, more: np.ndarray | int) -> bool:
    """Whether a row with `before [B]` tokens completes a chunk in the next `more`."""
    chunk = model.commit_every
    return chunk is not None and bool(np.any(before % chunk + more >= chunk))


@functools.partial(jax.jit, static_argnames=("max_length", "commits", "ridge"))
def _prefill(
    model: Decoder,
    tokens: Array,
    counts: Array,
    max_length: int,
    commits: bool,
    ridge: Ridge | None = None,
) -> State:
    start = empty(model, len(tokens), max_length)
    return advance(model, start, tokens, counts, fresh=True, commits=commits, ridge=ridge)


# between two pieces of a prompt no one else has the state: its memory becomes the next one's
@functools.partial(jax.jit, static_argnames=("commits",), donate_argnums=(1,))
def _read_on(model: Decoder, state: State, tokens: Array, counts: Array, commits: bool) -> State:
    return advance(model, state, tokens, counts, commits=commits)


@functools.partial(jax.jit, static_argnames=("commits", "ridge"))
def _extend(
    model: Decoder,
    state: State,
    tokens: Array,
    counts: Array,
    commits: bool,
    ridge: Ridge | None = None,
) -> State:
    return advance(model, state, tokens, counts, commits=commits, ridge=ridge)


def prefill(
    model: Decoder,
    tokens: ArrayLike,
    lengths: ArrayLike | None = None,
    *,
    max_length: int | None = None,
    piece: int | None = None,
    ridge: Ridge | None = None,
) -> State:
    """Read prompts from their start.

    Args:
        model: the decoder.
        tokens: `[B, T]` int, right-padded with anything.
        lengths: `[B]` int, tokens of each row, 1 to T; None is T for all.
        max_length: tokens a row of the state will hold; None is the model's `max_length`, or T if
            that is more.
        piece: the most tokens of a row read at a time, 512 for example. What full attention holds
            at once grows with `piece` times T then, where it grows with the square of T for None,
            all at once. The state is the same up to rounding.
        ridge: then write the prompt's last tokens once more in closed form, in every in-place
            layer; see `Ridge`. Not with `piece`: a prompt too long to read at once is a `prefill`
            of its first part, and an `extend` with `ridge` of the tokens to fit.

    Returns:
        The state: `state.logits [B, vocab]` are of the token after the last of each row.

    Raises:
        ConfigError: tokens outside the vocabulary, lengths that cannot be, too little room,
            `piece` is not positive, or a `ridge` that cannot be.
    """
    checks.ridge(model, ridge, piece)
    tokens, lengths = checks.prompt(model, tokens, lengths)
    if max_length is None:
        max_length = max(model.config.max_length, tokens.shape[1])
    checks.room(lengths, max_length)
    if piece is not None and piece < 1:
        raise ConfigError(f"piece is {piece}; it must be at least 1", where="piece")
    # pieces of one size, so that one program reads all but the first
    longest = tokens.shape[1]
    count = 1 if piece is None else -(-longest // piece)
    size = -(-longest // count)
    before, state = np.zeros_like(lengths), None
    for start in range(0, count * size, size):
        new, counts = tokens[:, start : start + size], np.clip(lengths - start, 0, size)
        new = np.pad(new, [(0, 0), (0, size - new.shape[1])])
        commits = completes(model, before, counts)
        if state is None:
            state = _prefill(model, padded(new), counts, max_length, commits, ridge)
        else:
            state = own_rows(state) if commits else state
            state = _read_on(model, state, padded(new), counts, commits)
        before = before + counts
    assert state is not None
    return state


def extend(
    model: Decoder,
    state: State,
    tokens: ArrayLike,
    lengths: ArrayLike | None = None,
    *,
    ridge: Ridge | None = None,
) -> State:
    """Read more after what a state has read.

    Args:
        model: the decoder.
        state: of B rows.
        tokens: `[B, T]` int, right-padded with anything.
        lengths: `[B]` int, new tokens of each row, 0 to T; None is T for all.
        ridge: then write these tokens once more in closed form, see `prefill`.

    Returns:
        The new state; the old one stays as it is.

    Raises:
        ConfigError: as `prefill`, or another number of rows than the state has.
    """
    checks.ridge(model, ridge, None)
    tokens, lengths = checks.prompt(model, tokens, lengths, least=0)
    checks.rows(len(tokens), batch(state))
    before = np.asarray(state.lengths)
    checks.room(before + lengths, capacity(state))
    commits = completes(model, before, lengths)
    return _extend(model, state, padded(tokens), jnp.asarray(lengths), commits, ridge)
