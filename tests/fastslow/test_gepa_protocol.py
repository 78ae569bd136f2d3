"""GEPA's engine with our task, and our evolution with systems written for GEPA."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from small import base

from fastweights.errors import ConfigError, DataError
from fastweights.fastslow import population as prompts
from fastweights.fastslow.evolution import Evolution
from fastweights.fastslow.gepa_protocol import Adapted, TaskAdapter, evolve
from fastweights.fastslow.rollouts import Sampler
from fastweights.tasks.programs import Programs
from fastweights.tasks.prompted import Failed, Score

gepa = pytest.importorskip("gepa")
TASK = Programs(odd="i", even="n", digits=2)
CONFIG = Evolution(keep=2, proposals=6, minibatch=3, instances=6, samples=1, crossover=0.0)
WORDS = ("red", "green", "blue")


def sampler():
    return Sampler(base().tokenizer, base().stop_tokens, TASK.answer_length, 1.0)


class Hinted(Sampler):
    """Answers as the hint says, as a model that understands it would."""

    def __call__(self, model, texts, times, seed):
        def answer(text):
            hint, query = text.rstrip("=").split("|")
            return self.means(hint, query)

        return SimpleNamespace(texts=[answer(x) for x in texts for _ in range(times)])

    @staticmethod
    def means(hint, query):
        for odd in ("", *"rtinw"):
            for even in ("", *"rtinw"):
                prompt = {"odd": odd, "even": even}
                if TASK.text(prompt, SimpleNamespace(query=query)) == f"{hint}|{query}=":
                    name = "odd" if int(query[0]) % 2 else "even"
                    return TASK.explain(name, prompt[name], query)
        raise AssertionError(hint)


def test_gepa_finds_the_rule_of_our_task(tmp_path):
    """Its engine, its selection, its reflection prompt; the reflection model tries each letter."""
    asked = []

    def reflection_lm(prompt):
        asked.append(prompt if isinstance(prompt, str) else prompt[-1]["content"])
        return f"```\n{'rtinw'[len(asked) % 5]}\n```"

    adapter = TaskAdapter(TASK, base().model, Hinted(*sampler()))
    found = gepa.optimize(
        seed_candidate=dict(TASK.seed_prompt),
        trainset=TASK.problems("train", 8),
        valset=TASK.problems("validation", 8),
        adapter=adapter,
        reflection_lm=reflection_lm,
        max_metric_calls=400,
        display_progress_bar=False,
        raise_on_exception=True,
    )
    assert found.best_candidate == TASK.oracle
    assert max(found.val_aggregate_scores) == 1.0
    # GEPA's model has read the query, what was answered, and the verifier's words
    problem = TASK.problems("train", 8)[0]
    wrong = TASK.verify(problem, problem.query)
    assert any(problem.query in x for x in asked) and not wrong.correct
    assert any(wrong.feedback.split()[0] in x for x in asked)


def test_scores_are_means_of_samples_of_the_model():
    problems = TASK.problems("train", 3)
    adapter = TaskAdapter(TASK, base().model, sampler(), samples=4, seed=3)
    got = adapter.evaluate(problems, {"odd": "i", "even": ""}, capture_traces=True)
    for (problem, judged), score, answers in zip(
        got.trajectories, got.scores, got.outputs, strict=True
    ):
        assert len(answers) == 4 and [x.answer for x in judged] == answers
        by_hand = [TASK.verify(problem, answer).value for answer in answers]
        assert score == pytest.approx(sum(by_hand) / 4)
    # sampling goes on; a resumed run samples as the one that never stopped
    state = json.loads(json.dumps(adapter.get_adapter_state()))
    following = adapter.evaluate(problems, {"odd": "i", "even": ""})
    assert following.outputs != got.outputs and following.trajectories is None
    resumed = TaskAdapter(TASK, base().model, sampler(), samples=4, seed=3)
    resumed.set_adapter_state(state)
    assert resumed.evaluate(problems, {"odd": "i", "even": ""}).outputs == following.outputs


def test_what_cannot_be_scored_is_no_zero_and_a_wrong_prompt_is():
    class Broken(Programs):
        def verify(self, problem, answer):
            return Failed("died")

    adapter = TaskAdapter(Broken(odd="i", even="n", digits=2), base().model, sampler())
    with pytest.raises(DataError, match="died"):
        adapter.evaluate(TASK.problems("train", 2), {"odd": "i", "even": ""})
    got = TaskAdapter(TASK, None, None).evaluate(
        TASK.problems("train", 2), {"odd": "?", "even": ""}, capture_traces=True
    )
    assert got.scores == [0.0, 0.0]
    shown = adapter.make_reflective_dataset({}, got, ["odd"])["odd"]
    assert len(shown) == 2 and "'?'" in shown[0]["Feedback"]


class Colours:
    """A user's adapter: an instance is a word, and it is worth 1 if the prompt has it."""

    propose_new_texts = None

    def evaluate(self, batch, candidate, capture_traces=False):
        scores = [float(word in candidate["list"].split()) for word in batch]
        return SimpleNamespace(
            outputs=[f"{x}" for x in scores], scores=scores, trajectories=list(batch)
        )

    def make_reflective_dataset(self, candidate, eval_batch, components_to_update):
        missing = [
            {"Inputs": word, "Feedback": f"the list lacks {word}"}
            for word, score in zip(eval_batch.trajectories, eval_batch.scores, strict=True)
            if not score
        ]
        return {name: missing for name in components_to_update}


