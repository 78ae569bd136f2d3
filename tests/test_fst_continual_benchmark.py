"""benchmarks/fst_continual.py: its table, and a small run of it that is stopped between tasks."""

import dataclasses
import importlib
import json

import pytest

from fastweights.fastslow.base_model import base_config
from fastweights.fastslow.config import FastSlow
from fastweights.fastslow.evolution import Evolution
from fastweights.fastslow.objective import PolicyGradient
from fastweights.tasks.continual import Continual
from fastweights.tasks.conventions import Conventions
from fastweights.tasks.programs import Programs
from fastweights.train import train
from fastweights.train.config import Train

TASKS = ["Conventions", "Programs"]


@pytest.fixture
def continual(script):
    return script("fst_continual")


def made(arm, seed, accuracies, probes, lr=1e-3):
    """A run of two tasks of 12 updates, evaluated twice in each."""
    stages = [
        {
            "task": task,
            "curve": [
                [12 * i + 6, known[i] / 2, 100 * i + 50],
                [12 * i + 12, known[i], 100 * i + 100],
            ],
            "scores": {t: {"accuracy_own": known[j]} for j, t in enumerate(TASKS)},
            "probe": [[0, 0.0], [6, probes[i]]],
        }
        for i, (task, known) in enumerate(zip(TASKS, accuracies, strict=False))
    ]
    start = {"scores": {t: {"accuracy_own": 0.0} for t in TASKS}, "probe": [[0, 0.0], [6, 0.25]]}
    run = {"arm": arm, "lr": lr, "seed": seed, "updates": 12, "tasks": TASKS, "base": "0" * 12}
    return run | {"stages": stages, "start": start}


def test_the_table_has_every_task_after_every_task(continual):
    runs = [
        made("fst", 100, [(1, 0), (1, 1)], (0, 0)),
        made("fst", 100, [(0.5, 0), (1, 1)], (0, 0), lr=3e-4),
        made("fst", 0, [(0.5, 0), (0.25, 1.0)], (0.5, 0.75)),
        made("fst", 1, [(1.0, 0), (0.75, 0.5)], (0.25, 0.25)),
        made("fst", 2, [(1.0, 0)], (1.0,)),  # still on its way
        made("rl", 0, [(0.25, 0), (0.0, 0.25)], (0.0, 0.0), lr=3e-4),
    ]
    assert continual.best_rate(runs, "fst") == 1e-3
    assert continual.best_rate(runs, "rl") is None
    lines = continual.table(runs, {"Programs": 1.0}).splitlines()
    nothing = "| nothing | – | 2 | 0.0 % (0-0) | 0.0 % (0-0) | – | 25.0 % (25-25) |"
    assert lines[2] == nothing  # of two seeds, one of which both arms have
    first = "| Conventions | fst, lr 0.001 | 2 | 75.0 % (50-100) | 0.0 % (0-0) | not measured |"
    assert lines[3] == first + " 37.5 % (25-50) |"
    # 90 % of 1.0: the seed with 0.5 half way and 1.0 at the end is there after 12 updates
    second = "| Programs | fst, lr 0.001 | 2 | 50.0 % (25-75) | 75.0 % (50-100) | "
    second += "never, 1 of 2 did / never, 1 of 2 did |"
    assert lines[5] == second + " 50.0 % (25-75) |"
    slow = "| Programs | rl, lr 0.0003 | 1 | 0.0 % (0-0) | 25.0 % (25-25) | never / never |"
    assert lines[6] == slow + " 0.0 % (0-0) |" and len(lines) == 7
    # counted from where the task began: the run had made 100 rollouts by then
    assert continual.arrival(runs[2], 1, 0.9) == (12, 100)
    assert continual.arrival(runs[2], 0, 0.2) == (6, 50)


def test_the_sweep_shows_every_arm_at_the_same_rate(continual):
    runs = [
        made("rl", 100, [(0.5, 0), (0.25, 0.75)], (0, 0)),
        made("fst", 100, [(1, 0), (0.75, 0.25)], (0, 0)),
        made("fst", 100, [(0.5, 0), (0.5, 0.0)], (0, 0), lr=3e-4),
        made("fst", 100, [(0.5, 0)], (0,), lr=3e-3),  # still on its way
        made("fst", 0, [(0.5, 0), (0.25, 1.0)], (0, 0)),  # no part of the sweep
    ]
    assert continual.rate_table(runs).splitlines() == [
        "| lr | arm | Conventions, when learned | Conventions, at the end | Programs, at the end "
        "| mean of 2 at the end |",
        "|---|---|---|---|---|---|",
        "| 0.0003 | fst | 50.0 % | 50.0 % | 0.0 % | 25.0 % |",
        "| 0.001 | fst | 100.0 % | 75.0 % | 25.0 % | 50.0 % |",
        "| 0.001 | rl | 50.0 % | 25.0 % | 75.0 % | 50.0 % |",
    ]
    assert continual.rate_table(runs[4:]) == "Not run yet."


