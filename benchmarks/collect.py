"""Finished runs into one committed JSON: what was run, where, how long, and what it scored.

    python benchmarks/collect.py --out benchmarks/results/retrieval.json runs/retrieval runs/...

Every number in README and docs about a training run comes from such a file.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import harness
import tyro

from fastweights.train import evaluate_run
from fastweights.train.metrics import read
from fastweights.train.run_dir import load_json


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Runs to collect.

    Attributes:
        runs: run directories, all finished.
        out: the JSON file to write.
        points: about how many points of each validation curve to keep.
        test: evaluate the best and the last checkpoint on the test data.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path
    points: int = 40
    test: bool = True


def collect(run_dir: Path, points: int, test: bool = True) -> dict[str, Any]:
    """One run: config, starts (versions, commands), curve, test scores of two checkpoints."""
    history = [line for line in read(run_dir) if "validation/loss" in line]
    names = [name for name in ("error", "loss") if f"validation/{name}" in history[0]]
    starts = [json.loads(text) for text in (run_dir / "starts.jsonl").read_text().splitlines()]
    for start in starts:
        # the command as anyone can give it, without this machine's folders
        words = [Path(start["argv"][0]).name, *start.pop("argv")[1:]]
        start["command"] = " ".join(Path(w).name if w.startswith("/") else w for w in words)
        start.pop("platform")
    config = load_json(run_dir / "config.json")
    config.pop("data")  # folders of the machine it ran on
    every = max(1, len(history) // points)
    kept = history[every - 1 :: every]
    return {
        "name": run_dir.name,
        "config": config,
        "starts": starts,
        "updates": history[-1]["step"],
        "wall_seconds": history[-1]["wall_time"],
        "curve": [
            {"step": x["step"], **{k: round(x[f"validation/{k}"], 5) for k in names}}
            for x in (kept if kept[-1] is history[-1] else [*kept, history[-1]])
        ],
    } | (
        {f"test_{which}": evaluate_run(run_dir, which=which) for which in ("best", "last")}
        if test
        else {}
    )


def main(arguments: Arguments) -> None:
    """Collect and write."""
    record = harness.circumstances(("fastweights", "jax", "jaxlib", "flax", "optax", "numpy"))
    record["command"] = "python benchmarks/collect.py"
    record["runs"] = [collect(x, arguments.points, arguments.test) for x in arguments.runs]
    harness.save(record, arguments.out)
    for run in record["runs"]:
        scores = {k: run[k] for k in ("test_best", "test_last") if k in run} or run["curve"][-1]
        print(f"{run['name']}: {scores}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
