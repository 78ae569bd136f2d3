"""One evolution of the prompts, in ticks: score those carried over, propose, keep the best.

It is GEPA's step (Agrawal et al. 2025, arXiv 2507.19457) with what fast-slow training needs on top:
it starts from K prompts and not from one; their scores are made anew, since the weights have moved;
an instance's score is the mean of several samples, since one noisy reward is no Pareto front.

The state between two ticks is JSON data, and all chance comes from (seed, cycle, tick): a run that
stops anywhere goes on as if it had not.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastweights.fastslow.population import Candidate, Population, keep_best, select_parent
from fastweights.fastslow.propose import ProposalError, Proposer, Record
from fastweights.fastslow.seeds import seed_of
from fastweights.tasks.haystack import Draw
from fastweights.tasks.prompted import Outcome, Problem, Prompt, PromptSpace, Score


class Judged(NamedTuple):
    """An answer and what the verifier said of it."""

    answer: str
    outcome: Outcome


#: (prompts, problems, samples of each problem, seed) -> [prompts][problems][samples]
Evaluate = Callable[[Sequence[Prompt], Sequence[Problem], int, int], list[list[list[Judged]]]]


@dataclasses.dataclass(frozen=True)
class Evolution:
    """How prompts evolve.

    Attributes:
        keep: K, prompts in the population between evolutions.
        every: T, updates of the weights between two evolutions.
        proposals: new prompts tried in an evolution.
        minibatch: problems on which a child must beat its parent; the proposer sees the parent's
            answers to them.
        instances: problems on which prompts are scored, others in every evolution.
        samples: answers to each of those.
        crossover: share of the proposals that are put together from two prompts, component by
            component, instead of written by the proposer.
    """

    keep: int = 4
    every: int = 6
    proposals: int = 6
    minibatch: int = 8
    instances: int = 16
    samples: int = 2
    crossover: float = 0.15

    @property
    def ticks(self) -> int:
        """Ticks of an evolution: the scoring, the proposals, and the selection."""
        return self.proposals + 2


class Event(NamedTuple):
    """What a tick did, for the log."""

    kind: str  # scored, accepted, rejected, duplicate, failed, perfect, kept
    text: str
    rollouts: int


def mean_scores(judged: Sequence[Sequence[Judged]]) -> np.ndarray:
    """Mean reward of each problem over its scored samples; NaN where none was: `[problems]`."""
    found = np.full(len(judged), np.nan)
    for i, samples in enumerate(judged):
        values = [x.outcome.value for x in samples if isinstance(x.outcome, Score)]
        found[i] = np.mean(values) if values else np.nan
    return found


def records_of(problems: Sequence[Problem], judged: Sequence[Sequence[Judged]]) -> list[Record]:
    """What a proposer is shown: every scored answer, with the verifier's words."""
    return [
        Record(problem.query, x.answer, problem.answer, x.outcome.value, x.outcome.feedback)
        for problem, samples in zip(problems, judged, strict=True)
        for x in samples
        if isinstance(x.outcome, Score)
    ]


def tick(
    config: Evolution,
    task: PromptSpace,
    population: Population,
    cycle: int,
    number: int,
    *,
    evaluate: Evaluate,
    proposer: Proposer,
    seed: int,
    perfect_score: float | None = 1.0,
) -> tuple[Population, Event]:
    """Tick `number` of an evolution, from 0 to `config.ticks - 1`.

    Args:
        config: how prompts evolve.
        task: whose prompts.
        population: after the tick before.
        cycle: which evolution of the run, from 0.
        number: which tick of it.
        evaluate: answers under given prompts, with the weights as they are.
        proposer: writes new prompts.
        seed: of the run.
        perfect_score: the most that an answer can score: of a parent that has it on a whole
            minibatch no child is made, since none could be better. None if there is no most.

    Returns:
        The population after it, and what happened.
    """
    instances = task.problems("train", config.instances, seed_of(seed, "instances", cycle))
    if number == 0:
        prompts = [member.components for member in population.members]
        judged = evaluate(prompts, instances, config.samples, seed_of(seed, "scoring", cycle))
        population = population.scored(np.stack([mean_scores(rows) for rows in judged]))
        text = ", ".join(
            f"{m.id}: {x:.2f}" for m, x in zip(population.members, population.means, strict=True)
        )
        return population, Event("scored", text, _count(judged))
    if number == config.ticks - 1:
        population = keep_best(population, config.keep)
        return population, Event("kept", ", ".join(str(m.id) for m in population.members), 0)
    return _propose(
        config, task, population, cycle, number, instances, evaluate, proposer, seed, perfect_score
    )


def _propose(
    config: Evolution,
    task: PromptSpace,
    population: Population,
    cycle: int,
    number: int,
    instances: Sequence[Problem],
    evaluate: Evaluate,
    proposer: Proposer,
    seed: int,
    perfect_score: float | None,
) -> tuple[Population, Event]:
    """A child of a parent from the front, accepted if it beats the parent on a minibatch."""
    draw = Draw(seed_of(seed, "proposal", cycle, number))
    parent = select_parent(population, draw)
    batch = task.problems("train", config.minibatch, seed_of(seed, "minibatch", cycle, number))
    trial = seed_of(seed, "trial", cycle, number)
    before = evaluate([parent.components], batch, 1, trial)
    used, old = _count(before), mean_scores(before[0])
    scored = old[~np.isnan(old)]
    if perfect_score is not None and len(scored) and (scored >= perfect_score).all():
        return population, Event("perfect", str(parent.id), used)
    parents, by = (parent.id,), "proposer"
    crossed = _crossed(config, population, parent, draw)
    if crossed is not None:
        components, other = crossed
        parents, by = (parent.id, other), "crossover"
    else:
        records = records_of(batch, before[0])
        try:
            name = proposer.choose(parent.components, records, draw)
            text = proposer.propose(parent.components, name, records, draw)
        except ProposalError as error:
            return population, Event("failed", str(error), used)
        components = {**parent.components, name: text}
    problems = task.prompt_problems(components)
    if problems:
        return population, Event("failed", "; ".join(problems), used)
    if population.has(components):
        return population, Event("duplicate", str(components), used)
    after = evaluate([components], batch, 1, trial)
    used += _count(after)
    new = mean_scores(after[0])
    # where one of the two has no score there is nothing to compare
    both = ~np.isnan(old) & ~np.isnan(new)
    if not new[both].sum() > old[both].sum():
        text = f"{components}: {new[both].sum():.2f} <= {old[both].sum():.2f}"
        return population, Event("rejected", text, used)
    scores = evaluate([components], instances, config.samples, seed_of(seed, "scoring", cycle))
    used += _count(scores)
    population = population.with_child(components, parents, cycle, by, mean_scores(scores[0]))
    return population, Event("accepted", f"{population.members[-1].id}: {components}", used)


def _crossed(
    config: Evolution, population: Population, mine: Candidate, draw: Draw
) -> tuple[dict[str, str], int] | None:
    """A parent with some components of another member, and that member's id; None for no crossover.

    A member that would change nothing, or be changed into itself, is none to cross with.
    """
    if draw.below(2**53) / 2**53 >= config.crossover or len(mine.components) < 2:
        return None
    others = [m for m in population.members if m.id != mine.id]
    if not others:
        return None
    other = others[draw.below(len(others))]
    names = sorted(mine.components)
    taken = [name for name in names if draw.below(2)]
    components = {**mine.components, **{name: other.components[name] for name in taken}}
    return None if population.has(components) else (components, other.id)


def _count(judged: Any) -> int:
    return sum(len(samples) for rows in judged for samples in rows)
