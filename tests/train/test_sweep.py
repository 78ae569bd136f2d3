"""A table: tuned on validation with a seed of its own, resumed by cell, written as it is."""

import dataclasses
import json

import pytest

from fastweights.cli import main
from fastweights.errors import CheckpointError, ConfigError
from fastweights.models.retrieval import RetrievalModel
from fastweights.rules import Hebbian
from fastweights.tasks.base import Data
from fastweights.tasks.retrieval import Retrieval
from fastweights.train import Optim, Train, sweep
from fastweights.train.seeds import Outcome
from fastweights.train.sweep import Arm, Sweep, SweepArguments, run_sweep, thinned
from fastweights.train.sweep_table import markdown


def rows():
    return {
        cell: Arm(
            lambda units, cell=cell: RetrievalModel(cell=cell, hidden=units, embed=4, expand=4),
            paper,
        )
        for cell, paper in (("irnn", {4: 60.0}), ("fast-weights", {4: 1.81, 6: 0.0}))
    }


@pytest.fixture
def small(tmp_path_factory):
    return Sweep(
        title="small",
        task=Retrieval(pairs=2),
        arms=rows(),
        units=(4, 6),
        grid=(Optim(lr=1e-9), Optim(lr=1e-2)),
        train=Train(steps=20, batch=100, eval_every=10, checkpoint_every=10, log_every=10),
        seeds=(1, 2),
        chance=0.45,
        data=Data(dir=str(tmp_path_factory.getbasetemp().parent / "tfds")),
    )


def arguments(small, run_dir, **more):
    return SweepArguments(run_dir, data=small.data, quiet=True, **more)


def test_a_real_cell_end_to_end(small, tmp_path, monkeypatch):
    """The rate 1e-9 learns nothing in 20 updates, so the other one is taken."""
    monkeypatch.setattr("sys.argv", ["fw", "train", "/home/me/table.py", "--arms", "fast weights"])
    asked = arguments(small, tmp_path, arms=("irnn",), units=(4,))
    record = run_sweep(small, asked)
    (cell,) = record["cells"]
    assert cell["command"] == "fastweights train table.py --arms 'fast weights'"
    assert cell["optim"]["lr"] == 1e-2 and cell["optim"]["decay_steps"] == 20
    assert cell["tuning"][1] < cell["tuning"][0]
    assert [s["seed"] for s in cell["seeds"]] == [1, 2]
    assert all(0 < s["test"]["error"] < 1 and len(s["curve"]) == 2 for s in cell["seeds"])
    assert all(s["train_loss"] > 0 for s in cell["seeds"])
    assert json.loads((tmp_path / "table.json").read_text()) == record
    assert str(tmp_path) not in (tmp_path / "table.json").read_text()
    before = (tmp_path / "cells" / "irnn-4.json").stat().st_mtime_ns
    run_sweep(small, asked)
    assert (tmp_path / "cells" / "irnn-4.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "word, said",
    [("/home/me/tfds", "tfds"), ("../tfds", "tfds"), ("~/runs/a", "a"), ("a/b", "a/b")],
)
def test_commands_are_told_without_the_folders_of_a_machine(word, said):
    assert sweep.shown(word) == said


def scored(seed, error, validation):
    """What training of a net might give."""
    test, last = {"error": error}, {"error": 0.5}
    return Outcome(seed, 10, test, last, validation, 0.0, diverged=False, curve=[], seconds=7.0)


@pytest.fixture
def faked(monkeypatch):
    """Training replaced by arithmetic: error = lr + seed / 1000; returns the calls made."""
    calls = []

    def fake(nets, run_dir, *, quiet):
        lr = nets.config.optim.lr
        calls.append((nets.config.model.cell, nets.config.model.hidden, lr, nets.seeds))
        return [scored(s, lr + s / 1000, lr) for s in nets.seeds]

    monkeypatch.setattr(sweep, "train_seeds", fake)
    return calls


def test_every_cell_is_tuned_and_then_trained(small, tmp_path, faked):
    run_sweep(small, arguments(small, tmp_path))
    expected = [
        call
        for units in (4, 6)
        for cell in ("irnn", "fast-weights")
        for call in (
            (cell, units, 1e-9, (0,)),
            (cell, units, 1e-2, (0,)),
            (cell, units, 1e-9, (1, 2)),
        )
    ]
    assert faked == expected
    run_sweep(small, arguments(small, tmp_path))
    assert len(faked) == len(expected)


