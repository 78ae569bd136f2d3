"""MNIST in memory, without TensorFlow: 55,000 training, 5,000 validation and 10,000 test digits.

MNIST has no validation split. Ours is the last 5,000 examples of ``train`` in stored order, that is
TFDS's ``train[-5000:]``; Ba et al. 2016 do not say what they held out. TFDS stores examples in the
order of a hash of their keys, so these are a random sample of the training digits.
"""

import dataclasses
import hashlib
import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from fastweights.errors import ConfigError, DataError
from fastweights.tasks import idx_files, mnist_files, tfds_tables
from fastweights.tasks.mnist_files import MNIST, MnistFiles

_SIDE = 28


@dataclasses.dataclass(eq=False)
class MnistConfig(tfds.core.BuilderConfig):
    """Which files to build from."""

    files: MnistFiles = MNIST


class FastweightsMnist(tfds.core.GeneratorBasedBuilder):
    """MNIST as plain uint8 tensors, built from the four IDX files in TFDS's manual folder.

    TFDS's own ``mnist`` needs TensorFlow to be prepared; this needs none. Keys and splits are the
    same, so the order of the examples is too: both have the same validation split.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [MnistConfig(name="full")]
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"MNIST's four .gz files, from {mnist_files.MIRROR}"

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(
            shape=(_SIDE, _SIDE, 1), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="The MNIST database of handwritten digits.",
            features=tfds.features.FeaturesDict(
                {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
            ),
            homepage="http://yann.lecun.com/exdb/mnist/",
        )

    def _split_generators(self, dl_manager):
        assert isinstance(self.builder_config, MnistConfig)
        files, folder = self.builder_config.files, dl_manager.manual_dir
        # All four are read and verified before the first example is written.
        images, labels, test_images, test_labels = (
            idx_files.read(file, folder) for file in files.all
        )
        return {
            "train": self._generate_examples(images, labels),
            "test": self._generate_examples(test_images, test_labels),
        }

    def _generate_examples(self, images, labels) -> Iterator[tuple[int, dict]]:
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            yield i, {"image": image[:, :, None], "label": label}


def load_mnist(
    split: str,
    *,
    data_dir: epath.PathLike,
    manual_dir: epath.PathLike | None = None,
    files: MnistFiles = MNIST,
) -> dict[str, np.ndarray]:
    """One split in memory.

    Taken from the first of: TFDS's ``mnist``, if `data_dir` has it in the array_record format; our
    own ``fastweights_mnist`` there; the four original files in `manual_dir`; the same files,
    downloaded. In the last two cases ``fastweights_mnist`` is prepared from them once verified.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        data_dir: the folder for TFDS data sets; may be read-only if it holds MNIST already.
        manual_dir: a folder with the four .gz files, for a machine without a network.
        files: names, shapes and checksums to expect, and the size of the validation split.

    Returns:
        ``inputs`` uint8 [N, 28, 28], 0 for paper and 255 for ink, and ``target`` int32 [N], 0..9.

    Raises:
        ConfigError: an unknown split.
        DataError: MNIST is nowhere and there is no network; or files are damaged or not MNIST.
    """
    splits = {
        "train": f"train[:-{files.validation}]",
        "validation": f"train[-{files.validation}:]",
        "test": "test",
    }
    if split not in splits:
        raise ConfigError(f"MNIST has no split {split!r}", next=f"choose from {list(splits)}")
    folder = epath.Path(data_dir).expanduser()
    builder = _tfds_copy(folder)
    decode = _decode_png
    if builder is None:
        builder, decode = _own_copy(folder, manual_dir, files), _decode_raw
    expected = {"train": files.train_images.shape[0], "test": files.test_images.shape[0]}
    found = {name: info.num_examples for name, info in builder.info.splits.items()}
    if found != expected:
        raise _not_mnist(builder, f"{found} examples, not {expected}")
    columns = tfds_tables.read_columns(builder, splits[split])
    try:
        inputs = decode(columns["image"])
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three on bad PNG data
        raise _not_mnist(builder, f"an image that cannot be read: {error}") from error
    return {"inputs": inputs, "target": np.array(columns["label"], np.int32)}


def _tfds_copy(data_dir: epath.Path) -> tfds.core.DatasetBuilder | None:
    """TFDS's own ``mnist``, if it is there and can be read without TensorFlow."""
    builder = tfds_tables.open_builder(lambda: tfds.builder("mnist", data_dir=data_dir), data_dir)
    readable = builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD
    return builder if readable and tfds_tables.is_prepared(builder) else None


def _own_copy(
    data_dir: epath.Path, manual_dir: epath.PathLike | None, files: MnistFiles
) -> tfds.core.DatasetBuilder:
    """Our ``fastweights_mnist``, prepared first if need be."""
    config: str | MnistConfig = "full"
    if files != MNIST:  # other files are another data set on disk
        digest = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
        config = MnistConfig(name=f"files_{digest}", files=files)
    return tfds_tables.open_or_prepare(
        lambda: FastweightsMnist(config=config, data_dir=data_dir, file_format="array_record"),
        data_dir,
        manual_dir=lambda: mnist_files.locate(files, data_dir, manual_dir),
    )


def _decode_png(encoded: list[bytes]) -> np.ndarray:
    """Grey 28 x 28 PNG files as uint8 [N, 28, 28]; about 40 us each."""
    images = np.empty((len(encoded), _SIDE, _SIDE), np.uint8)
    for i, png in enumerate(encoded):
        image = Image.open(io.BytesIO(png))
        if (image.mode, image.size) != ("L", (_SIDE, _SIDE)):
            raise ValueError(f"example {i} is {image.mode} {image.size}")
        images[i] = np.frombuffer(image.tobytes(), np.uint8).reshape(_SIDE, _SIDE)
    return images


def _decode_raw(encoded: list[bytes]) -> np.ndarray:
    """Images stored as their 784 bytes, as uint8 [N, 28, 28]."""
    return np.frombuffer(b"".join(encoded), np.uint8).reshape(len(encoded), _SIDE, _SIDE)


def _not_mnist(builder: tfds.core.DatasetBuilder, found: str) -> DataError:
    return DataError(
        f"the prepared {builder.name} has {found}",
        where=builder.data_path,
        cause="it is damaged, or is not MNIST",
        next="delete that folder and run the same command again: it will be prepared anew",
    )
