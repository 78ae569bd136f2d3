"""Hinted tasks one after the other, with prompts that have room for the hints of all of them.

A prompt has the components of every task, and a task's model input holds those of its own. So a
population that was evolved on one task is carried to the next without anyone being told: prompts
there begin empty, and what was learned before is still in them when a task comes back.
"""

import dataclasses
from collections.abc import Sequence

from fastweights.tasks.conventions import Conventions
from fastweights.tasks.programs import Programs
from fastweights.tasks.prompted import HintedTask, Outcome, Problem, Prompt
from fastweights.tasks.star_graph import StarGraph


@dataclasses.dataclass(frozen=True)
class Continual:
    """Tasks in the order they come.

    Attributes:
        tasks: the tasks.
        updates: updates of the weights on each.
    """

    tasks: tuple[Programs | Conventions | StarGraph, ...]
    updates: int = 100

    def at(self, updates: int) -> "Stage":
        """The task after so many updates; the last one goes on for ever."""
        return self.stage(min(updates // self.updates, len(self.tasks) - 1))

    def stage(self, number: int) -> "Stage":
        """Task `number`, with prompts of all."""
        return Stage(self.tasks[number], self.tasks)

    def faults(self) -> list[str]:
        """What cannot work, in words."""
        if not self.tasks or self.updates < 1:
            return ["tasks must not be empty, and updates be at least 1"]
        return [f"tasks[{i}].{text}" for i, x in enumerate(self.tasks) for text in x.faults()]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One task of several; a `HintedTask` whose prompts have the components of all of them."""

    task: Programs | Conventions | StarGraph
    tasks: tuple[Programs | Conventions | StarGraph, ...]

    def _owner(self, component: str) -> HintedTask:
        mine = [x for x in (self.task, *self.tasks) if component in x.seed_prompt]
        return mine[0]

    def _own(self, prompt: Prompt) -> dict[str, str]:
        return {name: prompt[name] for name in self.task.seed_prompt}

    @property
    def seed_prompt(self) -> dict[str, str]:
        """See `PromptedTask`."""
        return {name: text for x in self.tasks for name, text in x.seed_prompt.items()}

    @property
    def pairs(self) -> int:
        """See `HintedTask`."""
        return self.task.pairs

    @property
    def oracle(self) -> dict[str, str]:
        """See `HintedTask`."""
        return {**self.seed_prompt, **self.task.oracle}

    @property
    def answer_length(self) -> int:
        """See `PromptedTask`."""
        return self.task.answer_length

    def easier(self) -> "Stage":
        """See `HintedTask`."""
        return dataclasses.replace(self, task=self.task.easier())

    def problems(self, split: str, count: int, seed: int = 0) -> list[Problem]:
        """See `PromptedTask`."""
        return self.task.problems(split, count, seed)

    def text(self, prompt: Prompt, problem: Problem) -> str:
        """See `PromptedTask`."""
        return self.task.text(self._own(prompt), problem)

    def verify(self, problem: Problem, answer: str) -> Outcome:
        """See `PromptedTask`."""
        return self.task.verify(problem, answer)

    def prompt_problems(self, prompt: Prompt) -> list[str]:
        """See `PromptedTask`."""
        if set(prompt) != set(self.seed_prompt):
            return [f"components are {', '.join(self.seed_prompt)}, not {', '.join(prompt)}"]
        return self.task.prompt_problems(self._own(prompt))

    def units(self, component: str) -> Sequence[str]:
        """See `HintedTask`."""
        return self._owner(component).units(component)

    def evidence(self, component: str, query: str, answer: str) -> list[tuple[str, str]]:
        """See `HintedTask`."""
        own = component in self.task.seed_prompt
        return self.task.evidence(component, query, answer) if own else []

    def explain(self, component: str, text: str, question: str) -> str:
        """See `HintedTask`."""
        return self._owner(component).explain(component, text, question)
