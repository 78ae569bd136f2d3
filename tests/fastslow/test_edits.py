"""Edits by brute force; what each proposer may know, and what it does with it."""

from collections import Counter

import pytest

from fastweights.fastslow.edits import Blind, Directed, Inductive, edits, weighted_choice
from fastweights.fastslow.propose import ProposalError, Record
from fastweights.tasks.conventions import Conventions
from fastweights.tasks.haystack import Draw
from fastweights.tasks.programs import Programs

TASK = Programs(odd="irt", even="nw")


def records(task, prompt, count=12, seed=1):
    """Rollouts of a model that does what a hint says."""
    found = []
    for problem in task.problems("train", count, seed):
        answer = "".join(
            task.explain(name, prompt[name], question)
            for name in prompt
            for question, _ in task.evidence(name, problem.query, problem.answer)
        )
        verdict = task.verify(problem, answer)
        found.append(Record(problem.query, answer, problem.answer, verdict.value, verdict.feedback))
    return found


def distance_one(a, b):
    """Whether b is a with one letter more, less or other, or two neighbours swapped."""
    if a == b:
        return False
    if len(a) == len(b):
        differ = [i for i in range(len(a)) if a[i] != b[i]]
        swapped = (
            len(differ) == 2
            and differ[1] == differ[0] + 1
            and a[differ[0]] == b[differ[1]]
            and a[differ[1]] == b[differ[0]]
        )
        return len(differ) == 1 or swapped
    short, long = sorted((a, b), key=len)
    return len(long) == len(short) + 1 and any(
        long[:i] + long[i + 1 :] == short for i in range(len(long))
    )


@pytest.mark.parametrize("text", ["", "a", "ab", "aab", "abc"])
def test_edits_are_all_texts_at_distance_one(text):
    letters, found = "abc", edits(text, "abc")
    words = [""]
    for _ in range(len(text) + 1):
        words += [w + x for w in words for x in letters if len(w) == max(map(len, words))]
    assert len(set(found)) == len(found)
    assert set(found) == {w for w in set(words) if distance_one(text, w)}


def test_a_blind_edit_is_one_step_and_allowed():
    prompt = {"odd": "ir", "even": "n"}
    seen = Counter()
    for seed in range(300):
        draw = Draw(seed)
        name = Blind(TASK).choose(prompt, [], draw)
        text = Blind(TASK).propose(prompt, name, [], draw)
        seen[name] += 1
        assert distance_one(prompt[name], text) and not TASK.prompt_problems({**prompt, name: text})
    assert min(seen.values()) > 100


def test_the_feedback_tells_which_component_is_wrong():
    # odd numbers are right already
    prompt = {"odd": "irt", "even": "n"}
    rollouts = records(TASK, prompt, 40)
    chosen = {Directed(TASK).choose(prompt, rollouts, Draw(s)) for s in range(50)}
    assert chosen == {"even"}
    assert {Blind(TASK).choose(prompt, rollouts, Draw(s)) for s in range(50)} == {"odd", "even"}
    perfect = records(TASK, TASK.oracle, 10)
    assert {Directed(TASK).choose(prompt, perfect, Draw(s)) for s in range(50)} == {"odd", "even"}


@pytest.mark.parametrize(
    "task, prompt, component, right",
    [
        (TASK, {"odd": "rt", "even": ""}, "odd", {"irt", "rit", "rti"}),
        (TASK, {"odd": "", "even": "w"}, "even", {"nw", "wn"}),
        (Conventions(meanings="-<+"), {"@": "", "#": "<", "&": ""}, "@", {"-"}),
    ],
)
def test_an_inductive_edit_is_the_one_that_explains_the_answers(task, prompt, component, right):
    rollouts = records(task, prompt, 24)
    share = lambda kind: sum(
        kind(task).propose(prompt, component, rollouts, Draw(s)) in right for s in range(100)
    )
    assert share(Inductive) > 80 and share(Blind) < 50


def test_without_evidence_there_is_no_proposal():
    with pytest.raises(ProposalError, match="even"):
        odd = [x for x in records(TASK, TASK.seed_prompt, 20) if int(x.query[0]) % 2]
        Inductive(TASK).propose(TASK.seed_prompt, "even", odd, Draw(0))
    with pytest.raises(ProposalError, match="no edit"):
        full = Programs(longest=1)
        Blind(full).propose({"odd": "i", "even": ""}, "even", [], Draw(0))


def test_choices_are_in_proportion():
    drawn = Counter(weighted_choice("abc", [1.0, 0.0, 3.0], None, Draw(s)) for s in range(2_000))
    assert set(drawn) == {"a", "c"} and abs(drawn["a"] - 500) < 80
    sharp = Counter(weighted_choice("ab", [0.5, 1.0], 2.0, Draw(s)) for s in range(2_000))
    # e^-1 to 1
    assert abs(sharp["a"] - 2_000 * 0.2689) < 80
