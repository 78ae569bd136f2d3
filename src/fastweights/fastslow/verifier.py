"""Judging answers in a process that can be killed: for verifiers that may hang, or die."""

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import pickle
import pkgutil
import signal
import threading
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from fastweights.errors import ConfigError
from fastweights.fastslow.judge import Function, Judge, checked, judge, short
from fastweights.tasks.prompted import Failed, Outcome, Problem, Score, Unscorable

#: seconds beyond the limit after which a child ends itself, if its parent, too, has been killed
GRACE = 5.0
#: what pickle raises of what it cannot take, which depends on the Python
UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError)
_KINDS = {kind.__name__: kind for kind in (Score, Unscorable, Failed)}


class Verifier(Judge):
    """Judges in a child process, which is killed with all that it started when time is over.

    The child lives until then, since starting one takes as long as thousands of verdicts. It is
    spawned: forking a process in which XLA's threads run can deadlock. As always with spawned
    processes, a script that makes one needs `if __name__ == "__main__":`.

    What the first verdict would otherwise wait for, such as a slow import, belongs into a method
    `prepare()` of the task whose method the verifier is, or an attribute of the function: it is
    called in the child before any verdict, and has the time of the start.

    Args:
        function: `"module:name"`, or something that can be pickled: a function of a module, or a
            method of a task that is a frozen dataclass.
        limit: seconds that a verdict may take.
        start_limit: seconds that importing the function, and `prepare()`, may take.
    """

    def __init__(self, function: Function | str, *, limit: float = 2.0, start_limit: float = 60.0):
        if not all(0 < seconds < math.inf for seconds in (limit, start_limit)):
            raise ConfigError(f"a verifier's limits must be positive: {limit} s, {start_limit} s")
        self.function, self.limit, self.start_limit = function, limit, start_limit
        self._child: tuple[Any, Connection] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        with self._lock:
            self._running()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the child; a later answer would start another."""
        with self._lock:
            self._kill()

    def verify(self, problem: Problem, answer: str) -> Outcome:
        """Judge an answer in the child.

        Args:
            problem: what was asked.
            answer: any text; it is not looked at in this process.

        Raises:
            ConfigError: no child can be started: the function cannot be imported or prepared there;
                or the problem cannot be pickled.
        """
        with self._lock:
            process, pipe = self._running()
            try:
                self._send(pipe, problem, answer)
                if wait([pipe, process.sentinel], self.limit):
                    return _decode(pipe.recv_bytes())
                self._kill()
                return Failed(f"no verdict within {self.limit} s")
            except (EOFError, ConnectionError):
                return Failed(f"the verifier's process ended {self._kill(dead=True)}")
            except BaseException:
                self._kill()  # or its verdict would be taken for that on the next answer
                raise

    def _send(self, pipe: Connection, problem: Problem, answer: str) -> None:
        try:
            pipe.send((problem, answer, self.limit + GRACE))
        except UNPICKLABLE as error:
            raise ConfigError(
                "a problem cannot be sent to the verifier's process",
                where=short(repr(problem)),
                cause=f"it cannot be pickled: {error}",
                next="make it of strings, numbers and classes of a module",
            ) from None

    def _running(self) -> tuple[Any, Connection]:
        if self._child and self._child[0].is_alive():
            return self._child
        self._kill()
        context = multiprocessing.get_context("spawn")
        pipe, other_end = context.Pipe()
        process = context.Process(target=_serve, args=(other_end, self.function), daemon=True)
        try:
            process.start()
        except UNPICKLABLE as error:
            pipe.close()
            raise self._no_child(f"it cannot be pickled: {error}") from None
        finally:
            other_end.close()
        self._child = process, pipe
        try:
            if not wait([pipe, process.sentinel], self.start_limit):
                late = f"it was not imported within {self.start_limit} s, or not prepared"
                raise self._no_child(late)
            if trouble := json.loads(pipe.recv_bytes()):
                raise self._no_child(trouble)
        except (EOFError, ConnectionError):
            how = self._kill(dead=True)
            raise self._no_child(
                f"it ended {how}: what it needs cannot be imported there, "
                'or the main script lacks `if __name__ == "__main__":`'
            ) from None
        except BaseException:
            self._kill()
            raise
        return self._child

    def _no_child(self, cause: str) -> ConfigError:
        return ConfigError(
            "the verifier's process cannot be started",
            where=short(str(self.function)),
            cause=cause,
            next='define the function in a module that can be imported, and give "module:name"',
        )

    def _kill(self, dead: bool = False) -> str:
        """Leaves no process and no pipe; says how it ended if it was dead."""
        if not self._child:
            return ""
        (process, pipe), self._child = self._child, None
        pipe.close()
        if dead:
            process.join(1.0)
        code = process.exitcode
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        process.close()
        if code is None:
            return "its side of the pipe"
        return f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


def _decode(data: bytes) -> Outcome:
    # text: unpickling would run whatever a verifier has been talked into sending
    try:
        fields = json.loads(data)
        return checked(_KINDS[fields.pop("kind")](**fields))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Failed("the verifier's process sent something that is no verdict")


def _serve(pipe: Connection, function: Function | str) -> None:
    os.setsid()  # a group of its own, to be killed with all that a verifier starts
    os.dup2(2, 1)  # what a verifier prints is not the run's output
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        verifier = pkgutil.resolve_name(function) if isinstance(function, str) else function
        prepare = getattr(getattr(verifier, "__self__", verifier), "prepare", None)
        if prepare is not None:
            prepare()
    except Exception as error:
        pipe.send_bytes(json.dumps(f"{type(error).__name__}: {error}").encode())
        return
    pipe.send_bytes(b"null")
    while True:
        try:
            problem, answer, longest = pipe.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, longest)  # ends even what holds the interpreter
        outcome = judge(verifier, problem, answer, BaseException)
        signal.setitimer(signal.ITIMER_REAL, 0)
        fields = {"kind": type(outcome).__name__, **dataclasses.asdict(outcome)}
        pipe.send_bytes(json.dumps(fields).encode())
