"""The tensors of a directory of safetensors files, read one by one as they are asked for."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fastweights.errors import CheckpointError, ConfigError, install_extra
from fastweights.hf.files import INDEX, shards

#: what weights may be stored as; integers and 8-bit floats are quantised, with scales elsewhere
DTYPES = ("F32", "F16", "BF16", "F64")


def safetensors() -> ModuleType:
    """The package that reads and writes the files.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ml_dtypes  # noqa: F401  NumPy has no bfloat16 of its own
        import safetensors.numpy
    except ImportError as error:
        raise ConfigError(
            f"Hugging Face checkpoints need a package that is not there: {error.name}",
            where="fastweights.hf",
            next=install_extra("hf"),
        ) from None
    return safetensors


class Tensors:
    """The tensors of a directory; a context manager, which closes the files.

    Nothing but headers is read before a tensor is asked for, and no tensor is kept.

    Args:
        folder: the directory.

    Raises:
        CheckpointError: see `shards`; or a file is damaged, holds a tensor that another holds too,
            or lacks one that the index says it has.
        ConfigError: safetensors is not installed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        package = safetensors()
        self._errors = (package.SafetensorError, OSError, ValueError)
        self._stack = contextlib.ExitStack()
        #: the open file, and its path, of every tensor
        self._at: dict[str, tuple[Any, Path]] = {}
        files, index = shards(folder)
        try:
            for file in files:
                self._open(package, file)
            self._compare(index)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> "Tensors":
        return self

    def __exit__(self, *_: object) -> None:
        self._at.clear()
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._at

    def __iter__(self):
        return iter(self._at)

    def file(self, name: str) -> Path:
        """Where a tensor is."""
        return self._at[name][1]

    def expect(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Check that these tensors are there, in these shapes, as floating point numbers.

        Raises:
            CheckpointError: at the first that is not.
        """
        absent = [name for name in shapes if name not in self._at]
        if absent:
            raise CheckpointError(
                f"the tensor {absent[0]} is missing{_more(absent)}",
                where=self.folder,
                cause="config.json describes another model, or the index is not whole",
                next=_next_for_missing(absent[0]),
            )
        for name, shape in shapes.items():
            handle, file = self._at[name]
            there = handle.get_slice(name)
            if tuple(there.get_shape()) != shape:
                raise CheckpointError(
                    f"the tensor {name} has shape {list(there.get_shape())}; config.json asks for "
                    f"{list(shape)}",
                    where=f"{file}: {name}",
                    cause="the weights and config.json are of different models",
                    next="download both again from one revision",
                )
            if there.get_dtype() not in DTYPES:
                raise CheckpointError(
                    f"the tensor {name} has dtype {there.get_dtype()}; weights must be one of "
                    f"{', '.join(DTYPES)}",
                    where=f"{file}: {name}",
                    cause="the checkpoint is quantised",
                    next="download the unquantised one",
                )

    def refuse_surplus(self, known: Iterable[str]) -> None:
        """Check that there is no other tensor than these.

        Raises:
            CheckpointError: naming one that there is.
        """
        surplus = sorted(set(self._at) - set(known))
        if not surplus:
            return
        name = surplus[0]
        raise CheckpointError(
            f"the tensor {name} has no place in the model that config.json describes"
            f"{_more(surplus)}",
            where=f"{self.file(name)}: {name}",
            cause="config.json is of another model, or its options do not fit the weights",
            next=_next_for_surplus(name),
        )

    def read(self, name: str) -> np.ndarray:
        """A tensor, as it is stored.

        Raises:
            CheckpointError: the file cannot be read.
        """
        handle, file = self._at[name]
        try:
            return handle.get_tensor(name)
        except self._errors as error:
            raise _damaged(file, error, name) from None

    def _open(self, package: ModuleType, file: Path) -> None:
        try:
            handle = self._stack.enter_context(package.safe_open(file, framework="np"))
            names = list(handle.keys())
        except self._errors as error:
            raise _damaged(file, error) from None
        for name in names:
            if name in self._at:
                raise CheckpointError(
                    f"the tensor {name} is in two files",
                    where=f"{self.file(name)} and {file}",
                    cause="files of two downloads or two saves are mixed",
                    next="download the checkpoint again into an empty directory",
                )
            self._at[name] = (handle, file)

    def _compare(self, index: dict[str, str]) -> None:
        for name, file in index.items():
            if name not in self._at or self.file(name).name != file:
                raise CheckpointError(
                    f"the tensor {name} is missing from {file}, where the index says it is",
                    where=f"{self.folder / file}: {name}",
                    cause="the index and the files are of different revisions",
                    next=f"download {INDEX} and {file} again from one revision",
                )


def _damaged(file: Path, error: Exception, name: str | None = None) -> CheckpointError:
    what = file.name if name is None else f"the tensor {name}"
    return CheckpointError(
        f"{what} cannot be read: {error}",
        where=file,
        cause="the download was cut short, or the file is a Git LFS pointer"
        if file.stat().st_size < 1024
        else "the download was cut short, or the disk is damaged",
        next=f"download {file.name} again and compare its SHA-256 with the one published",
    )


def _more(names: list[str]) -> str:
    return f" ({len(names) - 1} more are too)" if len(names) > 1 else ""


def _next_for_missing(name: str) -> str:
    if ".mlp.ttt_" in name:
        return "to start these layers fresh: load(path, ttt=InPlaceTTT(...))"
    if name == "lm_head.weight":
        return 'set "tie_word_embeddings": true in config.json if the head is the embedding'
    return "download config.json, the index and every shard again from one revision"


def _next_for_surplus(name: str) -> str:
    if ".mlp.ttt_" in name:
        return (
            "name its layer and switch on its option (ttt_mode, ttt_layers, ttt_proj in "
            "config.json or ttt=InPlaceTTT(...)), or leave these tensors out: load(path, ttt=False)"
        )
    return "download config.json and the weights again from one revision"
