"""The in-place MLP: the start that changes nothing, who sees whom, its options, its pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from fastweights.errors import ConfigError
from fastweights.nn.in_place import InPlaceMLP, InPlaceTTT
from fastweights.nn.parts import MLP

B, T, D, F, C = 2, 19, 8, 12, 4


def layer(seed=0, dtype=jnp.float32, trained=True, hidden=D, intermediate=F, **ttt):
    """A layer as trained: the convolution and the projection have left their start."""
    how = InPlaceTTT(**({"chunk": C, "lr": 0.7} | ttt))
    mlp = InPlaceMLP(
        hidden, intermediate, how, initializer_range=0.5, dtype=dtype, rngs=nnx.Rngs(seed)
    )
    keys = jax.random.split(jax.random.key(seed + 100), 2)
    if trained and how.conv:
        mlp.conv[...] = jax.random.normal(keys[0], mlp.conv.shape)
    if trained and how.proj:
        mlp.proj[...] = jax.random.normal(keys[1], mlp.proj.shape)
    return mlp


def inputs(seed=0, shape=(B, T, D)):
    return jax.random.normal(jax.random.key(seed), (2, *shape))


call = jax.jit(lambda mlp, x, t, ids=None: mlp(x, t, ids))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("sizes", [(32, 48, 100, 16), (64, 176, 77, 7), (128, 512, 512, 128)])
def test_at_its_start_it_is_the_plain_mlp_to_the_bit(sizes, dtype):
    """Chunk by chunk, packed or not, the same numbers; and it says that nothing has drifted."""
    hidden, intermediate, length, chunk = sizes
    how = InPlaceTTT(chunk=chunk, lr=3.0)
    ours = InPlaceMLP(hidden, intermediate, how, dtype=dtype, rngs=nnx.Rngs(0))
    plain = MLP(hidden, intermediate, dtype=dtype, rngs=nnx.Rngs(0))
    x, _ = inputs(1, (2, length, hidden))
    expected = jax.jit(lambda mlp, x: mlp(x))(plain, x)
    ids = (jnp.arange(length)[None, :] > jnp.asarray([length // 3, length // 2])[:, None]) + 1
    for segments in (None, ids):
        y, stats = jax.jit(lambda m, x, s: m(x, x, s, return_stats=True))(ours, x, segments)
        np.testing.assert_array_equal(y, expected)
        assert y.dtype == expected.dtype and stats["drift"] == 0.0


def test_up_to_one_chunk_is_the_plain_mlp_whatever_was_trained():
    mlp = layer(chunk=T)
    x, t = inputs()
    np.testing.assert_array_equal(call(mlp, x, t), jax.jit(lambda m, x: MLP.__call__(m, x))(mlp, x))


def test_start():
    """Convolution 0, projection a random diagonal, the rest the plain MLP of the same seed."""
    how = InPlaceTTT(chunk=C)
    mlp = InPlaceMLP(64, 32, how, initializer_range=0.02, rngs=nnx.Rngs(3))
    plain = MLP(64, 32, initializer_range=0.02, rngs=nnx.Rngs(3))
    assert mlp.conv.shape == (64, 5) and not mlp.conv[...].any()
    proj = np.asarray(mlp.proj[...])
    assert not (proj - np.diag(np.diag(proj))).any()
    assert 0.014 < np.diag(proj).std() < 0.026
    for name in ("gate", "up", "down"):
        np.testing.assert_array_equal(
            getattr(mlp, name).kernel[...], getattr(plain, name).kernel[...]
        )


def test_the_convolution_learns_first():
    """At the start the projection's gradient is exactly 0 and the convolution's is not."""
    x, t = inputs()
    slope = jax.jit(jax.grad(lambda mlp: jnp.sum(jnp.sin(mlp(x, t)))))
    grads = slope(layer(trained=False))
    assert grads.conv[...].all() and not grads.proj[...].any()
    grads = slope(layer())
    assert grads.conv[...].all() and grads.proj[...].all()


@pytest.mark.parametrize("at", [0, 5, 7, 8, 18])
def test_a_token_changes_no_output_but_its_own_and_those_of_later_chunks(at):
    """To the bit; the convolution looks two tokens on, but what it sees is written later."""
    mlp = layer()
    x, t = inputs()
    before = call(mlp, x, t)
    after = call(mlp, x.at[0, at].add(1.0), t.at[0, at].add(1.0))
    changed = np.flatnonzero((np.asarray(before) != np.asarray(after))[0].any(-1))
    assert changed.tolist() == [at, *range((at // C + 1) * C, T)]
    np.testing.assert_array_equal(after[1], before[1])  # the other row


def test_what_a_chunk_writes_does_not_depend_on_the_next_chunk():
    mlp = layer()
    _, t = inputs()
    v = mlp.targets(t)
    np.testing.assert_array_equal(mlp.targets(t.at[:, C:].add(1.0))[:, :C], v[:, :C])
    np.testing.assert_array_equal(mlp.targets(t.at[:, :C].add(1.0))[:, C:], v[:, C:])


def test_documents_do_not_see_each_other_and_padding_does_not_write():
    """To the bit, with borders inside of chunks and at them."""
    mlp = layer()
    x, t = inputs()
    ids = jnp.asarray([[1] * 6 + [2] * 9 + [0] * 4, [0, 0] + [3] * 6 + [7] * 11])
    y = call(mlp, x, t, ids)
    for document in (0, 1, 2, 3, 7):
        own = np.asarray(ids == document)
        other = call(mlp, *(jnp.where(own[:, :, None], a + 1.0, a) for a in (x, t)), ids)
        np.testing.assert_array_equal(np.asarray(other)[~own], np.asarray(y)[~own])
        assert (np.asarray(other)[own] != np.asarray(y)[own]).all(-1).all()
    # what does a document write to itself: the second of each row has whole chunks behind it
    silent = layer()
    silent.conv[...] = jnp.zeros_like(silent.conv[...])  # the same program, writing zeros
    moved = np.asarray(y != call(silent, x, t, ids)).any(-1)
    np.testing.assert_array_equal(
        moved, [[False] * 4 + [True] * 2 + [False] * 2 + [True] * 7 + [False] * 4,
                [False] * 4 + [True] * 4 + [False] * 4 + [True] * 7]
    )  # fmt: skip


def test_a_document_that_starts_with_a_chunk_is_what_it_is_alone():
    mlp = layer()
    x, t = inputs()
    ids = jnp.asarray([[1] * 8 + [2] * 11] * 2)
    y = call(mlp, x, t, ids)
    assert_close(y[:, :8], call(mlp, x[:, :8], t[:, :8]))
    assert_close(y[:, 8:], call(mlp, x[:, 8:], t[:, 8:]))
    assert_close(call(mlp, x, t, jnp.ones((B, T), int)), call(mlp, x, t))


def shifted_sum(t, kernel, taps, ids):
    """conv(T) in a NumPy loop: taps k - 2 places on, in the token's own chunk and document."""
    v = np.zeros(t.shape)
    for b in range(t.shape[0]):
        for i in range(t.shape[1]):
            for k in taps:
                j = i + k - 2
                if 0 <= j < t.shape[1] and j // C == i // C and ids[b, j] == ids[b, i]:
                    v[b, i] += kernel[:, k] * t[b, j]
    return v


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "options,taps",
    [
        ({}, range(5)),
        ({"window": "forward"}, (2, 3, 4)),
        ({"window": "reconstruction"}, (2,)),
        ({"proj": False}, range(5)),
        ({"conv": False}, None),
        ({"conv": False, "proj": False}, None),
    ],
)
def test_targets_are_a_convolution_times_the_projection(options, taps, packed):
    """Every option against NumPy; taps a window has not have no gradient."""
    mlp = layer(**options)
    t = inputs()[1]
    ids = jnp.asarray([[1] * 6 + [2] * 9 + [0] * 4, [3] * 6 + [7] * 13])
    seen = np.asarray(ids) if packed else np.ones((B, T))
    v = mlp.targets(t, ids if packed else None)
    expected = np.asarray(t, np.float64)
    if taps is not None:
        kernel = np.asarray(mlp.conv[...], np.float64)
        expected = shifted_sum(expected, kernel, taps, seen)
        grad = jax.grad(lambda m: jnp.sum(jnp.sin(m.targets(t))))(mlp).conv[...]
        assert np.flatnonzero(np.asarray(grad).any(0)).tolist() == list(taps)
    assert hasattr(mlp, "conv") == mlp.ttt.conv and hasattr(mlp, "proj") == mlp.ttt.proj
    if mlp.ttt.proj:
        expected = expected @ np.asarray(mlp.proj[...], np.float64)
    assert_close(v, expected)


