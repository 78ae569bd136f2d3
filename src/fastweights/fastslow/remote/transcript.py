"""A file of every request to a model and its answer, so that no answer is paid for twice.

One JSON object a line:

    {"sha256": ..., "request": {"messages": [...], "settings": {...}},
     "answer": ... or "failure": ..., "usage": {...}}

The hash is of the request in canonical form. A line is on the disk before its answer is used. The
position in the file belongs to the training state: a run that goes on from an older checkpoint is
given the answers after it from the file, failures and costs included, and goes the same way again.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from fastweights.errors import ConfigError, DataError
from fastweights.fastslow.propose import ProposalError
from fastweights.fastslow.remote.ledger import Ledger, Usage

_LOG = logging.getLogger(__name__)


class Transcript:
    """Wraps `prompt -> text`; records what it gives, or replays what it gave.

    Args:
        path: of the file.
        ask: what is asked where the file has no answer; None only replays.
        settings: sampling settings, which are a part of each request; `Endpoint.settings`.
        position: answers that have been used; the state's.
        mode: "record" asks where the file ends, and where a request is another than the recorded
            one: the lines from there on are then moved to a file of their own. "replay" asks
            nothing and changes nothing.
        ledger: that of `ask`; what it counts is recorded, and counted again in a replay.
        report: is told in words what was dropped.

    Raises:
        DataError: the file is damaged, or shorter than the position.
    """

    def __init__(
        self,
        path: Path | str,
        ask: Callable[[Any], str] | None,
        *,
        settings: Mapping[str, Any],
        position: int = 0,
        mode: Literal["record", "replay"] = "record",
        ledger: Ledger | None = None,
        report: Callable[[str], None] = _LOG.warning,
    ):
        if mode not in ("record", "replay") or (mode == "record" and ask is None):
            raise ConfigError(f"mode {mode!r} of a transcript, with ask = {ask!r}", where=str(path))
        self.path, self.mode, self.settings, self.position = Path(path), mode, settings, position
        self._ask, self._ledger, self._report = ask, ledger, report
        #: used by requests that have no line: a limit broke them off between two tries, or the
        #: server refuses them all
        self.unrecorded = Usage()
        self._lines = self._read()
        if not 0 <= position <= len(self._lines):
            raise DataError(
                f"{position} answers have been used, and the transcript has {len(self._lines)}",
                where=str(self.path),
                cause="it is the file of another run, or has been lost",
                next="put the run's own file back, or begin a new run",
            )

    def __call__(self, prompt: str | list[dict[str, Any]]) -> str:
        """The answer, from the file if it is there.

        Raises:
            ProposalError: there was none when it was recorded, or there is none now.
            DataError: in mode "replay", another request was recorded here, or none.
            ConfigError: the model cannot be asked as things are, which is not recorded.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        request = {"messages": messages, "settings": dict(self.settings)}
        digest = sha256(request)
        if self.position < len(self._lines):
            if self._lines[self.position]["sha256"] == digest:
                return self._replayed()
            if self.mode == "record":
                self._set_aside(self.position)
        if self.mode == "replay":
            raise self._differs(request)
        return self._recorded(prompt, request, digest)

    def _replayed(self) -> str:
        line = self._lines[self.position]
        self.position += 1
        if self._ledger:
            self._ledger.add(Usage(**line["usage"]))
        if "failure" in line:
            raise ProposalError(line["failure"])
        return line["answer"]

    def _recorded(self, prompt: Any, request: dict, digest: str) -> str:
        assert self._ask is not None
        line, failure = {"sha256": digest, "request": request}, None
        before = self._ledger.total if self._ledger else Usage()
        try:
            line["answer"] = answer = self._ask(prompt)
        except ProposalError as error:
            failure, answer = error, ""
            line["failure"] = str(error)
        except ConfigError:  # a limit, or a wrong key or address: asked again when that is mended
            if self._ledger:
                self.unrecorded += self._ledger.total - before
            raise
        after = self._ledger.total if self._ledger else Usage()
        line["usage"] = dataclasses.asdict(after - before)
        append(self.path, json.dumps(line).encode() + b"\n")
        self._lines.append(line)
        self.position += 1
        if failure is not None:
            raise failure
        return answer

    def _read(self) -> list[dict[str, Any]]:
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(
                f"the transcript cannot be read: {error}",
                where=str(self.path),
                next="make it a file that can be read",
            ) from None
        *whole, torn = text.split(b"\n")
        if torn:
            self._report(f"{self.path}: dropped line {len(whole) + 1}, which was not written whole")
            if self.mode == "record":
                _truncate(self.path, len(text) - len(torn))
        return [self._parsed(number, line) for number, line in enumerate(whole, 1)]

    def _parsed(self, number: int, text: bytes) -> dict[str, Any]:
        try:
            line = json.loads(text)
            Usage(**line["usage"])
            outcome = line["failure"] if "failure" in line else line["answer"]
            if isinstance(outcome, str) and line["sha256"] == sha256(line["request"]):
                return line
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise DataError(
            "a line of the transcript is damaged, or was edited by hand",
            where=f"{self.path}, line {number}",
            next="put the file back as it was, or begin a new run",
        )

    def _set_aside(self, count: int) -> None:
        """Keep what was paid for, and the file a record of what was used."""
        kept = self.path.with_name(self.path.name + ".unused")
        lines = self.path.read_bytes().splitlines(keepends=True)
        append(kept, b"".join(lines[count:]))
        _truncate(self.path, sum(map(len, lines[:count])))
        self._lines = self._lines[:count]
        self._report(
            f"{self.path}: line {count + 1} answers another request than the one made now; moved "
            f"{len(lines) - count} lines to {kept}, and asking anew"
        )

    def _differs(self, request: dict) -> DataError:
        where = f"{self.path}, line {self.position + 1}"
        if self.position == len(self._lines):
            what, cause = "the transcript ends before this request", "the recorded run ended here"
        else:
            recorded = self._lines[self.position]["request"]
            other = "settings" if recorded["messages"] == request["messages"] else "messages"
            what, cause = "the transcript answers another request here", f"its {other} differ"
        next = 'the config and version it was recorded with, or mode "record" to go on from here'
        return DataError(what, where=where, cause=cause, next=next)


def sha256(request: Any) -> str:
    """Of a request, written in one way: keys sorted, no spaces, all of it ASCII.

    Raises:
        ValueError: it has a number that is not finite, which JSON does not know.
    """
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def append(path: Path, data: bytes) -> None:
    """Write at the end of a file, and return when it is on the disk."""
    new = not path.exists()
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if new:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _truncate(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
