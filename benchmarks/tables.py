"""The result tables and pictures of README and docs, from the committed JSON and nothing else.

python benchmarks/tables.py            write them
python benchmarks/tables.py --check    fail if a page does not say what the JSON says
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import books
import books_long
import books_mixers
import books_why
import catch
import claims
import continued
import decode_page
import fst
import fst_continual
import gpu_page
import harness
import in_place_options
import in_place_page
import mixers
import real_checkpoint_check
import tyro

from fastweights.train.sweep_table import markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: page -> the tables between its markers
PAGES = {
    ROOT / "README.md": ("claims",),
    ROOT / "docs" / "fast_weight_rnn.md": (
        "results",
        "retrieval_table",
        "retrieval_long",
        "retrieval_decay",
        "glimpses_table",
        "glimpses_decay",
    ),
    ROOT / "docs" / "catch.md": ("catch", "catch_search", "catch_confirm", "catch_grid"),
    ROOT / "docs" / "performance.md": ("in_place", "decode", "gpu"),
    ROOT / "docs" / "in_place_ttt.md": (
        "real_checkpoint",
        "in_place_options",
        "in_place_options_gpu",
        "continued_search",
        "continued",
        "books",
        "books_long",
        "books_ablations",
    ),
    ROOT / "docs" / "rules.md": ("books_mixers", "mixers"),
    ROOT / "docs" / "inner_updates.md": ("books_ttt_mlp",),
    ROOT / "docs" / "fast_slow_measured.md": (
        "fst_conventions",
        "fst_star_graph",
        "fst_programs",
        "fst_short_prompts",
        "fst_in_place",
        "fst_continual",
        "fst_continual_rates",
    ),
}

#: results of a benchmark's own page module
SPEED = {
    "in_place": in_place_page.tables,
    "in_place_options": in_place_options.table,
    "in_place_options_gpu": in_place_options.table,
    "continued_search": continued.table,
    "continued": continued.table,
    "decode": decode_page.tables,
    "gpu": gpu_page.tables,
    "mixers": mixers.tables,
    "real_checkpoint": real_checkpoint_check.tables,
}

#: test errors of Ba et al. 2016, tables 1 and 2, in %: task, cell, units
PAPER = {
    ("Retrieval", "fast-weights", 50): 0.0,
    ("Retrieval", "lstm", 100): 0.0,
    ("Glimpses", "fast-weights", 50): 7.21,
}


def describe(run: dict[str, Any]) -> str:
    """What sets a run apart, in words."""
    model, task = run["config"]["model"], run["config"]["task"]
    cell = model["cell"]
    if cell == "fast-weights":
        cell += f", η = {model['rule']['lr']:g}" + (" (control)" if not model["rule"]["lr"] else "")
    where = f"K = {task['pairs']}" if "pairs" in task else "24 glimpses of MNIST"
    start = f", {model['start']} start" if "start" in model else ""
    decay = run["config"]["optim"]["weight_decay"]
    decayed = f", weight decay {decay:g}" if decay else ""
    return f"{where}, H = {model['hidden']}, {cell}{start}{decayed}"


def paper(run: dict[str, Any]) -> str:
    """The paper's number for this setting, if it has one."""
    model = run["config"]["model"]
    number = PAPER.get((run["config"]["task"]["type"], model["cell"], model["hidden"]))
    control = model["cell"] == "fast-weights" and not model["rule"]["lr"]
    return "–" if control or number is None else f"{number:g} %"


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
    machines = [f"{r['machine']['cpu']}, {r['machine']['cores']} cores" for r in records]
    versions = [f"jax {r['versions']['jax']}, flax {r['versions']['flax']}" for r in records]
    dates = sorted({r["date"][:10] for r in records})
    notes = (dict.fromkeys(machines), dict.fromkeys(versions), dates)
    return "\n".join([*lines, "", "; ".join(" and ".join(found) for found in notes) + "."])


