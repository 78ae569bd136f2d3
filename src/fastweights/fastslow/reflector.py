"""The frozen base model as its own reflector: it writes hints and says which explains most."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax import Array

from fastweights.fastslow.edits import allowed, evidence, guilty_component
from fastweights.fastslow.evaluation import sequences
from fastweights.fastslow.propose import ProposalError, Record
from fastweights.fastslow.rollouts import Rollouts, Sampler, token_rows
from fastweights.fastslow.slow import answer_log_probs
from fastweights.models.decoder import Decoder
from fastweights.nn.cross_entropy import NO_TARGET
from fastweights.pretrained import Pretrained
from fastweights.tasks.haystack import Draw
from fastweights.tasks.hints import inverse_text
from fastweights.tasks.prompted import HintedTask, Problem, Prompt

#: answers whose likelihood is computed at once
ROWS = 128


@dataclasses.dataclass(frozen=True)
class SelfReflector:
    """Asks a copy of the policy, as it was before training, for the hint that explains the answers.

    Like the reflection model of fast-slow training it never changes. It is used twice, and knows
    nothing that the policy was not trained on beforehand. By the inverse task, from solved problems
    to their hint, it writes many hints. By the task itself, from a hint to answers, it says which
    of them makes the reference answers likeliest: that one is proposed. A long rule is seldom
    written and easily recognised. Nothing of this is a rollout of the policy.

    Attributes:
        task: whose hints.
        base: the frozen model.
        samples: hints that it writes for one proposal.
        most: tokens of a hint.
        temperature: of its sampling.
        description: see `Proposer`.
    """

    task: HintedTask
    base: Pretrained
    samples: int = 64
    most: int = 5
    temperature: float = 1.0
    description: str = "the frozen base model: writes hints, keeps what explains the answers best"

    def choose(self, prompt: Prompt, records: Sequence[Record], draw: Draw) -> str:
        """See `Proposer`."""
        return guilty_component(self.task, prompt, records, draw)

    def propose(self, prompt: Prompt, component: str, records: Sequence[Record], draw: Draw) -> str:
        """See `Proposer`."""
        seen = list(dict.fromkeys(evidence(self.task, component, records)))
        if not seen:
            raise ProposalError(f"no record is about {component}")
        sampler = Sampler(self.base.tokenizer, self.base.stop_tokens, self.most, self.temperature)
        questions = [
            inverse_text(draw.shuffled(seen)[: self.task.pairs]) for _ in range(self.samples)
        ]
        written = sampler(self.base.model, questions, 1, draw.below(2**31)).texts
        new = [x for x in dict.fromkeys(written) if x != prompt[component]]
        texts = allowed(self.task, prompt, component, new)
        # the hint alone: evidence is of its component and of no other
        asked = [
            self.task.text({**self.task.seed_prompt, component: x}, Problem(question, question, a))
            for x in texts
            for question, a in seen
        ]
        answers = [answer for _ in texts for _, answer in seen]
        worth = log_likelihoods(self.base, asked, answers).reshape(len(texts), len(seen)).sum(1)
        return texts[int(worth.argmax())]


def log_likelihoods(base: Pretrained, texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Log probability of each answer, and of its ending there, after its text: `[B]` float32."""
    encode, stop = base.tokenizer.encode, base.stop_tokens[0]
    given = [encode(text) for text in texts]
    told = [np.append(encode(answer), stop) for answer in answers]
    found = []
    for start in range(0, len(texts), ROWS):
        inputs, lengths = token_rows(given[start : start + ROWS], ROWS)
        outputs, sizes = token_rows(told[start : start + ROWS], ROWS)
        nothing = np.zeros(outputs.shape, np.float32)
        tokens, at, mask = sequences(Rollouts(inputs, lengths, outputs, sizes, nothing, []))
        found.append(_totals(base.model, tokens, at, np.where(mask, outputs, NO_TARGET)))
    return np.concatenate([np.asarray(x) for x in found])[: len(texts)]


@jax.jit
def _totals(model: Decoder, tokens: Array, at: Array, answers: Array) -> Array:
    """Log probability of each row's answer, `[B]` float32."""
    batch = {"tokens": tokens, "at": at, "answers": answers}
    return answer_log_probs(model, batch, 1.0).sum(-1)
