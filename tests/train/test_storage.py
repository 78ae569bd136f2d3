"""A state written and read back is the same state: bits, types, placement."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from fastweights.errors import CheckpointError
from fastweights.train import storage


class TrainState(NamedTuple):
    step: jax.Array
    model: nnx.Module
    opt: optax.OptState
    key: jax.Array


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


def _mesh(*shape: int) -> jax.sharding.Mesh:
    n = int(np.prod(shape))
    return jax.make_mesh(
        shape, ("a", "b")[: len(shape)], (AxisType.Auto,) * len(shape), devices=jax.devices()[:n]
    )


def _round_trip(path: Path, state, abstract=None):
    storage.start_write(path, state)()
    return storage.read(path, state if abstract is None else abstract, with_iterator=False)[0]


def _bits(leaf) -> bytes:
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()


def _assert_same(got, want, *, placed=True):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert type(a) is type(b)
        assert _bits(a) == _bits(b)
        if isinstance(b, jax.Array):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            if placed:
                assert (a.sharding, a.committed) == (b.sharding, b.committed)
            assert getattr(a, "weak_type", None) == getattr(b, "weak_type", None)


def test_every_dtype_keeps_its_bits(tmp_path):
    names = "bool int8 uint8 int32 uint32 float16 bfloat16 float32 complex64 int4 float8_e4m3fn"
    raw = np.random.default_rng(0).integers(0, 100, (3, 5))
    state = {name: jnp.asarray(raw).astype(name) for name in names.split()}
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45], np.float32)
    odd = np.append(odd, np.array([0x7FC12345], np.uint32).view(np.float32))  # a NaN of its own
    state["odd"] = jnp.asarray(odd)
    got = _round_trip(tmp_path / "x", state)
    _assert_same(got, state)
    assert _bits(got["odd"]) == odd.tobytes()


def test_every_kind_of_leaf_keeps_its_type(tmp_path):
    state = {
        "python": [3, -(2**40), True, 0.1, 1j],
        "numpy": (np.arange(3), np.float64(0.1), np.array(7)),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), (2, 3)),
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
        "weak": jnp.asarray(0.1),
        "none": None,
        "a.b[0]/c'": jnp.ones(()),
    }
    got = _round_trip(tmp_path / "x", state)
    _assert_same(got, state)
    assert got["python"] == [3, -(2**40), True, 0.1, 1j]
    assert got["weak"].weak_type and not got["a.b[0]/c'"].weak_type
    for name in ("key", "keys"):
        assert jax.random.key_impl(got[name]) == jax.random.key_impl(state[name])
        draw = [jax.random.uniform(jax.random.split(s[name].flatten()[0])[0]) for s in (got, state)]
        assert draw[0] == draw[1]


def test_a_lone_array_is_a_state(tmp_path):
    state = jnp.arange(5)
    _assert_same(_round_trip(tmp_path / "x", state), state)


def _train_state() -> TrainState:
    model = Net(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    updates, opt = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    nnx.update(model, optax.apply_updates(params, updates))
    return TrainState(jnp.zeros((), jnp.int32), model, opt, jax.random.key(3))


def test_module_and_optimiser_on_one_device(tmp_path):
    state = _train_state()
    got = _round_trip(tmp_path / "x", state)
    _assert_same(got, state)
    assert isinstance(got.model, Net) and isinstance(got.opt[1][0], optax.ScaleByAdamState)
    x = jnp.ones((2, 8))
    assert _bits(got.model.layers[0](x)) == _bits(state.model.layers[0](x))


def test_an_abstract_state_of_shapes_only(tmp_path):
    state = _train_state()
    got = _round_trip(tmp_path / "x", state, jax.eval_shape(_train_state))
    _assert_same(got, state)


def _spread(state, mesh):
    """Matrices split over the mesh, all else replicated on it."""
    split = P(*mesh.axis_names)

    def sharding(leaf):
        fits = leaf.ndim == len(mesh.axis_names)
        return NamedSharding(mesh, split if fits else P())

    return jax.device_put(state, jax.tree.map(sharding, state))


@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (2, 1), None])
def test_another_mesh(tmp_path, shape):
    state = _spread(_train_state(), _mesh(2, 2))
    if shape is None:
        one = SingleDeviceSharding(jax.devices()[3])
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state)
        expected = jax.device_put(state, one)
    else:
        target = expected = _spread(state, _mesh(*shape))
    got = _round_trip(tmp_path / "x", state, target)
    _assert_same(got, expected)
    _assert_same(got, state, placed=False)


def test_keys_split_over_a_mesh(tmp_path):
    keys = jax.random.split(jax.random.key(0), 8)
    state = {"keys": jax.device_put(keys, NamedSharding(_mesh(4, 2), P(("a", "b"))))}
    _assert_same(_round_trip(tmp_path / "x", state), state)


def test_restored_scalars_do_not_pin_the_next_step_to_one_device(tmp_path):
    matrix = jax.device_put(jnp.ones((8, 8)), NamedSharding(_mesh(4, 2), P("a", "b")))
    state = {"count": jnp.zeros((), jnp.int32), "w": matrix}
    got = _round_trip(tmp_path / "x", state)
    step = jax.jit(lambda s: {"count": s["count"] + 1, "w": s["w"] + s["count"]})
    assert step(got)["w"].sharding == matrix.sharding


@pytest.mark.parametrize("devices", [1, 8])
def test_donated_after_the_call_is_saved_as_before(tmp_path, devices):
    mesh = _mesh(devices)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    array = jax.device_put(np.zeros((1024, 256), np.float32), NamedSharding(mesh, P("a")))
    state = step({"w": array, "local": jnp.zeros((64, 64))})
    finish = storage.start_write(tmp_path / "x", state)
    for _ in range(10):
        state = step(state)
    finish()
    got = storage.read(tmp_path / "x", state, with_iterator=False)[0]
    assert np.all(np.asarray(got["w"]) == 1) and np.all(np.asarray(got["local"]) == 1)
    assert np.all(np.asarray(state["w"]) == 11)


def test_reading_leaves_the_files_alone(tmp_path):
    state = _train_state()
    storage.start_write(tmp_path / "x", state, {"position": 3})()

    def files():
        found = (f for f in (tmp_path / "x").rglob("*") if f.is_file())
        return {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in found}

    before = files()
    storage.read(tmp_path / "x", state, with_iterator=True)
    assert files() == before
    assert not [f for f in before if f.suffix in (".pkl", ".pickle", ".npy", ".npz")]


def test_no_python_class_is_needed_to_read(tmp_path):
    """Another process, which knows neither the module class nor this package, reads the arrays."""
    state = _train_state()
    storage.start_write(tmp_path / "x", state)()
    kernel = np.asarray(state.model.layers[1].kernel[...])
    code = (
        "import sys, numpy as np\n"
        "from orbax.checkpoint import v1 as ocp\n"
        "state = ocp.load(sys.argv[1])\n"
        "name, = [n for n in state if n.startswith('model/layers/1/kernel')]\n"
        "sys.stdout.write(np.asarray(state[name]).tobytes().hex())\n"
        "assert 'fastweights' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True
    )
    assert run.stdout == kernel.tobytes().hex(), run.stderr


def test_table_and_mismatch():
    state = {"w": jnp.zeros((4, 8), jnp.bfloat16), "k": jax.random.key(0), "n": 3}
    table = storage.table(state)
    assert table == {"w": "bfloat16[4,8]", "k": "key<threefry2x32>[]", "n": "python int"}
    assert storage.table(jax.eval_shape(lambda: {"w": state["w"]})) == {"w": "bfloat16[4,8]"}
    assert storage.mismatch(table, dict(table)) is None

    def against(**changes):
        return storage.mismatch(table, storage.table({**state, **changes}))

    wider = against(w=jnp.zeros((4, 9), jnp.bfloat16))
    assert wider == "leaf 'w' is bfloat16[4,8] in the checkpoint and bfloat16[4,9] in this run"
    assert "float32[4,8] in this run" in against(w=jnp.zeros((4, 8)))
    assert "key<rbg>[] in this run" in against(k=jax.random.key(0, impl="rbg"))
    assert "leaf 'v' is missing in the checkpoint" in against(v=jnp.zeros(1))
    assert "missing in this run (1 more leaves differ)" in storage.mismatch(
        table, {"w": table["w"]}
    )


@pytest.mark.parametrize("leaf", ["text", object(), np.array("text"), 2**70])
def test_a_leaf_that_is_no_number_is_refused_by_name(leaf):
    with pytest.raises(CheckpointError, match="'a/0' of the state cannot be stored"):
        storage.table({"a": [leaf]})


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(CheckpointError, match="same name 'a/b'"):
        storage.table({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


@pytest.mark.parametrize("value", [{"next": [1, {"x": None}]}, b'{"next": 1}'])
def test_iterator_state(tmp_path, value):
    storage.start_write(tmp_path / "x", {"w": jnp.ones(1)}, value)()
    assert (tmp_path / "x" / storage.iterator_file()).is_file()
    assert storage.read(tmp_path / "x", {"w": jnp.ones(1)}, with_iterator=True)[1] == value
