"""A user's own copy of CMU Multi-PIE: which pictures count, and where in them the face is.

Multi-PIE (Gross, Matthews, Cohn, Kanade, Baker 2010) shows 337 people, in up to four sessions of
two or three recordings, from 15 cameras, 20 pictures each within 0.7 s under changing flashes. Ba
et al. 2016 (section 4.3) use the three central cameras and six expressions, which follow from
session and recording. Expected under one folder, both as they are distributed (links will do):

    data/session01/multiview/001/01/05_1/001_01_01_051_00.png
         session             person, recording, camera     .. shot
    labels/051/001_01_01_051_05_lm.mat

Labels are the points distributed with the data ("MPie_Labels"): one shot of a recording and camera
is labelled and stands for all 20. Recordings without one of 68 points are left out.
"""

import dataclasses
import zlib

import numpy as np
import scipy.io
from etils import epath
from PIL import Image
from scipy.io.matlab import MatReadError

from fastweights.errors import DataError

HOMEPAGE = "http://www.cs.cmu.edu/afs/cs/project/PIE/MultiPie/Multi-Pie/Home.html"
#: 15 degrees to the person's left, frontal, 15 degrees to the right
CAMERAS = ("14_0", "05_1", "05_0")
EXPRESSIONS = ("neutral", "smile", "surprise", "squint", "disgust", "scream")
#: (session, recording) -> expression, from the documentation of the data set
RECORDINGS = {
    **{(1, 1): "neutral", (1, 2): "smile"},
    **{(2, 1): "neutral", (2, 2): "surprise", (2, 3): "squint"},
    **{(3, 1): "neutral", (3, 2): "smile", (3, 3): "disgust"},
    **{(4, 1): "neutral", (4, 2): "neutral", (4, 3): "scream"},
}
SIDE = 48

# x, y of right eye (left in the picture), left eye and tip of the nose in an aligned face. The
# paper aligned by eyes and nose; where to, it does not say.
_TEMPLATE = np.array([[16, 18], [32, 18], [24, 28]], np.float64)
# Their places among the 68 points: six around each eye, one on the nose.
_RIGHT_EYE, _LEFT_EYE, _NOSE = slice(36, 42), slice(42, 48), slice(30, 31)
_FINER = 4  # an aligned face is the mean of this many pixels squared, against aliasing

# What SciPy raises on label files that are cut, empty, of another kind or of another version.
_BAD_LABEL = (
    *(OSError, ValueError, KeyError, TypeError, NotImplementedError),
    *(MatReadError, zlib.error),
)

