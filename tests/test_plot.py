"""Pictures, tested by the data of their artists; nothing here compares pixels."""

import io
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from fastweights import plot
from fastweights.errors import ConfigError
from fastweights.models.watch import Activity
from fastweights.rules import Form, Hebbian
from fastweights.tasks.context_loss import Curve

# Three steps, four units: unit 2 peaks first, then 0, then 3; unit 1 is silent.
SETTLED = np.array([[0, 0, 3, 0], [2, 0, 1, 1], [1, 0, 0, 4]], np.float32)
RULE = Hebbian(decay=0.5, lr=2.0)


def images(figure):
    return [ax.images[0] for ax in figure.axes if ax.images]


def png(figure):
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def test_reward_curves_show_every_seed_and_their_median():
    """Rewards 0, 1 and -1 at the end: median 0; games in thousands."""
    seeds = [[(1000, -0.5), (2000, end)] for end in (0.0, 1.0, -1.0)]
    ax = plot.reward_curves(Figure().subplots(), {"a": seeds}, chance=-0.75)
    thin, median = ax.lines[:3], ax.lines[3]
    assert [line.get_ydata()[-1] for line in thin] == [0, 1, -1]
    np.testing.assert_array_equal(median.get_xydata(), [[1, -0.5], [2, 0]])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "a, median of 3 seeds",
        "chance: -0.75",
    ]
    of_runs = plot.reward_curves(
        Figure().subplots(), {"a": [*seeds, [(1000, 0.5), (2000, 1.0)]]}, middle="mean", of="runs"
    )
    np.testing.assert_array_equal(of_runs.lines[4].get_xydata(), [[1, -0.25], [2, 0.25]])
    assert of_runs.get_legend().get_texts()[0].get_text() == "a, mean of 4 runs"
    with pytest.raises(ConfigError, match="same games"):
        plot.reward_curves(Figure().subplots(), {"a": [seeds[0], seeds[1][:1]]})


def test_stage_curves_say_which_task_it_was():
    """Accuracies 0, 1 and 0.5 at the end, in %: median 50; a line where the task changes."""
    seeds = [[(6, 0.25), (12, end)] for end in (0.0, 1.0, 0.5)]
    ax = plot.stage_curves(Figure().subplots(), {"a": seeds}, ["one", "two"], 6)
    np.testing.assert_array_equal(ax.lines[3].get_xydata(), [[6, 25], [12, 50]])
    assert list(ax.lines[4].get_xdata()) == [6, 6] and ax.get_xlim() == (0, 12)
    assert [text.get_text() for text in ax.texts] == ["one", "two"]
    assert [text.get_position()[0] for text in ax.texts] == [3, 9]
    with pytest.raises(ConfigError, match="same updates"):
        plot.stage_curves(Figure().subplots(), {"a": [seeds[0], seeds[1][:1]]}, ["one"], 6)
    with pytest.raises(ConfigError, match="where: a"):
        plot.stage_curves(Figure().subplots(), {"a": [[(6, 25.0)]]}, ["one"], 6)


def test_context_curves_have_a_band_of_one_standard_error():
    """Means 2 and 1 with errors 0.5 and nan: bands 1.5 to 2.5 and none; no line at zero."""
    curve = Curve(np.array([0, 128]), np.array([2.0, 1.0]), np.array([0.5, np.nan]), 3)
    ax = plot.context_curves(Figure().subplots(), {"a": curve}, "nats a byte")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 2], [128, 1]])
    (band,) = ax.collections
    ends = band.get_paths()[0].vertices[:, 1]
    assert ends.min() == 1 and ends.max() == 2.5 and len(ax.lines) == 1
    better = curve._replace(mean=-curve.mean)
    assert len(plot.context_curves(Figure().subplots(), {"b": better}).lines) == 2


def test_learning_curves_are_in_percent_against_updates():
    ax = Figure().subplots()
    curves = {"on": [(100, 0.5), (200, 0.25)], "off": [(100, 0.9)]}
    assert plot.learning_curves(ax, curves, chance=0.6165) is ax
    on, off, chance = ax.lines
    np.testing.assert_array_equal(on.get_xydata(), [[100, 50], [200, 25]])
    np.testing.assert_array_equal(off.get_xydata(), [[100, 90]])
    assert list(chance.get_ydata()) == pytest.approx([61.65, 61.65])
    assert [text.get_text() for text in ax.get_legend().get_texts()][:2] == ["on", "off"]
    assert "61.6" in chance.get_label() or "61.7" in chance.get_label()
    assert "%" in ax.get_ylabel() and ax.get_xlabel() == "updates"
    assert on.get_linestyle() != off.get_linestyle()  # told apart without colour