def one_missing(prompt):
    """A reflection model that adds a word it was told is missing; its first answer is cut short."""
    said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    calls.append(said)
    if len(calls) == 1:
        return "```\nred gre"
    old = said.split("```")[1].strip()
    lacks = [word for word in WORDS if f"lacks {word}" in said]
    return f"```\n{' '.join([old, *lacks[:1]])}\n```"


calls = []


def test_our_evolution_runs_a_system_written_for_gepa():
    calls.clear()
    system = Adapted(Colours(), WORDS, {"list": "none"}, reflection_lm=one_missing)
    population, events = evolve(CONFIG, system, 1)
    assert set(population.best().components["list"].split()) == {"none", *WORDS}
    assert population.means[population.members.index(population.best())] == 1.0
    failed = [event for event in events if event.kind == "failed"]
    assert len(failed) >= 1 and "cut short" in failed[0].text
    # a population goes on from JSON, and its scores are made anew
    stored = prompts.from_json(json.loads(json.dumps(prompts.to_json(population))))
    system.adapter.evaluate = lambda batch, *rest, **more: SimpleNamespace(
        outputs=["0"] * len(batch), scores=[0.0] * len(batch), trajectories=list(batch)
    )
    later, _ = evolve(CONFIG, system, 1, population=stored, first=1)
    assert max(later.means) == 0.0


def test_texts_by_the_adapter_or_a_proposer():
    write = lambda candidate, shown, components: {
        name: " ".join([candidate[name], *(x["Inputs"] for x in shown[name])])
        for name in components
    }
    by_proposer = Adapted(Colours(), WORDS, {"list": "none"}, proposer=write)
    own = Colours()
    own.propose_new_texts = write
    by_adapter = Adapted(own, WORDS, {"list": "none"})
    for system in (by_proposer, by_adapter):
        population, _ = evolve(CONFIG, system, 1)
        assert set(population.best().components["list"].split()) == {"none", *WORDS}
    silent = Adapted(Colours(), WORDS, {"list": "none"}, proposer=lambda *given: {})
    _, events = evolve(CONFIG, silent, 1)
    assert sum(event.kind == "failed" for event in events) == CONFIG.proposals


@pytest.mark.parametrize("most, kind", [(None, "duplicate"), (1.0, "perfect"), (2.0, "duplicate")])
def test_a_system_that_says_what_is_perfect_is_not_asked_for_more(most, kind):
    same = lambda candidate, shown, components: {name: candidate[name] for name in components}
    seed = {"list": " ".join(WORDS)}
    system = Adapted(Colours(), WORDS, seed, proposer=same, perfect_score=most)
    _, events = evolve(CONFIG, system, 1)
    assert {event.kind for event in events} == {"scored", kind, "kept"}


def test_scores_that_are_none_and_systems_that_cannot_work():
    class Odd(Colours):
        def evaluate(self, batch, candidate, capture_traces=False):
            scores = [math.nan if word == "red" else np.float32(0.5) for word in batch]
            return SimpleNamespace(outputs=list(batch), scores=scores, trajectories=list(batch))

    system = Adapted(Odd(), WORDS, {"list": "none"}, proposer=lambda *given: {})
    population, _ = evolve(CONFIG, system, 1)
    assert population.means[0] == 0.5
    ((rows,),) = [system.evaluate([{"list": ""}], system.problems("train", 9), 1, 0)]
    assert [isinstance(row[0].outcome, Score) for row in rows] == [False, True, True]
    Odd.evaluate = lambda self, batch, candidate, capture_traces=False: SimpleNamespace(
        outputs=[], scores=[], trajectories=[]
    )
    with pytest.raises(DataError, match="0 scores"):
        evolve(CONFIG, system, 1)
    with pytest.raises(ConfigError, match="reflection_lm"):
        Adapted(Colours(), WORDS, {"list": ""})
    with pytest.raises(ConfigError, match="no instances"):
        Adapted(Colours(), (), {"list": ""}, reflection_lm=one_missing)
    assert system.prompt_problems({"other": ""}) and not system.prompt_problems({"list": "x"})
