"""Benchmarks of in-place options: each form is what it is called, and measures are those of W."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from fastweights import hf
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT
from fastweights.models.decoder_mesh import path_name
from fastweights.rules import chunk_scan
from fastweights.tasks import bytes_file

MODEL = DecoderConfig(
    family="llama",
    vocab=264,
    hidden=16,
    intermediate=24,
    layers=4,
    heads=2,
    kv_heads=2,
    head_dim=8,
    tie_embeddings=True,
    max_length=64,
    ttt=InPlaceTTT(layers=(1, 3), chunk=8, lr=0.5, decay=0.7, cap=0.3),
)


def random_model(config):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)


@pytest.mark.parametrize("name", ["cap", "cap, decay", "cap, 4 documents", "learned η"])
def test_a_form_of_the_cost_table_is_the_scan_with_its_options(script, name):
    options = script("in_place_options")
    rng = np.random.default_rng(0)
    w0, z, v = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 5), (48, 5), (48, 3)))
    how = {"chunk": 4, "lr": 0.1, "final": False}
    how |= {"cap": 0.02} if "cap" in name else {}
    how |= {"decay": 0.9} if "decay" in name else {}
    if "documents" in name:  # a document is five tokens long, the last one takes the rest
        how |= {"segments": jnp.asarray([1] * 5 + [2] * 5 + [3] * 5 + [4] * 33)}
    y = options.layer(name, 4, 0.1, 48)(w0, z, v, options.numbers(name))
    assert_close(y, chunk_scan(w0, z, v, **how)[0])
    assert np.abs(np.asarray(y - z @ w0.T)).max() > 1e-3


def test_the_cost_table_is_over_the_released_form(script):
    options = script("in_place_options")
    over = {"released": {"median": 1.0}, "cap": {"median": 1.049}}
    group = {"mode": "train", "length": 4096, "chunk": 256, "contenders": over}
    record = {
        "machine": {"cpu": "a CPU"},
        "versions": {"jax": "0.10.2"},
        "date": "2026-11-28T00:00:00",
        "groups": [group | {"over_released": over}],
        "memory": [{"chunk": 1024, "temp_bytes": {"cap": 3 * 2**29}}],
    }
    lines = options.table(record).splitlines()
    assert lines[0] == "| form | train, T 4,096, C 256 | GiB, C 1024 |"
    assert lines[2:4] == ["| released | 1.00 | – |", "| cap | 1.05 | 1.50 |"]


def test_the_picture_of_why_has_means_over_layers_and_chunks(script):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    why = script("books_why")
    layers = [[n, 3.0 * n] for n in range(17)]
    arm = {name: layers for name in why.PANELS} | {"loss": [float(n) for n in range(17)]}
    why.draw({"chunk": 128, "arms": {"as released": arm, "decay 0.9": arm}}, figure)
    loss, size = figure.axes[:2]
    assert [line.get_label() for line in size.get_lines()] == ["as released", "decay 0.9"]
    np.testing.assert_allclose(loss.get_lines()[0].get_xydata(), [[0, 3.5], [1024, 11.5]])
    np.testing.assert_allclose(size.get_lines()[1].get_xydata(), [[0, 7.0], [1024, 23.0]])


def test_measures_of_why_are_those_of_the_fast_weights(script):
    """Beside a loop over chunks with the layers' own inputs, in NumPy, float64."""
    why = script("books_why")
    model = random_model(MODEL)
    tokens = np.random.default_rng(1).integers(0, 264, 33).astype(np.int32)
    found = why.curves(model, tokens, 32)
    assert {name: x.shape for name, x in found.items()} == {
        name: (4,) if name == "loss" else (4, 2) for name in why.MEASURES
    }
    losses = model.losses(tokens[None, :-1], tokens[None, 1:])[0].reshape(4, 8).mean(1)
    assert_close(found["loss"], losses)
    # the first layer that learns reads what block 0 gives it, which does not learn
    block, x = model.layer(0), model.embedded(jnp.asarray(tokens[None, :-1]))
    where = jnp.arange(32)[None]
    for i in (0, 1):
        block = model.layer(i)
        h = x + block.attention(block.attention_norm(x), where)
        inner = block.mlp_norm(h)
        x = h + block.mlp(inner) if i == 0 else x
    mlp = model.layer(1).mlp
    z = np.asarray(mlp.hidden(inner)[0], np.float64).reshape(4, 8, -1)
    v = np.asarray(mlp.targets(inner)[0], np.float64).reshape(4, 8, -1)
    w0 = np.asarray(mlp.slow, np.float64)
    added, total, keys = np.zeros_like(w0), 0.0, np.zeros(z.shape[-1])
    norm, per = np.linalg.norm, lambda x: np.linalg.norm(x, axis=-1)
    for n in range(4):
        seen = added * min(1, 0.3 * norm(w0) / max(norm(added), 1e-12))
        unit = z[n] / per(z[n])[:, None]
        share = np.linalg.svd(added, compute_uv=False) ** 2
        share = share[share > 1e-12 * max(share.max(), 1e-300)] / max(share.sum(), 1e-300)
        expected = {
            "size": norm(seen) / norm(w0),
            "share": np.mean(per(z[n] @ seen.T) / per(z[n] @ w0.T)),
            "rank": np.exp(-np.sum(share * np.log(share))) if n else 0.0,
            "straight": norm(added) / total if n else 0.0,
            "collisions": np.mean(unit @ keys) / (8 * n) if n else 0.0,
        }
        for name, value in expected.items():
            assert found[name][n, 0] == pytest.approx(value, rel=2e-4, abs=1e-6), (name, n)
        delta = 0.5 * v[n].T @ z[n]
        added, total = 0.7 * added + delta, total + norm(delta)
        keys = keys + unit.sum(0)


