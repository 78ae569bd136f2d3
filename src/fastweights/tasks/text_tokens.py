"""Text to token ids and back: bytes, with nothing to install or download, or a `tokenizer.json`."""

import functools
import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastweights.errors import ConfigError, DataError, install_extra


class Tokenizer(Protocol):
    """What the language task needs of a tokenizer."""

    #: ids are below this; a model may have more rows in its embedding
    vocab: int
    #: id put before and after each document, None for no such token
    separator: int | None
    #: tokens that no ordinary text makes, by their text
    added: dict[str, int]
    #: what the tokenizer asks to be put before a text that starts here; `encode` does not
    opening: tuple[int, ...]
    #: changes when the ids of a text would
    fingerprint: str
    #: directory of its files, None for no files
    folder: Path | None

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, int32 `[n]`."""
        ...

    def decode(self, tokens: Any) -> str:
        """The text of token ids, int `[n]`."""
        ...


class Bytes:
    """UTF-8 bytes: ids 0 to 255 are the bytes, 256 is the document separator.

    `vocab` is 264, the next multiple of 8 after 257, so that an embedding can be split over as many
    devices; ids 257 to 263 never occur in a text.
    """

    vocab = 264
    separator: int | None = 256
    added: dict[str, int] = {"<|separator|>": 256}
    opening: tuple[int, ...] = ()
    fingerprint = "bytes"
    folder: Path | None = None

    def encode(self, text: str) -> np.ndarray:
        """One id for each byte of the text in UTF-8, int32 `[n]`."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: Any) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD, ids that are no bytes are left out."""
        ids = np.asarray(tokens).reshape(-1)
        return ids[(ids >= 0) & (ids < 256)].astype(np.uint8).tobytes().decode(errors="replace")


class TokenizerFile:
    """A Hugging Face `tokenizer.json`, read by the `tokenizers` package.

    Args:
        path: the file, or a folder that holds one.
        separator: text of the special token between documents, such as `<|endoftext|>`; None for
            no separator.

    Raises:
        ConfigError: the package is not installed, or there is no such token.
        DataError: the file is absent, or is no tokenizer.
    """

    def __init__(self, path: str | Path, separator: str | None = None):
        try:
            import tokenizers
        except ImportError as error:
            raise ConfigError(
                "a tokenizer.json is read by the package `tokenizers`, which is not installed",
                where=path,
                next=f"pip install tokenizers, or {install_extra('hf')}; "
                "--task.tokenizer bytes needs no package",
            ) from error
        file = Path(path).expanduser()
        file = file / "tokenizer.json" if file.is_dir() else file
        try:
            text = file.read_text(encoding="utf-8")
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
            # a file may have been saved with settings for batches of one length: a text is whole
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        except Exception as error:  # `tokenizers` raises bare Exception for any bad file
            raise DataError(
                "this tokenizer cannot be read",
                where=file,
                cause=str(error)[:200],
                next="give the tokenizer.json of a Hugging Face model, or its folder",
            ) from error
        self.folder: Path | None = file.parent
        self.vocab = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.separator = None if separator is None else self._tokenizer.token_to_id(separator)
        if separator is not None and self.separator is None:
            raise ConfigError(
                f"this tokenizer has no token {separator!r}",
                where=file,
                next="name one of its special tokens in --task.separator, or None",
            )
        found = self._tokenizer.get_added_tokens_decoder()
        self.added = {token.content: i for i, token in found.items()}
        sample = self._tokenizer.encode("a")
        count = (sample.special_tokens_mask + [0]).index(0)
        self.opening = tuple(sample.ids[:count])
        self.fingerprint = hashlib.sha256(f"{separator}\n{text}".encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 `[n]`, without the special tokens some tokenizers put around a text."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: Any) -> str:
        """The text of token ids, special tokens left out."""
        return self._tokenizer.decode(np.asarray(tokens).reshape(-1).tolist())


@functools.lru_cache(8)
def load_tokenizer(name: str, separator: str | None = None) -> Tokenizer:
    """The tokenizer a config names: "bytes", or the path of a `tokenizer.json` or its folder.

    Bytes have a separator of their own, whatever `separator` is.
    """
    return Bytes() if name == "bytes" else TokenizerFile(name, separator)


def tokenizer_faults(name: str, separator: str | None, vocab: int) -> list[str]:
    """The fault of a model whose vocabulary is smaller than the tokenizer's, if the file exists.

    Args:
        name: as in `load_tokenizer`.
        separator: as in `load_tokenizer`.
        vocab: rows of the model's embedding.
    """
    if name != "bytes" and not Path(name).expanduser().exists():
        return []
    needed = load_tokenizer(name, separator).vocab
    if vocab >= needed:
        return []
    return [f"model.vocab is {vocab}; the tokenizer {name!r} needs at least {needed}"]
