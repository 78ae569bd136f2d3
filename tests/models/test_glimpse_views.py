import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastweights.models.glimpse_views import GLIMPSES, glimpses


def one_by_one(image: np.ndarray, p: int = 7) -> list[list[float]]:
    """The glimpses of one image as lists, pixel by pixel, from the description in the paper."""
    views = []
    for top, left in [(0, 0), (0, 2 * p), (2 * p, 0), (2 * p, 2 * p)]:
        coarse = []
        for i in range(p):
            for j in range(p):
                y, x = top + 2 * i, left + 2 * j
                four = [image[y, x], image[y, x + 1], image[y + 1, x], image[y + 1, x + 1]]
                coarse.append(sum(map(int, four)) / 4 / 255)
        views.append(coarse)
        for y, x in [(top, left), (top, left + p), (top + p, left), (top + p, left + p)]:
            views.append([int(image[y + i, x + j]) / 255 for i in range(p) for j in range(p)])
        views.append(coarse)
    return views


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)


def test_equals_a_slow_loop(images):
    expected = np.array([one_by_one(image) for image in images])
    assert expected.shape == (5, GLIMPSES, 49) == (5, 24, 49)
    got = glimpses(images)
    assert isinstance(got, np.ndarray) and got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("patch", [12, 3])
def test_another_size_of_patch(patch):
    """Faces: 48 x 48 in 24 patches of 12 x 12."""
    images = np.random.default_rng(1).integers(0, 256, (2, 4 * patch, 4 * patch), np.uint8)
    expected = np.array([one_by_one(image, patch) for image in images])
    assert expected.shape == (2, 24, patch * patch)
    np.testing.assert_allclose(glimpses(images, patch=patch), expected, rtol=1e-6)
    with pytest.raises(AssertionError, match="28"):
        glimpses(images)


def test_the_image_can_be_put_together_again(images):
    views = np.rint(255 * glimpses(images)).astype(np.uint8).reshape(5, 2, 2, 6, 7, 7)
    back = np.zeros_like(images)
    for qy in range(2):
        for qx in range(2):
            for py in range(2):
                for px in range(2):
                    y, x = 14 * qy + 7 * py, 14 * qx + 7 * px
                    back[:, y : y + 7, x : x + 7] = views[:, qy, qx, 1 + 2 * py + px]
    np.testing.assert_array_equal(back, images)


def test_in_jax_and_under_jit(images):
    for function in (glimpses, jax.jit(glimpses)):
        got = function(jnp.asarray(images))
        assert isinstance(got, jax.Array) and got.dtype == jnp.float32
        np.testing.assert_allclose(got, glimpses(images), rtol=1e-6)


def test_range_and_an_empty_batch():
    white = np.full((1, 28, 28), 255, np.uint8)  # four of these overflow a byte
    np.testing.assert_array_equal(glimpses(white), np.ones((1, 24, 49)))
    np.testing.assert_array_equal(glimpses(0 * white), np.zeros((1, 24, 49)))
    assert glimpses(white[:0]).shape == (0, 24, 49)
