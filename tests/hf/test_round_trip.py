"""What is saved reads back to the same bits, and lies on the disk as transformers wants it."""

import dataclasses
import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from safetensors.numpy import load_file

from fastweights import hf
from fastweights.errors import CheckpointError, ConfigError
from fastweights.models.decoder_config import InPlaceTTT
from hf.tiny import LLAMA, QWEN3, assert_same, logits, model, raw_tensors, write

TTT = InPlaceTTT(layers=(0, 2), chunk=4, lr=0.5)
CONFIGS = {
    "tied": QWEN3,
    "untied": dataclasses.replace(QWEN3, tie_embeddings=False),
    "llama": LLAMA,
    "windows": dataclasses.replace(QWEN3, windows=(None, 7, None, 7)),
    "odd_windows": dataclasses.replace(LLAMA, windows=(None, 7, 3, None)),
    "ttt": dataclasses.replace(LLAMA, ttt=TTT),
    "ttt_no_proj": dataclasses.replace(QWEN3, ttt=dataclasses.replace(TTT, proj=False, clip=1.0)),
    "ttt_no_conv": dataclasses.replace(QWEN3, ttt=dataclasses.replace(TTT, conv=False)),
    "bfloat16": dataclasses.replace(QWEN3, dtype="bfloat16", param_dtype="bfloat16"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("limit", [5_000_000_000, 20_000])
def test_it_reads_back_bitwise(name, limit, tmp_path):
    config = CONFIGS[name]
    there = model(config, seed=3)
    hf.save(there, tmp_path / "out", max_shard_bytes=limit)
    back = hf.load(tmp_path / "out", dtype=config.param_dtype)
    assert back.config == config
    assert_same(there, back)
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    if limit > 1e9:
        assert files == ["config.json", "model.safetensors"]
        return
    shards = [file for file in files if file.startswith("model-")]
    assert len(shards) >= 3 and shards[0].endswith(f"-of-{len(shards):05}.safetensors")
    sizes = [sum(x.nbytes for x in load_file(tmp_path / "out" / file).values()) for file in shards]
    assert max(sizes) <= limit
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)


def test_names_and_layout_on_the_disk(tmp_path):
    """Layer by layer, with a period of 2: block i % 2 at i // 2."""
    config = CONFIGS["ttt"]
    assert config.period == 2
    there = model(config)
    hf.save(there, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for i in range(config.layers):
        block, turn, name = there.blocks[i % 2], i // 2, f"model.layers.{i}."
        for ours, theirs in [
            (block.attention.q, "self_attn.q_proj"),
            (block.attention.k, "self_attn.k_proj"),
            (block.attention.v, "self_attn.v_proj"),
            (block.attention.o, "self_attn.o_proj"),
            (block.mlp.gate, "mlp.gate_proj"),
            (block.mlp.up, "mlp.up_proj"),
            (block.mlp.down, "mlp.down_proj"),
        ]:
            right = np.asarray(ours.kernel[...][turn]).T
            np.testing.assert_array_equal(found.pop(f"{name}{theirs}.weight"), right)
        for ours, theirs in [
            (block.attention_norm, "input_layernorm"),
            (block.mlp_norm, "post_attention_layernorm"),
        ]:
            np.testing.assert_array_equal(found.pop(f"{name}{theirs}.weight"), ours.scale[turn])
        if i in TTT.layers:
            conv, proj = (found.pop(f"{name}mlp.ttt_{x}.weight") for x in ("conv", "proj"))
            assert conv.shape == (config.hidden, 1, 5)
            np.testing.assert_array_equal(conv[:, 0], block.mlp.conv[turn])
            np.testing.assert_array_equal(proj, block.mlp.proj[turn])
    np.testing.assert_array_equal(found.pop("model.embed_tokens.weight"), there.embed.embedding)
    np.testing.assert_array_equal(found.pop("lm_head.weight"), np.asarray(there.head.kernel).T)
    np.testing.assert_array_equal(found.pop("model.norm.weight"), there.final_norm.scale)
    assert not found


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_come_in_the_dtype_asked_for(stored, dtype, tmp_path):
    tensors = {name: x.astype(jnp.dtype(stored)) for name, x in raw_tensors().items()}
    loaded = hf.load(write(tmp_path / "in", tensors=tensors), dtype=dtype)
    assert loaded.config.dtype == loaded.config.param_dtype == dtype
    right = tensors["model.layers.1.mlp.up_proj.weight"].astype(jnp.dtype(dtype)).T
    up = loaded.layer(1).mlp.up.kernel[...]
    assert up.dtype == dtype
    np.testing.assert_array_equal(np.asarray(up), right)


def test_one_file_or_several_are_the_same_model(tmp_path):
    assert_same(hf.load(write(tmp_path / "one")), hf.load(write(tmp_path / "several", files=3)))


def test_a_tied_head_may_be_there_if_it_is_the_embedding(tmp_path):
    there = model(QWEN3)
    hf.save(there, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    assert_same(hf.load(write(tmp_path / "more", raw, tensors)), there)
    tensors["lm_head.weight"][3, 1] += 1
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        hf.load(write(tmp_path / "more", raw, tensors))


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 4}, {"data": 8}])
def test_weights_on_a_mesh(axes, tmp_path):
    there = model(CONFIGS["ttt"])
    hf.save(there, tmp_path / "out")
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
    back = hf.load(tmp_path / "out", mesh=mesh)
    assert_same(there, back)
    down = back.blocks[0].mlp.down.kernel[...]  # [2, 40, 32]
    split = "fsdp" in axes
    assert down.sharding.spec == PartitionSpec(None, "fsdp" if split else None, None)
    assert down.addressable_shards[0].data.shape == (2, 10 if split else 40, 32)
    # 61 tokens: only the other dimension can be split
    assert back.embed.embedding[...].addressable_shards[0].data.shape == (61, 8 if split else 32)
    tokens = np.arange(22).reshape(2, 11)
    np.testing.assert_allclose(logits(back, tokens), logits(there, tokens), atol=1e-5)
    hf.save(back, tmp_path / "again")
    assert_same(hf.load(tmp_path / "again"), there)


