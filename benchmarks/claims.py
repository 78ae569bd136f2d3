"""The README's table: what was measured, a line a claim, from the committed JSON.

Each line names what it is compared with, and says so where the comparison is lost.
"""

import statistics
from collections.abc import Callable
from typing import Any

import books
import books_long
import catch
import continued
import fst
import fst_continual
import numpy as np
from in_place_page import GIB

from fastweights.train.sweep_table import result

Load = Callable[[str], dict[str, Any]]


def table(load: Load, there: Callable[[str], bool]) -> str:
    """Every claim whose results are there.

    Args:
        load: a result by its name.
        there: whether a result of that name is committed.
    """
    lines = ["| what | measured | beside it | how |", "|---|---|---|---|"]
    for name, claims in CLAIMS:
        if there(name):
            lines += [f"| {' | '.join(row)} |" for row in claims(load(name))]
    return "\n".join(lines)


def sweep_row(record: dict[str, Any], what: str, units: int, others: dict[str, str]) -> list[str]:
    """Test error of fast weights beside that of other arms of one size, in %."""
    cells = {(cell["arm"], cell["units"]): cell for cell in record["cells"]}
    ours = cells[("fast weights", units)]
    length = lambda cell: (
        "" if cell["updates"] == ours["updates"] else f" after {cell['updates']:,} updates"
    )
    beside = ", ".join(
        f"{word} {result(cells[(arm, units)])}{length(cells[(arm, units)])}"
        for arm, word in others.items()
    )
    settings = max(len(cells[(arm, units)]["grid"]) for arm in others)
    how = (
        f"{len(ours['seeds'])} seeds, {ours['updates']:,} updates, best of {len(ours['grid'])} "
        f"settings on validation, others of {settings}"
    )
    if (paper := record["paper"]["fast weights"].get(str(units))) is not None:
        how += f"; the paper has {paper:g}"
    page = "[table](docs/fast_weight_rnn.md)"
    return [what, f"**{result(ours)} %**", beside, f"{how}; {page}"]


def retrieval(record: dict[str, Any]) -> list[list[str]]:
    """Table 1 at 50 units."""
    others = {
        "associative LSTM": "Associative LSTM",
        "LSTM": "LSTM",
        "fast weights, η = 0": "nothing written",
    }
    return [sweep_row(record, "retrieval, test error, 50 units", 50, others)]


def small_retrieval(record: dict[str, Any]) -> list[list[str]]:
    """Its smallest size, with the updates that this takes."""
    others = {"LSTM": "LSTM", "layer-normed RNN": "layer-normed RNN"}
    return [sweep_row(record, "the same, 20 units", 20, others)]


def glimpses(record: dict[str, Any]) -> list[list[str]]:
    """Table 2 at 50 units."""
    others = {"LSTM": "LSTM", "IRNN": "IRNN", "fast weights, η = 0": "nothing written"}
    return [sweep_row(record, "MNIST in 24 glimpses, test error, 50 units", 50, others)]


def games(level: str, setting: str) -> Callable[[dict[str, Any]], list[list[str]]]:
    """Games of Catch to a level, an arm beside another; `setting` says how theirs was taken."""

    def row(record: dict[str, Any]) -> list[list[str]]:
        arms = {arm: [r for r in record["runs"] if r["arm"] == arm] for arm in catch.ARMS}
        count = lambda arm: catch.spread([r["games_to"][level] for r in arms[arm]])
        seeds = len(arms["LSTM"])
        what = f"Catch, N = {record['size']}, games to a mean reward of {level}"
        how = f"median (range) of {seeds} seeds, {setting}; [curves](docs/catch.md)"
        beside = f"LSTM {count('LSTM')}; ReLU RNN {count('RNN')}"
        return [[what, f"**{count('RNN + fast weights')}**", beside, how]]

    return row