def load(name: str) -> dict[str, Any]:
    """A committed result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def catch_table(suffix: str = "") -> str:
    """Both sizes of Catch, each with its circumstances."""
    parts, show = [], catch.best_table if suffix == "_search" else catch.table
    for size in (16, 24):
        if not (RESULTS / f"catch_{size}{suffix}.json").exists():
            parts.append(f"N = {size}: not run yet.")
            continue
        record = load(f"catch_{size}{suffix}")
        machine, versions = record["machine"], record["versions"]
        dates = sorted({run["date"][:10] for run in record["runs"]})
        parts.append(
            f"N = {size}, M = {record['visible']}; {record['runs'][0]['games']:,} games a run, "
            f"chance {record['chance']:+.3f}:\n\n{show(record['runs'])}\n\n"
            f"{machine['cpu']}, one core; jax {versions['jax']}; "
            f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}."
        )
    return "\n\n".join(parts)


def span(values: list[str]) -> str:
    """From the first to the last of them in order, or the only one."""
    return " to ".join(dict.fromkeys((min(values), max(values))))


def circumstances(runs: list[dict[str, Any]]) -> str:
    """Where, with what and when some runs were made."""
    cores = lambda number: "one core" if number == 1 else f"{number} cores"
    machines = sorted({f"{r['machine']['cpu']}, {cores(r['machine']['cores'])}" for r in runs})
    versions = sorted({f"jax {r['versions']['jax']}" for r in runs})
    dates = span([r["date"][:10] for r in runs])
    return f"{'; '.join(machines)}; {', '.join(versions)}; {dates}."


def books_table(name: str) -> str:
    """The arms or the ablations on held-out books, with their circumstances."""
    if not (RESULTS / f"{name}.json").exists():
        return "Not run yet."
    runs = load(name)["runs"]
    updates = span([f"{r['updates']:,}" for r in runs])
    table = books.table if name == "books" else books.ablation_table
    return (
        f"{table(runs)}\n\nNats a byte; {updates} updates; {runs[0]['rows']} windows; "
        f"{circumstances(runs)}"
    )


def fst_table(name: str) -> str:
    """The arms of fast-slow training on one task, with their circumstances."""
    if not (RESULTS / f"{name}.json").exists():
        return "Not run yet."
    runs = load(name)["runs"]
    updates = span([str(r["updates"]) for r in runs])
    rates = sorted({lr for name in fst.ARMS for lr in fst.swept(runs, name)})
    return (
        f"{fst.table(runs)}\n\nKL in nats an answer; {updates} updates; the best of "
        f"{', '.join(f'{rate:g}' for rate in rates)} as learning rate of each arm, by the "
        f"mean accuracy over all evaluations of seed {fst.SWEEP_SEED}; {circumstances(runs)}"
    )


def continual_table() -> str:
    """Every task after every task, with their circumstances."""
    runs = load("fst_continual")["runs"] if fst_continual.OUT.exists() else []
    shown = [run for name in fst_continual.ARMS for run in fst_continual.reported(runs, name)]
    if not shown:  # or only the sweep is
        return "Not run yet."
    peak = fst_continual.peaks(RESULTS, shown[0]["base"])
    return (
        f"{fst_continual.table(runs, peak)}\n\nAccuracy, mean and range over seeds; "
        f"{shown[0]['updates']} updates a task; {circumstances(shown)}"
    )


def continual_rate_table() -> str:
    """The sweep of the several tasks, with its circumstances."""
    runs = load("fst_continual")["runs"] if fst_continual.OUT.exists() else []
    swept = [run for run in runs if run["seed"] == fst.SWEEP_SEED]
    if not swept:
        return "Not run yet."
    return (
        f"{fst_continual.rate_table(runs)}\n\nAccuracy on test problems, seed {fst.SWEEP_SEED}; "
        f"{swept[0]['updates']} updates a task; {circumstances(swept)}"
    )


def draw_continual() -> None:
    """Accuracy on the task of the moment."""
    from matplotlib.figure import Figure

    from fastweights import plot

    runs = load("fst_continual")["runs"] if fst_continual.OUT.exists() else []
    arms = {
        name: [[(x, y) for stage in run["stages"] for x, y, _ in stage["curve"]] for run in mine]
        for name in fst_continual.ARMS
        if (mine := fst_continual.reported(runs, name))
    }
    if not arms:
        return
    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    plot.stage_curves(figure.subplots(), arms, runs[0]["tasks"], runs[0]["updates"])
    figure.savefig(ROOT / "docs" / "images" / "fst_continual.png", dpi=110)


def draw_fast_slow() -> None:
    """Accuracy by rollouts and by divergence, of the main arms; of all where they were not run."""
    from fastweights import plot

    for file in sorted(set(RESULTS.glob("fst_*.json")) - {fst_continual.OUT}):
        runs = load(file.stem)["runs"]
        there = [name for name in fst.ARMS if fst.reported(runs, name)]
        if len(there) < 2:
            continue  # nothing to compare
        names = fst.MAIN if set(fst.MAIN) <= set(there) else there
        curves = {
            f"{name}, seed {run['seed']}": fst.points(run)
            for name in names
            for run in fst.reported(runs, name)
        }
        figure = plot.fast_slow(curves, "prompts by inductive edits; a line is a seed")
        figure.savefig(ROOT / "docs" / "images" / f"{file.stem}.png", dpi=110)


def draw_books() -> None:
    """Loss against position, beside the baseline's, and beyond the length of training."""
    if not (RESULTS / "books.json").exists():
        return
    from matplotlib.figure import Figure

    from fastweights import plot

    runs = load("books")["runs"]
    if len({run["arm"] for run in runs}) < 2:
        return  # nothing to compare
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    plot.context_curves(left, books.position_curves(runs), "nats a byte")
    less = books.difference_curves(runs)
    if less:  # the baseline is zero, and in the colour that it has beside
        one = next(iter(less.values()))
        nothing = one._replace(mean=0 * one.mean, error=0 * one.error)
        plot.context_curves(
            middle, {books.BASELINE: nothing, **less}, f"less that of {books.BASELINE}"
        )
        middle.get_legend().remove()  # its lines are those of the left, and it would lie on them
    plot.context_curves(right, books.long_curves(runs), "nats a byte, the next 128")
    for ax in (left, middle):
        ax.set_xlabel("position in the window")
    right.set_xlabel("bytes read before; trained up to 1,024")
    figure.savefig(ROOT / "docs" / "images" / "books.png", dpi=110)


