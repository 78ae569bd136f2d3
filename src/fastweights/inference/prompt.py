"""Read a prompt, or more of it: ragged rows, right-padded, in pieces of any size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fastweights.inference import checks
from fastweights.inference.state import State, advance, batch, capacity, empty
from fastweights.models.decoder import Decoder

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


@functools.partial(jax.jit, static_argnames=("max_length", "commits"))
def _prefill(model: Decoder, tokens: Array, counts: Array, max_length: int, commits: bool) -> State:
    start = empty(model, len(tokens), max_length)
    return advance(model, start, tokens, counts, fresh=True, commits=commits)


@functools.partial(jax.jit, static_argnames=("commits",))
def _extend(model: Decoder, state: State, tokens: Array, counts: Array, commits: bool) -> State:
    return advance(model, state, tokens, counts, commits=commits)


def prefill(
    model: Decoder,
    tokens: ArrayLike,
    lengths: ArrayLike | None = None,
    *,
    max_length: int | None = None,
) -> State:
    """Read prompts from their start.

    Args:
        model: the decoder.
        tokens: `[B, T]` int, right-padded with anything.
        lengths: `[B]` int, tokens of each row, 1 to T; None is T for all.
        max_length: tokens a row of the state will hold; None is the model's `max_length`, or T if
            that is more.

    Returns:
        The state: `state.logits [B, vocab]` are of the token after the last of each row.

    Raises:
        ConfigError: tokens outside the vocabulary, lengths that cannot be, too little room.
    """
    tokens, lengths = checks.prompt(model, tokens, lengths)
    if max_length is None:
        max_length = max(model.config.max_length, tokens.shape[1])
    checks.room(lengths, max_length)
    commits = completes(model, np.zeros_like(lengths), lengths)
    return _prefill(model, padded(tokens), lengths, max_length, commits)


def extend(
    model: Decoder, state: State, tokens: ArrayLike, lengths: ArrayLike | None = None
) -> State:
    """Read more after what a state has read.

    Args:
        model: the decoder.
        state: of B rows.
        tokens: `[B, T]` int, right-padded with anything.
        lengths: `[B]` int, new tokens of each row, 0 to T; None is T for all.

    Returns:
        The new state; the old one stays as it is.

    Raises:
        ConfigError: as `prefill`, or another number of rows than the state has.
    """
    tokens, lengths = checks.prompt(model, tokens, lengths, least=0)
    checks.rows(len(tokens), batch(state))
    before = np.asarray(state.lengths)
    checks.room(before + lengths, capacity(state))
    commits = completes(model, before, lengths)
    return _extend(model, state, padded(tokens), jnp.asarray(lengths), commits)
