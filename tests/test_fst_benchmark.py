"""What benchmarks/fst.py makes of its runs: rates, what is missing, costs, the table."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from support import ROOT

from fastweights.config_file import load_config


@pytest.fixture
def fst(script):
    return script("fst")


def made(fst, arm, seed, curve, lr=1e-3, proposer="inductive", fast=0):
    """A run with these accuracies, 64 rollouts of the slow loop and `fast` of the other a step."""
    return {
        "arm": arm,
        "lr": lr,
        "seed": seed,
        "updates": 6 * (len(curve) - 1),
        "proposer": proposer,
        "base": "0" * 12,
        "names": ["updates", "rollouts_slow", "rollouts_fast", "seconds", *fst.KEPT],
        "curve": [
            [6 * i, 64 * i, fast * i, float(i), accuracy, 0.01, 0.02 * i, 0.5 * i, 0.6 * i]
            for i, accuracy in enumerate(curve)
        ],
        "two_by_two": {
            "base_seed": 0.0,
            "base_evolved": 0.5,
            "trained_seed": 0.25,
            "trained_evolved": curve[-1],
        },
    }


def test_the_best_rate_is_the_sweeps(fst):
    sweep = fst.SWEEP_SEED
    runs = [
        made(fst, "rl", sweep, [0.0, 0.2, 0.9], lr=1e-4),
        made(fst, "rl", sweep, [0.0, 0.6, 0.6], lr=3e-4),
        # neither another seed nor another arm counts
        made(fst, "rl", 0, [0.0, 1.0, 1.0], lr=1e-3),
        made(fst, "fst", sweep, [0.0, 1.0, 1.0], lr=1e-3),
        made(fst, "rl", sweep, [0.0, 1.0, 1.0], lr=1e-3, proposer="self"),
    ]
    assert fst.best_rate(runs, "rl") == 3e-4
    assert fst.best_rate(runs, "fst") == 1e-3
    assert fst.best_rate(runs, "evolution") is None
    runs.append(made(fst, "rl", 1, [0.0, 0.5, 0.5], lr=3e-4))
    assert [r["seed"] for r in fst.reported(runs, "rl")] == [1]


def test_what_is_wanted(fst):
    options, arms = fst.Options(arms=("fst", "evolution", "rl-kl")), tuple(fst.ARMS)
    sweep = fst.wanted(dataclasses.replace(options, sweep=True), arms, [])
    assert len(sweep) == 4 + 1 + 4 and {seed for _, _, seed in sweep} == {fst.SWEEP_SEED}
    done = [made(fst, "fst", fst.SWEEP_SEED, [0.0, 0.1], lr=3e-4)]
    runs = fst.wanted(options, arms, done)
    # five seeds of the main arms and three of others, the first seeds of all of them first
    assert [n for n, _, _ in runs[:3]] == ["fst", "evolution", "rl-kl"]
    assert [sum(n == name for n, _, _ in runs) for name in options.arms] == [5, 5, 3]
    assert {lr for name, lr, _ in runs if name == "fst"} == {3e-4}
    quick = fst.wanted(fst.Options(quick=True), arms, [])
    assert [(n, seed) for n, _, seed in quick] == [(n, 0) for n in fst.MAIN]
    with pytest.raises(SystemExit, match="'none'"):
        fst.wanted(fst.Options(arms=("none",)), arms, [])


def test_a_task_without_easier_problems_has_no_such_arm(fst):
    config = lambda name: load_config(str(ROOT / "configs" / f"fst_{name}.py"))
    assert set(fst.ARMS) - set(fst.possible(config("programs"))) == {"rl-easy"}
    assert fst.possible(config("star_graph")) == tuple(fst.ARMS)


def test_costs_are_counted_to_what_rl_only_reaches(fst):
    runs = [
        made(fst, "rl", fst.SWEEP_SEED, [0.0, 0.5, 0.5]),
        made(fst, "rl", 0, [0.0, 0.5, 0.375]),
        made(fst, "rl", 1, [0.0, 0.25, 0.25]),
        made(fst, "fst", 0, [0.0, 0.5, 1.0], fast=32),
        made(fst, "fst", 1, [0.0, 0.25, 0.75], fast=32),
        made(fst, "fst", 2, [0.0, 0.0, 0.125], fast=32),
        made(fst, "fst", 0, [0.0, 0.125, 0.125], proposer="blind", fast=32),
    ]
    assert fst.peak(runs) == 0.375
    assert fst.rollouts(runs[3]) == [0, 96, 192]
    assert fst.arrival(runs[3], 0.375) == (6, 96, 1.0, 0.5)
    assert fst.arrival(runs[5], 0.375) is None and fst.arrival(runs[3], None) is None
    table = fst.table(runs)
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if "%" in line}
    assert "| 62.5 % (12-100) | 192 | 192, 1 never | 1.00 | 1.20 |" in rows["fst"]
    assert "0.0, 25.0 %" in rows["fst"] and "50.0, 62.5 %" in rows["fst"]
    assert (
        "| 1 | 12.5 % (12-12) |" in rows["fst, blind proposer"]
        and "never" in (rows["fst, blind proposer"])
    )
    assert "| never, 1 of 2 did |" in rows["rl"]
    assert "RL's peak: 37.5 %" in table
    # 64 rollouts to 0.5, and to 0.25, against 96; all after one evaluation
    assert fst.matched(runs) == [(1.0, 64 / 96, 1.0, 1.0)] * 2
    assert "| 2 | 1 (1-1) | 0.67 (0.67-0.67) | 1 (1-1) | 1 (1-1) |" in table
    # a seed with which it never gets there counts: as the worst in the median, and by name
    missed = [*runs[:4], made(fst, "fst", 1, [0.0, 0.1, 0.1], fast=32)]
    assert fst.matched(missed) == [(1.0, 64 / 96, 1.0, 1.0), None]
    assert "| 2 | 0.5 (1-1) | 0.33 (0.67-0.67) | 0.5 (1-1) | inf (1-1) |" in fst.table(missed)
    assert "never reaches that accuracy with 1 of 2 seeds" in fst.table(missed)
    never = [r for r in runs if r["arm"] == "rl"] + [made(fst, "fst", 0, [0.0, 0.1, 0.1])]
    assert fst.matched(never) == [None] and "RL / fst" not in fst.table(never)
    assert "never reaches that accuracy with 1 of 1 seeds" in fst.table(never)


def test_never_is_above_every_number(fst):
    assert fst.there([3, 1, 2]) == "2"
    assert fst.there([3, None, 2]) == "3, 1 never"
    assert fst.there([3, None, None]) == "never, 1 of 3 did"
    assert fst.there([None, None]) == "never"


def test_the_edge_of_the_sweep_is_named(fst):
    runs = [
        made(fst, "rl", fst.SWEEP_SEED, [0.0, 0.5, 0.5], lr=1e-3),
        made(fst, "rl", fst.SWEEP_SEED, [0.0, 0.2, 0.2], lr=1e-4),
        made(fst, "rl", 0, [0.0, 0.5, 0.5], lr=1e-3),
    ]
    assert "| rl | 0.001, largest tried | 1 |" in fst.table(runs)
    runs.append(made(fst, "rl", fst.SWEEP_SEED, [0.0, 0.1, 0.1], lr=3e-3))
    assert "| rl | 0.001 | 1 |" in fst.table(runs)


def test_nothing_is_compared_at_an_accuracy_of_nothing(fst):
    """One lucky answer of RL only is no peak that others reach in so many rollouts."""
    runs = [
        made(fst, "rl", 0, [0.0, 0.0, 0.004]),
        made(fst, "fst", 0, [0.0, 0.125, 0.25]),
    ]
    table = fst.table(runs)
    assert "| 25.0 % (25-25) | 128 | – |" in table
    assert "RL's peak: 0.4 %" in table and "learned nothing" in table and "RL / fst" not in table


def test_runs_of_two_experiments_are_not_put_in_one_table(fst, monkeypatch, tmp_path):
    """Another base model, or another length: the file would compare what cannot be compared."""
    monkeypatch.setattr(fst.pretrained, "load", lambda path: SimpleNamespace(model=None))
    monkeypatch.setattr(fst, "fingerprint", lambda model: "1" * 64)
    monkeypatch.setattr(fst, "train_fast_slow", None)  # nothing is run
    out = tmp_path / "some.json"
    out.write_text(json.dumps({"runs": [made(fst, "fst", 0, [0.0, 0.5], lr=1e-4)]}))
    with pytest.raises(SystemExit, match="another experiment"):
        fst.main(fst.Options(arms=("fst",), seeds=1, updates=6, out=out))
    monkeypatch.setattr(fst, "fingerprint", lambda model: "0" * 64)
    fst.main(fst.Options(arms=("fst",), seeds=1, updates=6, out=out))  # this one is done
    with pytest.raises(SystemExit, match="another experiment"):
        fst.main(fst.Options(arms=("fst",), seeds=1, updates=12, out=out))
