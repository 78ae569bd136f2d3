import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads
from tolerances import assert_close

from fastweights.nn.cross_entropy import token_losses


def example(seed, shape, features, vocab, dtype=jnp.float32):
    x, kernel, target, gone, weight = jax.random.split(jax.random.key(seed), 5)
    targets = jax.random.randint(target, shape, 0, vocab)
    targets = jnp.where(jax.random.bernoulli(gone, 0.2, shape), -1, targets)
    return (
        jax.random.normal(x, (*shape, features)).astype(dtype),
        jax.random.normal(kernel, (features, vocab)),
        targets,
        jax.random.normal(weight, shape),
    )


def full(x, kernel, targets):
    """The oracle: optax on all logits at once."""
    losses = optax.softmax_cross_entropy_with_integer_labels(
        jnp.einsum("...d,dv->...v", x, kernel), jnp.maximum(targets, 0)
    )
    return jnp.where(targets >= 0, losses, 0.0)


@pytest.mark.parametrize(
    "shape, block, seed",
    [((13,), 1, 0), ((2, 13), 5, 1), ((2, 13), 13, 2), ((3, 12), 4, 3), ((2, 3, 13), 100, 4)],
)
def test_losses_and_gradients_are_those_of_the_full_logits(shape, block, seed):
    x, kernel, targets, weight = example(seed, shape, 7, 19)

    def outcome(losses):
        def value(x, kernel):
            found = losses(x, kernel)
            return jnp.sum(found * weight), found

        return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(x, kernel)

    (_, expected), grads = outcome(lambda x, k: full(x, k, targets))
    (_, actual), ours = outcome(lambda x, k: token_losses(x, k, targets, block=block))
    assert actual.dtype == jnp.float32
    assert_close(actual, expected)
    for name, a, e in zip(("features", "kernel"), ours, grads, strict=True):
        assert_close(a, e, what=name)
    # the embedding of a tied model is the same kernel, lying the other way round
    (_, tied), (dx, de) = outcome(
        lambda x, k: token_losses(x, k.T, targets, block=block, vocab_first=True)
    )
    assert_close(tied, expected)
    assert_close(dx, grads[0])
    assert_close(de, grads[1])


def test_a_float64_numpy_loop_agrees():
    x, kernel, targets, _ = example(0, (2, 5), 3, 11)
    actual = token_losses(x, kernel, targets, block=2)
    for b in range(2):
        for t in range(5):
            logits = np.float64(x[b, t]) @ np.float64(kernel)
            expected = np.log(np.exp(logits).sum()) - logits[targets[b, t]]
            assert_close(actual[b, t], expected if targets[b, t] >= 0 else 0.0)


def test_finite_differences_agree():
    with jax.enable_x64(True):
        x, kernel, targets, weight = jax.tree.map(
            lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a,
            example(1, (2, 5), 3, 11),
        )
        value = lambda x, k: jnp.sum(weight * token_losses(x, k, targets, block=2))
        check_grads(jax.jit(value), (x, kernel), 1, ("rev",), atol=1e-6, rtol=1e-6)


def test_without_a_target_there_is_no_loss_and_no_gradient():
    x, kernel, targets, _ = example(2, (9,), 4, 6)
    gone = jnp.full_like(targets, -1)
    value = lambda x, k, t: jnp.sum(token_losses(x, k, t, block=4))
    loss, grads = jax.jit(jax.value_and_grad(value, (0, 1)))(x, kernel, gone)
    assert loss == 0 and not any(g.any() for g in grads)
    some = jnp.where(jnp.arange(9) == 3, 2, -1)
    dx = jax.jit(jax.grad(value))(x, kernel, some)
    np.testing.assert_array_equal(dx.any(-1), jnp.arange(9) == 3)


