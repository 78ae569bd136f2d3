"""Directories that are wrong, cut short or out to harm: refused, with a name and a way on."""

import json
import os
import pickle
import sys

import numpy as np
import pytest

from fastweights import hf
from fastweights.errors import CheckpointError, ConfigError
from hf.tiny import RAW, raw_tensors, write, write_index

UP = "model.layers.1.mlp.up_proj.weight"
INDEX = "model.safetensors.index.json"


def refused(folder, *says, kind=CheckpointError, **options):
    """Loading fails, the message says all of `says` and what to do next."""
    with pytest.raises(kind) as caught:
        hf.load(folder, **options)
    text = str(caught.value)
    for part in (*says, "next: "):
        assert part in text, text
    assert "\n  where: " in text


class Bomb:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_opened(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "in")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    refused(folder, name, "never opened", "save_pretrained")
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_beside_the_weights_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "in")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    hf.load(folder)
    assert not (tmp_path / "exploded").exists()


def test_no_directory_no_config_no_weights(tmp_path):
    refused("Qwen/Qwen3-4B", "'Qwen/Qwen3-4B' is not a directory", "hf download Qwen/Qwen3-4B")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "there is no config.json", kind=ConfigError)
    (tmp_path / "empty" / "config.json").write_text("{")
    refused(tmp_path / "empty", "config.json cannot be read", kind=ConfigError)
    (tmp_path / "empty" / "config.json").write_text("[]")
    refused(tmp_path / "empty", "no JSON object", kind=ConfigError)
    (tmp_path / "empty" / "config.json").write_text(json.dumps(RAW))
    refused(tmp_path / "empty", "neither model.safetensors nor")
    folder = write(tmp_path / "no_index", files=2)
    (folder / INDEX).unlink()
    refused(folder, "the index of model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "../secret/model.safetensors",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "C:model.safetensors",
        "..",
        "",
        "config.json",
        "pytorch_model.bin",
    ],
)
def test_an_index_names_files_of_its_directory_only(name, tmp_path):
    folder = write(tmp_path / "in", files=2)
    for other in ("secret", "in/sub"):
        write(tmp_path / other)
    write_index(folder, dict.fromkeys(raw_tensors(), name))
    refused(folder, f"the index names {name!r}", INDEX)


def test_an_absolute_path_in_the_index(tmp_path):
    folder, secret = write(tmp_path / "in", files=2), write(tmp_path / "secret")
    write_index(folder, dict.fromkeys(raw_tensors(), str(secret / "model.safetensors")))
    refused(folder, "the index names", "secret")


@pytest.mark.parametrize("name", ["model.safetensors", INDEX, "model-00001-of-00002.safetensors"])
def test_links_out_of_the_directory(name, tmp_path):
    folder = write(tmp_path / "in", files=1 if name == "model.safetensors" else 2)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    refused(folder, f"{name} is a link to", "outside the directory")


def test_links_of_the_hugging_face_cache(tmp_path):
    """models--A--B/snapshots/REVISION/file -> ../../blobs/HASH."""
    folder = write(tmp_path / "models--A--B" / "snapshots" / "abc", files=2)
    blobs = tmp_path / "models--A--B" / "blobs"
    blobs.mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(i))
        file.symlink_to(f"../../blobs/{i}")
    assert hf.load(folder).config.vocab == 19


def test_a_dangling_link_and_a_missing_shard(tmp_path):
    folder = write(tmp_path / "in", files=3)
    shard = folder / "model-00002-of-00003.safetensors"
    shard.unlink()
    refused(folder, "model-00002-of-00003.safetensors is missing", "download")
    shard.symlink_to("model-00009-of-00003.safetensors")
    refused(folder, "model-00002-of-00003.safetensors is missing")


@pytest.mark.parametrize("index", ['{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"a": 1}'])
def test_a_damaged_index(index, tmp_path):
    folder = write(tmp_path / "in", files=2)
    (folder / INDEX).write_text(index)
    refused(folder, "no weight_map", INDEX)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_files(keep, tmp_path):
    folder = write(tmp_path / "in", files=2)
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, "model-00002-of-00002.safetensors cannot be read", "again")


def test_a_git_lfs_pointer(tmp_path):
    folder = write(tmp_path / "in")
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
    (folder / "model.safetensors").write_text(text)
    refused(folder, "model.safetensors cannot be read", "Git LFS pointer")


def test_missing_and_surplus_tensors(tmp_path):
    tensors = raw_tensors()
    del tensors[UP]
    refused(write(tmp_path / "missing", tensors=tensors), f"the tensor {UP} is missing")
    tensors = raw_tensors() | {"model.layers.2.mlp.up_proj.weight": np.zeros((24, 16), np.float32)}
    folder = write(tmp_path / "surplus", tensors=tensors)
    refused(folder, "model.layers.2.mlp.up_proj.weight has no place", "model.safetensors")
    tensors = raw_tensors()
    del tensors["lm_head.weight"]
    folder = write(tmp_path / "head", tensors=tensors)
    refused(folder, "lm_head.weight is missing", "tie_word_embeddings")


def test_norms_of_queries_have_no_place_in_a_llama(tmp_path):
    raw = RAW | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    refused(write(tmp_path / "in", raw), "self_attn.k_norm.weight has no place", "3 more")


def test_biases_have_no_place(tmp_path):
    tensors = raw_tensors() | {"model.layers.0.self_attn.q_proj.bias": np.zeros(16, np.float32)}
    refused(write(tmp_path / "in", tensors=tensors), "self_attn.q_proj.bias has no place")


def test_an_index_that_differs_from_its_files(tmp_path):
    folder = write(tmp_path / "in", files=2)
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    other = {k: v for k, v in index.items() if v != index[UP]}
    write_index(folder, other | {UP: next(iter(other.values()))})
    refused(folder, UP, next(iter(other.values())), "where the index says it is")


def test_a_tensor_in_two_files(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = write(tmp_path / "in", files=2)
    for i in (1, 2):
        file = folder / f"model-0000{i}-of-00002.safetensors"
        save_file(load_file(file) | {UP: raw_tensors()[UP]}, file)
    refused(folder, f"the tensor {UP} is in two files", "model-00001", "model-00002")


@pytest.mark.parametrize("shape", [(16, 24), (24, 15), (24 * 16,), (1, 24, 16)])
def test_wrong_shapes(shape, tmp_path):
    """The transpose too, which has as many numbers."""
    tensors = raw_tensors() | {UP: np.zeros(shape, np.float32)}
    folder = write(tmp_path / "in", tensors=tensors)
    refused(folder, f"{UP} has shape {list(shape)}; config.json asks for [24, 16]", "safetensors")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool"])
def test_wrong_dtypes(dtype, tmp_path):
    tensors = raw_tensors() | {UP: np.zeros((24, 16), dtype)}
    refused(write(tmp_path / "in", tensors=tensors), f"{UP} has dtype", "quantised")


def test_without_safetensors(tmp_path, monkeypatch):
    folder = write(tmp_path / "in")
    model = hf.load(folder)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    refused(folder, "safetensors", "pip install -e '.[hf]'", kind=ConfigError)
    with pytest.raises(ConfigError, match="pip install"):
        hf.save(model, tmp_path / "out")


def test_importing_hf_needs_neither_safetensors_nor_torch():
    import subprocess

    code = (
        "import sys, fastweights.hf\n"
        "assert not {'torch', 'transformers', 'safetensors'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"JAX_PLATFORMS": "cpu"})
