"""What writes new prompts: the protocol of every proposer, symbolic, neural or remote."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from fastweights.tasks.haystack import Draw
from fastweights.tasks.prompted import Prompt


@dataclasses.dataclass(frozen=True)
class Record:
    """A rollout that a proposer learns from.

    Attributes:
        query: the problem.
        output: what the model answered under the parent prompt.
        answer: the reference answer.
        score: the reward, 0 to 1.
        feedback: the verifier's words.
    """

    query: str
    output: str
    answer: str
    score: float
    feedback: str


class ProposalError(Exception):
    """No proposal could be had; the attempt is counted, and nothing is scored."""


class Proposer(Protocol):
    """Something that writes prompts."""

    @property
    def description(self) -> str:
        """One line on what it is and what it knows, for the figures made with it."""
        ...

    def choose(self, prompt: Prompt, records: Sequence[Record], draw: Draw) -> str:
        """The component to write anew; arguments are those of `propose`."""
        ...

    def propose(self, prompt: Prompt, component: str, records: Sequence[Record], draw: Draw) -> str:
        """A new text for one component of a prompt.

        Args:
            prompt: the parent.
            component: which of its components to write anew.
            records: rollouts under the parent, with feedback.
            draw: all of its random choices.

        Raises:
            ProposalError: there is none to be had.
        """
        ...


def any_component(prompt: Prompt, draw: Draw) -> str:
    """One of a prompt's components, each as likely as the others."""
    return draw.choice(sorted(prompt))
