"""Attention against a float64 loop over queries: windows, groups, documents, gradients, blocks."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from fastweights.errors import ConfigError
from fastweights.nn import attention
from fastweights.nn.attention import Attention, attend, attend_in_blocks
from fastweights.nn.attention_cached import Cache, attend_cached
from fastweights.nn.rope import Rope


def draw(seed, batch, length, heads, kv_heads, size, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, n, size) for n in (heads, kv_heads, kv_heads)]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def sees(t, s, window, ids):
    return s <= t and (window is None or s > t - window) and (ids is None or ids[t] == ids[s])


def reference(q, k, v, window=None, segment_ids=None):
    """One query at a time, over a list of the keys it sees."""
    (_, length, heads, size), out = q.shape, np.zeros(q.shape)
    groups = heads // k.shape[2]
    for b, t, n in np.ndindex(*q.shape[:3]):
        ids = None if segment_ids is None else segment_ids[b]
        seen = [s for s in range(length) if sees(t, s, window, ids)]
        scores = np.array([q[b, t, n] @ k[b, s, n // groups] for s in seen]) / np.sqrt(size)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = (weights / weights.sum()) @ v[b, seen, n // groups]
    return out


def random_ids(seed, batch, length):
    """Documents of random lengths and padding at the end."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((batch, length), int)
    for row in ids:
        start, name = 0, 1
        while start < length - 3:
            stop = min(start + int(rng.integers(1, length)), length - 2)
            row[start:stop] = name
            start, name = stop, name + 1
    return ids


@pytest.mark.parametrize("window", [None, 1, 2, 5, 100])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1), (2, 2)])
def test_every_query_attends_to_what_it_sees(window, heads, kv_heads):
    q, k, v = draw(heads, 2, 11, heads, kv_heads, 6)
    narrow = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    assert_close(attend(*narrow, window=window), reference(q, k, v, window))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_documents_do_not_see_each_other(window, seed):
    q, k, v = draw(seed, 3, 13, 4, 2, 6)
    ids = random_ids(seed, 3, 13)
    narrow = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    found = attend(*narrow, window=window, segment_ids=jnp.asarray(ids))
    assert_close(found, reference(q, k, v, window, ids))


@pytest.mark.parametrize("window", [None, 1, 3, 4, 5, 9, 30])
@pytest.mark.parametrize(("length", "block"), [(23, 4), (16, 4), (9, 4), (31, 7), (5, 8)])
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_of_queries_are_equal(length, block, window, packed):
    """Outputs and gradients of the form in blocks."""
    q, k, v = draw(length, 2, length, 4, 2, 6)
    ids = random_ids(length, 2, length) if packed else None
    narrow = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    there = None if ids is None else jnp.asarray(ids)
    blocks = lambda q, k, v: attend_in_blocks(q, k, v, there, window=window, block=block)
    assert_close(blocks(*narrow), reference(q, k, v, window, ids), what="output")

    def dense(q, k, v):
        at = jnp.arange(length)
        mask = at[:, None] >= at[None]
        if window is not None:
            mask = mask & (at[:, None] - at[None] < window)
        mask = jnp.broadcast_to(mask[None], (2, length, length))
        if there is not None:
            mask = mask & (there[:, :, None] == there[:, None, :])
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="xla")

    def loss(form):
        return lambda *inputs: jnp.sum(jnp.sin(form(*inputs)))

    found = jax.jit(jax.grad(loss(blocks), (0, 1, 2)))(*narrow)
    right = jax.jit(jax.grad(loss(dense), (0, 1, 2)))(*narrow)
    for name, a, b in zip("qkv", found, right, strict=True):
        assert_close(a, b, what=name)


@pytest.mark.parametrize("window", [None, 70, 64, 200])
@pytest.mark.parametrize("packed", [False, True])
def test_a_long_row_is_read_in_blocks(window, packed):
    """`attend` itself, with the block of a CPU: rows beyond two blocks, and not a whole number."""
    q, k, v = draw(3, 2, 150, 2, 1, 4)
    ids = random_ids(3, 2, 150) if packed else None
    narrow = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    there = None if ids is None else jnp.asarray(ids)
    found = attend(*narrow, window=window, segment_ids=there)
    assert_close(found, reference(q, k, v, window, ids))


@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("packed", [False, True])
def test_no_square_of_scores(window, packed):
    """Memory of forward and backward grows with T."""

    def temporary(length):
        shapes = [jax.ShapeDtypeStruct((1, length, n, 8), jnp.float32) for n in (4, 2, 2)]
        ids = jnp.ones((1, length), jnp.int32) if packed else None
        loss = lambda *x: jnp.sum(attend(*x, window=window, segment_ids=ids))
        used = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile().memory_analysis()
        assert used is not None
        return used.temp_size_in_bytes

    assert temporary(4096) < 2.2 * temporary(2048)
    assert temporary(4096) < 4 * 4096**2  # bytes of the scores of one head


@pytest.mark.parametrize("window", [None, 1, 64, 300, 700])
@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (3, 3)])
@pytest.mark.parametrize("new", [1, 9])
def test_a_cache_is_read_as_far_as_it_is_filled(window, heads, kv_heads, new):
    """Rows of other lengths in one batch; slots that are not filled yet hold large numbers."""
    starts, room = [0, 300, 697], 1100
    _, k, v = draw(1, 3, room, heads, kv_heads, 8)
    q = draw(2, 3, new, heads, kv_heads, 8)[0]
    for row, start in enumerate(starts):
        k[row, start + new :], v[row, start + new :] = 50, 1e6
    slots = lambda x: jnp.stack([jnp.zeros_like(x), jnp.asarray(x)]).swapaxes(2, 3)
    cache = Cache(*(slots(x.astype(np.float32)) for x in (k, v)))
    positions = jnp.asarray(np.array(starts)[:, None] + np.arange(new))
    y = attend_cached(jnp.asarray(q, jnp.float32), cache, 1, positions, window)
    for row, start in enumerate(starts):
        # the reference wants a query for every key; those before the new ones are not looked at
        full = np.zeros((1, start + new, heads, 8))
        full[0, start:] = q[row]
        some = slice(max(0, start - (window or start)), start + new)
        expected = reference(full[:, some], k[row : row + 1, some], v[row : row + 1, some], window)
        assert_close(y[row], expected[0, -new:])


