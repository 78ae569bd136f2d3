"""Multi-PIE faces from a small made copy in the layout the data set is distributed in."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from etils import epath
from flax import nnx
from PIL import Image

from fastweights.errors import ConfigError, DataError
from fastweights.models.convnet import ConvNetModel
from fastweights.models.glimpse import GlimpseModel
from fastweights.tasks import faces_files
from fastweights.tasks.base import Data
from fastweights.tasks.faces import Faces
from fastweights.tasks.faces_data import PAPER, FacesConfig, load_faces, split_people
from fastweights.tasks.faces_files import EXPRESSIONS, Picture

# The plan of the sessions as Multi-PIE's documentation prints it, recording after recording.
PLAN = {
    1: ["neutral", "smile"],
    2: ["neutral", "surprise", "squint"],
    3: ["neutral", "smile", "disgust"],
    4: ["neutral", "neutral", "scream"],
}
ORDER = ["neutral", "smile", "surprise", "squint", "disgust", "scream"]
CENTRAL = ["05_0", "05_1", "14_0"]
PEOPLE = [1, 2, 3, 40, 41, 346]
SHOTS = ["00", "07"]
SMALL = FacesConfig(name="small", identities=6, validation=1, test=2)


def points(eyes=((30, 25), (50, 25)), nose=(40, 38), count=68) -> np.ndarray:
    """Labels of a face as `pts`: six points around each eye, counted from 1."""
    pts = np.random.default_rng(0).uniform(1, 60, (count, 2))
    around = 3 * np.stack([np.cos(np.arange(6) * np.pi / 3), np.sin(np.arange(6) * np.pi / 3)], 1)
    for first, eye in zip((36, 42), eyes, strict=True):
        pts[first : first + 6] = (np.asarray(eye) + around)[: len(pts[first : first + 6])]
    pts[30] = nose
    return pts


def shade(person: int, expression: str, camera: str) -> int:
    """A picture's grey value tells what it shows."""
    camera_index = CENTRAL.index(camera) if camera in CENTRAL else 3
    return 32 * PEOPLE.index(person) + 5 * ORDER.index(expression) + camera_index


def recordings(sessions=(1, 2, 3, 4)):
    """Everybody comes to every session; the last person to the fourth only."""
    for person in PEOPLE:
        for session in sessions if person != 346 else [4]:
            for index, expression in enumerate(PLAN[session]):
                yield person, session, index + 1, expression


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("multi_pie")
    for camera in [*CENTRAL, "13_0"]:
        (folder / "labels" / camera.replace("_", "")).mkdir(parents=True)
    for person, session, recording, expression in recordings():
        for camera in [*CENTRAL, "13_0"]:
            own = f"session0{session}/multiview/{person:03}/{recording:02}/{camera}"
            (folder / "data" / own).mkdir(parents=True)
            stem = f"{person:03}_0{session}_{recording:02}_{camera.replace('_', '')}"
            picture = Image.new("RGB", (80, 64), (shade(person, expression, camera),) * 3)
            for shot in SHOTS:
                picture.save(folder / "data" / own / f"{stem}_{shot}.png")
            label = folder / "labels" / camera.replace("_", "") / f"{stem}_05_lm.mat"
            scipy.io.savemat(label, {"pts": points()})
    (folder / "data/session01/multiview/001/01/05_1/Thumbs.db").write_bytes(b"no picture")
    (folder / "data/session01/highres/001").mkdir(parents=True)
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A copy of the made folder that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def seen(table) -> list[tuple[int, str, str]]:
    """(person, expression, camera) of every example, read from the grey of its face."""
    assert table["inputs"].dtype == np.uint8 and table["inputs"].shape[1:] == (48, 48)
    assert table["target"].dtype == np.int32
    greys = table["inputs"][:, 12:36, 12:36]  # around eyes and nose; the corners may be black
    assert (greys.min(axis=(1, 2)) == greys.max(axis=(1, 2))).all()
    people, rest = np.divmod(greys[:, 0, 0].astype(int), 32)
    expressions, cameras = np.divmod(rest, 5)
    np.testing.assert_array_equal(expressions, table["target"])
    return [
        (PEOPLE[p], ORDER[e], CENTRAL[c])
        for p, e, c in zip(people, expressions, cameras, strict=True)
    ]


