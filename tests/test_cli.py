"""Mistakes at the command line: a short message, the next step, the right exit code."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from support import ROOT

import fastweights
from fastweights import cli
from fastweights.config_file import load_config
from fastweights.train.checkpoint import Checkpoints
from fastweights.train.run_dir import versions


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(capsys, *arguments):
    """Exit code, standard output and standard error of one command."""
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as stop:  # tyro ends the process itself
        code = stop.code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


@pytest.fixture
def data(tmp_path_factory):
    return tmp_path_factory.getbasetemp().parent / "tfds"


def train(capsys, run_dir, data, *more):
    return run(
        capsys, "train", "configs/retrieval.py", "--run-dir", run_dir, "--data.dir", data, *more
    )


def test_an_unknown_key_suggests_the_nearest(capsys, tmp_path):
    code, out, err = train(capsys, tmp_path / "run", tmp_path, "--optim.lrr", 0.1)
    assert code == 2 and "--optim.lr " in out + err and "meant" in out + err


def test_a_value_of_the_wrong_type(capsys, tmp_path):
    code, out, err = train(capsys, tmp_path / "run", tmp_path, "--train.steps", "many")
    assert code == 2 and "--train.steps" in out + err


@pytest.mark.parametrize(
    "arguments,named",
    [
        (["--model.hidden", 0], "model.hidden is 0"),
        (["--model.rule.decay", 1.5], "model.rule.decay is 1.5"),
        (["--model.rule.steps", 0], "model.rule.steps is 0"),
        (["--model.cell", "associative-lstm", "--model.hidden", 7], "even number"),
        (["--task.pairs", 27], "task.pairs is 27"),
        (["--train.batch", 0], "train.batch is 0"),
        (["--mesh.data", 3], "must divide evenly"),
        (["--mesh.fsdp", 16], "16 devices"),
        (["--optim.clip", 0], "optim.clip is 0"),
        (["--optim.warmup", 10**9], "optim.warmup"),
        (["--optim.lr", "nan"], "optim.lr is nan"),
        (["--optim.weight-decay", "inf"], "optim.weight_decay is inf"),
        (["--train.batch", 200_000], "training split has 100000 examples"),
        (["--seed", -1], "seed is -1"),
    ],
)
def test_impossible_values(capsys, tmp_path, data, arguments, named):
    code, _, err = train(capsys, tmp_path / "run", data, *arguments)
    assert code == 2 and named in err


def test_every_problem_is_reported_at_once(capsys, tmp_path):
    code, _, err = train(capsys, tmp_path, tmp_path, "--model.hidden", 0, "--train.log-every", 0)
    assert code == 2 and "model.hidden" in err and "train.log_every" in err and "next:" in err


def test_a_missing_config_file_suggests_the_nearest(capsys, tmp_path):
    code, _, err = run(capsys, "train", "configs/retreival.py", "--run-dir", tmp_path)
    assert code == 2 and "'configs/retrieval.py'" in err


@pytest.mark.parametrize(
    "text,named",
    [
        ("config = 3", "`config` of this file is of type int"),
        ("import nothing_like_it", "ModuleNotFoundError"),
        ("(", "is no Python: "),
    ],
)
def test_a_config_file_that_fails(capsys, tmp_path, text, named):
    file = tmp_path / "mine.py"
    file.write_text(text)
    code, _, err = run(capsys, "train", file, "--run-dir", tmp_path / "run")
    assert code == 2 and named in err


def test_a_model_of_another_task(capsys, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fastweights.models.glimpse import GlimpseModel\n"
        "from fastweights.tasks.retrieval import Retrieval\n"
        "from fastweights.train import Config\n"
        "config = Config(task=Retrieval(), model=GlimpseModel())\n"
    )
    code, _, err = run(capsys, "train", file, "--run-dir", tmp_path / "run")
    assert code == 2 and "RetrievalModel" in err


def test_an_unknown_verb_suggests_the_nearest(capsys):
    code, _, err = run(capsys, "trian")
    assert code == 2 and "'train'" in err


def test_missing_data_without_a_network(capsys, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    code, _, err = run(
        capsys,
        "train",
        "configs/glimpses.py",
        "--run-dir",
        tmp_path / "run",
        "--data.dir",
        tmp_path,
    )
    assert code == 3 and "MNIST was not found" in err and "--data.manual-dir" in err


def test_a_run_directory_that_cannot_be_made(capsys, tmp_path, data):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    code, _, err = train(capsys, blocked / "run", data)
    assert code == 4 and "cannot write to the run directory" in err and "next:" in err


def test_a_run_directory_of_another_config(capsys, tmp_path, data):
    run_dir = tmp_path / "run"
    short = ["--train.steps", 1, "--train.batch", 8, "--model.hidden", 8]
    assert train(capsys, run_dir, data, *short)[0] == 0
    before = (run_dir / "config.json").read_bytes()
    code, _, err = train(capsys, run_dir, data, *short, "--optim.lr", 0.5)
    assert code == 2 and "optim.lr: the run has 0.001, asked for 0.5" in err
    assert (run_dir / "config.json").read_bytes() == before
    assert train(capsys, run_dir, data, *short, "--train.log-every", 7)[0] == 0


def test_a_directory_that_is_something_else(capsys, tmp_path, data):
    (tmp_path / "thesis.tex").write_text("precious")
    code, _, err = train(capsys, tmp_path, data)
    assert code == 2 and "not empty" in err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_truncated_config_of_a_run(capsys, tmp_path, data):
    (tmp_path / "config.json").write_text("[]")
    code, _, err = run(capsys, "eval", "--run-dir", tmp_path)
    assert code == 2 and "cannot make" in err
    (tmp_path / "config.json").write_text('{"type": "Conf')
    for command in (["eval"], ["train", "configs/retrieval.py", "--data.dir", data]):
        code, _, err = run(capsys, *command, "--run-dir", tmp_path)
        assert code == 2 and "not JSON" in err and "config.json" in err


def test_eval_of_nothing_and_of_a_wrong_split(capsys, tmp_path):
    code, _, err = run(capsys, "eval", "--run-dir", tmp_path)
    assert code == 2 and "no run in this directory" in err
    code, _, err = run(capsys, "eval", "--run-dir", tmp_path, "--split", "tset")
    assert code == 2 and "'test'" in err


def test_ckpt_of_nothing(capsys, tmp_path):
    for verb in ("ls", "verify"):
        code, _, err = run(capsys, "ckpt", verb, tmp_path)
        assert code == 2 and "no checkpoints here" in err
    code, _, err = run(capsys, "ckpt", "list", tmp_path)
    assert code == 2 and "next: fastweights ckpt ls" in err


def test_a_loss_that_is_not_finite_stops_and_saves(capsys, tmp_path, data):
    """The update is not applied: what is saved is finite, and the message says what to change."""
    run_dir = tmp_path / "run"
    common = [
        "--train.batch",
        8,
        "--model.hidden",
        8,
        "--train.log-every",
        1,
        "--optim.clip",
        "None",
    ]
    code, _, err = train(capsys, run_dir, data, *common, "--train.steps", 60, "--optim.lr", 1e30)
    assert code == 5 and "not finite" in err and "--optim.lr" in err
    assert run(capsys, "ckpt", "verify", run_dir)[0] == 0


def test_other_data_is_not_trained_on(capsys, tmp_path, data, monkeypatch):
    """A run never goes on with data it was not trained on so far."""
    run_dir = tmp_path / "run"
    common = ["--train.batch", 8, "--model.hidden", 8]
    assert train(capsys, run_dir, data, *common, "--train.steps", 1)[0] == 0
    from fastweights.tasks.retrieval import Retrieval

    real = Retrieval.load
    other = lambda self, split, data: {k: v[1:] for k, v in real(self, split, data).items()}
    monkeypatch.setattr(Retrieval, "load", other)
    code, _, err = train(capsys, run_dir, data, *common, "--train.steps", 2)
    assert code == 3 and "not what this run was trained on" in err


def test_env_prints_versions(capsys):
    code, out, _ = run(capsys, "env", "--json")
    assert code == 0 and json.loads(out)["jax"]
    assert run(capsys, "--help")[0] == 0


@pytest.mark.parametrize("verb", ["generate", "chat", "demo", "import-hf", "export-hf"])
def test_help_imports_no_array_library(verb):
    """It is there in a fraction of a second."""
    code = (
        "import sys\nfrom fastweights.cli import main\n"
        f"try: main([{verb!r}, '--help'])\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'jax', 'flax', 'optax'} & {*sys.modules}, 'imported'"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(f"usage: fastweights {verb}")


def test_a_source_tree_that_is_not_installed_runs(monkeypatch):
    """Its version is that of the code; no package index knows it."""
    known = metadata.version

    def version(name):
        if name == "fastweights":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)
    assert versions()["fastweights"] == fastweights.__version__
    env = os.environ | {"PYTHONPATH": str(Path(fastweights.__file__).parents[1])}
    command = [sys.executable, "-m", "fastweights", "--help"]
    found = subprocess.run(command, env=env, capture_output=True, text=True, cwd="/")
    assert found.returncode == 0 and found.stdout.startswith("usage: fastweights VERB")


def test_the_version_is_that_of_the_package():
    assert metadata.version("fastweights") == fastweights.__version__


def test_a_part_of_a_config_can_be_switched_off():
    """`--model.ttt None`, which the parser has no flag for; a value named None stays with it."""
    config = load_config("configs/books.py")
    off, rest = cli.switch_off(
        config, ["--model.ttt", "None", "--optim.clip", "None", "--seed", "3"]
    )
    assert config.model.ttt is not None and off.model.ttt is None
    assert rest == ["--optim.clip", "None", "--seed", "3"]


@pytest.mark.parametrize("verb", ["train", "ckpt", "parity", "env"])
def test_every_verb_explains_itself(capsys, verb):
    for flag in ("--help", "-h"):
        code, out, _ = run(capsys, verb, flag)
        assert code == 0 and out.startswith(f"usage: fastweights {verb} ")


@pytest.mark.parametrize("words", [("--task", "catch"), ("--task=catch",)])
def test_a_demo_is_named_in_either_way(capsys, words):
    code, out, _ = run(capsys, "demo", *words, "--help")
    assert code == 0 and "--games" in out


def test_a_save_under_way_is_no_damage(capsys, tmp_path):
    """A step without a manifest is none; where there is no other, there are no checkpoints."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, {"x": np.zeros(2)})
    (tmp_path / "00000009").mkdir()
    code, out, _ = run(capsys, "ckpt", "verify", tmp_path)
    assert code == 0 and out.splitlines() == [
        "step 3: ok",
        "step 9: unfinished, no checkpoint yet",
    ]
    (tmp_path / "00000003.json").unlink()
    code, _, err = run(capsys, "ckpt", "verify", tmp_path)
    assert code == 2 and "no checkpoints here" in err


def test_parity_wants_one_directory(capsys):
    code, _, err = run(capsys, "parity")
    assert code == 2 and "fastweights parity PATH" in err
