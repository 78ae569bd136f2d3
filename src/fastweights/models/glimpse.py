"""The multi-level visual attention network of Ba et al. 2016 (arXiv 1610.06258, §4.2, figure 3).

An image is read as 24 glimpses. Fast weights let one network work on two levels: what it was doing
on the whole image is stored while it looks into a quadrant, and recalled when the quadrant is done.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from fastweights.models.glimpse_views import GLIMPSES_PER_QUADRANT, PATCH, glimpses
from fastweights.nn import CellName, FastWeightCell, kernel_start, make_cell, unroll
from fastweights.nn.recurrent import FastCarry
from fastweights.rules import Hebbian
from fastweights.rules.hebbian import Token


@dataclasses.dataclass(frozen=True)
class GlimpseModel:
    """Sizes of the network; the paper's encoder, with 50 features.

    Attributes:
        cell: "fast-weights" reads the image on two levels; every other cell reads 24 steps in a
            row.
        hidden: recurrent units (features in the paper's table).
        embed: size of the first layer on a glimpse.
        expand: size of the layer between it and the recurrence.
        head: ReLU units that read the last activity.
        rule: the fast-weight rule, for cell "fast-weights"; its `lr` = 0 is the control.
    """

    cell: CellName = "fast-weights"
    hidden: int = 50
    embed: int = 50
    expand: int = 100
    head: int = 100
    rule: Hebbian = Hebbian()


class TwoLevelReader(nnx.Module):
    """One quadrant after the other: coarse and stored, four fine glimpses, coarse again and
    recalled.

    With z = W h + C x the slow input, f = ReLU and x_0..x_5 the glimpses of a quadrant:

        h   = f(W h + C x_0), A <- λ A + η h hᵀ, h wiped    (the control signal to store)
        h   = f(W h + C x_i), i = 1..4                      (fine: A neither read nor written)
        h_0 = f(C x_5);  h = f(LN[V h + C x_5 + A h_0])     (V: the integration weights)

    Figure 3 draws this and no equation gives it. Our choices where it is silent: C x_5 stays as the
    boundary condition of the recall, nothing else is written, A decays once per write, and layer
    norm is in the recall only.
    """

    def __init__(self, features: int, hidden: int, rule: Hebbian, *, rngs: nnx.Rngs):
        self.cell = FastWeightCell(features, hidden, rule, rngs=rngs)
        self.integrate = nnx.Linear(
            hidden, hidden, use_bias=False, kernel_init=kernel_start("paper"), rngs=rngs
        )

    def quadrant(self, carry: FastCarry, drives: Array) -> tuple[FastCarry, Array]:
        """Read one quadrant, `drives [6, H]`; carry and output are the recalled activity."""
        coarse, fine, again = drives[0], drives[1:-1], drives[-1]
        fast = self.cell.rule.write(carry.fast, jax.nn.relu(self.cell.boundary(carry.h, coarse)))
        h = jnp.zeros_like(carry.h)
        for drive in fine:
            h = jax.nn.relu(self.cell.boundary(h, drive))
        recall = Token(self.integrate(h) + again, start=jax.nn.relu(again))
        h = self.cell.rule.read(fast, recall)
        return FastCarry(h, fast), h

    def __call__(self, xs: Array) -> Array:
        """Activities after each quadrant: `[24, features]` -> `[4, H]`."""
        drives = self.cell.project(xs)
        quadrants = drives.reshape(-1, GLIMPSES_PER_QUADRANT, drives.shape[-1])
        return jax.lax.scan(self.quadrant, self.cell.initial(len(quadrants)), quadrants)[1]


class GlimpseNet(nnx.Module):
    """Reads an image of 4 x 4 patches glimpse by glimpse, answers with one class."""

    def __init__(self, config: GlimpseModel, classes: int, *, patch: int = PATCH, rngs: nnx.Rngs):
        def linear(features: int, out: int) -> nnx.Linear:
            return nnx.Linear(features, out, kernel_init=kernel_start("paper"), rngs=rngs)

        self.patch = patch
        self.embed = linear(patch * patch, config.embed)
        self.expand = linear(config.embed, config.expand)
        if config.cell == "fast-weights":
            self.reader = TwoLevelReader(config.expand, config.hidden, config.rule, rngs=rngs)
        else:
            self.cell = make_cell(config.cell, config.expand, config.hidden, config.rule, rngs=rngs)
            self.reader = None
        self.head = linear(config.hidden, config.head)
        self.out = linear(config.head, classes)

    def activities(self, xs: Array) -> Array:
        """Recurrent activity after each quadrant or glimpse: `[24, patch²]` -> `[4 or 24, H]`."""
        features = self.expand(jax.nn.relu(self.embed(xs)))
        return unroll(self.cell, features)[1] if self.reader is None else self.reader(features)

    def __call__(self, images: Array) -> Array:
        """Logits: `[B, 4 patch, 4 patch]` uint8 -> `[B, classes]`."""
        last = jax.vmap(self.activities)(glimpses(images, self.patch))[:, -1]
        return self.out(jax.nn.relu(self.head(last)))
