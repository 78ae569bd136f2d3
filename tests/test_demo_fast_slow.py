"""The fast-slow configs, and what the demo prints of two runs."""

import pytest
from support import ROOT

from fastweights import demo_fast_slow
from fastweights.cli import load_config
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
