"""Several processes of one run, one a host or more: how they find each other, and who decides.

All of them run the same loop, each on its own part of every batch, and save together. The first one
alone looks after the run directory and the terminal; where they must do the same, its word counts.
"""

import os
import signal
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from fastweights.errors import CheckpointError, ConfigError, FastWeightsError

_FAILED = -2


def join() -> None:
    """Make this process one of several that train together; before anything else touches JAX.

    TPU pods, SLURM, Open MPI and Kubernetes say by themselves how many there are and where.
    Elsewhere JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID
    say it.

    Raises:
        ConfigError: nobody says it, or they did not find each other.
    """
    number = lambda name: int(os.environ[name]) if name in os.environ else None
    try:  # a variable that is no number, too, is a ValueError
        count, own = number("JAX_NUM_PROCESSES"), number("JAX_PROCESS_ID")
        jax.distributed.initialize(num_processes=count, process_id=own)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the processes of this run do not find each other: {error}",
            where="--distributed",
            cause="no cluster that JAX knows, or a process that has not started",
            next="set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in each, "
            "or leave --distributed out on one host",
        ) from error


def is_first() -> bool:
    """Whether this process writes for all."""
    return jax.process_index() == 0


def only_one(what: str) -> None:
    """Refuse several processes where nothing is made for them.

    Raises:
        ConfigError: there are several.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"{what} runs in one process, and there are {jax.process_count()}",
            next="one host, with all of its devices in --mesh.data, --mesh.fsdp, --mesh.tensor",
        )


def decided_by_first(decide: Callable[[], int]) -> int:
    """`decide()` of the first process, at least -1, on every process; an error is one everywhere.

    Only one process looks at a directory, since two may not see the same files on a shared one.

    Raises:
        CheckpointError: it failed, on the others; the first raises what `decide` did.
    """
    if jax.process_count() == 1:
        return decide()
    result, error = _FAILED, None
    if is_first():
        try:
            result = decide()
        except (OSError, FastWeightsError) as e:
            error = e
    result = int(multihost_utils.broadcast_one_to_all(np.int32(result)))
    if error is not None:
        raise error
    if result == _FAILED:
        raise CheckpointError("The first process could not go on; its message says why.")
    return result


def first_alone(work: Callable[[], object]) -> None:
    """`work()` in the first process; the others wait until it is done, and fail if it does."""

    def done() -> int:
        work()
        return 0

    decided_by_first(done)


def heard_by_any(name: str | None) -> str | None:
    """The signal that this process or another was sent, the same on all; None if none was."""
    if jax.process_count() == 1:
        return name
    number = 0 if name is None else int(signal.Signals[name])
    heard = int(multihost_utils.process_allgather(np.int32(number)).max())
    return signal.Signals(heard).name if heard else None
