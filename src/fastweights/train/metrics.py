"""Metrics of a run: one JSON object a line, and TensorBoard if asked for."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from fastweights.errors import ConfigError, install_extra
from fastweights.train import processes


class Metrics:
    """Appends to `RUN/metrics.jsonl`, each line flushed, so a killed run loses none.

    On a resume the lines after the restored step are dropped first: those updates are done again.
    Of several processes of a run the first one writes, the others' lines go nowhere.

    Args:
        run_dir: the run's directory.
        step: the step the run starts from.
        tensorboard: also write event files to `RUN/tensorboard`.

    Raises:
        ConfigError: TensorBoard was asked for and tensorboardX is not installed.
    """

    def __init__(self, run_dir: Path, step: int, tensorboard: bool = False):
        self._board: Any = None
        if not processes.is_first():
            self._start, self._file = time.monotonic(), open(os.devnull, "a")
            return
        path = run_dir / "metrics.jsonl"
        kept = [line for line in read(run_dir) if line["step"] <= step] if step else []
        # the clock goes on where the kept part stopped, so that wall time is time spent training
        self._start = time.monotonic() - (kept[-1]["wall_time"] if kept else 0.0)
        draft = path.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(draft, path)
        self._file = path.open("a")
        if tensorboard:
            self._board = _tensorboard(run_dir, step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line: the step, seconds of wall time in this run, and every scalar.

        What is not finite becomes null: JSON has no word for it.
        """
        line: dict[str, Any] = {"step": step, "wall_time": round(time.monotonic() - self._start, 3)}
        line |= {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run so far; a last line cut off by a kill is left out."""
    path = run_dir / "metrics.jsonl"
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _tensorboard(run_dir: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "TensorBoard files need tensorboardX, which is not installed",
            where="train.tensorboard",
            next=f"{install_extra('track')}; or leave train.tensorboard off: "
            "metrics.jsonl is written either way",
        ) from error
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)
