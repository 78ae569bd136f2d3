import dataclasses
import hashlib
import re

import numpy as np
import pytest
from support import real_data

from fastweights.errors import ConfigError
from fastweights.tasks.needles import Needle, Needles, Score, evaluate, rows, score
from fastweights.tasks.text_tokens import Bytes

KINDS = ("single", "multi-key", "multi-value", "tracking")


def solve(prompt):
    """The answers, by reading the prompt as a person would, with no help from the generator."""
    text, question = re.fullmatch(r"(.*) Question: (.*\?) Answer: .*", prompt, re.S).groups()
    if asked := re.search(r"which names have the value (\d+)", question):
        value = {}
        for name, given in re.findall(r"Let (\w+) = (\w+)\.", text):
            value[name] = value.get(given, given)  # a link comes after what it refers to
        return [name for name, number in value.items() if number == asked[1]]
    key = re.search(r"secret numbers? of (\w+)\?", question)[1]
    return re.findall(rf"A secret number of {key} is (\d+)\.", text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_answers_are_what_the_text_says(kind, seed):
    task = Needles(kind, length=1500, keys=5, values=3, hops=3, seed=seed)
    for index in range(20):
        needle = task.make(index)
        assert list(needle.answers) == solve(needle.prompt)
        assert needle.answer == ", ".join(needle.answers) + "."
        assert len(needle.answers) == {"multi-value": 3, "tracking": 4}.get(kind, 1)
        assert 1500 - 80 < len(needle.prompt) <= 1500
        text = needle.prompt.split(" Question:")[0]
        for answer, depth in zip(needle.answers, needle.depths, strict=True):
            assert answer in text[round(depth * len(text)) :][:40]


def test_every_kind_has_what_makes_it_hard():
    counts = {
        kind: len(re.findall(r"A secret number of|Let ", Needles(kind).make(0).prompt))
        for kind in KINDS
    }
    assert counts == {"single": 1, "multi-key": 4, "multi-value": 4, "tracking": 12}
    keys = set(re.findall(r"number of (\w+) is", Needles("multi-key").make(0).prompt))
    assert len(keys) == 4
    # the chains are dealt into one another, or the answer would be a run of neighbours
    dealt = 0
    for index in range(20):
        needle = Needles("tracking").make(index)
        names = re.findall(r"Let (\w+) =", needle.prompt)
        first, last = names.index(needle.answers[0]), names.index(needle.answers[-1])
        dealt += last - first >= len(needle.answers)
    assert dealt > 10


def test_needles_lie_everywhere():
    depths = [Needles(length=3000).make(i).depths[0] for i in range(200)]
    count, _ = np.histogram(depths, bins=4, range=(0, 1))
    assert count.min() > 30  # 50 each are expected, with a standard deviation of 6


def test_the_same_question_for_ever():
    task = Needles("tracking", seed=3)
    assert task.make(5) == task.make(5)
    assert len({task.make(i).prompt for i in range(50)}) == 50
    assert Needles("multi-key").make(0).prompt.count("davuvo") == 0  # other words than another kind
    assert task.make(5) != dataclasses.replace(task, seed=4).make(5)
    # recorded once, to notice if the questions ever change under the same seed
    text = "\n".join(Needles(kind).make(0).prompt for kind in KINDS)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "bd25666237fd85a5"


def test_a_longer_text_hides_needles_of_the_same_number():
    for length in (400, 10_000):
        assert len(solve(Needles("multi-value", length=length).make(1).prompt)) == 4


def test_in_a_text_of_the_users_own():
    book = "It was late. Nobody came! Why?\n\n" * 200
    needle = Needles("multi-key", length=1000).make(0, book)
    assert solve(needle.prompt) == list(needle.answers)
    rest = re.sub(r"A secret number of \w+ is \d+\. ?", "", needle.prompt).split(" Question:")[0]
    assert len(rest) > 600 and rest in " ".join(book.split())
    with pytest.raises(ConfigError, match="haystack"):
        Needles(length=1000).make(0, "too short.")


def test_in_a_real_book():
    book = (real_data("books") / "pride_and_prejudice.txt").read_text("utf-8")
    for kind in KINDS:
        needle = Needles(kind, length=4000).make(0, book)
        assert solve(needle.prompt) == list(needle.answers) and len(needle.prompt) <= 4000


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"length": 60}, "length of 60"),
        ({"keys": 0}, "keys is 0"),
        ({"values": 0, "hops": -1}, "values is 0.*hops is -1"),
        ({"digits": 1, "values": 9}, "too few numbers"),
    ],
)
def test_needles_that_cannot_be_made(changes, words):
    with pytest.raises(ConfigError, match=words):
        Needles(**{"kind": "multi-value"} | changes).make(0)


def test_scores_by_hand():
    needle = Needle("", "11, 22, 33.", ("11", "22", "33"), (0.1, 0.2, 0.3))
    cases = {
        " 11, 22, 33. More.": (1, 1),
        "33, 11 and 22\nA secret": (1, 1),
        "11, 22": (0, 2 / 3),
        "11, 22, 33, 44.": (0, 1),
        "11, 11, 22, 33.": (0, 1),
        "112233.": (0, 0),
        "": (0, 0),
    }
    for output, expected in cases.items():
        assert score(needle, output) == expected, output


def test_a_reader_that_solves_them_scores_one_and_a_mute_one_zero():
    needles = [Needles(kind, seed=8).make(i) for kind in KINDS for i in range(5)]
    longest = max(len(needle.answer) + 1 for needle in needles)

    def perfect(prompts, longest):
        return [(" " + ", ".join(solve(prompt)) + ". And so on")[:longest] for prompt in prompts]

    assert evaluate(needles, perfect, longest) == Score(1.0, 1.0)
    assert evaluate(needles, lambda prompts, longest: [""] * len(prompts), 9) == Score(0.0, 0.0)
    half = lambda prompts, longest: [
        answer if i % 2 else "" for i, answer in enumerate(perfect(prompts, longest))
    ]
    assert evaluate(needles, half, longest) == Score(0.5, 0.5)


def test_rows_have_the_answer_as_their_only_target():
    needles = [Needles(kind, length=500).make(1) for kind in KINDS]
    table = rows(needles, Bytes())
    for needle, inputs, target in zip(needles, table["inputs"], table["target"], strict=True):
        there = target >= 0
        assert Bytes().decode(target[there]) == " " + needle.answer
        size = int(np.flatnonzero(there)[-1]) + 1
        text = Bytes().decode(inputs[:size])
        assert text == (needle.prompt + " " + needle.answer)[:-1] and not inputs[size:].any()
