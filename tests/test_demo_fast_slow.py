"""The fast-slow demo: its base is the config's, and what it prints of two runs."""

import dataclasses
import importlib.util

import pytest
from support import ROOT

from fastweights import demo_fast_slow
from fastweights.tasks.programs import Programs
from fastweights.train.config import check


def config_file(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.config


def test_the_base_is_that_of_the_config():
    assert demo_fast_slow.base_config() == config_file("fst_base")
    check(demo_fast_slow.base_config())


@pytest.mark.parametrize("name", ["programs", "conventions", "star_graph", "continual"])
def test_configs_can_run(name):
    from fastweights.fastslow.config import ARMS, arm
    from fastweights.fastslow.config import check as check_fast_slow

    for kind in ARMS:
        check_fast_slow(arm(config_file(f"fst_{name}"), kind))


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
        "members": [{"components": {"odd": "ir", "even": ""}}, {"components": {"odd": "i"}}],
        "scores": [[0.5, None], [0.25, 0.125]],
    }
    events = [{"tick": 8, "kind": "kept", "population": population}]
    text = demo_fast_slow.side_by_side(found, events).splitlines()
    assert len(text) == 4 and text[2].endswith("(empty)") and text[3].endswith("(odd: ir)")
    assert "968" in text[3] and "25.0 %" in text[3] and "12.5 %" in text[3] and "4.50" in text[3]
    demo_fast_slow.draw(found, tmp_path / "a" / "picture.png")
    assert (tmp_path / "a" / "picture.png").stat().st_size > 10_000


def test_all_is_measured_on_the_same_task():
    assert dataclasses.asdict(config_file("fst_programs").task) == dataclasses.asdict(Programs())
