"""Tasks whose input is a prompt and a problem, and whose answers a verifier scores.

The prompt is the part that may be evolved. It is a mapping from the names of its components to
their text, as in GEPA (Agrawal et al. 2025, arXiv 2507.19457).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

#: component -> text
Prompt = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        id: the same problem has the same id in every run, and no other problem has it.
        query: what is asked, the same under every prompt.
        answer: the reference answer.
    """

    id: str
    query: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Score:
    """What an answer is worth.

    Attributes:
        value: the reward, 0 to 1.
        correct: whether the answer is right as a whole; what accuracy counts.
        feedback: what a proposer of prompts may learn from, in words.
    """

    value: float
    correct: bool
    feedback: str = ""


@dataclasses.dataclass(frozen=True)
class Unscorable:
    """An answer that the verifier has looked at and cannot judge: it is neither right nor wrong."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Failed:
    """A verifier that broke: it raised, did not return in time, or returned no score."""

    error: str


Outcome = Score | Unscorable | Failed


class PromptSpace(Protocol):
    """What prompts there can be, and what they are scored on: all that their evolution needs."""

    def problems(self, split: str, count: int, seed: int = 0) -> list[Problem]:
        """Problems of a split: train, validation or test share none.

        Args:
            split: which.
            count: how many.
            seed: those of two seeds of the training split are drawn independently.
        """
        ...

    def prompt_problems(self, prompt: Prompt) -> list[str]:
        """Why a prompt cannot be used, in words: unknown components, too long, not grammatical."""
        ...


class PromptedTask(PromptSpace, Protocol):
    """A task for prompts and policies: hyper-parameters as fields of a frozen dataclass."""

    @property
    def seed_prompt(self) -> dict[str, str]:
        """The prompt before any is evolved; it says nothing about the task."""
        ...

    @property
    def answer_length(self) -> int:
        """The most tokens an answer may take, the one that ends it included."""
        ...

    def text(self, prompt: Prompt, problem: Problem) -> str:
        """What the model is given to read."""
        ...

    def verify(self, problem: Problem, answer: str) -> Outcome:
        """Judge an answer; never raises for any text."""
        ...


class HintedTask(PromptedTask, Protocol):
    """A task whose prompts are hints in a small language that is known."""

    #: solved problems that a reflector trained on this kind of hints reads at once
    pairs: ClassVar[int]

    def units(self, component: str) -> Sequence[str]:
        """What hints of a component are made of: the alphabet of blind edits."""
        ...

    def easier(self) -> "HintedTask":
        """The same hidden rule on problems of which the base model solves some without a hint."""
        ...

    def faults(self) -> list[str]:
        """What cannot work in the task's own fields, in words."""
        ...

    def evidence(self, component: str, query: str, answer: str) -> list[tuple[str, str]]:
        """What of a solved problem shows what a component should say: (question, answer) pairs.

        None for a problem that does not concern the component.
        """
        ...

    def explain(self, component: str, text: str, question: str) -> str:
        """The answer that a component with that text stands for, to a question of `evidence`.

        This is symbolic knowledge of the hint language, and none of the hidden rule.
        """
        ...

    @property
    def oracle(self) -> dict[str, str]:
        """The prompt that states the hidden rule; for controls, never shown to a proposer."""
        ...
