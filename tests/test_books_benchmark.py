"""The comparison's arithmetic, that ablations are one change each, and the whole way on a toy."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import ROOT
from tolerances import assert_close

from fastweights.models.decoder import build
from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT
from fastweights.tasks.base import Data
from fastweights.tasks.batches import evenly
from fastweights.tasks.language import Language
from fastweights.train.config import Config, Optim, Train, check, differences, to_json
from fastweights.train.state import parameter_count


@pytest.fixture
def books(script):
    return script("books")


def made(arm, seed, windows):
    losses = [" ".join(f"{x:.4f}" for x in row) for row in windows]
    return {"arm": arm, "seed": seed, "parameters": 7, "updates": 1, "losses": losses}


def test_an_arm_is_compared_window_by_window(books):
    """Two windows; the arm is worse by 0.1 at first and better by 0.2 and 0.4 at the end.

    Mean -0.3, standard deviation 0.2 / sqrt 2, error 0.1; that the windows themselves differ by 1
    plays no part.
    """
    base = np.ones((2, 8)) + np.array([[0.0], [1.0]])
    arm = base.copy()
    arm[:, 0] += 0.1
    arm[:, 4:] -= np.array([[0.2], [0.4]])
    runs = [made(books.BASELINE, 3, base), made("in-place TTT", 3, arm), made("C = 64", 4, arm)]
    found = books.compared(runs, "in-place TTT")
    np.testing.assert_allclose(found["first"], [0.1, 0.0], atol=1e-12)
    np.testing.assert_allclose(found["end"], [-0.3, 0.1], atol=1e-12)
    np.testing.assert_allclose(found["seeds"], [-0.3], atol=1e-12)
    np.testing.assert_allclose(found["curve"][5], [-0.3, 0.1], atol=1e-12)
    assert books.compared(runs, "C = 64") is None  # no baseline of its seed
    row = books.table(runs).splitlines()[3]
    assert row.startswith("| in-place TTT | 1 | 7 | 1.6000 | 1.2000 | +0.1000 ± 0.0000 | -0.3000")


def test_seeds_are_averaged_before_the_error_is_taken(books):
    """Differences of +1 and -1 in the two seeds cancel in every window: no error is left."""
    base = np.full((3, 8), 2.0)
    runs = [made(books.BASELINE, seed, base) for seed in (0, 1)]
    runs += [made("full attention", seed, base + sign) for seed, sign in ((0, 1), (1, -1))]
    found = books.compared(runs, "full attention")
    assert found["end"] == [0.0, 0.0] and found["seeds"] == [1.0, -1.0]


def test_every_arm_can_be_built_and_every_ablation_is_one_change(books, tmp_path):
    base = books.base_config(tmp_path, None)
    for change in {**books.ARMS, **books.ABLATIONS}.values():
        check(change(base))
    for name, change in books.ABLATIONS.items():
        changed = differences(to_json(base), to_json(change(base)))
        assert len(changed) == 1 and all(k.startswith("model.ttt.") for k in changed), name


def test_the_wider_baseline_has_no_fewer_parameters_and_hardly_more(books, tmp_path):
    base = books.base_config(tmp_path, None)
    ttt, wider = (
        parameter_count(jax.eval_shape(lambda c=c: c.task.build(c.model, nnx.Rngs(0))))
        for c in (base, books.wider(base))
    )
    assert ttt <= wider < 1.01 * ttt
    changed = differences(to_json(books.plain(base)), to_json(books.wider(base)))
    assert set(changed) == {"model.intermediate"}


def test_both_baselines_are_named_where_both_were_run(books):
    base = np.full((2, 8), 2.0)
    runs = [made("in-place TTT", 0, base - 0.5), made(books.BASELINE, 0, base)]
    assert "no fewer parameters" not in books.table(runs)
    text = books.table([*runs, made(books.WIDER, 0, base - 0.125)])
    assert "first eighth -0.3750 ± 0.0000, second half -0.3750 ± 0.0000; seeds 1." in text


def test_an_ablation_is_beside_both_arms(books):
    """Rows in the order of the arms; a difference to itself is none."""
    base = np.full((2, 8), 2.0)
    runs = [
        made(arm, 0, base - less) | {"long": {"context": [0, 96], "loss": [3.0, 2.5 - less]}}
        for arm, less in (("C = 64", 0.125), (books.OURS, 0.5), (books.BASELINE, 0.0))
    ]
    head, _, *rows = books.ablation_table(runs).splitlines()
    assert head.endswith("| after 96 bytes |")
    assert rows == [
        "| sliding window | 7 | 2.0000 | 2.0000 | – | +0.5000 ± 0.0000 | 2.5000 |",
        "| in-place TTT | 7 | 1.5000 | 1.5000 | -0.5000 ± 0.0000 | – | 2.0000 |",
        "| C = 64 | 7 | 1.8750 | 1.8750 | -0.1250 ± 0.0000 | +0.3750 ± 0.0000 | 2.3750 |",
    ]


def test_ablations_come_with_what_they_are_compared_with(books, tmp_path):
    arms = [arm for arm, _, seed in books.wanted(books.Options(tmp_path, ablations=True))]
    assert arms == [books.BASELINE, books.OURS, "full attention", *books.ABLATIONS]


def test_windows_are_spread_over_the_books():
    assert evenly(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly(3, 192).tolist() == [0, 1, 2]


@pytest.fixture
def small(tmp_path):
    """Three short texts and a decoder of one layer for them."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, word in (("a", "north "), ("b", "south "), ("c", "east ")):
        (texts / f"{name}.txt").write_text(word * 120)
    return Config(
        task=Language(length=32, validation=("b.txt",), test=("c.txt",), short="drop"),
        model=DecoderConfig(
            family="qwen3", vocab=264, hidden=8, intermediate=16, layers=1, heads=2, kv_heads=1,
            head_dim=4, tie_embeddings=True, max_length=32, windows=(4,),
            ttt=InPlaceTTT(layers=(0,), chunk=4, target="input_embed"),
        ),
        optim=Optim(lr=1e-2, schedule="cosine", decay_steps=4),
        train=Train(steps=4, batch=2, eval_every=4, checkpoint_every=4, log_every=2),
        data=Data(dir=str(texts)),
    )  # fmt: skip


