"""Proposers without a language model, from blind edits to ones that know the hint language.

They are steps of a ladder: how much of what evolution finds is due to search, to feedback, or to
knowing what hints mean. Blind edits of units follow GrIPS (Prasad et al. 2022, arXiv 2203.07281).
"""

import dataclasses
import math
from collections.abc import Sequence

from fastweights.fastslow.propose import ProposalError, Record, any_component
from fastweights.tasks.haystack import Draw
from fastweights.tasks.hints import matching
from fastweights.tasks.prompted import HintedTask, Prompt


def edits(text: str, units: Sequence[str]) -> list[str]:
    """Every text that is one insertion, deletion, replacement or swap of neighbours away.

    Units are single characters. The order is fixed, and none is twice in it.
    """
    places = range(len(text))
    found = [text[:i] + u + text[i:] for i in range(len(text) + 1) for u in units]
    found += [text[:i] + text[i + 1 :] for i in places]
    found += [text[:i] + u + text[i + 1 :] for i in places for u in units]
    found += [text[:i] + text[i + 1] + text[i] + text[i + 2 :] for i in places[:-1]]
    return [x for x in dict.fromkeys(found) if x != text]


def allowed(task: HintedTask, prompt: Prompt, component: str, texts: Sequence[str]) -> list[str]:
    """Those of the texts with which the prompt is still one of the task's.

    Raises:
        ProposalError: none is.
    """
    found = [x for x in texts if not task.prompt_problems({**prompt, component: x})]
    if not found:
        raise ProposalError(f"no edit of {component} = {prompt[component]!r} is allowed")
    return found


@dataclasses.dataclass(frozen=True)
class Blind:
    """A random edit of a random component; records are not looked at."""

    task: HintedTask
    description: str = "blind edits: random, no feedback used"

    def choose(self, prompt: Prompt, records: Sequence[Record], draw: Draw) -> str:
        """See `Proposer`."""
        return any_component(prompt, draw)

    def propose(self, prompt: Prompt, component: str, records: Sequence[Record], draw: Draw) -> str:
        """See `Proposer`."""
        texts = edits(prompt[component], self.task.units(component))
        return draw.choice(allowed(self.task, prompt, component, texts))


@dataclasses.dataclass(frozen=True)
class Directed(Blind):
    """A random edit of the component that lost the most reward.

    It knows which component a problem concerns, and not what hints mean.
    """

    description: str = "feedback-directed edits: random, in the component that is wrong"

    def choose(self, prompt: Prompt, records: Sequence[Record], draw: Draw) -> str:
        """See `Proposer`: with a chance in proportion to the reward that the records lack."""
        return guilty_component(self.task, prompt, records, draw)


@dataclasses.dataclass(frozen=True)
class Inductive(Directed):
    """The edit after which the hint explains the reference answers best, with some chance.

    It knows what the units mean, as whoever made the hint language would, and not the hidden rule.

    Attributes:
        task: whose hints.
        sharpness: texts are drawn in proportion to exp(sharpness x share of the answers explained).
        description: see `Proposer`.
    """

    description: str = "inductive edits: knows the hint language, not the hidden rule"
    sharpness: float = 12.0

    def propose(self, prompt: Prompt, component: str, records: Sequence[Record], draw: Draw) -> str:
        """See `Proposer`."""
        units = self.task.units(component)
        texts = allowed(self.task, prompt, component, edits(prompt[component], units))
        seen = evidence(self.task, component, records)
        if not seen:
            raise ProposalError(f"no record is about {component}")
        shares = [
            sum(matching(answer, self.task.explain(component, text, q)) for q, answer in seen)
            for text in texts
        ]
        return weighted_choice(texts, [x / len(seen) for x in shares], self.sharpness, draw)


def evidence(task: HintedTask, component: str, records: Sequence[Record]) -> list[tuple[str, str]]:
    """All that records show of a component: (question, answer) pairs."""
    return [pair for x in records for pair in task.evidence(component, x.query, x.answer)]


def guilty_component(
    task: HintedTask, prompt: Prompt, records: Sequence[Record], draw: Draw
) -> str:
    """A component with a chance in proportion to the reward lost on the problems it concerns."""
    names = sorted(prompt)
    lost = [
        sum(1 - x.score for x in records if task.evidence(name, x.query, x.answer))
        for name in names
    ]
    if not sum(lost):
        return any_component(prompt, draw)
    return weighted_choice(names, lost, None, draw)


def weighted_choice(
    options: Sequence[str], values: Sequence[float], sharpness: float | None, draw: Draw
) -> str:
    """An option with a chance in proportion to exp(sharpness x value), or to the value itself."""
    best = max(values)
    weights = values if sharpness is None else [math.exp(sharpness * (x - best)) for x in values]
    at = draw.below(2**53) / 2**53 * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        at -= weight
        if at < 0:
            return option
    return options[-1]
