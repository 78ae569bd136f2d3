"""Associative retrieval strings (Ba et al. 2016, section 4.1): ``c9k8j3f1??c`` asks for 9.

K pairs of a letter and a digit, two question marks, one of the letters again; the target is the
digit that followed it. Letters never repeat in a string. Digits may, as in the paper's own second
example ``j0a5s5z2??a``; that puts chance for K = 4 at 61.65 %, where its failed networks stand.

Everything here is NumPy on whole arrays; nothing touches a disk.
"""

from collections import Counter
from collections.abc import Iterator
from math import factorial, log, prod

import numpy as np

from fastweights.errors import ConfigError, DataError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
VOCABULARY = LETTERS + DIGITS + "?"  # the index of a character is its token
FIRST_DIGIT = len(LETTERS)
QUERY_MARK = VOCABULARY.index("?")


def check_pairs(pairs: int) -> None:
    """Raise `ConfigError` unless 1 <= pairs <= 26: letters are drawn without replacement."""
    if not 1 <= pairs <= len(LETTERS):
        raise ConfigError(
            f"{pairs} pairs cannot be drawn from {len(LETTERS)} different letters",
            where="pairs",
            next=f"choose 1 to {len(LETTERS)}; the paper's task has 4",
        )


def encode(text: str) -> np.ndarray:
    """Tokens of a string, int32 [len(text)]; `DataError` for a character out of vocabulary."""
    unknown = sorted(set(text) - set(VOCABULARY))
    if unknown:
        raise DataError(
            f"characters {unknown} are not in the vocabulary",
            where=repr(text),
            next=f"use only {VOCABULARY}",
        )
    return np.array([VOCABULARY.index(character) for character in text], np.int32)


def decode(tokens: np.ndarray) -> str:
    """The string of one sequence of tokens, int [T]: the inverse of `encode`."""
    return "".join(VOCABULARY[token] for token in np.asarray(tokens).tolist())


def sample(rng: np.random.Generator, count: int, pairs: int = 4) -> dict[str, np.ndarray]:
    """Draw `count` examples with `pairs` pairs each.

    Returns:
        ``inputs`` int32 [count, 2 * pairs + 3] tokens and ``target`` int32 [count], a digit 0..9.

    Raises:
        ConfigError: pairs outside 1..26.
    """
    check_pairs(pairs)
    # The first K places of a random order of all 26 letters: K letters without replacement.
    letters = np.argsort(rng.random((count, len(LETTERS))), axis=1, kind="stable")[:, :pairs]
    digits = rng.integers(0, len(DIGITS), (count, pairs))
    asked = rng.integers(0, pairs, (count, 1))
    inputs = np.full((count, 2 * pairs + 3), QUERY_MARK, np.int32)
    inputs[:, 0 : 2 * pairs : 2] = letters
    inputs[:, 1 : 2 * pairs : 2] = FIRST_DIGIT + digits
    inputs[:, -1:] = np.take_along_axis(letters, asked, axis=1)
    target = np.take_along_axis(digits, asked, axis=1)[:, 0].astype(np.int32)
    return {"inputs": inputs, "target": target}


def answers(inputs: np.ndarray) -> np.ndarray:
    """Solve the task: the digit of the letter asked for, int32 [N], from inputs int [N, 2K + 3].

    Raises:
        DataError: a row is not a retrieval string; the message shows the first such row.
    """
    body, marks, query = inputs[:, :-3], inputs[:, -3:-1], inputs[:, -1:]
    letters, digits = body[:, 0::2], body[:, 1::2] - FIRST_DIGIT
    ordered = np.sort(letters, axis=1)
    good = ((letters >= 0) & (letters < len(LETTERS))).all(axis=1)
    good &= (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)
    good &= ((digits >= 0) & (digits < len(DIGITS))).all(axis=1)
    good &= (marks == QUERY_MARK).all(axis=1)
    good &= (letters == query).any(axis=1)
    if not good.all():
        row = int(np.argmin(good))
        raise DataError(
            "not an associative retrieval string", where=f"row {row}: tokens {inputs[row].tolist()}"
        )
    return digits[np.arange(len(inputs)), np.argmax(letters == query, axis=1)].astype(np.int32)


def chance_error(pairs: int) -> float:
    """Error rate of the best guesser that knows which digits occur, but not which letter has which.

    It names the most frequent digit, so it is right max(counts) / K of the time. K = 4: 0.6165.
    Exact: a sum of integers over all multisets of K digits, divided once.
    """
    check_pairs(pairs)
    right = sum(strings * max(counts) for counts, strings in _digit_multisets(pairs))
    total = pairs * len(DIGITS) ** pairs
    return (total - right) / total


def chance_nll(pairs: int) -> float:
    """Cross-entropy, in nats, of that guesser when it bets in proportion. K = 4: 1.1868."""
    check_pairs(pairs)
    total = len(DIGITS) ** pairs
    return sum(
        strings / total * -sum(n / pairs * log(n / pairs) for n in counts)
        for counts, strings in _digit_multisets(pairs)
    )


def _digit_multisets(pairs: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Each pattern of digit counts, e.g. (2, 1, 1), and how many digit strings show it."""
    for counts in _partitions(pairs, pairs):
        unused = len(DIGITS) - len(counts)
        if unused >= 0:
            orders = factorial(pairs) // prod(map(factorial, counts))
            same = prod(map(factorial, Counter(counts).values()))
            yield counts, orders * (factorial(len(DIGITS)) // (factorial(unused) * same))


def _partitions(total: int, largest: int) -> Iterator[tuple[int, ...]]:
    """The ways to write `total` as a sum of parts in falling order, none over `largest`."""
    if total == 0:
        yield ()
    for part in range(min(total, largest), 0, -1):
        for rest in _partitions(total - part, part):
            yield (part, *rest)
