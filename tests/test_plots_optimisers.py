"""Section 4.3's figures: what they draw is what the tables say, and it can be read."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_optimisers import factorial_levels, record_of

from dotlib import arms, plots, report
from dotlib.plots import optimisers as figures
from dotlib.sections import factorial, optimisers, schedules, settings, speed

LABEL = r"test nrmse of $\mu_a$"
LONG = "adamw-onecycle-momentum-b95"
ADDED = {*optimisers.ADDITIONS, *sum(optimisers.ADDITIONS.values(), ())}


@pytest.fixture(autouse=True)
def style():
    plots.style()
    yield
    plt.rcdefaults()


@pytest.fixture(scope="module")
def additions():
    """Additions with a failed run, an arm without runs and wide intervals."""
    levels = {arm: (i % 5 - 2) / 10 for i, arm in enumerate(sorted(ADDED - {"fp32"}))}
    return optimisers.additions(record_of(levels, seeds=3, spread=0.1, failed=[("schedule-free", 1)]))


def drawn(figure, marker="o"):
    """Places (x, y) of all markers of a kind."""
    lines = [line for ax in figure.axes for line in ax.lines if line.get_marker() == marker]
    return [tuple(float(v) for v in point) for line in lines for point in zip(*line.get_data(), strict=True)]


def texts(figure):
    """Boxes of all that is written, in pixels."""
    figure.draw_without_rendering()
    found = [ax.title for ax in figure.axes]
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) if axis.get_visible()):
        low, high = axis.get_view_interval()
        ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        found += [text for tick in ticks for text in (tick.label1, tick.label2)]
    found += [text for legend in figure.legends for text in legend.get_texts()]
    return [(text.get_text(), text.get_window_extent()) for text in found if text.get_text() and text.get_visible()]


def assert_legible(figure):
    """Nothing is written over anything else, or beyond the page."""
    width, height = figure.get_size_inches() * figure.dpi
    written = texts(figure)
    for i, (text, box) in enumerate(written):
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1, text
        for other, beside in written[:i]:
            apart = (
                box.x0 >= beside.x1 - 1 or beside.x0 >= box.x1 - 1 or box.y0 >= beside.y1 - 2 or beside.y0 >= box.y1 - 2
            )
            assert apart, (text, other)


def test_forest_draws_the_contrasts_and_writes_their_numbers(additions):
    figure = figures.forest(additions, "effect (%)")
    left, right = figure.axes[0].get_xlim()
    ratios = 1 + additions["effect"] / 100
    expected = [ratio for ratio in ratios if left <= ratio <= right]
    assert [x for x, _ in drawn(figure)] == pytest.approx(expected)
    beside = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    for text, (_, row) in zip(beside, additions.iterrows(), strict=True):
        if row["label"] == "fp32":
            assert text == "not computed"
        else:
            assert text.startswith(f"{row['effect']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}], n = 3")
        assert ("1 failed" in text) == (row["label"] == "schedule-free")
    bars = [line for line in figure.axes[0].lines if line.get_marker() == "None" and len(line.get_xdata()) == 2]
    lows = [line.get_xdata()[0] for line in bars if line.get_ydata()[0] == line.get_ydata()[1]]
    known = additions.dropna(subset="low")
    assert lows == pytest.approx(np.clip(1 + known["low"] / 100, left, right).tolist())


def test_forest_of_seventeen_rows_is_legible(additions):
    assert len(additions) >= 16
    figure = figures.forest(additions, "effect (%)")
    assert_legible(figure)
    assert figure.axes[0].get_window_extent().width > 0.3 * figure.get_size_inches()[0] * figure.dpi


def test_forest_shows_what_is_expected_and_what_is_confirmatory():
    ends = {arm: -0.2 * i for i, arm in enumerate(optimisers.END_ARMS)}
    figure = figures.forest(optimisers.ends(record_of(ends, spread=0.02)), "effect (%)")
    assert [(p.get_x(), p.get_x() + p.get_width()) for p in figure.axes[0].patches] == [pytest.approx((0.75, 0.85))] * 2
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert all(line.get_markerfacecolor() == line.get_color() for line in points)
    assert_legible(figure)


def test_paired_seeds_are_joined_and_a_failed_run_is_crossed():
    record = record_of({arm: -0.1 * i for i, arm in enumerate(optimisers.END_ARMS)}, failed=[("stage1-adam", 2)])
    runs = optimisers.runs_of(record, optimisers.END_ARMS)
    figure = figures.paired(runs, optimisers.ENDS, LABEL)
    value = runs.set_index(["arm", "seed"])["value"]
    joined = [
        tuple(line.get_ydata()) for line in figure.axes[0].lines if line.get_linestyle() == "-" and line.get_lw() < 1
    ]
    assert joined == [(value["stage1-adam", s], value["stage1-onecycle", s]) for s in range(5)]
    assert [x for x, _ in drawn(figure, "x")] == [0.0]
    assert len(drawn(figure)) == 19
    assert_legible(figure)


def test_factorial_lines_are_geometric_means_over_seeds():
    record = record_of(factorial_levels(), spread=0.1, failed=[("adamw-cosine", 0)])
    runs = factorial.runs(record)
    figure = figures.factorial(runs, LABEL)
    lines = [line.get_ydata() for line in figure.axes[0].lines if line.get_marker() == "None"]
    for line, (_, rows) in zip(lines, runs.groupby("optimiser", sort=False), strict=True):
        expected = np.log(rows["value"]).groupby(rows["schedule"], sort=False).mean()
        assert np.log(line).tolist() == pytest.approx(expected.tolist())
    assert len(drawn(figure)) == 39 and len(drawn(figure, "x")) == 1
    assert_legible(figure)


def test_sensitivity_marks_the_base_point_of_every_panel():
    levels = {arm: i / 50 for i, arm in enumerate(arms.STUDIES["4.3-sensitivity"].arms)}
    record = record_of(levels, failed=[("lr-0.03", 1), ("lr-0.03", 3)])
    figure = figures.sensitivity(settings.sensitivity_runs(record), LABEL)
    for ax, base in zip(figure.axes, ("0.95", "0.003", "0.2", "0.0001"), strict=True):
        (shade,) = ax.patches
        place = round(shade.get_x() + shade.get_width() / 2)
        assert ax.get_xticklabels()[place].get_text() == base
    crosses = drawn(figure, "x")
    assert len(crosses) == len(set(crosses)) == 2  # of one arm, and yet apart
    assert_legible(figure)


def test_tuning_rings_the_chosen_point_and_says_edge():
    levels = {arm: 0.1 for names in arms.TUNING.values() for arm in names}
    for name in arms.TUNING:
        rates = [point["lr"] for point in arms.points(name)]
        levels[f"tune-{name}-{np.argmax(rates) if name == LONG else rates.index(sorted(rates)[3])}"] = 0.0
    points = settings.tuning_points(record_of(levels, seeds=1, failed=[("tune-muon-0", 0)]))
    figure = figures.tuning(points, LABEL)
    rings = [line for ax in figure.axes for line in ax.lines if line.get_markersize() == 9]
    assert [line.get_xdata()[0] for line in rings] == points.loc[points["chosen"], "lr"].tolist()
    assert [ax.get_title() for ax in figure.axes if "edge" in ax.get_title()] == [
        "adamw-onecycle-\nmomentum-b95 (edge)"
    ]
    assert len(drawn(figure, "x")) == 1
    assert_legible(figure)


def test_survival_has_a_panel_a_target_and_ticks_runs_that_miss_it():
    record = record_of({arm: -0.3 * i for i, arm in enumerate(optimisers.END_ARMS)}, failed=[("stage1-adam", 0)])
    table = speed.survival(record, {"as specified": 2.0, "tuned": 1.5})
    figure = figures.survival(table, "epochs")
    assert [ax.get_title() for ax in figure.axes] == ["as specified: target 2", "tuned: target 1.5"]
    assert (10.0, pytest.approx(0.2)) in drawn(figure, "|")
    assert_legible(figure)


def test_budgets_draw_every_run():
    names = [arm for shares in optimisers.BUDGETS.values() for arm in shares.values()]
    figure = figures.budgets(optimisers.budget_runs(record_of(dict.fromkeys(names, 0.0))), LABEL)
    assert len(drawn(figure)) == 5 * len(names)
    assert_legible(figure)


def test_schedules_draw_each_curve_once():
    figure = figures.schedules(schedules.table(schedules.drawn()))
    assert [len(ax.lines) for ax in figure.axes] == [5, 2, 2]
    rates = figure.axes[0].lines
    assert all(np.ptp(line.get_xdata()) == 100 for line in rates)
    assert min(line.get_ydata()[-1] for line in rates) == pytest.approx(1.2e-8)
    assert_legible(figure)


def test_figures_are_as_wide_as_the_text(tmp_path, additions, recwarn):
    book = report.Book("4.3", "quick", tmp_path)
    book.save(figures.forest(additions, "effect (%)"), "forest", "C.", task="t", n=3, inputs={})
    assert not [w for w in recwarn if "layout" in str(w.message)]
    assert {path.suffix for path in tmp_path.iterdir()} >= {".pdf", ".png"}


def test_learning_curves_keep_the_order_of_the_names():
    frame = optimisers.curves(record_of({"b": 0, "a": 0, "c": 0}), ["c", "a"])
    assert list(frame["arm"].unique()) == ["c", "a"]
    assert isinstance(frame, pd.DataFrame)
