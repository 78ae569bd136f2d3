import sys

import numpy as np
import pytest

from fastweights.errors import ConfigError, DataError
from fastweights.tasks.text_tokens import Bytes, TokenizerFile, load_tokenizer

TEXTS = ["", "plain", "naïve café – “quotes”\r\n", "\u0000\U0001f9e0 日本", "<|end|> in a text"]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_there_and_back(text):
    tokens = Bytes().encode(text)
    assert tokens.dtype == np.int32 and tokens.tolist() == list(text.encode("utf-8"))
    assert Bytes().decode(tokens) == text
    assert all(tokens < Bytes.separator) and Bytes.separator < Bytes.vocab


def test_ids_that_are_no_bytes_and_bytes_that_are_no_text():
    assert Bytes().decode([256, 104, 105, 263, -1]) == "hi"
    assert Bytes().decode([0xC3, 104]) == "\ufffdh"
    assert Bytes().decode(np.array([[104], [105]])) == "hi"


@pytest.fixture
def file(tmp_path):
    """A byte-level BPE of ten merges, trained on the spot."""
    tokenizers = pytest.importorskip("tokenizers", reason="the hf extra is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["<|end|>", "<s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the cat and the other cat"] * 9, trainer)
    # one that a tokenizer puts before every text, unless it is told not to
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("text", TEXTS[:-1])
def test_a_tokenizer_file_there_and_back(file, text):
    tokenizer = TokenizerFile(file, "<|end|>")
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32 and tokenizer.decode(tokens) == text
    assert 1 not in tokens, "special tokens are put by us, not by the file"


def test_a_tokenizer_files_sizes(file):
    tokenizer = load_tokenizer(str(file.parent), "<|end|>")
    assert tokenizer.vocab == 270 and tokenizer.separator == 0
    assert tokenizer.added == {"<|end|>": 0, "<s>": 1} and tokenizer.opening == (1,)
    assert len(tokenizer.encode("the cat")) < len("the cat")
    assert TokenizerFile(file).separator is None
    assert tokenizer.fingerprint != TokenizerFile(file).fingerprint
    with pytest.raises(ConfigError, match="no token '<eos>'"):
        TokenizerFile(file, "<eos>")


def test_a_file_saved_with_truncation_and_padding_reads_whole_texts(file, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the hf extra is not installed")
    made = tokenizers.Tokenizer.from_file(str(file))
    made.enable_truncation(5)
    made.enable_padding(direction="left", length=40, pad_id=1, pad_token="<s>")
    made.save(str(tmp_path / "cut.json"))
    whole, cut = TokenizerFile(file), TokenizerFile(tmp_path / "cut.json")
    for text in ("a", "the cat and the other cat " * 20):
        assert cut.encode(text).tolist() == whole.encode(text).tolist()
        assert cut.decode(cut.encode(text)) == text
    assert cut.opening == whole.opening == (1,)


def test_a_file_that_is_no_tokenizer(tmp_path):
    pytest.importorskip("tokenizers", reason="the hf extra is not installed")
    bad = tmp_path / "tokenizer.json"
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        TokenizerFile(bad)
    bad.write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        TokenizerFile(bad)


def test_without_the_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match="pip install tokenizers"):
        TokenizerFile(tmp_path)
    assert load_tokenizer("bytes").vocab == 264
