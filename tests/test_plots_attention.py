"""Section 4.4's figures: they show the numbers that they are given, in their places, and can be read."""

from itertools import pairwise

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from test_attention_section import MAPS, localised
from test_optimisers import record_of
from test_plots_optimisers import assert_legible

from dotlib import arms, plots, report
from dotlib.localisation import GRADIENT, INPUT, MAP, MUA, NORM, RANDOM
from dotlib.plots import attention as figures
from dotlib.plots import optimisers as forests
from dotlib.sections import attention, attention_maps

EVERY = arms.STUDIES["4.4-attention"].arms
LABEL = r"test nrmse of $\mu_a$"


@pytest.fixture(autouse=True)
def style():
    plots.style()
    yield
    plt.rcdefaults()


def table(**changes):
    """Fourteen arms: ten of nearly one cost and one error, four apart."""
    n = len(EVERY)
    frame = pd.DataFrame({"arm": EVERY, "group": ["plain"] + ["gate"] * 4 + ["comparator"] * 3 + ["control"] * 2
                          + ["other network"] * 4, "failed": 0})  # fmt: skip
    frame["parameters"] = [7_000_000 + 1000 * i for i in range(n - 4)] + [4e6, 1e7, 5e6, 7.1e6]
    frame["GFLOP"] = [4.2 + 1e-4 * i for i in range(n - 4)] + [2.8, 5.9, 4.0, 9.7]
    frame["error"] = [0.2 + 1e-4 * i for i in range(n - 4)] + [0.22, 0.19, 0.199, 0.25]
    return frame.assign(low=0.98 * frame["error"], high=1.02 * frame["error"], **changes)


def names_of(figure):
    return {text.get_text(): text for text in figure.axes[1].texts}


def test_every_arm_is_drawn_at_its_error_and_near_its_cost():
    given = table()
    figure = figures.efficiency(given, LABEL)
    for ax, cost in zip(figure.axes, (given["parameters"] / 1e6, given["GFLOP"]), strict=True):
        points = [line.get_xydata()[0] for line in ax.lines if line.get_marker() in "*oDsv" and len(line.get_xdata())]
        found = {round(float(y), 9): float(x) for x, y in points}
        left, right = np.log(ax.get_xlim())
        assert set(found) == {round(e, 9) for e in given["error"]}
        for error, true in zip(given["error"], cost, strict=True):
            assert abs(np.log(found[round(error, 9)] / true)) < 0.1 * (right - left)
        for arm in ("narrow", "wide"):  # alone in their places
            row = given.index[given["arm"] == arm][0]
            assert found[round(given.loc[row, "error"], 9)] == pytest.approx(cost[row])
        assert len({round(x, 6) for x in found.values()}) == len(given)  # side by side
        bars = [line for line in ax.lines if line.get_marker() == "None" and len(set(line.get_xdata())) == 1]
        assert sorted(b.get_ydata()[0] for b in bars) == pytest.approx(sorted(given["low"]))


def test_names_are_all_there_apart_and_in_the_order_of_the_errors():
    given = table()
    figure = figures.efficiency(given, LABEL)
    figure.draw_without_rendering()
    named = names_of(figure)
    assert set(named) == set(EVERY)
    # an annotation's own extent holds its line as well
    boxes = [Text.get_window_extent(named[arm]) for arm in given.sort_values("error")["arm"]]
    assert all(upper.y0 >= lower.y1 - 1 for lower, upper in pairwise(boxes))
    width, height = figure.get_size_inches() * figure.dpi
    assert all(b.x1 <= width + 1 and b.y0 >= -1 and b.y1 <= height + 1 for b in boxes)
    panel = figure.axes[1].get_window_extent()
    assert all(b.x0 > panel.x1 for b in boxes)
    assert_legible(figure)


def test_line_leads_from_the_error_to_the_name():
    given = table()
    named = names_of(figures.efficiency(given, LABEL))
    low, high = np.log(named["vit"].axes.get_ylim())
    for arm, error in zip(given["arm"], given["error"], strict=True):
        assert named[arm].xy == (1, pytest.approx((np.log(error) - low) / (high - low)))


def test_failed_arm_is_named_in_orange_and_its_interval_does_not_hide_the_others():
    given = table()
    given.loc[given["arm"] == "cbam-2", ["error", "low", "high", "failed"]] = [0.5, 0.001, 200, 1]
    figure = figures.efficiency(given, LABEL)
    named = names_of(figure)
    assert named["cbam-2: 0.5"].get_color() == forests.BAD and named["se-2"].get_color() == "black"
    assert figure.axes[0].get_ylim()[0] > 0.1 and figure.axes[0].get_ylim()[1] < 1


def test_arm_far_above_the_others_is_an_arrow_at_the_edge_with_its_number():
    given = table()
    given.loc[given["arm"] == "vit", ["error", "low", "high"]] = [0.468, 0.40, 0.55]
    figure = figures.efficiency(given, LABEL)
    assert names_of(figure)["vit: 0.47"].xy == (1, 0.97)
    assert figure.axes[0].get_ylim()[1] < 0.3  # room for the others alone
    for ax, cost in zip(figure.axes, (7.1, 9.7), strict=True):
        (arrow,) = [line for line in ax.lines if line.get_marker() == "^"]
        assert arrow.get_xdata()[0] == pytest.approx(cost, rel=0.1) and arrow.get_ydata()[0] == 0.97
    assert_legible(figure)


