import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fastweights.errors import ConfigError, DataError
from fastweights.tasks import retrieval_data
from fastweights.tasks.retrieval_data import AssociativeRetrieval, load
from fastweights.tasks.retrieval_strings import decode

SMALL = {"train": 300, "validation": 40, "test": 50}


def folder(data_dir: Path) -> Path:
    return data_dir / "associative_retrieval" / "k4_300_40_50" / "1.0.0"


def run_python(program: str, *args: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_papers_data_set(tmp_path):
    sizes = {split: len(load(split, data_dir=tmp_path)["target"]) for split in SMALL}
    assert sizes == {"train": 100_000, "validation": 10_000, "test": 20_000}
    table = load("test", data_dir=tmp_path)
    assert table["inputs"].shape == (20_000, 11) and table["inputs"].dtype == np.int32
    assert table["target"].dtype == np.int32
    # TFDS's own decoder reads the same examples in the same order.
    builder: Any = AssociativeRetrieval(data_dir=tmp_path)
    source = builder.as_data_source("test")
    for i in (0, 1, 7_777, 19_999):
        np.testing.assert_array_equal(source[i]["tokens"], table["inputs"][i])
        assert source[i]["target"] == table["target"][i]
        text = decode(table["inputs"][i])
        assert int(text[text.index(text[-1]) + 1]) == table["target"][i]
    # Recorded once, to notice if the data set ever changes under the same name and version.
    digest = hashlib.sha256(table["inputs"].astype("<i4").tobytes()).hexdigest()
    assert digest == "2695eec107b10876deb1fb04262f2783f62a194ebe8221d0f458ac622e4f1a13"


def test_any_number_of_pairs_and_sizes(tmp_path):
    for pairs in (1, 3, 26):
        table = load("validation", data_dir=tmp_path, pairs=pairs, sizes=SMALL)
        assert table["inputs"].shape == (40, 2 * pairs + 3)


def test_prepared_twice_is_the_same_and_splits_differ(tmp_path):
    once, again = (
        {split: load(split, data_dir=tmp_path / name, sizes=SMALL)["inputs"] for split in SMALL}
        for name in ("once", "again")
    )
    for split in SMALL:
        np.testing.assert_array_equal(once[split], again[split])
    assert (once["train"][:40] != once["validation"]).any(axis=1).all()
    assert (once["train"][:50] != once["test"]).any(axis=1).all()


def test_a_prepared_data_set_is_only_read(tmp_path, monkeypatch, capfd, caplog):
    first = load("train", data_dir=tmp_path, sizes=SMALL)
    assert capfd.readouterr() == ("", "")  # nothing of TFDS's on the caller's streams
    assert "no dataset_info.json" not in caplog.text
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    monkeypatch.setattr(AssociativeRetrieval, "download_and_prepare", None)  # a call would raise
    second = load("train", data_dir=tmp_path, sizes=SMALL)
    np.testing.assert_array_equal(first["inputs"], second["inputs"])
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_without_tensorflow(tmp_path):
    fake = tmp_path / "tensorflow.py"  # seems installed, but cannot be imported
    fake.write_text("raise AssertionError('TensorFlow is imported')")
    program = f"""
import sys
sys.path.insert(0, sys.argv[1])
from fastweights.tasks import mnist_data, retrieval_data
print(len(retrieval_data.load("test", data_dir=sys.argv[1], sizes={SMALL})["target"]))
"""
    done = run_python(program, tmp_path)
    assert (done.returncode, done.stdout) == (0, "50\n"), done.stderr


def test_a_killed_preparation_leaves_nothing_to_trust(tmp_path):
    program = f"""
import os, signal, sys
from fastweights.tasks import retrieval_data
original = retrieval_data.AssociativeRetrieval._generate_examples
def killed(self, split):
    for i, example in original(self, split):
        if split == "test" and i == 25:  # train and validation are on disk by now
            os.kill(os.getpid(), signal.SIGKILL)
        yield i, example
retrieval_data.AssociativeRetrieval._generate_examples = killed
retrieval_data.load("train", data_dir=sys.argv[1], sizes={SMALL})
"""
    assert run_python(program, tmp_path).returncode == -signal.SIGKILL
    left = [p.name for p in folder(tmp_path).parent.iterdir()]
    assert len(left) == 1 and left[0].startswith("incomplete.")
    after = load("train", data_dir=tmp_path, sizes=SMALL)
    clean = load("train", data_dir=tmp_path / "clean", sizes=SMALL)
    np.testing.assert_array_equal(after["inputs"], clean["inputs"])


def test_losing_the_race_to_prepare(tmp_path, monkeypatch):
    original = AssociativeRetrieval._generate_examples
    rivals = []

    def overtaken(self, split):
        if not rivals:  # while we write, someone else starts and finishes the same data set
            rivals.append(None)
            rivals.append(load("test", data_dir=tmp_path, sizes=SMALL))
        return original(self, split)

    monkeypatch.setattr(AssociativeRetrieval, "_generate_examples", overtaken)
    ours = load("test", data_dir=tmp_path, sizes=SMALL)
    np.testing.assert_array_equal(ours["inputs"], rivals[1]["inputs"])
    assert [p.name for p in folder(tmp_path).parent.iterdir()] == ["1.0.0"]


def test_losing_the_race_before_writing(tmp_path, monkeypatch):
    prepare: Any = AssociativeRetrieval.download_and_prepare
    rivals = []

    def late(self, **kwargs):
        if not rivals:
            rivals.append(None)
            rivals.append(load("test", data_dir=tmp_path, sizes=SMALL))
        return prepare(self, **kwargs)

    monkeypatch.setattr(AssociativeRetrieval, "download_and_prepare", late)
    ours = load("test", data_dir=tmp_path, sizes=SMALL)
    np.testing.assert_array_equal(ours["inputs"], rivals[1]["inputs"])


def cut(path: Path):
    os.truncate(path, 50_000)


def cut_at_a_block(path: Path):
    os.truncate(path, 65_536)  # array_record opens this without complaint


def flip_a_bit(path: Path):
    data = bytearray(path.read_bytes())
    data[data.index(b"tokens") + 20] ^= 1  # inside a stored string
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, cut_at_a_block, flip_a_bit, os.remove])
def test_a_damaged_record_file(tmp_path, damage):
    load("test", data_dir=tmp_path, sizes=SMALL)
    (records,) = folder(tmp_path).glob("*-test.array_record*")
    damage(records)
    with pytest.raises(DataError) as caught:
        load("test", data_dir=tmp_path, sizes=SMALL)
    assert caught.value.exit_code == 3
    assert str(folder(tmp_path)) in str(caught.value) and "delete" in str(caught.value)