def test_continued_pretraining_from_checkpoint_to_table(script, tmp_path, monkeypatch):
    """A control that writes nothing and an arm that does, from one checkpoint; equal parameters."""
    continued = script("continued")
    plain = dataclasses.replace(MODEL, ttt=None, layers=6)
    hf.save(random_model(plain), tmp_path / "start")
    bytes_file.write(tmp_path / "start")
    texts = tmp_path / "texts"
    texts.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcd":
        (texts / f"{name}.txt").write_text("".join(rng.choice([*"abcdef "], 700)))
    base = continued.books.base_config(texts, 2)
    task = dataclasses.replace(base.task, validation=("b.txt",), test=("c.txt", "d.txt"))
    monkeypatch.setattr(
        continued.books, "base_config", lambda data, steps: dataclasses.replace(base, task=task)
    )
    ttt = InPlaceTTT(layers=(2,), chunk=8, lr=0.5, proj=False, cap=0.1)
    for name, value in {
        "SIGHT": 16,
        "ROW": 32,
        "WINDOW": 320,
        "CHUNK": 8,
        "PARTS": (0, 8, 32),
        "BEFORE": 16,
        "AFTER": (0, 8, 16),
        "SILENT": dataclasses.replace(ttt, chunk=320, cap=None),
        "NEEDLES": dataclasses.replace(
            continued.NEEDLES, kinds=("single",), lengths=(256,), questions=2, digits=2
        ),
        "LIMIT": 32,
    }.items():
        monkeypatch.setattr(continued, name, value)
    arms = {
        "checkpoint": continued.Arm(continued.SILENT, lr=None, sight=16),
        "continued": continued.Arm(continued.SILENT, sight=16),
        "writes": continued.Arm(ttt, sight=16),
        "writes, full attention": continued.Arm(ttt, sight=None),
        "convolutions": continued.Arm(ttt, sight=16, trained="convolutions"),
    }
    monkeypatch.setattr(continued, "table_arms", lambda search: arms)
    out = tmp_path / "out.json"
    options = continued.Options(
        checkpoint=tmp_path / "start",
        data=texts,
        seeds=1,
        steps=2,
        windows=2,
        out=out,
        runs=tmp_path / "runs",
        keep=True,
    )
    continued.main(options)
    runs = {run["arm"]: run for run in json.loads(out.read_text())["runs"]}
    assert list(runs) == list(arms)
    for name, run in runs.items():
        parts = 2 if "full" in name else 3
        assert np.shape(run["losses"]["c.txt"]) == np.shape(run["losses"]["d.txt"]) == (parts, 2)
        assert [cell["length"] for cell in run["needles"]] == ([] if "full" in name else [256])
        assert str(tmp_path) not in json.dumps(run)
    # one update of learning rate 0 and one of half a rate: losses move, and not by the writes alone
    assert runs["continued"]["losses"] != runs["checkpoint"]["losses"]
    silent = runs["writes"]["losses_without_writes"]["c.txt"]
    assert silent[0] == runs["writes"]["losses"]["c.txt"][0]  # the first chunk: nothing is written
    assert silent[1:] != runs["writes"]["losses"]["c.txt"][1:]
    # trained convolutions are used by writes alone
    assert runs["convolutions"]["losses_without_writes"] == runs["checkpoint"]["losses"]
    swapped = runs["writes"]["swapped"]
    assert "swapped" not in runs["continued"]
    assert set(swapped) == {"none", "another book", "its own past"}
    assert all(np.shape(x) == (2, 4) for x in swapped.values())
    assert swapped["none"] != swapped["another book"] != swapped["its own past"]
    model = continued.fw.hf.load(tmp_path / "runs" / "sees-16", ttt=continued.SILENT)
    moved = {}
    for arm in ("continued", "writes", "convolutions"):
        config = continued.run_config(arms[arm], options, 1)
        found = continued.train(config, tmp_path / "runs" / f"{arm}-seed1", quiet=True).state.model
        flat = jax.tree_util.tree_flatten_with_path
        moved[arm] = {
            path_name(keys)
            for (keys, a), (_, b) in zip(flat(found)[0], flat(model)[0], strict=True)
            if not np.array_equal(a, b)
        }
    assert moved["writes"] - moved["continued"] == {"blocks.2.mlp.conv"}
    assert moved["convolutions"] == {"blocks.2.mlp.conv"}
    everything = {path_name(keys) for keys, _ in flat(model)[0]}
    assert moved["continued"] == everything - {"blocks.2.mlp.conv"}