def test_from_text_to_table(books, small, monkeypatch, tmp_path, capsys):
    """Four updates of two arms; nothing is run twice, and the paths of the machine stay out."""
    texts = tmp_path / "texts"
    monkeypatch.setattr(books, "base_config", lambda data, steps: small)
    monkeypatch.setattr(books, "LONG", {"block": 8, "contexts": (0, 16, 56)})
    out = tmp_path / "books.json"
    options = books.Options(
        texts, seeds=1, arms=("sliding window", "in-place TTT"), out=out, runs=tmp_path / "runs"
    )
    books.main(options)
    text = out.read_text()
    record = json.loads(text)
    assert [r["arm"] for r in record["runs"]] == ["sliding window", "in-place TTT"]
    for run in record["runs"]:
        assert books.matrix(run).shape == (18, 8) and np.all(books.matrix(run) > 0)
        assert run["long"]["context"] == [0, 16, 56] and len(run["long"]["loss"]) == 3
        assert run["seconds_per_update"] > 0
        assert run["command"].startswith("python benchmarks/") and run["date"]
    extra = record["runs"][1]["parameters"] - record["runs"][0]["parameters"]
    assert extra == 8 * 5 + 8 * 8  # the convolution and the projection
    assert str(texts) not in text
    books.main(options)
    assert out.read_text() == text
    with pytest.raises(SystemExit, match="other updates or windows than 4 and 16"):
        books.main(dataclasses.replace(options, rows=16))
    assert out.read_text() == text
    with pytest.raises(SystemExit, match="no arm 'lstm'"):
        books.main(dataclasses.replace(options, arms=("lstm",)))


def test_arms_of_mixers_have_equal_parameters(script):
    mixers = script("books_mixers")
    arms = mixers.arms(mixers.Options(data=ROOT, steps=10))
    counts = {name: mixers.parameters(config.model) for name, config in arms.items()}
    assert len(counts) == 4 and max(counts.values()) <= 1.01 * min(counts.values())


