"""The learning curves' arithmetic, and that finished runs are not run again."""

import importlib
import importlib.util
import json

import pytest
from support import ROOT


@pytest.fixture
def catch(script):
    return script("catch")


def test_games_to_a_level_are_those_of_a_window(catch):
    """Means of two: 0.4, 0.4, 0.65, 0.95; a single lucky point is not enough."""
    curve = [(10, 0.9), (20, -0.1), (30, 0.9), (40, 0.4), (50, 1.5)]
    assert catch.games_to(curve, 0.5, window=20) == 40
    assert catch.games_to(curve, 0.9, window=20) == 50
    assert catch.games_to(curve, 0.96, window=20) is None
    assert catch.games_to(curve, 0.9, window=1) == 10


def test_runs_that_never_got_there_are_counted(catch):
    assert catch.spread([20_000, None, 10_000]) == "20k (10-20), 1 never"
    assert catch.spread([20_000, None, None]) == "never (20-20), 2 never"
    assert catch.spread([20_000, 10_000]) == "15k (10-20)"
    assert catch.spread([None]) == "never"


def test_arms_differ_in_cell_and_setting_only(catch):
    from fastweights.train.config import differences, to_json

    best = catch.chosen(16)
    one, other = (to_json(catch.config_of(a, best[a], 16, 200, 0)) for a in list(catch.ARMS)[:2])
    allowed = {"model.cell", "optim.lr", "model.rule.decay", "model.rule.lr"}
    assert {"model.cell"} <= set(differences(one, other)) <= allowed


def test_every_arm_has_as_many_settings(catch):
    assert {len(settings) for settings in catch.GRID.values()} == {4}


def test_the_setting_taken_has_the_most_reward_over_its_seeds(catch, monkeypatch, tmp_path):
    """4e-3 has the best single run, 2e-3 the best mean; an arm without a grid keeps its default."""
    rewards = {2e-3: (0.5, 0.6), 4e-3: (0.9, -0.5)}
    runs = [
        {"arm": "LSTM", "setting": catch.Setting(lr)._asdict(), "mean_reward": reward}
        for lr, both in rewards.items()
        for reward in both
    ]
    (tmp_path / "catch_16_grid.json").write_text(json.dumps({"runs": runs}))
    monkeypatch.setattr(catch, "RESULTS", tmp_path)
    assert catch.chosen(16)["LSTM"].lr == 2e-3
    assert catch.chosen(16)["RNN"] == catch.UNTUNED["RNN"]


def test_a_random_search_draws_as_often_and_within_bounds(catch):
    """The same settings every time; λ, η and S vary where there are fast weights."""
    for arm, (low, high) in catch.RATES.items():
        settings = catch.drawn(arm)
        assert settings == catch.drawn(arm) and len(settings) == catch.DRAWS
        assert all(low <= setting.lr <= high for setting in settings)
        rules = {(x.decay, x.fast_lr, x.steps) for x in settings}
        assert len(rules) == (catch.DRAWS if arm == "RNN + fast weights" else 1)
        assert all(0 < x.decay < 1 and 0.03 <= x.fast_lr <= 0.5 for x in settings)
    assert {x.steps for x in catch.drawn("RNN + fast weights")} == {1, 2}
    two = catch.config_of("RNN + fast weights", catch.Setting(1e-2, steps=2), 16, 200, 0)
    assert two.model.rule.steps == 2
    wanted = catch.wanted(catch.Options(search=True), 16, 200)
    assert len(wanted) == 3 * catch.DRAWS == len(set(wanted))


def test_the_curve_of_the_best_runs_is_their_mean(catch, monkeypatch):
    """The worst of six is left out; the mean gets to 0.9 later than four of its five runs."""
    monkeypatch.setattr(catch, "WINDOW", 1_000)
    ends = [0.0, 1.0, 1.0, 1.0, 1.0, -1.0]  # reward of the second thousand games
    runs = [
        {
            "arm": "LSTM",
            "mean_reward": (-1 + 2 * end) / 3,
            "final_reward": end,
            "games_to": {"0.0": 2_000, "0.5": 2_000, "0.9": 2_000 if end == 1 else None},
            "curve": [[1_000, -1.0], [2_000, end], [3_000, 1.0 if end >= 0 else -1.0]],
        }
        for end in ends
    ]
    row = catch.best_table(runs).splitlines()[-1]
    assert row == "| LSTM | 4 of 6 | 2k | 2k | 3k | 2k (2-2), 1 never | +0.800 |"


