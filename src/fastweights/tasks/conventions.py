"""Chains of operators whose meaning a prompt defines: the value after every step.

`@`, `#` and `&` join digits and are evaluated from the left. A hint says what each of them is, in
that order, or has a dot: `+` and `-` (mod 10), `>` the larger and `<` the smaller of the two, `l`
the left and `r` the right one.
The answer is the running value.

    +>-|3@4#5&2=775
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

OPERATORS = "@#&"
MEANINGS = "+-><lr"


def value(meaning: str, a: int, b: int) -> int:
    """A meaning applied to two digits."""
    return {
        "+": (a + b) % 10,
        "-": (a - b) % 10,
        ">": max(a, b),
        "<": min(a, b),
        "l": a,
        "r": b,
    }[meaning]


def evaluate(meanings: Prompt, chain: str) -> str:
    """The running value of a chain like `3@4#5`, a digit a step."""
    now, found = int(chain[0]), ""
    for operator, digit in zip(chain[1::2], chain[2::2], strict=True):
        now = value(meanings[operator], now, int(digit))
        found += str(now)
    return found


@dataclasses.dataclass(frozen=True)
class Conventions:
    """See the module. Reward: the share of steps whose value is right, or 1 for all of them only.

    Attributes:
        meanings: the hidden meanings of `@`, `#` and `&`.
        steps: operators in a chain.
        dense: whether a part of the steps is worth a part of the reward.
    """

    meanings: str = "-<+"
    steps: int = 2
    dense: bool = True

    #: see `HintedTask`
    pairs: ClassVar[int] = 3

    @property
    def seed_prompt(self) -> dict[str, str]:
        """See `PromptedTask`."""
        return dict.fromkeys(OPERATORS, "")

    @property
    def oracle(self) -> dict[str, str]:
        """See `HintedTask`."""
        return dict(zip(OPERATORS, self.meanings, strict=True))

    @property
    def answer_length(self) -> int:
        """See `PromptedTask`."""
        return self.steps + 1

    def easier(self) -> "Conventions":
        """See `HintedTask`: chains of one step."""
        return dataclasses.replace(self, steps=1)

    def faults(self) -> list[str]:
        """See `HintedTask`."""
        found = []
        if len(self.meanings) != len(OPERATORS) or set(self.meanings) - set(MEANINGS):
            found.append(
                f"meanings is {self.meanings!r}; it must be {len(OPERATORS)} of "
                f"{', '.join(MEANINGS)}"
            )
        if self.steps < 1:
            found.append(f"steps is {self.steps}; it must be at least 1")
        return found

    def problems(self, split: str, count: int, seed: int = 0) -> list[Problem]:
        """See `PromptedTask`: chains go to a split by the sum of their digits."""
        draw, found = Draw(2, SPLITS[split], seed), []
        while len(found) < count:
            query = random_chain(draw, self.steps)
            if split_of(query[::2]) == SPLITS[split]:
                found.append(Problem(query, query, evaluate(self.oracle, query)))
        return found

    def text(self, prompt: Prompt, problem: Problem) -> str:
        """See `PromptedTask`."""
        return f"{hint(prompt)}|{problem.query}="

    def verify(self, problem: Problem, answer: str) -> Score:
        """See `PromptedTask`."""
        expected = problem.answer
        if answer == expected:
            return Score(1.0, True, "right")
        first = first_difference(expected, answer)
        operator = problem.query[1::2][min(first, len(expected) - 1)]
        return Score(
            matching(expected, answer) if self.dense else 0.0,
            False,
            f"{problem.query} goes {expected}, not {answer!r}; step {first + 1}, an {operator}, is "
            "the first that is wrong",
        )

    def prompt_problems(self, prompt: Prompt) -> list[str]:
        """See `PromptedTask`."""
        if set(prompt) != set(OPERATORS):
            return [f"components are {', '.join(OPERATORS)}, not {', '.join(prompt)}"]
        return [
            f"{name}: {meaning!r} is none of the meanings {', '.join(MEANINGS)}"
            for name, meaning in prompt.items()
            if meaning and meaning not in MEANINGS or len(meaning) > 1
        ]

    def units(self, component: str) -> Sequence[str]:
        """See `HintedTask`."""
        return MEANINGS

    def evidence(self, component: str, query: str, answer: str) -> list[tuple[str, str]]:
        """See `HintedTask`: the steps that the operator makes, each a chain of its own."""
        before = query[0] + answer
        steps = zip(before, query[1::2], query[2::2], answer, strict=False)
        return [(f"{a}{name}{b}", c) for a, name, b, c in steps if name == component]

    def explain(self, component: str, text: str, question: str) -> str:
        """See `HintedTask`; an operator without a meaning leaves the left digit."""
        return evaluate({component: text or "l"}, question)


def hint(prompt: Prompt) -> str:
    """A prompt as the model reads it: three meanings, or dots."""
    return "".join(prompt[name] or "." for name in OPERATORS)


def random_chain(draw: Draw, steps: int) -> str:
    """Digits joined by operators."""
    chain = str(draw.below(10))
    for _ in range(steps):
        chain += OPERATORS[draw.below(3)] + str(draw.below(10))
    return chain


def random_document(draw: Draw) -> Document:
    """A hint, and 1 to 4 chains of 1 to 3 steps with their running values.

    In a fourth of the hints each operator is missing with probability 1/2: the answers are then
    those of some meanings.
    """
    meanings = {name: MEANINGS[draw.below(len(MEANINGS))] for name in OPERATORS}
    gaps = draw.below(4) == 0
    said = {name: "" if gaps and draw.below(2) else x for name, x in meanings.items()}
    turns = []
    for i in range(1 + draw.below(4)):
        chain = random_chain(draw, 1 + draw.below(3))
        before = "" if i else f"{hint(said)}|"
        turns.append((f"{before}{chain}=", evaluate(meanings, chain)))
    return turns


def inverse_document(draw: Draw, pairs: int = 3) -> Document:
    """Single steps of one operator and their values, then its meaning."""
    operator, meaning = OPERATORS[draw.below(3)], MEANINGS[draw.below(len(MEANINGS))]
    shown = []
    for _ in range(pairs):
        a, b = draw.below(10), draw.below(10)
        shown.append((f"{a}{operator}{b}", str(value(meaning, a, b))))
    return [(inverse_text(shown), meaning)]
