"""Which config may go on with a run directory, and whose it is while a run is at work."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastweights.errors import CheckpointError, ConfigError
from fastweights.models.retrieval import RetrievalModel
from fastweights.tasks.base import Data
from fastweights.tasks.retrieval import Retrieval
from fastweights.train import run_dir as runs
from fastweights.train.config import Config, Mesh, Optim, from_json, to_json
from fastweights.train.run_dir import lock, open_run, record_start
from fastweights.train.seeds import Nets

CONFIG = Config(task=Retrieval(), model=RetrievalModel())


def trained(path, config):
    """A directory as a run leaves it that has written a line of metrics."""
    record_start(open_run(path, config), config)
    (path / "metrics.jsonl").write_text('{"step": 1}\n')


@pytest.mark.parametrize("config", [CONFIG, Nets(CONFIG, (1, 2))], ids=["one", "several"])
def test_a_run_of_a_version_with_fewer_fields_is_gone_on_with(tmp_path, config):
    """What a field did before it existed is its default; any other value is another run."""
    trained(tmp_path, config)
    file = tmp_path / "config.json"
    old = json.loads(file.read_text())
    inner = old["config"] if "config" in old else old
    del inner["mesh"]["tensor"], inner["start"]
    file.write_text(json.dumps(old))
    record_start(open_run(tmp_path, config), config)
    assert json.loads(file.read_text()) == to_json(config)
    file.write_text(json.dumps(old))
    wider = dataclasses.replace(CONFIG, mesh=Mesh(tensor=2))
    other = wider if config is CONFIG else Nets(wider, (1, 2))
    with pytest.raises(ConfigError, match="mesh.tensor: the run has 1, asked for 2"):
        open_run(tmp_path, other)


def test_a_run_of_another_kind_is_refused(tmp_path):
    trained(tmp_path, Nets(CONFIG, (1,)))
    with pytest.raises(ConfigError, match="type: the run has Nets, asked for Config"):
        open_run(tmp_path, CONFIG)


def test_looking_changes_nothing(tmp_path):
    """Where the data is may change, but only once the start has been let through."""
    trained(tmp_path, CONFIG)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    moved = dataclasses.replace(CONFIG, data=Data(dir="elsewhere"))
    open_run(tmp_path, moved)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    record_start(tmp_path, moved)
    assert runs.load_config(tmp_path).data.dir == "elsewhere"


def test_a_start_that_failed_leaves_the_directory_to_any_config(tmp_path):
    other = dataclasses.replace(CONFIG, optim=Optim(lr=0.5))
    for name in (".lock", "config.json.77.tmp", "config.json.tmp"):
        (tmp_path / name).touch()
    record_start(open_run(tmp_path, CONFIG), CONFIG)
    (tmp_path / "metrics.jsonl").touch()
    open_run(tmp_path, other)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "00000002.json").touch()
    with pytest.raises(ConfigError, match="optim.lr: the run has"):
        open_run(tmp_path, other)


@pytest.mark.parametrize("content", ["[]", '{"model_type": "llama"}'])
def test_what_is_no_run_is_left_alone(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="not a run of fastweights"):
        open_run(tmp_path, CONFIG)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="this is a file"):
        open_run(tmp_path / "file", CONFIG)


HOLD = """
import pathlib, sys
from fastweights.train.run_dir import lock
with lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_directory_is_of_one_process_at_a_time(tmp_path):
    """Another process holds it until it is killed; its own number is told."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"process {process.pid} on "), lock(tmp_path):
            pass
        process.kill()
    with lock(tmp_path):
        open_run(tmp_path, CONFIG)


def test_a_file_system_that_refuses_is_told_of(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot write to the run directory"):
        record_start(tmp_path, CONFIG)


def test_texts_are_replaced_by_several_processes(tmp_path, monkeypatch):
    """One is in the middle of its draft when the other has its own in place."""
    real = runs.os.replace

    def slower(draft, file):
        monkeypatch.setattr(runs.os, "replace", real)
        monkeypatch.setattr(runs.os, "getpid", lambda: -1)
        runs.write_text(tmp_path / "a.json", "second")
        real(draft, file)

    monkeypatch.setattr(runs.os, "replace", slower)
    runs.write_text(tmp_path / "a.json", "first")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "first")]


def test_the_revision_is_that_of_the_code_and_not_of_what_it_lies_in(tmp_path, monkeypatch):
    git = lambda *words: subprocess.run(
        ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True
    )
    copy = tmp_path / "venv" / "run_dir.py"
    copy.parent.mkdir()
    shutil.copy(Path(runs.__file__), copy)
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    monkeypatch.setattr(runs, "__file__", str(copy))
    assert runs._git_revision() is None
    git("add", "venv")
    git("commit", "-q", "-m", "ours")
    assert runs._git_revision()


@pytest.mark.parametrize(
    ("data", "text"),
    [({"type": "Config"}, "no key 'model'"), ({"type": "Nets", "seeds": []}, "cannot make")],
)
def test_a_config_that_lacks_something(data, text):
    with pytest.raises(ConfigError, match=text):
        from_json(data)


def test_several_nets_are_not_one(tmp_path):
    trained(tmp_path, Nets(CONFIG, (1,)))
    with pytest.raises(ConfigError, match="a part of a table"):
        runs.load_config(tmp_path)
