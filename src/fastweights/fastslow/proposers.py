"""The proposer that a config names."""

from typing import Any

from fastweights.fastslow.edits import Blind, Directed, Inductive
from fastweights.fastslow.propose import Proposer
from fastweights.fastslow.reflector import SelfReflector
from fastweights.pretrained import Pretrained


def make_proposer(name: str, task: Any, base: Pretrained) -> Proposer:
    """A proposer for a task.

    Args:
        name: blind, directed, inductive, or self: the frozen base model itself.
        task: a `HintedTask`.
        base: the model that training started from.
    """
    if name == "self":
        return SelfReflector(task, base)
    kinds: dict[str, Any] = {"blind": Blind, "directed": Directed, "inductive": Inductive}
    return kinds[name](task)
