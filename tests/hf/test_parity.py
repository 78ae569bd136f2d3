"""Checkpoints that transformers wrote, read here, written here and read there."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from fastweights import hf
from fastweights.errors import ConfigError
from fastweights.hf import parity as comparison
from fastweights.hf.parity import main, parity
from fastweights.models.decoder_config import InPlaceTTT, Rope
from hf.tiny import LLAMA, QWEN3, assert_same, model, write

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
WINDOWS = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
CASES = {
    "qwen3": ("Qwen3", {}),
    "qwen3_tied": ("Qwen3", {"tie_word_embeddings": True}),
    "qwen3_yarn": ("Qwen3", {"rope_parameters": YARN | {"rope_theta": 1e6}}),
    "qwen3_windows": ("Qwen3", WINDOWS),
    "llama": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama_tied_llama3": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function that makes transformers' checkpoint of a case, in three files or more."""
    torch = pytest.importorskip("torch", reason="parity needs torch, the [parity] extra")
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")

    def make(case):
        family, keys = CASES[case]
        config = getattr(transformers, f"{family}Config")(**SIZES, **keys)
        torch.manual_seed(len(case))
        there = getattr(transformers, f"{family}ForCausalLM")(config).float()
        for name, weight in there.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(weight, 1.0, 0.2)
        folder = tmp_path_factory.mktemp(case) / "theirs"
        there.save_pretrained(folder, max_shard_size="30KB")
        assert len(list(folder.glob("*.safetensors"))) >= 3
        return folder

    return make


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers_there_and_back(case, made, tmp_path):
    folder = made(case)
    report = parity(folder, length=100)
    assert report.ok and report.logits <= 1e-4 and not report.layers, report
    assert max(report.ratio) < 2, report
    assert report.agreement == 1 and report.kl < 1e-9 and report.tokens == 200
    loaded = hf.load(folder)
    hf.save(loaded, tmp_path / "ours", like=folder, max_shard_bytes=30_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) >= 3
    assert_same(hf.load(tmp_path / "ours"), loaded)
    report = parity(tmp_path / "ours", length=100)
    assert report.ok and report.logits <= 1e-4, report


def test_the_layout_before_transformers_5(made):
    """The same model whose rotary embedding stands in `rope_theta` and `rope_scaling`."""
    folder = made("llama_tied_llama3")
    raw = json.loads((folder / "config.json").read_text())
    new = hf.load(folder)
    values = raw.pop("rope_parameters")
    raw |= {"rope_theta": values.pop("rope_theta"), "rope_scaling": values}
    (folder / "config.json").write_text(json.dumps(raw))
    old = hf.load(folder)
    assert old.config == new.config and old.config.rope.scaling == "llama3"
    assert parity(folder, length=100).ok


def test_models_of_ours_are_read_by_transformers(tmp_path):
    """Of a base model with in-place layers it reads the base; bfloat16 is kept as it is."""
    pytest.importorskip("torch", reason="parity needs torch")
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    yarn = Rope(1e4, "yarn", factor=4.0, original_length=32, beta_fast=8.0, attention_factor=1.3)
    cases = [
        dataclasses.replace(QWEN3, ttt=InPlaceTTT(layers=(1, 3), chunk=4)),
        dataclasses.replace(LLAMA, rope=yarn, dtype="bfloat16", param_dtype="bfloat16"),
        dataclasses.replace(QWEN3, windows=(None, 5, 5, None)),
    ]
    for i, config in enumerate(cases):
        there = model(config, seed=i)
        hf.save(there, tmp_path / str(i))
        report = parity(tmp_path / str(i), length=60)
        assert report.ok, report
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "1")
    assert str(theirs.dtype) == "torch.bfloat16"


def rows(tensor, order):
    """A tensor of the second layer, heads of 8 rows in another order."""

    def change(raw, tensors):
        name = f"model.layers.1.self_attn.{tensor}.weight"
        heads = tensors[name].reshape(-1, 8, tensors[name].shape[-1])
        tensors[name] = heads[order].reshape(tensors[name].shape)

    return change


def rope(**values):
    """Another rotary embedding."""
    return lambda raw, tensors: raw["rope_parameters"].update(values)


