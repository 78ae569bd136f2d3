"""Write text: one compiled loop that draws a token for every row and reads it.

The loop has two levels. The inner one draws and reads tokens until a row has completed a chunk, the
outer one writes that chunk into the row's fast weights; so the inner loop never copies a matrix.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from fastweights.errors import ConfigError
from fastweights.inference import checks
from fastweights.inference.prompt import bucket, completes, padded
from fastweights.inference.sampling import Method, Settings, method, sample
from fastweights.inference.state import (
    State,
    advance,
    capacity,
    commit,
    empty,
    kept_wide,
    laid_out,
    own_rows,
)
from fastweights.models.decoder import Decoder


class Output(NamedTuple):
    """New tokens of B rows; beyond `lengths`, tokens and log probabilities are 0."""

    tokens: Array  # [B, max_new_tokens] int32
    lengths: Array  # [B] int32, the stop token included
    log_probs: Array  # [B, max_new_tokens] float32, under the distribution drawn from


class Loop(NamedTuple):
    """What goes round in the loop."""

    state: State  # has read all tokens drawn but the last
    step: Array  # [] int32, tokens drawn
    token: Array  # [B] int32, the last
    unread: Array  # [B] bool, rows for which `token` was drawn
    going: Array  # [B] bool, rows that have not stopped
    due: Array  # [B] bool, rows that have completed a chunk which is not written yet
    out: Output


def draw(loop: Loop, stops: Array, method: Method, settings: Settings) -> Loop:
    """One more token for the rows that are going."""
    token, log_prob = sample(loop.state.logits, loop.state.lengths, method, settings)
    going = loop.going
    token, log_prob = jnp.where(going, token, 0), jnp.where(going, log_prob, 0)
    put = lambda x, new: lax.dynamic_update_slice(x, new[:, None], (0, loop.step))
    stopped = jnp.any(token[:, None] == stops[None, :], 1)
    out = Output(
        put(loop.out.tokens, token), loop.out.lengths + going, put(loop.out.log_probs, log_prob)
    )
    return loop._replace(
        step=loop.step + 1, token=token, unread=going, going=going & ~stopped, out=out
    )


def read_drawn(model: Decoder, loop: Loop) -> Loop:
    """Read the last token drawn, and note who has completed a chunk by it."""
    counts = loop.unread.astype(jnp.int32)
    state = advance(model, loop.state, loop.token[:, None], counts)
    chunk = model.commit_every
    due = loop.due if chunk is None else loop.unread & (state.lengths % chunk == 0)
    return loop._replace(state=state, unread=jnp.zeros_like(loop.unread), due=due)


def write(model: Decoder, loop: Loop) -> Loop:
    """Write the chunks that are due."""
    return loop._replace(state=commit(model, loop.state, loop.due), due=jnp.zeros_like(loop.due))


def run(
    model: Decoder,
    state: State,
    most: Array,
    stops: Array,
    settings: Settings,
    *,
    size: int,
    method: Method,
    commits: bool,
) -> Loop:
    """Draw up to `most` tokens a row, all read but the last.

    Args:
        model: the decoder.
        state: whose `logits` give the first token.
        most: `[]` int, at most `size`.
        stops: `[n]` int, tokens after which a row ends.
        settings: of the sampling.
        size: tokens there is room for in the output.
        method: of the sampling.
        commits: a row may complete a chunk.
    """

    def go(
        model: Decoder, state: State, most: Array, stops: Array, settings: Settings
    ) -> tuple[State, Loop]:
        rows = len(state.lengths)
        no, yes = jnp.zeros(rows, bool), jnp.ones(rows, bool)
        nothing = jnp.zeros(rows, jnp.int32)
        out = Output(jnp.zeros((rows, size), jnp.int32), nothing, jnp.zeros((rows, size)))
        loop = Loop(state, jnp.zeros((), jnp.int32), nothing, no, yes, no, out)
        loop = draw(loop, stops, method, settings)

        def more(loop: Loop) -> Array:
            return jnp.any(loop.going) & (loop.step < most)

        def token(loop: Loop) -> Loop:
            return draw(read_drawn(model, loop), stops, method, settings)

        if not commits:
            loop = lax.while_loop(more, token, loop)
            return loop.state, loop._replace(state=None)

        def chunk(loop: Loop) -> Loop:
            loop = lax.while_loop(lambda x: more(x) & ~jnp.any(x.due), token, loop)
            return write(model, loop)

        loop = lax.while_loop(more, chunk, loop)
        return loop.state, loop._replace(state=None)

    state = laid_out(model, own_rows(state) if commits else state)
    state, loop = kept_wide(go, model, state, most, stops, settings)
    return loop._replace(state=state)


@functools.partial(jax.jit, static_argnames=("size", "method", "commits", "read_commits"))
def _generate(
    model: Decoder,
    tokens: Array,
    lengths: Array,
    *numbers: Any,
    size: int,
    method: Method,
    commits: bool,
    read_commits: bool,
) -> Output:
    start = empty(model, len(tokens), tokens.shape[1] + size)
    state = advance(model, start, tokens, lengths, fresh=True, commits=read_commits)
    return run(model, state, *numbers, size=size, method=method, commits=commits).out


@functools.partial(jax.jit, static_argnames=("size", "method", "commits"))
def _decode(
    model: Decoder, state: State, *numbers: Any, size: int, method: Method, commits: bool
) -> tuple[Output, State]:
    loop = run(model, state, *numbers, size=size, method=method, commits=commits)
    loop = read_drawn(model, loop)
    return loop.out, write(model, loop).state if commits else loop.state


def generate(
    model: Decoder,
    tokens: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    key: Array | None = None,
    state: State | None = None,
) -> Output:
    """Continue prompts.

    Reading the prompts and writing the answers is one compiled call. Programs are compiled for
    sizes of 1, multiples of 16 up to 64, and multiples of 64.

    Args:
        model: the decoder.
        tokens: `[B, T]` int prompts, right-padded with anything.
        lengths: `[B]` int, tokens of each prompt, 1 to T; None is T for all.
        max_new_tokens: the most tokens a row gets.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the fewest likeliest tokens that have this probability together.
        stop_tokens: a row ends with the first of these.
        key: `jax.random.key`, needed if the temperature is not 0.
        state: go on from this state instead of from prompts, as `decode` does.

    Raises:
        ConfigError: prompts, sizes or sampling that cannot be.
    """
    sampling: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "stop_tokens": stop_tokens,
        "key": key,
    }
    if state is not None and tokens is None:
        return decode(model, state, max_new_tokens=max_new_tokens, **sampling)[0]
    if state is not None or tokens is None:
        raise ConfigError(
            "generate goes on from prompts or from a state, one of them",
            where="tokens",
            next="to read more tokens after a state: extend(model, state, tokens, lengths)",
        )
    tokens, lengths = checks.prompt(model, tokens, lengths)
    numbers, how, size = _plan(model, max_new_tokens, **sampling)
    out = _generate(
        model,
        padded(tokens),
        lengths,
        *numbers,
        size=size,
        method=how,
        commits=completes(model, lengths, max_new_tokens - 1),
        read_commits=completes(model, np.zeros_like(lengths), lengths),
    )
    return _cut(out, max_new_tokens)


def decode(
    model: Decoder,
    state: State,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    key: Array | None = None,
) -> tuple[Output, State]:
    """Go on from a state; arguments are those of `generate`.

    Returns:
        The new tokens, and the state that has read all of them, stop tokens included.

    Raises:
        ConfigError: too little room in the state, a state of another model, or as `generate`.
    """
    numbers, how, size = _plan(model, max_new_tokens, temperature, top_k, top_p, stop_tokens, key)
    before = np.asarray(state.lengths)
    checks.begun(before)
    checks.room(before + max_new_tokens, capacity(state))
    commits = completes(model, before, max_new_tokens)
    out, state = _decode(model, state, *numbers, size=size, method=how, commits=commits)
    return _cut(out, max_new_tokens), state


def _plan(
    model: Decoder,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    stop_tokens: Sequence[int],
    key: Array | None,
) -> tuple[tuple[Array, Array, Settings], Method, int]:
    """Checked arguments of `run`: numbers, method, size."""
    checks.amount(max_new_tokens)
    how, settings = method(temperature, top_k, top_p, key)
    stops = np.asarray(checks.stop_tokens(model.config.vocab, stop_tokens), np.int32)
    return (jnp.int32(max_new_tokens), jnp.asarray(stops), settings), how, bucket(max_new_tokens)


def _cut(out: Output, size: int) -> Output:
    return Output(out.tokens[:, :size], out.lengths, out.log_probs[:, :size])