def test_weights_on_a_mesh_that_splits_layers(tmp_path):
    there = model(dataclasses.replace(LLAMA, vocab=60, ttt=TTT))
    hf.save(there, tmp_path / "out")
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    back = hf.load(tmp_path / "out", mesh=mesh)
    assert_same(there, back)
    down = back.blocks[0].mlp.down.kernel[...]  # [2, 40, 32]
    assert down.addressable_shards[0].data.shape == (2, 20, 16)
    with pytest.raises(ConfigError, match="kv_heads is 2; mesh.tensor, 4, must divide it"):
        hf.load(
            tmp_path / "out", mesh=jax.make_mesh((4,), ("tensor",), axis_types=(AxisType.Auto,))
        )


def test_the_host_never_holds_two_models(tmp_path):
    """Of 24 layers' arrays one is in the making at a time; on a CPU device memory counts too."""
    config = dataclasses.replace(QWEN3, layers=24, intermediate=256, hidden=128)
    there = model(config)
    hf.save(there, tmp_path / "out")
    hf.load(tmp_path / "out")  # what is compiled and imported stays
    whole = sum(x.nbytes for x in jax.tree.leaves(there))
    tracemalloc.start()
    try:
        hf.load(tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * whole


def test_a_loaded_model_can_be_donated(tmp_path):
    """Its buffers must not be the host's: a step that reuses them would write where NumPy reads."""
    loaded = hf.load(write(tmp_path / "in"))
    twice = jax.jit(lambda m: jax.tree.map(lambda x: 2 * x, m), donate_argnums=0)(loaded)
    right = 2 * raw_tensors()["model.layers.1.mlp.up_proj.weight"].T
    np.testing.assert_array_equal(np.asarray(twice.layer(1).mlp.up.kernel[...]), right)


def test_saving_like_another_directory(tmp_path):
    like = write(tmp_path / "like")
    raw = json.loads((like / "config.json").read_text()) | {"eos_token_id": 5}
    (like / "config.json").write_text(json.dumps(raw))
    for name in ("tokenizer.json", "merges.txt", "chat_template.jinja", "generation_config.json"):
        (like / name).write_text(f"of {name}")
    (like / "README.md").write_text("of another model")
    hf.save(hf.load(like), tmp_path / "out", like=like)
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {
        *("config.json", "model.safetensors", "tokenizer.json", "merges.txt"),
        *("chat_template.jinja", "generation_config.json"),
    }
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "of chat_template.jinja"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 5
    (like / "vocab.json").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="outside the directory"):
        hf.save(hf.load(like), tmp_path / "other", like=like)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["like", "out"]


@pytest.mark.parametrize("link", ["file", "directory", "behind"])
def test_links_out_of_a_folder_of_chat_templates_are_refused(link, tmp_path):
    like, secret = write(tmp_path / "like"), tmp_path / "secret"
    folder = like / "chat_templates"
    for each in (folder, secret):
        each.mkdir()
        (each / "tool.jinja").write_text(f"of {each.name}")
    (folder / "same.jinja").symlink_to("tool.jinja")
    hf.save(hf.load(like), tmp_path / "out", like=like)
    for name in ("tool.jinja", "same.jinja"):
        assert (tmp_path / "out" / "chat_templates" / name).read_text() == "of chat_templates"
    if link == "file":
        (folder / "other.jinja").symlink_to(secret / "tool.jinja")
    elif link == "directory":
        (folder / "more").symlink_to(secret)
    else:  # a link within, to one that leads out
        (like / "more").symlink_to(secret)
        (folder / "more").symlink_to("../more")
    with pytest.raises(CheckpointError, match="outside the directory"):
        hf.save(hf.load(like), tmp_path / "other", like=like)
    assert not (tmp_path / "other").exists()


def test_a_single_file_is_read_rather_than_an_index(tmp_path):
    """As transformers does, where a directory has both."""
    folder = write(tmp_path / "in", files=2)
    write(folder, tensors=raw_tensors(seed=1))
    assert (folder / "model.safetensors.index.json").exists()
    assert_same(hf.load(folder), hf.load(write(tmp_path / "one", tensors=raw_tensors(seed=1))))


def test_what_is_saved_can_be_read_by_others(tmp_path):
    """Safetensors makes files for their owner only; others may read as the umask says."""
    (tmp_path / "new").touch()
    hf.save(hf.load(write(tmp_path / "in")), tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        assert file.stat().st_mode == (tmp_path / "new").stat().st_mode, file
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "in").stat().st_mode


def test_nothing_is_overwritten(tmp_path):
    there = hf.load(write(tmp_path / "in"))
    before = (tmp_path / "in" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="never overwritten"):
        hf.save(there, tmp_path / "in")
    assert (tmp_path / "in" / "model.safetensors").read_bytes() == before
    (tmp_path / "empty").mkdir()
    hf.save(there, tmp_path / "empty")
    assert_same(hf.load(tmp_path / "empty"), there)


def test_a_save_cut_short_leaves_nothing(tmp_path, monkeypatch):
    there = hf.load(write(tmp_path / "in"))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        hf.save(there, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_wrong_arguments(tmp_path):
    folder = write(tmp_path / "in")
    with pytest.raises(ConfigError, match="dtype is 'float16'"):
        hf.load(folder, dtype="float16")
    with pytest.raises(ConfigError, match="ttt is True"):
        hf.load(folder, ttt=True)
