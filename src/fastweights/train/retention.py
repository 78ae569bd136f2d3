"""Which steps a checkpoint directory holds, and which of them stay.

Deletion goes manifest first: a directory that no manifest names is a leftover, whenever a kill
comes, and leftovers go at the next save.
"""

import errno
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from fastweights.errors import CheckpointError
from fastweights.train import manifest, storage
from fastweights.train.manifest import Manifest


class StepInfo(NamedTuple):
    """One line of `fastweights ckpt ls`: date (ISO 8601, UTC) and score as saved, size in bytes.

    `complete` says that the manifest is good and all files are there with their sizes; only
    `Checkpoints.verify` reads their content.
    """

    step: int
    date: str | None
    size: int
    score: float | None
    best: bool
    complete: bool


def infos(root: Path) -> list[StepInfo]:
    """All steps, complete or not, oldest first."""
    records = _complete(root)
    best = _best(records)
    steps = set(manifest.steps(root))
    steps.update(
        s for n in manifest.names(root) if (s := manifest.step_of_directory(n)) is not None
    )
    found = []
    for step in sorted(steps):
        if record := records.get(step):
            info = (record.date, record.size, record.score, step == best, True)
        else:
            info = (None, 0, None, False, False)
        found.append(StepInfo(step, *info))
    return found


def prepare(root: Path, step: int, report: Callable[[str], None]) -> int:
    """Makes `root`, removes leftovers, returns the first free suffix for the directory of `step`.

    Raises:
        OSError: if nothing can be written there.
    """
    root.mkdir(parents=True, exist_ok=True)
    if not os.access(root, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(root))
    remove_leftovers(root, report)
    taken = set(manifest.names(root))
    return next(n for n in range(len(taken) + 1) if manifest.directory_name(step, n) not in taken)


def prune(
    root: Path, saved: int, *, keep_last: int, keep_best: bool, report: Callable[[str], None]
) -> None:
    """Removes all but the `keep_last` newest steps, the best one, and `saved`, the one just saved.

    A damaged step stays until it is older than the newest ones: someone may want to mend it.
    """
    records = _complete(root)
    newest = sorted(records)[-keep_last:]
    keep = {*newest, saved, _best(records) if keep_best else None}
    for step in manifest.steps(root):
        if step not in keep and (step in records or step < min(newest, default=saved)):
            _remove(manifest.path_of(root, step), report)
    remove_leftovers(root, report)


def remove_leftovers(root: Path, report: Callable[[str], None]) -> None:
    """Removes what killed or failed saves and replaced or pruned steps left behind.

    The directories of a step whose manifest cannot be read are not touched: they may be good. Nor
    is anything whose name is not one of ours.
    """
    named: set[str] = set()
    unreadable: set[int] = set()
    for step in manifest.steps(root):
        try:
            named.add(manifest.read(root, step).directory)
        except CheckpointError:
            unreadable.add(step)
    for name in manifest.names(root):
        base, temporary, _ = name.partition(storage.TEMPORARY)
        step = manifest.step_of_directory(base)
        kept = not temporary and (name in named or step in unreadable)
        if manifest.is_temporary(name) or (step is not None and not kept):
            _remove(root / name, report)


def _remove(path: Path, report: Callable[[str], None]) -> None:
    # no reason to lose the run: the step it made room for is saved
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        report(f"An old checkpoint could not be removed: {error}")


def _complete(root: Path) -> dict[int, Manifest]:
    """Manifests of the steps that are there by name and size, by step."""
    found: dict[int, Manifest] = {}
    for step in manifest.steps(root):
        try:
            record = manifest.read(root, step)
        except CheckpointError:
            continue
        if not manifest.problems(root, record, hashes=False):
            found[step] = record
    return found


def _best(records: Mapping[int, Manifest]) -> int | None:
    """The step with the smallest finite score, the newest of equals."""
    scores = {s: r.score for s, r in records.items() if r.score is not None}
    finite = [s for s, score in scores.items() if math.isfinite(score)]
    return min(finite, key=lambda s: (scores[s], -s), default=None)
