"""Saving in the background and restoring: what a training loop sees."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastweights.errors import CheckpointError, ConfigError
from fastweights.train import checkpoint, manifest
from fastweights.train.checkpoint import Checkpoints


def _state(step: int) -> dict[str, jax.Array]:
    return {
        "w": jnp.full((4, 4), step, jnp.float32),
        "key": jax.random.key(step),
        "step": jnp.asarray(step, jnp.int32),
    }


def _value(state) -> int:
    """The step a state was made for, from every leaf of it."""
    value = int(state["step"])
    assert np.all(state["w"] == value)
    assert np.all(jax.random.key_data(state["key"]) == jax.random.key_data(jax.random.key(value)))
    return value


@pytest.fixture
def run(tmp_path: Path):
    reports: list[str] = []
    with Checkpoints(tmp_path / "run" / "checkpoints", report=reports.append) as checkpoints:
        checkpoints.reports = reports  # type: ignore[attr-defined]
        yield checkpoints
    assert not [t for t in threading.enumerate() if t.name.startswith("checkpoint")]


def test_nothing_saved(run):
    assert run.restore(_state(0)) is None
    assert run.infos() == []
    assert not run.directory.exists()
    assert run.reports == []


def test_the_newest_step_and_its_extra(run):
    for step in (1, 2):
        run.save(step, _state(step), extra={"prompts": ["a", "ü"], "best": None, "n": step})
    restored = run.restore(_state(0))
    assert restored.step == 2 and _value(restored.state) == 2
    assert restored.extra == {"prompts": ["a", "ü"], "best": None, "n": 2}
    assert _value(run.restore(_state(0), step=1).state) == 1
    assert run.reports == []


def test_another_process_sees_it_after_close(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, _state(5))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.verify(5) == []
        assert _value(checkpoints.restore(_state(0)).state) == 5


def test_extra_is_taken_at_the_call(run):
    extra = {"scores": [1]}
    run.save(1, _state(1), extra=extra)
    extra["scores"].append(2)
    assert run.restore(_state(0)).extra == {"scores": [1]}
    with pytest.raises(CheckpointError, match="not JSON"):
        run.save(2, _state(2), extra={"x": np.ones(2)})


def test_keeps_the_last_and_the_best(tmp_path):
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        for step, score in enumerate([3.0, 1.0, float("nan"), 2.0, 4.0]):
            checkpoints.save(step, _state(step), score=score)
        checkpoints.wait()
        infos = checkpoints.infos()
    assert [(i.step, i.score, i.best) for i in infos] == [
        (1, 1.0, True),
        (3, 2.0, False),
        (4, 4.0, False),
    ]
    for info in infos:
        assert info.complete and info.size > 4 * 4 * 4 and info.date.endswith("+00:00")


def test_saving_does_not_wait_for_the_disk(run, monkeypatch):
    """The caller has its thread back while the files are not yet sealed."""
    release = threading.Event()
    seal = manifest.seal
    monkeypatch.setattr(manifest, "seal", lambda d: release.wait(30) and seal(d))
    run.save(1, _state(1))
    assert manifest.steps(run.directory) == []
    release.set()
    run.wait()
    assert manifest.steps(run.directory) == [1]


class Batches:
    """Grain batches of 0, 1, 2, ... in order; `values` of the next n."""

    def __init__(self):
        self.iterator = iter(grain.MapDataset.range(100).batch(2).to_iter_dataset())

    def values(self, n: int) -> list[int]:
        return [int(next(self.iterator)[0]) for _ in range(n)]


def test_the_iterator_goes_on_where_the_saved_one_was(run):
    data = Batches()
    assert data.values(3) == [0, 2, 4]
    run.save(3, _state(3), data.iterator)
    assert data.values(2) == [6, 8]  # goes on while the save is under way
    again = Batches()
    run.restore(_state(0), again.iterator)
    assert again.values(2) == [6, 8]
    run.restore(_state(0), data.iterator)
    assert data.values(2) == [6, 8]


def test_an_iterator_whose_state_is_bytes(run):
    class Counter:
        position = b"41\xff"

        def get_state(self) -> bytes:
            return self.position

        def set_state(self, state: bytes) -> None:
            self.position = state

    run.save(1, _state(1), Counter())
    fresh = Counter()
    fresh.position = b"0"
    run.restore(_state(0), fresh)
    assert fresh.position == b"41\xff"


def test_an_iterator_that_was_not_saved_or_does_not_fit(run):
    run.save(1, _state(1))
    with pytest.raises(CheckpointError, match="no state for the data iterator"):
        run.restore(_state(0), Batches().iterator)
    run.save(2, _state(2), Batches().iterator)
    assert run.restore(_state(0)).step == 2  # evaluation needs no data position

    class Other:
        def set_state(self, state):
            raise ValueError(f"no field 'shard' in {sorted(state)}")

    with pytest.raises(CheckpointError, match="cannot be restored") as error:
        run.restore(_state(0), Other())
    assert "no field 'shard'" in error.value.cause


def test_a_state_that_does_not_fit_is_refused_by_leaf(run):
    run.save(7, _state(7))
    with pytest.raises(CheckpointError) as error:
        run.restore({**_state(0), "w": jnp.zeros((4, 5))})
    assert "Checkpoint 7" in error.value.what
    assert "'w' is float32[4,4] in the checkpoint and float32[4,5] in this run" in error.value.what
    assert error.value.cause and error.value.next and error.value.exit_code == 4
    with pytest.raises(CheckpointError, match="'v' is missing in the checkpoint"):
        run.restore({**_state(0), "v": jnp.zeros(1)})


def test_a_step_that_was_not_saved(run):
    run.save(1, _state(1))
    with pytest.raises(CheckpointError, match="Checkpoint 2 is not good") as error:
        run.restore(_state(0), step=2)
    assert error.value.cause == "00000002.json: missing"
    assert run.verify(2) == ["00000002.json: missing"]


def test_a_step_is_replaced_by_saving_it_again(run):
    run.save(1, _state(1))
    run.save(1, _state(9))
    assert _value(run.restore(_state(0)).state) == 9
    run.save(1, _state(10))
    assert _value(run.restore(_state(0)).state) == 10
    assert len(list(run.directory.iterdir())) == 2
    assert run.verify(1) == []


def test_an_error_of_the_writer_comes_with_the_next_call(run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    run.save(1, _state(1))
    run.wait()
    for raises in (run.wait, lambda: run.save(3, _state(3)), lambda: run.restore(_state(0))):
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "write", full)
            run.save(2, _state(2))
            with pytest.raises(CheckpointError, match="Checkpoint 2 could not be saved") as error:
                raises()
        assert error.value.cause == "the disk is full" and error.value.where == run.directory
        assert run.restore(_state(0)).step == 1  # told once, nothing lost
    run.save(2, _state(2))
    assert _value(run.restore(_state(0)).state) == 2
    assert len(list(run.directory.iterdir())) == 4


def test_close_raises_the_last_error(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "seal", lambda d: (_ for _ in ()).throw(OSError("broken")))
    with pytest.raises(CheckpointError, match="could not be saved") as error:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, _state(1))
    assert error.value.cause == "broken"


def test_mistakes_in_calling(run):
    with pytest.raises(ConfigError, match="keep_last"):
        Checkpoints(run.directory, keep_last=0)
    with pytest.raises(ValueError, match="step"):
        run.save(-1, _state(0))
    with pytest.raises(CheckpointError, match="nothing to save"):
        run.save(1, {})
    assert manifest.steps(run.directory) == []


def test_a_place_that_cannot_be_a_directory(tmp_path):
    (tmp_path / "file").touch()
    with Checkpoints(tmp_path / "file" / "checkpoints") as checkpoints:
        assert checkpoints.restore(_state(0)) is None
        with pytest.raises(CheckpointError, match="could not be saved"):
            checkpoints.save(1, _state(1))


def test_a_directory_that_cannot_be_read(run, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    run.save(1, _state(1))
    run.wait()
    monkeypatch.setattr(manifest.os, "listdir", refuse)
    for read in (run.infos, lambda: run.restore(_state(0))):
        with pytest.raises(CheckpointError, match="cannot be read") as error:
            read()
        assert error.value.cause == "Permission denied"


def test_reports_are_logged_unless_taken(tmp_path, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        (tmp_path / "00000001").mkdir()
        assert checkpoints.restore(_state(0)) is None
    assert "unfinished" in caplog.text and caplog.records[0].name == checkpoint.__name__


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Each sees its own shards and iterator again, and both take the same step."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    script = Path(__file__).with_name("_two_processes.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, index, tmp_path / "run", port],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in ("0", "1")
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and output.endswith("done\n"), output
