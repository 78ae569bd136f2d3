"""The fast weights of fast-slow training: a population of prompts and what each is worth, where.

Selection is that of GEPA (Agrawal et al. 2025, arXiv 2507.19457): a prompt counts if on some
instance none is better, so that prompts which own a part of the problems live on beside those with
the better mean.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastweights.tasks.haystack import Draw


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A prompt and where it comes from.

    Attributes:
        id: its number in the run; a child's is greater than its parents'.
        components: component -> text.
        parents: ids of those it was made of, none for the first.
        born: the evolution that made it.
        by: what made it.
    """

    id: int
    components: Mapping[str, str]
    parents: tuple[int, ...] = ()
    born: int = 0
    by: str = "seed"


@dataclasses.dataclass(frozen=True)
class Population:
    """Prompts, and their scores on the same instances; immutable, as every fast state here.

    Attributes:
        members: the prompts.
        scores: `[members, instances]` float64, mean reward; NaN where an instance could not be
            scored. None before the first scoring: scores are those of the weights as they were, and
            are never kept when the weights have moved.
        born: prompts ever made, the next one's id.
    """

    members: tuple[Candidate, ...]
    scores: np.ndarray | None = None
    born: int = 1

    @property
    def means(self) -> np.ndarray:
        """Mean score of each member, `[members]`, -inf for one with no score at all.

        It is over the instances that all of those have a score on, or an easy instance alone would
        look better than all of them; where there is no such instance, over each member's own.
        """
        if self.scores is None:
            return np.zeros(len(self.members))
        there, shared = ~np.isnan(self.scores), self._shared
        counted = there & shared if shared.any() else there
        sums = np.where(counted, self.scores, 0.0).sum(1)
        return np.where(there.any(1), sums / np.maximum(counted.sum(1), 1), -np.inf)

    @property
    def worth(self) -> list[tuple[int, float]]:
        """What members are compared by, the more the better: the mean.

        Means over different instances do not compare: where no instance is shared, the number of
        instances that a member has a score on comes first.
        """
        counts = np.zeros(len(self.members), int)
        if self.scores is not None and not self._shared.any():
            counts = (~np.isnan(self.scores)).sum(1)
        return list(zip(counts.tolist(), self.means.tolist(), strict=True))

    @property
    def order(self) -> list[int]:
        """Places of the members from best to worst, the older one of two equal ones first."""
        worth = self.worth
        return sorted(range(len(worth)), key=lambda i: worth[i], reverse=True)

    @property
    def _shared(self) -> np.ndarray:
        """Whether all members with any score have one there, `[instances]`."""
        assert self.scores is not None
        there = ~np.isnan(self.scores)
        return np.asarray((there | ~there.any(1, keepdims=True)).all(0))

    def has(self, components: Mapping[str, str]) -> bool:
        """Whether some member is this prompt."""
        return any(dict(member.components) == dict(components) for member in self.members)

    def scored(self, scores: np.ndarray) -> "Population":
        """The same prompts with new scores `[members, instances]`."""
        if scores.shape[0] != len(self.members):
            raise ValueError(f"scores {scores.shape} for {len(self.members)} prompts")
        return dataclasses.replace(self, scores=np.asarray(scores, np.float64))

    def with_child(
        self,
        components: Mapping[str, str],
        parents: tuple[int, ...],
        cycle: int,
        by: str,
        scores: np.ndarray,
    ) -> "Population":
        """One more prompt, scored `[instances]` on the same instances."""
        if self.scores is None:
            raise ValueError("a population that is not scored takes no scored child")
        child = Candidate(self.born, dict(components), parents, cycle, by)
        return Population(
            (*self.members, child), np.vstack([self.scores, scores[None]]), self.born + 1
        )

    def best(self) -> Candidate:
        """The first in order."""
        return self.members[self.order[0]]


def fronts(scores: np.ndarray) -> list[set[int]]:
    """Per instance, the members that none is better than: `[members, instances]` scores.

    An instance that nobody was scored on has an empty front.
    """
    best = np.where(np.isnan(scores), -np.inf, scores)
    top = best.max(0)
    return [
        set(np.flatnonzero((best[:, i] == top[i]) & np.isfinite(best[:, i])).tolist())
        for i in range(scores.shape[1])
    ]


def undominated(found: Sequence[set[int]], worth: Sequence[Any]) -> list[set[int]]:
    """The fronts without members that others can replace.

    A member is dominated if on each front it is on, some other member that remains is too. They are
    removed one by one, the one with the least worth first.
    """
    members = sorted(set().union(*found), key=lambda i: (worth[i], i)) if found else []
    remaining = set(members)
    again = True
    while again:
        again = False
        for i in members:
            if i not in remaining:
                continue
            mine = [front for front in found if i in front]
            if all((front & remaining) - {i} for front in mine):
                remaining.discard(i)
                again = True
                break
    return [front & remaining for front in found]


def select_parent(population: Population, draw: Draw) -> Candidate:
    """A member of the Pareto front, with a chance in proportion to the instances it is best on."""
    if population.scores is None:
        raise ValueError("a population is scored before a parent is selected")
    found = undominated(fronts(population.scores), population.worth)
    tickets = [i for front in found for i in sorted(front)]
    if not tickets:  # nothing could be scored: any
        return population.members[draw.below(len(population.members))]
    return population.members[tickets[draw.below(len(tickets))]]


def keep_best(population: Population, count: int) -> Population:
    """The `count` best of the Pareto front; of all members, if nothing could be scored.

    They stay in order of age, the scores with them.
    """
    if population.scores is None:
        raise ValueError("a population is scored before its best are kept")
    front = set().union(*undominated(fronts(population.scores), population.worth))
    order = [i for i in population.order if i in front] or population.order
    kept = sorted(order[:count])
    members = tuple(population.members[i] for i in kept)
    return dataclasses.replace(population, members=members, scores=population.scores[kept])


def to_json(population: Population) -> dict[str, Any]:
    """As JSON data; floats are exact, NaN is null."""
    scores = population.scores
    return {
        "members": [
            {**dataclasses.asdict(m), "components": dict(m.components), "parents": list(m.parents)}
            for m in population.members
        ],
        "scores": None
        if scores is None
        else [[None if np.isnan(x) else float(x) for x in row] for row in scores],
        "born": population.born,
    }


def from_json(data: dict[str, Any]) -> Population:
    """The inverse of `to_json`."""
    members = tuple(Candidate(**{**m, "parents": tuple(m["parents"])}) for m in data["members"])
    rows = data["scores"]
    scores = rows and np.array([[np.nan if x is None else x for x in row] for row in rows])
    return Population(members, scores, data["born"])
