"""The tokenizer "bytes" as a `tokenizer.json`, for programs that know no other kind.

It is a byte-level BPE without merges. Each byte is one character there, as in GPT-2: printable ones
of Latin-1 stand for themselves, the others for the characters from U+0100 on, in order.
"""

import json
from pathlib import Path
from typing import Any

from fastweights.tasks.text_tokens import Bytes


def alphabet() -> list[str]:
    """The character that stands for each byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def tokenizer_json() -> dict[str, Any]:
    """The content of the file: ids 0 to 255 are the bytes, 256 is the separator.

    A text gets the ids that `Bytes` gives it, unless it holds the separator's own text.
    """
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **plain, "special": True} for text, i in Bytes.added.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": False},
        "post_processor": None,
        "decoder": {**level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: byte for byte, character in enumerate(alphabet())},
            "merges": [],
        },
    }


def write(folder: Path) -> None:
    """Write `tokenizer.json`, and the `tokenizer_config.json` that transformers wants beside it."""
    settings = {
        # without it transformers takes the class of the model's family, which splits words
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": next(iter(Bytes.added)),
        "clean_up_tokenization_spaces": False,
    }
    for name, content in (("tokenizer", tokenizer_json()), ("tokenizer_config", settings)):
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
