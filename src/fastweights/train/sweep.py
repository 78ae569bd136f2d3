"""A table of a paper: every model at every size, tuned on validation, with seeds.

One cell of the table is one model at one size. Its optimiser is chosen from a grid with one seed,
by validation score, in runs that may be shorter, and the seeds reported are others. What is done is
in `cells/`, a JSON each, and is not done again; what was stopped goes on from its checkpoint.
Processes with different `arms` or `units` may share a run directory.
"""

import dataclasses
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastweights.errors import ConfigError
from fastweights.tasks.base import Data
from fastweights.train import run_dir as runs
from fastweights.train.config import Config, Optim, Train, to_json
from fastweights.train.progress import Progress
from fastweights.train.seeds import Nets, Outcome, train_seeds
from fastweights.train.sweep_table import markdown


@dataclasses.dataclass(frozen=True)
class Arm:
    """A row of the table.

    Attributes:
        model: size -> model config.
        paper: the paper's number for each size, in %, where it has one.
        steps: updates, where they are not those of the sweep.
        variants: other models of the row, tried for a cell with every optimiser, as `model` is.
        tuning_steps: updates of a run of the grid, where they are not those of the sweep.
    """

    model: Callable[[int], Any]
    paper: Mapping[int, float] = dataclasses.field(default_factory=dict)
    steps: int | None = None
    variants: tuple[Callable[[int], Any], ...] = ()
    tuning_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A whole table.

    Attributes:
        title: what the table shows.
        task: what is learned.
        arms: its rows, by name.
        units: its columns, sizes of the model.
        grid: optimisers tried for every cell; the cosine's length is set to the updates.
        train: length and rhythm of every run.
        seeds: seeds reported.
        tuning_seed: seed of the grid, not among `seeds`.
        tuning_steps: updates of a run of the grid; None for as many as are reported.
        chance: error of a model that learned nothing, 0 to 1, if the task has such a number.
        quick: the same in minutes: fewer of everything.
        data: where data sets are.
    """

    title: str
    task: Any
    arms: Mapping[str, Arm]
    units: tuple[int, ...]
    grid: tuple[Optim, ...]
    train: Train
    seeds: tuple[int, ...] = (1, 2, 3)
    tuning_seed: int = 0
    tuning_steps: int | None = None
    chance: float | None = None
    quick: "Sweep | None" = None
    data: Data = Data()


@dataclasses.dataclass(frozen=True)
class SweepArguments:
    """What to run of a sweep.

    Attributes:
        run_dir: directory of cells, checkpoints, table.json and table.md; made, or gone on with.
        quick: the small form that takes minutes.
        arms: only these rows.
        units: only these sizes.
        data: where data sets are; where nothing is said, as the sweep has it.
        quiet: show no progress.
    """

    run_dir: Path
    quick: bool = False
    arms: tuple[str, ...] = ()
    units: tuple[int, ...] = ()
    data: Data = Data()
    quiet: bool = False


def run_sweep(sweep: Sweep, arguments: SweepArguments) -> dict[str, Any]:
    """Run what is missing and asked for; write and return the table of all that is done.

    Raises:
        ConfigError: an unknown row or size, or a cell that was made by another config.
        DataError, CheckpointError, Preempted: as `train_seeds`.
    """
    if arguments.quick:
        if sweep.quick is None:
            raise ConfigError("this sweep has no quick form", next="leave --quick out")
        sweep = sweep.quick
    given, own = arguments.data, sweep.data
    data = Data(given.dir or own.dir, given.manual_dir or own.manual_dir)
    sweep = dataclasses.replace(sweep, data=data)
    for kind, asked, known in (
        ("row", arguments.arms, tuple(sweep.arms)),
        ("size", arguments.units, sweep.units),
    ):
        if unknown := set(asked) - set(known):
            raise ConfigError(
                f"no {kind} {unknown.pop()!r} in this table",
                next=f"choose from {', '.join(map(str, known))}",
            )
    note = Progress(1, arguments.quiet).note
    take_cells(arguments.run_dir)
    for units in sweep.units:
        for name in sweep.arms:
            if units not in (arguments.units or sweep.units):
                continue
            if name not in (arguments.arms or tuple(sweep.arms)):
                continue
            cell = run_cell(sweep, name, units, arguments)
            errors = [100 * seed["test"]["error"] for seed in cell["seeds"]]
            note(
                f"{name}, {units} units: test error {statistics.fmean(errors):.2f} % "
                f"({', '.join(f'{e:.2f}' for e in errors)}), lr {cell['optim']['lr']:g}"
            )
    record = assemble(sweep, arguments.run_dir)
    put(arguments.run_dir / "table.json", as_text(record))
    put(arguments.run_dir / "table.md", markdown(record) + "\n")
    return record


def put(file: Path, text: str) -> None:
    """Write a file of the table, whose folder is made where it is not there.

    Raises:
        CheckpointError: it cannot be written.
    """
    with runs.writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        runs.write_text(file, text)


def as_text(record: Mapping[str, Any]) -> str:
    """A cell or a table as the text of a JSON file."""
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def take_cells(run_dir: Path) -> None:
    """Cells of `table.json` that are not in `cells/`, put there: a table can be gone on with from
    its one file, wherever it was made.
    """
    table, folder = run_dir / "table.json", run_dir / "cells"
    for cell in runs.load_json(table)["cells"] if table.exists() else []:
        file = folder / f"{label_of(cell['arm'], cell['units'])}.json"
        if not file.exists():
            put(file, as_text(cell))


def label_of(name: str, units: int) -> str:
    """A cell's name as part of a path."""
    return f"{name.lower().replace(' ', '-')}-{units}"


