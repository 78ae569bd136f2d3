"""`fastweights ckpt`: what is saved in a run directory, and whether it is still what was saved."""

from pathlib import Path

from fastweights.errors import CheckpointError, ConfigError
from fastweights.train import manifest
from fastweights.train.checkpoint import Checkpoints, StepInfo


def open_checkpoints(run_dir: Path) -> tuple[Checkpoints, list[StepInfo]]:
    """The checkpoints of a run, given its directory or that of the checkpoints.

    Raises:
        ConfigError: there are none.
    """
    inner = run_dir / "checkpoints"
    checkpoints = Checkpoints(inner if inner.is_dir() else run_dir)
    infos = checkpoints.infos() if run_dir.is_dir() else []
    if not infos:
        raise nothing_there(run_dir)
    return checkpoints, infos


def nothing_there(run_dir: Path) -> ConfigError:
    """The error for a directory without checkpoints."""
    return ConfigError(
        "there are no checkpoints here",
        where=run_dir,
        cause="not the directory of a run, or a run that has saved nothing yet",
    )


def list_checkpoints(run_dir: Path) -> None:
    """Print a line per step: date, size, validation score, if it is complete, which is best."""
    checkpoints, infos = open_checkpoints(run_dir)
    with checkpoints:
        print(f"{'step':>10}  {'date':<25}  {'MB':>8}  {'score':>10}")
        for info in infos:
            score = "-" if info.score is None else f"{info.score:.4g}"
            marks = "".join([" best" * info.best, " INCOMPLETE" * (not info.complete)])
            size = info.size / 1e6
            print(f"{info.step:>10}  {info.date or '-':<25}  {size:>8.2f}  {score:>10} {marks}")


def verify_checkpoints(run_dir: Path) -> None:
    """Print a line per step; every file is hashed and compared with its manifest.

    A step without a manifest is no checkpoint: its save is under way, or was cut short.

    Raises:
        ConfigError: there are no checkpoints.
        CheckpointError: a step is damaged.
    """
    checkpoints, infos = open_checkpoints(run_dir)
    bad, unfinished = [], []
    with checkpoints:
        for info in infos:
            problems = checkpoints.verify(info.step)
            # looked for last: a run that is at work may have removed the step meanwhile
            if not manifest.path_of(checkpoints.directory, info.step).exists():
                unfinished.append(info.step)
                print(f"step {info.step}: unfinished, no checkpoint yet")
                continue
            print(f"step {info.step}: {'; '.join(problems) or 'ok'}")
            bad += [info.step] if problems else []
    if len(unfinished) == len(infos):
        raise nothing_there(run_dir)
    if bad:
        raise CheckpointError(
            f"{len(bad)} of {len(infos) - len(unfinished)} checkpoints are damaged: steps "
            + ", ".join(map(str, bad)),
            where=run_dir,
            cause="a bad disk, an incomplete copy, or an edit",
            next="training goes on from the newest good step by itself; only a fresh copy of the "
            "run brings these back",
        )
