"""Needles asked of a model: what it reads and writes, and means and errors of the scores."""

import dataclasses
import json
import math
import re

import jax
import numpy as np
import pytest
from hf.tiny import LLAMA, model
from tasks.test_needles import solve
from test_cli import run

from fastweights import hf, inference
from fastweights.errors import ConfigError
from fastweights.inference.generate import Output
from fastweights.models.decoder_config import InPlaceTTT
from fastweights.needle_eval import Answered, NeedleEval, evaluate, summary
from fastweights.pretrained import Pretrained, without_ttt
from fastweights.tasks import bytes_file
from fastweights.tasks.needles import KINDS, Needle, Score
from fastweights.tasks.text_tokens import Bytes

CONFIG = dataclasses.replace(
    LLAMA,
    vocab=264,
    layers=2,
    max_length=600,
    ttt=InPlaceTTT(layers=(0, 1), chunk=32, lr=0.5, target="input_embed"),
)
SMALL = NeedleEval(lengths=(300,), kinds=("single",), questions=3, max_new_tokens=12, piece=64)


@pytest.fixture(scope="module")
def decoder():
    return model(CONFIG, seed=2)


forward = jax.jit(lambda model, tokens: model(tokens))


def greedy(decoder, prompt, count):
    """The likeliest tokens one by one, each from the whole text, up to the separator."""
    tokens = list(prompt)
    for _ in range(count):
        padded = np.pad(tokens, (0, 320 - len(tokens)))[None]  # one program; later tokens unseen
        tokens.append(int(forward(decoder, padded)[0, len(tokens) - 1].argmax()))
        if tokens[-1] == 256:
            break
    return Bytes().decode(tokens[len(prompt) :])


@pytest.mark.parametrize("ttt", [True, False])
def test_answers_are_greedy(decoder, ttt):
    """Beside the whole forward pass for every token; three questions in batches of two."""
    used = decoder if ttt else without_ttt(decoder)
    settings = dataclasses.replace(SMALL, batch=2)
    found = evaluate(Pretrained(used, Bytes(), (256,)), settings)
    assert [each.number for each in found] == [0, 1, 2]
    for each in found:
        prompt = Bytes().encode(each.needle.prompt)
        assert each.tokens == len(prompt) <= 300 and len(prompt) > 230
        assert each.output == greedy(used, prompt, 12)
    other = evaluate(Pretrained(without_ttt(decoder), Bytes(), (256,)), settings)
    assert ([x.output for x in found] != [x.output for x in other]) == ttt


class Reader:
    """In place of a model: it sees tokens only, and answers as a person would, or now and then."""

    def __init__(self, monkeypatch, answers=lambda prompt: ", ".join(solve(prompt)) + "."):
        self.answers, self.shapes = answers, []
        monkeypatch.setattr(inference, "prefill", self.prefill)
        monkeypatch.setattr(inference, "decode", self.decode)

    def prefill(self, model, tokens, lengths, *, max_length, piece):
        self.shapes.append(tokens.shape)
        assert max_length == tokens.shape[1] + 64 and piece == 512
        return [Bytes().decode(row[:n]) for row, n in zip(tokens, lengths, strict=True)]

    def decode(self, model, state, *, max_new_tokens, stop_tokens):
        assert max_new_tokens == 64 and stop_tokens == (256,)
        new = [[*f" {self.answers(prompt)}".encode(), 256] for prompt in state]
        tokens = np.zeros((len(new), 64), int)
        for row, said in zip(tokens, new, strict=True):
            row[: len(said)] = said
        return Output(tokens, np.array([len(said) for said in new]), tokens), state


def test_a_reader_that_solves_them_has_all(monkeypatch):
    """Every kind at two lengths; batches have one shape, and no question is asked twice."""
    reader = Reader(monkeypatch)
    settings = NeedleEval(lengths=(700, 900), questions=5, batch=2)
    lines = []
    found = evaluate(Pretrained(None, Bytes(), (256,)), settings, report=lines.append)
    assert all(each.score.recall == 1 and each.score.exact for each in found)
    assert {*reader.shapes} == {(2, 700), (2, 900)} and len(reader.shapes) == 2 * 4 * 3
    assert len({each.needle.prompt.split("Question:")[1] for each in found}) == 40
    assert [(each.length, each.kind) for each in found[::5]] == [
        (length, kind) for length in (700, 900) for kind in KINDS
    ]
    assert lines[0] == "700 tokens, single: recall 1.000 ± 0.000" and len(lines) == 8
    assert all(each.length - 70 < each.tokens <= each.length for each in found)