def one_number(raw, tensors):
    """A wrong number in the embedding of one token."""
    tensors["model.embed_tokens.weight"][18, 5] += 1e-3


#: mistakes of an implementation, each in a case where all else is as it should be
MISTAKES = {
    "rope_theta": ("llama", rope(rope_theta=10_050.0)),
    "llama3_factor": ("llama_tied_llama3", rope(factor=8.2)),
    "yarn_factor": ("qwen3_yarn", rope(factor=4.01)),
    "norm_eps": ("qwen3", lambda raw, tensors: raw.update(rms_norm_eps=2e-6)),
    "window": ("qwen3_windows", lambda raw, tensors: raw.update(sliding_window=10)),
    "query_heads": ("llama", rows("q_proj", [1, 0, 2, 3])),
    "groups": ("llama", rows("k_proj", [1, 0])),
    "one_number": ("llama", one_number),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_no_rounding(mistake, made, tmp_path, monkeypatch):
    """The least of them, the norm, moves logits by 1e-4 and the divergence is 1e-10 nats."""
    case, change = MISTAKES[mistake]
    folder = made(case)
    raw, tensors = json.loads((folder / "config.json").read_text()), {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    change(raw, tensors)
    wrong = write(tmp_path / "wrong", raw, tensors)
    monkeypatch.setattr(comparison, "load", lambda path, **options: hf.load(wrong, **options))
    report = parity(folder, length=100)
    assert not report.ok and report.ratio.median > 4, report
    assert "DIFFERENT" in str(report)


def test_what_differs_is_found_by_layer(made, monkeypatch, capsys):
    folder = made("qwen3")

    def damaged(path, **options):
        """A model whose second layer of three has one wrong number."""
        there = hf.load(path, **options)
        kernel = there.blocks[0].mlp.up.kernel
        kernel[...] = kernel[...].at[1, 3, 2].add(1.0)
        return there

    assert main(folder) == 0
    assert "same up to rounding, 256 tokens" in capsys.readouterr().out
    monkeypatch.setattr(comparison, "load", damaged)
    report = parity(folder)
    assert not report.ok and report.kl > 0
    ratios = [ours / theirs for ours, theirs in report.layers]
    assert len(ratios) == 3
    assert ratios[0] < 4 < 100 < ratios[1]
    assert main(folder) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_the_judgement_is_relative_to_the_rounding_of_the_oracle():
    """The same difference is rounding in a model of large numbers, and is not in a small one."""
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((2, 50, 40))
    noise = lambda size: size * rng.standard_normal(exact.shape)
    report = comparison.compare(exact + noise(3e-4), exact + noise(1e-4), exact)
    assert report.ok and 2 < report.ratio.median < 4 and report.logits > 1e-4
    report = comparison.compare(exact + noise(3e-4), exact + noise(1e-6), exact)
    assert not report.ok and report.kl < comparison.MOST_KL
    # float32 that is as bad in both is no proof of anything
    report = comparison.compare(exact + noise(0.1), exact + noise(0.1), exact)
    assert not report.ok and report.ratio.median < 2 and report.kl > comparison.MOST_KL
    # one token of a hundred
    bad = exact + noise(1e-6)
    bad[1, 7] += noise(1e-4)[1, 7]
    report = comparison.compare(bad, exact + noise(1e-6), exact)
    assert not report.ok and report.ratio.median < 2
    # a model whose logits are all 0 in both
    assert comparison.compare(*np.zeros((3, 1, 4, 5))).ok


def test_what_cannot_be_compared(tmp_path, monkeypatch, capsys):
    hf.save(model(dataclasses.replace(LLAMA, windows=(5,) * 4)), tmp_path / "windows")
    with pytest.raises(ConfigError, match="no such sliding windows"):
        parity(tmp_path / "windows")
    assert main(tmp_path / "nothing") == 4
    assert "is not a directory" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError) as caught:
        parity(write(tmp_path / "in"))
    assert "in the fastweights checkout: pip install -e '.[parity]'" in str(caught.value)


def test_nan_is_not_the_same():
    exact = np.random.default_rng(0).standard_normal((1, 3, 5))
    ours = exact.copy()
    ours[0, 1, 2] = np.nan
    report = comparison.compare(ours, exact + 1e-7, exact)
    assert not report.ok and "DIFFERENT" in str(report)
