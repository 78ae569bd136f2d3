"""Documents of any length into rows of one length, with no token lost and none seen twice.

A document of n tokens has n - 1 pairs of an input and the token that follows it. The pairs are cut
into pieces of at most T. A piece of T pairs is a row by itself; shorter ones share rows.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from fastweights.errors import ConfigError
from fastweights.nn.cross_entropy import NO_TARGET

Table = dict[str, np.ndarray]


def pack(
    documents: Sequence[np.ndarray], length: int, asked: Sequence[np.ndarray] | None = None
) -> Table:
    """Rows with segment ids: all pairs of all documents, each in exactly one place.

    Pieces are taken in the order of the documents. One that fills no row goes to the row with the
    least space it fits in (the first such), so that few rows stay open; without one, a row is
    opened. A document's pieces are segments of their own: none reads what another one wrote.

    Args:
        documents: `[n_i]` int each; those of fewer than 2 tokens have no pair.
        length: T >= 1.
        asked: `[n_i]` bool each, the tokens that are to be predicted; the first of a document never
            is. None is all others.

    Returns:
        `inputs` int32 `[N, T]`, 0 where there is no token; `target` int32 `[N, T]`, the next token
        of the same document, `NO_TARGET` where there is none; `segment_ids` int32 `[N, T]`, 1, 2,
        ... in each row from its left, 0 where there is no token.
    """
    _check(length)
    used: list[int] = []  # tokens in each row
    segments: list[int] = []  # pieces in each row
    places: list[tuple[int, int, int, int, int]] = []  # document, start, size, row, column
    open_rows: list[tuple[int, int]] = []  # (space left, row), sorted
    for index, document in enumerate(documents):
        pairs = len(document) - 1
        for start in range(0, pairs, length):
            size = min(length, pairs - start)
            where = bisect.bisect_left(open_rows, (size, 0)) if size < length else len(open_rows)
            if where < len(open_rows):
                row = open_rows.pop(where)[1]
            else:
                row = len(used)
                used.append(0)
                segments.append(0)
            places.append((index, start, size, row, used[row]))
            used[row] += size
            if used[row] < length:
                bisect.insort(open_rows, (length - used[row], row))
    shape = (len(used), length)
    inputs, target = np.zeros(shape, np.int32), np.full(shape, NO_TARGET, np.int32)
    segment_ids = np.zeros(shape, np.int32)
    for index, start, size, row, column in places:
        piece, there = documents[index][start : start + size + 1], slice(column, column + size)
        segments[row] += 1
        inputs[row, there], target[row, there] = piece[:-1], piece[1:]
        if asked is not None:
            target[row, there][~asked[index][start + 1 : start + size + 1]] = NO_TARGET
        segment_ids[row, there] = segments[row]
    return {"inputs": inputs, "target": target, "segment_ids": segment_ids}


def whole_rows(documents: Sequence[np.ndarray], length: int) -> tuple[Table, np.ndarray]:
    """Rows that one document fills, so that no row needs segment ids; the rests are left out.

    Args:
        documents: `[n_i]` int each.
        length: T >= 1.

    Returns:
        `inputs` and `target` int32 `[N, T]` in the documents' order, and the document of each row,
        int32 `[N]`.
    """
    _check(length)
    counts = [max(0, len(document) - 1) // length for document in documents]
    shape = (sum(counts), length)
    inputs, target = np.empty(shape, np.int32), np.empty(shape, np.int32)
    ends = np.cumsum([0, *counts])
    for document, start, end in zip(documents, ends[:-1], ends[1:], strict=True):
        size = (end - start) * length
        inputs[start:end] = document[:size].reshape(-1, length)
        target[start:end] = document[1 : size + 1].reshape(-1, length)
    return {"inputs": inputs, "target": target}, np.repeat(
        np.arange(len(counts), dtype=np.int32), counts
    )


def _check(length: int) -> None:
    if length < 1:
        raise ConfigError(f"rows of {length} tokens hold nothing", next="use a length of 1 or more")
