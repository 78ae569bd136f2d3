"""The associative-retrieval network of Ba et al. 2016 (arXiv 1610.06258, §4.1 and appendix A.1).

symbol -> 50 embedding -> 100 expansion -> H recurrent units -> (last step) 100 ReLU -> classes.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from fastweights.nn import CellName, Start, embedding_start, kernel_start, make_cell, unroll_drives
from fastweights.rules import Hebbian, Rule


@dataclasses.dataclass(frozen=True)
class RetrievalModel:
    """Sizes of the network; the defaults are the paper's, with R = 50.

    Attributes:
        cell: the recurrent layer.
        hidden: recurrent units (R in the paper's table).
        embed: embedding size.
        expand: size of the layer between embedding and recurrence.
        head: ReLU units that read the last activity.
        rule: the fast-weight rule, for cell "fast-weights".
        start: initial weights, the paper's or of unit variance.
    """

    cell: CellName = "fast-weights"
    hidden: int = 50
    embed: int = 50
    expand: int = 100
    head: int = 100
    rule: Rule = Hebbian()
    start: Start = "paper"


class RetrievalNet(nnx.Module):
    """Reads a string of symbols, answers with one class.

    The embedding and expansion are linear: the paper does not say, and the sum of both is then one
    linear map of the one-hot symbol.
    """

    def __init__(self, config: RetrievalModel, vocab: int, classes: int, *, rngs: nnx.Rngs):
        def linear(features: int, out: int) -> nnx.Linear:
            return nnx.Linear(features, out, kernel_init=kernel_start(config.start), rngs=rngs)

        self.embed = nnx.Embed(
            vocab, config.embed, embedding_init=embedding_start(config.start), rngs=rngs
        )
        self.expand = linear(config.embed, config.expand)
        self.cell = make_cell(
            config.cell, config.expand, config.hidden, config.rule, start=config.start, rngs=rngs
        )
        self.head = linear(config.hidden, config.head)
        self.out = linear(config.head, classes)

    def drives(self, tokens: Array) -> Array:
        """What every step of one string hands to the cell: `[T]` int -> `[T, ...]`.

        Up to here all is a function of the symbol alone, so it is worked out for each symbol once,
        and not for each step of each string of a batch.
        """
        table = self.cell.project(self.expand(self.embed.embedding[...]))
        # where there is no such symbol: NaN, as of flax's Embed; an index would be clamped
        return jnp.take(table, tokens, axis=0)

    def activities(self, tokens: Array) -> Array:
        """Recurrent activity at every step of one string: `[T]` int -> `[T, H]`."""
        return unroll_drives(self.cell, self.drives(tokens))[1]

    def __call__(self, tokens: Array) -> Array:
        """Logits of the class asked for: `[B, T]` int -> `[B, classes]`."""
        last = jax.vmap(self.activities)(tokens)[:, -1]
        return self.out(jax.nn.relu(self.head(last)))
