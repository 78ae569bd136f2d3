"""A decoder with separate arrays for every layer: faster decoding, longer compilation."""

import jax
from flax import nnx

from fastweights.models.decoder import Decoder


def unstacked(model: Decoder) -> Decoder:
    """The same decoder with separate arrays for every layer; for inference.

    At every token, the loop over stacked layers copies each layer's weights out of the stack. On a
    CPU the copy takes about as long as the product. An unstacked decoder copies no weights. Its
    program holds the code of every layer and compiles several times as long, so it pays for long or
    many texts.

    The arrays are copies: delete the stacked model to free its memory. A state belongs to the model
    that made it. `hf.save` and training need the stacked model.

    Args:
        model: the decoder, stacked.
    """
    turns = model.config.layers // len(model.blocks)
    one = lambda block, turn: jax.tree.map(lambda x: x[turn : turn + 1], block)
    new = jax.tree.map(lambda x: x, model)
    new.blocks = nnx.List([one(block, turn) for turn in range(turns) for block in model.blocks])
    return new
