"""The depthwise convolution beside loops in float64, and products of inference beside sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from fastweights.nn.parts import depthwise, for_inference, linear, same_document, summed_in_float32
from fastweights.nn.short_conv import short_conv


def loops(x, kernel, seen, taps, behind, dy):
    """Outputs and gradients to x and kernel, term by term in float64."""
    x, kernel, dy = (np.asarray(a, np.float64) for a in (x, kernel, dy))
    y, dx, dk = np.zeros_like(x), np.zeros_like(x), np.zeros_like(kernel)
    for b, t, tap in np.ndindex(*x.shape[:2], kernel.shape[1]):
        other = t - behind + tap
        if tap not in taps or not 0 <= other < x.shape[1] or not seen[tap][b, t]:
            continue
        y[b, t] += kernel[:, tap] * x[b, other]
        dx[b, other] += kernel[:, tap] * dy[b, t]
        dk[:, tap] += x[b, other] * dy[b, t]
    return y, dx, dk


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 37, 128, 301])  # 301 is blocks of 128 and a part
@pytest.mark.parametrize("taps, behind", [((0, 1, 2, 3), 3), ((0, 1, 2, 3, 4), 2), ((2, 4), 2)])
def test_outputs_and_gradients_are_those_of_loops(rows, length, taps, behind):
    rng = np.random.default_rng([rows, length, behind])
    width, channels = max(taps) + 1, 5
    x, dy = (rng.normal(size=(rows, length, channels)).astype(np.float32) for _ in range(2))
    kernel = rng.normal(size=(channels, width)).astype(np.float32)
    ids = np.sort(rng.integers(0, 4, (rows, length)), 1)
    seen = np.asarray(same_document(jnp.asarray(ids), width, behind))
    expected = loops(x, kernel, seen, taps, behind, dy)
    y, back = jax.vjp(lambda x, k: depthwise(x, k, jnp.asarray(seen), taps, behind), x, kernel)
    for actual, right in zip((y, *back(dy)), expected, strict=True):
        assert_close(actual, right)


def test_one_mask_for_all_rows():
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(size=(2, 150, 3)).astype(np.float32) for _ in range(2))
    kernel = rng.normal(size=(3, 4)).astype(np.float32)
    seen = rng.random((4, 1, 150)) < 0.5
    everywhere = np.broadcast_to(seen, (4, 2, 150))
    expected = loops(x, kernel, everywhere, (0, 1, 2, 3), 3, dy)
    run = lambda x, k: depthwise(x, k, jnp.asarray(seen), (0, 1, 2, 3), 3)
    y, back = jax.vjp(run, x, kernel)
    for actual, right in zip((y, *back(dy)), expected, strict=True):
        assert_close(actual, right)


def test_bfloat16_inputs_are_summed_in_float32():
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(2, 400, 3)), jnp.bfloat16) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    seen = np.ones((4, 2, 400), bool)
    expected = loops(x, kernel, seen, (0, 1, 2, 3), 3, dy)
    y, back = jax.vjp(lambda x, k: depthwise(x, k, jnp.asarray(seen), (0, 1, 2, 3), 3), x, kernel)
    dx, dk = back(dy)
    assert y.dtype == dx.dtype == jnp.bfloat16 and dk.dtype == jnp.float32
    assert_close(y, expected[0], "bfloat16")
    assert_close(dx, expected[1], "bfloat16")
    assert_close(dk, expected[2])


def test_a_tail_is_the_inputs_before():
    """A sequence in two pieces, the second with the end of the first as its tail."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 20, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 4)).astype(np.float32)
    whole = short_conv(jnp.asarray(x), jnp.asarray(kernel))
    for cut in (3, 8, 19):
        last = short_conv(
            jnp.asarray(x[:, cut:]), jnp.asarray(kernel), jnp.asarray(x[:, cut - 3 : cut])
        )
        assert_close(last, whole[:, cut:])


def test_rows_on_devices_add_up_their_gradient_once():
    """Several blocks of tokens, rows over four devices: one sum over devices, not one a block."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((8, 512, 3), jnp.float32, sharding=rows)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    kernel = jax.ShapeDtypeStruct((3, 4), jnp.float32, sharding=everywhere)
    slope = jax.jit(jax.grad(lambda k, x: jnp.sum(jnp.sin(short_conv(x, k)))))
    text = slope.lower(kernel, x).compile().as_text()
    loops = [part for part in text.split("\n\n") if "all-reduce" in part]
    assert len(loops) == 1 and loops[0].lstrip().startswith("ENTRY")


@pytest.mark.parametrize("shape", [(40,), (1, 40), (3, 40), (2, 1, 40)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_summed_in_float32(dtype, axis, shape):
    """Also of one row of bfloat16, which a CPU multiplies twice."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], shape, dtype)
    kernel = jax.random.normal(keys[1], (40, 24) if axis == 0 else (24, 40), dtype)
    wide = np.asarray(kernel, np.float64)
    found = jax.jit(summed_in_float32, static_argnums=2)(x, kernel, axis)
    assert found.dtype == jnp.float32
    assert_close(found, np.asarray(x, np.float64) @ (wide if axis == 0 else wide.T))


def test_a_layer_for_inference_rounds_its_product_once():
    bf16 = jnp.bfloat16
    layer = linear(40, 24, initializer_range=1.0, dtype=bf16, param_dtype=bf16, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 1, 40), bf16)
    wanted = np.asarray(x, np.float64) @ np.asarray(layer.kernel[...], np.float64)
    found = jax.jit(lambda layer, x: for_inference(layer)(x))(layer, x)
    assert found.dtype == bf16
    # half a unit in the last of 8 bits, of the smallest number with that unit
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=1.001 * 2**-8)
