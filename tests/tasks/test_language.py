import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import ROOT, real_data
from tolerances import assert_close

from fastweights.config_file import load_config
from fastweights.errors import ConfigError, DataError
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig
from fastweights.nn.in_place import InPlaceTTT
from fastweights.tasks.base import Data
from fastweights.tasks.language import Language
from fastweights.tasks.packing import pack
from fastweights.tasks.text_tokens import Bytes
from fastweights.train import Config, Mesh, Optim, Train, train
from fastweights.train.config import check
from fastweights.train.loop import evaluate_table
from fastweights.train.mesh import make_mesh, put_batch
from fastweights.train.state import init_state
from fastweights.train.step import make_eval_step, make_train_step

TINY = DecoderConfig(
    family="qwen3",
    vocab=264,
    hidden=32,
    intermediate=48,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=16,
    max_length=64,
    tie_embeddings=True,
)


@pytest.fixture
def folder(tmp_path):
    """Three files of different length; one has bytes that are no ASCII."""
    for name, text in {"a": "abc. " * 60, "b": "naïve – " * 30, "c": "short"}.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    return Data(dir=str(tmp_path))


def texts(task, split, data):
    return {d.name: Bytes().decode(d.tokens) for d in task.documents(split, data)}


def test_files_named_are_held_out_whole(folder):
    task = Language(validation=("b.txt",), test=("c.txt",))
    assert texts(task, "train", folder) == {"a.txt": "abc. " * 60}
    assert texts(task, "validation", folder) == {"b.txt": "naïve – " * 30}
    assert texts(task, "test", folder) == {"c.txt": "short"}


def test_with_no_names_the_end_of_every_file_is_held_out(folder):
    task = Language(holdout=0.2)
    train_, validation, test = (texts(task, s, folder) for s in ("train", "validation", "test"))
    for name, text in {"a.txt": "abc. " * 60, "b.txt": "naïve – " * 30, "c.txt": "short"}.items():
        parts = [split.get(name, "") for split in (train_, validation, test)]
        assert "".join(parts) == text
        assert len(parts[0]) == round(0.8 * len(text))
        assert abs(len(parts[1]) - len(parts[2])) <= 1


def test_documents_are_between_separators(folder):
    for document in Language().documents("train", folder):
        assert document.tokens[0] == document.tokens[-1] == Bytes.separator
        assert (document.tokens[1:-1] < 256).all()


def test_packed_rows_hold_every_byte_once(folder):
    task = Language(length=64)
    for split in ("train", "validation", "test"):
        table = task.load(split, folder)
        there = table["target"] >= 0
        said = np.bincount(table["target"][there], minlength=257)
        text = "".join(texts(task, split, folder).values()).encode()
        np.testing.assert_array_equal(said[:256], np.bincount(list(text), minlength=256))
        assert said[256] == len(texts(task, split, folder))
    assert table["segment_ids"].max() > 1


