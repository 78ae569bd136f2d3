"""Hugging Face checkpoints as policies of the two-speed loop, also one that learns as it reads."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from small import CONFIG as SMALL
from small import graded
from support import ROOT

from fastweights import cli, hf, pretrained
from fastweights.fastslow import report
from fastweights.fastslow.base_model import base_config
from fastweights.fastslow.config import FastSlow
from fastweights.fastslow.evolution import Evolution
from fastweights.fastslow.loop import train_fast_slow
from fastweights.fastslow.objective import PolicyGradient
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import InPlaceTTT
from fastweights.tasks import bytes_file
from fastweights.tasks.maths import Maths
from fastweights.tasks.programs import Programs
from fastweights.train import train
from fastweights.train.config import Mesh, Optim, Train

pytest.importorskip("tokenizers", reason="needs tokenizers, the [hf] extra")
#: prompts of some 30 bytes are three chunks
TTT = InPlaceTTT(layers=(0, 1), chunk=8, lr=0.5)


@pytest.mark.parametrize("ttt", [None, TTT], ids=["qwen3", "in-place TTT"])
def test_a_checkpoint_is_trained_by_policy_gradient(tmp_path, monkeypatch, capsys, ttt):
    from flax import nnx

    decoder = Decoder(dataclasses.replace(SMALL, ttt=ttt), rngs=nnx.Rngs(0))
    hf.save(decoder, tmp_path / "base")
    bytes_file.write(tmp_path / "base")
    line = {"question": "1 + 2?", "answer": "1 + 2 is\n#### 3"}
    (tmp_path / "maths.jsonl").write_text("".join(json.dumps(line) + "\n" for _ in range(12)))
    path = str(tmp_path / "maths.jsonl")
    config = FastSlow(
        task=Maths(path, path, validation=4, answer_length=10),
        base=str(tmp_path / "base"),
        order="slow",
        rl=PolicyGradient(problems=2, rollouts=4),
        optim=Optim(lr=1e-2, clip=1.0),
        train=Train(steps=2, eval_every=1, checkpoint_every=1, log_every=1),
        evaluation=4,
    )
    monkeypatch.setattr(Maths, "verify", graded)
    monkeypatch.setattr(cli, "load_config", lambda path: config)
    run_dir = tmp_path / "run"
    assert cli.main(["train", "some.py", "--run-dir", str(run_dir), "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["updates"] == 2 and said["rollouts_slow"] == 2 * 2 * 4
    # answers are drawn from what the update differentiates, the writes of the chunks included
    lines = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(x["train/off_policy"] < 1e-4 for x in lines if "train/off_policy" in x)
    assert sum("train/off_policy" in x for x in lines) == 2
    run, _ = report.load(run_dir)
    before, after = (jax.tree.leaves(x) for x in (run.base.model, run.state.model))
    moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert all(moved) and said["validation/kl_token_own"] > 0
    assert run.state.model.config.ttt == ttt
    # and the policy is a model like any other
    out = tmp_path / "out"
    assert cli.main(["export-hf", "--run-dir", str(run_dir), str(out)]) == 0
    assert "step 2" in capsys.readouterr().out
    assert (out / "tokenizer.json").read_bytes() == (tmp_path / "base/tokenizer.json").read_bytes()
    for path in (run_dir, out):
        same_weights(pretrained.load(path).model, run.state.model)
        assert pretrained.load(path, ttt=False).model.config.ttt is None
    assert json.loads((out / "prompts.json").read_text()) == [
        {"prompt": config.task.seed_prompt, "score": None}
    ]


def same_weights(mine, other):
    for a, b in zip(*map(jax.tree.leaves, (mine, other)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_policy_that_began_with_a_policy_is_written_with_its_prompts(tmp_path, capsys):
    """Whose base is a run of ours, and which was trained on more devices than there are now."""
    base = base_config()
    base = dataclasses.replace(
        base,
        task=dataclasses.replace(base.task, examples=200, held_out=10),
        model=SMALL,
        optim=Optim(method="muon"),
        train=Train(steps=1, batch=8, eval_every=1, checkpoint_every=1),
    )
    train(base, tmp_path / "base", quiet=True)
    config = FastSlow(
        task=Programs(odd="i", even="n", digits=2),
        base=str(tmp_path / "base"),
        rl=PolicyGradient(problems=2, rollouts=4),
        evolution=Evolution(keep=2, every=1, proposals=4, minibatch=2, instances=4, samples=1),
        train=Train(steps=1, eval_every=1, checkpoint_every=1, log_every=1),
        mesh=Mesh(data=2),
        evaluation=4,
    )
    train_fast_slow(config, tmp_path / "first", quiet=True)
    second = dataclasses.replace(config, base=str(tmp_path / "first"), mesh=Mesh())
    train_fast_slow(second, tmp_path / "second", quiet=True)
    kept = json.loads((tmp_path / "first/config.json").read_text())
    kept["mesh"]["data"] = 64
    (tmp_path / "first/config.json").write_text(json.dumps(kept))

    run, _ = report.load(tmp_path / "second")
    same_weights(run.base.model, pretrained.load(tmp_path / "first").model)
    out = tmp_path / "out"
    assert cli.main(["export-hf", "--run-dir", str(tmp_path / "second"), str(out)]) == 0
    found = pretrained.load(out)
    same_weights(found.model, run.state.model)
    assert found.stop_tokens == (ord("\n"),)
    members = json.loads((out / "prompts.json").read_text())
    assert members[0]["prompt"] == dict(run.population.best().components)
    assert [x["score"] for x in members] == sorted(run.population.means, reverse=True)
    capsys.readouterr()
    generate = ["generate", "--prompt", "i..n..|12=", "--max-new-tokens", "4"]
    assert cli.main([*generate, "--model", str(tmp_path / "second")]) == 0
    assert "10 tokens read, 4 written" in capsys.readouterr().err


def test_puzzles_of_reasoning_gym_are_a_task(tmp_path, capsys):
    from flax import nnx

    pytest.importorskip("reasoning_gym", reason="needs reasoning-gym, the [fst] extra")
    hf.save(
        Decoder(dataclasses.replace(SMALL, max_length=512), rngs=nnx.Rngs(0)), tmp_path / "base"
    )
    bytes_file.write(tmp_path / "base")
    few = {
        "task.held": 4,
        "task.train": 16,
        "task.answer-length": 8,
        "rl.problems": 2,
        "rl.rollouts": 2,
        "train.steps": 1,
        "evaluation": 4,
    }
    command = ["train", str(ROOT / "configs/fst_reasoning_gym.py"), "--arm", "rl", "--quiet"]
    command += ["--base", str(tmp_path / "base"), "--run-dir", str(tmp_path / "run")]
    command += [str(word) for name, value in few.items() for word in (f"--{name}", value)]
    assert cli.main([*command, "--task.dataset", "graph_color"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rollouts_slow"] == 4 and said["validation/unscored_own"] == 0
    assert cli.main([*command, "--task.dataset", "countdown"]) == 2
    assert "may run answers as code" in capsys.readouterr().err