HOW_TO = (
    f"obtain Multi-PIE with its labels (MPie_Labels) from Carnegie Mellon University ({HOMEPAGE}), "
    "put or link it as DIR/data/session01/multiview/001/01/05_1/001_01_01_051_00.png ... and "
    "DIR/labels/051/001_01_01_051_05_lm.mat ..., and add --data.manual-dir DIR"
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture, who is on it and with which expression.

    Attributes:
        path: its file.
        points: x, y of right eye, left eye and tip of the nose, float64 [3, 2] in pixels from the
            upper left corner.
        identity: number of the person, 1 to 346.
        expression: one of `EXPRESSIONS`.
    """

    path: epath.Path
    points: np.ndarray
    identity: int
    expression: str


def locate(data_dir: epath.Path, manual_dir: epath.PathLike | None) -> epath.Path:
    """The folder with ``data`` and ``labels``; `DataError` on what to obtain if there is none."""
    reason = "no folder was named"
    if manual_dir is not None:
        folder = epath.Path(manual_dir).expanduser()
        lacking = [name for name in ("data", "labels") if not (folder / name).is_dir()]
        if not lacking:
            return folder
        reason = f"{folder} has no folder {' and no folder '.join(lacking)}"
    raise DataError(
        "the Multi-PIE faces were not found",
        where=f"{data_dir} holds no fastweights_multi_pie; {reason}",
        cause="Multi-PIE is licensed: it cannot be downloaded, each user needs an own copy",
        next=HOW_TO,
    )


def find(folder: epath.Path, identities: int) -> list[Picture]:
    """Every labelled picture of the three cameras, in the order of their names.

    Raises:
        DataError: not `identities` people in ``data``, no picture with a label, or a damaged label.
    """
    labels, pictures = _labels(folder / "labels"), []
    people = sorted((folder / "data").glob("session0[1-4]/multiview/[0-9][0-9][0-9]"))
    if (count := len({person.name for person in people})) != identities:
        raise DataError(
            f"the copy of Multi-PIE shows {count} people, not {identities}",
            where=folder / "data",
            cause="it is not whole, or not laid out as distributed",
            next=HOW_TO,
        )
    for person in people:
        session = int(person.parent.parent.name.removeprefix("session"))
        for (of_session, recording), expression in RECORDINGS.items():
            for camera in CAMERAS if session == of_session else ():
                compact = camera.replace("_", "")
                stem = f"{person.name}_{session:02}_{recording:02}_{compact}"
                if stem in labels:
                    files = (person / f"{recording:02}" / camera).glob(f"{stem}_[0-9][0-9].png")
                    pictures += [
                        Picture(path, labels[stem], int(person.name), expression) for path in files
                    ]
    if not pictures:
        raise DataError(
            "no picture of Multi-PIE has a label",
            where=folder / "labels",
            cause=f"there are {len(labels)} labels of 68 points, under other names or in other "
            "folders than distributed",
            next=HOW_TO,
        )
    return sorted(pictures, key=lambda picture: picture.path.name)


def aligned(picture: Picture) -> np.ndarray:
    """The face in grey, turned, scaled and moved so that eyes and nose are at fixed places.

    A similarity transform, the best one for the three points in the sense of least squares.

    Returns:
        uint8 [48, 48]; black where the picture ends.

    Raises:
        DataError: a file that is no whole picture.
    """
    a, b = _similarity(_TEMPLATE, picture.points)
    a = a / _FINER  # from here on: from a finer grid over the template
    try:
        with picture.path.open("rb") as file, Image.open(file) as image:
            grey = image.convert("L")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three on bad data
        raise _damaged(picture.path, error) from error
    size = (_FINER * SIDE, _FINER * SIDE)
    rows = (a.real, -a.imag, b.real, a.imag, a.real, b.imag)
    fine = grey.transform(size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    return np.array(fine.reduce(_FINER))


def _labels(folder: epath.Path) -> dict[str, np.ndarray]:
    """``person_session_recording_camera`` -> points of its first label that has 68 of them."""
    found: dict[str, np.ndarray] = {}
    for camera in CAMERAS:
        for path in sorted((folder / camera.replace("_", "")).glob("*_lm.mat")):
            stem = path.name.rsplit("_", 2)[0]
            if stem not in found and (points := _read(path)).shape == (68, 2):
                found[stem] = _three(points, path)
    return found


def _read(path: epath.Path) -> np.ndarray:
    """``pts`` of a label file, float64: x and y in pixels, the centre of the first being 1."""
    try:
        with path.open("rb") as file:
            return np.asarray(scipy.io.loadmat(file)["pts"], np.float64)
    except _BAD_LABEL as error:
        raise _damaged(path, error) from error


def _three(points: np.ndarray, path: epath.Path) -> np.ndarray:
    """Centres of the eyes and tip of the nose, `[3, 2]`, from the picture's corner."""
    three = np.stack([points[part].mean(axis=0) for part in (_RIGHT_EYE, _LEFT_EYE, _NOSE)]) - 0.5
    if not np.isfinite(three).all() or np.linalg.norm(three[1] - three[0]) < 1:
        raise _damaged(path, "the eyes are at no places, or at one")
    return three


def _similarity(here: np.ndarray, there: np.ndarray) -> tuple[complex, complex]:
    """Complex a, b with the least Σ |a z + b - w|², for points z = x + iy `here`, w `there`."""
    z, w = here @ [1, 1j], there @ [1, 1j]
    spread = z - z.mean()
    a = np.vdot(spread, w) / np.vdot(spread, spread)
    return complex(a), complex(w.mean() - a * z.mean())


def _damaged(path: epath.Path, reason: object) -> DataError:
    return DataError(
        f"a file of Multi-PIE cannot be used: {reason}",
        where=path,
        cause="an interrupted copy or a damaged disk",
        next="copy that file again from the original, and run the same command again",
    )
