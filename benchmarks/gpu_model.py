"""Sections of `gpu.py` with a whole model: prefill, training and decoding."""

import dataclasses
import functools
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import gpu_sizes
import harness
import jax
import jax.numpy as jnp
import numpy as np
from gpu_layer import attempt
from gpu_sizes import Scale
from random_decoder import random_decoder

import fastweights as fw
from fastweights.inference.state import State, own_rows
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig
from fastweights.tasks.language import Language
from fastweights.train import config as cfg
from fastweights.train.optim import optimizer
from fastweights.train.state import TrainState, parameter_count
from fastweights.train.step import make_train_step

replace = dataclasses.replace


def random_tokens(config: DecoderConfig, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Tokens `[B, T]`."""
    return np.random.default_rng(seed).integers(0, config.vocab, shape).astype(np.int32)


def prefill(scale: Scale, seed: int) -> dict[str, Any]:
    """One row read by the plain model and by the one that learns: how much slower is the latter?

    "forward" is the training forward pass to the last token's logits, "prefill" what inference
    does, which keeps keys and values and hands on the fast weights.
    """
    last = jax.jit(lambda model, tokens: model.logits(model.features(tokens)[:, -1]))
    tokens = random_tokens(scale.model, (1, scale.length), seed)
    runs = {}
    for name, config in {"plain": replace(scale.model, ttt=None), "in place": scale.model}.items():
        model = random_decoder(config, seed)
        runs[f"forward, {name}"] = lambda m=model: jax.block_until_ready(last(m, tokens))
        runs[f"prefill, {name}"] = lambda m=model: jax.block_until_ready(
            fw.inference.prefill(m, tokens, max_length=scale.length).logits
        )
    for run in runs.values():
        run()
    seconds = harness.interleave(runs, scale.rounds, 1)
    flops = gpu_sizes.forward_flops(scale.model, scale.length, 1)
    more = gpu_sizes.in_place_flops(scale.model, scale.length)
    pairs = {kind: (f"{kind}, in place", f"{kind}, plain") for kind in ("forward", "prefill")}
    return {
        "length": scale.length,
        "layers": scale.model.layers,
        "in_place_layers": list(scale.model.ttt_layers),
        "chunk": scale.model.ttt and scale.model.ttt.chunk,
        "ms": {name: harness.summary(s) for name, s in seconds.items()},
        "tokens_s": {n: scale.length / statistics.median(s) for n, s in seconds.items()},
        "flops": flops,
        "in_place_flops": more,
        "slowdown": {kind: harness.ratio(seconds, *pair) for kind, pair in pairs.items()},
    }


def train(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """Training steps of the deepest model that fits, plain and in place.

    Weights and Adam's moments are float32, products bfloat16, blocks are computed again in the
    backward pass, and a batch is one row.
    """
    for depth in scale.depths:
        found = []
        for ttt in (None, scale.model.ttt):
            model = replace(
                scale.model, layers=depth, ttt=ttt, param_dtype="float32", remat="block"
            )
            one = attempt(lambda model=model: train_one(model, scale, seed))
            gc.collect()
            if one is None:
                break
            found.append(one)
        else:
            return found
        print(f"  {depth} layers do not fit", flush=True)
    return []


def train_one(model: DecoderConfig, scale: Scale, seed: int) -> dict[str, Any]:
    """Seconds a step and what follows from them, of one model."""
    config = cfg.Config(
        Language(length=scale.length, drift=False),
        model,
        cfg.Optim(lr=1e-5, clip=1.0, weight_decay=0.1),
        cfg.Train(batch=1),
        seed=seed,
    )
    weights = random_decoder(model, seed)
    parameters, start = parameter_count(weights), jnp.zeros((), jnp.int32)
    moments = optimizer(config.optim).init(weights)
    state = TrainState(start, weights, moments, jax.random.key(seed))
    del weights, moments
    rows = random_tokens(model, (2 * scale.rounds + 2, scale.length + 1), seed)
    step, seconds, losses = make_train_step(config), [], []
    for i, row in enumerate(rows):
        batch = {"inputs": jnp.asarray(row[None, :-1]), "target": jnp.asarray(row[None, 1:])}
        start = time.perf_counter()
        state, scores = step(state, batch)
        losses.append(float(jax.block_until_ready(scores["loss"])))
        if i >= 2:  # the first compiles, the second may still allocate
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    flops = {
        name: 3 * gpu_sizes.forward_flops(model, scale.length, scale.length, causal)
        for name, causal in {"causal": True, "full": False}.items()
    }
    return {
        "in_place": model.ttt is not None,
        "layers": model.layers,
        "parameters": parameters,
        "length": scale.length,
        "losses": [losses[0], losses[-1]],
        "ms": harness.summary(seconds),
        "tokens_s": scale.length / median,
        # what in-place layers add is left out, as is what is computed twice
        "model_flops_s": {name: value / median for name, value in flops.items()},
    }


def decode(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """Milliseconds a step of B continuations of one prompt.

    "shared": all rows read the fast weights that the prompt left. "own": each row has a copy, as
    it has once it completed a chunk.
    """
    found = []
    ttt = scale.model.ttt and replace(scale.model.ttt, chunk=scale.decode_chunk)
    tokens = random_tokens(scale.model, (1, scale.prompt), seed)
    for kind in ("plain", "shared", "own"):
        config = replace(scale.model, ttt=None if kind == "plain" else ttt)
        model = random_decoder(config, seed)
        room = scale.prompt + scale.new
        start = fw.inference.prefill(model, tokens, max_length=room)
        for batch in scale.batches:
            start_rows = functools.partial(rows, start, batch, kind == "own")
            values = attempt(functools.partial(decode_one, model, start_rows, scale))
            gc.collect()
            found.append({"kind": kind, "batch": batch} | (values or {"out_of_memory": True}))
        del model, start, start_rows
        gc.collect()
    return found


def rows(start: State, batch: int, own: bool) -> State:
    """`batch` continuations of a prompt, each with fast weights of its own if `own`."""
    state = fw.inference.fork(start, batch)
    return own_rows(state) if own else state


def decode_one(model: Decoder, rows: Callable[[], State], scale: Scale) -> dict[str, Any]:
    """Decode from a state; bytes a step are those of weights, keys, values and fast weights."""
    state = rows()

    def run() -> Any:
        out, _ = fw.inference.decode(model, state, max_new_tokens=scale.new)
        return jax.block_until_ready(out.tokens)

    seconds = harness.interleave({"decode": run}, scale.rounds, 1)["decode"]
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    learning = [place["mlp"] for place in state.layers if place["mlp"] is not None]
    fast = sum(x.weights.nbytes for x in learning)
    caches = [place["mixer"] for place in state.layers]
    median = statistics.median(seconds) / scale.new
    return {
        "ms_per_step": 1e3 * median,
        "spread_ms": [1e3 * s / scale.new for s in harness.quartiles(seconds)],
        "tokens_s": len(state.lengths) / median,
        "bytes": {"weights": size(model), "keys and values": size(caches), "fast": fast},
    }
