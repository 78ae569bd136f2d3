"""Judging answers so that a broken verifier is seen, and never taken for a score."""

import abc
from collections.abc import Callable, Sequence
from numbers import Real

from fastweights.tasks.prompted import Failed, Outcome, Problem, Score, Unscorable

Function = Callable[[Problem, str], Outcome]

#: characters of a message that are kept: an exception may quote the whole answer
LONGEST_MESSAGE = 500


def checked(outcome: object) -> Outcome:
    """An outcome in plain Python types; `Failed` if it is none, or no score between 0 and 1."""
    match outcome:
        case Score(value, correct, feedback):
            # NumPy's scalars are taken; its bool is not a bool of Python
            if not isinstance(value, Real) or not 0 <= value <= 1:
                return Failed(f"the verifier's score is {short(repr(value))}, not within 0 to 1")
            if type(correct).__name__ not in ("bool", "bool_"):
                return Failed(f"the verifier's `correct` is {short(repr(correct))}, and no bool")
            if not isinstance(feedback, str):
                return Failed(f"the verifier's feedback is a {type(feedback).__name__}, not text")
            return Score(float(value), bool(correct), str(feedback))
        case Unscorable(reason) if isinstance(reason, str):
            return Unscorable(str(reason))
        case Failed(error) if isinstance(error, str):
            return Failed(str(error))
    return Failed(f"the verifier returned {short(repr(outcome))}, which is no outcome")


def judge(
    function: Function, problem: Problem, answer: str, caught: type[BaseException] = Exception
) -> Outcome:
    """Call a verifier.

    Args:
        function: the verifier.
        problem: what was asked.
        answer: any text.
        caught: exceptions that become `Failed`.
    """
    try:
        return checked(function(problem, answer))
    except caught as error:
        try:
            message = short(str(error))
        except Exception:
            message = "(its message cannot be shown)"
        return Failed(f"the verifier raised {type(error).__name__}: {message}")


def short(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "…"


class Judge(abc.ABC):
    """What judges answers."""

    @abc.abstractmethod
    def verify(self, problem: Problem, answer: str) -> Outcome:
        """Judge an answer; nothing that the verifier does is raised here.

        Args:
            problem: what was asked.
            answer: any text.
        """

    def verify_many(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Outcome]:
        """Judge an answer to each problem, one after the other."""
        return [self.verify(*pair) for pair in zip(problems, answers, strict=True)]


class Direct(Judge):
    """Judges in this process: for verifiers that surely return, such as exact match.

    It has no limit of time, and saves what `Verifier` costs: some 0.1 to 0.3 ms for each answer.

    Args:
        function: the verifier.
    """

    def __init__(self, function: Function):
        self.function = function

    def verify(self, problem: Problem, answer: str) -> Outcome:
        """Judge an answer; an exception of the verifier becomes `Failed`."""
        return judge(self.function, problem, answer)
