"""A directory in Hugging Face layout to a Decoder, an array at a time."""

from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from fastweights.errors import CheckpointError, ConfigError
from fastweights.hf import names
from fastweights.hf.config import read_config, read_json
from fastweights.hf.files import directory
from fastweights.hf.names import Array
from fastweights.hf.tensors import Tensors
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT
from fastweights.models.decoder_mesh import check_mesh, partition, path_name
from fastweights.nn.in_place import InPlaceMLP


def load(
    path: str | Path,
    dtype: Literal["float32", "bfloat16"] = "float32",
    mesh: jax.sharding.Mesh | None = None,
    ttt: InPlaceTTT | Literal[False] | None = None,
) -> Decoder:
    """The decoder in a directory: config.json and safetensors files of a Qwen3 or Llama model.

    Arrays are read, stacked and put on their devices one at a time, so that the host never holds
    more than one beyond what the devices hold.

    Args:
        path: the directory.
        dtype: of the weights and the computation, whatever the files hold.
        mesh: where the weights go, split over its axes `fsdp` and `tensor`, if it has them, as
            `fastweights.models.decoder_mesh` says. None is the default device.
        ttt: test-time training. None is what config.json says; False switches it off and leaves
            its tensors out; an `InPlaceTTT` is used instead of what config.json says, and layers
            whose tensors are not in the checkpoint start fresh. With the convolution, which starts
            at 0, the logits are those of the base model until it is trained.

    Raises:
        ConfigError: config.json is of a model that we do not build, or that the mesh cannot split.
        CheckpointError: files or tensors are missing, damaged, surplus, of another shape or
            dtype, or not safetensors.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(
            f"dtype is {dtype!r}",
            where="load(dtype=...)",
            next='write dtype="float32" or dtype="bfloat16"',
        )
    if not (ttt is None or ttt is False or isinstance(ttt, InPlaceTTT)):
        raise ConfigError(
            f"ttt is {ttt!r}",
            where="load(ttt=...)",
            next="write ttt=InPlaceTTT(...), ttt=False, or None for what config.json says",
        )
    folder = directory(path)
    config = read_config(read_json(folder / "config.json"), dtype, ttt)
    if mesh is not None:
        check_mesh(config, mesh.shape.get("tensor", 1))
    ours, arrays, structure = _arrays(config)
    with Tensors(folder) as tensors:
        fresh = _check(tensors, config, arrays, ours, ttt)
        made = [
            _put(name, _stack(tensors, arrays[name], leaf, config, fresh), mesh)
            for name, leaf in ours.items()
        ]
    return cast(Decoder, jax.tree.unflatten(structure, made))


def inspect(path: str | Path, ttt: InPlaceTTT | Literal[False] | None = None) -> DecoderConfig:
    """What `load` would make of a directory, every tensor checked by name, shape and dtype.

    Only config.json and the headers of the files are read, unless a head beside a tied embedding
    has to be compared with it. Arguments and errors are those of `load`.
    """
    folder = directory(path)
    config = read_config(read_json(folder / "config.json"), ttt=ttt)
    ours, arrays, _ = _arrays(config)
    with Tensors(folder) as tensors:
        _check(tensors, config, arrays, ours, ttt)
    return config


def _arrays(config: DecoderConfig) -> tuple[dict[str, Any], dict[str, Array], Any]:
    """Arrays of a decoder by path, as shapes and as tensors they are made of; their tree."""
    shapes = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    ours = {path_name(keys): leaf for keys, leaf in leaves}
    arrays = {array.path: array for array in names.arrays(config, ours.__contains__)}
    assert arrays.keys() == ours.keys(), arrays.keys() ^ ours.keys()
    return ours, arrays, structure


def _check(
    tensors: Tensors,
    config: DecoderConfig,
    arrays: dict[str, Array],
    ours: dict[str, Any],
    ttt: InPlaceTTT | Literal[False] | None,
) -> set[str]:
    """Refuse what does not fit; the tensors that are not there and start fresh."""
    shapes = {
        name: names.theirs(ours[path].shape[1 if array.stacked else 0 :], array.layout)
        for path, array in arrays.items()
        for name in array.tensors
    }
    absent = {name for name in shapes if names.is_ttt(name) and name not in tensors}
    fresh = absent if isinstance(ttt, InPlaceTTT) else set()
    tensors.expect({name: shape for name, shape in shapes.items() if name not in fresh})
    ignored = {name for name in tensors if name.endswith(names.IGNORED)}
    if ttt is False:
        ignored |= {name for name in tensors if names.is_ttt(name)}
    if config.tie_embeddings and names.HEAD in tensors:
        _same_head(tensors, shapes[names.EMBEDDING])
        ignored.add(names.HEAD)
    tensors.refuse_surplus(shapes.keys() | ignored)
    return fresh


def _same_head(tensors: Tensors, shape: tuple[int, ...]) -> None:
    """Refuse a head beside a tied embedding that is not the embedding."""
    tensors.expect({names.HEAD: shape})
    if not np.array_equal(tensors.read(names.HEAD), tensors.read(names.EMBEDDING)):
        raise CheckpointError(
            f"the tensor {names.HEAD} differs from {names.EMBEDDING}, but config.json ties them",
            where=f"{tensors.file(names.HEAD)}: {names.HEAD}",
            cause="the model was trained with a head of its own",
            next='set "tie_word_embeddings": false in config.json',
        )


def _stack(
    tensors: Tensors, array: Array, leaf: Any, config: DecoderConfig, fresh: set[str]
) -> np.ndarray:
    """An array of the decoder, filled tensor by tensor."""
    whole = np.empty(leaf.shape, leaf.dtype)
    for turn, name in enumerate(array.tensors):
        part = whole[turn] if array.stacked else whole
        if name in fresh:
            part[...] = _start(config, name)
        else:
            part[...] = names.to_ours(tensors.read(name), array.layout)
    return whole


def _start(config: DecoderConfig, name: str) -> np.ndarray:
    """What a fresh in-place layer begins with, drawn from the number of the layer."""
    assert config.ttt is not None
    ttt = config.ttt

    def make(key: jax.Array) -> jax.Array:
        mlp = InPlaceMLP(
            config.hidden,
            config.intermediate,
            ttt,
            initializer_range=config.initializer_range,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            rngs=nnx.Rngs(key),
        )
        return getattr(mlp, names.TTT[name.split(".", 3)[3]])[...]

    # under jit the large matrices of the layer, which nobody asks for, are never made
    return np.asarray(jax.jit(make)(jax.random.fold_in(jax.random.key(0), int(name.split(".")[2]))))


def _put(path: str, x: np.ndarray, mesh: jax.sharding.Mesh | None) -> jax.Array:
    if mesh is None:
        return jax.device_put(x)
    sharding = NamedSharding(mesh, partition(path, x.shape, mesh.shape))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
