"""The seal of one step: every alteration is found, and nothing else is."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fastweights.errors import CheckpointError
from fastweights.train import manifest
from fastweights.train.manifest import Manifest

# SHA-256 of b"abc", from the standard that defines it (FIPS 180-2, appendix B.1)
SHA256_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

SWAP = (("d/one", "d/spare"), ("d/two", "d/one"), ("d/spare", "d/two"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One committed step, 100, of three files."""
    directory = tmp_path / "00000100"
    (directory / "d").mkdir(parents=True)
    (directory / "abc").write_bytes(b"abc")
    (directory / "d" / "one").write_bytes(b"1" * 5000)
    (directory / "d" / "two").write_bytes(b"2" * 5000)
    manifest.write(tmp_path, _record(tmp_path))
    return tmp_path


def _record(root: Path) -> Manifest:
    return Manifest(
        step=100,
        directory="00000100",
        date="2026-11-23T08:00:00+00:00",
        score=0.1,
        extra={"text": "ü", "nan": float("nan")},
        leaves={"w": "float32[2]"},
        files=manifest.seal(root / "00000100"),
    )


def _problems(root: Path) -> list[str]:
    return manifest.problems(root, manifest.read(root, 100))


def test_comes_back_as_written(root):
    record = manifest.read(root, 100)
    assert (record.step, record.score, record.leaves) == (100, 0.1, {"w": "float32[2]"})
    assert record.extra["text"] == "ü"
    assert record.files["abc"] == (3, SHA256_ABC)
    assert set(record.files) == {"abc", "d/one", "d/two"}
    assert record.size == 10003
    assert _problems(root) == []
    assert manifest.steps(root) == [100]
    assert sorted(os.listdir(root)) == ["00000100", "00000100.json"]


def test_is_plain_json(root):
    content = json.loads((root / "00000100.json").read_text())
    assert content["format"] == 1
    assert content["files"]["abc"] == [3, SHA256_ABC]


def test_a_flipped_bit_anywhere_in_the_manifest_is_found(root):
    path = root / "00000100.json"
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            manifest.read(root, 100)
    path.write_bytes(good)
    assert _problems(root) == []


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda d: (d / "abc").write_bytes(b"abd"), ["abc: altered"]),
        (lambda d: os.truncate(d / "d/one", 4999), ["d/one: 4999 bytes, expected 5000"]),
        (lambda d: (d / "d/two").unlink(), ["d/two: missing"]),
        (lambda d: (d / "d/new").touch(), ["d/new: not in the manifest"]),
        (
            lambda d: [(d / old).rename(d / new) for old, new in SWAP],
            ["d/one: altered", "d/two: altered"],
        ),
        (lambda d: [f.unlink() for f in d.rglob("*") if f.is_file()], ["abc", "d/one", "d/two"]),
        (lambda d: d.rename(d.with_name("elsewhere")), [": missing"]),
    ],
    ids=["altered", "truncated", "deleted", "surplus", "swapped", "emptied", "gone"],
)
def test_damage_is_named(root, damage, found):
    damage(root / "00000100")
    problems = _problems(root)
    assert len(problems) == len(found)
    for problem, part in zip(problems, found, strict=True):
        assert problem.startswith("00000100/") and part in problem


def test_sizes_alone_do_not_find_an_altered_file(root):
    (root / "00000100" / "abc").write_bytes(b"abd")
    assert manifest.problems(root, manifest.read(root, 100), hashes=False) == []
    os.truncate(root / "00000100" / "abc", 2)
    assert len(manifest.problems(root, manifest.read(root, 100), hashes=False)) == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "missing"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "altered"),
        (b"{}", "altered"),
    ],
)
def test_a_manifest_that_is_none(root, text, what):
    path = root / "00000100.json"
    path.unlink() if text is None else path.write_bytes(text)
    with pytest.raises(CheckpointError, match=what) as error:
        manifest.read(root, 100)
    assert error.value.where == path


def test_a_manifest_of_another_step(root):
    (root / "00000100.json").rename(root / "00000300.json")
    with pytest.raises(CheckpointError, match="belongs to step 100"):
        manifest.read(root, 300)


def test_a_manifest_of_a_later_format(root):
    path = root / "00000100.json"
    content = json.loads(path.read_text()) | {"format": 2, "new": "field"}
    del content["sha256"]
    digest = hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
    path.write_text(json.dumps(content | {"sha256": digest}, indent=1) + "\n")
    with pytest.raises(CheckpointError, match="format 2, this version reads 1"):
        manifest.read(root, 100)


def test_a_sealed_text_that_is_no_manifest(root):
    content = {"format": 1, "step": 100}
    digest = hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
    (root / "00000100.json").write_text(json.dumps(content | {"sha256": digest}, indent=1) + "\n")
    with pytest.raises(CheckpointError, match="no checkpoint manifest"):
        manifest.read(root, 100)


@pytest.mark.parametrize("directory", ["../00000100", "00000200", "elsewhere"])
def test_a_manifest_cannot_point_elsewhere(root, directory):
    manifest.write(root, replace(_record(root), directory=directory))
    with pytest.raises(CheckpointError):
        manifest.read(root, 100)


def test_other_files_are_not_steps(root):
    for name in ("config.json", "100.json", "00000300.json.tmp", "00000300.json~"):
        (root / name).touch()
    assert manifest.steps(root) == [100]
    assert manifest.steps(root / "nowhere") == []
    assert manifest.is_temporary("00000300.json.tmp")
    assert not manifest.is_temporary("config.json.tmp")