@pytest.mark.parametrize("clip", [{}, {"clip": 0.5}, {"clip": 0.05, "clip_relative": True}])
def test_a_chunk_at_a_time_is_the_whole(clip):
    """`hidden`, `targets`, `apply` and `update`, as inference uses them, on every whole chunk."""
    mlp = layer(**clip)
    x, t = inputs()
    expected = call(mlp, x, t)
    assert np.abs(expected - call(layer(lr=0.0), x, t)).max() > 0.1
    for row in range(B):
        weights, ys = mlp.down.kernel[...].T, []
        for first in range(0, T, C):
            z = mlp.hidden(x[row, first : first + C])
            ys.append(mlp.apply(weights, z))
            if first + C <= T:
                v = mlp.targets(t[row : row + 1, first : first + C])[0]
                weights = mlp.update(weights, z, v)
        assert_close(jnp.concatenate(ys), expected[row])


def test_an_update_is_a_product_over_the_chunk():
    mlp = layer()
    x, t = inputs()
    z, v, W = mlp.hidden(x[0, :C]), mlp.targets(t[:, :C])[0], mlp.down.kernel[...].T
    np.testing.assert_array_equal(mlp.update(W, z, jnp.zeros_like(v)), W)
    z64, v64 = (np.asarray(a, np.float64) for a in (z, v))
    assert_close(mlp.update(W, z, v), W + 0.7 * v64.T @ z64)


