"""Needles as a training task: rows, splits, and scores beside plain NumPy."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from test_needles import solve

from fastweights.errors import ConfigError, DataError
from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT
from fastweights.tasks.base import Data
from fastweights.tasks.needle_text import NeedleText
from fastweights.tasks.needles import KINDS
from fastweights.tasks.text_tokens import Bytes

MODEL = DecoderConfig(
    "qwen3",
    vocab=Bytes.vocab,
    hidden=16,
    intermediate=24,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=8,
    max_length=1024,
    initializer_range=0.2,
    ttt=InPlaceTTT(layers=(0,), chunk=32, lr=0.5, target="input_embed", proj=False),
)
SMALL = NeedleText(length=700, examples=40, held_out=8)


def texts(table):
    """Texts of rows, with what is never an input."""
    last = np.take_along_axis(table["target"], table["places"].max(1)[:, None], 1)
    assert (last == 256).all()
    return [Bytes().decode(row[row > 0]) for row in table["inputs"]]


def test_a_row_is_a_text_with_its_answer():
    """Every kind in turn, the answer what a person would read, and no row with much room left."""
    table = SMALL.load("train", Data())
    assert table["inputs"].shape == table["target"].shape == (40, 700)
    for row, text in enumerate(texts(table)):
        prompt = text[: text.rindex("Answer: ")]
        beginning = "are " if KINDS[row % 4] in ("multi-value", "tracking") else "is "
        answer = text[text.rindex("Answer: ") :].rsplit(beginning, 1)[1]
        assert answer == ", ".join(solve(prompt + "Answer: ")) + "."
        assert 700 - 70 < len(text) <= 700
        asked = table["target"][row] >= 0
        assert Bytes().decode(table["target"][row][asked]) == " " + answer


def test_no_question_is_in_two_splits():
    splits = [SMALL.load(split, Data()) for split in ("train", "validation", "test")]
    questions = [{text[text.rindex("Question:") :] for text in texts(split)} for split in splits]
    assert [len(split) for split in questions] == [40, 8, 8]
    assert len(set.union(*questions)) == 56
    again = SMALL.load("train", Data())
    assert all(np.array_equal(again[name], splits[0][name]) for name in again)
    other = dataclasses.replace(SMALL, seed=1).load("train", Data())
    assert not np.array_equal(again["inputs"], other["inputs"])


def test_books_take_turns(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"Here is book {name}. " * 200)
    task = dataclasses.replace(SMALL, kinds=("single", "tracking"), files="*.txt", held_out=8)
    found = texts(task.load("test", Data(dir=str(tmp_path))))
    assert ["b" if "book b" in text else "a" for text in found] == [*"aabbaabb"]
    assert all("supper" not in text for text in found)
    with pytest.raises(DataError, match="no folder of text files"):
        task.load("test", Data(dir=str(tmp_path / "empty")))


@pytest.mark.parametrize("asked", ["answer", "text"])
def test_scores_are_those_of_the_logits(asked):
    """In float64, from the logits of the whole row; one row is made right to see an error of 0."""
    task = dataclasses.replace(SMALL, asked=asked, held_out=4)
    model, table = task.build(MODEL, nnx.Rngs(0)), task.load("validation", Data())
    logits = np.asarray(model(table["inputs"]), np.float64)
    right = table["places"][2][table["places"][2] >= 0]
    likeliest = logits[2, right].argmax(-1)
    table["target"][2, right] = likeliest
    logits -= logits.max(-1, keepdims=True)
    losses = np.log(np.exp(logits).sum(-1))
    losses -= np.take_along_axis(logits, np.maximum(table["target"], 0)[..., None], -1)[..., 0]
    scores = task.measure(model, table)
    for row in range(4):
        at = table["places"][row][table["places"][row] >= 0]
        there = table["target"][row] >= 0
        assert there.sum() == (len(at) if asked == "answer" else at[-1] + 1)
        np.testing.assert_allclose(scores["answer_loss"][row], losses[row, at].mean(), rtol=1e-5)
        np.testing.assert_allclose(scores["loss"][row], losses[row, there].mean(), rtol=1e-5)
    assert np.asarray(scores["error"]).tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kinds": ()}, "task.kinds"),
        ({"kinds": ("singel",)}, "task.kinds"),
        ({"asked": "all"}, "task.asked is 'all'"),
        ({"examples": 0}, "task.examples is 0"),
        ({"held_out": 10**9 + 1}, "at most 1000000000"),
        ({"keys": 0}, "task.keys is 0"),
        ({"digits": 1, "values": 5}, "too few numbers"),
        ({"length": 2000}, "task.length is 2000"),
    ],
)
def test_what_cannot_be(change, words):
    found = dataclasses.replace(SMALL, **change).problems(MODEL)
    assert len(found) == 1 and words in found[0]


def test_what_is_too_short_or_absent():
    assert SMALL.problems(MODEL) == []
    assert "model.vocab is 61" in SMALL.problems(dataclasses.replace(MODEL, vocab=61))[0]
    with pytest.raises(ConfigError, match="length of 101"):
        dataclasses.replace(SMALL, length=100).load("train", Data())
    with pytest.raises(ConfigError, match="no split 'dev'"):
        SMALL.load("dev", Data())
