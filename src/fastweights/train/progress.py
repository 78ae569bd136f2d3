"""What a person sees while a run works: a live line on a terminal, plain lines in a log file."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TextColumn, TimeElapsedColumn

#: seconds between lines when the output is not a terminal
PLAIN_INTERVAL = 10.0


class _Console(Console):
    """A console for which nobody need listen: rich's own ends the process where a pipe does."""

    def on_broken_pipe(self) -> None:
        """What read the lines has ended, as in `2>&1 | head`: the work goes on without them."""
        self.quiet = True
        _silence()


class Progress:
    """Progress of one run.

    Args:
        total: updates the run ends at.
        quiet: print nothing at all.
    """

    def __init__(self, total: int, quiet: bool = False):
        self.total = total
        self.console = _Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._live = self.console.is_terminal and not quiet
        self._bars = Bars(
            TextColumn("{task.description}"),
            console=self.console,
            transient=True,
            disable=not self._live,
        )
        self._line = None
        self._printed = 0.0
        self._marks: list[tuple[float, int]] = []

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show that something long is under way, with a running clock: "compiling … 0:12"."""
        start = time.monotonic()
        if self._live:
            clock = Bars(
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._bars.stop()
            with clock:
                clock.add_task(f"{what} …", total=None)
                yield
            self._bars.start()
        else:
            self.note(f"{what} …")
            yield
        self.note(f"{what}: {time.monotonic() - start:.1f} s")

    def start(self, step: int) -> None:
        """Begin to count updates, from `step`; compilation is behind us."""
        self._marks = [(time.monotonic(), step)]

    def update(self, step: int, scores: dict[str, float], last: bool = False) -> None:
        """Show where the run is: step, scores, throughput, time left."""
        now = time.monotonic()
        # throughput over the last dozen logs: it follows a machine that gets slower or faster
        self._marks = [*self._marks[-12:], (now, step)]
        then, begun = self._marks[0]
        seconds = now - then
        rate = (step - begun) / seconds if seconds > 0 and step > begun else 0.0
        left = clock((self.total - step) / rate) if rate else "?"
        shown = "".join(f" | {name} {value:.4g}" for name, value in scores.items())
        text = (
            f"step {step}/{self.total} {100 * step / self.total:5.1f}%{shown}"
            f" | {rate:.0f} updates/s | eta {left}"
        )
        if self._live:
            if self._line is None:
                self._line = self._bars.add_task(text, total=None)
            self._bars.update(self._line, description=text)
        elif last or now - self._printed >= PLAIN_INTERVAL:
            self.note(text)
            self._printed = now


def clock(seconds: float) -> str:
    """Seconds as 0:12, 12:40 or 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def warn(text: str) -> None:
    """A loud line on standard error."""
    try:
        print(f"warning: {text}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        _silence()


def _silence() -> None:
    """Send standard error nowhere, since what read it has ended."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stderr.fileno())
    os.close(nowhere)
