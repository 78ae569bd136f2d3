"""Write text a token at a time, to show it while it comes."""

import functools
from collections.abc import Generator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fastweights.inference import checks, sampling
from fastweights.inference.state import State, advance, capacity, commit, own_rows
from fastweights.models.decoder import Decoder


class Step(NamedTuple):
    """One token of every row; rows that have stopped get 0."""

    tokens: np.ndarray  # [B] int32
    drawn: np.ndarray  # [B] bool, False for rows that had stopped before
    log_probs: np.ndarray  # [B] float32


# a state that is read further is not needed again: its memory becomes that of the next one
@functools.partial(jax.jit, donate_argnums=(1,))
def _read(model: Decoder, state: State, tokens: Array, counts: Array) -> State:
    return advance(model, state, tokens[:, None], counts)


@functools.partial(jax.jit, donate_argnums=(1,))
def _commit(model: Decoder, state: State, due: Array) -> State:
    return commit(model, state, due)


_sample = jax.jit(sampling.sample, static_argnames=("method",))


def stream(
    model: Decoder,
    state: State,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    key: Array | None = None,
) -> Generator[Step, None, State]:
    """`decode`, a token at a time: the same tokens, and nothing is compiled for a new length.

    Arguments are those of `decode`. The state given stays as it is. Arguments are checked at once,
    before the first token is asked for.

    Yields:
        A step; each is yielded before it is read, so that it can be shown early.

    Returns:
        The state that has read every step, the value of `yield from`.

    Raises:
        ConfigError: as `decode`.
    """
    checks.amount(max_new_tokens)
    how, settings = sampling.method(temperature, top_k, top_p, key)
    stops = checks.stop_tokens(model.config.vocab, stop_tokens)
    lengths = np.asarray(state.lengths)
    checks.begun(lengths)
    checks.room(lengths + max_new_tokens, capacity(state))
    return _stream(model, state, max_new_tokens, how, settings, stops)


def _stream(
    model: Decoder,
    state: State,
    most: int,
    method: sampling.Method,
    settings: sampling.Settings,
    stops: tuple[int, ...],
) -> Generator[Step, None, State]:
    state = jax.tree.map(jnp.copy, state)
    lengths = np.array(state.lengths)
    going = np.ones(len(lengths), bool)
    chunk = model.commit_every
    for _ in range(most):
        token, log_prob = _sample(state.logits, state.lengths, method, settings)
        tokens = np.where(going, token, 0)
        yield Step(tokens, going, np.where(going, log_prob, 0))
        state = _read(model, state, tokens, going.astype(np.int32))
        lengths = lengths + going
        if chunk is not None and (due := going & (lengths % chunk == 0)).any():
            state = _commit(model, own_rows(state), due)
        going = going & ~np.isin(tokens, stops)
        if not going.any():
            break
    return state
