"""The demo from end to end, and its errors when something is missing."""

import dataclasses
import re
import sys

import pytest

from fastweights import demo, demo_catch
from fastweights.cli_args import CatchDemo, RetrievalDemo
from fastweights.errors import ConfigError
from fastweights.train import Result
from fastweights.train.run_dir import open_run, record_start
from fastweights.train.state import TrainState


def test_demo_trains_both_nets_prints_a_table_and_saves_a_picture(
    optimized, tmp_path, monkeypatch, capsys
):
    """`make demo` with all its updates; the control, which stays wrong, has a single one."""
    arm_config = demo.arm_config

    def short_control(arguments, lr):
        return arm_config(arguments if lr else dataclasses.replace(arguments, updates=1), lr)

    monkeypatch.setattr(demo, "arm_config", short_control)
    monkeypatch.setenv("COLUMNS", "120")  # a row of the table is one line
    demo.main(RetrievalDemo(out=tmp_path / "demo"))
    out = capsys.readouterr().out
    rows = [re.split("[│┃]", line)[1:-1] for line in out.splitlines()]
    table = {name.strip(): [cell.strip() for cell in cells] for name, *cells in filter(None, rows)}
    *answers, error = table["fast weights"]
    *right, _ = table["right answer"]
    assert answers == right == ["9", "5", "6"]
    assert float(error.removesuffix("%")) < 5
    assert "61.65%" in out and "c9k8j3f1??c" in out
    picture = tmp_path / "demo" / "fast_weights.png"
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 20_000
    assert (tmp_path / "demo" / "with" / "checkpoints").is_dir()


def test_the_two_nets_differ_in_eta_alone(tmp_path):
    from fastweights.train.config import differences, to_json

    arms = [demo.arm_config(RetrievalDemo(out=tmp_path), lr) for lr in demo.ARMS.values()]
    assert differences(*map(to_json, arms)) == {"model.rule.lr": (0.1, 0.0)}


def test_another_demo_in_the_folder_is_told_of_in_words_of_the_demo(tmp_path):
    older = demo.arm_config(RetrievalDemo(out=tmp_path, updates=300), 0.5)
    record_start(open_run(tmp_path / "with", older), older)
    (tmp_path / "with" / "metrics.jsonl").write_text('{"step": 20}\n')
    with pytest.raises(ConfigError, match="decay_steps: the run has 300") as error:
        demo.main(RetrievalDemo(out=tmp_path))
    assert "--out" in str(error.value) and "--run-dir" not in str(error.value)


def test_a_player_that_was_never_saved_is_trained(tmp_path, monkeypatch):
    """A start that was killed left its config, and nothing that could be shown."""
    config = demo_catch.player(40, 0)
    record_start(open_run(tmp_path, config), config)
    trained, shown = [], []

    def train(config, run_dir):
        trained.append((config, run_dir))
        return Result(TrainState(*4 * [None]), [], run_dir)

    monkeypatch.setattr(demo_catch, "train_agent", train)
    monkeypatch.setattr(demo_catch, "show", lambda *_, **__: shown.append(1))
    demo_catch.main(CatchDemo(run_dir=tmp_path, updates=20))
    assert trained == [(demo_catch.player(20, 0), tmp_path)] and shown


def test_without_matplotlib_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="matplotlib"):
        demo.main(RetrievalDemo(out=tmp_path / "demo"))
    assert not (tmp_path / "demo").exists()
