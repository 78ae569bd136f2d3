"""A run's directory: what is in it, and whether a config may go on with it."""

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from fastweights.errors import CheckpointError, ConfigError
from fastweights.train.config import FREE_TO_CHANGE, Config, differences, from_json, to_json

PACKAGES = ("fastweights", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, Any]:
    """Packages, Python, platform and devices: what a run's numbers depend on beside its config."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [d.device_kind for d in jax.devices()],
        **{name: metadata.version(name) for name in PACKAGES},
        "git": _git_revision(),
    }


def _git_revision() -> str | None:
    """The commit of the checkout this code runs from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def open_run(
    path: Path, config: Any, changeable: Callable[[str], bool] = lambda name: False
) -> Path:
    """Make a run directory for a config (a dataclass), or check that an old one belongs to it.

    `changeable` says of more fields, by their path, whether a resume may change them.

    The config is written once, at the start; what a resume may change (lengths and rhythms) is
    updated. Every start appends its versions to `starts.jsonl`.

    Raises:
        ConfigError: the directory holds a run of another config; the difference is shown.
        CheckpointError: the directory cannot be made or written.
    """
    file = path / "config.json"
    new = to_json(config)
    if file.exists():
        old = load_json(file)
        if old.get("type") == type(config).__name__:
            # a field that the run's version did not have yet: the run did what is now its default
            old = to_json(from_json(old, type(config), str(file)))
        changed = differences(old, new)
        free = (*FREE_TO_CHANGE, *(f"config.{name}" for name in FREE_TO_CHANGE))
        refused = {k: v for k, v in changed.items() if k not in free and not changeable(k)}
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
    elif path.exists() and any(path.iterdir()):
        raise ConfigError(
            "this directory is not empty and not a run of fastweights",
            where=path,
            next="give another --run-dir",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(new, indent=2) + "\n")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with (path / "starts.jsonl").open("a") as starts:
            starts.write(json.dumps({"date": now, "argv": sys.argv, **versions()}) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


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
    return from_json(load_json(file), where=str(file))


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
    """Replace a file's content in one step, so that a kill or a full disk leaves the old one."""
    draft = file.with_name(file.name + ".tmp")
    with draft.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, file)


def cannot_write(path: Path, error: OSError) -> CheckpointError:
    """The error for a run directory that does not take what is written to it."""
    return CheckpointError(
        f"cannot write to the run directory: {error.strerror}",
        where=path,
        cause="a full disk, a read-only folder, or one of another user",
        next="make room or give another --run-dir; what is saved there already is not affected",
    )
