"""How a computation is laid out on the mesh that its arrays lie on; never what it computes.

Where nothing is said XLA decides, and with weights that are split it may well split activations
like the weights. What is said here changes nothing for arrays on one device.
"""

from typing import Any

import jax
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

#: the axes of a mesh over which the examples of a batch are split
BATCH = ("data", "fsdp")


def sizes(x: Array) -> dict[str, int]:
    """Devices along each axis that XLA partitions for of the mesh `x` lies on; {} if on none.

    Known while tracing too, of arguments placed on a mesh and of what is computed from them.
    """
    mesh = jax.typeof(x).sharding.mesh
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto}


def split(x: Array, *axes: str | tuple[str, ...] | None, mesh_of: Array | None = None) -> Array:
    """`x` laid out over its mesh.

    Args:
        x: an array.
        axes: for each of its axes, the mesh axes it is split over, None for none. Those that the
            mesh has not, or that do not divide it, are ignored.
        mesh_of: an array on the mesh that is meant, for an `x` that is on none yet, such as zeros.
    """
    like = x if mesh_of is None else mesh_of
    there = sizes(like)

    def fitting(size: int, names: str | tuple[str, ...] | None) -> Any:
        kept, parts = [], 1
        for name in (names,) if isinstance(names, str) else names or ():
            if there.get(name, 1) > 1 and size % (parts * there[name]) == 0:
                kept.append(name)
                parts *= there[name]
        return tuple(kept) or None

    spec = PartitionSpec(*(fitting(*pair) for pair in zip(x.shape, axes, strict=True)))
    return lay(x, spec, mesh_of=like)


def lay(x: Array, spec: PartitionSpec, *, mesh_of: Array | None = None) -> Array:
    """`x` laid out as `spec` says over its mesh, or over that of `mesh_of`."""
    mesh = jax.typeof(x if mesh_of is None else mesh_of).sharding.mesh
    if mesh.size <= 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
