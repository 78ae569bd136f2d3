"""The four files MNIST consists of: what they are, and where they are looked for."""

import dataclasses
from http.client import HTTPException

from etils import epath

from fastweights.errors import DataError
from fastweights.tasks import idx_files
from fastweights.tasks.idx_files import IdxFile

MIRROR = "https://storage.googleapis.com/cvdf-datasets/mnist/"


@dataclasses.dataclass(frozen=True)
class MnistFiles:
    """The files of a data set in MNIST's layout, and how much of its ``train`` validates."""

    train_images: IdxFile
    train_labels: IdxFile
    test_images: IdxFile
    test_labels: IdxFile
    validation: int = 5_000

    @property
    def all(self) -> tuple[IdxFile, ...]:
        """The four files."""
        return self.train_images, self.train_labels, self.test_images, self.test_labels


# SHA-256 from url_checksums/mnist.txt of tensorflow_datasets 4.9.10
MNIST = MnistFiles(
    train_images=IdxFile(
        "train-images-idx3-ubyte.gz",
        (60_000, 28, 28),
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    train_labels=IdxFile(
        "train-labels-idx1-ubyte.gz",
        (60_000,),
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    test_images=IdxFile(
        "t10k-images-idx3-ubyte.gz",
        (10_000, 28, 28),
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    test_labels=IdxFile(
        "t10k-labels-idx1-ubyte.gz",
        (10_000,),
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
)


def locate(
    files: MnistFiles, data_dir: epath.Path, manual_dir: epath.PathLike | None
) -> epath.Path:
    """A folder that has the four files: `manual_dir` if given, else downloaded under `data_dir`.

    Raises:
        DataError: `manual_dir` lacks some, or there is no network, or a download is not the file.
    """
    if manual_dir is not None:
        folder = epath.Path(manual_dir).expanduser()
        if lacking := _lacking(files, folder):
            raise _not_found(files, data_dir, f"{folder} lacks {', '.join(lacking)}")
        return folder
    folder = data_dir / "downloads" / "mnist"
    lacking = _lacking(files, folder)
    try:
        for file in files.all:
            if file.name in lacking:
                idx_files.download(file, MIRROR, folder)
    except (OSError, HTTPException) as error:
        reason = f"{folder} lacks {', '.join(lacking)}; downloading from {MIRROR} failed: {error}"
        raise _not_found(files, data_dir, reason) from error
    return folder


def _lacking(files: MnistFiles, folder: epath.Path) -> list[str]:
    return [file.name for file in files.all if not (folder / file.name).is_file()]


def _not_found(files: MnistFiles, data_dir: epath.Path, reason: str) -> DataError:
    names = ", ".join(file.name for file in files.all)
    return DataError(
        "MNIST was not found",
        where=f"{data_dir} holds neither mnist (as array_record) nor fastweights_mnist; {reason}",
        cause="no network on this machine, or a wrong folder",
        next=f"put {names} (from {MIRROR}, still gzipped) into a folder DIR and add "
        "--data.manual-dir DIR, or point --data.dir at a folder that has mnist prepared by TFDS",
    )
