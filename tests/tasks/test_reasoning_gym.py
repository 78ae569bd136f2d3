"""Puzzles of reasoning-gym: its problems and scores, splits, and what is refused."""

import dataclasses
import itertools

import pytest

from fastweights.errors import ConfigError
from fastweights.tasks.reasoning_gym import ReasoningGym, source

rg = pytest.importorskip("reasoning_gym")

SMALL = ReasoningGym(train=40, held=8, options=("min_terms=2", "max_terms=3"))


def test_problems_are_those_of_the_data_set():
    theirs = rg.create_dataset("chain_sum", seed=0, size=56, min_terms=2, max_terms=3)
    known = {f"chain_sum:{i}": (x["question"], x["answer"]) for i, x in enumerate(theirs)}
    for split, places in {"test": (0, 8), "validation": (8, 16), "train": (16, 56)}.items():
        got = SMALL.problems(split, 8)
        assert all(known[p.id] == (p.query, p.answer) for p in got)
        assert all(places[0] <= int(p.id.split(":")[1]) < places[1] for p in got)
    assert SMALL.problems("train", 9, 1) == SMALL.problems("train", 9, 1)
    assert SMALL.problems("train", 9, 1) != SMALL.problems("train", 9, 2)


def test_no_question_is_in_two_splits_or_twice():
    # sums of two digits: 200 places have far fewer different questions
    options = ("min_terms=2", "max_terms=2", "min_digits=1", "max_digits=1")
    tiny = ReasoningGym(train=200, held=20, options=options)
    every = [entry["question"] for entry in source(tiny)]
    test, held = ({*every[:20]}, {*every[20:40]} - {*every[:20]})
    rest = {*every[40:]} - test - held
    assert len(rest) < 160 and {*every[40:]} & test
    for split, questions in {"test": test, "validation": held, "train": rest}.items():
        got = tiny.problems(split, len(questions))
        assert len(got) == len(questions) and {p.query for p in got} == questions
        with pytest.raises(ConfigError, match=f"has {len(questions)} different"):
            tiny.problems(split, len(questions) + 1)


@pytest.mark.parametrize(
    "text, value",
    [
        ("{}", 1.0),
        (" {}\n", 1.0),
        ("It is 5, so <answer>\n{}</answer>.", 1.0),
        ("<answer>1</answer> or <answer>{}</answer>", 1.0),
        ("<answer>{}</answer> or <answer>a</answer>", 0.0),
        ("a", 0.0),
        ("", 0.0),
        ("\ud800", 0.0),
    ],
)
def test_an_answer_has_the_score_of_the_data_set(text, value):
    (problem,) = SMALL.problems("train", 1)
    score = SMALL.verify(problem, text.format(problem.answer))
    assert (score.value, score.correct) == (value, value == 1)
    assert score.correct or problem.answer in score.feedback


def test_a_part_of_the_score_is_kept_and_not_called_right():
    words = ReasoningGym(dataset="word_sorting", train=40, held=8)
    (problem,) = words.problems("train", 1)
    entry = next(x for x in source(words) if x["question"] == problem.query)
    answer = problem.answer.rpartition(",")[0]
    theirs = source(words).score_answer(answer, entry)
    assert words.verify(problem, answer).value == pytest.approx(theirs) and 0 < theirs < 1
    assert not words.verify(problem, answer).correct


def test_a_data_set_without_one_answer_is_judged_by_its_rules():
    colours = ReasoningGym(dataset="graph_color", train=40, held=8)
    (problem,) = colours.problems("train", 1)
    assert not problem.answer
    entry = next(x for x in source(colours) if x["question"] == problem.query)
    edges = entry["metadata"]["puzzle"]["edges"]
    vertices = entry["metadata"]["puzzle"]["vertices"]
    colours_there = entry["metadata"]["puzzle"]["color_options"]
    colouring = next(
        found
        for choice in itertools.product(colours_there, repeat=len(vertices))
        if all((found := dict(zip(vertices, choice, strict=True)))[a] != found[b] for a, b in edges)
    )
    said = "{" + ", ".join(f'"{v}": {c}' for v, c in colouring.items()) + "}"
    assert colours.verify(problem, said).correct
    wrong = "{" + ", ".join(f'"{v}": 1' for v in vertices) + "}"
    assert not colours.verify(problem, wrong).correct


@pytest.mark.parametrize("dataset", ["countdown", "puzzle24", "spiral_matrix", "string_insertion"])
def test_what_runs_an_answer_as_code_is_refused(dataset):
    # each of these hands the model's text to eval or SymPy's parser
    with pytest.raises(ConfigError, match="may run answers as code"):
        source(ReasoningGym(dataset=dataset))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"dataset": "chain_sums"}, "chain_sum"),
        ({"dataset": "composite"}, "no data set 'composite'"),
        ({"options": ("max_terms",)}, "name=value"),
        ({"options": ("max_terms=three",)}, "name=value"),
        ({"options": ("terms=3",)}, "terms"),
        ({"options": ("max_terms=-1",)}, "max_terms"),
        ({"options": ('max_terms="three"',)}, "TypeError"),
        ({"options": ("size=5",)}, "--task.train"),
        ({"options": ("seed=5",)}, "--task.seed"),
        ({"held": 0}, "held is 0"),
        ({"train": 0}, "train is 0"),
        ({"template": "{instructions}"}, "{question}"),
        ({"answer_length": 0}, "answer_length is 0"),
    ],
)
def test_what_cannot_work_is_told(change, said):
    assert not SMALL.faults()
    assert said in " ".join(dataclasses.replace(SMALL, **change).faults())


def test_it_is_prepared_before_its_first_verdict(monkeypatch):
    source.cache_clear()
    SMALL.prepare()
    monkeypatch.setattr(rg.factory, "create_dataset", None)  # nothing is left to be made
    (problem,) = SMALL.problems("train", 1)
    assert SMALL.verify(problem, problem.answer).correct


def test_options_that_fail_only_when_a_problem_is_made_are_told():
    broken = dataclasses.replace(SMALL, options=("min_terms=2", "max_terms=3.5"))
    assert not broken.faults()
    with pytest.raises(ConfigError, match="fails with its options"):
        broken.problems("test", 1)
