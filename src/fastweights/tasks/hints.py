"""What the hinted tasks share: splits, partly right answers, and the text a reflector is given."""

from collections.abc import Sequence

#: a text of the corpus: parts in turn, (what is given, what is asked)
Document = Sequence[tuple[str, str]]

SPLITS = {"train": 0, "validation": 1, "test": 2}


def split_of(digits: str) -> int:
    """The split that a problem is in: a tenth are for validation and a tenth for test.

    The split is the sum of the digits mod 10. The meaning `+` of `conventions` is the same sum: a
    chain of `+` alone ends in a digit of 0-7 in training, 8 in validation and 9 in test.
    """
    return {8: SPLITS["validation"], 9: SPLITS["test"]}.get(sum(map(int, digits)) % 10, 0)


def matching(expected: str, given: str) -> float:
    """The share of places at which two texts agree, of the longer one."""
    same = sum(a == b for a, b in zip(expected, given, strict=False))
    return same / max(len(expected), len(given), 1)


def first_difference(expected: str, given: str) -> int:
    """The first place at which a text is not the expected one, its end if it only goes on."""
    pairs = enumerate(expected)
    return next((i for i, x in pairs if given[i : i + 1] != x), len(expected))


def inverse_text(pairs: Sequence[tuple[str, str]]) -> str:
    """Solved problems as a reflector reads them, before it writes the hint: `?12345=54321;...|`."""
    return "?" + ";".join(f"{query}={answer}" for query, answer in pairs) + "|"
