"""Bytes as a tokenizer.json, read by the programs it is for."""

import numpy as np
import pytest

from fastweights.tasks import bytes_file
from fastweights.tasks.text_tokens import Bytes, TokenizerFile

pytest.importorskip("tokenizers", reason="needs tokenizers, the [hf] extra")


def test_bytes_as_a_tokenizer_file_are_bytes(tmp_path):
    """In tokenizers and in transformers, on any text but the separator's own."""
    bytes_file.write(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    file = TokenizerFile(tmp_path, "<|separator|>")
    assert file.separator == Bytes.separator and file.added == Bytes.added and file.opening == ()
    readers = [lambda text: file.encode(text).tolist()]
    writers = [file.decode]
    try:
        import transformers
    except ImportError:
        pass
    else:
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert theirs.eos_token_id == 256
        readers.append(lambda text: theirs(text).input_ids)
        writers.append(theirs.decode)
    rng = np.random.default_rng(0)
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x110000)]
    for _ in range(200):
        kinds = rng.integers(0, 4, rng.integers(0, 30))
        text = "".join(chr(rng.integers(*ranges[kind])) for kind in kinds)
        ids = list(text.encode("utf-8"))
        assert Bytes().encode(text).tolist() == ids
        assert all(read(text) == ids for read in readers), text
        assert all(write(ids) == text for write in writers), text
    assert file.decode([256, 104, 105, 0xC3, 263]) == Bytes().decode([256, 104, 105, 0xC3, 263])
    assert file.encode("a<|separator|>b").tolist() == [97, 256, 98]
