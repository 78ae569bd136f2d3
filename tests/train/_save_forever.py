"""A process that does nothing but save, to be killed: `python _save_forever.py DIRECTORY`.

For every line on stdin it forks a saver and prints `pid N`; the saver prints `saved STEP` when a
step must survive a kill, and once it is dead `dead` follows. One warm parent and many forks: a
saver is up in a tenth of a second. Forking is safe as long as the parent has one thread, which it
checks.
"""

import os
import sys
from pathlib import Path

import jax
import numpy as np

from fastweights.train.checkpoint import Checkpoints


def content(step: int) -> dict[str, np.ndarray]:
    """What a checkpoint of `step` holds: 1 MB in which every number depends on the step."""
    return {
        "w": np.arange(512 * 512, dtype=np.float32).reshape(512, 512) + step,
        "step": np.asarray(step, np.int32),
        "bits": (np.arange(1000) * step).astype(np.uint32),
    }


def save_forever(directory: Path) -> None:
    checkpoints = Checkpoints(directory, keep_last=2)
    restored = checkpoints.restore(jax.tree.map(jax.numpy.asarray, content(0)))
    step = 0 if restored is None else restored.step
    while True:
        checkpoints.save(step + 1, jax.tree.map(jax.numpy.asarray, content(step + 1)))
        print("saved", step, flush=True)  # save() has waited for the one before
        step += 1


def main() -> None:
    for _ in sys.stdin:
        threads = os.listdir("/proc/self/task")
        assert len(threads) == 1, f"{len(threads)} threads: fork is not safe"
        child = os.fork()
        if child == 0:
            save_forever(Path(sys.argv[1]))
        print("pid", child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)


if __name__ == "__main__":
    main()
