"""A rule of a user's own, in one file, does all that the rules of the library do."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

import fastweights as fw
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig
from fastweights.models.decoder_mesh import shardings
from fastweights.models.retrieval import RetrievalModel
from fastweights.tasks.base import Data
from fastweights.tasks.language import Language
from fastweights.tasks.retrieval import Retrieval
from fastweights.train import Config, Optim, Train, evaluate_run, train
from fastweights.train.config import Mesh, from_json, to_json
from fastweights.train.mesh import make_mesh

#: Oja's rule (Oja 1982) for pairs of key and value, with a decay: the write of a key is lowered by
#: the part of it that the value recalls already
FILE = '''
import dataclasses

import jax.numpy as jnp

import fastweights as fw
from fastweights.rules import Slot


@dataclasses.dataclass(frozen=True)
class GatedOja(fw.rules.Rule):
    """S <- e^g S; S <- S + rate beta (k - S v) v^T; y = S^T q."""

    rate: float = 1.0
    slots = {
        "q": Slot("K", "unit"),
        "k": Slot("K", "real"),
        "v": Slot("V", "unit"),
        "beta": Slot("", "gate"),
        "g": Slot("", "log_decay"),
    }

    def write(self, state, token):
        k, v = (x.astype(state.S.dtype) for x in (token.k, token.v))
        S = jnp.exp(token.g.astype(state.S.dtype)) * state.S
        beta = self.rate * token.beta.astype(state.S.dtype)
        return state._replace(S=S + beta * jnp.outer(k - S @ v, v))

    def read(self, state, query):
        return (query.astype(state.S.dtype) @ state.S).astype(query.dtype)

    def mask(self, tokens, valid):
        keep = lambda x: jnp.where(valid, x, 0)
        return tokens._replace(beta=keep(tokens.beta), g=keep(tokens.g))
'''


@pytest.fixture(scope="module")
def rule(tmp_path_factory):
    """The rule, loaded from a temporary file."""
    assert len(FILE.splitlines()) <= 60
    path = tmp_path_factory.mktemp("user") / "oja.py"
    path.write_text(FILE)
    spec = importlib.util.spec_from_file_location("oja", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GatedOja()


def tiny(rule, **changes):
    """A decoder in which the rule and attention take turns."""
    config = DecoderConfig(
        family="qwen3",
        vocab=264,
        hidden=32,
        intermediate=48,
        layers=2,
        heads=4,
        kv_heads=4,
        head_dim=8,
        max_length=64,
        windows=(16, 16),
        mixers=(rule, "attention"),
        initializer_range=0.1,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def model(rule):
    """A decoder of random numbers around the start of each parameter.

    Decays near 1, as they start, keep gradients well-conditioned: with any decay, one rounding of
    the weights moves a gradient by more than the tolerance.
    """
    rng = np.random.default_rng(0)
    start = Decoder(tiny(rule), rngs=nnx.Rngs(0))
    move = lambda x: x + jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype)
    return jax.tree.map(move, start)


@jax.jit
def logits_of(model, tokens, segment_ids=None):
    return model(tokens, segment_ids)


def text(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 264, shape)


def test_the_contract(rule):
    fw.testing.check_rule(rule)


def test_its_definition_in_float64(rule):
    """The file's equations, in a NumPy loop."""
    state, tokens = rule.example(jax.random.key(3), 11)
    S = np.asarray(state.S, np.float64)
    q, k, v, beta, g = (np.asarray(x, np.float64) for x in tokens)
    ys = []
    for t in range(11):
        S = np.exp(g[t]) * S
        S = S + beta[t] * np.outer(k[t] - S @ v[t], v[t])
        ys.append(q[t] @ S)
    final, out = fw.rules.run(rule, state, tokens, chunk=4)
    assert_close(out, ys)
    assert_close(final.S, S)


def test_it_trains_in_the_retrieval_net(rule, tmp_path):
    """Two pairs, with the rule inside of the recurrent cell; it does better than chance."""
    config = Config(
        task=Retrieval(pairs=2),
        model=RetrievalModel(hidden=32, start="unit", rule=rule),
        optim=Optim(lr=3e-3),
        train=Train(steps=200, batch=64, eval_every=200, checkpoint_every=200, log_every=20),
        data=Data(dir=str(tmp_path / "data")),
    )
    result = train(config, tmp_path / "run", quiet=True)
    losses = [line["train/loss"] for line in result.history if "train/loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["rule"] == {
        "type": "GatedOja",
        "rate": 1.0,
    }


@pytest.fixture(scope="module")
def run(rule, tmp_path_factory):
    """A run on packed text, and its config."""
    folder = tmp_path_factory.mktemp("text")
    lines = [f"{a} and {b} are {a + b}. " for a in range(40) for b in range(40)]
    for i in range(8):
        (folder / f"{i}.txt").write_text("".join(lines[i * 200 : i * 200 + 150 + 7 * i]))
    config = Config(
        task=Language(length=64, short="pack"),
        model=tiny(rule),
        optim=Optim(lr=1e-2),
        train=Train(steps=40, batch=8, eval_every=20, checkpoint_every=20, log_every=10),
        data=Data(dir=str(folder)),
    )
    path = tmp_path_factory.mktemp("runs") / "oja"
    return train(config, path, quiet=True), config, path