def remove_info(info: Path):
    info.unlink()


def break_info(info: Path):
    info.write_text(info.read_text()[:-20])


def shrink_info(info: Path):
    text = info.read_text()
    assert text.count('"300"') == 1
    info.write_text(text.replace('"300"', '"299"'))


@pytest.mark.parametrize("damage", [remove_info, break_info, shrink_info])
def test_an_incomplete_copy(tmp_path, damage):
    load("test", data_dir=tmp_path, sizes=SMALL)
    damage(folder(tmp_path) / "dataset_info.json")
    with pytest.raises(DataError) as caught:
        load("test", data_dir=tmp_path, sizes=SMALL)
    assert str(tmp_path) in str(caught.value) and "delete" in str(caught.value)


def test_wrong_targets_are_never_trained_on(tmp_path, monkeypatch):
    honest = retrieval_data.sample

    def one_off(rng, count, pairs):
        table = honest(rng, count, pairs)
        table["target"][-1] = (table["target"][-1] + 1) % 10
        return table

    with monkeypatch.context() as patch:
        patch.setattr(retrieval_data, "sample", one_off)
        with pytest.raises(DataError, match="not the answers"):
            load("test", data_dir=tmp_path, sizes=SMALL)
    with pytest.raises(DataError, match="not the answers"):
        load("test", data_dir=tmp_path, sizes=SMALL)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write") as caught:
        load("test", data_dir=tmp_path / "file", sizes=SMALL)
    assert "--data.dir" in str(caught.value)


def test_unknown_split_and_pairs(tmp_path):
    with pytest.raises(ConfigError, match="no split 'valid'"):
        load("valid", data_dir=tmp_path)
    with pytest.raises(ConfigError, match="27 pairs"):
        load("test", data_dir=tmp_path, pairs=27)
    assert list(tmp_path.iterdir()) == []


def test_the_builder_is_registered_with_four_pairs_by_default(tmp_path):
    builder: Any = tfds.builder("associative_retrieval", data_dir=tmp_path)
    assert builder.builder_config.name == "k4"
    assert builder.info.features["tokens"].shape == (11,)