def test_dropped_rests_leave_rows_without_segments(folder):
    table = Language(length=64, short="drop").load("train", folder)
    assert set(table) == {"inputs", "target"}
    # 300 and 8 * 30 + 30 + 60 bytes (ï and – are 2 and 3), nine tenths of the characters of each
    assert table["inputs"].shape == (271 // 64 + 298 // 64, 64)
    np.testing.assert_array_equal(table["inputs"][:, 1:], table["target"][:, :-1])


def test_what_is_wrong_with_the_files_is_said(folder, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 1234 + "é".encode("latin1") + b"y")
    with pytest.raises(DataError, match=r"0xe9 at offset 1234[\s\S]*a\.txt"):
        Language().load("train", folder)
    path.write_text("abc")
    with pytest.raises(DataError, match=r"names 'd\.txt'[\s\S]*a\.txt, b\.txt, c\.txt"):
        Language(validation=("d.txt",)).load("train", folder)
    with pytest.raises(ConfigError, match="validation and for test"):
        Language(validation=("a.txt",), test=("a.txt",)).load("train", folder)
    with pytest.raises(ConfigError, match="no split 'valid'"):
        Language().load("valid", folder)
    with pytest.raises(DataError, match="test split has no text"):
        Language(validation=("a.txt",)).load("test", folder)
    with pytest.raises(DataError, match=r"train split has no text"):
        Language(validation=("a.txt", "b.txt"), test=("c.txt",)).load("train", folder)
    with pytest.raises(DataError, match=r"fills a row of 512[\s\S]*b\.txt[\s\S]*takes 513"):
        Language(length=512, short="drop").load("train", folder)
    with pytest.raises(DataError, match=r"nothing matches '\*\.md'"):
        Language(files="*.md").load("train", folder)
    with pytest.raises(DataError, match="no folder"):
        Language().load("train", Data(dir=str(tmp_path / "absent")))


def test_files_in_folders_are_named_by_their_path(tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("a.txt", "x/a.txt"):
        (tmp_path / name).write_text(name)
    task, data = Language(files="**/*.txt", validation=("x/a.txt",)), Data(dir=str(tmp_path))
    assert texts(task, "validation", data) == {"x/a.txt": "x/a.txt"}
    assert texts(task, "train", data) == {"a.txt": "a.txt"}


class Stand(nnx.Module):
    """Features that depend on the token and, through segments, on the one before it."""

    unembedding, head_losses = Decoder.unembedding, Decoder.head_losses

    def __init__(self, rngs, tied):
        self.embed = nnx.Embed(264, 8, rngs=rngs)
        self.config = dataclasses.replace(TINY, ttt=InPlaceTTT(layers=(0, 1)))
        self.head = None if tied else nnx.Linear(8, 264, use_bias=False, rngs=rngs)

    def features(self, tokens, segment_ids=None, stats=False):
        x = self.embed(tokens)
        same = jnp.ones(tokens.shape, bool) if segment_ids is None else (
            segment_ids == jnp.roll(segment_ids, 1, 1)
        )  # fmt: skip
        same = same.at[:, 0].set(False)
        x += jnp.where(same[..., None], jnp.roll(x, 1, 1), 0.0)
        return (x, jnp.array([0.25, 0.5])) if stats else x


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("short", ["pack", "drop"])
def test_scores_are_those_of_a_float64_loop(folder, tied, short):
    task = Language(length=48, short=short, block=20)
    model: Any = Stand(nnx.Rngs(0), tied)
    table = task.load("train", folder)
    scores = jax.jit(task.measure)(model, table)
    embed = np.float64(model.embed.embedding[...])
    head = embed.T if tied else np.float64(model.head.kernel[...])
    segments = table.get("segment_ids", np.ones_like(table["inputs"]))
    for row in range(len(table["inputs"])):
        losses = {}
        for t, (token, target) in enumerate(
            zip(table["inputs"][row], table["target"][row], strict=True)
        ):
            if target < 0:
                continue
            x = embed[token].copy()
            if t and segments[row][t] == segments[row][t - 1]:
                x += embed[table["inputs"][row][t - 1]]
            logits = x @ head
            losses[t] = np.log(np.exp(logits).sum()) - logits[target]
        loss = np.mean(list(losses.values()))
        end = [value for t, value in losses.items() if t >= 24]
        assert_close(scores["loss"][row], loss)
        assert_close(scores["loss_end"][row], np.mean(end) if end else loss)
        assert_close(scores["bits_per_byte"][row], loss / np.log(2))
    for layer, drift in enumerate((0.25, 0.5)):
        np.testing.assert_array_equal(scores[f"drift_{layer}"], np.full(len(segments), drift))
    # a fresh model says every byte with about the same chance
    assert abs(float(scores["loss"].mean()) - np.log(264)) < 0.5


@pytest.mark.parametrize("parts", [1, 2])
def test_every_token_counts_the_same(parts):
    """Training and evaluation by a packed table with a nearly empty row, against all its tokens."""
    task = Language(length=8)
    table = pack([np.arange(1, 18) % 11, np.array([3, 1, 4])], 8)
    table = {name: table[name][np.array([0, 1, 2, 2])] for name in table}
    there = table["target"] >= 0
    assert there.sum(1).tolist() == [8, 8, 2, 2]
    config = Config(task=task, model=TINY, optim=Optim(clip=None), mesh=Mesh(data=parts))
    mesh = make_mesh(config.mesh)
    state = init_state(config, mesh)
    losses = np.float64(jax.jit(task.losses)(state.model, put_batch(mesh, table)))
    expected = losses[there].mean()
    counted = evaluate_table(make_eval_step(task), state.model, table, mesh=mesh, batch=2)
    assert_close(counted["loss"], expected)
    assert_close(counted["bits_per_byte"], expected / np.log(2))
    mean = lambda model: jnp.sum(task.losses(model, table)) / there.sum()
    norm = optax.tree.norm(jax.jit(jax.grad(mean))(init_state(config, mesh).model))
    _, scores = make_train_step(config)(state, put_batch(mesh, table))
    assert_close(scores["loss"], expected)
    assert_close(scores["grad_norm"], norm)


def test_full_rows_are_trained_on_as_if_they_had_no_weight(optimized):
    """To the bit."""
    task, batch = Language(length=8), 3
    table = pack([np.arange(25) % 11], 8)
    assert len(table["target"]) == batch and (table["target"] >= 0).all()
    config = Config(task=task, model=TINY)

    class Plain(Language):
        def measure(self, model, batch):
            scores = super().measure(model, batch)
            assert scores.pop("weight").shape == (3,)
            return scores

    def trained(task):
        step = make_train_step(dataclasses.replace(config, task=task))
        state, scores = step(init_state(config, make_mesh(Mesh())), table)
        return state.model, state.optimizer, scores

    jax.tree.map(np.testing.assert_array_equal, trained(task), trained(Plain(length=8)))


def test_a_tokenizer_file_makes_fewer_tokens_and_its_bits_are_no_bytes(folder, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the hf extra is not installed")
    words = {"<|end|>": 0, "?": 1, "abc": 2, ".": 3, "short": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    task = Language(length=16, tokenizer=str(tmp_path), separator="<|end|>", validation=("c.txt",))
    document = task.documents("train", folder)[0]
    assert document.tokens.tolist() == [0, *[2, 3] * 60, 0]
    table = task.load("validation", folder)
    assert table["inputs"][0, :2].tolist() == [0, 4] and table["target"][0, :2].tolist() == [4, 0]
    scores = task.measure(Stand(nnx.Rngs(0), True), jax.tree.map(jnp.asarray, table))
    assert set(scores) == {"loss", "loss_end", "drift_0", "drift_1", "weight"}
    check(Config(task=task, model=dataclasses.replace(TINY, vocab=5)))
    with pytest.raises(ConfigError, match="vocab is 4.*at least 5"):
        check(Config(task=task, model=dataclasses.replace(TINY, vocab=4)))


def test_what_cannot_work_is_said_before_a_file_is_read():
    config = Config(task=Language(length=128), model=dataclasses.replace(TINY, vocab=256))
    with pytest.raises(ConfigError) as caught:
        check(config)
    for words in ("model.vocab is 256", "at least 264", "length is 128", "max_length, 64"):
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match=r"model\.kv_heads is 3; it must divide heads"):
        check(Config(task=Language(length=64), model=dataclasses.replace(TINY, kv_heads=3)))
    with pytest.raises(ConfigError, match=r"holdout is 1\.5"):
        check(Config(task=Language(length=64, holdout=1.5), model=TINY))
    check(Config(task=Language(length=64), model=TINY))
    # a tokenizer that is not here is load's to miss: the config may be for another machine
    check(Config(task=Language(length=64, tokenizer="/absent/tokenizer.json"), model=TINY))
    with pytest.raises((DataError, ConfigError), match="absent"):
        Language(tokenizer="/absent/tokenizer.json").load("train", Data(dir="."))


@pytest.mark.parametrize("tied", [True, False])
def test_losses_are_those_of_the_decoders_own_logits(folder, tied):
    task = Language(length=48, block=20)
    config = dataclasses.replace(TINY, tie_embeddings=tied, dtype="bfloat16", layers=1)
    model = task.build(config, nnx.Rngs(0))
    table = task.load("train", folder)
    padded = np.argsort(table["target"].min(1), kind="stable")[:2]
    batch = {name: jnp.asarray(x[padded]) for name, x in table.items()}
    logits = jax.jit(type(model).__call__)(model, batch["inputs"], batch["segment_ids"])
    expected = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(batch["target"], 0)
    )
    there = batch["target"] >= 0
    assert not there.all()
    assert_close(jax.jit(task.losses)(model, batch), jnp.where(there, expected, 0.0))


def test_a_tiny_decoder_learns_a_text(folder, tmp_path):
    model = dataclasses.replace(
        TINY, ttt=InPlaceTTT(layers=(0, 1), chunk=16, lr=0.1, target="input_embed")
    )
    config = Config(
        task=Language(length=64, validation=("a.txt",)),
        model=model,
        optim=Optim(lr=1e-2, clip=1.0),
        train=Train(steps=30, batch=2, eval_every=30, checkpoint_every=30, log_every=5),
        data=folder,
    )
    result = train(config, tmp_path / "run", quiet=True)
    losses = [line["train/loss"] for line in result.history if "train/loss" in line]
    assert losses[0] > 3 and losses[-1] < 1.5
    last = result.history[-1]
    assert {"validation/loss", "validation/loss_end", "validation/bits_per_byte"} <= set(last)
    assert last["validation/drift_0"] > 0 and last["validation/drift_1"] > 0


def test_the_books_config_can_run_and_its_books_are_there():
    config = load_config(str(ROOT / "configs" / "books.py"))
    check(config)
    data = Data(dir=str(real_data("books")))
    tables = {split: config.task.load(split, data) for split in ("train", "validation", "test")}
    named = {d.name for d in config.task.documents("train", data)}
    assert not named & {*config.task.validation, *config.task.test}
    for split, table in tables.items():
        tokens = sum(len(d.tokens) for d in config.task.documents(split, data))
        assert set(table) == {"inputs", "target"}, "no segments: every row is one book's"
        assert table["inputs"].shape[1] == config.task.length == 1024
        lost = tokens - table["inputs"].size
        assert 0 <= lost <= 1025 * len(config.task.documents(split, data))
    assert len(tables["train"]["inputs"]) > 9_000


def test_the_books_config_builds_its_model():
    config = load_config(str(ROOT / "configs" / "books.py"))
    shapes = jax.eval_shape(functools.partial(config.task.build, config.model), nnx.Rngs(0))
    assert 500_000 < sum(x.size for x in jax.tree.leaves(shapes)) < 2_000_000


LEARNS = dataclasses.replace(TINY, ttt=InPlaceTTT(layers=(0, 1), chunk=8, lr=0.5))


def test_state_passing_is_of_a_share_of_training_rows(folder):
    task = Language(length=8, short="drop", holdout=0.2, passed=0.3)
    rows = task.load("train", folder)["passed"]
    assert rows.dtype == bool and len(rows) == len(task.load("train", folder)["target"])
    many = np.concatenate(
        [dataclasses.replace(task, length=n).load("train", folder)["passed"] for n in range(2, 9)]
    )
    assert abs(many.mean() - 0.3) < 0.08
    assert dataclasses.replace(task, passed=1.0).load("train", folder)["passed"].all()
    assert "passed" not in task.load("validation", folder)
    assert "passed" not in dataclasses.replace(task, passed=0.0).load("train", folder)


@pytest.mark.parametrize(
    ("passed", "model", "message"),
    [(1.1, LEARNS, "from 0 to 1"), (-0.1, LEARNS, "from 0 to 1"), (0.5, TINY, "no in-place layer")],
)
def test_a_share_that_cannot_be_passed(passed, model, message):
    assert any(message in text for text in Language(length=8, passed=passed).problems(model))
    assert not Language(length=8, passed=0.5).problems(LEARNS)


def test_state_passing_changes_training(folder, tmp_path):
    config = Config(
        task=Language(length=16, short="drop", holdout=0.2),
        model=LEARNS,
        optim=Optim(lr=0.05, schedule="constant", warmup=0),
        train=Train(steps=2, batch=4, eval_every=2, checkpoint_every=2, log_every=1),
        data=folder,
    )

    def weights(passed, name):
        task = dataclasses.replace(config.task, passed=passed)
        state = train(dataclasses.replace(config, task=task), tmp_path / name, quiet=True).state
        return [np.asarray(x) for x in jax.tree.leaves(nnx.state(state.model))]

    pairs = zip(weights(1.0, "with"), weights(0.0, "without"), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) > 1e-4