def test_learning_curves_without_chance_have_no_such_line():
    ax = plot.learning_curves(Figure().subplots(), {"on": [(1, 1.0)]})
    assert len(ax.lines) == 1


@pytest.mark.parametrize(
    ("curves", "chance"), [({"on": [(1, 61.65)]}, None), ({"on": [(1, 0.5)]}, 61.65)]
)
def test_percent_given_as_fraction_is_refused(curves, chance):
    with pytest.raises(ConfigError, match="fractions"):
        plot.learning_curves(Figure().subplots(), curves, chance)


def test_units_are_ordered_by_their_strongest_step_and_silent_ones_are_last():
    np.testing.assert_array_equal(plot.order_of_units(SETTLED), [2, 0, 3, 1])


@pytest.mark.parametrize("form", Form)
def test_fast_weights_shows_the_matrix_after_each_write(form):
    rule = Hebbian(decay=0.5, lr=2.0, form=form)
    figure = plot.fast_weights(rule, SETTLED, "abc")
    maps = images(figure)
    A, order = np.zeros((4, 4)), [2, 0, 3, 1]
    for h, image in zip(SETTLED, maps, strict=True):
        A = 0.5 * A + 2.0 * np.outer(h, h)
        np.testing.assert_allclose(image.get_array(), A[np.ix_(order, order)], atol=1e-5)
    assert [image.axes.get_title() for image in maps] == ["a", "b", "c"]
    assert "ordered" in figure.get_supxlabel()


def test_maps_share_one_scale_symmetric_around_zero():
    limits = {image.get_clim() for image in images(plot.fast_weights(RULE, SETTLED, "abc"))}
    ((low, high),) = limits
    assert low == -high < 0
    empty = images(plot.fast_weights(RULE, 0 * SETTLED, "abc"))[0]
    assert empty.get_clim() == (-1, 1)


def test_fast_weights_draws_into_a_subfigure_and_breaks_long_rows():
    top, bottom = Figure(figsize=(12, 4), layout="constrained").subfigures(2, 1)
    long = np.tile(SETTLED, (5, 1))  # 15 steps
    assert plot.fast_weights(RULE, long, "abc" * 5, figure=bottom) is bottom
    assert not top.axes and len(images(bottom)) == 15
    assert len({image.axes.get_subplotspec().rowspan.start for image in images(bottom)}) == 2


def test_attention_is_what_the_equation_says():
    query = np.array([[9, 9, 9, 9], [1, 0, 1, 0], [0, 0, 1, 2]], np.float32)
    ax = plot.attention_to_past(RULE, Activity(query, SETTLED), "abc")
    # η λ^age (past · query): step 1 recalls step 0 with 2 (3·1); step 2 recalls step 1 with
    # 2 (1·1 + 1·2) and step 0 with 2 · 0.5 (3·1)
    np.testing.assert_allclose(
        np.ma.filled(ax.images[0].get_array(), 0), [[0, 0, 0], [6, 0, 0], [3, 6, 0]]
    )
    assert {(*text.get_position(), text.get_text()) for text in ax.texts} == {
        (0, 1, "6.0"),
        (0, 2, "3.0"),
        (1, 2, "6.0"),
    }
    for axis in (ax.xaxis, ax.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["a", "b", "c"]


def test_attention_draws_into_given_axes():
    ax = Figure().subplots()
    assert plot.attention_to_past(RULE, Activity(SETTLED, SETTLED), "abc", ax=ax) is ax


def test_symbols_must_fit():
    with pytest.raises(ConfigError, match="2 symbols for 3 steps"):
        plot.fast_weights(RULE, SETTLED, "ab")
    with pytest.raises(ConfigError, match="4 symbols for 3 steps"):
        plot.attention_to_past(RULE, Activity(SETTLED, SETTLED), "abcd")


def test_nothing_global_changes_and_every_picture_can_be_saved():
    before, open_figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    figure = Figure(layout="constrained")
    plot.learning_curves(figure.subplots(), {"on": [(1, 0.5), (2, 0.1)]}, chance=0.6)
    maps = plot.fast_weights(RULE, SETTLED, "abc")
    attention = plot.attention_to_past(RULE, Activity(SETTLED, SETTLED), "abc")
    for picture in (figure, maps, attention.figure):
        assert png(picture).startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == open_figures


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as error:
        plot.fast_weights(RULE, SETTLED, "abc")
    assert error.value.next == "in the fastweights checkout: pip install -e '.[plot]'"