def text(record: dict[str, Any]) -> list[list[str]]:
    """Test-time training on held-out books, beside as many parameters without it, and fewer."""
    runs = record["runs"]
    found = books.compared(runs, books.OURS, books.WIDER)
    same = books.compared(runs, books.OURS)
    if found is None or same is None:
        return []
    number = lambda pair: f"{pair[0]:+.4f} ± {pair[1]:.4f}"
    beside = (
        f"its first eighth {number(found['first'])}; "
        f"less that of the same model without {number(same['end'])}"
    )
    return [
        [
            "books, loss of In-Place TTT less that of a model without it and as many parameters, "
            "second half of a window",
            f"**{number(found['end'])}**",
            beside,
            f"nats a byte, error over windows, {len(found['seeds'])} seeds; "
            "[curves](docs/in_place_ttt.md)",
        ]
    ]


def beyond(record: dict[str, Any]) -> list[list[str]]:
    """Test-time training at 16 times its training length, with a decay and as released."""

    def last_half(arm: str) -> tuple[list[int], str]:
        seeds, own, base = books_long.paired(record["runs"], arm, "losses")
        less = [own[book][-1] - base[book][-1] for book in own]
        return seeds, ", ".join(f"{x.mean():+.3f}" for x in less)

    decayed = last_half(f"{books_long.RELEASED}, decay 0.9 afterwards")
    released = last_half(books_long.RELEASED)
    if not (decayed[0] and released[0]):
        return []
    first, end = books_long.PARTS[-1], books_long.LENGTH
    return [
        [
            f"the same at {first:,} to {end:,} bytes, trained on 1,024; after training, W - W0 "
            "is multiplied by 0.9 before every write; two books",
            f"**{decayed[1]}**",
            f"as released {released[1]}",
            f"nats a byte, {len(decayed[0])} seeds; [by position](docs/in_place_ttt.md)",
        ]
    ]


def trained_on(record: dict[str, Any]) -> list[list[str]]:
    """A real checkpoint trained on with and without writes, on the validation book."""
    runs = {run["arm"]: run for run in record["runs"]}
    base = runs.get(f"{continued.CONTROL}, rate {continued.Arm().lr:g}")
    if base is None:
        return []
    lasts = continued.PARTS.index(1024)
    of = lambda run: next(iter(run["validation_losses"].values()))
    less = lambda run, part: float(np.mean(of(run)[part]) - np.mean(of(base)[part]))
    late = lambda run: continued.weighted(of(run), lasts) - continued.weighted(of(base), lasts)
    ours = min((runs[x] for x in continued.OTHERS if x in runs), key=late, default=None)
    released = min((runs[x] for x in continued.AS_RELEASED if x in runs), key=late, default=None)
    if ours is None or released is None:
        return []
    tokens = base["updates"] * base["batch"] * base["row"]
    form = next(name for name in continued.OTHERS if runs.get(name) is ours)
    known = next(name for name in continued.AS_RELEASED if runs.get(name) is released)
    return [
        [
            "SmolLM2-135M trained on books, attention to 512 tokens, loss with writes less that of "
            "the same training without, 1,024 to 8,192 tokens",
            f"**{late(ours):+.3f}**",
            f"{less(ours, 0):+.3f} at 0 to 256, before any write; {known} {late(released):+.3f}",
            f"{form}; nats a token, one seed, {tokens:,} tokens, {len(runs)} of "
            f"{len(continued.SEARCHED)} arms, the book that settings are chosen by; "
            "[by position](docs/in_place_ttt.md#on-a-pretrained-model)",
        ]
    ]


def layer(record: dict[str, Any]) -> list[list[str]]:
    """Time and memory of one in-place layer."""
    group = next(g for g in record["groups"] if g["mode"] == "train")
    size = f"T {group['length']}, C {group['chunk']}, d {group['d']}, f {group['f']}"
    memory = record["memory"][0]
    ours, other = (memory["temp_bytes"][name] / GIB for name in ("ours", "materialised"))
    page = "[more](docs/performance.md)"
    return [
        [
            "in-place layer, time of a training step over a plain layer's",
            f"**{group['over_plain']['ours']['median']:.2f}**",
            f"PyTorch's in-place layer {group['over_plain']['torch eager']['median']:.2f}",
            f"one core, {size}; {page}",
        ],
        [
            f"the same, temporary memory at Qwen3-4B's size, T {memory['length']:,}",
            f"**{ours:.2f} GiB**",
            f"all of a row's fast weights at once {other:.1f} GiB",
            f"XLA's plan, C {memory['chunk']}; {page}",
        ],
    ]


