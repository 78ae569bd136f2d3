"""Time of a new token, beside transformers on the same weights and the memory.

    python benchmarks/decode.py            five minutes; rewrites the JSON and the page
    python benchmarks/decode.py --quick    a toy model; writes build/decode.json only
    python benchmarks/decode.py --checkpoint DIR [--gguf 'FILE-{}.gguf']    half an hour

With `--checkpoint`, a directory in Hugging Face layout, its model is timed too, in float32 and
bfloat16 and in batches; the page is of SmolLM2-135M. With `--gguf` llama.cpp is timed too, by
llama-cpp-python, on files that `convert_hf_to_gguf.py --outtype f32` and `bf16` made.

All keep keys and values, take the likeliest token, and run on one core: on a shared machine a pool
of threads waits for its slowest, and PyTorch's waits longest. The floor is the time to read as many
bytes as the weights have, once, in a product with a vector.
"""

import dataclasses
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import decode_checkpoint
import decode_page
import harness
import jax
import numpy as np
import tyro
from decode_checkpoint import READS, floor, weights_read
from random_decoder import random_decoder

import fastweights as fw
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "fastweights",
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "torch",
    "transformers",
    "llama-cpp-python",
)
TINY = DecoderConfig(
    "qwen3",
    vocab=1024,
    hidden=128,
    intermediate=384,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=32,
    tie_embeddings=True,
    max_length=1024,
    initializer_range=0.1,
)
SMALL = dataclasses.replace(
    TINY, vocab=4096, hidden=256, intermediate=768, layers=12, heads=8, kv_heads=4
)
TOY = dataclasses.replace(TINY, vocab=64, hidden=16, intermediate=24, layers=1, head_dim=8)
NEAR = 1e-3  # logits that differ by less may be ranked otherwise in float32


@dataclasses.dataclass(frozen=True)
class Options:
    """Milliseconds a token, side by side.

    Attributes:
        quick: a toy model and few rounds; leaves the documentation as it is.
        out: the JSON file; benchmarks/results/decode.json, or build/decode.json if quick.
        rounds: rounds, each contender once a round.
        seed: of weights and prompt.
        prompt: tokens of the prompt.
        new: tokens to write.
        cores: that all sides run on.
        checkpoint: a directory in Hugging Face layout; without it no checkpoint is timed.
        gguf: its weights for llama.cpp, a path with {} where "f32" or "bf16" stands.
        steps: tokens a row to write with the checkpoint, after the prompt.
        checkpoint_rounds: rounds of the checkpoint's contenders.
    """

    quick: bool = False
    out: Path | None = None
    rounds: int = 5
    seed: int = 0
    prompt: int = 64
    new: int = 128
    cores: int = 1
    checkpoint: Path | None = None
    gguf: str | None = None
    steps: int = 16
    checkpoint_rounds: int = 3