def test_it_trains_as_a_mixer_on_packed_text(run):
    result, config, path = run
    table = config.task.load("train", config.data)
    assert np.max(table["segment_ids"]) > 1, "no row holds two documents"
    losses = [line["train/loss"] for line in result.history if "train/loss" in line]
    assert losses[-1] < 0.75 * losses[0]
    assert evaluate_run(path, which="last", split="validation")["loss"] < losses[0]


def test_its_config_is_json_in_and_out(run):
    _, config, path = run
    written = json.loads((path / "config.json").read_text())
    assert written["model"]["mixers"] == [{"type": "GatedOja", "rate": 1.0}, "attention"]
    assert from_json(to_json(config)) == config


def test_documents_of_a_packed_row_are_what_they_are_alone(model):
    """Outputs and gradients; padding at the end and between documents."""
    tokens, lengths = text((1, 41)), (13, 1, 20)
    ids = np.zeros((1, 41), np.int32)
    places, at = [], 0
    for number, length in enumerate(lengths, 1):
        ids[0, at : at + length] = number
        places.append(slice(at, at + length))
        at += length + (2 if number == 2 else 0)
    packed = logits_of(model, tokens, ids)
    for place in places:
        alone = logits_of(model, tokens[:, place])
        assert_close(packed[:, place], alone, what=f"document at {place}")


def test_a_ragged_batch_generates_as_the_training_forward_pass_does(model):
    tokens, lengths = text((3, 19)), np.array([4, 19, 11])
    out = fw.inference.generate(model, tokens, lengths, max_new_tokens=8)
    for row, length in enumerate(lengths):
        line = np.zeros((1, 27), int)  # of one size: later tokens change no earlier logits
        line[0, :length] = tokens[row, :length]
        for at in range(length, length + 8):
            line[0, at] = np.argmax(logits_of(model, line)[0, at - 1])
        assert out.tokens[row].tolist() == line[0, length : length + 8].tolist()


def test_pieces_of_any_size_give_the_forward_pass(model):
    tokens = text((2, 30), seed=1)
    expected = np.asarray(logits_of(model, tokens))
    state, at = None, 0
    for size in (1, 7, 1, 12, 9):
        piece = tokens[:, at : at + size]
        state = (
            fw.inference.prefill(model, piece, max_length=40)
            if state is None
            else fw.inference.extend(model, state, piece)
        )
        at += size
        assert_close(state.logits, expected[:, at - 1], what=f"after {at} tokens")


def test_its_state_is_saved_forked_and_reset(model, tmp_path):
    tokens = text((2, 12), seed=2)
    state = fw.inference.prefill(model, tokens, np.array([12, 5]), max_length=32)
    fw.inference.save(model, state, tmp_path / "state")
    again = fw.inference.load(model, tmp_path / "state")
    jax.tree.map(np.testing.assert_array_equal, again, state)
    more = text((4, 6), seed=3)
    forks = fw.inference.extend(model, fw.inference.fork(state, 2), more)
    for row, length in enumerate((12, 12, 5, 5)):
        line = np.concatenate([tokens[row // 2, :length], more[row]])
        assert_close(forks.logits[row], logits_of(model, line[None])[0, -1])
    fresh = fw.inference.extend(model, fw.inference.reset(model, state), more[:2])
    assert_close(fresh.logits, logits_of(model, more[:2])[:, -1])
    memory = lambda state: np.abs(state.layers[0]["mixer"].fast.S).max()
    unlearned = fw.inference.reset(model, state, keep_cache=True)
    assert memory(state) > 0 and memory(unlearned) == 0
    assert unlearned.lengths.tolist() == [12, 5]


def test_its_state_does_not_grow(rule):
    """A decoder of memories alone has a state of one size, however many tokens it has room for."""
    config = tiny(rule, mixers=(rule,))
    alone = Decoder(config, rngs=nnx.Rngs(0))
    size = lambda room: sum(x.nbytes for x in jax.tree.leaves(fw.inference.empty(alone, 1, room)))
    assert size(16) == size(1_000_000)
    out = fw.inference.generate(alone, text((1, 5)), max_new_tokens=4)
    assert out.tokens.shape == (1, 4)


def test_eight_devices_give_the_numbers_of_one(model):
    """Losses, every gradient, and sampled tokens, over data, fsdp and tensor at once."""
    tokens, target = text((8, 20), seed=4), text((8, 20), seed=5)
    ids = np.sort(np.random.default_rng(6).integers(1, 4, (8, 20)), 1).astype(np.int32)
    value = jax.jit(jax.value_and_grad(lambda m, *x: jnp.mean(m.losses(*x))))
    loss, grads = value(model, tokens, target, ids)
    mesh = make_mesh(Mesh(2, 2, 2))
    spread = jax.device_put(model, shardings(mesh, model))
    kernel = spread.blocks[0].memory.slots.project.q.kernel[...]
    assert len({str(part.index) for part in kernel.addressable_shards}) == 4
    with jax.set_mesh(mesh):
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
        there = jax.device_put((tokens, target, ids), rows)
    loss_there, grads_there = value(spread, *there)
    assert_close(loss_there, loss)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(grads_there), jax.tree.leaves(grads), strict=True
    ):
        assert_close(a, b, what=jax.tree_util.keystr(path))
    how = {"max_new_tokens": 5, "temperature": 0.8, "key": jax.random.key(0)}
    lengths = np.arange(1, 9)
    one = fw.inference.generate(model, tokens, lengths, **how)
    eight = fw.inference.generate(spread, tokens, lengths, **how)
    np.testing.assert_array_equal(one.tokens, eight.tokens)
