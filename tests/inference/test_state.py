"""States: fork, select, reset, drift, and files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoders import CASES, change, decoder, forward, greedy, random_tokens, randomised
from tolerances import assert_close

import fastweights as fw
from fastweights.errors import CheckpointError, ConfigError
from fastweights.inference import storage
from fastweights.nn import InPlaceTTT
from fastweights.nn.rope import Rope
from fastweights.rules import GatedDelta

LENGTHS = np.array([3, 12, 9])


def read(case="ttt"):
    model, tokens = decoder(case), random_tokens((3, 12))
    return model, tokens, fw.inference.prefill(model, tokens, LENGTHS)


def test_forks_go_their_own_ways():
    """Each copy reads something else and stays what a row of its own would be."""
    model, tokens, state = read()
    forks = fw.inference.fork(state, 2)
    assert forks.lengths.tolist() == [3, 3, 12, 12, 9, 9]
    more = random_tokens((6, 8), seed=5)
    forks = fw.inference.extend(model, forks, more)
    for row in range(6):
        text = np.concatenate([tokens[row // 2, : LENGTHS[row // 2]], more[row]])
        assert_close(forks.logits[row], forward(model, text[None])[0, -1])


def test_fast_weights_are_shared_until_a_chunk_completes():
    """A prompt shorter than a chunk, or a fork: one matrix; own ones from the first write."""
    model, tokens = decoder("ttt"), random_tokens((3, 12))
    matrices = lambda state: state.layers[0]["mlp"].weights.shape[1]
    short = fw.inference.prefill(model, tokens[:, :2])
    assert matrices(short) == 1
    forks = fw.inference.fork(fw.inference.prefill(model, tokens[:1, :11]), 3)
    assert forks.layers[0]["mlp"].z.shape[1] == 3
    assert matrices(forks) == 1
    out, after = fw.inference.decode(model, forks, max_new_tokens=3)
    assert matrices(after) == 1
    out, after = fw.inference.decode(model, forks, max_new_tokens=8)
    assert matrices(after) == 3
    expected = greedy(model, tokens[0, :11].tolist(), 8)
    assert out.tokens.tolist() == [expected] * 3


def test_selected_rows_are_those_rows():
    model, tokens, state = read()
    forks = fw.inference.fork(state, 2)
    chosen = fw.inference.select(forks, jnp.array([5, 0, 2]))
    assert chosen.lengths.tolist() == [9, 3, 12]
    more = random_tokens((3, 8), seed=6)
    after = fw.inference.extend(model, chosen, more)
    for row, of in enumerate([2, 0, 1]):
        text = np.concatenate([tokens[of, : LENGTHS[of]], more[row]])
        assert_close(after.logits[row], forward(model, text[None])[0, -1])
    with pytest.raises(ConfigError, match="not all among the 6"):
        fw.inference.select(forks, [6])
    with pytest.raises(ConfigError, match="not 0"):
        fw.inference.fork(state, 0)


def test_reset_starts_again():
    model, _, state = read()
    fresh = fw.inference.reset(model, state)
    assert fresh.lengths.tolist() == [0, 0, 0]
    assert not np.any(fw.inference.drift(model, fresh))
    new = random_tokens((3, 7), seed=7)
    assert_close(fw.inference.extend(model, fresh, new).logits, forward(model, new)[:, -1])


def test_reset_can_keep_the_cache():
    """Fast weights as if nothing had been written: the same as a model that never wrote."""
    model, tokens, state = read()
    unlearned = fw.inference.reset(model, state, keep_cache=True)
    assert not np.any(fw.inference.drift(model, unlearned))
    assert unlearned.lengths.tolist() == LENGTHS.tolist()
    one = fw.inference.extend(model, unlearned, random_tokens((3, 1)))
    other = fw.inference.extend(model, state, random_tokens((3, 1)))
    # a row that had written nothing yet loses nothing, the others do
    assert_close(one.logits[0], other.logits[0])
    assert np.all(np.abs(one.logits - other.logits).max(1)[1:] > 1e-2)


def test_drift_is_the_distance_of_the_fast_weights():
    """Against a definition in float64: the sum of outer products of the chunks read."""
    config = change(CASES["ttt"], layers=1, ttt=change(CASES["ttt"].ttt, layers=(0,), conv=False))
    model, tokens = randomised(config), random_tokens((3, 12))
    state = fw.inference.prefill(model, tokens, LENGTHS)
    block = model.layer(0)
    x = model.embedded(jnp.asarray(tokens))
    positions = jnp.broadcast_to(jnp.arange(12)[None], (3, 12))
    h = block.mlp_norm(x + block.attention(block.attention_norm(x), positions))
    f64 = lambda a: np.asarray(a, np.float64)
    z, v = f64(block.mlp.hidden(h)), f64(h) @ f64(block.mlp.proj[...])
    slow = f64(block.mlp.down.kernel[...]).T
    expected = []
    for row, length in enumerate(LENGTHS):
        whole = length // 5 * 5
        delta = config.ttt.lr * v[row, :whole].T @ z[row, :whole]
        expected.append(np.linalg.norm(delta) / np.linalg.norm(slow))
    assert expected[0] == 0 and expected[1] > 0.01
    assert_close(fw.inference.drift(model, state), [expected])


def test_drift_has_a_row_for_every_layer_that_learns():
    for case in ("ttt", "qwen3"):
        model, _, state = read(case)
        layers = len(CASES[case].ttt_layers)
        assert fw.inference.drift(model, state).shape == (layers, 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_hold_a_state_to_the_bit(dtype, tmp_path):
    model = randomised(change(CASES["ttt"], dtype=dtype))
    state = fw.inference.prefill(model, random_tokens((3, 12)), LENGTHS)
    fw.inference.save(model, state, tmp_path / "state")
    again = fw.inference.load(model, tmp_path / "state")
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_shared_weights_stay_shared_in_a_file(tmp_path):
    model = decoder("ttt")
    state = fw.inference.fork(fw.inference.prefill(model, random_tokens((2, 12))), 3)
    fw.inference.save(model, state, tmp_path / "state")
    assert fw.inference.load(model, tmp_path / "state").layers[0]["mlp"].weights.shape[1] == 2


def test_damaged_and_foreign_files_are_refused(tmp_path):
    model, _, state = read()
    file, other = tmp_path / "state", tmp_path / "other"
    fw.inference.save(model, state, file)
    data = file.read_bytes()
    start = data.index(np.asarray(state.layers[0]["mixer"].v).tobytes())
    for at in (start, start + 999, start + state.layers[0]["mixer"].v.nbytes - 1):
        other.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        with pytest.raises(CheckpointError, match="CRC"):
            fw.inference.load(model, other)
    for wrong in (b"", data[:1000], b"text", np.random.default_rng(0).bytes(3000)):
        other.write_bytes(wrong)
        with pytest.raises(CheckpointError, match="cannot be read"):
            fw.inference.load(model, other)
    with pytest.raises(CheckpointError, match="cannot be read"):
        fw.inference.load(model, tmp_path / "absent")
    with pytest.raises(CheckpointError, match="could not be saved"):
        fw.inference.save(model, state, tmp_path / "absent" / "state")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match="not a state"):
        fw.inference.load(model, tmp_path / "arrays.npz")
    np.savez(tmp_path / "older.npz", format=np.asarray("fastweights-state-1"))
    with pytest.raises(CheckpointError, match="another version"):
        fw.inference.load(model, tmp_path / "older.npz")
    np.savez(tmp_path / "objects.npz", format=np.array([{}], object))
    with pytest.raises(CheckpointError, match="cannot be read"):
        fw.inference.load(model, tmp_path / "objects.npz")


def test_a_state_of_another_model_is_refused(tmp_path):
    model, _, state = read()
    file = tmp_path / "state"
    fw.inference.save(model, state, file)
    config = CASES["ttt"]
    with pytest.raises(CheckpointError, match="other weights"):
        fw.inference.load(jax.tree.map(lambda x: x + 1, model), file)
    with pytest.raises(CheckpointError, match="surplus layers.0.mlp.target"):
        fw.inference.load(randomised(change(config, ttt=None)), file)
    with pytest.raises(
        CheckpointError, match=r"layers.0.mlp.z is float32 \[2, 3, 5, 48\], this model's"
    ):
        fw.inference.load(randomised(change(config, ttt=change(config.ttt, chunk=6))), file)
    with pytest.raises(CheckpointError, match="this model's is bfloat16"):
        fw.inference.load(randomised(change(config, dtype="bfloat16")), file)
    # the same weights, read and written in another way
    ttt = change(config.ttt, lr=0.1)
    for other in ({"rope": Rope(theta=500.0)}, {"windows": (7,) * 4}, {"ttt": ttt}):
        with pytest.raises(CheckpointError, match="or another config"):
            fw.inference.load(randomised(change(config, **other)), file)
    same = randomised(change(config, remat="block", attention="xla", max_length=300))
    assert fw.inference.load(same, file).lengths.tolist() == LENGTHS.tolist()


def test_where_a_state_is_saved(tmp_path, monkeypatch):
    """`~` is the home directory, and a directory is refused."""
    model, _, state = read()
    monkeypatch.setenv("HOME", str(tmp_path))
    fw.inference.save(model, state, "~/state")
    assert fw.inference.load(model, "~/state").lengths.tolist() == LENGTHS.tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    for place in (".", "~", tmp_path):
        with pytest.raises(CheckpointError, match="this is a directory"):
            fw.inference.save(model, state, place)


def test_an_option_at_its_default_leaves_saved_states_valid():
    """The fingerprint has what differs from a default: a later option changes none of today's."""
    ttt = InPlaceTTT()
    assert storage._changed(ttt) == [("type", "InPlaceTTT")]
    changed = dataclasses.replace(ttt, decay=0.9)
    assert storage._changed(changed) == [("type", "InPlaceTTT"), ("decay", 0.9)]
    nested = dataclasses.replace(CASES["llama"], ttt=changed, mixers=(GatedDelta(), "attention"))
    fields = dict(storage._changed(nested))
    assert fields["ttt"][1] == ("decay", 0.9) and fields["mixers"][1] == "attention"
    assert "remat" not in fields
