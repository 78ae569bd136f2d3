"""The ConvNet baseline against real convolutions; what each position sees; its size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from fastweights.models.convnet import ConvNet, ConvNetModel
from fastweights.models.glimpse_views import glimpses

DIGITS = {"classes": 10, "patch": 7, "merge": (2, 2)}
FACES = {"classes": 6, "patch": 12, "merge": (4,)}


def images(side=28, count=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), np.uint8)


def made(features=6, seed=1, **kinds):
    """A net whose every weight and bias is away from its start."""
    net = ConvNet(ConvNetModel(features), **kinds, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), net)


@pytest.mark.parametrize("kinds", [DIGITS, FACES], ids=["digits", "faces"])
def test_equals_a_chain_of_convolutions(kinds):
    net, batch = made(**kinds), images(28 if kinds is DIGITS else 48)
    x = batch[..., None].astype(np.float32) / 255
    for size, layer in zip((kinds["patch"], *kinds["merge"]), net.layers, strict=True):
        kernel = layer.kernel[...].reshape(size, size, x.shape[-1], -1)
        x = jax.lax.conv_general_dilated(
            x, kernel, (size, size), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = np.maximum(x + np.asarray(layer.bias[...])[None, None, None], 0)
    assert x.shape == (3, 1, 1, 6)
    expected = x[:, 0, 0] @ net.out.kernel[...] + net.out.bias[...][None]
    logits = jax.jit(lambda net, batch: net(batch))(net, batch)
    assert logits.shape == (3, kinds["classes"])
    assert_close(logits, expected)


@pytest.mark.parametrize("kinds,side", [(DIGITS, 28), (FACES, 48)], ids=["digits", "faces"])
def test_a_position_of_the_first_layer_sees_its_patch_and_nothing_else(kinds, side):
    net, patch = made(**kinds), kinds["patch"]
    first = jax.jit(lambda batch: net.maps(batch)[0])
    before = images(side, 1)
    for row, column in [(0, 0), (1, 2), (3, 3)]:
        after = before.copy()
        after[0, row * patch + patch - 1, column * patch] ^= 255  # a corner of the patch
        changed = np.abs(first(after) - first(before)).max(axis=-1)[0] > 0
        expected = np.zeros((4, 4), bool)
        expected[row, column] = True
        np.testing.assert_array_equal(changed, expected)


def test_patches_are_those_of_the_glimpses_and_share_their_weights():
    """The first layer is one linear map on each of the sixteen fine glimpses."""
    net, batch = made(**DIGITS), images()
    fine = np.float64(glimpses(batch)).reshape(3, 2, 2, 6, 49)[:, :, :, 1:5]
    fine = fine.reshape(3, 2, 2, 2, 2, 49).transpose(0, 1, 3, 2, 4, 5).reshape(3, 4, 4, 49)
    layer = net.layers[0]
    expected = np.maximum(fine @ np.float64(layer.kernel[...]) + np.float64(layer.bias[...]), 0)
    assert_close(net.maps(batch)[0], expected)


def test_swapped_quadrants_are_swapped_in_the_second_layer():
    net, batch = made(**DIGITS), images()
    swapped = np.roll(batch, 14, axis=2)
    there, here = np.asarray(net.maps(swapped)[1]), np.asarray(net.maps(batch)[1])
    np.testing.assert_array_equal(there, here[:, :, ::-1])
    assert not np.array_equal(there, here)
    assert not np.allclose(net(swapped), net(batch))  # the last layer knows where they are


@pytest.mark.parametrize("features,count", [(50, 23_110), (100, 86_210), (200, 332_410)])
def test_number_of_parameters(features, count):
    """49F + F, twice 4F² + F, and 10F + 10."""
    net = ConvNet(ConvNetModel(features), 10, rngs=nnx.Rngs(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(net)) == count


def test_every_weight_gets_a_gradient():
    net = ConvNet(ConvNetModel(12), 10, rngs=nnx.Rngs(0))
    grads = jax.jit(jax.grad(lambda net, x: jnp.sum(jnp.sin(net(x)))))(net, images(count=32))
    for path, leaf in jax.tree.leaves_with_path(grads):
        assert np.abs(np.asarray(leaf)).max() > 0, jax.tree_util.keystr(path)


def test_an_image_of_another_size():
    with pytest.raises(AssertionError, match="28"):
        made(**DIGITS)(images(27))
