"""Two checkouts of the library side by side: times, and XLA's memory plans.

    git worktree add ../old REVISION
    python benchmarks/checkouts.py --old ../old            # half an hour on a quiet machine
    python benchmarks/checkouts.py --old ../old --rounds 0 # plans alone, in minutes
    python benchmarks/checkouts.py --old ../old --only decode

Each checkout has a worker process of its own on the same core. A round times every contender in
both, the old one first in every other round, so that a busy machine slows both. Numbers above 1
mean that the new checkout is faster.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compare.

    Attributes:
        old: the other checkout.
        rounds: rounds, each contender once a round in both; 0 shows the plans.
        only: contenders whose name has one of these words; all without one.
        out: the JSON file.
    """

    old: Path
    rounds: int = 7
    only: tuple[str, ...] = ()
    out: Path = ROOT / "build" / "checkouts.json"


def contenders(only: list[str]) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """Calls by name, and temporaries in bytes of those that are compiled here; `only` as asked."""
    import decode
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx
    from random_decoder import random_decoder

    import fastweights as fw
    from fastweights.cli import load_config
    from fastweights.models.decoder import build
    from fastweights.models.decoder_config import InPlaceTTT
    from fastweights.nn import FastWeightCell, unroll
    from fastweights.nn.attention import attend
    from fastweights.rules import Hebbian, chunk_scan

    runs: dict[str, Callable[[], Any]] = {}
    plans: dict[str, int] = {}

    wanted = lambda name: not only or any(word in name for word in only)

    def add(name: str, function: Callable[..., Any], *arguments: Any) -> None:
        if not wanted(name):
            return
        program = jax.jit(function).lower(*arguments).compile()
        runs[name] = lambda: jax.block_until_ready(program(*arguments))
        plans[name] = program.memory_analysis().temp_size_in_bytes

    for batch, length, hidden in ((128, 11, 50), (128, 30, 100), (16, 64, 128), (16, 256, 128)):
        graph, p = nnx.split(FastWeightCell(100, hidden, Hebbian(), rngs=nnx.Rngs(0)))
        xs = jax.random.normal(jax.random.key(0), (batch, length, 100))

        def cell(p: Any, xs: Any, graph: Any = graph) -> Any:
            net = nnx.merge(graph, p)
            return jnp.sum(jnp.sin(jax.vmap(lambda x: unroll(net, x)[1])(xs)))

        add(f"cell {batch}, {length}, {hidden} forward", cell, p, xs)
        add(f"cell {batch}, {length}, {hidden} train", jax.grad(cell, (0, 1)), p, xs)

    for length, chunk, d, f in ((4096, 256, 256, 1024), (2048, 512, 512, 2048)):
        a, b, c = jax.random.split(jax.random.key(0), 3)
        w = 0.02 * jax.random.normal(a, (d, f))
        z, v = jax.random.normal(b, (length, f)), jax.random.normal(c, (length, d))
        documents = jnp.asarray(np.sort(np.random.default_rng(0).integers(1, 4, length)))
        for kind, ids in (("", None), (" packed", documents)):

            def layer(w: Any, z: Any, v: Any, chunk: int = chunk, ids: Any = ids) -> Any:
                return jnp.sum(jnp.sin(chunk_scan(w, z, v, chunk=chunk, lr=0.01, segments=ids)[0]))

            add(f"in place {length}, {chunk}{kind} forward", layer, w, z, v)
            add(f"in place {length}, {chunk}{kind} train", jax.grad(layer, (0, 1, 2)), w, z, v)

    for rows, length, heads, size, window in (
        (1, 2048, 9, 64, 512),
        (1, 2048, 9, 64, None),
        (8, 1024, 4, 32, 128),
    ):
        keys = jax.random.split(jax.random.key(0), 3)
        qkv = [jax.random.normal(key, (rows, length, heads, size)) for key in keys]

        def attention(q: Any, k: Any, v: Any, window: int | None = window) -> Any:
            return jnp.sum(jnp.sin(attend(q, k, v, window=window)))

        add(f"attention {rows}, {length}, {window} forward", attention, *qkv)
        add(f"attention {rows}, {length}, {window} train", jax.grad(attention, (0, 1, 2)), *qkv)

    pieces = (512, 2048, 32_768, 512), (512, 4096, 8192, None), (64, 400, 600, None)
    for new, filled, room, window in pieces if wanted("cached attention") else ():
        from fastweights.nn.attention_cached import Cache, attend_cached

        keys = jax.random.split(jax.random.key(0), 3)
        q = jax.random.normal(keys[0], (1, new, 9, 64))
        cache = Cache(*(jax.random.normal(key, (1, 1, 3, room, 64)) for key in keys[1:]))
        places = (filled + jnp.arange(new))[None]
        see = functools.partial(attend_cached, turn=0, window=window)
        read = lambda q, cache, places, see=see: see(q, cache, positions=places)
        add(f"cached attention {new} after {filled} of {room}, {window}", read, q, cache, places)

    if wanted("books train"):
        config = load_config(str(ROOT / "configs" / "books.py"))
        tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 1024)), jnp.int32)
        loss = lambda model, batch: jnp.mean(config.task.losses(model, batch))
        batch = {"inputs": tokens, "target": tokens}
        add("books train", jax.grad(loss), build(config.model, 0), batch)

    # the old checkout may have no other form, and then it is timed as it is
    apart = getattr(fw.inference, "unstacked", lambda model: model)
    half = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    for size, shape in (("tiny", decode.TINY), ("small", decode.SMALL)):
        ttt = InPlaceTTT(layers=tuple(range(0, shape.layers, 4)), chunk=64)
        for kind, change in (("plain", {}), ("in place", {"ttt": ttt}), ("bfloat16", half)):
            models = functools.cache(
                lambda change=change, shape=shape: random_decoder(
                    dataclasses.replace(shape, **change), 0
                )
            )
            for rows, form in itertools.product((1, 4), ("", ", unstacked")):
                name = f"decode {size} {kind}{form}, {rows} rows"
                if not wanted(name):
                    continue
                model = apart(models()) if form else models()
                prompt = np.random.default_rng(0).integers(0, shape.vocab, (rows, 64))
                state = fw.inference.prefill(model, prompt, max_length=192)

                def write(model: Any = model, state: Any = state) -> Any:
                    return np.asarray(fw.inference.decode(model, state, max_new_tokens=128)[0][0])

                runs[name] = write
    return runs, plans


