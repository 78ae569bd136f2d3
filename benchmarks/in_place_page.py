"""The tables of `in_place.py`'s record, in Markdown; targets are judged here, from the record."""

from typing import Any

from rnn_page import row

GIB = 2**30
#: mode -> the largest ratio to the plain projection that we want, at the first size
RATIOS = {"forward": 2.3, "train": 2.6}
#: GiB of temporaries of one layer at 32k tokens, for chunks of 512 and 1024
MEMORY = 2.5


def circumstances(record: dict[str, Any]) -> str:
    """Command, date, machine, load, versions and seed, in a sentence."""
    machine, versions = record["machine"], record["versions"]
    packages = ", ".join(f"{n} {v}" for n, v in versions.items() if v and n != "fastweights")
    load = " to ".join(str(record[k][0]) for k in ("load_start", "load_end"))
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    return (
        f"`{record['command']}`, {record['date'][:10]}, {machine['cpu']}, {cores}, "
        f"load average {load}, {packages}, seed {record['seed']}"
    )


def tables(record: dict[str, Any]) -> str:
    """Targets, ratios, times, memory, circumstances."""
    return "\n\n".join(
        [
            f"{circumstances(record)}, {record['rounds']} rounds, {record['dtype']}.",
            target_table(targets(record)),
            ratio_table(record),
            time_table(record),
            memory_table(record),
        ]
    )


def targets(record: dict[str, Any]) -> list[tuple[str, float, str, bool]]:
    """What was wanted at the first size: name, what was found, what was wanted, is it reached.

    PyTorch is judged by minima, which waits of its thread pool on a busy machine do not touch.
    """
    found = []
    for group in record["groups"][:2]:
        mode, limit = group["mode"], RATIOS[group["mode"]]
        value = group["over_plain"]["ours"]["median"]
        found.append((f"ours / plain, {mode}", value, f"≤ {limit}", value <= limit))
        value = group["over_ours"]["materialised"]["median"]
        found.append((f"materialised / ours, {mode}", value, "> 1", value > 1))
        if "torch eager" in group["contenders"]:
            torch, ours = (group["contenders"][n]["min_ms"] for n in ("torch eager", "ours"))
            name = f"torch eager / ours, {mode}, minima"
            found.append((name, torch / ours, "> 1", torch > ours))
    for case in record["memory"]:
        value = case["temp_bytes"]["ours"] / GIB
        if case["chunk"] <= 1024:
            name = f"GiB of one layer, C = {case['chunk']}"
            found.append((name, value, f"≤ {MEMORY}", value <= MEMORY))
    return found


def target_table(found: list[tuple[str, float, str, bool]]) -> str:
    """Targets and whether they are reached."""
    lines = [row("target", "wanted", "measured", "reached"), row(*["---"] * 4)]
    for name, value, wanted, reached in found:
        lines.append(row(name, wanted, f"{value:.2f}", "yes" if reached else "no"))
    return "\n".join(lines)


def size_of(group: dict[str, Any]) -> str:
    """T, C, d, f."""
    return ", ".join(str(group[k]) for k in ("length", "chunk", "d", "f"))


def ratio_table(record: dict[str, Any]) -> str:
    """Time over the plain projection's: median over rounds, quartiles in brackets."""
    names = list(dict.fromkeys(name for g in record["groups"] for name in g["over_plain"]))
    head = "T, C, d, f", "mode", "products", *names
    lines = [row(*head), row(*["---"] * len(head))]
    for group in record["groups"]:
        cells = []
        for name in names:
            ratio = group["over_plain"].get(name)
            cells.append("{median:.2f} [{q1:.2f}, {q3:.2f}]".format(**ratio) if ratio else "–")
        lines.append(row(size_of(group), group["mode"], f"{group['products']:.2f}", *cells))
    return "\n".join(lines)


def time_table(record: dict[str, Any]) -> str:
    """Median and quartiles, compile time, planned memory and error of every contender."""
    head = "T, C, d, f", "mode", "contender", "median ms", "quartiles", "compile s", "temp MiB"
    head = *head, "norm ratio to float64"
    lines = [row(*head), row(*["---"] * len(head))]
    for group in record["groups"]:
        for name, c in group["contenders"].items():
            temp = "–" if c["temp_bytes"] is None else f"{c['temp_bytes'] / 2**20:.1f}"
            spread = f"{c['q1_ms']:.3g}–{c['q3_ms']:.3g}"
            values = f"{c['median_ms']:.3g}", spread, c["compile_s"], temp, f"{c['error']:.1e}"
            lines.append(row(size_of(group), group["mode"], name, *values))
    return "\n".join(lines)


def memory_table(record: dict[str, Any]) -> str:
    """Planned temporaries of one large layer, GiB."""
    names = list(record["memory"][0]["temp_bytes"])
    lines = [row("T, C, d, f", *(f"{n}, GiB" for n in names)), row(*["---"] * (len(names) + 1))]
    for case in record["memory"]:
        cells = (f"{case['temp_bytes'][name] / GIB:.2f}" for name in names)
        lines.append(row(size_of(case), *cells))
    return "\n".join(lines)
