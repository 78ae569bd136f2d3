"""The small world's language model: it learns what hints mean, and to guess hints from examples.

    fastweights train configs/fst_base.py --run-dir runs/fst_base

3,300 updates, validation loss 0.347 nats.
Fast-slow training starts from it, see configs/fst_programs.py; its frozen copy is the reflector.
"""

from fastweights.fastslow.base_model import base_config

config = base_config()
