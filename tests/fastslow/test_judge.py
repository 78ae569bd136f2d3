"""Only a score is a score; everything else says what is wrong with it."""

import pytest
from _verifiers import PROBLEM, obey

from fastweights.fastslow.judge import LONGEST_MESSAGE, Direct
from fastweights.tasks.prompted import Failed, Score, Unscorable


def test_outcomes_come_through():
    judge = Direct(obey)
    assert judge.verify(PROBLEM, "4") == Score(1.0, True, "1 characters \ud800 ☺")
    assert judge.verify(PROBLEM, "12345") == Score(0.0, False, "5 characters \ud800 ☺")
    assert judge.verify(PROBLEM, "unscorable") == Unscorable("two answers")
    assert judge.verify(PROBLEM, "failed") == Failed("no oracle")


def test_numpy_numbers_become_python_numbers():
    outcome = Direct(obey).verify(PROBLEM, "numpy")
    assert outcome == Score(0.25, True)
    assert isinstance(outcome, Score) and type(outcome.value) is float
    assert outcome.correct is True


#: what obey is told, and a word of what the failure must say
BROKEN = {
    "raise": "raised IndexError: list index out of range",
    "raise long": "raised KeyError: 'xxx",
    "unprintable": "raised Unprintable: (its",
    "none": "returned None",
    "true": "returned True",
    "float": "returned 1.0",
    "text": "returned 'correct'",
    "odd": "returned <_verifiers.Odd",
    "nan": "nan",
    "two": "2.0",
    "minus": "-0.1",
    "word": "'1'",
    "odd score": "Odd",
    "perhaps": "None",
    "odd feedback": "feedback is a Odd",
    "odd reason": "which is no outcome",
}


@pytest.mark.parametrize("answer", BROKEN)
def test_a_broken_verifier_is_a_failure_and_no_score(answer):
    outcome = Direct(obey).verify(PROBLEM, answer)
    assert isinstance(outcome, Failed)
    assert BROKEN[answer] in outcome.error
    assert len(outcome.error) < LONGEST_MESSAGE + 100


def test_many():
    judge = Direct(obey)
    outcomes = judge.verify_many([PROBLEM] * 3, ["4", "raise", "5"])
    assert [type(o) for o in outcomes] == [Score, Failed, Score]
    with pytest.raises(ValueError, match="shorter"):
        judge.verify_many([PROBLEM] * 3, ["4"])
