"""What every benchmark here shares: interleaved timing, what a result must record, tables in docs.

Contenders are timed in one process, in rounds (A B C, B C A, ...), so that a busy machine slows all
of them; compare ratios inside one run, never times of two runs.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastweights.errors import FastWeightsError


@dataclasses.dataclass
class Contender:
    """One thing to time.

    Attributes:
        run: one call, which must wait until the device is done.
        compile_seconds: wall time its compilation took; of an eager one, its first call.
        temp_bytes: memory beside arguments and results, as XLA planned it; None where unknown.
        error: norm ratio of its result to the reference.
    """

    run: Callable[[], Any]
    compile_seconds: float | None = None
    temp_bytes: int | None = None
    error: float | None = None


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_to(count: int | None) -> None:
    """Keep the process to `count` of its cores, where the system can; None keeps all.

    Call it before JAX and PyTorch make their threads. On a shared machine a pool of threads waits
    for its slowest, PyTorch's longest: one core each compares the work itself.
    """
    if count is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])


def norm_ratio(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Largest |actual - expected| / |expected| (2-norm, float64) over pairs of arrays."""
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        if a.shape != e.shape:
            raise ValueError(f"shape {a.shape} against {e.shape}")
        worst = max(worst, float(np.linalg.norm(a - e) / np.linalg.norm(e)))
    return worst


def interleave(
    runs: Mapping[str, Callable[[], Any]], rounds: int, repeats: int = 3
) -> dict[str, list[float]]:
    """Seconds per call of each contender, one number a round.

    A turn is one call that is not timed (it pays for what the contender before left in caches and
    thread pools) and the median of `repeats` timed ones. The first in a round moves on by one.
    """
    names, seconds = list(runs), {name: [] for name in runs}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            runs[name]()
            turn = []
            for _ in range(repeats):
                start = time.perf_counter()
                runs[name]()
                turn.append(time.perf_counter() - start)
            seconds[name].append(statistics.median(turn))
    return seconds


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(q) for q in np.quantile(values, [0.25, 0.5, 0.75])]


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and minimum in milliseconds."""
    low, median, high = quartiles(seconds)
    values = {"median_ms": median, "q1_ms": low, "q3_ms": high, "min_ms": min(seconds)}
    return {name: round(1e3 * value, 4) for name, value in values.items()}


def ratio(seconds: Mapping[str, Sequence[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times longer `slow` takes: ratio of medians, and quartiles of the rounds' ratios."""
    pairs = [s / f for s, f in zip(seconds[slow], seconds[fast], strict=True)]
    low, median, high = quartiles(pairs)
    of_medians = statistics.median(seconds[slow]) / statistics.median(seconds[fast])
    values = {"of_medians": of_medians, "median": median, "q1": low, "q3": high}
    return {name: round(value, 3) for name, value in values.items()}


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Installed versions, None for what is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def circumstances(packages: Sequence[str]) -> dict[str, Any]:
    """What must stand beside every number: command, date, machine, versions, load average."""
    return {
        "command": shlex.join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_model(), "cores": cores(), "system": platform.system()},
        "versions": versions(packages),
        "load_start": [round(x, 2) for x in os.getloadavg()],
    }


@contextlib.contextmanager
def telling_errors() -> Iterator[None]:
    """Of the library's own errors the message and the exit code, as its command line has them.

    Such as a run directory that another process is at work in, or a run that was asked to stop.
    """
    try:
        yield
    except FastWeightsError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error


def save(record: dict[str, Any], path: Path) -> None:
    """Write a record as JSON, with the load average at the end of the run in it."""
    record["load_end"] = [round(x, 2) for x in os.getloadavg()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def between_markers(page: str, name: str, text: str) -> str:
    """The page with `text` between its lines `<!-- name:begin -->` and `<!-- name:end -->`.

    Raises:
        ValueError: the page has no such pair of lines.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if begin not in page or end not in page:
        raise ValueError(f"the page has no {begin} ... {end}")
    before, after = page.split(begin)[0], page.split(end)[1]
    return f"{before}{begin}\n{text.strip()}\n{end}{after}"