def decoding(record: dict[str, Any]) -> list[list[str]]:
    """Speed of decoding over transformers'."""
    ratio = lambda model: model["ratios"]["transformers / ours"]["median"]
    small, large = record["models"]
    size = lambda model: f"{model['parameters'] / 1e6:.2g} M parameters"
    return [
        [
            f"decoding, times as fast as transformers, {size(small)}",
            f"**{ratio(small):.1f}**",
            f"{size(large)} {ratio(large):.1f}, where 5 was wanted",
            "one core, one sequence, float32, `unstacked`; [more](docs/performance.md)",
        ]
    ]


def prompts(what: str) -> Callable[[dict[str, Any]], list[list[str]]]:
    """Final accuracy of fast-slow training, its two halves, and one after the other."""

    def row(record: dict[str, Any]) -> list[list[str]]:
        runs = record["runs"]
        final = {
            name: statistics.fmean(fst.column(r, "accuracy_own")[-1] for r in mine)
            for name in (*fst.MAIN, "evolution-rl")
            if (mine := fst.reported(runs, name))
        }
        beside = f"RL only {100 * final['rl']:.1f}, prompts only {100 * final['evolution']:.1f}"
        if "evolution-rl" in final:
            beside += f", prompts and then weights {100 * final['evolution-rl']:.1f}"
        seeds = len(fst.reported(runs, "fst"))
        how = f"{seeds} seeds, {runs[0]['updates']} updates; [more](docs/fast_slow_measured.md)"
        return [[what, f"**{100 * final['fst']:.1f} %**", beside, how]]

    return row


def several(record: dict[str, Any]) -> list[list[str]]:
    """What is left of the first tasks of a run after its last one."""
    *first, _ = record["runs"][0]["tasks"]
    left, rates, seeds = {}, {}, set()
    for name in fst_continual.ARMS:
        runs = fst_continual.reported(record["runs"], name)
        if runs:
            ends = [run["stages"][-1]["scores"] for run in runs]
            seeds.add(len(ends))
            rates[name] = runs[0]["lr"]
            means = [statistics.fmean(x[task]["accuracy_own"] for x in ends) for task in first]
            left[name] = ", ".join(f"{100 * mean:.1f}" for mean in means)
    words = {"rl": "RL only", "evolution-rl": "prompts and then weights"}
    others = [name for name in words if name in left]
    beside = ", ".join(f"{words[name]} {left[name]}" for name in others)
    each, last = record["runs"][0]["updates"], len(first) + 1
    slow = ", ".join(f"{words[name]} {rates[name]:g}" for name in others)
    how = (
        f"{' to '.join(map(str, sorted(seeds)))} seeds, {each} updates a task, learning rate "
        f"{rates['fst']:g}, {slow}"
    )
    return [
        [
            f"the same, {last} tasks in a row, accuracy on the first {last - 1} at the end",
            f"**{left['fst']} %**",
            beside,
            f"{how}; [more](docs/fast_slow_measured.md)",
        ]
    ]


#: name of a result -> its lines
CLAIMS: tuple[tuple[str, Callable[[dict[str, Any]], list[list[str]]]], ...] = (
    ("retrieval_table", retrieval),
    ("retrieval_long", small_retrieval),
    ("glimpses_table", glimpses),
    ("catch_16_confirm", games("0.9", f"best of {catch.DRAWS} settings at random, new seeds")),
    ("catch_24_confirm", games("0.9", f"best of {catch.DRAWS} settings at random, new seeds")),
    ("catch_24", games("0.9", "best of a grid of 4")),
    ("books", text),
    ("books_long", beyond),
    ("continued_search", trained_on),
    ("in_place", layer),
    ("decode", decoding),
    ("fst_conventions", prompts("fast-slow training, accuracy, a convention to find")),
    ("fst_programs", prompts("the same, a rule for every kind of input")),
    ("fst_star_graph", prompts("the same, a task that RL never gets a first reward in")),
    ("fst_continual", several),
)
