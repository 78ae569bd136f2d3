"""The small world's language model with in-place test-time training, for `configs/fst_in_place.py`.

    fastweights train configs/fst_base_in_place.py --run-dir runs/fst_base_in_place

The model of `configs/fst_base.py`, whose MLPs also learn from every 8 bytes that they have read: a
prompt is in the fast weights before the problem is read to its end.
"""

import dataclasses

from fastweights.fastslow.base_model import base_config
from fastweights.nn.in_place import InPlaceTTT

config = base_config()
config = dataclasses.replace(
    config,
    model=dataclasses.replace(
        config.model, ttt=InPlaceTTT(layers=(0, 1, 2, 3), chunk=8, lr=0.1, target="input_embed")
    ),
)
