"""Time of a step of decoding with a checkpoint's weights, by precision and batch.

Part of `decode.py`. A step writes one token of every row of the batch. Contenders are this library,
its layers stacked and apart, transformers, and llama.cpp at the same precision.
"""

import importlib.util
import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compiled
import harness
import jax
import jax.numpy as jnp
import numpy as np
from decode_llama import Llama

import fastweights as fw
from fastweights.models.decoder import Decoder

BATCHES = (1, 8, 32)
#: name of a precision -> that of llama.cpp's files
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
READS = 8  # of the floor in a row, so that starting them is not measured


class Theirs:
    """Greedy decoding of a batch with a checkpoint in transformers, keys and values kept."""

    def __init__(self, path: Path, precision: str):
        import torch
        import transformers

        torch.set_num_threads(harness.cores())
        transformers.utils.logging.disable_progress_bar()
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(path, dtype=getattr(torch, precision)).eval()

    def writer(self, prompt: np.ndarray, new: int) -> Callable[[], np.ndarray]:
        """A call that writes `[B, new]` tokens after a prompt that stays read."""
        import torch
        import transformers

        cache = transformers.DynamicCache(config=self.model.config)
        names = inspect.signature(self.model.forward).parameters
        kept = {"cache" if "cache" in names else "past_key_values": cache}  # as of 5.24 or before

        def read(tokens: Any) -> Any:
            with torch.inference_mode():
                logits = self.model(tokens, use_cache=True, logits_to_keep=1, **kept).logits
            return logits[:, -1].argmax(-1, keepdim=True)

        first = read(torch.from_numpy(prompt))

        def write() -> np.ndarray:
            if (more := cache.get_seq_length() - prompt.shape[1]) > 0:
                cache.crop(-more)
            out = [first]
            for _ in range(new):
                out.append(read(out[-1]))
            return torch.cat(out[:-1], 1).numpy()

        return write


def weights_read(model: Decoder) -> int:
    """Bytes of weights that a token reads: all, but of an embedding that is no head one row."""
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return size(model) - (0 if model.head is None else size(model.embed))


def floor(size: int, seed: int) -> harness.Contender:
    """Read `size` bytes, `READS` times: a product with a vector."""
    rows = max(1, size // 4096)
    matrix = jax.random.normal(jax.random.key(seed), (rows, 1024))
    return compiled.contender(jnp.dot, matrix, jnp.ones(1024), calls=READS)


def text_of(checkpoint: Path, rows: int, length: int, seed: int) -> np.ndarray:
    """Prompts `[rows, length]`: random tokens, since time does not depend on them."""
    vocab = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    return np.random.default_rng(seed).integers(0, vocab, (rows, length))


def measure(checkpoint: Path, gguf: str | None, precision: str, options: Any) -> dict[str, Any]:
    """One precision: milliseconds a step of every contender and batch, and their ratios.

    Args:
        checkpoint: a directory in Hugging Face layout.
        gguf: path of the same weights for llama.cpp, with {} for "f32" or "bf16"; None leaves
            llama.cpp out.
        precision: a key of `PRECISIONS`.
        options: of the benchmark.
    """
    model = fw.hf.load(checkpoint, dtype=precision)
    forms = {"ours, stacked": model, "ours, unstacked": fw.inference.unstacked(model)}
    with_torch = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    peer = Theirs(checkpoint, precision) if with_torch else None
    size = weights_read(model)
    runs: dict[str, Any] = {"read the weights": floor(size, options.seed).run}
    calls: dict[str, dict[str, float]] = {}
    same: dict[str, dict[str, int]] = {}
    for batch in BATCHES:
        tokens = text_of(checkpoint, batch, options.prompt, options.seed)
        writers = {name: ours(form, tokens, options.steps) for name, form in forms.items()}
        if peer is not None:
            writers["transformers"] = peer.writer(tokens, options.steps)
        if gguf is not None:
            kind = PRECISIONS[precision]
            writers["llama.cpp"] = Llama(gguf.format(kind), kind, tokens, options.steps).write
        written = {}
        for name, write in writers.items():
            begun = time.perf_counter()
            written[name] = write()
            calls.setdefault(name, {})[str(batch)] = round(time.perf_counter() - begun, 2)
            agree = np.cumprod(written[name] == written["ours, stacked"], 1).sum()
            same.setdefault(name, {})[str(batch)] = int(agree)
        runs |= {f"{name}, {batch}": write for name, write in writers.items()}
    seconds = harness.interleave(runs, options.checkpoint_rounds, 1)
    steps = lambda name: READS if name.startswith("read") else options.steps
    each = {name: [s / steps(name) for s in seconds[name]] for name in runs}
    return {
        "precision": precision,
        "parameters": sum(x.size for x in jax.tree.leaves(model)),
        "weight_bytes": size,
        "batches": list(BATCHES),
        "rounds": options.checkpoint_rounds,
        "steps": options.steps,
        "first_call_s": calls,
        "same_tokens": same,
        "ms_per_step": {name: harness.summary(each[name]) for name in runs},
        "over_floor": {
            name: harness.ratio(each, name, "read the weights")
            for name in runs
            if name != "read the weights"
        },
    }


def ours(model: Decoder, tokens: np.ndarray, new: int) -> Callable[[], np.ndarray]:
    """A call that writes `[B, new]` tokens after a prompt that stays read."""
    state = fw.inference.prefill(model, tokens, max_length=tokens.shape[1] + new)
    return lambda: np.asarray(fw.inference.decode(model, state, max_new_tokens=new)[0].tokens)
