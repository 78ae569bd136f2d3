"""No verifier, whatever it does, stops a run, costs more than its time or leaves a process."""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import time

import _verifiers
import pytest
from _verifiers import PROBLEM, Odd, Slow, Task, obey
from test_judge import BROKEN

from fastweights.errors import ConfigError
from fastweights.fastslow.verifier import Verifier, _decode
from fastweights.tasks.prompted import Failed, Score, Unscorable

RIGHT = Score(1.0, True, "1 characters \ud800 ☺")


@pytest.fixture(scope="module")
def verifier():
    with Verifier(obey, limit=20.0) as verifier:
        yield verifier
    assert not multiprocessing.active_children()


@pytest.fixture
def no_more_children():
    """Says whether there are children that were not there before the test."""
    before = {*multiprocessing.active_children()}
    yield lambda: not {*multiprocessing.active_children()} - before
    assert not {*multiprocessing.active_children()} - before


def pid(verifier):
    return int(verifier.verify(PROBLEM, "pid").feedback)


def gone(process_id):
    """Whether a process ends in two seconds; one that init has yet to reap counts as ended."""
    for _ in range(200):
        try:
            with open(f"/proc/{process_id}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_outcomes_come_through_from_one_process(verifier):
    first = pid(verifier)
    answers = ["4", "5", "unscorable", "failed", "numpy"]
    wrong = Score(0.0, False, RIGHT.feedback)
    assert verifier.verify_many([PROBLEM] * 5, answers) == [
        *(RIGHT, wrong, Unscorable("two answers"), Failed("no oracle"), Score(0.25, True)),
    ]
    assert first == pid(verifier) != os.getpid()


def test_the_child_does_not_load_jax(verifier):
    modules = verifier.verify(PROBLEM, "modules").feedback.split()
    assert "_verifiers" in modules
    assert not {"jax", "jaxlib", "flax"} & {*modules}


@pytest.mark.parametrize("answer", [*BROKEN, "exit"])
def test_a_broken_verifier_is_a_failure_and_its_process_lives_on(verifier, answer):
    before = pid(verifier)
    outcome = verifier.verify(PROBLEM, answer)
    assert isinstance(outcome, Failed)
    assert BROKEN.get(answer, "raised SystemExit: 5") in outcome.error
    assert pid(verifier) == before


def test_what_is_printed_disturbs_nobody(verifier, capfd):
    assert verifier.verify(PROBLEM, "print") == Score(1.0, True, "said")
    assert verifier.verify(PROBLEM, "4") == RIGHT
    assert capfd.readouterr().out == ""


def test_a_huge_answer(verifier):
    outcome = verifier.verify(PROBLEM, "4" + " " * 2**20)
    assert outcome == Score(1.0, True, f"{2**20 + 1} characters \ud800 ☺")
    assert verifier.verify(PROBLEM, "\0\ud800" * 1000).value == 0.0


@pytest.mark.parametrize("answer", ["hang", "sleep"])
def test_time_is_limited_and_the_next_verdict_is_right(answer, no_more_children):
    with Verifier(obey, limit=0.3) as verifier:
        start = time.monotonic()
        outcome = verifier.verify(PROBLEM, answer)
        assert 0.3 <= time.monotonic() - start < 3
        assert outcome == Failed("no verdict within 0.3 s")
        assert no_more_children()
        verifier.limit = 20.0
        assert verifier.verify(PROBLEM, "4") == RIGHT
    assert no_more_children()


@pytest.mark.parametrize(("answer", "how"), [("_exit", "with exit code 7"), ("kill", "by SIGKILL")])
def test_a_verifier_that_dies_is_a_failure_and_the_next_verdict_is_right(
    answer, how, no_more_children
):
    with Verifier(obey, limit=20.0) as verifier:
        outcomes = verifier.verify_many([PROBLEM] * 2, [answer, "4"])
    assert outcomes == [Failed(f"the verifier's process ended {how}"), RIGHT]
    assert no_more_children()


def test_what_a_verifier_started_is_killed_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CHILD_PID_FILE", str(tmp_path / "pid"))
    with Verifier(obey, limit=1.0) as verifier:
        assert isinstance(verifier.verify(PROBLEM, "child"), Failed)
    assert gone((tmp_path / "pid").read_text())


def test_a_child_ends_though_its_parent_was_killed(tmp_path):
    code = f"""
import os, threading
from _verifiers import PROBLEM, obey
from fastweights.fastslow import verifier
verifier.GRACE = 0.1
judge = verifier.Verifier(obey, limit=0.5).__enter__()
open({str(tmp_path / "pid")!r}, "w").write(judge.verify(PROBLEM, "pid").feedback)
threading.Timer(0.1, lambda: os.kill(os.getpid(), 9)).start()
judge.verify(PROBLEM, "hang")
"""
    path = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == -9
    assert gone((tmp_path / "pid").read_text())


def test_a_process_that_died_in_between_is_replaced():
    with Verifier("_verifiers:obey", limit=20.0) as verifier:
        os.kill(pid(verifier), 9)
        time.sleep(0.1)
        assert verifier.verify(PROBLEM, "4") == RIGHT


def test_an_interruption_cannot_shift_verdicts(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with Verifier(Task(0.5).verify, limit=20.0) as verifier:
        with monkeypatch.context() as context:
            context.setattr("fastweights.fastslow.verifier._decode", interrupted)
            with pytest.raises(KeyboardInterrupt):
                verifier.verify(PROBLEM, "4")
        assert verifier.verify(PROBLEM, "5") == Score(0.5, False)


def test_a_problem_that_cannot_be_sent_leaves_no_process_behind(no_more_children):
    problem = dataclasses.replace(PROBLEM, id=lambda: 0)  # type: ignore[arg-type]
    with Verifier(obey, limit=20.0) as verifier:
        with pytest.raises(ConfigError, match=r"(?s)a problem .* cannot be pickled: .*lambda"):
            verifier.verify(problem, "4")
        assert no_more_children()


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        ("_verifiers:no_such", "AttributeError"),
        ("no_such_module:verify", "No module named"),
        (lambda problem, answer: None, "pickled"),
        (Odd(), "exit code 3"),
    ],
)
def test_a_function_that_cannot_be_had_there_is_an_error(function, cause, no_more_children):
    with pytest.raises(ConfigError, match=cause):
        Verifier(function).__enter__()
    assert no_more_children()


