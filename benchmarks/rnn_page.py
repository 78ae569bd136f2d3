"""The tables of `rnn.py`'s record, in Markdown."""

from typing import Any


def size_of(group: dict[str, Any]) -> str:
    """Batch, length and width of one group."""
    return f"{group['batch']}, {group['length']}, {group['hidden']}"


def tables(record: dict[str, Any]) -> str:
    """Ratios first, then times, then where the two forms cross, then the circumstances."""
    machine, versions = record["machine"], record["versions"]
    packages = ", ".join(f"{n} {v}" for n, v in versions.items() if v and n != "fastweights")
    load = " to ".join(str(record[k][0]) for k in ("load_start", "load_end"))
    return "\n\n".join(
        [
            f"`{record['command']}`, {record['date'][:10]}, {machine['cpu']}, {machine['cores']} "
            f"cores, load average {load}, {packages}, seed {record['seed']}, "
            f"{record['rounds']} rounds, {record['dtype']}.",
            ratio_table(record),
            time_table(record),
            crossover_table(record),
        ]
    )


def row(*cells: object) -> str:
    """One line of a table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def ratio_table(record: dict[str, Any]) -> str:
    """How many times longer each rival takes: median over rounds, quartiles in brackets."""
    labels = list(dict.fromkeys(label for g in record["layers"] for label in g["ratios"]))
    lines = [row("batch, T, H", "mode", *labels), row(*["---"] * (len(labels) + 2))]
    for group in record["layers"]:
        cells = []
        for label in labels:
            found = group["ratios"].get(label)
            text = "{median:.2f} [{q1:.2f}, {q3:.2f}]".format(**found) if found else "–"
            cells.append(text)
        lines.append(row(size_of(group), group["mode"], *cells))
    return "\n".join(lines)


def time_table(record: dict[str, Any]) -> str:
    """Median, quartiles, compile time and planned memory of every contender."""
    head = "batch, T, H", "mode", "contender", "median ms", "quartiles", "compile s", "temp MiB"
    lines = [row(*head), row(*["---"] * len(head))]
    for group in record["layers"]:
        for name, c in group["contenders"].items():
            temp = "–" if c["temp_bytes"] is None else f"{c['temp_bytes'] / 2**20:.1f}"
            spread = f"{c['q1_ms']:.3g}–{c['q3_ms']:.3g}"
            compiling = "–" if c["compile_s"] is None else c["compile_s"]
            values = f"{c['median_ms']:.3g}", spread, compiling, temp
            lines.append(row(size_of(group), group["mode"], name, *values))
    return "\n".join(lines)


def crossover_table(record: dict[str, Any]) -> str:
    """Matrix time over attention time at each T, and the T where it falls below 1."""
    head = "batch, H, S", "mode", "matrix / attention at T", "crosses at T", "T / H"
    lines = [row(*head), row(*["---"] * len(head))]
    for c in record["crossover"]:
        points = [(p["length"], p["matrix_over_attention"]["median"]) for p in c["points"]]
        at = c["crosses_at"]
        if at is None:
            beyond = points[-1][1] >= 1
            at = f"> {points[-1][0]}" if beyond else f"< {points[0][0]}"
            share = "–"
        else:
            share = f"{at / c['hidden']:.2f}"
        text = ", ".join(f"{length}: {value:.2f}" for length, value in points)
        lines.append(row(f"{c['batch']}, {c['hidden']}, {c['steps']}", c["mode"], text, at, share))
    return "\n".join(lines)
