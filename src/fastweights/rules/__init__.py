"""Pure update rules on one unbatched sequence: the heart of the library, the first thing to read.

`base.py` says what a rule is; every other file is one rule or one form of it. Nothing here knows of
batches, heads, layers, flax or meshes.
"""

from fastweights.rules.base import Rule, run, scan, sequence_length
from fastweights.rules.hebbian import Form, Hebbian
from fastweights.rules.in_place import InPlace
from fastweights.rules.in_place_scan import chunk_scan

RULES: tuple[type[Rule], ...] = (Hebbian, InPlace)

__all__ = [
    "RULES",
    "Form",
    "Hebbian",
    "InPlace",
    "Rule",
    "chunk_scan",
    "run",
    "scan",
    "sequence_length",
]