def draw_books_why() -> None:
    """Loss, size, rank and keys of the memory by position."""
    if not (RESULTS / "books_why.json").exists():
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    books_why.draw(load("books_why"), figure)
    figure.savefig(ROOT / "docs" / "images" / "books_why.png", dpi=110)


def draw_catch() -> None:
    """The pictures of docs/catch.md: every seed, or the best runs of the random search."""
    from matplotlib.figure import Figure

    from fastweights import plot

    titles = {
        "": "",
        "_search": f", the {catch.SHOWN} best runs of a random search",
        "_confirm": ", the best setting of the search with new seeds",
    }
    for size, (kind, title) in itertools.product((16, 24), titles.items()):
        name = f"catch_{size}{kind}"
        if not (RESULTS / f"{name}.json").exists():
            continue
        record, searched = load(name), kind == "_search"
        arms: dict[str, list[Any]] = {}
        for arm in dict.fromkeys(run["arm"] for run in record["runs"]):
            mine = [run for run in record["runs"] if run["arm"] == arm]
            shown = catch.best_runs(mine, arm) if searched else mine
            arms[arm] = [run["curve"] for run in shown]
        figure = Figure(figsize=(9, 4), layout="constrained")
        ax = plot.reward_curves(
            figure.subplots(),
            arms,
            record["chance"],
            middle="mean" if searched else "median",
            of="runs" if searched else "seeds",
        )
        ax.set_title(f"Catch, N = {size}, M = {record['visible']}{title}", loc="left", fontsize=10)
        figure.savefig(ROOT / "docs" / "images" / f"{name}.png", dpi=110)


def render(name: str) -> str:
    """One table of the committed results."""
    if name == "results":
        return table([load("retrieval"), load("retrieval_lstm"), load("glimpses")])
    if name == "claims":
        return claims.table(load, lambda result: (RESULTS / f"{result}.json").exists())
    if name == "books_ttt_mlp":
        (run,) = load(name)["runs"]
        heads = " | ".join(f"{point['step']} updates" for point in run["curve"])
        cells = " | ".join(f"{point['loss']:.3f}" for point in run["curve"])
        return f"| | {heads} |\n|---|{len(run['curve']) * '---|'}\n| validation loss | {cells} |"
    if name in ("books_mixers", "books_long"):
        if not (RESULTS / f"{name}.json").exists():
            return gpu_page.NOT_MEASURED.format(name)
        runs = load(name)["runs"]
        show = books_mixers.table if name == "books_mixers" else books_long.table
        seeds = "seed " + ", ".join(map(str, sorted({run["seed"] for run in runs})))
        made = f"{runs[0]['updates']:,} updates, {seeds}"
        return f"{show(runs)}\n\n{made}; {circumstances(runs)}"
    if name.startswith("books"):
        return books_table(name)
    if name == "fst_continual":
        return continual_table()
    if name == "fst_continual_rates":
        return continual_rate_table()
    if name.startswith("fst_"):
        return fst_table(name)
    if name in SPEED:
        found = (RESULTS / f"{name}.json").exists()
        return SPEED[name](load(name)) if found else gpu_page.NOT_MEASURED.format(name)
    if name.startswith("catch"):
        return catch_table(name.removeprefix("catch"))
    return markdown(load(name)) if (RESULTS / f"{name}.json").exists() else "Not run yet."


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Write the tables.

    Attributes:
        check: change nothing; exit with 1 if a page is out of date.
    """

    check: bool = False


def main(arguments: Arguments) -> int:
    """Write or check."""
    stale = []
    for page, names in PAGES.items():
        before = after = page.read_text()
        for name in names:
            after = harness.between_markers(after, name, render(name))
        if after != before:
            stale.append(page.name)
            if not arguments.check:
                page.write_text(after)
    if not arguments.check:
        draw_catch()
        draw_books()
        draw_books_why()
        draw_fast_slow()
        draw_continual()
    if stale:
        print(("out of date: " if arguments.check else "written: ") + ", ".join(stale))
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Arguments)))
