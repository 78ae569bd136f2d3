"""Which steps stay, which go, and that nothing else is touched."""

import os
from pathlib import Path

import pytest

from fastweights.train import manifest, retention, storage
from fastweights.train.manifest import Manifest


def _commit(root: Path, step: int, score: float | None = None, suffix: int = 0) -> None:
    directory = root / manifest.directory_name(step, suffix)
    (directory / "d").mkdir(parents=True)
    (directory / "d" / "file").write_bytes(b"%d" % step)
    record = Manifest(step, directory.name, "", score, None, {}, manifest.seal(directory))
    manifest.write(root, record)


def _prune(root: Path, saved: int, keep_last: int = 2, keep_best: bool = True) -> list[int]:
    retention.prune(root, saved, keep_last=keep_last, keep_best=keep_best, report=pytest.fail)
    return manifest.steps(root)


def test_the_newest_and_the_best_stay(tmp_path):
    for step, score in [(1, 0.5), (2, 0.1), (3, 0.2), (4, 0.3), (5, 0.4)]:
        _commit(tmp_path, step, score)
    assert _prune(tmp_path, 5) == [2, 4, 5]
    assert sorted(os.listdir(tmp_path)) == [
        f"{step:08d}{end}" for step in (2, 4, 5) for end in ("", ".json")
    ]
    assert _prune(tmp_path, 5, keep_best=False) == [4, 5]
    assert _prune(tmp_path, 5, keep_last=1, keep_best=False) == [5]


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
    for step, score in [(1, float("nan")), (2, float("-inf")), (3, 7.0), (4, None), (5, 8.0)]:
        _commit(tmp_path, step, score)
    assert [i.step for i in retention.infos(tmp_path) if i.best] == [3]
    assert _prune(tmp_path, 5, keep_last=1) == [3, 5]


def test_of_equal_scores_the_newest_is_the_best(tmp_path):
    for step in (1, 2, 3):
        _commit(tmp_path, step, 0.5)
    assert [i.step for i in retention.infos(tmp_path) if i.best] == [3]


def test_the_step_just_saved_stays_though_newer_ones_exist(tmp_path):
    for step in (100, 400, 500):
        _commit(tmp_path, step)
    assert _prune(tmp_path, 100, keep_last=1) == [100, 500]


def test_damaged_steps_do_not_count_and_go_when_they_are_old(tmp_path):
    for step in (1, 2, 3, 4):
        _commit(tmp_path, step)
    os.truncate(tmp_path / "00000003" / "d" / "file", 0)
    os.truncate(tmp_path / "00000004.json", 20)
    assert _prune(tmp_path, 2) == [1, 2, 3, 4]  # 1 and 2 are the two newest whole ones
    _commit(tmp_path, 5)
    _commit(tmp_path, 6)
    assert _prune(tmp_path, 6) == [5, 6]
    assert len(os.listdir(tmp_path)) == 4


def test_leftovers_go_and_strangers_stay(tmp_path):
    _commit(tmp_path, 100)
    leftovers = ["00000200", "00000100.1", "00000300" + storage.TEMPORARY, "00000300.json.tmp"]
    strangers = ["notes.txt", "weights", "config.json", "backup.json.tmp", "100", "x.00000100"]
    for name in leftovers[:3] + ["weights"]:
        (tmp_path / name / "sub").mkdir(parents=True)
    for name in [leftovers[3], *strangers]:
        if name != "weights":
            (tmp_path / name).touch()
    retention.remove_leftovers(tmp_path, pytest.fail)
    assert sorted(os.listdir(tmp_path)) == sorted(["00000100", "00000100.json", *strangers])


def test_the_files_of_a_step_with_an_unreadable_manifest_stay(tmp_path):
    _commit(tmp_path, 100)
    os.truncate(tmp_path / "00000100.json", 20)
    retention.remove_leftovers(tmp_path, pytest.fail)
    assert (tmp_path / "00000100" / "d" / "file").exists()
    # saving it anew takes another name, and only then the old files go
    assert retention.prepare(tmp_path, 100, pytest.fail) == 1
    _commit(tmp_path, 100, suffix=1)
    assert _prune(tmp_path, 100) == [100]
    assert sorted(os.listdir(tmp_path)) == ["00000100.1", "00000100.json"]


def test_what_cannot_be_removed_is_told(tmp_path, monkeypatch):
    (tmp_path / "00000200").mkdir()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(retention.shutil, "rmtree", refuse)
    told = []
    retention.remove_leftovers(tmp_path, told.append)
    assert len(told) == 1 and "00000200" in told[0] and "Permission denied" in told[0]


def test_infos(tmp_path):
    assert retention.infos(tmp_path / "nowhere") == []
    _commit(tmp_path, 100, 0.5)
    _commit(tmp_path, 200)
    os.truncate(tmp_path / "00000200" / "d" / "file", 1)
    (tmp_path / "00000300").mkdir()
    (tmp_path / ("00000400" + storage.TEMPORARY)).mkdir()
    assert retention.infos(tmp_path) == [
        retention.StepInfo(100, "", 3, 0.5, best=True, complete=True),
        retention.StepInfo(200, None, 0, None, best=False, complete=False),
        retention.StepInfo(300, None, 0, None, best=False, complete=False),
    ]