def test_every_labelled_picture_once_and_no_person_in_two_splits(made, tmp_path):
    tables = {
        split: load_faces(split, data_dir=tmp_path, manual_dir=made, config=SMALL)
        for split in ("train", "validation", "test")
    }
    examples = {split: seen(table) for split, table in tables.items()}
    people = {split: {person for person, _, _ in rows} for split, rows in examples.items()}
    assert [len(people[split]) for split in ("train", "validation", "test")] == [3, 1, 2]
    assert set.union(*people.values()) == set(PEOPLE)
    expected = [
        (person, expression, camera)
        for person, _, _, expression in recordings()
        for camera in CENTRAL
        for _ in SHOTS
    ]
    assert sorted(sum(examples.values(), [])) == sorted(expected)
    assert (np.diff([row[0] for row in examples["train"]]) < 0).any()  # shuffled when written

    # Once prepared, the copy is not needed, and nothing is written.
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    again = load_faces("train", data_dir=tmp_path, config=SMALL)
    np.testing.assert_array_equal(again["inputs"], tables["train"]["inputs"])
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_the_paper_trains_on_317_people_and_tests_on_20():
    people = split_people(range(1, 338), PAPER)
    assert len(people["test"]) == 20
    assert len(people["train"] | people["validation"]) == 317 and len(people["validation"]) == 20
    assert set.union(*people.values()) == set(range(1, 338))
    assert people == split_people(reversed(range(1, 338)), PAPER)
    # Spread over the numbers, which follow the session people first came to.
    assert np.mean(sorted(people["test"])) == pytest.approx(169, abs=50)


@pytest.mark.parametrize("angle,scale,shift", [(0.0, 1.0, (5, 3)), (0.3, 1.6, (25, -6))])
def test_a_face_is_turned_scaled_and_moved_to_its_place(tmp_path, angle, scale, shift):
    """On a picture whose grey is a plane, the value of every aligned pixel is known."""
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    place = lambda x, y: turn @ [x, y] + shift  # from the aligned face into the picture
    y, x = np.mgrid[:120, :130] + 0.5
    plane = lambda x, y: 30 + 0.9 * x + 0.5 * y
    path = epath.Path(tmp_path / "face.png")
    Image.fromarray(np.rint(plane(x, y)).astype(np.uint8)).save(path)
    three = np.array([place(16, 18), place(32, 18), place(24, 28)])
    face = faces_files.aligned(Picture(path, three, 1, "neutral"))
    expected, inside = np.empty((48, 48)), np.empty((48, 48), bool)
    for i in range(48):
        for j in range(48):
            x, y = place(j + 0.5, i + 0.5)
            expected[i, j] = plane(x, y)
            inside[i, j] = 2 < x < 128 and 2 < y < 118
    assert face.shape == (48, 48) and face.dtype == np.uint8
    assert np.abs(face - expected)[inside].max() <= 1.5 and inside.mean() > 0.8
    # ... with the nose off its place, eyes and nose are as near as turning and scaling can bring
    three[2] += turn @ [0, 3]
    a, b = faces_files._similarity(faces_files._TEMPLATE, three)
    cost = lambda a, b: np.sum(np.abs(a * np.array([16 + 18j, 32 + 18j, 24 + 28j]) + b - w) ** 2)
    w = three @ [1, 1j]
    for step in (1e-3, 1e-3j):
        assert cost(a, b) < min(cost(a + step, b), cost(a - step, b), cost(a, b + step))


def test_points_are_read_from_the_label(made):
    """Means of points 37-42 and 43-48 and point 31, counted from 1, less half a pixel."""
    pictures = faces_files.find(epath.Path(made), 6)
    for picture in pictures:
        np.testing.assert_allclose(picture.points, [[29.5, 24.5], [49.5, 24.5], [39.5, 37.5]])
    assert [p.path.name for p in pictures] == sorted(p.path.name for p in pictures)


def test_recordings_without_a_label_of_68_points_are_left_out(copy):
    whole = len(faces_files.find(epath.Path(copy), 6))
    labels = copy / "labels/051"
    (labels / "001_01_01_051_05_lm.mat").unlink()
    scipy.io.savemat(labels / "001_01_02_051_05_lm.mat", {"pts": points(count=66)})
    scipy.io.savemat(labels / "002_01_01_051_05_lm.mat", {"pts": points(count=66)})
    scipy.io.savemat(labels / "002_01_01_051_06_lm.mat", {"pts": points()})  # another shot has
    pictures = faces_files.find(epath.Path(copy), 6)
    assert len(pictures) == whole - 2 * len(SHOTS)
    names = {picture.path.name for picture in pictures}
    assert "001_01_01_051_00.png" not in names and "001_01_02_051_07.png" not in names
    assert {"001_01_01_050_00.png", "002_01_01_051_00.png"} <= names


