"""In-Place TTT on one NVIDIA GPU, beside what the device can do and beside the plain model.

    python benchmarks/gpu.py                           ten to twenty minutes; writes gpu.json
    python benchmarks/gpu.py --sections ceilings layer only these; the others' numbers are kept
    python benchmarks/gpu.py --small                   the same code on a CPU at toy sizes

Weights are random and made on the device. Every section writes the JSON when it is done, with its
own circumstances; what does not fit in memory is recorded as that.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gpu_layer
import gpu_model
import gpu_page
import harness
import jax
import tyro
from gpu_sizes import REAL, TOY, Scale

ROOT = Path(__file__).parents[1]
PACKAGES = ("fastweights", "jax", "jaxlib", "jax-cuda13-plugin", "flax", "numpy")
Section = Literal["ceilings", "layer", "prefill", "train", "decode"]
SECTIONS: dict[Section, Callable[[Scale, int], Any]] = {
    "ceilings": gpu_layer.ceilings,
    "layer": gpu_layer.layers,
    "prefill": gpu_model.prefill,
    "train": gpu_model.train,
    "decode": gpu_model.decode,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measurements on one NVIDIA GPU.

    Attributes:
        small: toy sizes on whatever device there is; leaves the documentation as it is.
        sections: which to run, in this order.
        out: the JSON file; benchmarks/results/gpu.json, or build/gpu.json if small.
        seed: of weights and inputs.
    """

    small: bool = False
    sections: tuple[Section, ...] = tuple(SECTIONS)
    out: Path | None = None
    seed: int = 0


def has_gpu() -> bool:
    """Whether the default device is an NVIDIA GPU."""
    return jax.default_backend() == "gpu" and "cuda" in jax.devices()[0].client.platform_version


def device() -> dict[str, Any]:
    """What the default device is called, and the bytes of its memory that JAX may use."""
    stats = jax.devices()[0].memory_stats() or {}
    return {"kind": jax.devices()[0].device_kind, "bytes": stats.get("bytes_limit")}


def main(options: Options) -> dict[str, Any] | None:
    """Run the sections; returns the record that was written, None without a device for it."""
    if not options.small and not has_gpu():
        print(
            f"no NVIDIA GPU: JAX's default backend is {jax.default_backend()!r}\n"
            "next: install '.[cuda13]' on a machine that has one, or --small for toy sizes here",
            file=sys.stderr,
        )
        return None
    folder = ROOT / ("build" if options.small else "benchmarks/results")
    out = options.out or folder / "gpu.json"
    record = harness.circumstances(PACKAGES) | {"seed": options.seed, "small": options.small}
    record |= {"device": device(), "sections": gpu_page.kept(out, options.small)}
    for name in options.sections:
        print(name, flush=True)
        around = harness.circumstances(PACKAGES) | {"device": device()}
        values = SECTIONS[name](TOY if options.small else REAL, options.seed)
        record["sections"][name] = around | {"values": values}
        harness.save(record, out)
    page = gpu_page.tables(record)
    print(page)
    if not options.small:
        docs = ROOT / "docs" / "performance.md"
        docs.write_text(harness.between_markers(docs.read_text(), "gpu", page))
    return record


if __name__ == "__main__":
    # nothing else is on the device; the default leaves a quarter of it unused
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    sys.exit(2 if main(tyro.cli(Options)) is None else 0)
