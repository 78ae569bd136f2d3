"""Generate with a decoder: KV cache, fast weights that learn while it reads and writes, sampling.

out = fw.inference.generate(model, tokens, lengths, max_new_tokens=100)
state = fw.inference.prefill(model, tokens, lengths)    # then extend, decode, fork, save, ...
"""

from fastweights.inference.generate import Output, decode, generate
from fastweights.inference.prompt import extend, prefill
from fastweights.inference.state import State, drift, empty, fork, reset, select
from fastweights.inference.storage import load, save
from fastweights.inference.stream import Step, stream
from fastweights.inference.unstacked import unstacked
from fastweights.nn.in_place_ridge import Ridge

__all__ = [
    "Output",
    "Ridge",
    "State",
    "Step",
    "decode",
    "drift",
    "empty",
    "extend",
    "fork",
    "generate",
    "load",
    "prefill",
    "reset",
    "save",
    "select",
    "stream",
    "unstacked",
]
