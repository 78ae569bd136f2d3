"""Durable checkpoints of a run: saved in the background, verified before they are trusted.

A step is a directory with the arrays (`fastweights.train.storage`) and a manifest with a SHA-256 of
every file (`fastweights.train.manifest`). A step without its manifest does not exist, and whatever
no manifest names is removed by the next save (`fastweights.train.retention`): at every instant a
kill leaves the committed steps as they were.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from fastweights.errors import CheckpointError, ConfigError
from fastweights.train import manifest, retention, storage
from fastweights.train.manifest import Manifest
from fastweights.train.processes import decided_by_first
from fastweights.train.retention import StepInfo

_LOG = logging.getLogger(__name__)


class ResumableIterator(Protocol):
    """What `save` and `restore` need of a data iterator; Grain's iterators have it."""

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class Restored(NamedTuple):
    """A restored step: its number, the state, and the JSON data saved with it."""

    step: int
    state: Any
    extra: Any


class Checkpoints:
    """The checkpoints of one run.

    In a run of several processes each of them makes one on the same shared directory, and calls
    `save` and `restore` together with the others. Only one run may write to a directory at a time.

    Args:
        directory: where they are or will be, for example `RUN/checkpoints`; made by the first save.
        keep_last: how many of the newest steps to keep.
        keep_best: whether to keep the step with the smallest finite score too.
        report: called with a line of text when a damaged or unfinished step is passed over, or an
            old one cannot be removed (then from the writer thread).

    Raises:
        ConfigError: if `keep_last` is less than one.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_last: int = 3,
        keep_best: bool = True,
        report: Callable[[str], None] = _LOG.warning,
    ):
        if keep_last < 1:
            raise ConfigError(f"keep_last is {keep_last}, but at least one step must be kept.")
        self.directory = Path(os.path.abspath(directory))
        self.keep_last, self.keep_best = keep_last, keep_best
        self._report = report
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(
        self,
        step: int,
        state: Any,
        iterator: ResumableIterator | None = None,
        *,
        score: float | None = None,
        extra: Any = None,
        prune: bool = True,
    ) -> None:
        """Saves a step in the background, after the one before is finished.

        Returns when the arrays and the iterator's state are copied to the host: the caller may
        donate `state` and go on. A step that exists is replaced once the new one is complete.

        Args:
            step: number of the step, zero or more.
            state: pytree of arrays (any dtype, typed keys too) and Python numbers.
            iterator: its `get_state()` (JSON data or bytes) is saved with the step, per process.
            score: the smaller, the better, for `keep_best`.
            extra: JSON data; tuples come back as lists.
            prune: remove the steps that need not be kept any more.

        Raises:
            CheckpointError: if this save cannot begin, or an earlier one failed.
            ValueError: if `step` is negative.
        """
        self.wait()
        step = int(step)
        if step < 0:
            raise ValueError(f"step is {step}")
        draft = Manifest(
            step=step,
            directory="",
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            score=None if score is None else float(score),
            extra=_json_copy(extra, "`extra`"),
            leaves=storage.table(state),
            files={},
        )
        iterator_state = None if iterator is None else iterator.get_state()
        if not isinstance(iterator_state, bytes):
            iterator_state = _json_copy(iterator_state, "The state of the data iterator")
        with self._writing(step):
            suffix = decided_by_first(lambda: retention.prepare(self.directory, step, self._report))
            draft = replace(draft, directory=manifest.directory_name(step, suffix))
            directory = self.directory / draft.directory
            finish = storage.start_write(directory, state, iterator_state)
        self._pending = self._writer.submit(self._commit, draft, finish, prune)

    def wait(self) -> None:
        """Returns when the last save is on the disk.

        Raises:
            CheckpointError: if it failed.
        """
        if self._pending is None:
            return
        try:
            self._pending.result()
        finally:
            if self._pending.done():  # not so if the waiting was interrupted
                self._pending = None

    def close(self) -> None:
        """Waits for the last save and ends the writer thread; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def restore(
        self,
        abstract_state: Any,
        iterator: ResumableIterator | None = None,
        *,
        step: int | None = None,
    ) -> Restored | None:
        """The newest step that verifies, or `step`; None if nothing was ever saved.

        Args:
            abstract_state: pytree of arrays or `jax.ShapeDtypeStruct`; the result has its
                structure, dtypes and shardings, whatever mesh the checkpoint was written on.
            iterator: gets the saved iterator state by `set_state`, last of all.
            step: only this one; no fallback.

        Raises:
            CheckpointError: if there are steps but none verifies, or the step does not fit
                `abstract_state` or `iterator`.
        """
        self.wait()
        chosen = decided_by_first(lambda: self._newest_verified(step))
        if chosen < 0:
            return None
        record = manifest.read(self.directory, chosen)
        where = self.directory / record.directory
        if difference := storage.mismatch(record.leaves, storage.table(abstract_state)):
            raise CheckpointError(
                f"Checkpoint {chosen} does not fit this run: {difference}.",
                where=where,
                cause="the model, the optimiser or the precision changed since it was saved",
                next="set the config back to the one of the run, or start a new run directory",
            )
        if iterator is not None and storage.iterator_file() not in record.files:
            raise CheckpointError(
                f"Checkpoint {chosen} has no state for the data iterator of process "
                f"{jax.process_index()} of {jax.process_count()}.",
                where=where,
                cause="it was saved without one, or by another number of processes",
                next="resume with as many processes as it was saved with",
            )
        try:
            state, iterator_state = storage.read(
                where, abstract_state, with_iterator=iterator is not None
            )
            if iterator is not None:
                iterator.set_state(iterator_state)
        except (OSError, ValueError, RuntimeError, LookupError) as error:
            raise CheckpointError(
                f"Checkpoint {chosen} is undamaged but cannot be restored.",
                where=where,
                cause=_first_line(error),
                next="fastweights env",
            ) from error
        return Restored(chosen, state, record.extra)

    def infos(self) -> list[StepInfo]:
        """All steps, oldest first, complete or not; quick, reads the manifests only."""
        return retention.infos(self.directory)

    def verify(self, step: int) -> list[str]:
        """Reads every file of a step; what is wrong with it in words, empty if nothing is."""
        try:
            record = manifest.read(self.directory, step)
        except CheckpointError as error:
            return [error.what]
        return manifest.problems(self.directory, record)

    def _newest_verified(self, step: int | None) -> int:
        """The step to restore, -1 for none; tells of every step passed over."""
        steps = manifest.steps(self.directory) if step is None else [step]
        causes = []
        for candidate in reversed(steps):
            problems = self.verify(candidate)
            if not problems:
                return candidate
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            causes.append(problems[0] + more)
            self._report(f"Checkpoint {candidate} is passed over: {causes[-1]}")
        if steps:
            raise CheckpointError(
                "No checkpoint verifies." if step is None else f"Checkpoint {step} is not good.",
                where=self.directory,
                cause=causes[0],
                next=f"fastweights ckpt verify {self._run}",
            )
        if unfinished := retention.infos(self.directory):
            self._report(
                f"{self.directory} holds only unfinished checkpoints, which the next save removes: "
                + ", ".join(str(info.step) for info in unfinished)
            )
        return -1

    def _commit(self, draft: Manifest, finish: Callable[[], None], prune: bool) -> None:
        """Runs in the writer thread: the end of the writing, the seal, and the pruning."""
        with self._writing(draft.step):
            finish()  # returns when every process has written its part
            if jax.process_index() == 0:
                files = manifest.seal(self.directory / draft.directory)
                manifest.write(self.directory, replace(draft, files=files))
                if prune:
                    retention.prune(
                        self.directory,
                        draft.step,
                        keep_last=self.keep_last,
                        keep_best=self.keep_best,
                        report=self._report,
                    )

    @contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            cause, remedy = _first_line(error), f"fastweights ckpt ls {self._run}"
            if any(s in cause for s in ("No space left", "quota exceeded")):
                cause, remedy = "the disk is full", "free some space, then start the run again"
            elif any(s in cause for s in ("Permission denied", "Read-only file system")):
                cause, remedy = "no right to write there", "choose another run directory"
            raise CheckpointError(
                f"Checkpoint {step} could not be saved; the steps before it are as they were.",
                where=self.directory,
                cause=cause,
                next=remedy,
            ) from error

    @property
    def _run(self) -> Path:
        return self.directory.parent if self.directory.name == "checkpoints" else self.directory


def _json_copy(data: Any, name: str) -> Any:
    try:
        return json.loads(json.dumps(data))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name} is not JSON data.", cause=str(error), next="turn arrays into lists or numbers"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