def test_a_piece_does_not_make_scores_of_all_slots():
    def temporary(room):
        shapes = [(1, 256, 4, 16), (1, 1, 2, room, 16), (1, 1, 2, room, 16), (1, 256)]
        q, k, v, at = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        call = lambda q, k, v, at: attend_cached(q, Cache(k, v), 0, at.astype(int), None)
        used = jax.jit(call).lower(q, k, v, at).compile().memory_analysis()
        return used.temp_size_in_bytes

    assert temporary(16_384) < 1.1 * temporary(2048)


def test_softmax_is_float32_in_bfloat16():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in draw(0, 1, 65, 2, 1, 16))
    wide = reference(*(np.asarray(x, np.float64) for x in (q, k, v)))
    found = attend(q, k, v)
    assert found.dtype == jnp.bfloat16
    assert_close(found, wide, "bfloat16")


class Asked(Exception):
    """Raised in place of the fused kernel."""


@pytest.fixture
def asked(monkeypatch):
    """What attention is asked for; cuDNN itself is not here."""
    calls = []
    real = jax.nn.dot_product_attention

    def spy(*args, **options):
        calls.append(options)
        if options["implementation"] == "cudnn":
            raise Asked
        return real(*args, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    return calls


def test_cudnn_is_asked_for_by_name_and_never_with_a_mask(asked, monkeypatch):
    q, k, v = (jnp.zeros((1, 300, n, 64), jnp.bfloat16) for n in (4, 2, 2))
    with pytest.raises(Asked):
        attend(q, k, v, window=7, kernel="cudnn")
    want = {"is_causal": True, "local_window_size": (6, 0), "implementation": "cudnn"}
    assert asked[-1] == want
    attend(q, k, v)  # no GPU here
    assert asked[-1]["implementation"] == "xla"
    monkeypatch.setattr(attention, "cudnn_can", lambda q: True)
    with pytest.raises(Asked):
        attend(q, k, v)
    assert asked[-1] == {**want, "local_window_size": None}
    attend(q, k, v, segment_ids=jnp.ones((1, 300), int))
    assert asked[-1]["implementation"] == "xla"
    attend(q, k, v, kernel="xla")
    assert asked[-1]["implementation"] == "xla"


def test_cudnn_is_for_the_device_that_is_the_default(monkeypatch):
    """On a machine with a GPU, which is not here, `jax.default_device` may still be its CPU."""
    q, cpu = jnp.zeros((1, 9, 2, 64), jnp.bfloat16), jax.devices("cpu")[0]
    client = SimpleNamespace(platform_version="cuda 12090")
    gpu = SimpleNamespace(platform="gpu", client=client)
    monkeypatch.setattr(jax, "devices", lambda name=None: [cpu if name == "cpu" else gpu])
    assert attention.cudnn_can(q) and not attention.cudnn_can(q.astype(jnp.float32))
    for default in (cpu, "cpu"):
        with jax.default_device(default):
            assert not attention.cudnn_can(q)
    client.platform_version = "rocm 6"
    assert not attention.cudnn_can(q)


def test_cudnn_with_documents_is_refused():
    q, k, v = (jnp.zeros((1, 9, n, 8), jnp.bfloat16) for n in (2, 1, 1))
    with pytest.raises(ConfigError, match="packed row"):
        attend(q, k, v, segment_ids=jnp.ones((1, 9), int), kernel="cudnn")


@pytest.mark.parametrize("norm_eps", [None, 1e-6])
def test_the_layer_is_its_three_parts(norm_eps):
    layer = Attention(
        24, 4, 2, 8, rope=Rope(), norm_eps=norm_eps, window=3, kernel="xla", rngs=nnx.Rngs(0)
    )
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 24)), jnp.float32)
    positions = jnp.broadcast_to(jnp.arange(7)[None], (2, 7))
    q, k, v = layer.qkv(x, positions)
    assert (q.shape, k.shape, v.shape) == ((2, 7, 4, 8), (2, 7, 2, 8), (2, 7, 2, 8))
    heads = np.asarray(x, np.float64) @ np.asarray(layer.v.kernel[...], np.float64)
    assert_close(v, heads.reshape(2, 7, 2, 8))
    sizes = np.linalg.norm(np.asarray(q), axis=-1) / np.sqrt(8)
    assert (norm_eps is None) != np.allclose(sizes, 1, atol=1e-3)  # normed queries have size √h
    mixed = reference(*(np.asarray(y, np.float64) for y in (q, k, v)), window=3)
    right = mixed.reshape(2, 7, 32) @ np.asarray(layer.o.kernel[...], np.float64)
    assert_close(layer(x, positions), right)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 100])
def test_cudnn_agrees_with_xla_on_a_gpu(window):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in draw(0, 2, 513, 4, 2, 64))
    loss = lambda kernel: (
        lambda *x: jnp.sum(jnp.sin(attend(*x, window=window, kernel=kernel).astype(jnp.float32)))
    )
    found = jax.grad(loss("cudnn"), (0, 1, 2))(q, k, v)
    right = jax.grad(loss("xla"), (0, 1, 2))(q, k, v)
    for a, b in zip(found, right, strict=True):
        assert_close(a, b, "bfloat16")
