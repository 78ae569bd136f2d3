"""The tables of `decode.py`'s record, in Markdown; targets are judged here, from the record."""

from typing import Any

from in_place_page import circumstances, target_table
from rnn_page import row

FASTER = 5.0  # times transformers
FLOOR = 1.5  # times the time to read the weights


def tables(record: dict[str, Any]) -> str:
    """Targets, ratios, times."""
    return "\n\n".join(
        [
            f"{circumstances(record)}, {record['rounds']} rounds, {record['dtype']}, one sequence, "
            f"prompt {record['prompt']}, {record['new']} new tokens.",
            target_table(targets(record)),
            ratio_table(record),
            time_table(record),
        ]
    )


def name_of(model: dict[str, Any]) -> str:
    """A model by its size."""
    return f"{model['parameters'] / 1e6:.2g} M"


def targets(record: dict[str, Any]) -> list[tuple[str, float, str, bool]]:
    """What was wanted: name, what was found, what was wanted of it, whether it is reached."""
    found = []
    for model in record["models"]:
        ratios = model["ratios"]
        if "transformers / ours" in ratios:
            value = ratios["transformers / ours"]["median"]
            name = f"transformers / ours, {name_of(model)}"
            found.append((name, value, f"≥ {FASTER:g}", value >= FASTER))
        value = ratios["decode alone / floor"]["median"]
        name = f"decode alone / floor, {name_of(model)}"
        found.append((name, value, f"≤ {FLOOR}", value <= FLOOR))
    return found


def ratio_table(record: dict[str, Any]) -> str:
    """Ratios: median over rounds, quartiles in brackets."""
    names = list(dict.fromkeys(name for m in record["models"] for name in m["ratios"]))
    lines = [row("parameters", *names, "same tokens"), row(*["---"] * (len(names) + 2))]
    for model in record["models"]:
        found = (model["ratios"].get(name) for name in names)
        cells = ("{median:.2f} [{q1:.2f}, {q3:.2f}]".format(**r) if r else "–" for r in found)
        same = model["same_tokens"]
        text = "–" if same is None else f"{same} of {record['new']}"
        lines.append(row(name_of(model), *cells, text))
    return "\n".join(lines)


def time_table(record: dict[str, Any]) -> str:
    """Milliseconds a token: median, quartiles, minimum."""
    head = "parameters", "contender", "ms a token", "quartiles", "minimum"
    lines = [row(*head), row(*["---"] * len(head))]
    for model in record["models"]:
        for name, c in model["ms_per_token"].items():
            spread = f"{c['q1_ms']:.3g}–{c['q3_ms']:.3g}"
            cells = f"{c['median_ms']:.3g}", spread, f"{c['min_ms']:.3g}"
            lines.append(row(name_of(model), name, *cells))
    return "\n".join(lines)