def test_the_grid_may_be_tried_in_shorter_runs(small, tmp_path, monkeypatch):
    """5 updates each for the two rates, with cosines as long, and then the full 20; a row may have
    its own number.
    """
    lengths = []

    def fake(nets, run_dir, *, quiet):
        lengths.append((nets.config.train.steps, nets.config.optim.decay_steps))
        return [scored(s, 0.1, 0.1) for s in nets.seeds]

    monkeypatch.setattr(sweep, "train_seeds", fake)
    shorter = dataclasses.replace(small, tuning_steps=5)
    record = run_sweep(shorter, arguments(small, tmp_path, arms=("irnn",), units=(4,)))
    assert lengths == [(5, 5), (5, 5), (20, 20)]
    assert record["cells"][0]["wall_seconds"] == 3 * 7.0
    assert (record["cells"][0]["updates"], record["cells"][0]["tuning_updates"]) == (20, 5)
    rows = {name: dataclasses.replace(arm, tuning_steps=10) for name, arm in small.arms.items()}
    other = dataclasses.replace(shorter, arms=rows)
    record = run_sweep(other, arguments(small, tmp_path / "other", arms=("irnn",), units=(4,)))
    assert lengths[3:] == [(10, 10), (10, 10), (20, 20)]
    assert record["cells"][0]["tuning_updates"] == 10


def test_a_row_may_have_variants_of_its_model(small, tmp_path, monkeypatch):
    """Two decays with two rates each: the best of the four is trained, whatever its model."""
    called = []

    def fake(nets, run_dir, *, quiet):
        decay, lr = nets.config.model.rule.decay, nets.config.optim.lr
        called.append((decay, lr, nets.seeds, run_dir.name))
        score = 0.5 - 0.4 * (decay == 0.95 and lr == 1e-2)
        return [scored(s, score, score) for s in (1, 2)]

    monkeypatch.setattr(sweep, "train_seeds", fake)
    model = lambda decay: lambda units: RetrievalModel(hidden=units, rule=Hebbian(decay=decay))
    arms = {"fast weights": Arm(model(0.9), variants=(model(0.95),))}
    asked = arguments(small, tmp_path, units=(4,))
    (cell,) = run_sweep(dataclasses.replace(small, arms=arms), asked)["cells"]
    grid = [(decay, lr) for decay in (0.9, 0.95) for lr in (1e-9, 1e-2)]
    assert [call[:3] for call in called] == [(*x, (0,)) for x in grid] + [(0.95, 1e-2, (1, 2))]
    assert len({call[3] for call in called}) == 5
    assert cell["chosen"] == 3 and cell["optim"]["lr"] == 1e-2
    assert [(x["model"]["rule"]["decay"], x["optim"]["lr"]) for x in cell["grid"]] == grid


def test_the_table_by_hand(small, tmp_path, faked):
    """Errors 0.1 % and 0.2 %: mean 0.15, standard deviation 0.07 %. In brackets the one with the
    better validation: the second of the first row; of two alike, the first.
    """
    record = run_sweep(small, arguments(small, tmp_path, units=(4,)))
    record["cells"][0]["seeds"][1]["validation"] /= 2
    text = markdown(record)
    lines = text.splitlines()
    assert lines[0] == "| test error, % | 4 units | paper | 6 units | paper |"
    assert lines[2] == "| irnn | 0.15 ± 0.07 (0.20) | 60 | not run | – |"
    assert lines[3] == "| fast-weights | 0.15 ± 0.07 (0.10) | 1.81 | not run | 0 |"
    assert "Chance is 45.00 %" in text and "2 seeds" in text and "20 updates of 100" in text


def test_what_was_not_done_is_not_told(small, tmp_path, faked):
    """No deviation of one seed, and no choice among one rate."""
    one = dataclasses.replace(small, seeds=(1,), grid=small.grid[:1], units=(4,))
    text = markdown(run_sweep(one, arguments(one, tmp_path)))
    assert "| 0.10 |" in text and "One seed; 20 updates" in text and "learning rate 1e-09;" in text
    assert "±" not in text and "another seed" not in text


