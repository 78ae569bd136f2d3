"""Where arrays live: a mesh with a `data` and an `fsdp` axis, from one laptop core to a pod."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fastweights.errors import ConfigError
from fastweights.train import config as cfg

BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(config: cfg.Mesh) -> jax.sharding.Mesh:
    """The mesh a config asks for, on the first devices there are.

    Raises:
        ConfigError: there are not enough devices.
    """
    wanted, there = config.data * config.fsdp, jax.device_count()
    if wanted > there:
        raise ConfigError(
            f"the mesh needs {config.data} x {config.fsdp} = {wanted} devices; there are {there}",
            where="mesh.data, mesh.fsdp",
            next="make the mesh smaller; on CPUs, JAX_NUM_CPU_DEVICES=N pretends to have N devices",
        )
    return jax.make_mesh(
        (config.data, config.fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=jax.devices()[:wanted],
    )


def state_shardings(mesh: jax.sharding.Mesh, shapes: Any) -> Any:
    """How a train state lies on the mesh: every matrix split over `fsdp`, the rest copied.

    The largest axis that `fsdp` divides is the one split. Vectors are copied: they are small, and
    gathering them costs more than it saves. Optimiser moments have their parameter's shape, so they
    get its sharding.
    """
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
