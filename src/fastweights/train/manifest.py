"""What one checkpoint consists of, sealed: every file with its size and SHA-256.

The array store under a checkpoint does not notice a flipped bit, so a step counts only if its
manifest is there, is itself unaltered, and describes exactly the files that are there. The manifest
is also the commit record: it names the directory of the step, it appears by one atomic rename after
all files are on the disk, and a step without one does not exist.

    00000100.json          manifest of step 100
    00000100/              its files (00000100.1/ and so on if an older try still holds the name)
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastweights.errors import CheckpointError

FORMAT = 1
_TEMPORARY = ".json.tmp"
_NAME = re.compile(r"(\d{8,})\.json")
_DIRECTORY = re.compile(r"(\d{8,})(\.\d+)?")


class FileSeal(NamedTuple):
    """Size in bytes and SHA-256 (hex) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The record of one saved step.

    Attributes:
        step: the training step.
        directory: name of the directory with the files, beside the manifest.
        date: when it was saved, ISO 8601, UTC.
        score: the number by which the best step is chosen (smaller is better), if any.
        extra: the caller's JSON data.
        leaves: name and description of every leaf of the state, see `leaves.table`.
        files: path relative to `directory` (with `/`), size and SHA-256 of every file.
    """

    step: int
    directory: str
    date: str
    score: float | None
    extra: Any
    leaves: Mapping[str, str]
    files: Mapping[str, FileSeal]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


def path_of(root: Path, step: int) -> Path:
    """Where the manifest of `step` is, or would be."""
    return root / f"{step:08d}.json"


def names(root: Path) -> list[str]:
    """What is in `root`, sorted; nothing if it does not exist.

    Raises:
        CheckpointError: if it cannot be listed.
    """
    try:
        return sorted(os.listdir(root))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(
            "The checkpoint directory cannot be read.",
            where=root,
            cause=error.strerror,
            next="check its owner and its permissions",
        ) from error


def steps(root: Path) -> list[int]:
    """The steps that have a manifest, good or bad, oldest first; empty if `root` does not exist."""
    return sorted(int(match[1]) for name in names(root) if (match := _NAME.fullmatch(name)))


def directory_name(step: int, suffix: int) -> str:
    """Name of the directory for the files of `step`; a suffix other than 0 is appended."""
    return f"{step:08d}" + (f".{suffix}" if suffix else "")


def step_of_directory(name: str) -> int | None:
    """The step whose files a directory of this name would hold; None for any other name."""
    match = _DIRECTORY.fullmatch(name)
    return int(match[1]) if match else None


def is_temporary(name: str) -> bool:
    """Whether a file of this name is a manifest whose writing was cut short."""
    return name.endswith(_TEMPORARY) and name.removesuffix(_TEMPORARY).isdigit()


def seal(directory: Path) -> dict[str, FileSeal]:
    """Flushes every file below `directory` to the disk and takes its size and SHA-256.

    Files are handled in parallel threads: hashing and fsync both release the interpreter lock.
    """
    files = _walk(directory)
    result = dict(
        zip(files, _parallel(lambda f: _hash(directory / f, sync=True), files), strict=True)
    )
    for folder, _, _ in os.walk(directory):
        _sync_directory(folder)
    return result


def write(root: Path, manifest: Manifest) -> None:
    """Commits a step: temporary file, fsync, atomic rename over any older manifest, fsync."""
    _sync_directory(root)  # the directory of the step must not be lost while its manifest is kept
    temporary = root / f"{manifest.step:08d}{_TEMPORARY}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(_sealed(vars(manifest)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path_of(root, manifest.step))
    _sync_directory(root)


def read(root: Path, step: int) -> Manifest:
    """The manifest of `step`.

    Raises:
        CheckpointError: if it is missing, not JSON, altered since it was written, of another step,
            or of a format this version does not know. `what` says which.
    """
    path = path_of(root, step)
    try:
        text = path.read_bytes().decode("utf-8")
        content = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"{path.name}: missing", where=path) from None
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read: {error}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: is not JSON (damaged)", where=path) from error
    # comparing the whole text also finds changes that JSON parsing forgives, such as white space
    if not isinstance(content, dict) or text != _sealed(content):
        raise CheckpointError(f"{path.name}: altered since it was written", where=path)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path.name}: has format {content.get('format')}, this version reads {FORMAT}",
            where=path,
        )
    try:
        manifest = Manifest(
            files={name: FileSeal(*seal) for name, seal in content["files"].items()},
            **{name: content[name] for name in Manifest.__dataclass_fields__ if name != "files"},
        )
        owner = step_of_directory(manifest.directory)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path.name}: is no checkpoint manifest", where=path) from error
    if manifest.step != step or owner != step:
        raise CheckpointError(f"{path.name}: belongs to step {manifest.step}", where=path)
    return manifest


def problems(root: Path, manifest: Manifest, *, hashes: bool = True) -> list[str]:
    """What is wrong with the files of a step, one sentence each; empty if nothing is.

    Args:
        root: the directory of the checkpoints.
        manifest: of the step to check.
        hashes: whether to read every file and compare SHA-256, or to compare names and sizes only.
    """
    directory = root / manifest.directory
    if not directory.is_dir():
        return [f"{manifest.directory}/: missing"]
    present = set(_walk(directory))
    expected = manifest.files
    found = [f"{f}: missing" for f in expected if f not in present]
    found += [f"{f}: not in the manifest" for f in sorted(present) if f not in expected]
    common = sorted(present & expected.keys())
    checks = _parallel(lambda f: _file_problem(directory / f, expected[f], hashes), common)
    found += [f"{f}: {problem}" for f, problem in zip(common, checks, strict=True) if problem]
    return [f"{manifest.directory}/{problem}" for problem in found]


def _sealed(content: Mapping[str, Any]) -> str:
    """JSON text of `content` with the SHA-256 of all the rest as its last field."""
    body = {"format": FORMAT} | {k: v for k, v in content.items() if k != "sha256"}
    digest = hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest}, indent=1) + "\n"


def _file_problem(path: Path, expected: FileSeal, hashes: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected.size:
            return f"{size} bytes, expected {expected.size}"
        if hashes and _hash(path) != expected:
            return "altered since it was written (SHA-256 differs)"
    except OSError as error:
        return f"cannot be read: {error}"
    return None


def _walk(directory: Path) -> list[str]:
    """Paths of all files below `directory`, relative to it, with `/`, sorted."""
    return sorted(
        (Path(folder) / name).relative_to(directory).as_posix()
        for folder, _, names in os.walk(directory)
        for name in names
    )


def _hash(path: Path, *, sync: bool = False) -> FileSeal:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileSeal(file.tell(), digest)


def _parallel(function, items: list[str]) -> list[Any]:
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(len(items), os.cpu_count() or 1, 16)) as pool:
        return list(pool.map(function, items))


def _sync_directory(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
