"""The frozen base model as reflector: what it is asked, and which of its texts is proposed."""

import contextlib
import itertools

import numpy as np
import pytest
from small import base, distributions

from fastweights.fastslow import reflector
from fastweights.fastslow.propose import ProposalError, Record
from fastweights.fastslow.reflector import ROWS, SelfReflector, log_likelihoods
from fastweights.fastslow.rollouts import Sampler
from fastweights.tasks.haystack import Draw
from fastweights.tasks.programs import Programs
from fastweights.tasks.prompted import Problem

TASK = Programs(odd="irt", even="nw")
PROMPT = {"odd": "i", "even": ""}


def records(count=12):
    return [
        Record(p.query, "00000", p.answer, 0.0, "wrong") for p in TASK.problems("train", count, 3)
    ]


def answering(monkeypatch, *answers):
    """A base model that answers so in turn; returns what it is asked, and the models asked."""
    asked = []

    def sample(self, model, texts, samples, seed):
        asked.extend((text, model) for text in texts)
        written = list(itertools.islice(itertools.cycle(answers), len(texts)))
        return real(self, model, texts, samples, seed)._replace(texts=written)

    real = Sampler.__call__
    monkeypatch.setattr(reflector.Sampler, "__call__", sample)
    return asked


def log_likelihood(pretrained, text, answer):
    """Of an answer and its end: one text alone, in float64."""
    told = [*pretrained.tokenizer.encode(answer), pretrained.stop_tokens[0]]
    tokens = [*pretrained.tokenizer.encode(text), *told]
    log_p = distributions(pretrained.model, tokens)
    before = len(tokens) - len(told) - 1
    return sum(log_p[before + i, token] for i, token in enumerate(told))


@pytest.mark.parametrize("component, parity", [("odd", 1), ("even", 0)])
def test_it_reads_solved_problems_of_the_component_and_no_wrong_answers(
    monkeypatch, component, parity
):
    asked, model = answering(monkeypatch, "rt"), base()
    text = SelfReflector(TASK, model).propose(PROMPT, component, records(), Draw(1))
    assert text == "rt" and all(by is model.model for _, by in asked)
    assert len(asked) == SelfReflector.samples and len({question for question, _ in asked}) > 20
    solved = {p.query: p.answer for p in TASK.problems("train", 12, 3)}
    for question, _ in asked:
        pairs = [x.split("=") for x in question.removeprefix("?").removesuffix("|").split(";")]
        assert len(pairs) == TASK.pairs == len({query for query, _ in pairs})
        assert all(solved[query] == answer for query, answer in pairs)
        assert all(int(query[0]) % 2 == parity for query, _ in pairs)


@pytest.mark.parametrize("component", ["odd", "even"])
def test_of_what_it_writes_it_proposes_what_makes_the_answers_likeliest(monkeypatch, component):
    words = ["r", "rt", "nit", "i", "wtr", "n", "tw"]
    # what is no hint, what the prompt says already, and what is too long is not compared
    answering(monkeypatch, *words, "?", PROMPT[component], "rrrr")
    model = base()
    seen = [(x.query, x.answer) for x in records() if TASK.evidence(component, x.query, x.answer)]
    hints = {x: {"odd": "", "even": "", component: x} for x in words if x != PROMPT[component]}
    worth = {
        x: sum(
            log_likelihood(model, TASK.text(hint, Problem(query, query, answer)), answer)
            for query, answer in seen
        )
        for x, hint in hints.items()
    }
    found = SelfReflector(TASK, model).propose(PROMPT, component, records(), Draw(1))
    assert found == max(worth, key=worth.__getitem__)


def test_likelihoods_are_those_of_each_text_alone():
    model, solved = base(), TASK.problems("train", ROWS + 3, 5)
    texts = [f"{'irtnwi'[: i % 7]}|{p.query}=" for i, p in enumerate(solved)]
    answers = [p.answer[: i % 6] for i, p in enumerate(solved)]
    found = log_likelihoods(model, texts, answers)
    for i in (0, 1, 17, ROWS - 1, ROWS, ROWS + 2):
        wanted = log_likelihood(model, texts[i], answers[i])
        np.testing.assert_allclose(found[i], wanted, rtol=1e-5, err_msg=str(i))
    assert found.shape == (len(texts),)


@pytest.mark.parametrize("text", ["rrrrrr", "?", "r|", PROMPT["odd"]])
def test_a_text_that_is_no_new_hint_is_no_proposal(monkeypatch, text):
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
        written.append(tuple(found.texts))
        return found

    monkeypatch.setattr(reflector.Sampler, "__call__", sample)
    for seed in (4, 4, 5, 6):
        with contextlib.suppress(ProposalError):
            SelfReflector(TASK, base()).propose(PROMPT, "odd", records(), Draw(seed))
    assert len(written) == 4 and written[0] == written[1] and len(set(written)) == 3
