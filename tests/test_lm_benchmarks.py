"""The benchmarks of In-Place TTT run, refuse what is wrong, and say what they measured.

No time is judged.
"""

import dataclasses
import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import CIRCUMSTANCES, ROOT

from fastweights.models.decoder import Decoder


@pytest.fixture
def odd(script):
    """23 tokens in chunks of 5: a last chunk of 3."""
    return script("in_place_reference").Size(23, 5, 3, 4)


NAMES = ["plain", "ours", "materialised", "scores"]


@pytest.mark.parametrize("training", [False, True])
def test_jax_contenders_agree_with_float64(script, odd, training):
    found, dropped = script("in_place").contenders(NAMES, odd, training, seed=0)
    assert list(found) == NAMES and not dropped
    assert all(one.error < 1e-6 for one in found.values())


def test_the_reference_is_token_by_token_and_has_its_gradients(script, odd):
    """Outputs by a loop over tokens; gradients by central differences along random directions."""
    reference = script("in_place_reference")
    p = reference.problem(odd, 3)
    p = type(p)(*(x.astype(np.float64) for x in p))
    weights, pending, rows = p.w0.copy(), 0 * p.w0, []
    for t in range(odd.length):
        rows.append(weights @ p.z[t])
        pending = pending + odd.lr * np.outer(p.v[t], p.z[t])
        if (t + 1) % odd.chunk == 0:
            weights, pending = weights + pending, 0 * pending
    assert harness_ratio(reference.outputs(p, odd), np.stack(rows)) < 1e-14

    rng = np.random.default_rng(4)
    value = lambda p: np.sum(reference.outputs(p, odd) * p.dy)
    names = ("w0", "z", "v")
    for name, gradient in zip(names, reference.gradients(p, odd), strict=True):
        step = 1e-4 * rng.normal(size=gradient.shape)
        ends = (value(p._replace(**{name: getattr(p, name) + s * step})) for s in (1, -1))
        slope = (next(ends) - next(ends)) / 2
        assert abs(slope - np.sum(gradient * step)) < 1e-8 * max(1, abs(slope))


