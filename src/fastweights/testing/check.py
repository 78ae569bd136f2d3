"""`check_rule`, which goes through the clauses, and the error that names one."""

import inspect
from collections.abc import Iterator, Sequence

from fastweights.rules import Rule
from fastweights.testing.case import Case
from fastweights.testing.clauses import CLAUSES, Clause
from fastweights.testing.programs import Programs


class RuleContractError(AssertionError):
    """A rule broke a clause of the contract.

    Attributes:
        clause: its name.
    """

    def __init__(self, message: str, clause: str = ""):
        super().__init__(message)
        self.clause = clause


def check_rule(
    rule: Rule,
    *,
    lengths: Sequence[int] = (13,),
    chunks: Sequence[int] = (4, 16),
    seeds: Sequence[int] = (0,),
) -> list[str]:
    """Check a rule against the contract, on random non-zero starts and odd lengths.

    Args:
        rule: the rule; it makes its own states and tokens with `rule.example`.
        lengths: sequence lengths to try.
        chunks: chunk sizes to try; they need not divide the lengths.
        seeds: seeds of the random examples.

    Returns:
        The names of the clauses checked, in order.

    Raises:
        RuleContractError: a clause does not hold; the message has its name, the arrays that are
            wrong and a likely cause.
    """
    for error in failures(rule, lengths=lengths, chunks=chunks, seeds=seeds):
        raise error
    return [clause.__name__ for clause in CLAUSES]


def failures(
    rule: Rule,
    *,
    lengths: Sequence[int] = (13,),
    chunks: Sequence[int] = (4, 16),
    seeds: Sequence[int] = (0,),
) -> Iterator[RuleContractError]:
    """Every failure of a clause for one length and seed, in order; arguments of `check_rule`."""
    programs = Programs(rule)
    cases = [Case(programs, seed, length, tuple(chunks)) for length in lengths for seed in seeds]
    for clause in CLAUSES:
        for case in cases:
            try:
                clause(case)
            except Exception as error:
                yield _explain(clause, case, error)


def _explain(clause: Clause, case: Case, error: Exception) -> RuleContractError:
    name, rule = clause.__name__, type(case.rule).__name__
    title, *_, hint = (inspect.getdoc(clause) or f"{name}\n\n").split("\n\n")
    found = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    lines = [
        f"{rule} breaks '{name}' (length {case.length}, seed {case.seed}): {title}",
        found,
        "hint: " + " ".join(hint.removeprefix("Hint: ").split()),
    ]
    explained = RuleContractError("\n".join(lines), name)
    explained.__cause__ = error
    return explained
