"""A directory in Hugging Face layout to a Decoder, an array at a time."""

from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from fastweights.errors import CheckpointError, ConfigError
from fastweights.hf import names
from fastweights.hf.config import read_config, read_json
from fastweights.hf.files import directory
from fastweights.hf.names import Array
from fastweights.hf.tensors import Tensors
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT
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
        mesh: where the weights go: each is split along its largest dimension that the axis `fsdp`
            of the mesh divides, and copied where there is none. None is the default device.
        ttt: test-time training. None is what config.json says; False switches it off and leaves
            its tensors out; an `InPlaceTTT` is used instead of what config.json says, and layers
            whose tensors are not in the checkpoint start fresh. With the convolution, which starts
            at 0, the logits are those of the base model until it is trained.

    Raises:
        ConfigError: config.json is of a model that we do not build.
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
    shapes = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    ours = {path_name(keys): leaf for keys, leaf in leaves}
    arrays = {array.path: array for array in names.arrays(config, ours.__contains__)}
    assert arrays.keys() == ours.keys(), arrays.keys() ^ ours.keys()
    with Tensors(folder) as tensors:
        fresh = _check(tensors, config, arrays, ours, ttt)
        made = [
            _put(_stack(tensors, arrays[name], leaf, config, fresh), mesh)
            for name, leaf in ours.items()
        ]
    return cast(Decoder, jax.tree.unflatten(structure, made))


def path_name(keys: tuple[Any, ...]) -> str:
    """The path of an array from its keys: "blocks.0.mlp.down.kernel"."""
    parts = [
        str(getattr(key, "name", getattr(key, "idx", getattr(key, "key", "")))) for key in keys
    ]
    return ".".join(parts[:-1] if parts[-1] == "value" else parts)


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
        return (mlp.conv if name.endswith("ttt_conv.weight") else mlp.proj)[...]

    # under jit the large matrices of the layer, which nobody asks for, are never made
    return np.asarray(jax.jit(make)(jax.random.fold_in(jax.random.key(0), int(name.split(".")[2]))))


def _put(x: np.ndarray, mesh: jax.sharding.Mesh | None) -> jax.Array:
    if mesh is None:
        return jax.device_put(x)
    spec: list[str | None] = [None] * x.ndim
    parts = mesh.shape.get("fsdp", 1)
    fitting = [i for i, size in enumerate(x.shape) if size % parts == 0]
    if parts > 1 and fitting:
        spec[max(fitting, key=lambda i: x.shape[i])] = "fsdp"
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