def work(only: list[str]) -> None:
    """A worker: names and plans on one line, then seconds for each name that is read."""
    import harness

    harness.keep_to(1)  # the same core for both
    runs, plans = contenders(only)
    print(json.dumps({"names": [*runs], "plans": plans}), flush=True)
    for line in sys.stdin:
        run = runs[line.strip()]
        run()
        seconds = []
        for _ in range(3):
            begun = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begun)
        print(statistics.median(seconds), flush=True)


@contextlib.contextmanager
def worker(checkout: Path, only: tuple[str, ...]):
    """A worker of a checkout, with this file's contenders and the checkout's own library."""
    paths = [str(checkout / "src"), str(checkout / "benchmarks")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    # helper modules are the checkout's, which know its library; it may have this file too
    code = (
        "import importlib.util as util, sys; "
        f"sys.path.append({str(ROOT / 'benchmarks')!r}); "
        f"spec = util.spec_from_file_location('contenders', {str(Path(__file__).resolve())!r}); "
        "sys.modules['contenders'] = module = util.module_from_spec(spec); "
        f"spec.loader.exec_module(module); module.work({[*only]})"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process: Any, name: str) -> float:
    """Seconds of a contender."""
    process.stdin.write(name + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main(options: Options) -> None:
    """Compare, print a line a contender, write the JSON."""
    import harness

    record = harness.circumstances(("fastweights", "jax", "jaxlib", "flax", "numpy"))
    checkouts = (options.old.resolve(), ROOT)
    if not (checkouts[0] / "src" / "fastweights").is_dir():
        raise SystemExit(f"{options.old} is no checkout of the library; see git worktree add")
    record["command"] = record["command"].replace(str(options.old), "DIR")
    with worker(checkouts[0], options.only) as old, worker(checkouts[1], options.only) as new:
        sides = {"old": old, "new": new}
        lines = {side: process.stdout.readline() for side, process in sides.items()}
        if failed := [side for side, line in lines.items() if not line]:
            raise SystemExit(f"the worker of the {failed[0]} checkout ended; its error is above")
        heads = {side: json.loads(line) for side, line in lines.items()}
        names = heads["new"]["names"]
        seconds = {side: {name: [] for name in names} for side in sides}
        for i in range(options.rounds):
            for name in names:
                for side in list(sides)[:: 1 if i % 2 else -1]:
                    seconds[side][name].append(ask(sides[side], name))
    record |= {"rounds": options.rounds, "contenders": {}}
    for name in names:
        plans = {side: head["plans"].get(name) for side, head in heads.items()}
        found: dict[str, Any] = {"temp_bytes": plans}
        if options.rounds:
            each = {side: seconds[side][name] for side in sides}
            found["ms"] = {side: harness.summary(s) for side, s in each.items()}
            found["old over new"] = harness.ratio(each, "old", "new")
        record["contenders"][name] = found
        speed = found.get("old over new", {}).get("of_medians", "–")
        print(f"{name:36s} old / new {speed}   temporaries {plans['old']} {plans['new']}")
    harness.save(record, options.out)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