def test_bfloat16_is_close_to_float32_and_returns_its_own():
    low, high = layer(dtype=jnp.bfloat16, lr=0.05), layer(lr=0.05)
    x, t = inputs()
    y = call(low, x, t)
    assert y.dtype == jnp.bfloat16
    assert_close(y, call(high, x, t), "bfloat16")
    grads = jax.jit(jax.grad(lambda m: jnp.sum(m(x, t).astype(jnp.float32))))(low)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}


def test_drift_is_how_far_outputs_have_moved():
    mlp = layer()
    x, t = inputs()
    ids = jnp.asarray([[1] * T, [1] * 11 + [0] * 8])
    y, stats = mlp(x, t, ids, return_stats=True)
    slow = np.asarray(MLP.__call__(mlp, x), np.float64)
    ratio = np.linalg.norm(np.asarray(y) - slow, axis=-1) / np.linalg.norm(slow, axis=-1)
    assert float(stats["drift"]) == pytest.approx(ratio[np.asarray(ids) > 0].mean(), rel=1e-5)
    assert stats["drift"].dtype == jnp.float32 and stats["drift"] > 0.1


def test_a_window_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="no window 'causal'"):
        layer(window="causal")


def induction(seed, window, n=24, chunk=8):
    """How much each token's logit rises where a key comes back: `[n]`, and what it should be.

    Keys are one-hot, so that a token's hidden activity meets no other token's; embeddings are
    orthonormal. A key and its value are neighbours in the first chunk and the key is read again in
    the third, among tokens that are all different.
    """
    rng = np.random.default_rng(seed)
    how = InPlaceTTT(chunk=chunk, lr=0.7, target="input_embed", window=window)
    mlp = InPlaceMLP(n, n, how, initializer_range=0.02, rngs=nnx.Rngs(seed))
    mlp.gate.kernel[...] = 2.0 * jnp.eye(n)
    mlp.up.kernel[...] = jnp.eye(n)
    mlp.proj[...] = jnp.eye(n)
    mlp.conv[...] = jnp.zeros((n, 5)).at[:, 3].set(1.0).at[:, 2].set(window == "reconstruction")
    tokens = rng.permutation(n)
    place = rng.integers(0, chunk - 1)
    key, value = tokens[place], tokens[place + 1]
    tokens = np.concatenate([tokens[: 2 * chunk], [tokens[-1], key]])
    embedding = jnp.asarray(np.linalg.qr(rng.normal(size=(n, n)))[0], jnp.float32)
    x = jnp.eye(n)[tokens][None]
    y = mlp(x, embedding[tokens][None])
    rise = ((y - MLP.__call__(mlp, x)) @ embedding.T)[0, -1]
    size = float(jax.nn.silu(2.0)) ** 2  # of z at the key, with itself
    return np.asarray(rise), key, value, 0.7 * size


@pytest.mark.parametrize("seed", range(4))
def test_induction_head_theorem(seed):
    """Theorem 1 of the paper with ε = 0: the next token's logit rises by η c_norm² c_align.

    Written with the token itself instead, the value's logit does not move, and the key's does.
    """
    rise, key, value, expected = induction(seed, "centred")
    assert rise[value] == pytest.approx(expected, rel=1e-4)
    assert np.abs(np.delete(rise, value)).max() < 1e-5 * expected
    rise, key, value, expected = induction(seed, "reconstruction")
    assert abs(rise[value]) < 1e-5 * expected
    assert rise[key] == pytest.approx(expected, rel=1e-4)
