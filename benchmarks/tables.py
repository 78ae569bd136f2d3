"""The result tables of README and docs, made from the committed JSON and nothing else.

python benchmarks/tables.py            write them
python benchmarks/tables.py --check    fail if a page does not say what the JSON says
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import harness
import tyro

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "fast_weight_rnn.md")

#: test errors of Ba et al. 2016, tables 1 and 2, in %: task, units -> fast weights
PAPER = {("Retrieval", 50): 0.0, ("Glimpses", 50): 7.21}


def describe(run: dict[str, Any]) -> str:
    """What sets a run apart, in words."""
    model, task = run["config"]["model"], run["config"]["task"]
    cell = model["cell"]
    if cell == "fast-weights":
        cell += f", η = {model['rule']['lr']:g}" + (" (control)" if not model["rule"]["lr"] else "")
    where = f"K = {task['pairs']}" if "pairs" in task else "24 glimpses of MNIST"
    start = f", {model['start']} start" if "start" in model else ""
    return f"{where}, H = {model['hidden']}, {cell}{start}"


def paper(run: dict[str, Any]) -> str:
    """The paper's number for this setting, if it has one."""
    model = run["config"]["model"]
    number = PAPER.get((run["config"]["task"]["type"], model["hidden"]))
    same = model["cell"] == "fast-weights" and model["rule"]["lr"] > 0
    return f"{number:g} %" if same and number is not None else "–"


def row(run: dict[str, Any]) -> str:
    """One run as a line of the table."""
    best = run["test_best"]
    cells = [
        describe(run),
        str(run["config"]["seed"]),
        f"{run['updates']:,}",
        f"{100 * best['error']:.2f} %",
        f"{100 * run['test_last']['error']:.2f} %",
        paper(run),
    ]
    return "| " + " | ".join(cells) + " |"


def table(records: list[dict[str, Any]]) -> str:
    """Every run of every record."""
    head = ("run", "seed", "updates", "test error, best on validation", "at the end", "paper")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += [row(run) for record in records for run in record["runs"]]
    machine, versions = records[0]["machine"], records[0]["versions"]
    note = (
        f"{machine['cpu']}, {machine['cores']} cores; jax {versions['jax']}, "
        f"flax {versions['flax']}; {records[0]['date'][:10]}."
    )
    return "\n".join([*lines, "", note])


def render() -> str:
    """The table of the committed results."""
    files = [RESULTS / name for name in ("retrieval.json", "glimpses.json")]
    return table([json.loads(file.read_text()) for file in files])


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Write the tables.

    Attributes:
        check: change nothing; exit with 1 if a page is out of date.
    """

    check: bool = False


def main(arguments: Arguments) -> int:
    """Write or check."""
    text, stale = render(), []
    for page in PAGES:
        before = page.read_text()
        after = harness.between_markers(before, "results", text)
        if after != before:
            stale.append(page.name)
            if not arguments.check:
                page.write_text(after)
    if stale:
        print(("out of date: " if arguments.check else "written: ") + ", ".join(stale))
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Arguments)))