def cell_configs(sweep: Sweep, name: str, units: int, steps: int | None = None) -> list[Config]:
    """The grid of one cell: every model of the row with every optimiser, whose cosine ends with
    the run.
    """
    arm = sweep.arms[name]
    steps = steps or arm.steps or sweep.train.steps
    return [
        Config(
            task=sweep.task,
            model=model(units),
            optim=dataclasses.replace(optim, decay_steps=steps),
            train=dataclasses.replace(sweep.train, steps=steps),
            data=sweep.data,
        )
        for model in (arm.model, *arm.variants)
        for optim in sweep.grid
    ]


def run_cell(sweep: Sweep, name: str, units: int, arguments: SweepArguments) -> dict[str, Any]:
    """One cell: from its file if it is done, else tuned and trained."""
    label = label_of(name, units)
    file = arguments.run_dir / "cells" / f"{label}.json"
    configs = cell_configs(sweep, name, units)
    wanted = json.loads(json.dumps([described(config) for config in configs]))
    if file.exists():
        cell = runs.load_json(file)
        if cell["grid"] != wanted or [s["seed"] for s in cell["seeds"]] != list(sweep.seeds):
            raise ConfigError(
                "this cell was made by another sweep",
                where=file,
                cause="the config file was changed since",
                next="remove the cell to have it made anew, or give another --run-dir",
            )
        return cell
    load = os.getloadavg()[0]
    seconds: list[float] = []  # of every run, those of earlier processes included

    def train(index: int, config: Config, seeds: tuple[int, ...], what: str) -> list[Outcome]:
        which = f"{name}, {units} units, lr {config.optim.lr:g}, {index + 1} of {len(configs)}"
        Progress(1, arguments.quiet).note(f"{which}: {what}")
        folder = arguments.run_dir / "nets" / f"{label}-{index}-{what}"
        found = train_seeds(Nets(config, seeds), folder, quiet=arguments.quiet)
        seconds.append(found[0].seconds)
        return found

    tuned = [0.0]
    tuning_steps = sweep.arms[name].tuning_steps or sweep.tuning_steps
    if len(configs) > 1:
        shorter = cell_configs(sweep, name, units, tuning_steps)
        tuned = [
            train(i, config, (sweep.tuning_seed,), "tuning")[0].validation
            for i, config in enumerate(shorter)
        ]
    chosen = tuned.index(min(tuned))
    found = train(chosen, configs[chosen], sweep.seeds, "seeds")
    versions = runs.versions()
    cell = {
        "arm": name,
        "units": units,
        "grid": wanted,
        "tuning": tuned if len(configs) > 1 else None,
        "tuning_updates": tuning_steps or configs[chosen].train.steps,
        "chosen": chosen,
        "optim": to_json(configs[chosen].optim),
        "updates": configs[chosen].train.steps,
        "seeds": [
            {
                "seed": outcome.seed,
                "test": outcome.best,
                "test_last": outcome.last,
                "validation": outcome.validation,
                "train_loss": outcome.train_loss,
                "best_step": outcome.best_step,
                "diverged": outcome.diverged,
                "curve": thinned(outcome.curve),
            }
            for outcome in found
        ],
        "command": shlex.join(["fastweights", *(shown(word) for word in sys.argv[1:])]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(sum(seconds), 1),
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "devices": versions.pop("devices")},
        "versions": {k: v for k, v in versions.items() if k != "platform"},
    }
    put(file, as_text(cell))
    return cell


def described(config: Config) -> Any:
    """A config as JSON without the folders of the machine, the unused seed and the rhythms."""
    data = to_json(config)
    return {name: data[name] for name in ("task", "model", "optim")} | {
        "steps": config.train.steps,
        "batch": config.train.batch,
    }


def shown(word: str) -> str:
    """A word of a command as anyone can give it: without this machine's folders."""
    return Path(word).name if word.startswith(("/", "../", "~")) else word


def thinned(curve: list[dict[str, float]], points: int = 20) -> list[dict[str, float]]:
    """About so many points of a curve, its last among them, rounded."""
    every = max(1, len(curve) // points)
    kept = curve[::-1][::every][::-1]
    return [{k: round(v, 5) if v is not None else v for k, v in point.items()} for point in kept]


def cpu() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def assemble(sweep: Sweep, run_dir: Path) -> dict[str, Any]:
    """Everything in `cells/`, in the table's order, and what the table needs beside it."""
    found = [runs.load_json(file) for file in sorted((run_dir / "cells").glob("*.json"))]
    order = {(name, units): i for i, name in enumerate(sweep.arms) for units in sweep.units}
    found = [cell for cell in found if (cell["arm"], cell["units"]) in order]
    found.sort(key=lambda cell: (order[cell["arm"], cell["units"]], cell["units"]))
    return {
        "title": sweep.title,
        "arms": list(sweep.arms),
        "units": list(sweep.units),
        "chance": sweep.chance,
        "paper": {
            name: {str(units): number for units, number in arm.paper.items()}
            for name, arm in sweep.arms.items()
        },
        "cells": found,
    }
