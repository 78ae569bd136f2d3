import dataclasses
import gzip
import hashlib
import io
import struct
from importlib import resources
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from support import real_data
from tensorflow_datasets.core import registered

from fastweights.errors import ConfigError, DataError
from fastweights.tasks.idx_files import IdxFile
from fastweights.tasks.mnist_data import load_mnist
from fastweights.tasks.mnist_files import MIRROR, MNIST, MnistFiles

NAMES = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]
TRAIN, TEST, VALIDATION = 60, 20, 12


def digits(count: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Images that say which they are (pixel 0 is an index), with a label that follows from it."""
    images = np.random.default_rng(first).integers(0, 256, (count, 28, 28), np.uint8)
    images[:, 0, 0] = np.arange(first, first + count)
    return images, (images[:, 0, 0] * 7 % 10).astype(np.uint8)


def idx(array: np.ndarray, magic: int = 0x0800) -> bytes:
    header = struct.pack(f">I{array.ndim}I", magic + array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def describe(folder: Path) -> MnistFiles:
    """The files a folder should hold, with the checksums of what it does hold."""
    shapes = [(TRAIN, 28, 28), (TRAIN,), (TEST, 28, 28), (TEST,)]
    sums = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in NAMES]
    return MnistFiles(*map(IdxFile, NAMES, shapes, sums), validation=VALIDATION)


@pytest.fixture
def originals(tmp_path) -> Path:
    """A folder with four small IDX files."""
    folder = tmp_path / "originals"
    folder.mkdir()
    arrays = [*digits(TRAIN, 0), *digits(TEST, 100)]
    for name, array in zip(NAMES, arrays, strict=True):
        (folder / name).write_bytes(idx(array))
    return folder


class Network:
    """Stands in for `urlopen`: serves a folder under the mirror's address, or is down."""

    def __init__(self, folder: Path | None):
        self.folder, self.asked = folder, []

    def __call__(self, url: str, timeout: float) -> io.BytesIO:
        self.asked.append(url)
        if self.folder is None:
            raise URLError("name or service not known")
        assert url.startswith(MIRROR) and timeout > 0
        return io.BytesIO((self.folder / url.removeprefix(MIRROR)).read_bytes())


@pytest.fixture(autouse=True)
def network(monkeypatch) -> Network:
    """No test reaches the real network."""
    network = Network(None)
    monkeypatch.setattr("urllib.request.urlopen", network)
    return network


def check_tables(load):
    tables = {split: load(split) for split in ("train", "validation", "test")}
    for table, first, count in (
        (tables["train"], 0, TRAIN - VALIDATION),
        (tables["validation"], 0, VALIDATION),
        (tables["test"], 100, TEST),
    ):
        assert table["inputs"].shape == (count, 28, 28) and table["inputs"].dtype == np.uint8
        assert table["target"].shape == (count,) and table["target"].dtype == np.int32
        images, labels = digits(TRAIN if first == 0 else TEST, first)
        which = table["inputs"][:, 0, 0].astype(int) - first
        np.testing.assert_array_equal(table["inputs"], images[which])
        np.testing.assert_array_equal(table["target"], labels[which])
    both = [tables["train"], tables["validation"]]
    seen = np.concatenate([table["inputs"][:, 0, 0] for table in both])
    assert sorted(seen) == list(range(TRAIN))
    assert sorted(tables["test"]["inputs"][:, 0, 0]) == list(range(100, 100 + TEST))
    return tables


def test_from_four_files_in_a_folder(tmp_path, originals, network):
    files = describe(originals)
    load = lambda split: load_mnist(
        split, data_dir=tmp_path / "data", manual_dir=originals, files=files
    )
    first = check_tables(load)
    # Once prepared, neither the folder nor the network is needed, and nothing is written.
    for name in NAMES:
        (originals / name).unlink()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")}
    again = load_mnist("train", data_dir=tmp_path / "data", files=files)
    np.testing.assert_array_equal(again["inputs"], first["train"]["inputs"])
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")} == before
    assert network.asked == []


def png(image: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    file.seek(0)
    return file


def write_tfds_mnist(data_dir: Path, picture=png, train=TRAIN, file_format="array_record"):
    """A data set like TFDS's ``mnist``: same name, features, keys; written without TensorFlow."""
    with registered.skip_registration():

        class Mnist(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("3.0.1")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {
                    "train": self._generate_examples(train, 0),
                    "test": self._generate_examples(TEST, 100),
                }

            def _generate_examples(self, count, first):
                for i, (image, label) in enumerate(zip(*digits(count, first), strict=True)):
                    yield i, {"image": picture(image), "label": int(label)}

    Mnist(data_dir=data_dir, file_format=file_format).download_and_prepare()


def test_from_the_copy_tfds_prepared_in_the_same_order_as_ours(tmp_path, originals, network):
    files = describe(originals)
    write_tfds_mnist(tmp_path / "tfds")
    theirs = check_tables(lambda split: load_mnist(split, data_dir=tmp_path / "tfds", files=files))
    assert not (tmp_path / "tfds" / "fastweights_mnist").exists() and network.asked == []
    for split, table in theirs.items():
        ours = load_mnist(split, data_dir=tmp_path / "own", manual_dir=originals, files=files)
        np.testing.assert_array_equal(ours["inputs"], table["inputs"])
    # ... which is not the order of the files: TFDS shuffles when it writes
    assert (np.diff(theirs["train"]["inputs"][:, 0, 0].astype(int)) < 0).any()


@pytest.mark.parametrize(
    "picture",
    [
        lambda image: io.BytesIO(b"no picture"),
        lambda image: io.BytesIO(png(image).getvalue()[:-200]),
        lambda image: png(image[:14]),
        lambda image: png(np.stack([image] * 3, axis=-1)),
    ],
    ids=["no png", "cut", "size", "colour"],
)
def test_a_tfds_copy_with_wrong_images(tmp_path, originals, picture):
    write_tfds_mnist(tmp_path, picture)
    with pytest.raises(DataError, match="an image that cannot be read") as caught:
        load_mnist("test", data_dir=tmp_path, files=describe(originals))
    assert str(tmp_path / "mnist") in str(caught.value)


def test_a_tfds_copy_with_too_few_examples(tmp_path, originals):
    write_tfds_mnist(tmp_path, train=TRAIN - 1)
    with pytest.raises(DataError, match="'train': 59"):
        load_mnist("test", data_dir=tmp_path, files=describe(originals))


def test_downloaded_once(tmp_path, originals, network):
    network.folder, files = originals, describe(originals)
    check_tables(lambda split: load_mnist(split, data_dir=tmp_path / "data", files=files))
    assert network.asked == [MIRROR + name for name in NAMES]
    assert sorted(p.name for p in (tmp_path / "data/downloads/mnist").iterdir()) == sorted(NAMES)


def test_only_missing_files_are_downloaded(tmp_path, originals, network):
    network.folder, files = originals, describe(originals)
    cache = tmp_path / "data/downloads/mnist"
    cache.mkdir(parents=True)
    for name in NAMES[:3]:
        (cache / name).write_bytes((originals / name).read_bytes())
    load_mnist("test", data_dir=tmp_path / "data", files=files)
    assert network.asked == [MIRROR + NAMES[3]]


def test_a_download_that_is_not_the_file_is_not_kept(tmp_path, originals, network):
    network.folder, files = originals, describe(originals)
    (originals / NAMES[2]).write_bytes(b"<html>please log in</html>")
    with pytest.raises(DataError, match="SHA-256") as caught:
        load_mnist("test", data_dir=tmp_path / "data", files=files)
    assert MIRROR + NAMES[2] in str(caught.value)
    kept = sorted(p.name for p in (tmp_path / "data/downloads/mnist").iterdir())
    assert kept == sorted(NAMES[:2])


def test_nothing_anywhere_and_no_network(tmp_path, network):
    with pytest.raises(DataError) as caught:
        load_mnist("train", data_dir=tmp_path)
    assert caught.value.exit_code == 3 and len(network.asked) == 1
    message = str(caught.value)
    for part in [*NAMES, str(tmp_path), MIRROR, "--data.manual-dir", "not known"]:
        assert part in message


def test_a_tfds_copy_in_another_format_is_passed_over_and_named(tmp_path):
    info = tmp_path / "mnist" / "3.0.1" / "dataset_info.json"
    info.parent.mkdir(parents=True)
    info.write_text('{"name": "mnist", "version": "3.0.1", "fileFormat": "tfrecord"}')
    with pytest.raises(DataError, match="as array_record"):
        load_mnist("train", data_dir=tmp_path)


def test_a_folder_without_all_four_files(tmp_path, originals, network):
    files = describe(originals)
    (originals / NAMES[1]).unlink()
    with pytest.raises(DataError, match="not found") as caught:
        load_mnist("train", data_dir=tmp_path / "data", manual_dir=originals, files=files)
    assert f"{originals} lacks {NAMES[1]}" in str(caught.value)
    assert network.asked == []  # who names a folder wants that folder


LABELS = digits(TRAIN, 0)[1]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (idx(LABELS, magic=0x0900), "magic number is 0x00000901"),  # signed bytes
        (gzip.compress(b"\0\0", mtime=0), "magic number is 0x0000"),
        (gzip.compress(b"\0\0\x08\x03\0\0\0\1", mtime=0), "magic number"),  # dimensions cut off
        (idx(LABELS)[:-9], "not a whole gzip file"),
        (b"plainly no gzip", "not a whole gzip file"),
        (idx(LABELS[:-1]), r"shape \(59,\), not \(60,\)"),
        (idx(LABELS[:, None]), r"shape \(60, 1\), not \(60,\)"),
        (gzip.compress(gzip.decompress(idx(LABELS))[:-5], mtime=0), "55 values, not the 60"),
        (gzip.compress(gzip.decompress(idx(LABELS)) + b"abc", mtime=0), "63 values, not the 60"),
    ],
)
def test_a_file_that_is_not_what_it_should_be(tmp_path, originals, content, complaint):
    (originals / NAMES[1]).write_bytes(content)
    files = describe(originals)  # so the checksum holds
    with pytest.raises(DataError, match=complaint) as caught:
        load_mnist("test", data_dir=tmp_path / "data", manual_dir=originals, files=files)
    assert str(originals / NAMES[1]) in str(caught.value)
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_a_wrong_checksum(tmp_path, originals):
    files = describe(originals)
    files = dataclasses.replace(
        files, test_images=dataclasses.replace(files.test_images, sha256="0" * 64)
    )
    with pytest.raises(DataError, match="SHA-256") as caught:
        load_mnist("train", data_dir=tmp_path / "data", manual_dir=originals, files=files)
    assert str(originals / NAMES[2]) in str(caught.value)


def test_unknown_split(tmp_path):
    with pytest.raises(ConfigError, match="no split 'eval'"):
        load_mnist("eval", data_dir=tmp_path)


def test_checksums_are_those_of_tfds():
    listed = resources.files(tfds).joinpath("url_checksums/mnist.txt").read_text()
    rows = {url: sha for url, _, sha, *_ in map(str.split, listed.splitlines())}
    assert {MIRROR + file.name: file.sha256 for file in MNIST.all} == rows


def test_real_mnist():
    data_dir = real_data("tfds/mnist").parent
    train, held_out, test = (
        load_mnist(split, data_dir=data_dir) for split in ("train", "validation", "test")
    )
    assert [len(t["target"]) for t in (train, held_out, test)] == [55_000, 5_000, 10_000]
    # Published: digits of each class, and the mean and deviation everybody normalises with.
    labels = np.concatenate([train["target"], held_out["target"]])
    assert np.bincount(labels).tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    ]
    assert np.bincount(test["target"]).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ]
    pixels = np.concatenate([train["inputs"], held_out["inputs"]]) / 255
    assert round(pixels.mean(), 4) == 0.1307
    assert round(pixels.std(), 4) == 0.3081
