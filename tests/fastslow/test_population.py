"""The Pareto front against GEPA's own code and by hand; what is kept; JSON."""

import json
from collections import Counter

import numpy as np
import pytest

from fastweights.fastslow import population as prompts
from fastweights.fastslow.population import (
    Candidate,
    Population,
    fronts,
    keep_best,
    select_parent,
    undominated,
)
from fastweights.tasks.haystack import Draw


def made(scores, **more):
    scores = np.asarray(scores, np.float64)
    members = tuple(Candidate(i, {"a": str(i)}) for i in range(len(scores)))
    return Population(members, scores, len(scores), **more)


def random_scores(seed):
    rng = np.random.default_rng(seed)
    # few levels, so that fronts are shared
    return rng.integers(0, 3, (rng.integers(1, 8), rng.integers(1, 9))) / 2


@pytest.mark.parametrize("seed", range(200))
def test_domination_is_that_of_gepa(seed):
    gepa = pytest.importorskip("gepa.gepa_utils")
    scores = random_scores(seed)
    found = fronts(scores)
    by_hand = [
        {i for i in range(len(scores)) if scores[i, j] == max(scores[:, j])}
        for j in range(scores.shape[1])
    ]
    assert found == by_hand
    means = scores.mean(1)
    theirs = gepa.remove_dominated_programs(dict(enumerate(by_hand)), list(means))
    # ties of the mean may be broken otherwise: compare where there are none
    if len(set(means)) == len(means):
        assert undominated(found, means) == [theirs[j] for j in range(scores.shape[1])]
    assert all(undominated(found, means))


def test_a_prompt_that_owns_one_instance_survives_a_better_mean():
    # 1 has the best mean; 0 is best on instance 2; 2 is nowhere alone
    population = made([[0, 0, 1.0], [1, 1, 0], [1, 0.5, 0]])
    found = undominated(fronts(population.scores), population.means)
    assert set().union(*found) == {0, 1}
    assert [m.id for m in keep_best(population, 2).members] == [0, 1]
    assert [m.id for m in keep_best(population, 1).members] == [1]
    # the front has two, and 2 is not on it
    assert [m.id for m in keep_best(population, 3).members] == [0, 1]
    assert keep_best(population, 2).scores.tolist() == [[0, 0, 1], [1, 1, 0]]


def test_parents_are_drawn_by_the_instances_they_are_best_on():
    population = made([[1, 0, 0, 0], [0, 1, 1, 1], [0.5, 0.5, 0.5, 0.5]])
    drawn = Counter(select_parent(population, Draw(s)).id for s in range(2_000))
    assert set(drawn) == {0, 1}
    # 500 expected, standard deviation 19
    assert abs(drawn[0] - 500) < 80


@pytest.mark.parametrize("seed", range(5))
def test_the_chances_are_those_of_gepa(seed):
    gepa = pytest.importorskip("gepa.gepa_utils")
    import random

    scores = random_scores(seed + 1_000)
    scores += np.arange(len(scores))[:, None] * 1e-9  # no ties of means
    population, rng = made(scores), random.Random(0)
    by_front = dict(enumerate(fronts(scores)))
    count = 3_000
    ours = Counter(select_parent(population, Draw(s)).id for s in range(count))
    theirs = Counter(
        gepa.select_program_candidate_from_pareto_front(by_front, list(population.means), rng)
        for _ in range(count)
    )
    assert set(ours) == set(theirs)
    for i in ours:
        # five standard deviations of a difference of two such counts
        assert abs(ours[i] - theirs[i]) < 5 * np.sqrt(2 * count * 0.25)


def test_what_could_not_be_scored_is_no_zero():
    population = made([[np.nan, 1.0], [0.4, np.nan], [np.nan, np.nan]])
    assert population.means.tolist() == [1.0, 0.4, -np.inf]
    assert fronts(population.scores) == [{1}, {0}]
    assert fronts(np.full((2, 1), np.nan)) == [set()]
    nothing = made(np.full((2, 3), np.nan))
    assert select_parent(nothing, Draw(0)).id in (0, 1)
    assert len(keep_best(nothing, 1).members) == 1


def test_members_are_compared_on_what_all_were_scored_on():
    # 0 has the best mean of its own, of one easy instance, on which 1 and 2 did as well
    easy = made([[1.0, np.nan, np.nan], [1, 0.5, 0.25], [1, 0.75, 0.5], [np.nan] * 3])
    assert easy.means.tolist() == [1, 1, 1, -np.inf] and easy.order == [0, 1, 2, 3]
    assert [m.id for m in keep_best(easy, 1).members] == [2]
    # two instances are shared, and without the third 1 is the best, 0 the worst
    some = made([[0, 0.5, np.nan], [0.75, 0.5, 0.25], [0.25, 0.5, 1]])
    assert some.means.tolist() == [0.25, 0.625, 0.375]
    assert some.order == [1, 2, 0] and some.best().id == 1
    # nothing is shared: scored on two, then on one, better or worse
    none = made([[0.9, np.nan, np.nan], [np.nan, 0.5, 0.5], [np.nan, np.nan, 0.8]])
    assert none.order == [1, 0, 2] and none.best().id == 1
    for count in (1, 2, 3):
        assert [m.id for m in keep_best(none, count).members] == sorted([1, 0, 2][:count])


@pytest.mark.parametrize("seed", range(30))
def test_the_best_of_the_front_are_kept_and_nothing_else(seed):
    scores = np.random.default_rng(seed).random((6, 5))  # no ties: every front has one
    front = {int(i) for i in scores.argmax(0)}
    ranked = sorted(front, key=lambda i: -scores[i].mean())
    for count in range(1, 7):
        kept = keep_best(made(scores), count)
        assert [m.id for m in kept.members] == sorted(ranked[:count])
        assert kept.best().id == ranked[0]


def test_a_child_has_a_new_id_and_its_scores():
    population = made([[0.0, 0.5]]).with_child({"a": "x"}, (0,), 3, "edit", np.array([1, 0.25]))
    child = population.members[1]
    assert (child.id, child.parents, child.born, child.by) == (1, (0,), 3, "edit")
    assert population.scores.tolist() == [[0, 0.5], [1, 0.25]] and population.born == 2
    assert population.has({"a": "x"}) and not population.has({"a": "y"})
    assert population.best().id == 1


def test_json_is_exact():
    scores = np.array([[0.1 + 0.2, np.nan], [1 / 3, 0.0]])
    population = made(scores)
    back = prompts.from_json(json.loads(json.dumps(prompts.to_json(population))))
    assert back.members == population.members and back.born == 2
    assert np.array_equal(back.scores, scores, equal_nan=True)
    fresh = Population((Candidate(0, {"a": ""}),))
    assert prompts.from_json(json.loads(json.dumps(prompts.to_json(fresh)))) == fresh
