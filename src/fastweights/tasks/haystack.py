"""Text to hide needles in, and every random choice of a question, from raw Philox output.

NumPy promises that stream from version to version, and not those of `Generator`'s methods: a
question must be the same for ever.
"""

import re
from collections.abc import Sequence

import numpy as np

from fastweights.errors import ConfigError

_SUBJECTS = "the miller,a tired clerk,my aunt,the old captain,a neighbour,the baker".split(",")
_VERBS = "walked past,talked about,looked at,painted,forgot,dreamed of".split(",")
_OBJECTS = "the harbour,a wooden bridge,the market,three grey geese,the orchard,a letter".split(",")
_TIMES = "in the morning,after supper,on a rainy day,last spring,before the fair".split(",")


class Draw:
    """Random choices of one question, a pure function of some ints."""

    def __init__(self, *seeds: int):
        self._bits = np.random.Philox(np.random.SeedSequence(seeds))

    def below(self, count: int) -> int:
        """An int from 0 to count - 1; the bias is below count / 2**64."""
        return int(self._bits.random_raw()) % count

    def place(self, count: int) -> int:
        """An int from 0 to count - 1 which moves little where `count` changes little."""
        return int(self._bits.random_raw()) * count >> 64

    def choice(self, options: Sequence[str]) -> str:
        """One of the options."""
        return options[self.below(len(options))]

    def shuffled(self, items: list) -> list:
        """The items in another order."""
        order = np.argsort(self._bits.random_raw(len(items)), kind="stable")
        return [items[i] for i in order]

    def numbers(self, count: int, digits: int) -> list[str]:
        """Different numbers without a leading zero."""
        low, found = 10 ** (digits - 1), dict[str, None]()
        while len(found) < count:
            found[str(low + self.below(9 * low))] = None
        return list(found)

    def words(self, count: int) -> list[str]:
        """Different made-up words of six letters."""
        found = dict[str, None]()
        while len(found) < count:
            syllables = [
                "bdfgklmnprstvz"[self.below(14)] + "aeiou"[self.below(5)] for _ in range(3)
            ]
            found["".join(syllables)] = None
        return list(found)


def made_up(draw: Draw, room: int) -> list[str]:
    """Sentences about nothing, together with their spaces no longer than `room`."""
    found: list[str] = []
    while True:
        parts = [draw.choice(words) for words in (_SUBJECTS, _VERBS, _OBJECTS, _TIMES)]
        sentence = " ".join(parts).capitalize() + "."
        room -= len(sentence) + 1
        if room < 0:
            return found
        found.append(sentence)


def sentences(text: str, draw: Draw, room: int) -> list[str]:
    """Consecutive sentences of a text from a random place, no longer than `room` with spaces."""
    if len(text) <= room:
        raise ConfigError(
            f"a haystack of {len(text)} characters has no {room} to take", next="a longer text"
        )
    start = draw.place(len(text) - room)
    taken = text[start : start + max(0, room - 1)]
    return [line for line in re.split(r"(?<=[.!?])\s+", taken.strip()) if line]