def test_a_book_is_the_haystack(monkeypatch):
    book = "It was late. Nobody came! Why? " * 100
    Reader(monkeypatch, lambda prompt: "late" if "Nobody came!" in prompt else "")
    settings = NeedleEval(lengths=(700,), questions=2)
    found = evaluate(Pretrained(None, Bytes(), (256,)), settings, book)
    assert {each.output for each in found} == {" late"}
    assert {each.score.recall for each in found} == {0}


def test_a_chat_puts_the_question_in_a_turn(monkeypatch):
    """The answer's turn begins with the beginning of the answer; an answer ends with its turn."""

    class Chat(Bytes):
        added = {"<|im_start|>": 257, "<|im_end|>": 258}

        def encode(self, text):
            parts = re.split(r"(<\|im_start\|>|<\|im_end\|>)", text)
            tokens = [[self.added[x]] if x in self.added else [*x.encode()] for x in parts]
            return np.array(sum(tokens, []), np.int32)

    seen = []
    monkeypatch.setattr(
        inference, "prefill", lambda model, tokens, n, **_: seen.append(tokens[0, : n[0]])
    )
    out = Output(np.array([[49, 258, 0, 0]]), np.array([2]), None)
    monkeypatch.setattr(
        inference, "decode", lambda *_, stop_tokens, **__: (out, seen.append(stop_tokens))
    )
    settings = NeedleEval(lengths=(400,), kinds=("single",), questions=1, batch=1, chat=True)
    (found,) = evaluate(Pretrained(None, Chat(), (256,)), settings)
    question, beginning = found.needle.prompt.split(" Answer: ")
    start, end = [257], [258]
    expected = [*start, *b"user\n", *question.encode(), *end, 10, *start, *b"assistant\n"]
    assert seen[0].tolist() == [*expected, *beginning.encode()] and found.tokens == len(seen[0])
    assert seen[1] == (256, 258) and found.output == "1"
    with pytest.raises(ConfigError, match="neither .* ChatML nor .* Llama 3"):
        evaluate(Pretrained(None, Bytes(), (256,)), settings)


def answered(length, kind, hits, depths, exact=False):
    needle = Needle("", "", ("1",) * len(hits), depths)
    return Answered(length, kind, 0, length - 2, needle, "", Score(hits, exact))


def test_means_and_errors_by_hand():
    """Four questions; a question counts once in a part of the text, with its share there."""
    found = [
        answered(100, "single", (True,), (0.1,), True),
        answered(100, "single", (False,), (0.9,)),
        answered(200, "single", (True,), (1.0,)),
        answered(200, "multi-value", (True, False, True), (0.0, 0.3, 0.6)),
    ]
    scores = summary(found, depths=2)
    recalls = [1, 0, 1, 2 / 3]
    assert scores["all"] == {
        "questions": 4,
        "prompt_tokens": 148,
        "recall": pytest.approx(np.mean(recalls)),
        "recall_error": pytest.approx(np.std(recalls, ddof=1) / 2),
        "exact": 0.25,
        "exact_error": 0.25,
    }
    assert scores["by_kind"]["single"]["recall"] == pytest.approx(2 / 3)
    assert scores["by_kind"]["single"]["recall_error"] == pytest.approx(1 / 3)
    assert scores["by_kind"]["multi-value"]["recall_error"] is None
    assert scores["by_length"]["100"]["recall"] == 0.5
    # the first half: 1 and (1 + 0) / 2; the second: 0, 1 and 1
    first, second = scores["by_depth"]
    error = pytest.approx(0.25)
    assert first == {
        "from": 0, "to": 0.5, "questions": 2, "recall": 0.75, "recall_error": error
    }  # fmt: skip
    assert second["questions"] == 3 and second["recall"] == pytest.approx(2 / 3)
    cells = [(cell["length"], cell["kind"], cell["questions"]) for cell in scores["cells"]]
    assert cells == [(100, "single", 2), (200, "single", 1), (200, "multi-value", 1)]
    assert scores["cells"][0]["by_depth"][1]["recall"] == 0
    assert math.isclose(scores["cells"][2]["by_depth"][0]["recall"], 0.5)
    json.dumps(scores, allow_nan=False)


