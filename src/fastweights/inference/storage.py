"""States on disk: one .npz file, read by name, shape and dtype, with checksums, never unpickled."""

import dataclasses
import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastweights.errors import CheckpointError
from fastweights.inference.state import State, empty, over_rows
from fastweights.models.decoder import Decoder

FORMAT = "fastweights-state-4"
#: NumPy has no bfloat16: its bits are stored under a name that says so
BITS = ":bfloat16"
#: fields of a config that no state depends on
UNHEEDED = ("remat", "attention", "initializer_range", "max_length")


def save(model: Decoder, state: State, path: str | Path) -> None:
    """Write a state to a file, whole or not at all.

    Args:
        model: the one that has read it; the file will be refused to any other.
        state: what to write.
        path: of the file; an old one is replaced.

    Raises:
        CheckpointError: the file cannot be written, or it is a directory.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        raise CheckpointError(
            "a state is a file, this is a directory", where=path, next=f"{path / 'state.npz'}"
        )
    partial = path.with_name(path.name + ".partial")
    arrays = {"format": np.asarray(FORMAT), "model": np.asarray(fingerprint(model))}
    for name, x in named(state).items():
        x = np.asarray(x)
        coded = x.dtype == jnp.bfloat16
        arrays[name + BITS if coded else name] = x.view(np.uint16) if coded else x
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            "the state could not be saved", where=path, cause=str(error)
        ) from error


def load(model: Decoder, path: str | Path) -> State:
    """Read a state that `save` wrote.

    Args:
        model: the one that wrote it.
        path: of the file.

    Raises:
        CheckpointError: no such file, not a state, damaged, or of another model.
    """
    path = Path(os.path.expanduser(path))
    try:
        with zipfile.ZipFile(path) as names:
            members = [name.removesuffix(".npy") for name in names.namelist()]
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in members}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(
            "the state cannot be read",
            where=path,
            cause=f"there is no such file, or it is damaged ({error})",
        ) from error
    written = str(arrays.pop("format", ""))
    if written != FORMAT and written.rpartition("-")[0] == FORMAT.rpartition("-")[0]:
        raise CheckpointError(
            f"this state is laid out as {written}, not as {FORMAT}",
            where=path,
            cause="another version of fastweights wrote it",
            next="read the text again with prefill",
        )
    if written != FORMAT:
        raise CheckpointError(
            "this file is not a state", where=path, cause="it was not written by save()"
        )
    writer = str(arrays.pop("model", ""))
    for name in [name for name in arrays if name.endswith(BITS)]:
        arrays[name.removesuffix(BITS)] = arrays.pop(name).view(jnp.bfloat16)
    expected = _like(model, arrays, path)
    names = named(expected)
    _compare(names, arrays, path)
    if writer != fingerprint(model):
        raise CheckpointError(
            "this state was written by a model with other weights or another config",
            where=path,
            next="load it with that model, or read the text again with prefill",
        )
    leaves = [jnp.asarray(arrays[name]) for name in names]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def named(state: State) -> dict[str, Any]:
    """Arrays by name, in the order of the tree: "layers.0.mixer.k", "layers.1.mlp.weights", ..."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def fingerprint(model: Decoder) -> str:
    """Tells apart models of other weights, of which it looks at a sample, or of another config.

    Of the config, what changes nothing that is read or written is left out.
    """
    fields = [item for item in _changed(model.config) if item[0] not in UNHEEDED]
    digest = hashlib.sha256(repr(fields).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        flat = leaf.reshape(-1)
        some = np.asarray(flat[:: max(1, flat.size // 64)].astype(jnp.float32))
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode() + some.tobytes())
    return digest.hexdigest()


def _changed(options: Any) -> Any:
    """Fields with other values than their defaults, so that a new option keeps old states valid."""
    if isinstance(options, tuple):
        return [_changed(x) for x in options]
    if hasattr(options, "__qualname__"):  # a function, by a name that holds in every process
        return f"{options.__module__}.{options.__qualname__}"
    if not dataclasses.is_dataclass(options) or isinstance(options, type):
        return options
    values = [(field, getattr(options, field.name)) for field in dataclasses.fields(options)]
    changed = [(field.name, _changed(x)) for field, x in values if x != field.default]
    return [("type", type(options).__name__), *changed]


def _like(model: Decoder, arrays: dict[str, np.ndarray], path: str | Path) -> State:
    """The state a file must hold, as shapes; rows, room and shared entries are the file's own."""
    lengths, room = arrays.get("lengths"), arrays.get("room")
    if lengths is None or lengths.ndim != 1 or room is None or room.shape != () or room < 1:
        raise CheckpointError("the state has no lengths, or no room for tokens", where=path)
    rows = len(lengths)
    expected: State = jax.eval_shape(lambda: empty(model, rows, int(room)))

    def groups(keys: Any, x: Any) -> Any:
        name = jax.tree_util.keystr(keys, simple=True, separator=".")
        found = arrays.get(name)
        shared = found.shape[1] if found is not None and found.ndim == x.ndim else 1
        if shared < 1 or rows % shared:
            raise CheckpointError(
                f"{name} has {shared} entries, which {rows} rows cannot share", where=path
            )
        return jax.ShapeDtypeStruct((x.shape[0], shared, *x.shape[2:]), x.dtype)

    marked = expected._replace(layers=over_rows(expected, lambda x: x, _Shared))
    is_shared = lambda x: isinstance(x, _Shared)
    return jax.tree_util.tree_map_with_path(
        lambda keys, x: groups(keys, x.array) if is_shared(x) else x, marked, is_leaf=is_shared
    )


class _Shared:
    """A mark on an array that rows may share."""

    def __init__(self, array: Any):
        self.array = array


def _compare(expected: dict[str, Any], found: dict[str, np.ndarray], path: str | Path) -> None:
    for name in sorted({*expected} ^ {*found}):
        what = "lacks" if name in expected else "has a surplus"
        raise CheckpointError(
            f"the state {what} {name}", where=path, cause="it is of a model of another kind"
        )
    kind = lambda x: f"{x.dtype} {list(x.shape)}"
    for name in expected:
        if kind(expected[name]) != kind(found[name]):
            raise CheckpointError(
                f"{name} is {kind(found[name])}, this model's is {kind(expected[name])}",
                where=path,
                cause="it is of a model of another size or dtype",
            )