def test_without_a_copy_the_message_says_what_to_obtain_and_where_to_put_it(tmp_path):
    for manual_dir in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError) as caught:
            load_faces("train", data_dir=tmp_path / "data", manual_dir=manual_dir)
        assert caught.value.exit_code == 3
        for part in (
            *("Multi-PIE", "licensed", "Carnegie Mellon", "MPie_Labels", "--data.manual-dir DIR"),
            "DIR/data/session01/multiview/001/01/05_1/001_01_01_051_00.png",
            "DIR/labels/051/001_01_01_051_05_lm.mat",
            str(tmp_path / "data"),
        ):
            assert part in str(caught.value)
    assert f"{tmp_path} has no folder data and no folder labels" in str(caught.value)


def test_a_copy_that_is_not_whole(copy, tmp_path):
    load = lambda config: load_faces("test", data_dir=tmp_path, manual_dir=copy, config=config)
    with pytest.raises(DataError, match="shows 6 people, not 337"):
        load(PAPER)
    for label in (copy / "labels").rglob("*.mat"):
        if not label.name.startswith(("001", "002")):
            label.unlink()
    with pytest.raises(DataError, match="only 2 people have labelled pictures, and 3"):
        load(SMALL)
    shutil.rmtree(copy / "labels")
    (copy / "labels").mkdir()
    with pytest.raises(DataError, match="no picture of Multi-PIE has a label"):
        load(SMALL)
    assert not list(tmp_path.rglob("*.array_record*"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def cut_compressed(path: Path) -> None:
    scipy.io.savemat(path, {"pts": points()}, do_compression=True)
    cut(path)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        cut_compressed,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"plainly no labels" * 20),
        lambda path: scipy.io.savemat(path, {"points": points()}),
        lambda path: scipy.io.savemat(path, {"pts": np.full((68, 2), np.nan)}),
        lambda path: scipy.io.savemat(path, {"pts": np.ones((68, 2))}),
    ],
    ids=["cut", "cut, compressed", "empty", "no mat", "no pts", "nan", "one place"],
)
def test_a_damaged_label(copy, damage):
    label = copy / "labels/140/002_03_03_140_05_lm.mat"
    damage(label)
    with pytest.raises(DataError, match="cannot be used") as caught:
        faces_files.find(epath.Path(copy), 6)
    assert str(label) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no picture", None], ids=["empty", "no png", "cut"])
def test_a_damaged_picture_stops_the_preparation_and_is_named(copy, tmp_path, content):
    path = copy / "data/session02/multiview/003/02/05_0/003_02_02_050_07.png"
    if content is None:
        cut(path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be used") as caught:
        load_faces("train", data_dir=tmp_path / "data", manual_dir=copy, config=SMALL)
    assert str(path) in str(caught.value)


def test_unknown_split(tmp_path):
    with pytest.raises(ConfigError, match="no split 'eval'"):
        load_faces("eval", data_dir=tmp_path)


@pytest.mark.parametrize("model", [GlimpseModel(hidden=5), ConvNetModel(features=4)])
def test_the_task_builds_its_models_and_measures_them(model):
    task = Faces()
    assert task.problems(model) == []
    net = task.build(model, nnx.Rngs(0))
    faces = np.random.default_rng(0).integers(0, 256, (4, 48, 48), np.uint8)
    target = np.array([0, 5, 2, 3], np.int32)
    scores = task.measure(net, {"inputs": jnp.asarray(faces), "target": jnp.asarray(target)})
    logits = np.asarray(net(faces), np.float64)
    assert logits.shape == (4, len(EXPRESSIONS)) == (4, 6)
    np.testing.assert_array_equal(scores["error"], logits.argmax(-1) != target)
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), target]
    np.testing.assert_allclose(scores["loss"], nats, rtol=1e-5)


def test_the_task_names_impossible_sizes_and_missing_data(tmp_path):
    assert Faces().problems(ConvNetModel(features=0)) == [
        "model.features is 0; it must be at least 1"
    ]
    assert len(Faces().problems(GlimpseModel(hidden=0, head=-1))) == 2
    with pytest.raises(DataError, match="faces were not found"):
        Faces().load("train", Data(dir=str(tmp_path)))
