"""The network that plays Catch (Ba et al. 2016, arXiv 1610.06258, §4.4 and appendix A.3).

pixels -> 128 ReLU -> 128 recurrent units -> a softmax over three actions, and one linear value.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jax import Array

from fastweights.nn import CellName, Start, kernel_start, make_cell
from fastweights.rules import Hebbian, Rule

#: lit pixels of a screen that is not blank: the ball and the paddle's two
LIT = 3


@dataclasses.dataclass(frozen=True)
class CatchModel:
    """Sizes of the network; the defaults are the paper's.

    Attributes:
        cell: the recurrent layer.
        hidden: recurrent units.
        features: ReLU units between pixels and recurrence.
        rule: the fast-weight rule, for cell "fast-weights".
        start: initial weights, the paper's or of unit variance.
    """

    cell: CellName = "fast-weights"
    hidden: int = 128
    features: int = 128
    rule: Rule = Hebbian()
    start: Start = "unit"


class CatchNet(nnx.Module):
    """Sees one screen at a time; answers with action logits and the value of the game.

    Policy and value start at zero, so that an untrained net plays at random. Of a screen's pixels
    three are lit, so with start "unit" the weights of a pixel have variance 1/3.

    Args:
        config: sizes.
        size: N, the screen is N x N.
        actions: number of actions.
        rngs: flax's source of random keys.
    """

    def __init__(self, config: CatchModel, size: int, actions: int, *, rngs: nnx.Rngs):
        unit = nnx.initializers.normal(LIT**-0.5)
        pixels = unit if config.start == "unit" else kernel_start(config.start)
        self.see = nnx.Linear(size * size, config.features, kernel_init=pixels, rngs=rngs)
        self.cell = make_cell(
            config.cell, config.features, config.hidden, config.rule, start=config.start, rngs=rngs
        )
        zeros = nnx.initializers.zeros_init()
        self.policy = nnx.Linear(config.hidden, actions, kernel_init=zeros, rngs=rngs)
        self.value = nnx.Linear(config.hidden, 1, kernel_init=zeros, rngs=rngs)

    def initial(self, moves: int) -> Any:
        """The memory before a game of `moves` moves: nothing seen, fast weights empty."""
        return self.cell.initial(moves)

    def step(self, memory: Any, screen: Array) -> tuple[Any, Array, Array]:
        """See one frame.

        Args:
            memory: from `initial` or the frame before.
            screen: `[N, N]` float.

        Returns:
            The next memory, logits `[actions]` and value `[]`.
        """
        features = jax.nn.relu(self.see(screen.reshape(-1)))
        memory, h = self.cell.step(memory, self.cell.project(features))
        return memory, self.policy(h), self.value(h)[0]
