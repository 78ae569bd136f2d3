"""Whole TFDS splits as columns in memory, without TensorFlow.

The data sets here fit in memory many times over, so a split is read once, in bulk, and the input
pipeline then works on arrays. TFDS's own decoding costs 20 us an example; reading all records at
once and parsing the protocol buffers directly costs a third of that.
"""

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from fastweights.errors import DataError

Builder = tfds.core.DatasetBuilder


def open_builder(construct: Callable[[], Builder], data_dir: epath.PathLike) -> Builder:
    """`construct()`, which reads a ``dataset_info.json`` it finds; `DataError` if that is bad."""
    try:
        return construct()
    except ParseError as error:
        raise _damaged(data_dir, error) from error


def is_prepared(builder: Builder) -> bool:
    """Whether the data set is on disk (TFDS's own question logs a warning when nothing is)."""
    return builder.data_path.exists() and builder.is_prepared()


def open_or_prepare(
    construct: Callable[[], Builder],
    data_dir: epath.PathLike,
    *,
    manual_dir: Callable[[], epath.Path] | None = None,
) -> Builder:
    """The builder of a data set that is on disk: written now, unless it was there.

    Safe to kill: TFDS writes into a folder named ``incomplete.*`` and renames it as its last act.
    Safe to race: of processes that prepare the same data set one renames, all use the result.

    Args:
        construct: makes the builder; called again after writing, to read what is on disk.
        data_dir: where the builder puts its data, for error messages.
        manual_dir: asked for TFDS's manual folder, only if the data set has to be written.

    Raises:
        DataError: the folder cannot be written, or holds something that is no whole data set.
    """
    builder = open_builder(construct, data_dir)
    if is_prepared(builder):
        return builder
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir() if manual_dir else None, try_download_gcs=False
    )
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # in a log file it is only noise
    try:
        # TFDS prints a banner of unknown sizes on stdout, which belongs to whoever called us.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=config)
    except OSError as error:
        # FileExistsError: another process was first, and its copy is as good as ours.
        if not is_prepared(builder):
            raise DataError(
                f"cannot write the data set {builder.info.full_name}",
                where=builder.data_path,
                cause=str(error),
                next="choose a folder with space that you may write to: --data.dir DIR",
            ) from error
    builder = open_builder(construct, data_dir)
    # TFDS takes any folder of the right name for a finished one, e.g. what a broken copy left.
    if not is_prepared(builder):
        raise _damaged(builder.data_path, "it has no dataset_info.json")
    return builder


def read_columns(builder: Builder, split: str) -> dict[str, list[Any]]:
    """Every value of a prepared split, in stored order, as TFDS serialised it.

    Args:
        builder: prepared, in the array_record format, with no nested or ragged features.
        split: a TFDS split such as ``"test"`` or ``"train[-5000:]"``.

    Returns:
        feature name -> list with one int or bytes per example.

    Raises:
        DataError: a record file is missing or damaged (array_record checksums its chunks).
    """
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    example: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
    as_data_source: Any = builder.as_data_source  # its decorator hides its signature
    try:
        source = as_data_source(split, deserialize_method=raw)
        records = source.__getitems__(range(len(source)))
        if not all(records):  # array_record returns b"" for a file cut after its first 64 KiB
            raise ValueError("a record file is cut short")
        rows = [example.FromString(record).features.feature for record in records]
    except (RuntimeError, ValueError, OSError, DecodeError) as error:
        raise _damaged(builder.data_path, error) from error
    kinds = {name: rows[0][name].WhichOneof("kind") for name in rows[0]} if rows else {}
    return {
        name: [getattr(row[name], kind).value[0] for row in rows] for name, kind in kinds.items()
    }


def _damaged(folder: epath.PathLike, reason: object) -> DataError:
    return DataError(
        "a prepared data set cannot be read",
        where=folder,
        cause=f"an interrupted copy or a damaged disk ({reason})",
        next="delete that folder and run the same command again: it will be prepared anew",
    )
