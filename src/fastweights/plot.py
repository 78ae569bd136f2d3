"""Pictures of learning and of a memory being written. They need matplotlib: the `plot` extra.

Every function draws into what it is given (or into a figure of its own that pyplot does not know)
and returns it; nothing is shown, saved or set globally. Colours are told apart by the colour-blind,
and lines by their dashes, maps by their lightness in black and white.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastweights.errors import ConfigError, install_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

    from fastweights.models.watch import Activity
    from fastweights.rules import Hebbian
    from fastweights.tasks.context_loss import Curve

#: colours of Okabe & Ito (2008), darkest first; each has its dash, for black and white
LINES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"))
MAPS_PER_ROW = 12


def learning_curves(
    ax: Axes, curves: Mapping[str, Sequence[tuple[int, float]]], chance: float | None = None
) -> Axes:
    """Error against updates, one line for each run.

    Args:
        ax: what to draw into.
        curves: name -> (updates, error) in order; errors are fractions from 0 to 1, as the metrics
            of a run are, and drawn in %.
        chance: error of guessing, a fraction; a labelled horizontal line.

    Returns:
        `ax`.

    Raises:
        ConfigError: an error outside 0 to 1, which is probably in % already.
    """
    for i, (name, points) in enumerate(curves.items()):
        steps, errors = np.asarray(points, np.float64).reshape(-1, 2).T
        _check_fractions(errors, name)
        colour, dash = LINES[i % len(LINES)]
        ax.plot(steps, 100 * errors, color=colour, linestyle=dash, linewidth=1.8, label=name)
    if chance is not None:
        _check_fractions(np.asarray([chance]), "chance")
        label = f"chance: {100 * chance:.2f} %"
        ax.axhline(100 * chance, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)), label=label)
    ax.set(xlabel="updates", ylabel="error (%)", ylim=(0, 100))
    ax.set_xlim(left=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


def reward_curves(
    ax: Axes,
    arms: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
    chance: float | None = None,
    middle: Literal["median", "mean"] = "median",
    of: str = "seeds",
) -> Axes:
    """Mean reward against games, an arm a colour: every seed thin, their middle thick.

    Args:
        ax: what to draw into.
        arms: name -> one curve per seed, each (games, mean reward from -1 to 1), at the same games.
        chance: reward of playing at random; a labelled horizontal line.
        middle: the thick line; a median withstands a seed that failed, a mean counts it in.
        of: what an arm's curves are called in the legend; "runs" where more than the seed differs.

    Returns:
        `ax`.

    Raises:
        ConfigError: seeds of one arm that were measured at different games, or no seed.
    """
    _seeds(ax, arms, "games", across=1e-3, middle=middle, of=of)
    if chance is not None:
        label = f"chance: {chance:.2f}"
        ax.axhline(chance, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)), label=label)
    ax.set(xlabel="games (thousands)", ylabel="mean reward", ylim=(-1, 1.02))
    ax.set_xlim(left=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def stage_curves(
    ax: Axes,
    arms: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
    tasks: Sequence[str],
    updates: int,
) -> Axes:
    """Accuracy on the task of the moment, an arm a colour: every seed thin, their median thick.

    Args:
        ax: what to draw into.
        arms: name -> one curve per seed, each (updates, accuracy), at the same updates; accuracies
            are fractions from 0 to 1 and drawn in %.
        tasks: names of the tasks, in their order.
        updates: of each task.

    Returns:
        `ax`.

    Raises:
        ConfigError: seeds of one arm that were measured at different updates, no seed, or an
            accuracy outside 0 to 1.
    """
    for name, seeds in arms.items():
        _check_fractions(np.asarray([y for curve in seeds for _, y in curve]), name)
    _seeds(ax, arms, "updates", up=100)
    for i, task in enumerate(tasks):
        if i:
            ax.axvline(i * updates, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
        ax.text((i + 0.5) * updates, 103, task, ha="center", fontsize="small")
    ax.set(xlabel="updates", ylabel="accuracy on the task (%)", ylim=(0, 100))
    ax.set_xlim(0, len(tasks) * updates)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def context_curves(ax: Axes, curves: Mapping[str, Curve], ylabel: str = "loss (nats)") -> Axes:
    """Loss against position or length of context, with a band of one standard error.

    Args:
        ax: what to draw into.
        curves: name -> what `context_loss.by_position` or `final_block` found, of losses or of
            differences of losses; a line at zero is drawn if any value is below it.
        ylabel: what the values are.

    Returns:
        `ax`.
    """
    for i, (name, curve) in enumerate(curves.items()):
        colour, dash = LINES[i % len(LINES)]
        style: dict[str, Any] = {"color": colour, "linestyle": dash, "marker": "o", "markersize": 3}
        ax.plot(curve.start, curve.mean, linewidth=1.8, label=name, **style)
        error = np.nan_to_num(curve.error)
        low, high = curve.mean - error, curve.mean + error
        ax.fill_between(curve.start, low, high, color=colour, alpha=0.2, linewidth=0)
    if any((curve.mean < 0).any() for curve in curves.values()):
        ax.axhline(0, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
    ax.set(xlabel="tokens before", ylabel=ylabel)
    ax.set_xlim(left=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


def fast_slow(curves: Mapping[str, Sequence[tuple[float, float, float]]], note: str = "") -> Figure:
    """Two panels: accuracy against rollouts, and the plane of divergence and accuracy.

    Args:
        curves: name -> (rollouts, accuracy, KL to the base model in nats an answer) in order;
            accuracies are fractions. Names that differ only after a comma, seeds, share a colour.
        note: a line below, such as who wrote the prompts.

    Raises:
        ConfigError: an accuracy outside 0 to 1, which is probably in % already.
    """
    figure = _figure(9.0, 3.6)
    left, right = figure.subplots(1, 2)
    styles: dict[str, tuple[str, str]] = {}
    highest = farthest = 0.0
    for name, points in curves.items():
        group = name.split(",")[0]
        label = None if group in styles else group
        colour, dash = styles.setdefault(group, LINES[len(styles) % len(LINES)])
        rollouts, accuracy, divergence = np.asarray(points, np.float64).reshape(-1, 3).T
        _check_fractions(accuracy, name)
        style: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.6}
        left.plot(rollouts / 1000, 100 * accuracy, label=label, **style)
        highest, farthest = max(highest, accuracy.max()), max(farthest, divergence.max())
        right.plot(divergence, 100 * accuracy, marker=".", label=label, **style)
    left.set(xlabel="thousands of rollouts, those of evolutions included", ylabel="accuracy (%)")
    left.set_xlim(left=0)
    right.set(xlabel="KL to the base model (nats an answer)")
    # what is all near the bottom gets an axis of its own; what never moved is not on the frame
    top = 100 if highest > 1 / 3 else max(5, math.ceil(140 * highest))
    right.set_xlim(left=-0.04 * max(farthest, 1e-3))
    for ax in (left, right):
        ax.set_ylim(0, top)
        ax.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    if note:
        figure.supxlabel(note, fontsize="small", color="0.3")
    return figure


def fast_weights(
    rule: Hebbian, settled: Any, symbols: Sequence[str], figure: FigureBase | None = None
) -> FigureBase:
    """The fast-weight matrix A after each token of one sequence, a row of heat maps.

    Units are ordered by the step at which they are most active, so that what a step writes is a
    block on the diagonal, and a later step's block lies further down. Units that are never active
    come last. All maps share one colour scale, symmetric around zero; it ends at the 99th
    percentile of the weights' size, because the few largest would leave the others pale. In black
    and white a weight's sign is lost; activities that are never negative write none below zero.

    Args:
        rule: what is written.
        settled: `[T, H]`, `watch(net, tokens).settled` or `net.activities(tokens)`.
        symbols: T names, one for each token; the maps' titles.
        figure: a figure or subfigure to draw into; by default a new one.

    Returns:
        The figure.

    Raises:
        ConfigError: not one symbol for each token, or matplotlib is missing.
    """
    from fastweights.models.watch import fast_weight_matrices

    settled = np.asarray(settled)
    _check_symbols(symbols, len(settled))
    order = order_of_units(settled)
    A = np.asarray(fast_weight_matrices(rule, settled))[:, order][:, :, order]
    columns = min(len(A), MAPS_PER_ROW)
    rows = math.ceil(len(A) / columns)
    figure = _figure(columns + 0.9, 1.25 * rows + 0.3) if figure is None else figure
    grid = np.ravel(figure.subplots(rows, columns, squeeze=False))
    largest = float(np.abs(A).max())
    limit = float(np.percentile(np.abs(A), 99)) or largest or 1.0
    for t, ax in enumerate(grid[: len(A)]):
        image = ax.imshow(A[t], cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set_title(symbols[t], fontsize=11)
        ax.set(xticks=[], yticks=[])
    for ax in grid[len(A) :]:
        ax.remove()
    grid[0].set_ylabel(f"{len(order)} units", fontsize=9)
    extend = "both" if largest > limit else "neither"
    bar = figure.colorbar(image, ax=list(grid[: len(A)]), shrink=0.9, pad=0.01, extend=extend)
    bar.set_label("fast weight", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.supxlabel(
        "fast weights after each symbol; units ordered by the step at which they are most active",
        fontsize=9,
    )
    return figure


def attention_to_past(
    rule: Hebbian, activity: Activity, symbols: Sequence[str], ax: Axes | None = None
) -> Axes:
    """What each step recalls: its attention to every earlier step, η λ^age (past · query).

    The numbers in the map are the weights, where they are at least a tenth of the largest.

    Args:
        rule: gives λ and η.
        activity: from `fastweights.models.watch.watch`, `[T, H]` each.
        symbols: T names, one for each token; they label both axes.
        ax: what to draw into; by default the axes of a new figure (`ax.figure`).

    Returns:
        The axes, with the heat map `[T, T]` as their image: row t recalls, column i is recalled.

    Raises:
        ConfigError: not one symbol for each token, or matplotlib is missing.
    """
    from fastweights.models import watch

    weights = np.asarray(watch.attention_to_past(rule, activity))
    _check_symbols(symbols, len(weights))
    if ax is None:
        ax = _figure(5.4, 4.6).subplots()
    past = np.tri(len(weights), k=-1, dtype=bool)
    limit = float(weights.max()) or 1.0
    image = ax.imshow(np.ma.masked_where(~past, weights), cmap="Blues", vmin=0.0, vmax=limit)
    for row, column in np.argwhere(past & (weights >= max(0.1 * limit, 0.05))):
        value = weights[row, column]
        colour = "white" if value > 0.5 * limit else "black"
        ax.text(column, row, f"{value:.1f}", color=colour, ha="center", va="center", fontsize=8)
    ticks = range(len(symbols))
    ax.set_xticks(ticks, symbols)
    ax.set_yticks(ticks, symbols)
    ax.set(xlabel="earlier step, recalled", ylabel="step that recalls")
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, shrink=0.8, label="attention weight (no softmax)")
    return ax


def order_of_units(settled: np.ndarray) -> np.ndarray:
    """Units by the step at which each is most active, the silent ones last: `[T, H]` -> `[H]`."""
    peak = np.argmax(settled, axis=0)
    silent = np.max(settled, axis=0) <= 0
    return np.lexsort((peak, silent))


def _seeds(
    ax: Axes,
    arms: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
    what: str,
    across: float = 1.0,
    up: float = 1.0,
    middle: Literal["median", "mean"] = "median",
    of: str = "seeds",
) -> None:
    """Every seed's curve thin, their middle thick; `across` and `up` scale the axes."""
    for i, (name, seeds) in enumerate(arms.items()):
        if not seeds or len({tuple(x for x, _ in curve) for curve in seeds}) != 1:
            raise ConfigError(f"the seeds of {name!r} were not measured at the same {what}")
        colour, dash = LINES[i % len(LINES)]
        there = across * np.asarray([point[0] for point in seeds[0]])
        values = up * np.asarray([[value for _, value in curve] for curve in seeds])
        ax.plot(there, values.T, color=colour, linewidth=0.5, alpha=0.5)
        label = f"{name}, {middle} of {len(seeds)} {of}" if len(seeds) > 1 else name
        thick = np.median(values, axis=0) if middle == "median" else values.mean(axis=0)
        ax.plot(there, thick, color=colour, linestyle=dash, linewidth=2, label=label)


def _check_fractions(values: np.ndarray, name: str) -> None:
    if not ((values >= 0) & (values <= 1)).all():
        raise ConfigError(
            "values must be fractions from 0 to 1",
            where=name,
            cause="they are in % already",
            next="divide them by 100",
        )


def _check_symbols(symbols: Sequence[str], length: int) -> None:
    if len(symbols) != length:
        raise ConfigError(
            f"there are {len(symbols)} symbols for {length} steps",
            where="symbols",
            next="give one for each token, in order",
        )


def _figure(width: float, height: float) -> Figure:
    """A figure outside pyplot, which would keep it alive until it is closed; sizes in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "pictures need matplotlib, which is not installed",
            next=install_extra("plot"),
        ) from error
    return Figure(figsize=(width, height), layout="constrained")