@pytest.fixture(scope="module")
def folder(decoder, tmp_path_factory):
    """A checkpoint in Hugging Face layout with the tokenizer of bytes, and a book."""
    pytest.importorskip("tokenizers", reason="needs tokenizers, the [hf] extra")
    folder = tmp_path_factory.mktemp("needles")
    hf.save(decoder, folder / "model")
    bytes_file.write(folder / "model")
    (folder / "book.txt").write_text("It was late. Nobody came! Why? " * 100)
    return folder


COMMON = ["--kinds", "single", "tracking", "--lengths", 450, "--questions", 2, "--piece", 64]


def test_from_the_command_line(folder, tmp_path, capsys, decoder):
    """A checkpoint: JSON on standard output, the answers in a file; off is another model."""
    command = ["eval", "--task", "needles", "--model", folder / "model", *COMMON]
    command += ["--max-new-tokens", 40, "--batch", 2, "--answers", tmp_path / "answers.jsonl"]
    code, out, err = run(capsys, *command)
    assert code == 0 and "450 tokens, tracking: recall 0.000 ± 0.000" in err
    scores = json.loads(out)
    assert scores["all"]["questions"] == 4 and [*scores["by_kind"]] == ["single", "tracking"]
    assert scores["settings"]["ttt"] == "on" and scores["settings"]["lengths"] == [450]
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(x["kind"], x["number"]) for x in lines] == [
        ("single", 0), ("single", 1), ("tracking", 0), ("tracking", 1)
    ]  # fmt: skip
    settings = NeedleEval(lengths=(450,), questions=2, max_new_tokens=40, kinds=("single",))
    found = evaluate(Pretrained(decoder, Bytes(), (256,)), settings)
    assert [x["output"] for x in lines[:2]] == [each.output for each in found]
    assert lines[0]["question"] == found[0].needle.prompt.rpartition(". ")[2]
    assert lines[0]["wanted"] == [*found[0].needle.answers] and lines[0]["found"] == [False]

    code, _, _ = run(capsys, *command, "--ttt", "off", "--haystack", folder / "book.txt")
    off = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert code == 0 and [x["output"] for x in off] != [x["output"] for x in lines]


def test_a_run_of_the_config(tmp_path, capsys):
    """configs/needles.py made small: trained, scored, asked, and written out."""
    small = ["--task.examples", 8, "--task.held-out", 4, "--train.batch", 4, "--train.steps", 2]
    folder = tmp_path / "run"
    code, _, _ = run(capsys, "train", "configs/needles.py", *small, "--run-dir", folder, "--quiet")
    assert code == 0
    code, out, _ = run(capsys, "eval", "--run-dir", folder)
    assert code == 0 and json.loads(out)["error"] == 1
    ask = ["eval", "--task", "needles", *COMMON, "--max-new-tokens", 30]
    code, out, _ = run(capsys, *ask, "--model", folder)
    assert code == 0 and json.loads(out)["all"]["questions"] == 4
    assert run(capsys, "export-hf", "--run-dir", folder, tmp_path / "out")[0] == 0
    code, same, _ = run(capsys, *ask, "--model", tmp_path / "out")
    assert code == 0 and json.loads(same)["by_kind"] == json.loads(out)["by_kind"]


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--questions", 0, "--batch", 0], 2, "questions is 0.*batch is 0"),
        (["--questions", 100_001], 2, "at most 100000"),
        (["--lengths", 0], 2, "lengths is"),
        (["--kinds", "singel"], 2, "singel"),
        (["--lengths", 90], 2, "question .* of kind 'single' has .* tokens"),
        (["--max-new-tokens", 5], 2, "--max-new-tokens 23"),
        (["--haystack", "{folder}/absent.txt"], 3, "cannot be read"),
        (["--haystack", "{folder}/book.txt", "--lengths", 9000], 2, "all 3100 characters"),
        (["--answers", "{folder}/absent/answers.jsonl"], 2, "cannot be written"),
        (["--chat", "--lengths", 400], 2, "ChatML"),
    ],
)
def test_mistakes(folder, capsys, arguments, code, words):
    arguments = [str(word).format(folder=folder) for word in arguments]
    command = ["eval", "--task", "needles", "--model", folder / "model", *arguments]
    found, out, err = run(capsys, *command)
    assert found == code and re.search(words, out + err, re.DOTALL), err


def test_no_such_evaluation(capsys):
    code, _, err = run(capsys, "eval", "--task", "needle", "--model", "x")
    assert code == 2 and "did you mean 'needles'" in err
