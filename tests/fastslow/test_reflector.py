"""The frozen base model as reflector: what it is asked, and what becomes of its text."""

import contextlib

import pytest
from small import base

from fastweights.fastslow import reflector
from fastweights.fastslow.propose import ProposalError, Record
from fastweights.fastslow.reflector import SelfReflector
from fastweights.fastslow.rollouts import Sampler
from fastweights.tasks.haystack import Draw
from fastweights.tasks.programs import Programs

TASK = Programs(odd="irt", even="nw")
PROMPT = {"odd": "i", "even": ""}


def records(count=12):
    return [
        Record(p.query, "00000", p.answer, 0.0, "wrong") for p in TASK.problems("train", count, 3)
    ]


def answering(monkeypatch, text):
    """A base model that answers so; returns what it is asked, and the models that are asked."""
    asked = []

    def sample(self, model, texts, samples, seed):
        asked.extend((text, model) for text in texts)
        return real(self, model, texts, samples, seed)._replace(texts=[text] * len(texts))

    real = Sampler.__call__
    monkeypatch.setattr(reflector.Sampler, "__call__", sample)
    return asked


@pytest.mark.parametrize("component, parity", [("odd", 1), ("even", 0)])
def test_it_reads_solved_problems_of_the_component_and_no_wrong_answers(
    monkeypatch, component, parity
):
    asked, model = answering(monkeypatch, "rt"), base()
    text = SelfReflector(TASK, model).propose(PROMPT, component, records(), Draw(1))
    ((question, by),) = asked
    assert text == "rt" and by is model.model
    pairs = [pair.split("=") for pair in question.removeprefix("?").removesuffix("|").split(";")]
    assert len(pairs) == TASK.pairs
    solved = {p.query: p.answer for p in TASK.problems("train", 12, 3)}
    assert all(solved[query] == answer for query, answer in pairs)
    assert all(int(query[0]) % 2 == parity for query, _ in pairs)


@pytest.mark.parametrize("text", ["rrrrrr", "?", "r|"])
def test_a_text_that_is_no_hint_is_no_proposal(monkeypatch, text):
    answering(monkeypatch, text)
    with pytest.raises(ProposalError):
        SelfReflector(TASK, base()).propose(PROMPT, "odd", records(), Draw(1))


def test_without_a_record_of_the_component_it_is_not_asked(monkeypatch):
    asked = answering(monkeypatch, "rt")
    odd = [x for x in records() if int(x.query[0]) % 2]
    with pytest.raises(ProposalError, match="even"):
        SelfReflector(TASK, base()).propose(PROMPT, "even", odd, Draw(1))
    assert not asked


def test_the_same_draw_writes_the_same(monkeypatch):
    """A real, untrained model; most of its texts are no hints."""
    written, real = [], Sampler.__call__

    def sample(*given):
        found = real(*given)
        written.extend(found.texts)
        return found

    monkeypatch.setattr(reflector.Sampler, "__call__", sample)
    for seed in (4, 4, 5, 6):
        with contextlib.suppress(ProposalError):
            SelfReflector(TASK, base()).propose(PROMPT, "odd", records(), Draw(seed))
    assert len(written) == 4 and written[0] == written[1] and len(set(written)) == 3
