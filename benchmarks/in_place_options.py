"""What each option of an in-place layer costs over the released form: time and memory.

    python benchmarks/in_place_options.py            minutes; writes the JSON
    python benchmarks/in_place_options.py --quick    a small size; writes build/ only

On a GPU the size is that of one layer of Qwen3-4B in bfloat16, and the JSON is another one.
Times are of the layer alone, from z and v to y, forward and with all gradients, interleaved.
Options of a row with documents are compared with the released form of the same row. Memory is
XLA's plan of output and gradients for one layer of Qwen3-4B's size over 32,768 tokens, compiled and
never run.
"""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import compiled
import gpu_layer
import harness
import in_place_reference as reference
import jax
import jax.numpy as jnp
import tyro
from in_place_reference import Size
from jax import Array

from fastweights.rules import InPlace, outputs
from fastweights.rules.in_place import Token

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "in_place_options.json"
SIZES = (Size(4096, 256, 256, 1024), Size(2048, 512, 512, 2048))
SMALL = (Size(256, 64, 16, 32),)
LARGE = 32_768, 2560, 9728  # T, d, f: the MLP of Qwen3-4B
CHUNKS = (4096, 1024, 256)
#: name -> options of the rule, and numbers that are learned
FORMS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "released": ({}, {}),
    "clip": ({"clip": 1.0}, {}),
    "decay": ({"decay": 0.9}, {}),
    "cap": ({"cap": 0.02}, {}),
    "row norm": ({"row_norm": True}, {}),
    "spectral norm": ({"spectral": True}, {}),
    "residual": ({"residual": True}, {}),
    "learned η": ({}, {"gain": 1.0}),
    "learned decay": ({"decay": 0.9}, {"decay": 0.9}),
    "cap, decay": ({"cap": 0.02, "decay": 0.9}, {}),
}
#: the baseline of a form, by whether the row has documents
RELEASED, PACKED = "released", "released, 4 documents"


@dataclasses.dataclass(frozen=True)
class Options:
    """Time and memory of options.

    Attributes:
        quick: a small size and few rounds.
        out: the JSON.
        rounds: rounds, each contender once a round.
        cores: that all contenders run on; None is all there are.
        memory: also compile the large layer, which takes minutes.
    """

    quick: bool = False
    out: Path | None = None
    rounds: int = 9
    cores: int | None = 1
    memory: bool = True


Numbers = dict[str, Array]


def numbers(name: str) -> Numbers:
    """The learned numbers of a form, which have a gradient too."""
    learned = FORMS[name.partition(", 4 documents")[0]][1]
    return {key: jnp.asarray(x, jnp.float32) for key, x in learned.items()}


