"""Multi-PIE faces in memory, from a user's own copy and without TensorFlow (Ba et al. 2016, §4.3).

48 x 48 grey, aligned by eyes and nose, six expressions, three central cameras; see `faces_files`
for the folders expected. The paper trains on 317 people and tests on 20, and names neither them nor
a validation split. Ours: people in the order of the SHA-256 of their number, so that no session is
favoured; the first 20 test, the next 20, taken from the 317, validate.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from fastweights.errors import ConfigError, DataError
from fastweights.tasks import faces_files, tfds_tables
from fastweights.tasks.faces_files import EXPRESSIONS, SIDE, Picture

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(eq=False)
class FacesConfig(tfds.core.BuilderConfig):
    """How many people the copy must show, and how many of them are held out."""

    identities: int = 337
    validation: int = 20
    test: int = 20


PAPER = FacesConfig(name="paper")


class FastweightsMultiPie(tfds.core.GeneratorBasedBuilder):
    """Aligned faces as plain uint8 tensors, built from a copy of Multi-PIE in the manual folder."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [PAPER]
    MANUAL_DOWNLOAD_INSTRUCTIONS = faces_files.HOW_TO

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(
            shape=(SIDE, SIDE), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Faces of CMU Multi-PIE from the three central cameras, aligned.",
            features=tfds.features.FeaturesDict(
                {
                    "image": image,
                    "label": tfds.features.ClassLabel(names=EXPRESSIONS),
                    "identity": tfds.features.Scalar(np.int32),
                }
            ),
            homepage=faces_files.HOMEPAGE,
        )

    def _split_generators(self, dl_manager):
        assert isinstance(self.builder_config, FacesConfig)
        config = self.builder_config
        pictures = faces_files.find(epath.Path(dl_manager.manual_dir), config.identities)
        groups = split_people({picture.identity for picture in pictures}, config)
        if not groups["train"]:
            raise DataError(
                f"only {len(groups['test'] | groups['validation'])} people have labelled pictures, "
                f"and {config.test + config.validation} are held out",
                where=epath.Path(dl_manager.manual_dir) / "labels",
                cause="the labels are not whole",
                next=faces_files.HOW_TO,
            )
        return {
            split: self._generate_examples([p for p in pictures if p.identity in people])
            for split, people in groups.items()
        }

    def _generate_examples(self, pictures: list[Picture]) -> Iterator[tuple[str, dict]]:
        for picture in pictures:
            yield (
                picture.path.name,
                {
                    "image": faces_files.aligned(picture),
                    "label": picture.expression,
                    "identity": picture.identity,
                },
            )


def split_people(identities: Iterable[int], config: FacesConfig) -> dict[str, set[int]]:
    """Who is in which split; no one is in two."""
    shuffled = sorted(
        identities, key=lambda number: hashlib.sha256(f"multi-pie/{number:03}".encode()).digest()
    )
    held_out = config.test + config.validation
    return {
        "train": set(shuffled[held_out:]),
        "validation": set(shuffled[config.test : held_out]),
        "test": set(shuffled[: config.test]),
    }


def load_faces(
    split: str,
    *,
    data_dir: epath.PathLike,
    manual_dir: epath.PathLike | None = None,
    config: FacesConfig = PAPER,
) -> dict[str, np.ndarray]:
    """One split in memory.

    Taken from ``fastweights_multi_pie`` in `data_dir`, which is prepared first if it is not there:
    once, and in a good quarter of an hour for all 100,000 pictures on one core.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        data_dir: the folder for TFDS data sets.
        manual_dir: the folder with the user's copy, as `faces_files` describes it.
        config: which people to expect and to hold out.

    Returns:
        ``inputs`` uint8 [N, 48, 48] and ``target`` int32 [N], an index into `EXPRESSIONS`.

    Raises:
        ConfigError: an unknown split.
        DataError: there is no copy, or it is not whole, or a file in it is damaged.
    """
    if split not in SPLITS:
        raise ConfigError(f"the faces have no split {split!r}", next=f"choose from {list(SPLITS)}")
    folder = epath.Path(data_dir).expanduser()
    builder = tfds_tables.open_or_prepare(
        lambda: FastweightsMultiPie(config=config, data_dir=folder, file_format="array_record"),
        folder,
        manual_dir=lambda: faces_files.locate(folder, manual_dir),
    )
    columns = tfds_tables.read_columns(builder, split)
    images = np.frombuffer(b"".join(columns["image"]), np.uint8)
    return {
        "inputs": images.reshape(len(columns["image"]), SIDE, SIDE),
        "target": np.array(columns["label"], np.int32),
    }