@pytest.mark.parametrize("heights", [[0.0] * 5, [1.0] * 5, [0.1, 0.5, 0.5, 0.55, 0.95], [0.48, 0.5, 0.52], [0.3]])
def test_places_keep_their_distance_and_their_order_and_move_no_further_than_needed(heights):
    places = figures._apart(heights, 0.1)
    assert (np.diff(places) >= 0.1 - 1e-12).all() and places.min() >= 0 and places.max() <= 1
    if max(heights) < 1 and min(heights) > 0 and len(heights) != 5:
        assert np.mean(places) == pytest.approx(np.mean(heights))
    if len(heights) == 5 and heights[0] == 0.1:
        assert places[[0, 4]].tolist() == pytest.approx([0.1, 0.95])


def phantom():
    """A ball of tissue with one inclusion, and scores that are each voxel's own number."""
    place = np.indices((8, 8, 8)).astype(float)
    labels = (((place - 3.5) ** 2).sum(0) < 12).astype(np.uint8)
    labels[3:5, 4:6, 2:4] = 2
    number = torch.arange(512.0).view(1, 1, 8, 8, 8)
    keys = [("encoder2", MAP), ("encoder2", NORM), ("encoder2", RANDOM), ("encoder1", MAP), ("encoder1", NORM)]
    keys += [(INPUT, GRADIENT), (INPUT, MUA)]
    return {key: (i + 1) * number for i, key in enumerate(keys)}, labels


def test_planes_are_those_through_the_voxel_inside_the_tissue():
    scores, labels = phantom()
    at = (3, 4, 2)
    figure = figures.planes(scores, labels, at)
    shown = [ax for ax in figure.axes if ax.images]
    titles = [ax.get_title() for ax in shown if ax.get_title()]
    assert [title.replace("\n", " ") for title in titles] == [
        r"truth, $\mu_a$ (mm$^{-1}$)", "gate's map, encoder2", "gate's map, encoder1", "feature norm, encoder2",
        "feature norm, encoder1", "input gradient",
    ]  # fmt: skip
    volume = np.where(labels > 0, scores[INPUT, MUA][0, 0].numpy(), np.nan)
    truth = [ax.images[0].get_array() for ax in shown[::6]]
    expected = [volume[:, :, at[2]].T, volume[:, at[1], :].T, volume[at[0], :, :].T]
    for found, plane in zip(truth, expected, strict=True):
        np.testing.assert_array_equal(np.ma.filled(found.astype(float), np.nan), plane)
    assert [ax.get_ylabel() for ax in shown[::6]] == ["axial: x, y", "coronal: x, z", "sagittal: y, z"]


def test_outline_is_that_of_the_inclusions():
    scores, labels = phantom()
    figure = figures.planes(scores, labels, (3, 4, 2))
    axial = next(ax for ax in figure.axes if ax.images)
    (outline,) = axial.collections
    corners = np.concatenate([path.vertices for path in outline.get_paths()])
    # voxels 3, 4 in x and 4, 5 in y, of 8 mm from -32 mm on; a contour at one half runs between centres
    assert corners[:, 0].min() == pytest.approx(-32 + 8 * 3) and corners[:, 0].max() == pytest.approx(-32 + 8 * 5)
    assert corners[:, 1].min() == pytest.approx(-32 + 8 * 4) and corners[:, 1].max() == pytest.approx(-32 + 8 * 6)
    assert not any(ax.collections for ax in [figures.planes(scores, np.minimum(labels, 1), (3, 4, 2)).axes[0]])


def test_planes_have_a_bar_a_column_and_are_as_wide_as_the_text(tmp_path, recwarn):
    scores, labels = phantom()
    figure = figures.planes(scores, labels, (3, 4, 2))
    assert len(figure.axes) == 18 + 6
    book = report.Book("4.4", "quick", tmp_path)
    book.save(figure, "planes", "C.", task="t", n=1, inputs={})
    assert not [w for w in recwarn if "layout" in str(w.message)]


def test_found_draws_every_run_and_the_mean_of_each_arm():
    runs = attention_maps.per_run(localised(MAPS))
    figure = figures.found(runs)
    assert [ax.get_title() for ax in figure.axes] == ["encoder1", "input"]
    dots = [line.get_ydata() for ax in figure.axes for line in ax.lines if line.get_marker() in ("*", "o")]
    assert sorted(np.concatenate(dots)) == pytest.approx(sorted(runs["auc"]))
    bars = [seg[0, 1] for ax in figure.axes for c in ax.collections for seg in c.get_segments()]
    assert sorted(bars) == pytest.approx(sorted(runs.groupby(["arm", "stage", "score"])["auc"].mean()))
    for ax in figure.axes:
        assert any(line.get_linestyle() == "--" and set(line.get_ydata()) == {0.5} for line in ax.lines)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["gate", "norm", "random"]
    assert_legible(figure)


def test_forest_of_the_exploratory_contrasts_is_legible():
    levels = {arm: 0.02 * i for i, arm in enumerate(EVERY)}
    record = record_of(levels, seeds=3, spread=0.05, failed=[("cbam-2", 1)])
    assert_legible(forests.forest(attention.exploratory(record), "effect (%)"))
    gates = record_of({arm: -0.1 * i for i, arm in enumerate((*EVERY[:1], "sigmoid-2", "identity-2"))}, spread=0.02)
    assert_legible(forests.forest(attention.primary(gates), "effect (%)"))
