"""The tables of `decode.py`'s record, in Markdown; targets are judged here, from the record."""

from typing import Any

from in_place_page import circumstances, target_table
from rnn_page import row

FASTER = 5.0  # times transformers
FLOOR = 1.5  # times the time to read the weights
FLOOR_CHECKPOINT = 1.15  # the same, of a checkpoint's model and one row


def tables(record: dict[str, Any]) -> str:
    """Targets, ratios, times."""
    return "\n\n".join(
        [
            f"{circumstances(record)}, {record['rounds']} rounds, {record['dtype']}, one sequence, "
            f"prompt {record['prompt']}, {record['new']} new tokens.",
            target_table(targets(record)),
            ratio_table(record),
            time_table(record),
            *checkpoint_tables(record),
        ]
    )


def name_of(model: dict[str, Any]) -> str:
    """A model by its size."""
    size = model["parameters"] / 1e6
    return f"{size:.0f} M" if size >= 100 else f"{size:.2g} M"


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
    for found_with in record.get("checkpoint", ()):
        value = found_with["over_floor"]["ours, unstacked, 1"]["median"]
        name = f"a step of one row / floor, {name_of(found_with)}, {found_with['precision']}"
        found.append((name, value, f"≤ {FLOOR_CHECKPOINT}", value <= FLOOR_CHECKPOINT))
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


def checkpoint_tables(record: dict[str, Any]) -> list[str]:
    """Of a checkpoint's model: a step's time over the floor, and in milliseconds, by batch."""
    found = record.get("checkpoint", ())
    if not found:
        return []
    batches = found[0]["batches"]
    first = found[0]
    text = (
        f"A checkpoint of {name_of(first)} parameters, {first['rounds']} rounds, {first['steps']} "
        f"steps after prompts of {record['prompt']} tokens; a step writes a token of every row. "
        "Cells: time over the floor, milliseconds in brackets. The last two columns are of one "
        "row: the first call with its compilation, and how many tokens in a row equal those of "
        "ours, stacked. Prompts are random tokens, whose likeliest next tokens are close: in "
        "bfloat16 the contenders round differently and their texts part."
    )
    head = "precision", "contender", *(f"{b} row{'s' * (b > 1)}" for b in batches), "first call s"
    lines = [row(*head, "same tokens"), row(*["---"] * (len(head) + 1))]
    for model in found:
        floor = model["ms_per_step"]["read the weights"]["median_ms"]
        lines.append(row(model["precision"], "floor", *[f"1 ({floor:.1f})"] * len(batches), "", ""))
        for name, calls in model["first_call_s"].items():
            cells = []
            for batch in batches:
                over = model["over_floor"][f"{name}, {batch}"]["median"]
                time = model["ms_per_step"][f"{name}, {batch}"]["median_ms"]
                cells.append(f"{over:.2f} ({time:.1f})")
            one = str(batches[0])
            same = f"{model['same_tokens'][name][one]} of {model['steps']}"
            lines.append(row(model["precision"], name, *cells, f"{calls[one]:.1f}", same))
    return [text, "\n".join(lines)]
