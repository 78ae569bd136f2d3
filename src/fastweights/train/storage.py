"""A training state in a directory: a flat table of named arrays, written and read by Orbax.

A checkpoint outlives the Python classes that made it, so a state is stored as `{name: array}`,
where the name is the leaf's path in the pytree (`opt/0/mu/w`). A table of short descriptions
(`float32[4,8]`, `key<threefry2x32>[]`, `python int`) tells in words whether it fits another state,
before any array is read. This is the only module that knows Orbax.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from fastweights.errors import CheckpointError

TEMPORARY = ".orbax-checkpoint-tmp"
_STATE, _ITERATOR = "state", "iterator"
_PYTHON_SCALARS = (bool, int, float, complex)


def table(tree: Any) -> dict[str, str]:
    """`{name: description}` of every leaf; needs shapes and dtypes only.

    Raises:
        CheckpointError: if a leaf is not a number or an array of numbers, or if two leaves have one
            name, as in `{"a/b": x, "a": {"b": y}}`.
    """
    return {name: _describe(name, leaf) for name, leaf in _named(tree).items()}


def mismatch(stored: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    """The first leaf on which two tables differ, in words, and how many more do; None if equal."""
    names = sorted(stored.keys() | wanted.keys())
    different = [name for name in names if stored.get(name) != wanted.get(name)]
    if not different:
        return None
    here, there = (t.get(different[0], "missing") for t in (wanted, stored))
    more = f" ({len(different) - 1} more leaves differ)" if len(different) > 1 else ""
    return f"leaf {different[0]!r} is {there} in the checkpoint and {here} in this run{more}"


def iterator_file() -> str:
    """Where, relative to the directory of a step, this process keeps the state of its iterator."""
    return f"{_ITERATOR}/process_{jax.process_index()}-of-{jax.process_count()}.json"


def start_write(directory: Path, state: Any, iterator_state: Any = None) -> Callable[[], None]:
    """Begins to write; returns when everything is copied to the host and may change or be donated.

    Args:
        directory: absolute path that does not exist yet. The files are written beside it under
            a name with `TEMPORARY` in it, and renamed to it last.
        state: pytree of arrays and Python numbers.
        iterator_state: JSON data or bytes, of this process; None for no iterator.

    Returns:
        A function that waits until all processes have written; it raises what went wrong
        (`OSError`, `ValueError` or `RuntimeError`, with the file system's message).
    """
    items: dict[str, Any] = {_STATE: _to_store(state)}
    if iterator_state is not None:
        items[_ITERATOR] = _IteratorState(iterator_state)
    with _orbax():
        return ocp.save_checkpointables_async(str(directory), items).result


def read(directory: Path, abstract_state: Any, *, with_iterator: bool) -> tuple[Any, Any]:
    """The state in the likeness of `abstract_state`, and the iterator's state or None.

    The pytree type, dtypes, shardings and weak types are those of `abstract_state`. A leaf without
    a sharding, or an array never committed to a device, comes back uncommitted: a scalar tied to
    device 0 would make the next jitted step on a mesh fail.
    """
    wanted = _named(abstract_state)
    items: dict[str, Any] = {_STATE: _to_load(wanted)}
    if with_iterator:
        items[_ITERATOR] = _IteratorState()
    with _orbax():
        loaded = ocp.load_checkpointables(str(directory), items)
    leaves = []
    for name, leaf in wanted.items():
        empty = np.zeros(*_stored_type(leaf)) if name not in items[_STATE] else None
        leaves.append(_placed(loaded[_STATE][name] if empty is None else empty, leaf))
    state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
    return state, loaded[_ITERATOR].value if with_iterator else None


def _orbax() -> ocp.Context:
    """Settings for one read or write."""
    context = ocp.Context()
    # fp32 weights shrink by 8 % at three times the processor time
    context.array.saving.use_compression = False
    # files of this size can be hashed in parallel
    context.array.saving.ocdbt_target_data_file_size = 256 * 2**20
    # made in the background, a directory that cannot be made blocks the writer until a time-out
    context.asynchronous.create_directories_asynchronously = False
    logging.getLogger("absl").addFilter(_not_reported_twice)
    return context


def _not_reported_twice(record: logging.LogRecord) -> bool:
    """Orbax prints a traceback per thread of a failed write, and raises the error as well."""
    return "_SignalingThread.run() raised" not in str(record.msg)


class _IteratorState:
    """An iterator's state as an Orbax checkpointable: one small JSON file per process.

    Not Grain's own, so that any iterator with `get_state` and `set_state` can be saved, and its
    state is taken in one place and at one time with the arrays.
    """

    def __init__(self, value: Any = None):
        self.value = value

    async def save(self, directory: Any) -> Awaitable[None]:
        is_bytes = isinstance(self.value, bytes)
        # latin-1 maps every byte to one character and back
        content = {"bytes": self.value.decode("latin-1")} if is_bytes else {"json": self.value}
        text = json.dumps(content)

        async def write() -> None:
            path = Path(await directory.await_creation()) / Path(iterator_file()).name
            await asyncio.to_thread(path.write_text, text)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        path = Path(directory) / Path(iterator_file()).name

        async def load() -> None:
            content = json.loads(await asyncio.to_thread(path.read_text))
            self.value = (
                content["bytes"].encode("latin-1") if "bytes" in content else content["json"]
            )

        return load()


@dataclass(frozen=True)
class _HostTarget:
    """Shape and dtype with no sharding: Orbax loads such a leaf as a NumPy array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def _named(tree: Any) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "state"
        if name in leaves:
            raise CheckpointError(
                f"Two leaves of the state have the same name {name!r}.",
                where=jax.tree_util.keystr(path),
                cause="a dict key that holds '/', or a number written as a string",
                next="rename the key",
            )
        leaves[name] = leaf
    return leaves


def _to_store(tree: Any) -> dict[str, Any]:
    """The arrays to write: typed keys as their uint32 data, Python numbers as 64-bit NumPy scalars.

    Arrays without elements are left out: Orbax refuses them, and the table says all about them. In
    a run of several processes an array that lives on one process only is written by process 0, so
    it must be the same on all of them.
    """
    arrays: dict[str, Any] = {}
    for name, leaf in _named(tree).items():
        value = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        if np.size(value) == 0:
            continue
        local = jax.process_count() > 1 and getattr(value, "is_fully_addressable", True)
        arrays[name] = value if isinstance(value, jax.Array) and not local else np.asarray(value)
    if not arrays:
        raise CheckpointError("The state holds no numbers: there is nothing to save.")
    return arrays


def _to_load(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """What to ask Orbax for: sharded arrays where they will live, the rest on the host."""
    targets: dict[str, Any] = {}
    for name, leaf in leaves.items():
        shape, dtype = _stored_type(leaf)
        if 0 in shape:
            continue
        if _loads_on_host(leaf):
            targets[name] = _HostTarget(shape, dtype)
        else:
            targets[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=leaf.sharding)
    return targets


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


@lru_cache
def _key_type(shape: tuple[int, ...], dtype: Any) -> tuple[Any, tuple[int, ...], np.dtype]:
    """Implementation of a typed key, and shape and dtype of its data."""
    # an abstract key does not tell its implementation, a traced one does
    seen: list[Any] = []

    def data(key):
        seen.append(jax.random.key_impl(key))
        return jax.random.key_data(key)

    out = jax.eval_shape(data, jax.ShapeDtypeStruct(shape, dtype))
    return seen[0], out.shape, np.dtype(out.dtype)


def _stored_type(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    if _is_key(leaf):
        return _key_type(leaf.shape, leaf.dtype)[1:]
    if isinstance(leaf, _PYTHON_SCALARS) and not isinstance(leaf, np.generic):
        return (), np.asarray(leaf).dtype
    return tuple(leaf.shape), np.dtype(leaf.dtype)


def _describe(name: str, leaf: Any) -> str:
    # np.float64 is a float too, but comes back as what it is
    if isinstance(leaf, _PYTHON_SCALARS) and not isinstance(leaf, np.generic):
        if np.asarray(leaf).dtype != object:
            return f"python {type(leaf).__name__}"
    elif _is_key(leaf):
        dims = ",".join(map(str, leaf.shape))
        return f"key<{_key_type(leaf.shape, leaf.dtype)[0]}>[{dims}]"
    elif hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        # bfloat16 and its like are of kind V, so ask for the kinds that cannot be stored
        if np.dtype(leaf.dtype).kind not in "OSUMm":
            return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
    raise CheckpointError(
        f"Leaf {name!r} of the state cannot be stored: it is a {type(leaf).__name__}.",
        cause="a leaf that is neither an array of numbers nor a Python number of 64 bits",
        next="keep such data out of the state, or pass it to save() as `extra`",
    )


def _is_weak_scalar(leaf: Any) -> bool:
    return bool(getattr(leaf, "weak_type", False)) and leaf.shape == ()


def _is_committed(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array):
        return leaf.committed
    return getattr(leaf, "sharding", None) is not None


def _loads_on_host(leaf: Any) -> bool:
    if not _is_committed(leaf) or _is_weak_scalar(leaf):
        return True
    return jax.process_count() > 1 and leaf.sharding.is_fully_addressable


def _placed(value: Any, leaf: Any) -> Any:
    """`value` as loaded (`np.ndarray` or `jax.Array`) in the likeness of `leaf`."""
    if isinstance(leaf, np.ndarray):
        return value
    if isinstance(leaf, np.generic):
        return value[()]
    if isinstance(leaf, _PYTHON_SCALARS):
        return value.item()
    if not isinstance(value, jax.Array):
        # only a Python number makes a weakly typed array; float32 -> float -> float32 is exact
        host = value.item() if _is_weak_scalar(leaf) else value
        value = jax.device_put(host, leaf.sharding) if _is_committed(leaf) else jnp.asarray(host)
    if _is_key(leaf):
        return jax.random.wrap_key_data(value, impl=_key_type(leaf.shape, leaf.dtype)[0])
    return value
