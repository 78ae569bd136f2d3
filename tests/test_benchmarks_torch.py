"""What the benchmarks compare with in torch and transformers is right; no time is judged."""

import json

import pytest
from support import CIRCUMSTANCES

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
