"""The benchmark runs, refuses wrong contenders, and its arithmetic is right; no time is judged."""

import json

import numpy as np
import pytest
from support import ROOT


@pytest.fixture
def benchmarks(script):
    """What the recurrent layers' benchmark is made of."""
    names = {"harness": "harness", "rnn": "rnn", "page": "rnn_page"}
    return {short: script(name) for short, name in names.items()}


@pytest.mark.parametrize("training", [False, True])
def test_jax_contenders_agree_with_float64(benchmarks, training):
    found, dropped = benchmarks["rnn"].contenders((2, 19, 6), training, seed=0, with_torch=False)
    assert not dropped
    assert set(found) == {
        "ours auto",
        "ours matrix",
        "ours attention",
        "plain scan matrix",
        "plain scan attention",
        "flax LSTM",
    }
    assert all(one.error < 2e-5 for one in found.values())


def test_a_wrong_contender_is_dropped_with_a_message(benchmarks, monkeypatch, capsys):
    rnn, all_makers = benchmarks["rnn"], benchmarks["rnn"].makers

    def spoiled(*arguments):
        kind, make = all_makers(*arguments)["ours matrix"]
        wrong = lambda p, xs, d: make(p, xs * 1.01, d)
        return {"right": (kind, make), "wrong": (kind, wrong)}

    monkeypatch.setattr(rnn, "makers", spoiled)
    found, dropped = rnn.contenders((2, 5, 6), False, seed=0, with_torch=False)
    assert list(found) == ["right"] and list(dropped) == ["wrong"]
    assert "dropped wrong" in capsys.readouterr().out


def test_blocks_save_less_for_the_backward_pass_than_a_plain_scan(benchmarks):
    """What `unroll` is for; XLA's plan of memory does not depend on how busy the machine is."""
    found, _ = benchmarks["rnn"].contenders((2, 64, 96), True, seed=0, with_torch=False)
    temp = {name: one.temp_bytes for name, one in found.items()}
    assert temp["ours attention"] < 0.6 * temp["plain scan attention"]
    assert temp["ours matrix"] < 0.6 * temp["plain scan matrix"]


def test_a_run_writes_what_a_number_needs_beside_it(benchmarks, tmp_path, monkeypatch, capsys):
    """One tiny run end to end, without torch: record, tables, and the message about torch."""
    rnn = benchmarks["rnn"]
    monkeypatch.setattr(rnn.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        rnn, "crossover", lambda h, s, t, o: {**CROSSOVER, "mode": "train" if t else "forward"}
    )
    rnn.main(rnn.Options(quick=True, out=tmp_path / "rnn.json", rounds=2))
    record = json.loads((tmp_path / "rnn.json").read_text())
    for key in ("command", "date", "machine", "versions", "seed", "load_start", "load_end"):
        assert record[key] not in (None, "", [])
    assert len(record["layers"]) == 4
    group = record["layers"][0]
    assert (group["batch"], group["length"], group["hidden"]) == (4, 5, 8)
    assert group["contenders"]["ours auto"]["median_ms"] > 0
    assert "flax LSTM / ours auto" in group["ratios"]
    printed = capsys.readouterr().out
    assert "torch is not installed" in printed and "| 4, 5, 8 | train | ours matrix |" in printed


CROSSOVER = {
    "batch": 4,
    "hidden": 8,
    "steps": 1,
    "points": [
        {"length": 4, "matrix_over_attention": {"median": 2.0}},
        {"length": 16, "matrix_over_attention": {"median": 0.5}},
    ],
    "crosses_at": 8.0,
}


def test_where_a_ratio_crosses_one(benchmarks):
    """From 2 at T = 4 to 1/2 at T = 16: half way in the logarithm, 8."""
    crossing = benchmarks["rnn"].crossing
    assert crossing([(4, 2.0), (16, 0.5)]) == 8.0
    assert crossing([(4, 3.0), (16, 1.5)]) is None
    assert "| 8.0 | 1.00 |" in benchmarks["page"].crossover_table(
        {"crossover": [{**CROSSOVER, "mode": "train"}]}
    )


def test_ratios_are_taken_inside_rounds(benchmarks):
    """A round slow for both leaves its ratio alone; the ratio of medians need not be the same."""
    ratio = benchmarks["harness"].ratio({"a": [2.0, 8.0, 3.0], "b": [1.0, 4.0, 1.0]}, "a", "b")
    assert ratio["median"] == 2.0 and ratio["of_medians"] == 3.0


def test_every_contender_is_called_once_untimed_and_repeats_times_a_round(benchmarks):
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = benchmarks["harness"].interleave(runs, rounds=2, repeats=2)
    assert "".join(calls) == "aaabbb" + "bbbaaa"
    assert [len(s) for s in seconds.values()] == [2, 2]


def test_norm_ratio_is_relative_to_the_expected_norm(benchmarks):
    expected = [np.array([3.0, 4.0]), np.array([10.0])]
    actual = [np.array([3.0, 4.5]), np.array([10.1])]
    assert benchmarks["harness"].norm_ratio(actual, expected) == pytest.approx(0.1)


def test_a_page_keeps_what_stands_outside_its_markers(benchmarks):
    page = "before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter\n"
    put = benchmarks["harness"].between_markers
    assert put(page, "x", "new\n") == page.replace("old", "new")
    with pytest.raises(ValueError, match="y:begin"):
        put(page, "y", "new")


def test_the_page_on_speed_says_what_its_json_says(benchmarks):
    record = json.loads((ROOT / "benchmarks/results/rnn.json").read_text())
    page = (ROOT / "docs/performance.md").read_text()
    text = benchmarks["page"].tables(record)
    assert benchmarks["harness"].between_markers(page, "rnn", text) == page


def test_two_checkouts_are_compared(script, tmp_path, capsys):
    checkouts, out = script("checkouts"), tmp_path / "checkouts.json"
    name = "cell 16, 64, 128 forward"
    checkouts.main(checkouts.Options(old=ROOT, only=(name,), rounds=2, out=out))
    record = json.loads(out.read_text())
    assert list(record["contenders"]) == [name]
    found = record["contenders"][name]
    assert found["temp_bytes"]["old"] == found["temp_bytes"]["new"] > 0
    assert found["old over new"]["of_medians"] > 0
    assert name in capsys.readouterr().out
    # an old checkout with a file of the same name, whose contenders are others
    old = tmp_path / "old"
    (old / "benchmarks").mkdir(parents=True)
    (old / "src").symlink_to(ROOT / "src")
    for file in (ROOT / "benchmarks").glob("*.py"):
        if file.name != "checkouts.py":
            (old / "benchmarks" / file.name).symlink_to(file)
    (old / "benchmarks" / "checkouts.py").write_text("def work(only): raise SystemExit('other')")
    checkouts.main(checkouts.Options(old=old, only=(name,), rounds=0, out=out))
    assert list(json.loads(out.read_text())["contenders"]) == [name]
    with pytest.raises(SystemExit, match="is no checkout"):
        checkouts.main(checkouts.Options(old=tmp_path))
