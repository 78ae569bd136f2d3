"""How a decoder's arrays lie on a mesh with the axes `data`, `fsdp` and `tensor`.

`tensor` splits what is inside of a layer (Shoeybi et al. 2019, arXiv 1909.08053): queries, keys,
values, gate and up by their outputs, that is by heads and by F, and o and down by their inputs, so
that a device computes its part of the heads and of F, and attention and the MLP each end in one sum
over devices. Embedding and head are split by vocabulary. `fsdp` splits another axis of every
matrix, which is put together where the matrix is used. `data` splits no parameter.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from fastweights.errors import ConfigError
from fastweights.models.decoder_config import DecoderConfig
from fastweights.nn.mesh import lay, sizes

#: which axis of a layer's matrix is split over `tensor`; kernels are [in, out]
TENSOR_AXIS = {name: -1 for name in ("q", "k", "v", "gate", "up", "head")} | {
    name: -2 for name in ("o", "down", "embed")
}
#: sizes that `tensor` must divide
DIVIDED = ("vocab", "intermediate", "heads", "kv_heads")


def problems(config: DecoderConfig, tensor: int) -> list[str]:
    """Why `tensor` devices cannot share a decoder's layers, a sentence each; [] if they can."""
    sizes = {name: getattr(config, name) for name in DIVIDED}
    if any(mixer != "attention" for mixer in config.mixers):
        sizes["memory.heads"] = config.memory.heads or config.heads
    return [
        f"{name} is {size}; mesh.tensor, {tensor}, must divide it"
        for name, size in sizes.items()
        if tensor > 0 and size % tensor
    ]


def check_mesh(config: DecoderConfig, tensor: int) -> None:
    """Check that `tensor` devices can share a layer.

    Raises:
        ConfigError: with every problem found, not only the first.
    """
    found = problems(config, tensor)
    if found:
        raise ConfigError(
            "this decoder cannot be split over the mesh:" + "".join(f"\n  - {x}" for x in found),
            where="mesh",
            next="another size of the axis `tensor`",
        )


def path_name(keys: tuple[Any, ...]) -> str:
    """The path of an array from its keys: "blocks.0.mlp.down.kernel"."""
    parts = [
        str(getattr(key, "name", getattr(key, "idx", getattr(key, "key", "")))) for key in keys
    ]
    return ".".join(parts[:-1] if parts[-1] == "value" else parts)


def partition(path: str, shape: tuple[int, ...], mesh: Mapping[str, int]) -> PartitionSpec:
    """How one array of a decoder is split.

    Over `fsdp` it is the largest axis that is left and divides; the axis that stacks layers is
    never split, since the scan over layers takes slices of it. Vectors are copied: they are small,
    and gathering them costs more than it saves. So are the target's convolution and projection
    over `tensor`, whose every device needs all of V.

    Args:
        path: from `path_name`; what stands before the decoder's own path does not matter, so that
            an optimiser's moments are split like their parameters.
        shape: of the array.
        mesh: sizes of its axes by name.
    """
    parts = path.split(".")
    first = int("blocks" in parts)
    axes: list[str | None] = [None] * len(shape)
    if len(shape) - first < 2:
        return PartitionSpec(*axes)
    if mesh.get("tensor", 1) > 1 and parts[-2] in TENSOR_AXIS:
        axes[TENSOR_AXIS[parts[-2]]] = "tensor"
    fsdp = mesh.get("fsdp", 1)
    free = [i for i in range(first, len(shape)) if axes[i] is None and shape[i] % fsdp == 0]
    if fsdp > 1 and free:
        axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)


def shardings(mesh: jax.sharding.Mesh | AbstractMesh, shapes: Any) -> Any:
    """`partition` of every array in a pytree that is, or holds, a decoder and its moments."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: NamedSharding(mesh, partition(path_name(keys), leaf.shape, mesh.shape)),
        shapes,
    )


def whole(path: str, x: Array) -> Array:
    """An array put together over `fsdp` where it is used, its gradient split again.

    Left to itself XLA may as well keep a matrix split and sum activations over devices.

    Args:
        path: of the array, as in `partition`.
        x: the array. On one device it is returned as it is.
    """
    there = sizes(x)
    kept, used = (partition(path, x.shape, there | more) for more in ({}, {"fsdp": 1}))
    return x if kept == used else _gathered(x, kept, used)


def whole_block(block: Any) -> Any:
    """`whole` of every array of one layer."""
    return jax.tree_util.tree_map_with_path(lambda keys, x: whole(path_name(keys), x), block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x: Array, kept: PartitionSpec, used: PartitionSpec) -> Array:
    return lay(x, used)


_gathered.defvjp(
    lambda x, kept, used: (_gathered(x, kept, used), None),
    lambda kept, used, _, grad: (lay(grad, kept),),
)