def test_a_sweep_alone_is_no_result_and_no_error(continual, monkeypatch, tmp_path):
    tables = importlib.import_module("tables")
    monkeypatch.setattr(tables, "load", lambda name: {"runs": [made("fst", 100, [(1, 0)], (0,))]})
    monkeypatch.setattr(continual, "OUT", tmp_path)  # there is something
    assert tables.render("fst_continual") == "Not run yet."
    tables.draw_continual()
    assert list(tmp_path.iterdir()) == []


def test_peaks_are_of_the_single_tasks(continual, tmp_path):
    fst = continual.fst
    names = ["updates", "rollouts_slow", "rollouts_fast", "seconds", *fst.KEPT]
    run = lambda seed, best, base="a": {
        "arm": "fst",
        "base": base,
        "lr": 1e-3,
        "seed": seed,
        "proposer": "inductive",
        "names": names,
        "curve": [[6 * i, 0, 0, 0, y, 0, 0, 0, 0] for i, y in enumerate((0.0, best, best / 2))],
    }
    runs = {"runs": [run(0, 0.5), run(1, 1.0)]}
    (tmp_path / "fst_star_graph.json").write_text(json.dumps(runs))
    older = {"runs": [run(0, 0.5, base="b")]}  # another base model's are not comparable
    (tmp_path / "fst_programs.json").write_text(json.dumps(older))
    assert continual.peaks(tmp_path, "a") == {"StarGraph": 0.75}


def test_a_run_is_scored_after_every_task_and_goes_on(continual, monkeypatch, tmp_path, capsys):
    base = base_config()
    model = dataclasses.replace(
        base.model, hidden=16, intermediate=16, layers=1, heads=1, kv_heads=1, head_dim=16
    )
    base = dataclasses.replace(
        base,
        task=dataclasses.replace(base.task, examples=100, held_out=5),
        model=model,
        train=Train(steps=1, batch=4, eval_every=1, checkpoint_every=1),
    )
    train(base, tmp_path / "base", quiet=True)
    config = FastSlow(
        task=Continual((Conventions(steps=1), Programs(digits=2)), updates=1),
        base="",
        rl=PolicyGradient(problems=2, rollouts=2),
        evolution=Evolution(keep=1, every=1, proposals=1, minibatch=2, instances=2, samples=1),
        train=Train(steps=2, eval_every=1, checkpoint_every=1, log_every=1),
        evaluation=4,
    )
    monkeypatch.setattr(continual, "load_config", lambda path: config)
    monkeypatch.setattr(continual, "PROBE", Programs(odd="i", even="n", digits=2))
    options = continual.Options(
        arms=("fst",),
        seeds=1,
        probe=1,
        base=str(tmp_path / "base"),
        out=tmp_path / "some.json",
        runs=tmp_path / "runs",
    )
    stage = continual.stage

    def stopped(config, task, number, *rest):
        if number:
            raise KeyboardInterrupt
        return stage(config, task, number, *rest)

    monkeypatch.setattr(continual, "stage", stopped)
    with pytest.raises(KeyboardInterrupt):
        continual.main(options)
    (run,) = json.loads(options.out.read_text())["runs"]
    assert not continual.complete(run) and [s["task"] for s in run["stages"]] == ["Conventions"]

    monkeypatch.setattr(continual, "stage", stage)
    continual.main(options)
    (done,) = json.loads(options.out.read_text())["runs"]
    assert done["stages"][0] == run["stages"][0] and done["start"] == run["start"]
    assert [s["curve"][0][0] for s in done["stages"]] == [1, 2]
    for part in (done["start"], *done["stages"]):
        assert set(part["scores"]) == set(TASKS)
        assert [updates for updates, _ in part["probe"]] == [0, 1]
    known = done["stages"][1]["scores"]["Conventions"]["accuracy_own"]
    assert f"after Programs: Conventions {known:.3f}" in capsys.readouterr().out
    monkeypatch.setattr(continual, "train_fast_slow", None)  # nothing is left to run
    continual.main(options)
    # the other arm begins with the same base model: what that is worth is not measured again
    monkeypatch.setattr(continual, "start", None)
    monkeypatch.setattr(continual, "stage", lambda *_: run["stages"][0])
    continual.main(dataclasses.replace(options, arms=("rl",)))
    assert [r["start"] for r in json.loads(options.out.read_text())["runs"]] == [run["start"]] * 2
    for change in ({"updates": 3}, {"probe": 2}):
        with pytest.raises(SystemExit, match="another experiment"):
            continual.main(dataclasses.replace(options, **change))
    with pytest.raises(SystemExit, match="'none'"):
        continual.main(dataclasses.replace(options, arms=("none",)))
