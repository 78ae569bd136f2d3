"""The small world: rules by independent arithmetic, splits, verdicts on any text, grammar."""

import random

import numpy as np
import pytest

from fastweights.tasks import conventions, programs, star_graph
from fastweights.tasks.continual import Continual
from fastweights.tasks.conventions import Conventions
from fastweights.tasks.haystack import Draw
from fastweights.tasks.programs import Programs
from fastweights.tasks.prompted import Problem, Score
from fastweights.tasks.star_graph import StarGraph

TASKS = (Programs(), Conventions(), StarGraph(), Programs(dense=False), Conventions(dense=False))
STAGES = tuple(Continual((Conventions(), Programs(), StarGraph())).stage(i) for i in range(3))


def by_matrix(word, digits):
    """Each operation as an affine map of the digits mod 10, composed in float64."""
    n = len(digits)
    eye = np.eye(n)
    maps = {
        "r": (eye[::-1], np.zeros(n)),
        "t": (np.roll(eye, 1, axis=1), np.zeros(n)),
        "i": (eye, np.ones(n)),
        "n": (-eye, np.full(n, 9.0)),
        "w": (eye[[1, 0, *range(2, n)]], np.zeros(n)),
    }
    x = np.array([float(d) for d in digits])
    for letter in word:
        a, b = maps[letter]
        x = a @ x + b
    return "".join(str(int(v) % 10) for v in x)


def test_operations_are_their_affine_maps():
    rng = random.Random(0)
    for _ in range(200):
        word = "".join(rng.choices("rtinw", k=rng.randint(0, 5)))
        digits = "".join(rng.choices("0123456789", k=rng.randint(2, 7)))
        assert programs.apply(word, digits) == by_matrix(word, digits)


def test_a_chain_is_evaluated_from_the_left():
    meanings = dict(zip("@#&", "-<+", strict=True))
    # 3 @ 5 = -2 = 8; 8 # 6 = 6; 6 & 7 = 13 = 3
    assert conventions.evaluate(meanings, "3@5#6&7") == "863"


@pytest.mark.parametrize("stars, degree, arm", [(1, 5, 4), (3, 3, 2), (5, 4, 1)])
def test_a_graph_has_one_way_and_no_parent_twice(stars, degree, arm):
    for seed in range(20):
        graph = star_graph.random_graph(Draw(seed), stars, degree, arm)
        assert len(graph.edges) == stars * degree * arm
        parents = [b for _, b in graph.edges]
        assert len(set(parents)) == len(parents)
        # all ways from the start, by search
        ways, found = [graph.path[0]], []
        while ways:
            way = ways.pop()
            found += [way] if way[-1] == graph.path[-1] else []
            ways += [way + b for a, b in graph.edges if a == way[-1]]
        assert found == [graph.path]
        leaving = [sum(a == node for a, _ in graph.edges) for node in graph.path[:-1:arm]]
        assert leaving == [degree] * stars


@pytest.mark.parametrize("task", [*TASKS, *STAGES], ids=repr)
def test_the_oracle_explains_and_the_reference_answer_is_right(task):
    for problem in task.problems("train", 50, seed=3):
        assert task.verify(problem, problem.answer) == Score(1.0, True, "right")
        seen = [
            (task.explain(name, task.oracle[name], question), answer)
            for name in task.seed_prompt
            for question, answer in task.evidence(name, problem.query, problem.answer)
        ]
        assert seen and all(given == answer for given, answer in seen)
        assert set(task.text(task.seed_prompt, problem).split("|")[0]) == {"."}
        assert task.oracle != task.seed_prompt and not task.prompt_problems(task.oracle)
        assert len(problem.answer) + 1 <= task.answer_length


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_splits_share_nothing_and_seeds_differ(task):
    splits = {s: {p.id for p in task.problems(s, 200)} for s in ("train", "validation", "test")}
    assert not splits["train"] & splits["validation"]
    assert not splits["train"] & splits["test"]
    assert not splits["validation"] & splits["test"]
    assert task.problems("train", 20, 1) == task.problems("train", 20, 1)
    assert task.problems("train", 20, 1) != task.problems("train", 20, 2)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_any_text_is_judged(task):
    rng = random.Random(1)
    for problem in task.problems("validation", 10):
        for _ in range(50):
            text = "".join(rng.choices("0123456789<>abcxyz|=\n é", k=rng.randint(0, 12)))
            verdict = task.verify(problem, text)
            assert isinstance(verdict, Score) and 0 <= verdict.value < 1 and verdict.feedback
            assert not verdict.correct


def test_part_of_the_digits_is_part_of_the_reward():
    task, problem = Programs(), Problem("x", "12345", "54321")
    assert task.verify(problem, "54320").value == pytest.approx(0.8)
    assert task.verify(problem, "543210").value == pytest.approx(5 / 6)
    assert Programs(dense=False).verify(problem, "54320").value == 0


def test_a_path_may_be_written_either_way():
    task = StarGraph(stars=2, degree=2, arm=1)
    problem = Problem("x", "ab,bc,ad,be:a>c", "<cba")
    assert task.verify(problem, ">abc").correct and task.verify(problem, "<cba").correct
    assert "dead end" in task.verify(problem, ">adc").feedback
    assert "ends at e" in task.verify(problem, ">abe").feedback
    assert "neither" in task.verify(problem, "abc").feedback
    assert "begin at a" in task.verify(problem, "<cb").feedback


@pytest.mark.parametrize(
    "task, prompt, word",
    [
        (Programs(), {"odd": "rx", "even": ""}, "'x'"),
        (Programs(), {"odd": "rrrr", "even": ""}, "more than 3"),
        (Programs(longest=3), {"odd": "rr", "even": "tt"}, "more than 3 operations in both"),
        (Programs(), {"odd": "r"}, "components"),
        (Conventions(), {"@": "++", "#": "", "&": ""}, "'++'"),
        (Conventions(), {"@": "?", "#": "", "&": ""}, "'?'"),
        (StarGraph(), {"strategy": "q"}, "'q'"),
        (StarGraph(), {"mode": "b"}, "component"),
        (STAGES[1], {"odd": "r", "even": ""}, "components"),
    ],
)
def test_a_prompt_that_cannot_be_is_told_why(task, prompt, word):
    assert word in " ".join(task.prompt_problems(prompt))


def test_a_stage_reads_its_own_components_and_knows_nothing_of_the_others():
    stage = STAGES[1]
    prompt = {**stage.seed_prompt, "@": "+", "odd": "ir"}
    problem = Problem("x", "12345", "65432")
    assert stage.text(prompt, problem) == "ir....|12345="
    assert stage.evidence("@", "12345", "65432") == []
    assert stage.units("@") == conventions.MEANINGS
    continual = Continual((Conventions(), Programs(), StarGraph()), updates=10)
    kinds = [type(continual.at(u).task).__name__ for u in (0, 9, 10, 29, 30, 500)]
    assert kinds == ["Conventions"] * 2 + ["Programs"] + ["StarGraph"] * 3


@pytest.mark.parametrize(
    "task",
    [
        Programs(odd="x"),
        Programs(digits=1),
        Programs(longest=0),
        Conventions(meanings="++"),
        Conventions(steps=0),
        StarGraph(stars=9),
        StarGraph(arm=0),
        Continual(()),
        Continual((Programs(even=""),)),
    ],
    ids=repr,
)
def test_fields_that_cannot_be_are_found(task):
    assert task.faults()
    assert not TASKS[0].faults()