class Theirs:
    """transformers' greedy `generate` on a decoder's weights."""

    def __init__(self, model: Decoder):
        import torch
        import transformers

        torch.set_num_threads(harness.cores())
        transformers.utils.logging.disable_progress_bar()
        with tempfile.TemporaryDirectory() as folder:
            fw.hf.save(model, Path(folder) / "model")
            load = transformers.AutoModelForCausalLM.from_pretrained
            self.model = load(Path(folder) / "model", dtype=torch.float32).eval()

    def generate(self, prompt: np.ndarray, new: int) -> np.ndarray:
        """New tokens `[1, new]`."""
        import torch

        tokens = torch.from_numpy(prompt.astype(np.int64))
        with torch.inference_mode():
            out = self.model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return out[:, tokens.shape[1] :].numpy()

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Logits `[vocab]` of the token after `tokens [1, T]`."""
        import torch

        with torch.inference_mode():
            return self.model(torch.from_numpy(tokens.astype(np.int64))).logits[0, -1].numpy()


def agreement(ours: np.ndarray, theirs: np.ndarray, prompt: np.ndarray, peer: Theirs):
    """How many tokens are the same from the first on, and the logits' distance where they part.

    Raises:
        ValueError: they part where the logits are not near each other: one of them is wrong.
    """
    same = int(np.cumprod(ours[0] == theirs[0]).sum())
    if same == ours.shape[1]:
        return same, None
    logits = peer.logits(np.concatenate([prompt, theirs[:, :same]], 1))
    gap = float(logits.max() - logits[ours[0, same]])
    if gap > NEAR:
        raise ValueError(f"token {same} differs, and its logit by {gap:.3g}")
    return same, gap


def measure(config: DecoderConfig, options: Options, with_torch: bool) -> dict[str, Any]:
    """One model: milliseconds a token of every contender, and their ratios."""
    stacked, new = random_decoder(config, options.seed), options.new
    # every fourth of the layers learns, and writes when prompt and answer fill a chunk
    ttt = InPlaceTTT(layers=tuple(range(0, config.layers, 4)), chunk=options.prompt)
    learner = random_decoder(dataclasses.replace(config, ttt=ttt), options.seed)
    prompt = np.random.default_rng(options.seed).integers(0, config.vocab, (1, options.prompt))
    # no layer is copied out of a stack at every token
    model, learner = fw.inference.unstacked(stacked), fw.inference.unstacked(learner)

    def whole(model: Decoder) -> np.ndarray:
        return np.asarray(fw.inference.generate(model, prompt, max_new_tokens=new).tokens)

    def alone(model: Decoder):
        """Decoding without the prompt, which is read before."""
        state = fw.inference.prefill(model, prompt, max_length=options.prompt + new)
        return lambda: np.asarray(fw.inference.decode(model, state, max_new_tokens=new)[0].tokens)

    runs: dict[str, Any] = {
        "ours": lambda: whole(model),
        "ours, stacked": lambda: whole(stacked),
        "ours, in place": lambda: whole(learner),
        "ours, decode alone": alone(model),
        "ours, in place, decode alone": alone(learner),
        "read the weights": floor(weights_read(model), options.seed).run,
    }
    tokens, same, gap = whole(model), None, None
    if with_torch:
        peer = Theirs(stacked)
        same, gap = agreement(tokens, peer.generate(prompt, new), prompt, peer)
        runs["transformers"] = lambda: peer.generate(prompt, new)
    seconds = harness.interleave(runs, options.rounds, 1)
    per = {name: READS if name.startswith("read") else new for name in runs}
    each = {name: [s / per[name] for s in seconds[name]] for name in runs}
    pairs = {
        "transformers / ours": ("transformers", "ours"),
        "transformers / ours, in place": ("transformers", "ours, in place"),
        "stacked / unstacked": ("ours, stacked", "ours"),
        "in place / plain": ("ours, in place, decode alone", "ours, decode alone"),
        "decode alone / floor": ("ours, decode alone", "read the weights"),
        "in place, decode alone / floor": ("ours, in place, decode alone", "read the weights"),
    }
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(model)),
        "weight_bytes": weights_read(model),
        "config": {k: getattr(config, k) for k in ("vocab", "hidden", "intermediate", "layers")},
        "in_place": {"layers": list(learner.config.ttt_layers), "chunk": ttt.chunk},
        "distinct_tokens": len(set(tokens[0].tolist())),
        "same_tokens": same,
        "logit_gap_where_they_part": gap,
        "ms_per_token": {name: harness.summary(each[name]) for name in runs},
        "ratios": {
            name: harness.ratio(each, slow, fast)
            for name, (slow, fast) in pairs.items()
            if slow in runs
        },
    }


def main(options: Options) -> dict[str, Any]:
    """Run everything; returns the record that was written."""
    packages = ("torch", "transformers")
    with_torch = all(importlib.util.find_spec(name) is not None for name in packages)
    if not with_torch:
        print(
            "torch or transformers is not installed, so only ours is timed: pip install '.[bench]'"
        )
    if options.checkpoint and not (options.checkpoint / "config.json").is_file():
        raise SystemExit(f"{options.checkpoint} is no directory in Hugging Face layout")
    if options.gguf and not importlib.util.find_spec("llama_cpp"):
        raise SystemExit("--gguf needs llama.cpp: pip install llama-cpp-python, or leave it out")
    record = harness.circumstances(PACKAGES)
    for path, name in ((options.checkpoint, "DIR"), (options.gguf, "FILE"), (options.out, "OUT")):
        record["command"] = record["command"].replace(str(path), name)
    record |= {"seed": options.seed, "rounds": options.rounds, "dtype": "float32", "batch": 1}
    record |= {"prompt": options.prompt, "new": options.new, "models": []}
    for config in (TOY,) if options.quick else (TINY, SMALL):
        record["models"].append(measure(config, options, with_torch))
        print(record["models"][-1]["ratios"], flush=True)
    if options.checkpoint is None:
        print("no checkpoint is timed: --checkpoint DIR")
    else:
        record["checkpoint"] = [
            decode_checkpoint.measure(options.checkpoint, options.gguf, precision, options)
            for precision in decode_checkpoint.PRECISIONS
        ]
    folder = ROOT / ("build" if options.quick else "benchmarks/results")
    harness.save(record, options.out or folder / "decode.json")
    page = decode_page.tables(record)
    print(page)
    if not options.quick:
        docs = ROOT / "docs" / "performance.md"
        docs.write_text(harness.between_markers(docs.read_text(), "decode", page))
    return record


if __name__ == "__main__":
    arguments = tyro.cli(Options)
    harness.keep_to(arguments.cores)
    main(arguments)
    sys.exit(0)
