"""A decoder with every layer's arrays apart, which writes faster and compiles longer."""

import jax
from flax import nnx

from fastweights.models.decoder import Decoder


def unstacked(model: Decoder) -> Decoder:
    """The same decoder, every layer in arrays of its own; for inference.

    A loop over stacked layers copies the weights of each out of the stack at every token, on a CPU
    about as long as it reads them. Here no layer is copied, but a program has the code of all
    layers: it compiles several times as long, which long texts and many of them pay back.

    The arrays are copies; drop the stacked model to have the memory back. States belong to the
    model that made them. `hf.save` and training want the stacked model.

    Args:
        model: the decoder, stacked.
    """
    turns = model.config.layers // len(model.blocks)
    one = lambda block, turn: jax.tree.map(lambda x: x[turn : turn + 1], block)
    new = jax.tree.map(lambda x: x, model)
    new.blocks = nnx.List([one(block, turn) for turn in range(turns) for block in model.blocks])
    return new
