"""Errors a user can cause: what happened, where, the likely cause, and the next command.

Each kind carries the exit code the command line ends with, so that a scheduler can tell a typo (2)
from missing data (3), a bad checkpoint (4), a diverged run (5) and a saved preemption (75).
"""

from collections.abc import Iterable
from pathlib import Path


def nearest(word: str, words: Iterable[str]) -> str:
    """`, did you mean "x"?` for the most similar of some words, or an empty text."""
    import difflib

    close = difflib.get_close_matches(word, list(words), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def nearest_folder(folder: Path) -> str:
    """As `nearest`, for the name of a folder among the folders beside it."""
    try:
        names = [each.name for each in folder.parent.iterdir() if each.is_dir()]
    except OSError:  # no such parent, or not readable
        names = []
    return nearest(folder.name, names)


class FastWeightsError(Exception):
    """Base of every error that is the user's to mend; shown without a traceback.

    Args:
        what: one sentence, what happened.
        where: the file, config path, leaf or step it concerns.
        cause: the most likely reason.
        next: the command or change to try next.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: object = None, cause: str | None = None, next: str | None = None
    ):
        super().__init__(what)
        self.what, self.where, self.cause, self.next = what, where, cause, next

    def __str__(self) -> str:
        details = [("where", self.where), ("likely cause", self.cause), ("next", self.next)]
        lines = [self.what] + [f"  {name}: {text}" for name, text in details if text is not None]
        return "\n".join(lines)


class ConfigError(FastWeightsError):
    """A config, a flag or a shape that cannot work."""

    exit_code = 2


class DataError(FastWeightsError):
    """Data that is missing, damaged or not what the config says."""

    exit_code = 3


class CheckpointError(FastWeightsError):
    """A checkpoint or run directory that cannot be read, written or trusted."""

    exit_code = 4


class NumericalError(FastWeightsError):
    """A loss or gradient that is not finite."""

    exit_code = 5


class Preempted(FastWeightsError):
    """The run was asked to stop and saved its state first: start it again to go on."""

    exit_code = 75


def install_extra(name: str) -> str:
    """The command that installs an extra of pyproject.toml, as the `next` of an error.

    It runs in a checkout, because no package index has fastweights.
    """
    return f"in the fastweights checkout: pip install -e '.[{name}]'"
