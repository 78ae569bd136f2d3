"""Pure update rules on one unbatched sequence: the heart of the library, the first thing to read.

`base.py` says what a rule is; every other file is one rule. Nothing here knows of batches, heads,
layers, flax or meshes.
"""

from fastweights.rules.base import Rule, run, scan, sequence_length
from fastweights.rules.hebbian import Form, Hebbian

RULES: tuple[type[Rule], ...] = (Hebbian,)

__all__ = ["RULES", "Form", "Hebbian", "Rule", "run", "scan", "sequence_length"]
