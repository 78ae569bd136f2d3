"""Pure update rules on one unbatched sequence: the heart of the library, the first thing to read.

`base.py` is the interface, `drive.py` derives every form from it; every other file is one rule or
one form of a rule. Nothing here knows of batches, heads, layers, flax or meshes.
"""

from fastweights.rules import losses, memories, optimizers
from fastweights.rules.base import Memory, Rule, Slot, scan, sequence_length
from fastweights.rules.delta import Delta
from fastweights.rules.drive import document_starts, outputs, run
from fastweights.rules.gated_delta import GatedDelta
from fastweights.rules.hebbian import Form, Hebbian
from fastweights.rules.in_place import InPlace
from fastweights.rules.in_place_scan import chunk_scan
from fastweights.rules.linear_attention import LinearAttention
from fastweights.rules.matrix import MatrixRule
from fastweights.rules.online import Online
from fastweights.rules.ttt import TTTMLP, TTTLinear

RULES: tuple[type[Rule], ...] = (
    Hebbian,
    InPlace,
    LinearAttention,
    Delta,
    GatedDelta,
    Online,
    TTTLinear,
    TTTMLP,
)

__all__ = [
    "RULES",
    "Delta",
    "Form",
    "GatedDelta",
    "Hebbian",
    "InPlace",
    "LinearAttention",
    "MatrixRule",
    "Memory",
    "Online",
    "Rule",
    "Slot",
    "TTTLinear",
    "TTTMLP",
    "chunk_scan",
    "document_starts",
    "losses",
    "memories",
    "optimizers",
    "outputs",
    "run",
    "scan",
    "sequence_length",
]
