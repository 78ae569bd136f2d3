"""The ConvNet that Ba et al. 2016 (arXiv 1610.06258, §4.2 and 4.3) compare their RNNs with.

Of it the paper says: for MNIST three layers, for faces two, on the same patches as the glimpses (a
receptive field of 7 x 7 and 12 x 12 pixels). The rest is our choice, made so that it looks at an
image in the parts that the glimpses have: no layer overlaps (stride = kernel), `features` channels
and ReLU in each, then a linear map to the logits, which the count of layers leaves out.

    MNIST   28 x 28 -> 7 x 7 patches   -> 4 x 4 -> 2 x 2 patches, a quadrant  -> 2 x 2
                    -> 2 x 2 quadrants -> 1 x 1
    faces   48 x 48 -> 12 x 12 patches -> 4 x 4 -> all of them -> 1 x 1

It sees the 16 fine patches. The coarse views are averages of their pixels, and add nothing.
"""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


@dataclasses.dataclass(frozen=True)
class ConvNetModel:
    """Size of the network.

    Attributes:
        features: channels of every layer; 50, 100 or 200 in the paper's table.
    """

    features: int = 50


def blocks(x: Array, size: int) -> Array:
    """Squares of `size` positions a side: `[B, S, S, C] -> [B, S/size, S/size, size² C]`."""
    batch, side, _, channels = x.shape
    count = side // size
    x = x.reshape(batch, count, size, count, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, count, count, size * size * channels)


class ConvNet(nnx.Module):
    """Convolutions that do not overlap: the same linear map on every square of positions.

    Args:
        config: sizes.
        classes: number of logits.
        patch: side of the first layer's receptive field in pixels.
        merge: side of each further layer's receptive field, in positions of the layer before it.
        rngs: flax's source of random keys.
    """

    def __init__(
        self,
        config: ConvNetModel,
        classes: int,
        *,
        patch: int = 7,
        merge: tuple[int, ...] = (2, 2),
        rngs: nnx.Rngs,
    ):
        self.sizes = (patch, *merge)
        channels = (1,) + len(self.sizes) * (config.features,)
        he = nnx.initializers.he_normal()
        self.layers = nnx.List(
            nnx.Linear(size * size * before, after, kernel_init=he, rngs=rngs)
            for size, before, after in zip(self.sizes, channels, channels[1:], strict=False)
        )
        self.out = nnx.Linear(config.features, classes, rngs=rngs)

    def maps(self, images: Array) -> list[Array]:
        """What each layer puts out: uint8 `[B, S, S]` -> `[B, S/patch, S/patch, F]`, ..."""
        side = math.prod(self.sizes)
        chex.assert_shape(images, (None, side, side))
        x, maps = images[..., None].astype(jnp.float32) / 255, []
        for size, layer in zip(self.sizes, self.layers, strict=True):
            x = jax.nn.relu(layer(blocks(x, size)))
            maps.append(x)
        return maps

    def __call__(self, images: Array) -> Array:
        """Logits: uint8 `[B, S, S]`, S = patch · the product of merge -> `[B, classes]`."""
        return self.out(self.maps(images)[-1][:, 0, 0])
