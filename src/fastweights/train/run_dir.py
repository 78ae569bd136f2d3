"""A run's directory: what is in it, and whether a config may go on with it."""

import contextlib
import datetime
import fcntl
import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import fastweights
from fastweights.errors import CheckpointError, ConfigError
from fastweights.train import manifest, processes
from fastweights.train.config import FREE_TO_CHANGE, Config, Train, differences, from_json, to_json

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
#: held by the process that trains in a directory
LOCK = ".lock"
ANOTHER = "give another --run-dir"


def versions() -> dict[str, Any]:
    """Packages, Python, platform and devices: what a run's numbers depend on beside its config."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [d.device_kind for d in jax.devices()],
        "fastweights": fastweights.__version__,  # also of a source tree that is not installed
        **{name: metadata.version(name) for name in PACKAGES},
        "git": _git_revision(),
    }


def _git_revision() -> str | None:
    """The commit of the checkout this code runs from, if it is one.

    An installed package may lie inside somebody else's repository, which does not know this file.
    """
    file = Path(__file__)
    git = ["git", "-C", str(file.parent)]
    try:
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        run([*git, "ls-files", "--error-unmatch", file.name])
        return run([*git, "describe", "--always", "--dirty"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def open_run(
    path: Path, config: Any, changeable: Callable[[str], bool] = lambda name: False
) -> Path:
    """Make a run directory for a config (a dataclass), or check that an old one belongs to it.

    Nothing in it is changed: `record_start` writes the config, when the start is known to go well.
    A directory in which nothing was trained yet takes any config.

    `changeable` says of more fields, by their path, whether a resume may change them.

    Raises:
        ConfigError: the directory holds a run of another config, the difference is shown; or
            something else, or is none.
        CheckpointError: the directory cannot be made.
    """
    file = path / "config.json"
    if path.exists() and not path.is_dir():
        raise ConfigError("this is a file, not a directory", where=path, next=ANOTHER)
    old = load_json(file) if file.exists() else None
    if old is None:
        foreign = path.exists() and any(not _is_ours(name.name) for name in path.iterdir())
    else:
        foreign = not (isinstance(old, dict) and "type" in old)
    if foreign:
        raise ConfigError(
            "this directory is not empty and not a run of fastweights", where=path, next=ANOTHER
        )
    if old is not None and not _never_trained(path):
        _check_same(path, old, config, changeable)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def _check_same(path: Path, old: Any, config: Any, changeable: Callable[[str], bool]) -> None:
    """Check that the run of the config `old`, JSON data, can be gone on with as `config`.

    Raises:
        ConfigError: it cannot.
    """
    if old["type"] == type(config).__name__:
        # a field that the run's version did not have yet: the run did what is now its default
        old = to_json(from_json(old, type(config), str(path / "config.json")))
    free = (*FREE_TO_CHANGE, *(f"config.{name}" for name in FREE_TO_CHANGE))
    refused = {
        name: values
        for name, values in differences(old, to_json(config)).items()
        if name not in free and not changeable(name)
    }
    if refused:
        raise ConfigError(
            "this directory holds a run of another config:"
            + "".join(
                f"\n  - {k}: the run has {a}, asked for {b}" for k, (a, b) in refused.items()
            ),
            where=path,
            cause="a new experiment in the directory of an old one",
            next="give another --run-dir, or the run's own values to go on with it",
        )


def _is_ours(name: str) -> bool:
    """Whether a start that failed before it wrote a config may have left a file of this name."""
    return name == LOCK or (name.startswith("config.json.") and name.endswith(".tmp"))


def _never_trained(path: Path) -> bool:
    """Whether a run was started in a directory and stopped before it had anything to lose."""
    metrics = path / "metrics.jsonl"
    return (
        (path / "starts.jsonl").exists()
        and not (metrics.exists() and metrics.stat().st_size)
        and not manifest.steps(path / "checkpoints")
    )


def record_start(path: Path, config: Any) -> None:
    """Write the config of a run that begins or goes on, and append versions to `starts.jsonl`.

    To be called when nothing can refuse the start any more: a config that was refused must not
    take the place of the run's own. Of several processes the first one writes.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    if not processes.is_first():
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with writing(path):
        write_text(path / "config.json", json.dumps(to_json(config), indent=2) + "\n")
        with (path / "starts.jsonl").open("a") as starts:
            starts.write(json.dumps({"date": now, "argv": sys.argv, **versions()}) + "\n")


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Have a run directory for this process alone; a process that ends loses it, however it ends.

    The first of several processes of one run has it for all of them. On a file system without
    locks nothing is kept.

    Raises:
        ConfigError: another process has it.
        CheckpointError: the directory cannot be written.
    """
    with contextlib.ExitStack() as held:
        processes.first_alone(lambda: _take(path, held))
        try:
            yield
        except BaseException:
            if processes.is_first() and not (path / "config.json").exists():
                # the start was refused: the next one finds the directory as it was
                (path / LOCK).unlink(missing_ok=True)
            raise


def _take(path: Path, held: contextlib.ExitStack) -> None:
    """Take the lock of a directory, to be let go when `held` closes."""
    with writing(path):
        file = held.enter_context((path / LOCK).open("a+"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise ConfigError(
            "another process is at work in this run directory",
            where=path,
            cause=file.read().strip() or None,
            next="wait for it or stop it, or give another --run-dir",
        ) from error
    except OSError:
        pass
    with writing(path):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()


def check_rhythm(start: int, plan: Train, path: Path) -> None:
    """A run whose calls are `train.log_every` updates goes on only from where one of them ends.

    Raises:
        ConfigError: it stopped elsewhere.
    """
    if start % plan.log_every:
        raise ConfigError(
            f"the run stopped at update {start}, no multiple of train.log_every, {plan.log_every}",
            where=path,
            cause="train.log_every was changed, or a number was not finite",
            next="the run's own --train.log-every, or a new --run-dir",
        )


def load_config(path: Path) -> Config:
    """The config of the run in a directory.

    Raises:
        ConfigError: there is no run there, or its config is of another version.
    """
    file = path / "config.json"
    if not file.exists():
        raise ConfigError(
            "there is no run in this directory",
            where=path,
            cause="a wrong --run-dir, or a run that never started",
            next="fastweights train CONFIG --run-dir DIR makes one",
        )
    data = load_json(file)
    if isinstance(data, dict) and data.get("type") == "Nets":
        raise ConfigError(
            "this run is of several nets at once, a part of a table",
            where=path,
            next="their scores are in table.json and cells/ of the table's own directory",
        )
    return from_json(data, where=str(file))


def load_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ConfigError: it is not JSON.
    """
    try:
        return json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"this file is not JSON: {error}",
            where=file,
            cause="it was cut off or edited",
            next="restore it from a copy; checkpoints beside it are not affected",
        ) from error


def write_text(file: Path, text: str) -> None:
    """Replace a file's content in one step, so that a kill or a full disk leaves the old one.

    Processes may do so at the same time: each has a draft of its own, and the last one wins.
    """
    draft = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into the error for a run directory.

    Raises:
        CheckpointError: an `OSError` was raised.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> CheckpointError:
    """The error for a run directory that does not take what is written to it."""
    return CheckpointError(
        f"cannot write to the run directory: {error.strerror}",
        where=path,
        cause="a full disk, a read-only folder, or one of another user",
        next="make room or give another --run-dir; what is saved there already is not affected",
    )
