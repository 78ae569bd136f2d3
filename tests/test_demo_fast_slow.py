"""The fast-slow configs, and what the demo prints of two runs."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest
from support import ROOT

from fastweights import demo_fast_slow
from fastweights.cli_args import FastSlowDemo
from fastweights.config_file import load_config
from fastweights.errors import ConfigError
from fastweights.fastslow.config import ARMS, arm, check


def config_file(name):
    return load_config(str(ROOT / "configs" / f"{name}.py"))


@pytest.mark.parametrize("name", ["programs", "conventions", "star_graph", "continual"])
def test_configs_can_run(name):
    config = config_file(f"fst_{name}")
    for kind in ARMS:
        if (kind, name) == ("rl-easy", "programs"):
            with pytest.raises(ConfigError, match="no easier"):
                check(arm(config, kind))
        else:
            check(arm(config, kind))


def line(step, updates, slow, fast, accuracy, kl):
    return {
        "step": step,
        "updates": updates,
        "rollouts_slow": slow,
        "rollouts_fast": fast,
        "validation/accuracy_own": accuracy,
        "validation/kl_sequence_own": kl,
    }


def test_runs_are_shown_side_by_side_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    found = {
        "fast-slow": [line(0, 0, 0, 0, 0.0, 0.0), line(14, 6, 768, 200, 0.25, 0.5)],
        "RL only": [line(0, 0, 0, 0, 0.0, 0.0), line(6, 6, 768, 0, 0.125, 4.5)],
    }
    population = {
        "members": [
            {"id": 0, "components": {"odd": "ir", "even": ""}, "parents": []},
            {"id": 3, "components": {"odd": "i", "even": ""}, "parents": [0]},
        ],
        # a mean is over what could be scored: 0.5 and 0.375
        "scores": [[0.5, None], [0.25, 0.5]],
        "born": 4,
    }
    events = [{"tick": 8, "kind": "kept", "population": population}]
    text = demo_fast_slow.side_by_side(found, events).splitlines()
    assert len(text) == 4 and text[2].endswith("(empty)") and text[3].endswith("(odd: ir)")
    assert "968" in text[3] and "25.0 %" in text[3] and "12.5 %" in text[3] and "4.50" in text[3]
    demo_fast_slow.draw(found, tmp_path / "a" / "picture.png")
    assert (tmp_path / "a" / "picture.png").stat().st_size > 10_000


def test_a_base_model_that_is_not_there_is_trained_only_if_that_is_meant(tmp_path, monkeypatch):
    trained = []

    class Stopped(Exception):
        pass

    def train(config, folder, **_):
        trained.append(folder)
        raise Stopped

    monkeypatch.setattr(demo_fast_slow, "train", train)
    (tmp_path / "fst_base").mkdir()
    given = FastSlowDemo(base=tmp_path / "fst_bse", run_dir=tmp_path / "runs")
    missing = "no base model in .*fst_bse, did you mean 'fst_base'?"
    for terminal, answer in ((False, "y"), (True, "n"), (True, "")):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda yes=terminal: yes))
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        with pytest.raises(ConfigError, match=missing) as error:
            demo_fast_slow.main(given)
        assert "--train-base" in str(error.value)
    assert not trained
    monkeypatch.setattr("builtins.input", lambda _: "y")
    for meant in (given, dataclasses.replace(given, train_base=True)):
        with pytest.raises(Stopped):
            demo_fast_slow.main(meant)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stopped):  # the default is what the demo makes
        demo_fast_slow.main(FastSlowDemo())
    assert trained == [given.base, given.base, FastSlowDemo.base]
