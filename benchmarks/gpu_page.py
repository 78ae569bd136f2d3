"""The tables of `gpu.py`'s record, in Markdown; what is not there is said to be not measured."""

import json
from pathlib import Path
from typing import Any

import gpu_sizes
from in_place_page import GIB, size_of
from rnn_page import row

#: slowdown of a prefill by six in-place layers at 8k tokens; the paper's is 6.7 %
PREFILL = 1.05
#: share of the measured product rate in training
UTILISATION = 0.6
#: of a benchmark by its name, where it has no JSON
NOT_MEASURED = "Not measured: no run of `python benchmarks/{}.py` has been recorded."


def kept(path: Path, small: bool) -> dict[str, Any]:
    """Sections of an earlier run, to be replaced one by one; none of another size."""
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    return record["sections"] if record["small"] == small else {}


def tables(record: dict[str, Any]) -> str:
    """Every section, each with its circumstances."""
    parts = []
    for name, render in RENDER.items():
        section = record["sections"].get(name)
        if section is None:
            parts.append(f"**{name}**: not measured.")
            continue
        device, versions = section["device"]["kind"], section["versions"]
        text = f"**{name}**: {device}, {section['date'][:10]}, jax {versions['jax']}."
        parts += [text, render(section["values"], record["sections"])]
    return "\n\n".join(parts)


def gemm(sections: dict[str, Any]) -> float | None:
    """The best product rate measured, FLOP/s."""
    if "ceilings" not in sections:
        return None
    return max(sections["ceilings"]["values"]["gemm_flops_s"].values())


def share(value: float | None, whole: float | None) -> str:
    """A part of a ceiling in %, – where one of them is not known."""
    return f"{100 * value / whole:.0f} %" if value and whole else "–"


def ceilings(values: dict[str, Any], sections: dict[str, Any]) -> str:
    """Copy and products."""
    lines = [row("ceiling", "measured"), row("---", "---")]
    lines.append(row("copy, read and write", f"{values['copy_bytes_s'] / 1e12:.3g} TB/s"))
    for n, flops in values["gemm_flops_s"].items():
        lines.append(row(f"bfloat16 product, {n}³", f"{flops / 1e12:.3g} TFLOP/s"))
    return "\n".join(lines)


def layer(values: dict[str, Any], sections: dict[str, Any]) -> str:
    """One in-place layer."""
    head = "T, C, d, f", "mode", "contender", "ms", "µs a chunk", "over plain", "share of product"
    head = *head, "temp GiB"
    lines = [row(*head), row(*["---"] * len(head))]
    for group in values["groups"]:
        start = size_of(group), group["mode"]
        for name, c in group["contenders"].items():
            over = group["over_plain"].get(name)
            cells = f"{c['median_ms']:.3g}", f"{c['us_per_chunk']:.3g}"
            cells = *cells, f"{over['median']:.2f}" if over else "–"
            cells = *cells, share(c["flops_s"], gemm(sections))
            temp = "–" if c["temp_bytes"] is None else f"{c['temp_bytes'] / GIB:.2f}"
            lines.append(row(*start, name, *cells, temp))
        lines += [row(*start, n, "out of memory", *["–"] * 4) for n in group["out_of_memory"]]
    return "\n".join(lines)


def prefill(values: dict[str, Any], sections: dict[str, Any]) -> str:
    """What learning costs a prompt."""
    head = f"{values['length']} tokens", "tokens/s plain", "tokens/s in place", "in place / plain"
    head = *head, f"wanted ≤ {PREFILL}", "plain, share of product"
    lines = [row(*head), row(*["---"] * len(head))]
    for kind, slow in values["slowdown"].items():
        speeds = [values["tokens_s"][f"{kind}, {name}"] for name in ("plain", "in place")]
        rate = values["flops"] * speeds[0] / values["length"]
        reached = "reached" if slow["median"] <= PREFILL else "not reached"
        text = "{median:.3f} [{q1:.3f}, {q3:.3f}]".format(**slow)
        cells = [f"{x:,.0f}" for x in speeds]
        lines.append(row(kind, *cells, text, reached, share(rate, gemm(sections))))
    bound = 1 + values["in_place_flops"] / values["flops"]
    return "\n".join([*lines, "", f"By FLOPs alone it would be {bound:.3f}."])


def train(values: list[dict[str, Any]], sections: dict[str, Any]) -> str:
    """Training steps; the share of the ceiling is model FLOPs utilisation."""
    if not values:
        return "No depth fits in memory."
    kind = sections["train"]["device"]["kind"]
    head = "model", "layers", "parameters", "tokens/s", "TFLOP/s", "of measured product"
    head = *head, "of data sheet", "of product, attention counted in full"
    lines = [row(*head), row(*["---"] * len(head))]
    for one in values:
        rate, full = (one["model_flops_s"][name] for name in ("causal", "full"))
        name = "in place" if one["in_place"] else "plain"
        cells = one["layers"], f"{one['parameters'] / 1e9:.3g} B", f"{one['tokens_s']:,.0f}"
        shares = share(rate, gemm(sections)), share(rate, gpu_sizes.peak(kind))
        shares = *shares, share(full, gemm(sections))
        lines.append(row(name, *cells, f"{rate / 1e12:.3g}", *shares))
    return "\n".join([*lines, "", f"Wanted: {UTILISATION:.0%} of the measured product."])


def decode(values: list[dict[str, Any]], sections: dict[str, Any]) -> str:
    """Steps of decoding and the bytes they read."""
    copy = sections["ceilings"]["values"]["copy_bytes_s"] if "ceilings" in sections else None
    head = "fast weights", "rows", "ms a step", "tokens/s", "over plain", "GB a step", "of copy"
    lines = [row(*head), row(*["---"] * len(head))]
    plain = {one["batch"]: one.get("ms_per_step") for one in values if one["kind"] == "plain"}
    for one in values:
        start = one["kind"], one["batch"]
        if "out_of_memory" in one:
            lines.append(row(*start, "out of memory", *["–"] * 4))
            continue
        ms, size = one["ms_per_step"], sum(one["bytes"].values())
        base = plain.get(one["batch"])
        over = f"{ms / base:.2f}" if base else "–"
        cells = f"{ms:.3g}", f"{one['tokens_s']:,.0f}", over, f"{size / 1e9:.3g}"
        lines.append(row(*start, *cells, share(1e3 * size / ms, copy)))
    return "\n".join(lines)


RENDER = {
    "ceilings": ceilings,
    "layer": layer,
    "prefill": prefill,
    "train": train,
    "decode": decode,
}
