"""What users may ask for: prompts, room, stop tokens; all checked before a device is used."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from fastweights.errors import ConfigError
from fastweights.models.decoder import Decoder
from fastweights.nn.in_place_ridge import Ridge


def prompt(
    model: Decoder, tokens: ArrayLike, lengths: ArrayLike | None, *, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[B, T]` and lengths `[B]` as int32, padding replaced by 0.

    Args:
        model: whose vocabulary the tokens are of.
        tokens: `[B, T]` int, right-padded with anything.
        lengths: `[B]` int, from `least` to T; None is T for every row.
        least: the fewest tokens a row may have.

    Raises:
        ConfigError: what is wrong, and in which row.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
        raise ConfigError(
            f"tokens must be [batch, length] integers, got {tokens.dtype} {list(tokens.shape)}",
            where="tokens",
            next="for one prompt give [[...]]",
        )
    rows, length = tokens.shape
    lengths = np.full(rows, length) if lengths is None else np.asarray(lengths)
    if lengths.shape != (rows,) or lengths.dtype.kind not in "iu":
        raise ConfigError(
            f"lengths must be [{rows}] integers, got {lengths.dtype} {list(lengths.shape)}",
            where="lengths",
        )
    wrong = np.flatnonzero((lengths < least) | (lengths > length))
    if wrong.size:
        raise ConfigError(
            f"lengths[{wrong[0]}] is {lengths[wrong[0]]}; it must be from {least} to {length}, "
            "the size of tokens",
            where="lengths",
            cause="an empty prompt, or tokens that were cut" if least else None,
        )
    valid = np.arange(length) < lengths[:, None]
    outside = np.argwhere(valid & ((tokens < 0) | (tokens >= model.config.vocab)))
    if outside.size:
        row, at = outside[0]
        raise ConfigError(
            f"token {tokens[row, at]} at row {row}, position {at} is not in the vocabulary of "
            f"{model.config.vocab}",
            where="tokens",
            cause="the tokenizer of another model",
        )
    return np.where(valid, tokens, 0).astype(np.int32), lengths.astype(np.int32)


def room(needed: np.ndarray, max_length: int) -> None:
    """Check that rows of `needed [B]` tokens fit.

    Raises:
        ConfigError: naming the row that does not.
    """
    row = int(np.argmax(needed))
    if needed[row] > max_length:
        raise ConfigError(
            f"row {row} comes to {needed[row]} tokens, the state holds {max_length}",
            where="max_length",
            cause="the state was made for a shorter text",
            next=f"prefill(..., max_length={needed[row]}) or more",
        )


def amount(max_new_tokens: int) -> None:
    """Check how many tokens are asked for.

    Raises:
        ConfigError: not at least one.
    """
    if max_new_tokens < 1:
        raise ConfigError(
            f"max_new_tokens is {max_new_tokens}; it must be at least 1", where="max_new_tokens"
        )


def begun(lengths: np.ndarray) -> None:
    """Check that every row has read something to go on from.

    Raises:
        ConfigError: naming a row that has not.
    """
    if not lengths.all():
        raise ConfigError(
            f"row {int(np.argmin(lengths))} has read no token yet, so nothing can follow it",
            where="state",
            next="extend(model, state, tokens, lengths) first",
        )


def rows(given: int, expected: int) -> None:
    """Check that tokens are for the rows of the state.

    Raises:
        ConfigError: another number of them.
    """
    if given != expected:
        raise ConfigError(
            f"tokens have {given} rows, the state {expected}",
            where="tokens",
            next="fork(state, times) repeats rows, select(state, rows) picks them",
        )


def stop_tokens(vocab: int, tokens: Sequence[int]) -> tuple[int, ...]:
    """Stop tokens as a tuple.

    Raises:
        ConfigError: one is not in the vocabulary, so that it would never stop anything.
    """
    for token in tokens:
        if not 0 <= token < vocab:
            raise ConfigError(
                f"stop token {token} is not in the vocabulary of {vocab}", where="stop_tokens"
            )
    return tuple(int(token) for token in tokens)


def ridge(model: Decoder, ridge: Ridge | None, piece: int | None) -> None:
    """Whether a closed-form write can be.

    Raises:
        ConfigError: the model has no in-place layer, a number is out of range, or the prompt is
            read in pieces.
    """
    if ridge is None:
        return
    if not model.config.ttt_layers:
        raise ConfigError(
            "a closed-form write needs in-place layers, and this model has none",
            where="ridge",
            next="load it with ttt=InPlaceTTT(layers=...)",
        )
    for name, number in ridge._asdict().items():
        kinds = int if name == "tokens" else (int, float)
        if not (isinstance(number, kinds) and 0 < number < float("inf")):
            kind = "whole number" if name == "tokens" else "finite Python number"
            raise ConfigError(
                f"ridge.{name} is {number!r}; it must be a positive {kind}", where="ridge"
            )
    if piece is not None:
        raise ConfigError(
            "a closed-form write is of tokens that are read at once, and `piece` cuts them",
            where="ridge",
            next="prefill the first part in pieces, then extend with ridge=... for the rest",
        )
