"""What a sweep found, as a table in Markdown, and under it how it was found."""

import statistics
from collections.abc import Mapping
from typing import Any


def markdown(record: Mapping[str, Any]) -> str:
    """The table: test error in %, mean ± standard deviation over seeds, in brackets of the seed
    best on validation, the paper's number beside it.
    """
    cells = {(cell["arm"], cell["units"]): cell for cell in record["cells"]}
    heads = [f"{units} units | paper" for units in record["units"]]
    lines = [
        f"| test error, % | {' | '.join(heads)} |",
        "|---|" + "---:|---:|" * len(heads),
    ]
    for name in record["arms"]:
        row = []
        for units in record["units"]:
            cell = cells.get((name, units))
            paper = record["paper"].get(name, {}).get(str(units))
            found = f"{result(cell)}{best_seed(cell)}" if cell else "not run"
            row += [found, "–" if paper is None else f"{paper:g}"]
        lines.append(f"| {name} | {' | '.join(row)} |")
    notes = []
    if record["chance"] is not None:
        notes.append(f"Chance is {100 * record['chance']:.2f} %.")
    if record["cells"]:
        notes.append(circumstances(record["cells"]))
    return "\n".join([*lines, "", " ".join(notes)])


def result(cell: Mapping[str, Any]) -> str:
    """Mean ± standard deviation over a cell's seeds, of the checkpoint best on validation."""
    errors = [100 * seed["test"]["error"] for seed in cell["seeds"]]
    text = f"{statistics.fmean(errors):.2f}"
    if len(errors) > 1:
        text += f" ± {statistics.stdev(errors):.2f}"
    failed = sum(seed["diverged"] for seed in cell["seeds"])
    return f"{text}, {failed} diverged" if failed else text


def best_seed(cell: Mapping[str, Any]) -> str:
    """Test error of the seed that is best on validation, in brackets: of several alike the first,
    of a single one nothing.
    """
    if len(cell["seeds"]) == 1:
        return ""
    best = min(cell["seeds"], key=lambda seed: seed["validation"])
    return f" ({100 * best['test']['error']:.2f})"


def circumstances(cells: list[Mapping[str, Any]]) -> str:
    """How the cells were made, in a sentence or two."""
    updates = sorted({cell["updates"] for cell in cells})
    seeds = sorted({len(cell["seeds"]) for cell in cells})
    machines = sorted({f"{c['machine']['cpu']}, {c['machine']['cores']} cores" for c in cells})
    versions = sorted({f"jax {c['versions']['jax']}" for c in cells})
    minutes = sum(cell["wall_seconds"] for cell in cells) / 60
    dates = sorted({cell["date"][:10] for cell in cells})
    grid = [point for cell in cells for point in cell["grid"]]
    batches = sorted({point["batch"] for point in grid})
    tried = {
        name: sorted({point["optim"][key] for point in grid})
        for name, key in (("learning rate", "lr"), ("weight decay", "weight_decay"))
    }
    over = "One seed"
    if seeds != [1]:
        over = (
            f"Mean ± standard deviation over {span(seeds)} seeds, in brackets the one that is best "
            "on validation"
        )
    parts = []
    for name, values in tried.items():
        if len(values) > 1:
            listed = ", ".join(f"{value:g}" for value in values)
            parts.append(f"{name} from {{{listed}}} by validation error of another seed")
        elif values[0]:
            parts.append(f"{name} {values[0]:g}")
    return (
        f"{over}; {span(updates)} updates of {span(batches)}; {'; '.join(parts)}; test error "
        f"of the checkpoint best on validation. {minutes:,.0f} minutes of wall-clock time "
        f"in all, on a machine that others used too; "
        f"{'; '.join(machines)}; {', '.join(versions)}; {span(dates)}."
    )


def span(values: list[Any]) -> str:
    """One value, or the first and the last."""
    texts = [f"{v:,}" if isinstance(v, int) else str(v) for v in values]
    return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"
