"""One of two processes that save and restore together: `python FILE INDEX DIRECTORY PORT`.

Each has two CPU devices; a matrix is split over all four. Prints `done` when all was right.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from fastweights.errors import CheckpointError
from fastweights.train.checkpoint import Checkpoints


class Iterator:
    """Its state is another one on each process."""

    def __init__(self):
        self.state = {"process": jax.process_index()}

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def state_of(step: int):
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, P())
    matrix = np.arange(64, dtype=np.float32).reshape(8, 8) * step
    key = np.asarray(jax.random.key_data(jax.random.key(step)))
    return {
        "split": jax.make_array_from_callback(
            (8, 8), NamedSharding(mesh, P("a")), lambda index: matrix[index]
        ),
        "key": jax.random.wrap_key_data(jax.device_put(key, everywhere)),
        "replicated": jax.device_put(np.float32(step), everywhere),
        "weak": jax.device_put(0.5, everywhere),
        "local": jnp.asarray(step),
        "second device": jax.device_put(np.float32(step), jax.local_devices()[1]),
        "python": step,
    }


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if not isinstance(y, jax.Array):
            assert x == y
            continue
        assert (x.dtype, x.sharding, x.committed) == (y.dtype, y.sharding, y.committed)
        if jnp.issubdtype(y.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        for s, t in zip(x.addressable_shards, y.addressable_shards, strict=True):
            assert np.asarray(s.data).tobytes() == np.asarray(t.data).tobytes()


def damage(path: Path) -> None:
    """By process 0, while the other waits."""
    if jax.process_index() == 0:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    multihost_utils.sync_global_devices(str(path))


def main(index: int, directory: Path, port: int) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    with Checkpoints(directory, keep_last=2) as checkpoints:
        assert checkpoints.restore(state_of(0)) is None
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), Iterator())
        iterator = Iterator()
        iterator.state = None
        restored = checkpoints.restore(state_of(0), iterator)
        assert restored.step == 3 and iterator.state == {"process": index}
        assert_same(restored.state, state_of(3))

        damage(max((directory / "00000003" / "state" / "d").iterdir()))
        restored = checkpoints.restore(state_of(0))
        assert restored.step == 2
        assert_same(restored.state, state_of(2))
        checkpoints.save(3, state_of(3))
        assert checkpoints.restore(state_of(0)).step == 3

        for path in sorted(directory.glob("*.json")):
            damage(path)
        try:
            checkpoints.restore(state_of(0))
        except CheckpointError:
            print("done")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
