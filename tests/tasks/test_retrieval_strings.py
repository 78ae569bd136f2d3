import math
from collections import Counter
from itertools import product

import numpy as np
import pytest

from fastweights.errors import ConfigError, DataError
from fastweights.tasks.retrieval_strings import (
    VOCABULARY,
    answers,
    chance_error,
    chance_nll,
    decode,
    encode,
    sample,
)


def solve(text: str) -> int:
    """The task, done on the string by hand; fails if the string is not one."""
    body, query = text.split("??")
    memory = dict(zip(body[0::2], map(int, body[1::2]), strict=True))
    assert len(memory) == len(body) // 2, f"a letter repeats in {text}"
    assert all(letter.isalpha() and letter.islower() for letter in memory)
    return memory[query]


@pytest.mark.parametrize(("text", "answer"), [("c9k8j3f1??c", 9), ("j0a5s5z2??a", 5)])
def test_the_papers_own_examples(text, answer):
    tokens = encode(text)
    assert tokens.shape == (11,) and tokens.dtype == np.int32
    assert decode(tokens) == text
    assert answers(tokens[None]).tolist() == [answer]


def test_vocabulary_is_letters_then_digits_then_the_mark():
    assert len(VOCABULARY) == 37
    assert encode("az09?").tolist() == [0, 25, 26, 35, 36]


def test_encode_names_what_it_does_not_know():
    with pytest.raises(DataError, match=r"\['!', 'A'\]"):
        encode("A1!")


@pytest.mark.parametrize("pairs", [1, 2, 4, 9, 26])
def test_every_sample_is_a_retrieval_string_with_its_answer(pairs):
    table = sample(np.random.default_rng(pairs), 500, pairs)
    assert table["inputs"].shape == (500, 2 * pairs + 3)
    assert table["inputs"].dtype == table["target"].dtype == np.int32
    expected = [solve(decode(row)) for row in table["inputs"]]
    assert table["target"].tolist() == expected
    assert answers(table["inputs"]).tolist() == expected


def test_sampling_is_uniform_in_letters_digits_and_query():
    n = 40_000
    inputs = sample(np.random.default_rng(3), n, 4)["inputs"]
    letters, digits, query = inputs[:, 0:8:2], inputs[:, 1:8:2] - 26, inputs[:, -1]

    def close(counts, probability, trials):
        sigma = math.sqrt(trials * probability * (1 - probability))
        np.testing.assert_allclose(counts, trials * probability, atol=5 * sigma)

    for place in range(4):
        close(np.bincount(letters[:, place], minlength=26), 1 / 26, n)
        close(np.bincount(digits[:, place], minlength=10), 1 / 10, n)
        close(np.sum(letters[:, place] == query), 1 / 4, n)
    # Digits are drawn with replacement: four differ with probability 10 * 9 * 8 * 7 / 10^4.
    ordered = np.sort(digits, axis=1)
    close(np.sum((ordered[:, 1:] != ordered[:, :-1]).all(axis=1)), 0.504, n)


def test_sampling_follows_the_generator_it_is_given():
    def draw(seed):
        return sample(np.random.default_rng(seed), 50, 4)["inputs"]

    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()


@pytest.mark.parametrize(
    "text",
    ["a1b2?1a", "a1a2??a", "a1b2??c", "1ab2??b", "a1bc??a", "a?b2??b", "?1b2??b"],
    ids=["mark", "repeat", "unasked", "swapped", "letter", "no digit", "no letter"],
)
def test_answers_refuses_what_is_not_a_retrieval_string(text):
    rows = np.stack([encode("a1b2??b"), encode(text)])
    with pytest.raises(DataError) as caught:
        answers(rows)
    assert "row 1" in str(caught.value)


@pytest.mark.parametrize("pairs", [1, 2, 3, 4, 5])
def test_chance_equals_a_count_over_all_digit_strings(pairs):
    right, nll = 0, 0.0
    for digits in product(range(10), repeat=pairs):
        counts = Counter(digits).values()
        right += max(counts)
        nll -= sum(n / pairs * math.log(n / pairs) for n in counts)
    assert chance_error(pairs) == pytest.approx(1 - right / (pairs * 10**pairs), abs=1e-15)
    assert chance_nll(pairs) == pytest.approx(nll / 10**pairs, abs=1e-10)


@pytest.mark.parametrize(
    ("pairs", "percent", "nll"),
    [(3, 57.00, 0.963), (4, 61.65, 1.187), (5, 64.24, 1.349), (8, 70.01, 1.649)],
)
def test_chance_at_four_figures(pairs, percent, nll):
    assert round(100 * chance_error(pairs), 2) == percent
    assert round(chance_nll(pairs), 3) == nll


def test_chance_with_more_pairs_than_digits():
    digits = np.random.default_rng(0).integers(0, 10, (100_000, 26))
    most = np.max([np.sum(digits == d, axis=1) for d in range(10)], axis=0)
    # the standard error of the mean is below 1e-4
    assert chance_error(26) == pytest.approx(1 - most.mean() / 26, abs=5e-4)


@pytest.mark.parametrize("pairs", [0, 27])
def test_impossible_numbers_of_pairs(pairs):
    for call in (chance_error, chance_nll, lambda k: sample(np.random.default_rng(0), 1, k)):
        with pytest.raises(ConfigError, match=f"{pairs} pairs"):
            call(pairs)