def harness_ratio(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def test_a_wrong_contender_is_dropped_with_a_message(script, odd, monkeypatch, capsys):
    forms, in_place = script("in_place_jax"), script("in_place")
    twice = lambda size: forms.ours(size._replace(chunk=2 * size.chunk))
    monkeypatch.setitem(forms.LAYERS, "wrong", twice)
    found, dropped = in_place.contenders(["ours", "wrong"], odd, False, seed=0)
    assert list(found) == ["ours"] and list(dropped) == ["wrong"]
    assert "dropped wrong" in capsys.readouterr().out


def test_the_ratio_by_count_of_products(script, odd):
    """Two chunks: 2 reads and 1 write over 2 reads; in training 6, 1 and 3 + 1 more, over 6."""
    products = script("in_place_jax").products
    two = odd._replace(length=10)
    assert products(two, False) == 3 / 2
    assert products(two, True) == 10 / 6
    assert products(odd._replace(length=5), True) == 1


def test_in_place_writes_what_a_number_needs_beside_it(script, tmp_path, monkeypatch, capsys):
    in_place = script("in_place")
    monkeypatch.setattr(in_place.importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "in_place.json"
    in_place.main(in_place.Options(quick=True, out=out, rounds=2))
    record = json.loads(out.read_text())
    assert all(record[key] not in (None, "", []) for key in CIRCUMSTANCES)
    assert [g["mode"] for g in record["groups"]] == ["forward", "train"] * 3
    for group in record["groups"]:
        assert {"plain", "ours"} < set(group["contenders"]) and not group["dropped"]
        assert group["over_plain"]["ours"]["median"] > 0
    assert [set(case["temp_bytes"]) for case in record["memory"]] == [
        {"plain", "ours", "materialised"}
    ] * 2
    printed = capsys.readouterr().out
    assert "torch is not installed" in printed and "| 45, 8, 6, 10 | train | ours |" in printed


def test_other_tokens_are_an_error_unless_their_logits_are_near(script):
    decode = script("decode")

    class Peer:
        def logits(self, tokens):
            assert tokens.tolist() == [[7, 8, 1]]  # prompt, and what they agree on
            return np.array([0.0, 0.0, 2.0, 2.0 - gap])

    prompt, theirs, ours = np.array([[7, 8]]), np.array([[1, 2, 0]]), np.array([[1, 3, 0]])
    assert decode.agreement(theirs, theirs, prompt, Peer()) == (3, None)
    gap = 1e-4
    same, found = decode.agreement(ours, theirs, prompt, Peer())
    assert same == 1 and found == pytest.approx(gap)
    gap = 0.1
    with pytest.raises(ValueError, match="token 1 differs"):
        decode.agreement(ours, theirs, prompt, Peer())


def test_the_bytes_of_the_floor_leave_out_an_embedding_that_is_no_head(script):
    decode = script("decode")
    shapes = script("random_decoder").shapes
    tied = shapes(dataclasses.replace(decode.TOY, tie_embeddings=True))
    untied = shapes(dataclasses.replace(decode.TOY, tie_embeddings=False))
    assert decode.weights_read(tied) == 4 * sum(x.size for x in jax.tree.leaves(tied))
    assert decode.weights_read(untied) == decode.weights_read(tied)


def test_flops_are_those_of_the_products(script):
    """Counted by XLA on one layer, where attention takes all T² scores."""
    sizes = script("gpu_sizes")
    config = dataclasses.replace(sizes.TOY.model, dtype="float32", param_dtype="float32")
    config = dataclasses.replace(config, hidden=64, intermediate=96, layers=1, ttt=None)
    length = 32
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    lowered = jax.jit(Decoder.__call__).lower(script("random_decoder").shapes(config), tokens)
    counted = lowered.cost_analysis()["flops"]
    ours = sizes.forward_flops(config, length, length, causal=False)
    assert ours < counted < 1.1 * ours  # norms, rotation and softmax are the rest
    halves = sizes.forward_flops(config, length, 0, causal=True)
    whole = sizes.forward_flops(config, length, 0, causal=False)
    assert whole - halves == 2 * length**2 * config.heads * config.head_dim
    # Qwen3-4B: 3.633 B weights in its layers
    assert round(sizes.weights(sizes.QWEN3_4B) / 1e9, 3) == 3.633


def test_in_place_flops_are_a_write_a_chunk_and_the_targets(script):
    sizes = script("gpu_sizes")
    config = sizes.TOY.model  # chunks of 16: of 40 tokens 32 are written before they are read
    each = 32 * config.hidden * config.intermediate + 40 * config.hidden**2
    assert sizes.in_place_flops(config, 40) == 2 * 2 * each


def gpu_run(script, out, sections):
    gpu = script("gpu")
    gpu.main(gpu.Options(small=True, out=out, sections=sections))
    record = json.loads(out.read_text())
    assert all(record[key] not in (None, "", []) for key in CIRCUMSTANCES)
    return record


def test_gpu_runs_small_on_a_cpu_section_by_section(script, tmp_path):
    """The second run keeps the first one's section."""
    out = tmp_path / "gpu.json"
    gpu_run(script, out, ("ceilings",))
    record = gpu_run(script, out, ("decode",))
    assert list(record["sections"]) == ["ceilings", "decode"]
    kinds = [(one["kind"], one["batch"]) for one in record["sections"]["decode"]["values"]]
    assert kinds == [("plain", 2), ("shared", 2), ("own", 2)]
    shared, own = (one["bytes"]["fast"] for one in record["sections"]["decode"]["values"][1:])
    assert own == 2 * shared > 0
    page = script("gpu_page").tables(record)
    assert "| shared | 2 |" in page and "**train**: not measured." in page


@pytest.mark.slow
def test_gpu_runs_every_section_small(script, tmp_path):
    gpu = script("gpu")
    record = gpu_run(script, tmp_path / "gpu.json", tuple(gpu.SECTIONS))
    assert set(record["sections"]) == set(gpu.SECTIONS)
    values = {name: section["values"] for name, section in record["sections"].items()}
    assert max(values["layer"]["errors"].values()) < gpu.gpu_layer.TOLERANCE
    assert [one["in_place"] for one in values["train"]] == [False, True]
    for one in values["train"]:
        assert all(3 < loss < 6 for loss in one["losses"])  # log 97 = 4.6 for a random model
    assert set(values["prefill"]["slowdown"]) == {"forward", "prefill"}
    assert "not measured" not in script("gpu_page").tables(record)


@pytest.mark.parametrize("training", [False, True])
def test_what_does_not_fit_is_recorded(script, monkeypatch, training):
    """A contender that the device has no memory for leaves the others as they are."""
    layer, sizes = script("gpu_layer"), script("in_place_reference")
    real = layer.compiled.contender
    calls = itertools.count()

    def contender(*arguments, **options):
        if next(calls) == 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return real(*arguments, **options)

    monkeypatch.setattr(layer.compiled, "contender", contender)
    found = layer.one_layer(sizes.Size(20, 8, 4, 6), training, 1, 0)
    assert list(found["contenders"]) == ["plain", "ours"]
    assert found["out_of_memory"] == ["materialised"]


def test_other_errors_are_not_taken_for_a_lack_of_memory(script):
    def broken():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        script("gpu_layer").attempt(broken)


def test_without_a_gpu_it_says_so_and_exits_with_2():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"JAX_PLATFORMS": "cpu", "PATH": ""},
    )
    assert done.returncode == 2
    assert "no NVIDIA GPU" in done.stderr and "--small" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["in_place", "decode", "gpu"])
def test_the_page_says_what_the_json_says(script, name):
    tables = script("tables")
    page = (ROOT / "docs/performance.md").read_text()
    assert tables.harness.between_markers(page, name, tables.render(name)) == page


def test_a_benchmark_without_json_is_not_measured(script, monkeypatch, tmp_path):
    tables = script("tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.render("gpu").startswith("Not measured")