def test_decays_that_were_tried_are_told(small, tmp_path, faked):
    """One decay is stated, several are a choice; none at all is not worth a word."""
    for decays, said in (((0.1,), "weight decay 0.1;"), ((0.0, 0.1), "weight decay from {0, 0.1}")):
        grid = tuple(Optim(lr=1e-2, weight_decay=decay) for decay in decays)
        one = dataclasses.replace(small, grid=grid, units=(4,))
        folder = tmp_path / str(len(decays))
        assert f"learning rate 0.01; {said}" in markdown(run_sweep(one, arguments(one, folder)))
    text = markdown(run_sweep(small, arguments(small, tmp_path / "none", units=(4,))))
    assert "weight decay" not in text


def test_a_table_goes_on_from_its_one_file(small, tmp_path, faked):
    """As one that was committed: only the file is copied, and only what it lacks is run."""
    run_sweep(small, arguments(small, tmp_path / "there", units=(4,)))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "table.json").write_bytes((tmp_path / "there/table.json").read_bytes())
    faked.clear()
    record = run_sweep(small, arguments(small, tmp_path / "here"))
    assert len(record["cells"]) == 4 and {units for _, units, _, _ in faked} == {6}


def test_two_processes_share_a_run_directory(small, tmp_path, faked):
    run_sweep(small, arguments(small, tmp_path, arms=("irnn",)))
    record = run_sweep(small, arguments(small, tmp_path, arms=("fast-weights",)))
    assert [(c["arm"], c["units"]) for c in record["cells"]] == [
        ("irnn", 4),
        ("irnn", 6),
        ("fast-weights", 4),
        ("fast-weights", 6),
    ]


def test_a_cell_of_another_grid_is_not_taken_for_this_one(small, tmp_path, faked):
    run_sweep(small, arguments(small, tmp_path, units=(4,)))
    other = dataclasses.replace(small, grid=(Optim(lr=1e-3),))
    with pytest.raises(ConfigError, match="another sweep"):
        run_sweep(other, arguments(small, tmp_path, units=(4,)))


def test_data_is_where_the_sweep_says_or_the_command(small, tmp_path, monkeypatch):
    seen = []

    def fake(nets, run_dir, *, quiet):
        seen.append((nets.config.data.dir, nets.config.data.manual_dir))
        return [scored(s, 0.1, 0.1) for s in nets.seeds]

    monkeypatch.setattr(sweep, "train_seeds", fake)
    own = dataclasses.replace(small, data=Data("own", "files"), grid=small.grid[:1], units=(4,))
    run_sweep(own, SweepArguments(tmp_path, arms=("irnn",), quiet=True))
    given = SweepArguments(tmp_path, arms=("fast-weights",), data=Data("given"), quiet=True)
    run_sweep(own, given)
    assert seen == [("own", "files"), ("given", "files")]


def test_a_folder_that_takes_no_cells_is_told_of(small, tmp_path, faked):
    (tmp_path / "cells").touch()
    with pytest.raises(CheckpointError, match="cannot write to the run directory"):
        run_sweep(small, arguments(small, tmp_path, units=(4,)))


@pytest.mark.parametrize(("name", "given"), [("arms", ("lstm",)), ("units", (5,))])
def test_unknown_rows_and_sizes_are_named(small, tmp_path, name, given):
    with pytest.raises(ConfigError, match=f"{given[0]}"):
        run_sweep(small, arguments(small, tmp_path, **{name: given}))


def test_quick_is_refused_where_there_is_none(small, tmp_path):
    with pytest.raises(ConfigError, match="no quick form"):
        run_sweep(small, arguments(small, tmp_path, quick=True))


def test_a_diverged_seed_is_counted(small, tmp_path, faked):
    record = run_sweep(small, arguments(small, tmp_path, units=(4,), arms=("irnn",)))
    record["cells"][0]["seeds"][0]["diverged"] = True
    assert "0.15 ± 0.07, 1 diverged (0.10)" in markdown(record)


def test_a_thinned_curve_keeps_its_end():
    curve = [{"step": i, "loss": 1 / 3} for i in range(1, 98)]
    kept = thinned(curve, 20)
    assert kept[-1] == {"step": 97, "loss": 0.33333} and 20 <= len(kept) <= 25


def test_the_command_line_runs_the_committed_table(tmp_path, faked, capsys):
    assert main(["train", "configs/retrieval_table.py", "--run-dir", str(tmp_path), "--quiet"]) == 0
    assert "| fast weights | 0.30 ± 0.10 (0.20) | 1.81 |" in capsys.readouterr().out
    assert main(["train", "configs/retrieval_table.py", "--units", "7", "--run-dir", "x"]) == 2
    assert "choose from 20, 50, 100" in capsys.readouterr().err