@pytest.mark.parametrize("beyond", [6, 7, 200])
def test_a_target_beyond_the_vocabulary_shows_in_its_loss_and_in_no_other(beyond):
    x, kernel, targets, weight = example(2, (9,), 4, 6)
    bad = targets.at[3].set(beyond)
    losses = token_losses(x, kernel, bad, block=4)
    others = np.arange(9) != 3
    assert np.isnan(losses[3])
    assert_close(losses[others], full(x, kernel, targets)[others])
    dx = jax.grad(lambda x: jnp.sum(weight * token_losses(x, kernel, bad, block=4)))(x)
    right = jax.grad(lambda x: jnp.sum(weight * full(x, kernel, targets)))(x)
    assert_close(dx[others], right[others])


def test_targets_may_be_bytes_of_a_larger_vocabulary():
    """Of 300: as a byte, 300 is 44."""
    x, kernel, targets, _ = example(5, (9,), 4, 300)
    for dtype in (jnp.uint8, jnp.int8):
        some = targets.at[0].set(44).clip(0, 127)
        assert_close(token_losses(x, kernel, some.astype(dtype)), full(x, kernel, some))


def test_huge_logits_stay_finite():
    x, kernel, targets, _ = example(3, (9,), 4, 6)
    value = lambda x: jnp.sum(token_losses(x, kernel, targets, block=4))
    loss, grad = jax.jit(jax.value_and_grad(value))(1e4 * x)
    assert jnp.isfinite(loss) and jnp.isfinite(grad).all()


def test_bfloat16_features_give_float32_losses_and_a_float32_sum_of_gradients():
    x, kernel, targets, weight = example(4, (4, 64), 16, 32, jnp.bfloat16)
    value = lambda losses: jax.jit(
        jax.value_and_grad(lambda x, k: jnp.sum(weight * losses(x, k, targets)), (0, 1))
    )
    loss, (dx, dk) = value(lambda *a: token_losses(*a, block=4))(x, kernel)
    rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    expected, (_, expected_dk) = value(full)(x.astype(jnp.float32), rounded)
    assert dx.dtype == jnp.bfloat16 and dk.dtype == jnp.float32
    assert_close(loss, expected, "float32")  # products of bfloat16 are exact in float32
    assert_close(dk, expected_dk, "bfloat16")


LENGTH, VOCAB, FEATURES = 4096, 8192, 32


def temp_bytes(losses):
    x = jax.ShapeDtypeStruct((1, LENGTH, FEATURES), jnp.float32)
    kernel = jax.ShapeDtypeStruct((FEATURES, VOCAB), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    step = jax.value_and_grad(lambda x, k, t: jnp.sum(losses(x, k, t)), (0, 1))
    return jax.jit(step).lower(x, kernel, targets).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_that_of_a_block_not_of_all_logits():
    logits = LENGTH * VOCAB * 4
    assert temp_bytes(full) > 0.9 * logits  # what is avoided is there to be avoided
    for block in (64, 256):
        # one block of logits and one of its errors, and small change for features and kernel
        assert temp_bytes(lambda *a, b=block: token_losses(*a, block=b)) < logits * (
            2.5 * block / LENGTH + 0.05
        )


@pytest.mark.parametrize("axes", [("data", None), ("data", "tensor")])
def test_on_a_mesh_a_batch_stays_where_it_is(axes):
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    x, kernel, targets, weight = example(5, (8, 12), 6, 16)
    value = lambda x, k, t: jnp.sum(weight * token_losses(x, k, t, block=5))
    step = jax.jit(jax.value_and_grad(value, (0, 1)))
    expected = step(x, kernel, targets)
    placed = place(x, axes[0]), place(kernel, None, axes[1]), place(targets, axes[0])
    actual = step(*placed)
    assert_close(actual[0], expected[0])
    assert_close(actual[1][0], expected[1][0])
    assert_close(actual[1][1], expected[1][1])
    assert "all-gather" not in step.lower(*placed).compile().as_text()


def test_shapes_that_do_not_fit_are_named():
    x, kernel, targets, _ = example(6, (9,), 4, 6)
    with pytest.raises(ValueError, match=r"\(9, 4\) do not go with targets \(8,\)"):
        token_losses(x, kernel, targets[1:])
    with pytest.raises(ValueError, match=r"do not go with a kernel \(4, 6\)"):
        token_losses(x, kernel, targets, vocab_first=True)
