"""The demo from end to end, in miniature, and what it says when something is missing."""

import sys

import pytest

from fastweights import demo
from fastweights.errors import ConfigError


def test_demo_trains_both_nets_prints_a_table_and_saves_a_picture(tmp_path, capsys):
    demo.main(demo.Arguments(out=tmp_path / "demo", updates=30))
    out = capsys.readouterr().out
    assert "61.65%" in out and "c9k8j3f1??c" in out and "fast weights" in out
    picture = tmp_path / "demo" / "fast_weights.png"
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 20_000
    assert (tmp_path / "demo" / "with" / "checkpoints").is_dir()


def test_the_two_nets_differ_in_eta_alone(tmp_path):
    from fastweights.train.config import differences, to_json

    arms = [demo.arm_config(demo.Arguments(out=tmp_path), lr) for lr in demo.ARMS.values()]
    assert differences(*map(to_json, arms)) == {"model.rule.lr": (0.5, 0.0)}


def test_without_matplotlib_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="matplotlib"):
        demo.main(demo.Arguments(out=tmp_path / "demo"))
    assert not (tmp_path / "demo").exists()
