"""The frozen base model as its own reflector: it reads solved problems and writes the hint."""

import dataclasses
from collections.abc import Sequence

from fastweights.fastslow.edits import allowed, evidence, guilty_component
from fastweights.fastslow.propose import ProposalError, Record
from fastweights.fastslow.rollouts import Sampler
from fastweights.pretrained import Pretrained
from fastweights.tasks.haystack import Draw
from fastweights.tasks.hints import inverse_text
from fastweights.tasks.prompted import HintedTask, Prompt


@dataclasses.dataclass(frozen=True)
class SelfReflector:
    """Asks a copy of the policy, as it was before training, for the hint that explains the answers.

    Like the reflection model of fast-slow training it never changes. It knows nothing that the
    policy was not trained on beforehand: the inverse task, from solved problems to their hint.

    Attributes:
        task: whose hints.
        base: the frozen model.
        most: tokens of a hint.
        temperature: of its sampling.
        description: see `Proposer`.
    """

    task: HintedTask
    base: Pretrained
    most: int = 5
    temperature: float = 0.7
    description: str = "the frozen base model: reads solved problems, writes the hint"

    def choose(self, prompt: Prompt, records: Sequence[Record], draw: Draw) -> str:
        """See `Proposer`."""
        return guilty_component(self.task, prompt, records, draw)

    def propose(self, prompt: Prompt, component: str, records: Sequence[Record], draw: Draw) -> str:
        """See `Proposer`."""
        seen = draw.shuffled(list(dict.fromkeys(evidence(self.task, component, records))))
        if not seen:
            raise ProposalError(f"no record is about {component}")
        sampler = Sampler(self.base.tokenizer, self.base.stop_tokens, self.most, self.temperature)
        question = inverse_text(seen[: self.task.pairs])
        text = sampler(self.base.model, [question], 1, draw.below(2**31)).texts[0]
        return allowed(self.task, prompt, component, [text])[0]