def test_what_a_task_prepares_is_no_verdicts_time(no_more_children):
    with Verifier(Slow(0.25).verify, limit=0.5) as verifier:
        assert verifier.verify(PROBLEM, "5") == Score(0.25, False)
    with pytest.raises(ConfigError, match="or not prepared"):
        Verifier(Slow(0.25).verify, start_limit=0.9).__enter__()
    with pytest.raises(ConfigError, match="ImportError: no module named oracle"):
        Verifier(Slow(0.25, broken=True).verify).__enter__()
    assert no_more_children()


def test_a_child_that_takes_too_long_to_start(no_more_children):
    with pytest.raises(ConfigError, match="not imported within"):
        Verifier(obey, start_limit=1e-3).__enter__()
    assert no_more_children()


@pytest.mark.parametrize("limit", [0, -1.0, float("inf"), float("nan")])
def test_limits_that_are_none(limit):
    with pytest.raises(ConfigError, match="must be positive"):
        Verifier(obey, limit=limit)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95",  # the beginning of a pickle
        b"[]",
        b"1.0",
        b'{"kind": "os"}',
        b'{"kind": ["Score"]}',
        b'{"kind": "Score", "value": NaN, "correct": true}',
        b'{"kind": "Score", "value": 1.0, "correct": true, "more": 1}',
        b"[" * 100_000,
    ],
)
def test_bytes_that_are_no_verdict_are_a_failure(data):
    assert isinstance(_decode(data), Failed)


def test_a_bound_method_takes_its_fields_along():
    assert _verifiers.Task(0.125).verify(PROBLEM, "5").value == 0.125
    with Verifier(Task(0.125).verify, limit=20.0) as verifier:
        assert verifier.verify_many([PROBLEM] * 2, ["5", "4"]) == [
            Score(0.125, False),
            Score(1.0, True),
        ]
