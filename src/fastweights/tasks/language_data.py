"""Text files as documents of token ids: which file is in which split, and nothing unreadable.

The files of a language model here are some megabytes, so they are read whole and kept in memory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastweights.errors import ConfigError, DataError
from fastweights.tasks.text_tokens import Tokenizer

SPLITS = ("train", "validation", "test")


class Document(NamedTuple):
    """A file, or its part in a split, as token ids with a separator at either end."""

    name: str
    tokens: np.ndarray  # [n] int32


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The files under `folder` that match, sorted by their path.

    Raises:
        DataError: there are none.
    """
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not files:
        there = folder.is_dir()
        raise DataError(
            f"no text files: nothing matches {pattern!r}" if there else "no folder of text files",
            where=folder,
            cause="another folder, or another --task.files" if there else "it does not exist",
            next="--data.dir DIR, a folder of UTF-8 .txt files",
        )
    return files


def read_text(file: Path) -> str:
    """A whole UTF-8 file, every byte as it is: line ends are not changed.

    Raises:
        DataError: it cannot be read, or is not UTF-8; the message has the offset of the bad byte.
    """
    try:
        data = file.read_bytes()
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"this file is not UTF-8 text: byte 0x{error.object[error.start]:02x} "
            f"at offset {error.start}",
            where=file,
            cause="another encoding such as Latin-1, or not a text file at all",
            next=f"iconv -f latin1 -t utf-8 {file.name} > fixed.txt, or choose --task.files",
        ) from error
    except OSError as error:
        raise DataError("this file cannot be read", where=file, cause=str(error)) from error


def split_documents(
    folder: Path,
    pattern: str,
    split: str,
    tokenizer: Tokenizer,
    *,
    validation: Sequence[str] = (),
    test: Sequence[str] = (),
    holdout: float = 0.1,
) -> list[Document]:
    """The documents of one split, in the order of their paths.

    With names in `validation` and `test` those files are these splits and all others are for
    training. With no names every file is cut by its length in characters: the last `holdout` of it
    is held out, the first half of that for validation and the second for test.

    Args:
        folder: where the files are.
        pattern: glob of the files in it, such as `*.txt` or `**/*.txt`.
        split: "train", "validation" or "test".
        tokenizer: how a text becomes ids.
        validation: names, as paths relative to `folder`, of files held out.
        test: the same for the test split; may be empty, there is no test split then.
        holdout: share of each file held out when no file is named.

    Raises:
        ConfigError: no such split, or a name in two splits.
        DataError: no files, a name that is no file, a file that is not UTF-8, or an empty split.
    """
    if split not in SPLITS:
        raise ConfigError(f"there is no split {split!r}", next=f"choose from {', '.join(SPLITS)}")
    files = {path.relative_to(folder).as_posix(): path for path in find_files(folder, pattern)}
    held = {"validation": tuple(validation), "test": tuple(test)}
    _check_names(held, files, folder)
    if not validation and not test:
        texts = {name: _part(read_text(path), split, holdout) for name, path in files.items()}
    else:
        out = {*validation, *test}
        wanted = held.get(split, [name for name in files if name not in out])
        texts = {name: read_text(files[name]) for name in files if name in wanted}
    documents = [Document(name, _tokens(text, tokenizer)) for name, text in texts.items() if text]
    if not documents:
        raise DataError(
            f"the {split} split has no text",
            where=folder,
            cause=f"{len(files)} files, of which validation has {len(validation)} and test "
            f"{len(test)}"
            if validation or test
            else f"all of {len(files)} files are too short",
            next=f"name files for it in --task.{split}, or add files"
            if split != "train"
            else "add files, or hold out fewer",
        )
    return documents


def _tokens(text: str, tokenizer: Tokenizer) -> np.ndarray:
    border = [] if tokenizer.separator is None else [tokenizer.separator]
    return np.concatenate([border, tokenizer.encode(text), border]).astype(np.int32)


def _part(text: str, split: str, holdout: float) -> str:
    """Train, validation and test follow each other in a file."""
    first = len(text) - round(len(text) * holdout)
    second = (first + len(text)) // 2
    return {"train": text[:first], "validation": text[first:second], "test": text[second:]}[split]


def _check_names(held: dict[str, tuple[str, ...]], files: dict[str, Path], folder: Path) -> None:
    both = set(held["validation"]) & set(held["test"])
    if both:
        raise ConfigError(
            f"{sorted(both)[0]!r} is held out for validation and for test",
            where="task.validation, task.test",
            next="name a file in one of them",
        )
    for split, names in held.items():
        for name in names:
            if name not in files:
                raise DataError(
                    f"task.{split} names {name!r}, which is not one of the {len(files)} files",
                    where=folder,
                    cause="they are " + ", ".join(list(files)[:8]),
                    next=f"name them relative to that folder in --task.{split}",
                )
