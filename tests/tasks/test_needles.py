import dataclasses
import hashlib
import re

import numpy as np
import pytest
from support import real_data

from fastweights.errors import ConfigError
from fastweights.tasks.needles import KINDS, Needle, Needles, fitted, rows, score
from fastweights.tasks.text_tokens import Bytes


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
    """The share of the values anywhere in what was written; "exact" stops at a full stop."""
    needle = Needle("", "11, 22, ab.", ("11", "22", "ab"), (0.1, 0.2, 0.3))
    cases = {
        " 11, 22, ab. More.": (1, True),
        "ab, 11 and 22\nA secret": (1, True),
        "11, 22": (2 / 3, False),
        "\n11, 22": (2 / 3, False),
        "11, 22, ab, 44.": (1, False),
        "11, 11, 22, ab.": (1, False),
        "11.": (1 / 3, False),
        "Well. It is 22": (1 / 3, False),
        "1122AB.": (1, False),
        "": (0, False),
    }
    for output, (recall, exact) in cases.items():
        assert score(needle, output).recall == recall, output
        assert score(needle, output).exact == exact, output
    assert score(needle, "22 AB").found == (False, True, True)


def test_recall_is_the_score_of_ruler():
    """As lm-evaluation-harness has it, for answers with other words, cases and order."""
    reason = "needs lm-evaluation-harness and transformers, the [eval] and [parity] extras"
    pytest.importorskip("transformers", reason=reason)
    ruler = pytest.importorskip("lm_eval.tasks.ruler.common_utils", reason=reason)
    rng = np.random.default_rng(0)
    for index in range(40):
        needle = Needles(KINDS[index % 4], seed=2).make(index)
        words = [*needle.answers, "the", "are\n", "12", f"x{needle.answers[0].upper()}y", "."]
        output = " ".join(rng.permutation(words)[: rng.integers(0, 6)])
        expected = ruler.string_match_all(ruler.postprocess_pred([output]), [needle.answers])
        assert score(needle, output).recall == pytest.approx(expected)


def words_of(needle):
    """A tokenizer of a word each, and of every single digit."""
    return len(re.findall(r"\d|[^\W\d]+|[^\w\s]", needle.prompt))


@pytest.mark.parametrize("kind", KINDS)
def test_a_length_in_tokens(kind):
    """Never more, and less by no more than a sentence or 1 %; the question is the same."""
    task = Needles(kind, seed=1)
    for tokens in (250, 3000):
        for index in range(6):
            needle = fitted(task, index, tokens, words_of)
            assert tokens - max(20, 0.011 * tokens) < words_of(needle) <= tokens
            assert list(needle.answers) == solve(needle.prompt)
            assert needle.answers == task.make(index).answers
    least = fitted(task, 0, words_of(shortest := task_of(task, 0)), words_of)
    assert least == shortest and "." in least.prompt


def task_of(task, index):
    """A question without a haystack."""
    return dataclasses.replace(task, length=task.least(index)).make(index)


def test_a_length_in_tokens_of_a_book():
    book = (real_data("books") / "pride_and_prejudice.txt").read_text("utf-8")
    for tokens in (300, 2000):
        for index in range(5):
            needle = fitted(Needles("multi-key"), index, tokens, words_of, book)
            assert tokens - max(20, 0.011 * tokens) < words_of(needle) <= tokens
            assert solve(needle.prompt) == list(needle.answers)


def test_lengths_that_needles_or_haystack_do_not_have():
    task, book = Needles("multi-key"), "It was late. Nobody came! " * 40
    with pytest.raises(ConfigError, match="question 3 of kind 'multi-key' has .* length of 40"):
        fitted(task, 3, 40, words_of)
    with pytest.raises(ConfigError, match="all 1040 characters of the haystack .* length of 400"):
        fitted(task, 0, 400, words_of, book)
    assert 258 < words_of(fitted(task, 0, 280, words_of, book)) <= 280


def test_rows_have_the_answer_as_their_only_target():
    """And the separator after it; or all of the text."""
    needles = [Needles(kind, length=500).make(1) for kind in KINDS]
    table, whole = rows(needles, Bytes()), rows(needles, Bytes(), 600, "text")
    assert whole["inputs"].shape == (4, 600)
    for row, needle in enumerate(needles):
        inputs, target = table["inputs"][row], table["target"][row]
        there = target >= 0
        assert Bytes().decode(target[there]) == " " + needle.answer and target[there][-1] == 256
        size = int(np.flatnonzero(there)[-1]) + 1
        text = Bytes().decode(inputs[:size])
        assert text == needle.prompt + " " + needle.answer and not inputs[size:].any()
        places = table["places"][row]
        assert np.array_equal(places[places >= 0], np.flatnonzero(there))
        assert np.array_equal(whole["places"][row], places)
        assert np.array_equal(whole["inputs"][row, :size], inputs[:size])
        assert np.array_equal(whole["target"][row, : size - 1], inputs[1:size])
        assert (whole["target"][row, size:] == -1).all()
    with pytest.raises(ConfigError, match="a row of 100 holds 101"):
        rows(needles, Bytes(), 100)
