"""A Decoder to a directory in Hugging Face layout, a file at a time."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fastweights.errors import CheckpointError, ConfigError
from fastweights.hf import names
from fastweights.hf.config import read_json, write_config
from fastweights.hf.files import INDEX, SINGLE, directory, refuse_link_out
from fastweights.hf.names import Array
from fastweights.hf.tensors import safetensors
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_mesh import path_name

#: what `like` lends besides its config
COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
)


def save(
    model: Decoder,
    path: str | Path,
    like: str | Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a decoder as config.json and safetensors files; `load` reads back the same bits.

    Everything is written beside `path` and renamed last: a save that was cut short leaves nothing
    under that name.

    Args:
        model: the decoder; its arrays must be addressable from this process.
        path: a directory that does not exist yet, or is empty.
        like: a directory; its tokenizer files are copied and its other config keys are kept.
        max_shard_bytes: no file grows beyond this, unless by a single tensor.

    Raises:
        CheckpointError: `path` holds something, or cannot be written.
        ConfigError: safetensors is not installed, or arrays are spread over other processes, or
            the decoder is unstacked.
    """
    if len(model.blocks) != model.config.period:
        raise ConfigError(
            "an unstacked decoder cannot be saved",
            where="model",
            next="save the stacked decoder that it was made from",
        )
    package = safetensors()
    target, source = Path(path).expanduser(), None if like is None else directory(like)
    refuse_to_overwrite(target)
    config = write_config(model.config, source and read_json(source / "config.json"))
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        _weights(package, model, temporary, max_shard_bytes)
        _dump(temporary / "config.json", config)
        if source is not None:
            copy_tokenizer(source, temporary)
        _open_up(temporary)
        temporary.rename(target)
    except OSError as error:
        raise CheckpointError(
            f"the model could not be written: {error}",
            where=target,
            cause="the disk is full or not writable, or another process writes there",
            next="make room, or give another path",
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the files of `COPIED` that a directory has, none from outside of it."""

    def copy(file: str | Path, to: str | Path) -> None:
        refuse_link_out(source, Path(file))
        # what a link leads to: the Hugging Face cache is made of links
        shutil.copyfile(file, to)

    for file in [file for kind in COPIED for file in source.glob(kind)]:
        if file.is_dir():
            shutil.copytree(file, folder / file.name, copy_function=copy)
        else:
            copy(file, folder / file.name)


def refuse_to_overwrite(target: Path) -> None:
    """Refuse a place that holds something.

    Raises:
        CheckpointError: it does.
    """
    if target.is_symlink() or target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise CheckpointError(
            f"{target} is there already and is never overwritten",
            where=target,
            next="give another path, or remove it first",
        )


def _weights(package: Any, model: Decoder, folder: Path, limit: int) -> None:
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    ours = {path_name(keys): leaf for keys, leaf in leaves}
    table = names.arrays(model.config, ours.__contains__)
    assert {array.path for array in table} == ours.keys()
    _refuse_distant(ours)
    parts = {
        name: (ours[array.path], turn, array)
        for array in table
        for turn, name in enumerate(array.tensors)
    }
    sizes = {name: x.nbytes // len(array.tensors) for name, (x, _, array) in parts.items()}
    groups = list(_groups(sizes, limit))
    index: dict[str, str] = {}
    for i, group in enumerate(groups, 1):
        file = SINGLE if len(groups) == 1 else f"model-{i:05}-of-{len(groups):05}.safetensors"
        tensors = {name: _tensor(*parts[name]) for name in group}
        package.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})
        _flush(folder / file)
        index |= dict.fromkeys(group, file)
    if len(groups) > 1:
        total = {"total_size": sum(sizes.values())}
        _dump(folder / INDEX, {"metadata": total, "weight_map": dict(sorted(index.items()))})


def _groups(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Tensors in the order of the network, cut where a file would grow beyond the limit."""
    group, size = [], 0
    for name in sorted(sizes, key=names.in_order):
        if group and size + sizes[name] > limit:
            yield group
            group, size = [], 0
        group.append(name)
        size += sizes[name]
    yield group


def _tensor(x: jax.Array, turn: int, array: Array) -> np.ndarray:
    """A tensor as the checkpoint has it, on the host."""
    mine = np.asarray(x[turn] if array.stacked else x)
    return np.ascontiguousarray(names.to_theirs(mine, array.layout))


def _refuse_distant(ours: dict[str, Any]) -> None:
    distant = [path for path, x in ours.items() if not x.is_fully_addressable]
    if distant:
        raise ConfigError(
            f"the array {distant[0]} lies partly in other processes",
            where="save",
            cause="the model is sharded over several hosts",
            next="restore the run's checkpoint on one host and save it from there",
        )


def _open_up(folder: Path) -> None:
    """Give the modes that new files have: what makes temporary files makes them for one user."""
    umask = os.umask(0)
    os.umask(umask)
    for file in (folder, *folder.rglob("*")):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)


def _dump(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _flush(file)


def _flush(file: Path) -> None:
    """Wait until a file is on the disk, so that the rename never comes before its contents."""
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
