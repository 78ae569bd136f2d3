"""What the benchmarks compare with in torch and transformers is right; no time is judged."""

import dataclasses
import json
import sys

import pytest
from support import CIRCUMSTANCES

import fastweights as fw

REASON = "torch and transformers are not installed: pip install '.[bench]'"
pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)


@pytest.mark.parametrize("training", [False, True])
def test_recurrent_layers_agree_with_float64(script, training, monkeypatch):
    """Eager ones only: a compiled one takes tens of seconds to compile."""
    rnn = script("rnn")
    monkeypatch.setattr(rnn, "COMPILE_WHOLE", -1)
    wanted = ("torch eager", "torch LSTM")
    all_makers = rnn.makers
    chosen = lambda *a: {n: m for n, m in all_makers(*a).items() if n.startswith(wanted)}
    monkeypatch.setattr(rnn, "makers", chosen)
    found, dropped = rnn.contenders((2, 9, 6), training, seed=0, with_torch=True)
    assert not dropped
    assert set(found) == {"torch eager matrix", "torch eager attention", "torch LSTM"}
    assert all(one.error < 2e-5 for one in found.values())


@pytest.mark.parametrize("training", [False, True])
def test_in_place_layers_agree_with_float64(script, training):
    names = ["torch plain", "torch eager"]
    odd = script("in_place_reference").Size(23, 5, 3, 4)
    found, dropped = script("in_place").contenders(names, odd, training, seed=0)
    assert list(found) == names and not dropped
    assert all(one.error < 1e-6 for one in found.values())


def test_decode_writes_the_same_tokens_as_transformers(script, tmp_path):
    decode = script("decode")
    out = tmp_path / "decode.json"
    decode.main(decode.Options(quick=True, out=out, rounds=1, prompt=8, new=12))
    record = json.loads(out.read_text())
    assert all(record[key] not in (None, "", []) for key in CIRCUMSTANCES)
    (model,) = record["models"]
    assert model["same_tokens"] == 12 and model["logit_gap_where_they_part"] is None
    assert {"transformers / ours", "decode alone / floor"} < set(model["ratios"])
    page = script("decode_page").tables(record)
    assert "12 of 12" in page and "transformers" in page


def test_decode_times_a_checkpoint(script, tmp_path, monkeypatch):
    """Rows, precisions and contenders, on a checkpoint of a toy; all write the same in float32."""
    decode, checkpoint = script("decode"), script("decode_checkpoint")
    monkeypatch.setattr(sys.modules["decode_checkpoint"], "BATCHES", (1, 2))
    monkeypatch.setattr(sys.modules["decode_checkpoint"], "READS", 1)
    toy = dataclasses.replace(decode.TOY, layers=2)
    fw.hf.save(script("random_decoder").random_decoder(toy, 0), tmp_path / "model")
    options = decode.Options(checkpoint_rounds=1, prompt=8, steps=4)
    found = {p: checkpoint.measure(tmp_path / "model", None, p, options) for p in ("float32",)}
    same = found["float32"]["same_tokens"]
    assert same["transformers"] == same["ours, unstacked"] == {"1": 4, "2": 8}
    assert {f"{name}, {rows}" for name in same for rows in (1, 2)} == set(
        found["float32"]["over_floor"]
    )
    record = {"prompt": 8, "checkpoint": [*found.values()]}
    text, table = script("decode_page").checkpoint_tables(record)
    assert "4 steps" in text and "| float32 | transformers |" in table
