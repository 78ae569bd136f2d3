"""Hugging Face checkpoints in and out: Qwen3 and Llama, with test-time training or without.

    model = fw.hf.load("Qwen3-4B")
    fw.hf.save(model, "out", like="Qwen3-4B")

Directories are those of transformers: config.json and safetensors files, which transformers reads
back to the same logits; `fastweights.hf.parity` compares them. In-place layers are in the format of
the released In-Place TTT code.
"""

from fastweights.hf.loading import inspect, load
from fastweights.hf.saving import save

__all__ = ["inspect", "load", "save"]
