"""How section 4.3 was tuned: importances and prunings, by hand where that can be done."""

import dataclasses
import itertools
import math

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_optimisers import EPOCHS, record_of
from test_plots_optimisers import assert_legible, drawn

from dotlib import arms, plots, records, search
from dotlib.config import root
from dotlib.plots import tuning as figures
from dotlib.sections import settings, tuning

STEEP = "adamw-constant"  # where only the rate matters
LEVELS = {arm: 0.01 * i for names in arms.TUNING.values() for i, arm in enumerate(names)}
LEVELS |= {arm: abs(math.log(p["lr"] / 1e-2)) for arm, p in zip(arms.TUNING[STEEP], arms.points(STEEP), strict=True)}
FAILED = [("tune-muon-3", 0), ("tune-adam-cosine-0", 0), ("tune-adam-cosine-1", 0), ("tune-adam-cosine-2", 0)]


@pytest.fixture(autouse=True)
def style():
    plots.style()
    yield
    plt.rcdefaults()


@pytest.fixture(scope="module")
def record():
    """Of all candidates but one, of which a trial is missing."""
    return record_of({arm: level for arm, level in LEVELS.items() if arm != "tune-schedule-free-4"}, 1, failed=FAILED)


def test_trials_are_the_records_runs(record):
    found = tuning.trials(record)
    points = settings.tuning_points(record)
    assert {name: sorted(trials) for name, trials in found.items()} == {
        name: [i for i in range(8) if (name, i) != ("schedule-free", 4)] for name in arms.CANDIDATES
    }
    for candidate, trials in found.items():
        rows = points[points["arm"] == candidate].reset_index(drop=True)
        for place, trial in trials.items():
            assert trial.params == arms.points(candidate)[place]
            failed = (f"tune-{candidate}-{place}", 0) in FAILED
            assert math.isinf(trial.value) if failed else trial.value == rows["error"][place]
            assert len(trial.intermediate_values) == (EPOCHS // 2 if failed else EPOCHS)


def test_slices_are_ratios_to_the_candidates_lowest(record):
    table = tuning.slices(record)
    assert table.groupby("candidate")["ratio"].min().eq(1).all()
    steep = table[(table["candidate"] == STEEP) & (table["setting"] == "lr")]
    expected = np.exp([abs(math.log(lr / 1e-2)) for lr in steep["value"]])
    assert steep["ratio"].to_numpy() == pytest.approx(expected / expected.min())
    assert (table.loc[table["failed"] != "", "ratio"] == table["ratio"].max()).all()
    assert set(table.loc[table["candidate"] == STEEP, "setting"]) == {
        "lr",
        "weight_decay",
    }  # no warm-up without schedule
    assert set(table.loc[table["candidate"] == "muon", "setting"]) == set(tuning.SETTINGS)


def test_importance_adds_up_and_is_that_of_the_rate_where_only_the_rate_matters(record):
    table = tuning.importance(record)
    counts = table.groupby("candidate")["n"].first()
    assert (counts["muon"], counts["schedule-free"], counts["adam-cosine"]) == (7, 7, 5)
    few = table["candidate"] == "adam-cosine"
    assert table.loc[few, ["importance", "low", "high", "p"]].isna().all(axis=None)
    assert table[~few].groupby("candidate")["importance"].sum().to_numpy() == pytest.approx(1)
    steep = table[table["candidate"] == STEEP].set_index("setting")
    assert steep["importance"].idxmax() == "lr" and not steep.loc["warmup", "used"]
    assert (table["used"] | (table["setting"] == "warmup")).all()


def test_chance_is_every_division_of_the_points(record):
    """As many as there are halves; p is exact, and the settings change places with the points' coordinates."""
    table = tuning.importance(record)
    eight, seven = (table[table["n"] == n]["p"].to_numpy() for n in (8, 7))
    assert eight * 70 == pytest.approx(np.round(eight * 70)) and seven * 35 == pytest.approx(np.round(seven * 35))
    assert min(eight) >= 1 / 70
    whole = tuple(range(8))
    halves = tuning._halves(whole)
    assert len(set(halves)) == 70
    for better in halves[:8]:
        cells = [arms.SOBOL[i] for i in sorted(better)]
        shares = tuning._shares(whole, better)
        for a, b in itertools.combinations(tuning.SETTINGS, 2):
            i, j = (list(tuning.SETTINGS).index(name) for name in (a, b))
            if sorted(c[i] for c in cells) == sorted(c[j] for c in cells):
                assert shares[a] == pytest.approx(shares[b])


def curves(record, of):
    """The record with these curves, a function of (place, epoch), for every candidate."""
    epochs = record.epochs.copy()
    places = epochs["arm"].str.rpartition("-")[2].astype(int)
    epochs["nrmse_mua"] = [of(place, epoch) for place, epoch in zip(places, epochs["epoch"], strict=True)]
    return dataclasses.replace(record, epochs=epochs)


def test_pruning_is_replayed_by_the_median_rule():
    """Curves that never cross, each higher than the one before: from the fifth on every trial is above the median."""
    record = record_of(LEVELS, seeds=1)
    table = tuning.pruning(curves(record, lambda place, epoch: 1.0 + place + 1 / (1 + epoch))).set_index(
        "from, % of the epochs"
    )
    assert (table["given up"] == 12 * 4).all() and (table["trials"] == 96).all() and (table["candidates"] == 12).all()
    assert (table["best lost"] == 0).all() and (table["worst loss, %"] == 0).all()
    spent = {share: 4 * EPOCHS + 4 * (round(share * EPOCHS) + 1) for share in tuning.SHARES}
    assert table["epochs spared, %"].tolist() == pytest.approx([100 * (1 - n / (8 * EPOCHS)) for n in spent.values()])


def test_pruning_costs_the_best_where_curves_cross():
    """The last point is the worst until the end, and the best there."""
    record = record_of(LEVELS, seeds=1)
    late = curves(record, lambda place, epoch: 0.5 if (place, epoch) == (7, EPOCHS - 1) else 1.0 + place)
    table = tuning.pruning(late)
    assert (table["best lost"] == 12).all() and table["worst loss, %"].to_numpy() == pytest.approx(100)


def test_recorded_tuning_loses_its_best_where_pruning_begins_early():
    """What `search.median` says of itself."""
    table = tuning.pruning(records.load(root() / "results" / "4.3-tuning")).set_index("from, % of the epochs")
    assert table["best lost"].to_dict() == {0: 3, 25: 1, 50: 0, 75: 0}
    assert search.median(16).__class__.__name__ == "MedianPruner"


def test_slices_draw_every_trial(record):
    table = tuning.slices(record)
    figure = figures.slices(table, "error over the lowest")
    good = table[table["failed"] == ""]
    count = sum(len(drawn(figure, marker)) for marker in figures.MARKERS)
    assert count == len(good) and len(drawn(figure, "x")) == len(table) - len(good) > 0
    assert_legible(figure)


def test_importance_draws_a_dot_a_setting_and_hollow_ones_where_it_does_nothing(record):
    table = tuning.importance(record)
    figure = figures.importance(table)
    hollow = [line for ax in figure.axes for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert sum(len(line.get_xdata()) for line in hollow) == (~table["used"]).sum()
    found = [x for x, _ in drawn(figure) if np.isfinite(x)]
    assert sorted(found) == pytest.approx(sorted(table["importance"].dropna()))
    assert [len(ax.patches) for ax in figure.axes] == [12] * 3
    assert_legible(figure)
