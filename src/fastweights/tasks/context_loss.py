"""What a longer context is worth: loss against position, and of a final block as context grows.

A standard error is over documents: tokens of a document are far from independent. What counts as
one is the caller's to say, since windows cut from one book are closer to each other than books are.
Two models are compared by the curve of the difference of their losses, token by token: what makes a
text hard for both then cancels.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fastweights.errors import ConfigError, DataError
from fastweights.nn.cross_entropy import NO_TARGET
from fastweights.tasks.packing import whole_rows

Losses = Callable[[dict[str, Any]], Any]


class Curve(NamedTuple):
    """Mean loss in bins of positions, or at some context lengths."""

    start: np.ndarray  # [K] int, first position of each bin, or length of the context
    mean: np.ndarray  # [K] float64, nats a token; mean over documents of a document's mean
    error: np.ndarray  # [K] float64, standard error of it over documents; nan with one
    documents: int


def windows(documents: Sequence[np.ndarray], length: int) -> tuple[dict[str, np.ndarray], Any]:
    """Consecutive rows of whole documents, and each row's document; see `packing.whole_rows`.

    Raises:
        DataError: no document fills a row.
    """
    table, document = whole_rows(documents, length)
    if not len(document):
        longest = max(map(len, documents), default=0)
        raise DataError(
            f"no document fills a window of {length} tokens; the longest has {longest}",
            next="shorter windows, or longer documents",
        )
    return table, document


def table_losses(losses: Losses, table: dict[str, np.ndarray], batch: int = 8) -> np.ndarray:
    """Loss of every token of a table, float32 `[N, T]`, nan where there is no target.

    Args:
        losses: jitted, a batch of columns `[B, T]` to losses `[B, T]`; for a language task
            `functools.partial(jax.jit(task.losses), model)`.
        table: columns `[N, T]`, `inputs` and `target` among them.
        batch: rows at a time; the last batch is filled up with copies, so all have one shape.
    """
    count = len(table["target"])
    pieces = []
    for start in range(0, count, batch):
        rows = np.minimum(np.arange(start, start + batch), count - 1)
        found = np.asarray(jax.device_get(losses({k: v[rows] for k, v in table.items()})))
        pieces.append(found[: count - start])
    joined = np.concatenate(pieces).astype(np.float32)
    return np.where(table["target"] == NO_TARGET, np.float32(np.nan), joined)


def by_position(losses: np.ndarray, document: np.ndarray | None = None, bins: int = 8) -> Curve:
    """Mean loss at each part of a row.

    Args:
        losses: `[N, T]`, nan where there is none; the difference of two models' losses compares
            them pair by pair.
        document: `[N]` int, the document of each row; None takes every row for one of its own.
        bins: K equal parts of a row; T must be a multiple.

    Raises:
        ConfigError: it is not.
    """
    rows, length = losses.shape
    if bins < 1 or length % bins:
        raise ConfigError(
            f"rows of {length} tokens have no {bins} equal parts", next="a divisor as `bins`"
        )
    document = np.arange(rows) if document is None else np.asarray(document)
    names, index = np.unique(document, return_inverse=True)
    parts = np.asarray(losses, np.float64).reshape(rows, bins, length // bins)
    total, count = np.zeros((len(names), bins)), np.zeros((len(names), bins))
    np.add.at(total, index, np.nansum(parts, -1))
    np.add.at(count, index, np.sum(~np.isnan(parts), -1))
    each = np.where(count > 0, total / np.maximum(count, 1), np.nan)  # [documents, K]
    return _curve(np.arange(bins) * (length // bins), each)


def final_block(
    losses: Losses,
    documents: Sequence[np.ndarray],
    *,
    block: int,
    contexts: Sequence[int],
    batch: int = 8,
    by_document: bool = False,
) -> Curve:
    """Loss of the same tokens with more and more of the text before them.

    Documents are cut into windows of the longest context and a block. Of each window the last
    `block` tokens are predicted, with only c + 1 tokens before them to see, for every c of
    `contexts`: the one that the first of them is predicted from, and c before that. The perplexity
    is `np.exp(curve.mean)`.

    Args:
        losses: as in `table_losses`; compiled once for every context.
        documents: `[n_i]` int each.
        block: tokens predicted, >= 1.
        contexts: c >= 0, tokens beyond the one that is always there.
        batch: rows at a time.
        by_document: the standard error is over documents; over windows if False.

    Raises:
        DataError: no document is as long as the longest window.
    """
    longest = max(contexts)
    table, document = windows(documents, longest + block)
    names, index = np.unique(
        document if by_document else np.arange(len(document)), return_inverse=True
    )
    each = np.zeros((len(names), len(contexts)))
    for column, context in enumerate(contexts):
        seen = {name: x[:, longest - context :] for name, x in table.items()}
        mean = table_losses(losses, seen, batch)[:, -block:].astype(np.float64).mean(1)
        each[:, column] = np.bincount(index, mean) / np.bincount(index)
    return _curve(np.asarray(contexts), each)


def _curve(start: np.ndarray, each: np.ndarray) -> Curve:
    """Mean and standard error over documents, `[documents, K]` with nan for none."""
    count = np.sum(~np.isnan(each), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(each, 0) / count
        square = np.nansum((each - mean) ** 2, 0)
        error = np.sqrt(square / (count - 1) / count)
    return Curve(start, mean, np.where(count > 1, error, np.nan), len(each))