def test_settings_of_the_table_are_the_best_of_the_search(script):
    continued = script("continued")
    runs = [
        {"arm": name, "validation_losses": {"a": [[9.0, 9.0]] * 3 + [[2.0, 4.0], [3.0, 5.0]]}}
        for name in continued.SEARCHED
    ]
    better = ["continued, rate 0.0003", "released, η 0.1", "no projection, cap 0.05, η 0.1"]
    for run in runs:
        run["validation_losses"]["a"][4][0] -= run["arm"] in better
        # the first 1,024 tokens do not choose
        run["validation_losses"]["a"][0][0] -= run["arm"] == "released, η 3"
    assert continued.weighted(runs[0]["validation_losses"]["a"], 3) == pytest.approx(11 / 3)
    arms = continued.table_arms(runs)
    assert arms["continued"].lr == 3e-4
    found = arms["continued, full attention, writes as released"]
    assert (found.ttt, found.lr, found.sight) == (
        continued.SEARCHED["released, η 0.1"].ttt,
        3e-4,
        None,
    )
    assert (arms["continued, best writes"].ttt.cap, arms["continued, best writes"].ttt.lr) == (
        0.05,
        0.1,
    )
    # a search that is not whole: the best of the runs that it has
    few = [run for run in runs if run["arm"] in ("continued, rate 3e-05", "released, η 1")]
    with pytest.raises(SystemExit, match="no run of released, cap 0.02, η 0.3 or"):
        continued.table_arms(few)
    few += [run for run in runs if run["arm"] == "no projection, η 0.1"]
    arms = continued.table_arms(few)
    assert arms["continued"].lr == 3e-5
    assert arms["continued, writes as released"].ttt.lr == 1
    assert arms["continued, best writes"].ttt == continued.SEARCHED["no projection, η 0.1"].ttt


def test_the_table_compares_runs_of_the_same_seed(script):
    continued = script("continued")
    about = {"updates": 40, "batch": 4, "row": 2048, "windows": 2, "date": "2026-11-28T00:00:00"}
    about |= {"machine": {"device": "a GPU"}, "versions": {"jax": "0.11.2"}}
    run = lambda arm, seed, *parts: about | {"arm": arm, "seed": seed, "losses": {"a.txt": parts}}
    control = [run("continued", 1, [3.0, 3.0], [2.0, 4.0]), run("continued", 2, [5.0, 5.0], [1, 1])]
    other = run("continued, full attention", 2, [4.0, 4.5])  # read to the end of the first part
    lines = continued.table({"runs": [*control, other]}).splitlines()
    assert lines[2] == "| a | continued | 2 | 4.000 | 2.000 |"
    assert lines[3] == "| a | continued, full attention | 1 | -0.750 ± 0.250 | – |"
    assert continued.table({"runs": [other]}) == "continued has no run yet."
