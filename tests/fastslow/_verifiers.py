"""Verifiers that behave in every way; imported by a child process, so it needs little."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

from fastweights.tasks.programs import Programs
from fastweights.tasks.prompted import Failed, Problem, Score, Unscorable

PROBLEM = Problem("1", "2 + 2", "4")


class Unprintable(Exception):
    """An error that cannot even be shown."""

    def __str__(self):
        raise RuntimeError


class Odd:
    """Something that runs code when it is unpickled."""

    def __reduce__(self):
        return os._exit, (3,)


def obey(problem, answer):
    """Does what the answer says, or compares it with the right one."""
    acts = {
        "hang": lambda: exec("while True: pass"),
        "sleep": lambda: time.sleep(60),
        "raise": lambda: [][1],
        "raise long": lambda: {}["x" * 10_000],
        "unprintable": lambda: exec("raise Unprintable", globals()),
        "exit": lambda: sys.exit(5),
        "none": lambda: None,
        "true": lambda: True,
        "float": lambda: 1.0,
        "text": lambda: "correct",
        "odd": Odd,
        "nan": lambda: Score(float("nan"), True),
        "two": lambda: Score(2.0, True),
        "minus": lambda: Score(-0.1, False),
        "word": lambda: Score("1", True),  # type: ignore[arg-type]
        "odd score": lambda: Score(Odd(), True),  # type: ignore[arg-type]
        "perhaps": lambda: Score(0.5, None),  # type: ignore[arg-type]
        "odd feedback": lambda: Score(0.5, True, Odd()),  # type: ignore[arg-type]
        "odd reason": lambda: Unscorable(Odd()),  # type: ignore[arg-type]
        "unscorable": lambda: Unscorable("two answers"),
        "failed": lambda: Failed("no oracle"),
        "numpy": numpy_score,
        "_exit": lambda: os._exit(7),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "child": start_child,
        "print": lambda: print('{"kind": "Score"}' * 1000, flush=True) or Score(1.0, True, "said"),
        "modules": lambda: Score(1.0, True, " ".join(sys.modules)),
        "pid": lambda: Score(1.0, True, str(os.getpid())),
    }
    if answer in acts:
        return acts[answer]()
    right = answer.strip() == problem.answer
    return Score(float(right), right, f"{len(answer)} characters \ud800 ☺")


def numpy_score():
    """What a verifier that counts with NumPy returns."""
    import numpy as np

    return Score(np.float32(0.25), np.bool_(True))  # type: ignore[arg-type]


def start_child():
    """Starts a process, and waits longer than it may."""
    child = subprocess.Popen(["sleep", "60"])
    with open(os.environ["CHILD_PID_FILE"], "w") as file:
        file.write(str(child.pid))
    time.sleep(60)


@dataclasses.dataclass(frozen=True)
class Task:
    """A task whose method is the verifier."""

    bonus: float

    def verify(self, problem, answer):
        """A part of the reward is free."""
        return Score(self.bonus if answer != problem.answer else 1.0, answer == problem.answer)


@dataclasses.dataclass(frozen=True)
class Slow(Task):
    """A task that needs a second before its first verdict, if it is not prepared."""

    broken: bool = False

    def prepare(self):
        """That second."""
        if self.broken:
            raise ImportError("no module named oracle")
        time.sleep(1.0)
        os.environ["PREPARED"] = "yes"

    def verify(self, problem, answer):
        """Half a reward."""
        if "PREPARED" not in os.environ:
            self.prepare()
        return super().verify(problem, answer)


@dataclasses.dataclass(frozen=True)
class Stuck(Programs):
    """Programs, of which one problem is never judged."""

    at: str = ""

    def verify(self, problem, answer):
        """Half a reward, and no end for one problem."""
        if problem.id == self.at:
            time.sleep(600)
        return Score(0.5, len(answer) % 2 == 0)