def test_a_setting_is_a_row_with_its_seeds_together(catch):
    """λ, η and S where there are fast weights; least and most reward over all games."""
    runs = [
        {
            "arm": "RNN + fast weights",
            "setting": catch.Setting(1e-2, 0.6, 0.2, 2)._asdict(),
            "games_to": {"0.0": games, "0.5": games, "0.9": None},
            "mean_reward": reward,
            "final_reward": reward,
            "frames_per_second": 1_000,
        }
        for games, reward in ((2_000, 0.5), (4_000, -0.25), (6_000, 0.2))
    ]
    row = catch.table(runs).splitlines()[-1]
    assert row == (
        "| RNN + fast weights | 0.01 | 0.6, 0.2, 2 | 3 | 4k (2-6) | 4k (2-6) | never | "
        "-0.25 to +0.50 | +0.150 | 1,000 |"
    )


def test_the_configs_are_the_arm_of_the_figure(catch):
    for size in (16, 24):
        spec = importlib.util.spec_from_file_location("c", ROOT / f"configs/catch_{size}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        arm = "RNN + fast weights"
        best = catch.found(size, (arm,))[arm]
        expected = catch.config_of(arm, best, size, module.config.train.steps, 0)
        assert module.config.model == expected.model and module.config.task == expected.task
        assert module.config.learn == expected.learn
        assert module.config.optim == expected.optim


def test_a_finished_run_is_not_run_again(catch, tmp_path, capsys):
    options = catch.Options(
        quick=True, updates=60, arms=("RNN",), out=tmp_path / "c.json", runs=tmp_path / "runs"
    )
    catch.main(options)
    first = json.loads((tmp_path / "c.json").read_text())
    assert len(first["runs"]) == 1 and first["runs"][0]["games"] == 60 * 128
    assert len(first["runs"][0]["curve"]) == 3 and first["chance"] == -0.5
    catch.main(options)
    assert json.loads((tmp_path / "c.json").read_text()) == first
    assert capsys.readouterr().out.count("seed 0: games") == 1


def test_runs_of_another_length_are_kept_and_not_mixed_in(catch, tmp_path, capsys):
    """Curves of two lengths have no mean."""
    known = {
        "arm": "RNN",
        "setting": catch.Setting(1e-3)._asdict(),
        "seed": 200,
        "updates": 40,
        "mean_reward": 1.0,
        "curve": [[2_560, 1.0]],
    }
    (tmp_path / "c.json").write_text(json.dumps({"runs": [known]}))
    options = catch.Options(
        quick=True, updates=60, arms=("RNN",), out=tmp_path / "c.json", runs=tmp_path / "runs"
    )
    catch.main(options)
    assert json.loads((tmp_path / "c.json").read_text())["runs"][0] == known
    assert "| RNN | 0.001 | – | 1 |" in capsys.readouterr().out


def test_two_ways_to_try_settings_are_refused_together(catch):
    with pytest.raises(SystemExit, match="give one of them"):
        catch.main(catch.Options(grid=True, search=True))
    with pytest.raises(SystemExit, match="--search and --confirm"):
        catch.main(catch.Options(search=True, confirm=True))


def test_the_best_run_of_the_search_is_tried_again(catch, monkeypatch, tmp_path):
    """The setting with the most reward in one run, with seeds that the search did not see."""
    monkeypatch.setattr(catch, "RESULTS", tmp_path)
    again = catch.Options(confirm=True, arms=("LSTM",))
    with pytest.raises(SystemExit, match=r"no search of LSTM .*--size 16 --search"):
        catch.wanted(again, 16, 200)
    runs = [
        {"arm": "LSTM", "setting": catch.Setting(lr)._asdict(), "mean_reward": reward}
        for lr, reward in ((2e-3, 0.5), (4e-3, 0.7), (8e-3, 0.6))
    ]
    (tmp_path / "catch_16_search.json").write_text(json.dumps({"runs": runs}))
    wanted = catch.wanted(again, 16, 200)
    assert wanted == [("LSTM", catch.Setting(4e-3), seed) for seed in range(5)]
    assert not set(range(5)) & set(range(catch.FIRST_SEED, catch.FIRST_SEED + catch.DRAWS))


def test_a_locked_run_is_told_without_a_traceback(script, capsys):
    from fastweights.errors import ConfigError

    with pytest.raises(SystemExit) as stop, script("harness").telling_errors():
        raise ConfigError("another process is at work in this run directory", where="runs/c")
    assert stop.value.code == 2
    assert "ConfigError: another process" in capsys.readouterr().err
