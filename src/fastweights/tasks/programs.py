"""Hinted string programs: rewrite five digits by a hidden rule that a hint can spell out.

A hint is a word of operations, applied from the left to the digits: `r` reverses, `t` moves the
first digit to the end, `i` adds 1 to each (mod 10), `n` takes each from 9, `w` swaps the first two.
The rule depends on the input: numbers whose first digit is odd have one, the others another. A hint
has three places for each, filled up with dots, and may say nothing of either, so that prompts can
own a part of the problems; with a cap on the operations, one prompt cannot hold it all.

    irtnw.|36157=...
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from fastweights.tasks.haystack import Draw
from fastweights.tasks.hints import (
    SPLITS,
    Document,
    first_difference,
    inverse_text,
    matching,
    split_of,
)
from fastweights.tasks.prompted import Problem, Prompt, Score

OPERATIONS = "rtinw"
#: the components: a hint's two words, in its order
CLAUSES = ("odd", "even")
#: operations that a word may have
LONGEST = 3


def apply(word: str, digits: str) -> str:
    """A word of operations applied to digits, from its left."""
    for letter in word:
        if letter == "r":
            digits = digits[::-1]
        elif letter == "t":
            digits = digits[1:] + digits[:1]
        elif letter == "i":
            digits = "".join(str((int(d) + 1) % 10) for d in digits)
        elif letter == "n":
            digits = "".join(str(9 - int(d)) for d in digits)
        elif letter == "w":
            digits = digits[1::-1] + digits[2:]
        else:
            raise ValueError(f"no operation {letter!r}; there are {', '.join(OPERATIONS)}")
    return digits


@dataclasses.dataclass(frozen=True)
class Programs:
    """See the module. Reward: the share of digits that are right, or 1 for all of them only.

    Attributes:
        odd: the hidden rule of numbers with an odd first digit.
        even: that of the others.
        digits: of a number.
        longest: operations in a prompt, of both words together.
        dense: whether a part of the digits is worth a part of the reward.
    """

    odd: str = "irt"
    even: str = "nw"
    digits: int = 5
    longest: int = 6
    dense: bool = True

    #: see `HintedTask`
    pairs: ClassVar[int] = 3

    @property
    def seed_prompt(self) -> dict[str, str]:
        """See `PromptedTask`."""
        return dict.fromkeys(CLAUSES, "")

    @property
    def oracle(self) -> dict[str, str]:
        """See `HintedTask`; longer than a prompt may be where `longest` is small."""
        return {"odd": self.odd, "even": self.even}

    @property
    def answer_length(self) -> int:
        """See `PromptedTask`."""
        return self.digits + 1

    def easier(self) -> "Programs":
        """See `HintedTask`: there is no easier kind, a part of the reward is had from the start."""
        return self

    def faults(self) -> list[str]:
        """See `HintedTask`."""
        found = [
            f"{name} is {word!r}; it must be of the operations {', '.join(OPERATIONS)}"
            for name, word in (("odd", self.odd), ("even", self.even))
            if not word or set(word) - set(OPERATIONS)
        ]
        if not 2 <= self.digits <= 9:
            found.append(f"digits is {self.digits}; it must be from 2 to 9")
        if self.longest < 1:
            found.append(f"longest is {self.longest}; it must be at least 1")
        return found

    def problems(self, split: str, count: int, seed: int = 0) -> list[Problem]:
        """See `PromptedTask`: every tenth number is for validation, every tenth for test."""
        draw, found = Draw(1, SPLITS[split], seed), []
        while len(found) < count:
            number = draw.below(10**self.digits)
            query = str(number).zfill(self.digits)
            if split_of(query) == SPLITS[split]:
                found.append(Problem(query, query, self.solve(query)))
        return found

    def solve(self, query: str) -> str:
        """The reference answer."""
        return apply(self.oracle[slice_of(query)], query)

    def text(self, prompt: Prompt, problem: Problem) -> str:
        """See `PromptedTask`."""
        return f"{hint(prompt)}|{problem.query}="

    def verify(self, problem: Problem, answer: str) -> Score:
        """See `PromptedTask`."""
        expected = problem.answer
        if answer == expected:
            return Score(1.0, True, "right")
        share = matching(expected, answer)
        first = first_difference(expected, answer)
        return Score(
            share if self.dense else 0.0,
            False,
            f"{slice_of(problem.query)}: {problem.query} becomes {expected}, not {answer!r}; "
            f"the first difference is at place {first + 1}",
        )

    def prompt_problems(self, prompt: Prompt) -> list[str]:
        """See `PromptedTask`."""
        if set(prompt) != set(CLAUSES):
            return [f"components are {', '.join(CLAUSES)}, not {', '.join(prompt)}"]
        found = [
            f"{name}: {letter!r} is none of the operations {', '.join(OPERATIONS)}"
            for name, word in prompt.items()
            for letter in sorted(set(word) - set(OPERATIONS))
        ]
        found += [
            f"{name}: {word!r} has more than {LONGEST} operations"
            for name, word in prompt.items()
            if len(word) > LONGEST
        ]
        if sum(map(len, prompt.values())) > self.longest:
            found.append(f"more than {self.longest} operations in both words together")
        return found

    def units(self, component: str) -> Sequence[str]:
        """See `HintedTask`."""
        return OPERATIONS

    def evidence(self, component: str, query: str, answer: str) -> list[tuple[str, str]]:
        """See `HintedTask`: the problem itself, if the component is the one for it."""
        return [(query, answer)] if slice_of(query) == component else []

    def explain(self, component: str, text: str, question: str) -> str:
        """See `HintedTask`."""
        return apply(text, question)


def slice_of(query: str) -> str:
    """The component that a number's rule is in."""
    return "odd" if int(query[0]) % 2 else "even"


def hint(prompt: Prompt) -> str:
    """A prompt as the model reads it: both words, filled up with dots."""
    return "".join(prompt[name].ljust(LONGEST, ".") for name in CLAUSES)


def random_word(draw: Draw) -> str:
    """1 to 3 operations, none of which undoes the one before it; three of them are rare."""
    word = ""
    size = (1, 1, 1, 1, 2, 2, 2, 2, 2, 3)[draw.below(10)]
    while len(word) < size:
        letter = OPERATIONS[draw.below(len(OPERATIONS))]
        if not (word[-1:] == letter and letter in "rnw"):
            word += letter
    return word


def random_document(draw: Draw, digits: int = 5) -> Document:
    """A hint, and 1 to 3 numbers with their rewriting.

    A twelfth of the hints has no clause, a third of the others one; a missing clause leaves the
    rule open, and the answers are those of some rule.
    """
    words = {"odd": random_word(draw), "even": random_word(draw)}
    missing = [(), (), (), (), ("odd",), ("even",)][draw.below(6)] if draw.below(12) else CLAUSES
    prompt = {name: "" if name in missing else word for name, word in words.items()}
    turns = []
    for i in range(1 + draw.below(3)):
        query = "".join(str(draw.below(10)) for _ in range(digits))
        before = "" if i else f"{hint(prompt)}|"
        turns.append((f"{before}{query}=", apply(words[slice_of(query)], query)))
    return turns


def inverse_document(draw: Draw, pairs: int = 3, digits: int = 5) -> Document:
    """Numbers of one parity and what a word makes of them, then the word."""
    word, parity = random_word(draw), draw.below(2)
    shown = []
    for _ in range(pairs):
        first = 2 * draw.below(5) + parity
        query = str(first) + "".join(str(draw.below(10)) for _ in range(digits - 1))
        shown.append((query, apply(word, query)))
    return [(inverse_text(shown), word)]
