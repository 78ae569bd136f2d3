"""Being asked to stop: SIGTERM (schedulers), SIGUSR1 (SLURM's warning) and Ctrl-C."""

import signal
import threading
from pathlib import Path
from types import FrameType

from fastweights.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Within this context the first signal only sets `name`; a second one ends the process at once.

    JAX's own preemption service needs `jax.distributed`, which a single process does not start;
    this works in every process. Outside the main thread Python allows no handlers, and it does
    nothing.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._receive) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}


def preempted(name: str, place: str, directory: Path) -> Preempted:
    """The end of a run that was asked to stop, after its state was saved.

    Args:
        name: of the signal.
        place: how far it came, as "update 3 of 10".
        directory: of the run.
    """
    return Preempted(
        f"stopped by {name} at {place}, all of it saved",
        where=directory,
        next="run the same command again to go on",
    )
