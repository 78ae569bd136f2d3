"""Where arrays live: a mesh of axes `data`, `fsdp` and `tensor`, from one laptop core to a pod."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from fastweights.errors import ConfigError
from fastweights.models import decoder_mesh
from fastweights.models.decoder import Decoder
from fastweights.nn import mesh as nn_mesh
from fastweights.train import config as cfg

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(nn_mesh.BATCH)


def make_mesh(config: cfg.Mesh) -> jax.sharding.Mesh:
    """The mesh a config asks for, on the first devices there are.

    Raises:
        ConfigError: there are not enough devices.
    """
    sizes = (config.data, config.fsdp, config.tensor)
    wanted, there = math.prod(sizes), jax.device_count()
    if wanted > there:
        raise ConfigError(
            f"the mesh needs {' x '.join(map(str, sizes))} = {wanted} devices; there are {there}",
            where="mesh.data, mesh.fsdp, mesh.tensor",
            next="make the mesh smaller; on CPUs, JAX_NUM_CPU_DEVICES=N pretends to have N devices",
        )
    hosts = jax.process_count()
    if hosts > 1 and (wanted < there or config.data * config.fsdp % hosts):
        raise ConfigError(
            f"{hosts} processes with {there} devices do not share a mesh of "
            f"{' x '.join(map(str, sizes))}",
            where="mesh.data, mesh.fsdp, mesh.tensor",
            cause="each has an equal part of every batch, and all devices take part",
            next=f"data x fsdp x tensor = {there}, and {hosts} divides data x fsdp",
        )
    return jax.make_mesh(
        sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:wanted]
    )


def fitting_mesh(config: cfg.Mesh) -> jax.sharding.Mesh:
    """The mesh a run was trained on, or one device where there are not as many."""
    wanted = math.prod((config.data, config.fsdp, config.tensor))
    return make_mesh(config if wanted <= jax.device_count() else cfg.Mesh())


def state_shardings(mesh: jax.sharding.Mesh | AbstractMesh, shapes: Any) -> Any:
    """How a train state lies on the mesh: every matrix split over `fsdp`, the rest copied.

    A decoder has a rule of its own, `fastweights.models.decoder_mesh`. Of other models the largest
    axis that `fsdp` divides is the one split. Vectors are copied: they are small, and gathering
    them costs more than it saves. Optimiser moments are split like their parameters.
    """
    if isinstance(shapes.model, Decoder):
        return decoder_mesh.shardings(mesh, shapes)
    parts = mesh.shape["fsdp"]

    def sharding(leaf: Any) -> NamedSharding:
        spec: list[str | None] = [None] * len(leaf.shape)
        fitting = [i for i, size in enumerate(leaf.shape) if size % parts == 0]
        if parts > 1 and len(leaf.shape) >= 2 and fitting:
            spec[max(fitting, key=lambda i: leaf.shape[i])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, shapes)


def put_batch(mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Turn this process's part of a batch into global arrays split over all devices."""
    sharding = NamedSharding(mesh, BATCH)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
