"""Section 4.5's figures: what they draw is what the tables say, and it can be read."""

import matplotlib

matplotlib.use("Agg")
import functools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_ablation import both
from test_plots_optimisers import assert_legible, drawn
from test_stability import of_law

from dotlib import plots, report
from dotlib.improvements import IMPROVEMENTS
from dotlib.plots import ablation as figures
from dotlib.plots.optimisers import BAD
from dotlib.sections import ablation, learning_curve, stability

LABEL = r"test nrmse of $\mu_a$"
FAILED = (("add-depth", 1), *(("leave-ema", s) for s in range(5)))


@pytest.fixture(autouse=True)
def style():
    plots.style()
    yield
    plt.rcdefaults()


@functools.cache
def records():
    return both(0.03, seeds=5, failed=FAILED)


@functools.cache
def effects():
    """Both directions, with a failed run, an arm all of whose runs failed, and wide and narrow intervals."""
    return ablation.effects(*records())


def test_forest_draws_both_directions_of_every_improvement():
    table = effects()
    figure = figures.forest(table, "effect (%)")
    left, right = figure.axes[0].get_xlim()
    for where, marker in (("alone", "o"), ("in full", "s")):
        ratios = 1 + table.loc[table["where"] == where, "effect"] / 100
        points = drawn(figure, marker)
        assert [x for x, _ in points] == pytest.approx([r for r in ratios if left <= r <= right]), where
        assert {round(y) for _, y in points} <= {-i for i in range(len(IMPROVEMENTS))}
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == table.drop_duplicates("name")["label"].tolist()


def test_forest_fills_what_holm_resolves_and_marks_what_failed():
    table, figure = effects(), figures.forest(effects(), "effect (%)")
    left, right = figure.axes[0].get_xlim()
    shown = table[(1 + table["effect"] / 100).between(left, right)].reset_index(drop=True)
    points = [line for line in figure.axes[0].lines if line.get_marker() in ("o", "s")]
    assert [line.get_markerfacecolor() != "white" for line in points] == shown["confirmatory"].tolist()
    assert [line.get_color() == BAD for line in points] == (shown["failed"] > 0).tolist()
    assert 0 < shown["confirmatory"].sum() < len(shown) and (shown["failed"] > 0).sum() > 0


def test_forest_writes_the_numbers_of_both_directions_beside_them():
    table, figure = effects(), figures.forest(effects(), "effect (%)")
    beside = figure.axes[1].get_yticklabels()
    for text, (_, row) in zip(beside, table.iterrows(), strict=True):
        assert text.get_text().startswith(f"{row['effect']:+.1f} ")
        assert ("failed" in text.get_text()) == bool(row["failed"])
        assert ("no interval" in text.get_text()) == np.isnan(row["low"])
    places = figure.axes[1].get_yticks()
    assert len(set(places)) == 2 * len(IMPROVEMENTS) and (
        np.abs(places - np.round(places)) == pytest.approx(figures.OFFSET)
    )


def test_forest_of_one_study_says_that_the_other_is_not_computed():
    figure = figures.forest(ablation.effects(records()[0], None), "effect (%)")
    beside = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    n = len(IMPROVEMENTS)
    assert beside[n:] == ["not computed"] * n and "not computed" not in beside[:n]
    assert not drawn(figure, "s") and len(drawn(figure)) > 15


def test_forest_of_all_rows_is_legible():
    figure = figures.forest(effects(), r"effect on the nrmse of $\mu_a$ (%)")
    assert_legible(figure)
    assert figure.get_size_inches()[1] < 8.2  # of a page, 590 pt


def test_spread_draws_each_arm_and_the_limit():
    tables = {where: stability.stability(r) for where, r in zip(("alone", "in full"), records(), strict=True)}
    figure = figures.spread(tables, stability.STABLE, "sd over seeds (%)")
    for ax, table in zip(figure.axes, tables.values(), strict=True):
        points = [line for line in ax.lines if line.get_marker() == "o"]
        assert [line.get_xdata()[0] for line in points] == pytest.approx(table["sd"].tolist(), nan_ok=True)
        assert [line.get_color() == BAD for line in points] == (table["failed"] > 0).tolist()
        assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [stability.STABLE]
        assert [text.get_text() for text in ax.get_yticklabels()] == table["arm"].tolist()
    assert_legible(figure)


def test_learning_curve_draws_every_run_the_law_and_its_band():
    table = learning_curve.runs(of_law(4.0, 0.5, 0.1, seeds=4, spread=0.03, failed=[("phantoms-512", 1)]))
    laws = learning_curve.drawn(learning_curve.laws(table), table)
    figure = figures.learning_curve(table, laws, LABEL)
    (ax,) = figure.axes
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert len(drawn(figure)) == 19 and [x for x, _ in drawn(figure, "x")] == [512]
    lines = [line for line in ax.lines if line.get_label().startswith("$")]
    assert len(lines) == len(ax.collections) == 2
    for line, band, (form, law) in zip(lines, ax.collections, laws.groupby("form", sort=False), strict=True):
        assert (
            line.get_label().replace("{", "").replace("}", "") == f"${form}$"
            and line.get_ydata().tolist() == law["value"].tolist()
        )
        edges = band.get_paths()[0].vertices[:, 1]
        assert (edges.min(), edges.max()) == pytest.approx((law["low"].min(), law["high"].max()))
    assert_legible(figure)


def test_learning_curve_without_a_law_draws_the_runs_alone():
    table = learning_curve.runs(of_law(4.0, 0.5, 0.1, seeds=1))
    laws = learning_curve.drawn(learning_curve.laws(table), table)
    one_seed = figures.learning_curve(table, laws, LABEL)
    assert len(drawn(one_seed)) == 5 and len(laws) and not one_seed.axes[0].collections
    none = figures.learning_curve(table, learning_curve.drawn({}, table), LABEL)
    assert len(drawn(none)) == 5 and not [line for line in none.axes[0].lines if len(line.get_xdata()) > 5]


def test_figures_are_as_wide_as_the_text(tmp_path, recwarn):
    book = report.Book("4.5", "quick", tmp_path)
    book.save(figures.forest(effects(), "effect (%)"), "forest", "C.", task="t", n=3, inputs={})
    assert not [w for w in recwarn if "layout" in str(w.message)]
    assert {path.suffix for path in tmp_path.iterdir()} >= {".pdf", ".png"}