def test_a_decay_put_on_afterwards_changes_what_the_third_chunk_reads(script):
    """The first chunk reads W0 and the second one write; a decay tells from the third on."""
    long = script("books_long")
    config = script("books").base_config(ROOT, 10).model
    small = {"hidden": 16, "intermediate": 24, "heads": 2, "kv_heads": 2, "head_dim": 8}
    config = dataclasses.replace(config, **small)
    model = build(config, 0)
    for block in model.blocks:
        block.mlp.conv[...] = jnp.ones_like(block.mlp.conv[...])
        block.mlp.proj[...] = jnp.broadcast_to(jnp.eye(16), block.mlp.proj.shape)
    model.embed.embedding[...] = 50 * model.embed.embedding[...]
    tokens = jax.random.randint(jax.random.key(0), (1, 4 * config.ttt.chunk), 0, 256)
    chunks = lambda model: np.asarray(model(tokens)).reshape(4, -1)
    before, after = chunks(model), chunks(long.with_options(model, {"decay": 0.5}))
    assert_close(after[:2], before[:2])
    assert np.abs(after[2] - before[2]).max() > 1e-4


def test_arms_are_compared_with_the_baseline_of_their_seeds(script):
    """Seed 1 of the baseline, which the arm has not, would move the difference by 1."""
    long = script("books_long")

    def made(arm, seed, *parts):
        return {"arm": arm, "seed": seed, "losses": {"a.txt": [list(part) for part in parts]}}

    runs = [
        made(long.BASELINE, 0, (1.0, 2.0), (1.0, 2.0)),
        made(long.BASELINE, 1, (3.0, 4.0), (3.0, 4.0)),
        made(long.RELEASED, 0, (1.0, 2.0), (1.1, 2.3)),
    ]
    head, _, base, arm = long.table(runs).splitlines()
    assert head == "| book | arm | seeds | 0–128 | 128–512 |"
    assert base == f"| a | {long.BASELINE} | 2 | 2.500 | 2.500 |"
    # the mean of 0.1 and 0.3, and their standard deviation 0.2 / √2 over √2
    assert arm == f"| a | {long.RELEASED} | 1 | +0.000 ± 0.000 | +0.200 ± 0.100 |"
    assert "no run yet" in long.table([])


def test_long_windows_from_text_to_table(script, small, monkeypatch, tmp_path, capsys):
    """Three arms; a decay put on afterwards trains nothing and leaves the first two chunks."""
    long = script("books_long")
    later = "in-place TTT, decay 0.8 afterwards"
    monkeypatch.setattr(long, "AFTERWARDS", {later: long.AFTERWARDS[later]})
    monkeypatch.setattr(long, "RUNS", {x: long.RUNS[x] for x in (long.BASELINE, long.RELEASED)})
    monkeypatch.setattr(long.books, "base_config", lambda data, steps: small)
    monkeypatch.setattr(long, "PARTS", (0, 8, 32))
    monkeypatch.setattr(long, "LENGTH", 64)
    out, runs = tmp_path / "long.json", tmp_path / "runs"
    options = long.Options(tmp_path / "texts", seeds=1, steps=4, windows=2, out=out, runs=runs)
    long.main(options)
    record = json.loads(out.read_text())
    found = {run["arm"]: run for run in record["runs"]}
    assert list(found) == [*long.RUNS, *long.AFTERWARDS]
    assert len([*runs.iterdir()]) == len(long.RUNS)
    for run in record["runs"]:
        assert np.asarray(run["losses"]["c.txt"]).shape == (3, 2)
        assert np.asarray(run["validation_losses"]["b.txt"]).shape == (3, 2)
        assert run["command"].startswith("python benchmarks/") and run["date"]
    after = found[later]
    assert after["losses"]["c.txt"][0] == found[long.RELEASED]["losses"]["c.txt"][0]
    text = out.read_text()
    long.main(options)
    assert out.read_text() == text and "| c |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="windows = 2, not 3"):
        long.main(dataclasses.replace(options, windows=3))
    assert out.read_text() == text
    with pytest.raises(SystemExit, match="no arm 'lstm'"):
        long.main(dataclasses.replace(options, arms=("lstm",)))