def layer(
    name: str, chunk: int, lr: float, length: int
) -> Callable[[Array, Array, Array, Numbers], Array]:
    """A form by its name, as a function of W0, z, v and its learned numbers; see `FORMS`."""
    form, packed, _ = name.partition(", 4 documents")
    options, _ = FORMS[form]
    rule = InPlace(lr=lr, chunk_size=chunk, **options)
    # documents that end within chunks
    ids = jnp.minimum(jnp.arange(length) // (length // 4 - 7), 3) + 1 if packed else None

    def call(w0: Array, z: Array, v: Array, learned: Numbers) -> Array:
        state = rule.init(w0, jnp.float32, **learned)
        return outputs(rule, state, Token(z, v), segment_ids=ids)

    return call


def measure(size: Size, training: bool, rounds: int) -> dict[str, Any]:
    """All forms at one size: milliseconds, and the ratio to the released form."""
    on_gpu = jax.default_backend() == "gpu"
    inputs = gpu_layer.inputs(size, 0) if on_gpu else map(jnp.asarray, reference.problem(size, 0))
    inputs = tuple(inputs)

    def made(name: str) -> harness.Contender:
        own = layer(name, size.chunk, size.lr, size.length)

        def value(w0: Array, z: Array, v: Array, dy: Array, learned: Numbers) -> Array:
            return jnp.sum((own(w0, z, v, learned) * dy).astype(jnp.float32))

        forward = lambda w0, z, v, dy, learned: own(w0, z, v, learned)
        function = jax.value_and_grad(value, (0, 1, 2, 4)) if training else forward
        return compiled.contender(function, *inputs, numbers(name))

    names = (*FORMS, *(f"{form}, 4 documents" for form in ("released", "cap", "decay")))
    with ThreadPoolExecutor(max(1, harness.cores() - 1)) as pool:
        runs = dict(zip(names, pool.map(made, names), strict=True))
    seconds = harness.interleave({name: one.run for name, one in runs.items()}, rounds)
    base = lambda name: PACKED if "documents" in name else RELEASED
    return {
        **size._asdict(),
        "mode": "train" if training else "forward",
        "contenders": {
            name: harness.summary(seconds[name]) | {"temp_bytes": one.temp_bytes}
            for name, one in runs.items()
        },
        "over_released": {name: harness.ratio(seconds, name, base(name)) for name in runs},
    }


def planned(name: str, chunk: int, length: int, d: int, f: int) -> int | None:
    """Bytes of temporaries of output and all gradients, float32."""
    shapes = (d, f), (length, f), (length, d), (length, d)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def both(w0: Array, z: Array, v: Array, dy: Array, learned: Numbers) -> Any:
        y, pull = jax.vjp(layer(name, chunk, 0.1, length), w0, z, v, learned)
        return y, pull(dy)

    return compiled.temporary(jax.jit(both).lower(*inputs, numbers(name)).compile())


def table(record: dict[str, Any]) -> str:
    """A line for each form: time over the released form, and memory by chunk size."""
    groups = record["groups"]
    heads = [f"{g['mode']}, T {g['length']:,}, C {g['chunk']}" for g in groups]
    chunks = [str(x["chunk"]) for x in record["memory"]]
    memory = [f"GiB, C {chunk}" for chunk in chunks] or [f"GiB, {g['mode']}" for g in groups]
    lines = [f"| form | {' | '.join(heads + memory)} |", "|---|" + (len(heads + memory)) * "---|"]
    for name in groups[0]["contenders"]:
        cells = [f"{g['over_released'][name]['median']:.2f}" for g in groups]
        for plan in record["memory"]:
            used = plan["temp_bytes"].get(name)
            cells.append("–" if used is None else f"{used / 2**30:.2f}")
        if not chunks:
            cells += [f"{g['contenders'][name]['temp_bytes'] / 2**30:.2f}" for g in groups]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    machine = record["machine"].get("device", "cpu")
    machine = f"{record['machine']['cpu']}, one core" if machine == "cpu" else machine
    about = f"{machine}; jax {record['versions']['jax']}; {record['date'][:10]}."
    return "\n".join([*lines, "", about])


def main(options: Options) -> None:
    """Measure, save, print the table."""
    on_gpu = jax.default_backend() == "gpu"
    if not on_gpu:
        harness.keep_to(options.cores)
    sizes, rounds = (SMALL, 2) if options.quick else (SIZES, options.rounds)
    default = OUT
    if on_gpu:
        default = OUT.with_stem(f"{OUT.stem}_gpu")
        sizes = (Size(LARGE[0], 1024, *LARGE[1:]),) if not options.quick else sizes
    out = options.out or (ROOT / "build" / default.name if options.quick else default)
    about = harness.circumstances(("fastweights", "jax", "jaxlib", "numpy"))
    groups = [measure(size, training, rounds) for size in sizes for training in (False, True)]
    large = (64, 16, 32) if options.quick else LARGE
    forms = [*FORMS, PACKED, "cap, 4 documents"]
    memory = [
        {
            "chunk": chunk,
            "temp_bytes": {name: planned(name, chunk, *large) for name in forms},
        }
        for chunk in ((16, 8) if options.quick else CHUNKS)
        if options.memory
    ]
    about["machine"]["device"] = jax.devices()[0].device_kind
    record = about | {"groups": groups, "memory": memory}
    harness.save(record, out)
    print(table(record))


if __name__ == "__main__":
    with harness.telling_errors():
        main(tyro.cli(Options))
