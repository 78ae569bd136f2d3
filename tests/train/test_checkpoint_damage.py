"""Flipped bits, kills, full disks: a good step is found, and never is a bad one trusted."""

import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastweights.errors import CheckpointError
from fastweights.train.checkpoint import Checkpoints

HERE = Path(__file__).parent


def _state(step: int) -> dict[str, jax.Array]:
    w = jnp.arange(4096, dtype=jnp.float32).reshape(64, 64)
    return {"w": w * step, "b": jnp.full(7, step), "key": jax.random.key(step)}


def _assert_of_step(state, step: int) -> None:
    ours, theirs = jax.tree.leaves(state), jax.tree.leaves(_state(step))
    for a, b in zip(ours, theirs, strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def run(tmp_path: Path):
    """Steps 100, 200 and 300; `reports` is what was told."""
    reports: list[str] = []
    with Checkpoints(tmp_path / "checkpoints", report=reports.append) as checkpoints:
        for step in (100, 200, 300):
            checkpoints.save(step, _state(step))
        checkpoints.wait()
        checkpoints.reports = reports  # type: ignore[attr-defined]
        yield checkpoints


def _files(run: Checkpoints, step: int) -> list[Path]:
    files = (run.directory / f"{step:08d}").rglob("*")
    return [run.directory / f"{step:08d}.json", *sorted(f for f in files if f.is_file())]


def test_a_bit_flipped_anywhere_is_found_and_the_step_before_restored(run):
    """100 random bits of all files of the newest step, the manifest's among them."""
    files = _files(run, 300)
    sizes = [f.stat().st_size for f in files]
    assert max(sizes) > 64 * 64 * 4 and len(files) > 5
    rng = random.Random(0)
    for path in rng.choices(files, sizes, k=100):
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        run.reports.clear()
        restored = run.restore(_state(0))
        assert restored.step == 200
        _assert_of_step(restored.state, 200)
        assert len(run.reports) == 1 and "Checkpoint 300 is passed over" in run.reports[0]
        assert len(run.verify(300)) == 1
        path.write_bytes(good)
    assert run.verify(300) == []
    assert run.restore(_state(0)).step == 300


def test_no_flipped_bit_is_found_without_the_seal(run, monkeypatch):
    """The reason for all this: the array store itself loads wrong numbers without a word."""
    monkeypatch.setattr(Checkpoints, "verify", lambda self, step: [])
    data = max(_files(run, 300), key=lambda f: f.stat().st_size)
    bad = bytearray(data.read_bytes())
    place = bytes(bad).find(np.float32(300 * 4000).tobytes())
    assert place > 0
    bad[place] ^= 1
    data.write_bytes(bad)
    restored = run.restore(_state(0))
    assert restored.step == 300
    with pytest.raises(AssertionError):
        _assert_of_step(restored.state, 300)


def _swap(a: Path, b: Path) -> None:
    content = a.read_bytes(), b.read_bytes()
    b.write_bytes(content[0])
    a.write_bytes(content[1])


DAMAGES = {
    "truncated": lambda d: os.truncate(max(d.rglob("*"), key=lambda f: f.stat().st_size), 100),
    "file gone": lambda d: next(d.rglob("_METADATA")).unlink(),
    "files swapped": lambda d: _swap(next(d.rglob("_METADATA")), next(d.rglob("_sharding"))),
    "surplus file": lambda d: (d / "state" / "d" / "surplus").touch(),
    "empty directory": lambda d: (shutil.rmtree(d), d.mkdir()),
    "no directory": lambda d: shutil.rmtree(d),
    "another step's files": lambda d: (
        shutil.rmtree(d),
        shutil.copytree(d.with_name("00000100"), d),
    ),
    "another step's manifest": lambda d: shutil.copy(
        d.with_name("00000100.json"), d.with_name("00000300.json")
    ),
    "manifest no JSON": lambda d: d.with_name("00000300.json").write_text("{"),
    "manifest empty": lambda d: os.truncate(d.with_name("00000300.json"), 0),
    "manifest gone": lambda d: d.with_name("00000300.json").unlink(),
    "manifest a directory": lambda d: (
        d.with_name("00000300.json").unlink(),
        d.with_name("00000300.json").mkdir(),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_passed_over_and_replaced_when_it_comes_again(run, damage):
    DAMAGES[damage](run.directory / "00000300")
    assert run.verify(300)
    restored = run.restore(_state(0))
    assert restored.step == 200
    _assert_of_step(restored.state, 200)
    # a step whose manifest is gone was never committed: nothing to tell
    assert len(run.reports) == (0 if damage == "manifest gone" else 1)
    with pytest.raises(CheckpointError, match="Checkpoint 300 is not good"):
        run.restore(_state(0), step=300)
    if damage == "manifest a directory":
        return
    run.save(300, _state(300))
    restored = run.restore(_state(0))
    assert restored.step == 300 and run.verify(300) == []
    _assert_of_step(restored.state, 300)
    assert [(i.step, i.complete) for i in run.infos()] == [(100, True), (200, True), (300, True)]
    assert len(list(run.directory.iterdir())) == 6


def test_no_step_is_good(run):
    for step in (100, 200, 300):
        os.truncate(run.directory / f"{step:08d}.json", 10)
    with pytest.raises(CheckpointError, match="No checkpoint verifies") as error:
        run.restore(_state(0))
    assert len(run.reports) == 3
    assert error.value.where == run.directory
    assert error.value.cause == "00000300.json: is not JSON (damaged)"
    assert error.value.next == f"fastweights ckpt verify {run.directory.parent}"


def test_only_unfinished_steps_are_as_none_but_are_told_of(run):
    for step in (100, 200, 300):
        (run.directory / f"{step:08d}.json").unlink()
    assert run.restore(_state(0)) is None
    assert len(run.reports) == 1 and "100, 200, 300" in run.reports[0]
    run.save(100, _state(100))
    assert run.restore(_state(0)).step == 100
    assert sorted(os.listdir(run.directory)) == ["00000100", "00000100.json"]


@contextmanager
def _mounted(path: Path, options: str):
    path.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if os.name != "posix" or os.getuid() != 0 or not shutil.which("mount"):
        pytest.skip("needs the right to mount a small file system")
    if (mount := subprocess.run(command, capture_output=True, text=True)).returncode:
        pytest.skip(f"cannot mount a small file system: {mount.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_loses_nothing(tmp_path, caplog):
    small = tmp_path / "small"
    big = {"w": jnp.ones((512, 1024))}  # 2 MB
    with _mounted(small, "size=1m"), Checkpoints(small / "checkpoints") as checkpoints:
        checkpoints.save(100, _state(100))
        checkpoints.save(200, big)
        with pytest.raises(CheckpointError, match="Checkpoint 200 could not be saved") as error:
            checkpoints.wait()
        assert error.value.cause == "the disk is full"
        _assert_of_step(checkpoints.restore(_state(0)).state, 100)
        checkpoints.save(200, _state(200))  # what fits is saved, the leftovers make room
        _assert_of_step(checkpoints.restore(_state(0)).state, 200)
        assert len(list(checkpoints.directory.iterdir())) == 4
    assert not [r for r in caplog.records if r.exc_info]  # no traceback on the screen


def test_a_read_only_directory(run):
    """Reading works; writing is refused in words at once."""
    root = run.directory.parent
    with _mounted(root / "mount", "size=9m"):
        shutil.copytree(run.directory, root / "mount" / "checkpoints")
        remount = ["mount", "-o", "remount,ro", str(root / "mount")]
        subprocess.run(remount, check=True)
        with Checkpoints(root / "mount" / "checkpoints") as checkpoints:
            assert checkpoints.restore(_state(0)).step == 300
            assert [i.step for i in checkpoints.infos()] == [100, 200, 300]
            with pytest.raises(CheckpointError, match="400 could not be saved") as error:
                checkpoints.save(400, _state(400))
            assert error.value.cause == "no right to write there"
            assert checkpoints.restore(_state(0)).step == 300


def _kill_while_saving(directory: Path, times: int) -> list[int]:
    """Kills a saving process again and again; the step restored after each kill.

    After every kill the newest step verifies, holds what a checkpoint of its number holds, and is
    not older than the last one the dead process knew to be saved.
    """
    script = HERE / "_save_forever.py"
    content = runpy.run_path(str(script))["content"]
    rng = random.Random(0)
    abstract = jax.tree.map(jnp.asarray, content(0))
    command = [sys.executable, str(script), str(directory)]
    steps, durable = [], 0
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    ) as server:
        for _ in range(times):
            print(file=server.stdin, flush=True)
            child = int(server.stdout.readline().removeprefix("pid "))
            lines = [server.stdout.readline()]  # the first save is under way
            time.sleep(rng.uniform(0, 0.25))
            os.kill(child, signal.SIGKILL)
            lines += iter(server.stdout.readline, "dead\n")
            durable = int(lines[-1].removeprefix("saved "))
            with Checkpoints(directory) as checkpoints:
                restored = checkpoints.restore(abstract)
            if restored is None:
                assert durable == 0
                continue
            assert restored.step in (durable, durable + 1)
            for name, expected in content(restored.step).items():
                assert np.asarray(restored.state[name]).tobytes() == expected.tobytes()
            steps.append(restored.step)
        server.stdin.close()
    return steps


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="counts threads in /proc before it forks"
)


@needs_proc
def test_kill_while_saving(tmp_path):
    steps = _kill_while_saving(tmp_path, 6)
    assert len(steps) >= 4 and steps == sorted(steps)


@needs_proc
@pytest.mark.slow
def test_kill_while_saving_thirty_times(tmp_path):
    steps = _kill_while_saving(tmp_path, 30)
    assert len(steps) >= 25 and steps == sorted(steps)
