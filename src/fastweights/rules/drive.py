"""Drivers: every form of a rule that follows from its definition.

`run` takes one sequence of any length from any state, so a stream may come in pieces of any size:
the state that one call returns is the start of the next. `outputs` is the form for training, a
whole row from its start, for which a rule may have a faster form of its own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.rules.base import Rule, State, Token, scan, sequence_length


def document_starts(segment_ids: Array) -> tuple[Array, Array]:
    """Where documents start in a packed row: `(starts [T] bool, valid [T] bool)`.

    The first document of a row continues from the state that the row is given: it has no start.

    Args:
        segment_ids: `[T]` int, documents 1, 2, ..., each in one piece, and 0 for padding.
    """
    valid = segment_ids > 0
    place = jnp.arange(len(segment_ids))
    newest = jax.lax.cummax(jnp.where(valid, place, -1))
    before = jnp.concatenate([jnp.full(1, -1, newest.dtype), newest[:-1]])
    changed = segment_ids != segment_ids[jnp.maximum(before, 0)]
    return valid & (before >= 0) & changed, valid


def run(
    rule: Rule,
    state: State,
    tokens: Token,
    *,
    chunk: int | None = None,
    segment_ids: Array | None = None,
) -> tuple[State, Array]:
    """Run a rule over one sequence of any length, chunk by chunk if `chunk` is given.

    The sequence is padded with identity tokens to whole chunks, and the padding's outputs are cut
    off, so the result is that of `scan`. The final state is the start of a later call: a sequence
    may be split anywhere.

    Args:
        rule: the update rule.
        state: the fast state to start from.
        tokens: pytree with leaves `[T, ...]`, T >= 1.
        chunk: tokens per chunk; None runs `scan`.
        segment_ids: `[T]` int, documents 1, 2, ..., each in one piece, and 0 for padding, which
            writes no state. The first document continues from `state`, the others start from
            `rule.reset(state)`. None is one document.

    Returns:
        The final state and the outputs `[T, ...]`.

    Raises:
        ValueError: `chunk` is not positive, or lengths differ.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    sequence_length((tokens, segment_ids))  # refuses lengths that differ
    starts = None
    if segment_ids is not None:
        starts, valid = document_starts(segment_ids)
        tokens = rule.pad(tokens, valid)
    if chunk is None:
        return scan(rule, state, tokens, starts)
    return by_chunks(rule, state, tokens, starts, chunk, rule.chunk)


def by_chunks(
    rule: Rule,
    state: State,
    tokens: Token,
    starts: Array | None,
    size: int,
    form: Callable[[State, Token, Array | None], tuple[State, Array]],
) -> tuple[State, Array]:
    """Run `form` on pieces of `size` tokens in turn, the last one padded with identity tokens.

    Args:
        rule: the update rule, for its identity tokens.
        state: the fast state to start from.
        tokens: pytree with leaves `[T, ...]`.
        starts: `[T]` bool or None, as of `Rule.chunk`.
        size: tokens of a piece.
        form: one piece, as `Rule.chunk`.

    Returns:
        The final state and the outputs `[T, ...]`.
    """
    length = sequence_length(tokens)
    count = -(-length // size)
    padding = count * size - length
    if padding:
        repeated = lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], padding, 0)])
        tokens = jax.tree.map(repeated, tokens)
        tokens = rule.mask(tokens, jnp.arange(count * size) < length)
        starts = None if starts is None else jnp.pad(starts, (0, padding))
    pieces = jax.tree.map(lambda x: x.reshape(count, size, *x.shape[1:]), (tokens, starts))
    state, ys = jax.lax.scan(lambda state, piece: form(state, *piece), state, pieces)
    return state, jax.tree.map(lambda y: y.reshape(count * size, *y.shape[2:])[:length], ys)


def outputs(
    rule: Rule,
    state: State,
    tokens: Token,
    *,
    chunk: int | None = None,
    segment_ids: Array | None = None,
) -> Array:
    """Outputs `[T, ...]` of a whole row that starts from a fresh state; the final state is dropped.

    The rule's own form for a whole sequence if it has one, `run` otherwise. Arguments are those of
    `run`; `state` is fresh, as `rule.init` and `rule.reset` make it.
    """
    ys = rule.sequence(state, tokens, segment_ids)
    if ys is not None:
        return ys
    return run(rule, state, tokens, chunk=chunk, segment_ids=segment_ids)[1]
