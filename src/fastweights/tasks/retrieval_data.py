"""The associative retrieval data set of Ba et al. 2016 (section 4.1) as a TFDS builder.

100,000 training, 10,000 validation and 20,000 test strings, as in the paper. It does not say how
many pairs a string has; its two examples and the chance level its networks show say 4. The strings
are drawn from fixed seeds: whoever prepares the data set gets the same one. Splits are drawn
independently, so for K <= 2, with few different strings, test strings also occur in training.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from fastweights.errors import ConfigError, DataError
from fastweights.tasks import tfds_tables
from fastweights.tasks.retrieval_strings import LETTERS, answers, check_pairs, sample

SPLIT_SIZES: Mapping[str, int] = {"train": 100_000, "validation": 10_000, "test": 20_000}

_SEED = 2016


@dataclasses.dataclass(eq=False)
class RetrievalConfig(tfds.core.BuilderConfig):
    """K pairs a string, and how many strings in each split."""

    pairs: int = 4
    sizes: Mapping[str, int] = dataclasses.field(default_factory=lambda: SPLIT_SIZES)


class AssociativeRetrieval(tfds.core.GeneratorBasedBuilder):
    """``associative_retrieval/k4`` and its siblings k1 to k26.

    Features: ``tokens`` uint8 [2K + 3] (a-z, 0-9, ? are 0..36), ``target`` uint8, a digit 0..9.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [RetrievalConfig(name=f"k{k}", pairs=k) for k in range(1, len(LETTERS) + 1)]
    DEFAULT_BUILDER_CONFIG_NAME = "k4"

    @property
    def _config(self) -> RetrievalConfig:
        assert isinstance(self.builder_config, RetrievalConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        tokens = tfds.features.Tensor(
            shape=(2 * self._config.pairs + 3,),
            dtype=np.uint8,
            encoding=tfds.features.Encoding.BYTES,
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Letter-digit pairs, then a letter: recall its digit.",
            features=tfds.features.FeaturesDict(
                {"tokens": tokens, "target": tfds.features.Scalar(np.uint8)}
            ),
            homepage="https://arxiv.org/abs/1610.06258",
            disable_shuffling=True,  # the strings are drawn independently: any order is random
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in self._config.sizes}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        pairs, count = self._config.pairs, self._config.sizes[split]
        stream = np.random.SeedSequence([_SEED, pairs, list(SPLIT_SIZES).index(split)])
        table = sample(np.random.Generator(np.random.Philox(stream)), count, pairs)
        rows = zip(table["inputs"].astype(np.uint8), table["target"].tolist(), strict=True)
        for i, (tokens, target) in enumerate(rows):
            yield i, {"tokens": tokens, "target": target}


def load(
    split: str,
    *,
    data_dir: epath.PathLike,
    pairs: int = 4,
    sizes: Mapping[str, int] = SPLIT_SIZES,
) -> dict[str, np.ndarray]:
    """One split in memory; the data set is prepared first if `data_dir` does not hold it.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        data_dir: the folder for TFDS data sets.
        pairs: K, 1 to 26.
        sizes: examples in each split. Other sizes than the paper's are another data set on disk.

    Returns:
        ``inputs`` int32 [N, 2K + 3] and ``target`` int32 [N].

    Raises:
        ConfigError: an unknown split, or pairs outside 1..26.
        DataError: the folder cannot be written, or what it holds is incomplete or damaged. Every
            row read is solved and compared with its target: a wrong one is never trained on.
    """
    check_pairs(pairs)
    if split not in SPLIT_SIZES or set(sizes) != set(SPLIT_SIZES):
        raise ConfigError(
            f"associative retrieval has no split {split!r}", next=f"choose from {list(SPLIT_SIZES)}"
        )
    config: str | RetrievalConfig = f"k{pairs}"
    if dict(sizes) != dict(SPLIT_SIZES):
        name = "_".join([f"k{pairs}", *(str(sizes[name]) for name in SPLIT_SIZES)])
        config = RetrievalConfig(name=name, pairs=pairs, sizes=sizes)
    folder = epath.Path(data_dir).expanduser()
    builder = tfds_tables.open_or_prepare(
        lambda: AssociativeRetrieval(config=config, data_dir=folder, file_format="array_record"),
        folder,
    )
    found = {name: info.num_examples for name, info in builder.info.splits.items()}
    if found != dict(sizes):
        raise _wrong(builder, f"{found} examples, not {dict(sizes)}")
    columns = tfds_tables.read_columns(builder, split)
    target = np.array(columns["target"], np.int32)
    flat = np.frombuffer(b"".join(columns["tokens"]), np.uint8)
    if flat.size != len(target) * (2 * pairs + 3):
        raise _wrong(builder, f"strings in {split!r} that do not have {pairs} pairs")
    inputs = flat.reshape(len(target), 2 * pairs + 3).astype(np.int32)
    if not np.array_equal(answers(inputs), target):
        raise _wrong(builder, f"targets in {split!r} that are not the answers")
    return {"inputs": inputs, "target": target}


def _wrong(builder: tfds.core.DatasetBuilder, found: str) -> DataError:
    return DataError(
        f"the prepared {builder.name} has {found}",
        where=builder.data_path,
        cause="it was written by something else, or is damaged",
        next="delete that folder and run the same command again: it will be prepared anew",
    )
