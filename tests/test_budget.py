"""The longest runs: their arms, the rule that makes their recipe, and what is read off their errors."""

import dataclasses
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_ablation import both
from test_criteria import made, rows_of
from test_optimisers import record_of
from test_plots_optimisers import assert_legible, drawn

from dotlib import arms, config, improvements, judgement, plots, records, trivial
from dotlib.config import PROFILES, train_share
from dotlib.improvements import BEST, BUDGETS, GIVEN, LONG, WIDTHS
from dotlib.plots import ablation as figures
from dotlib.recipes import steps
from dotlib.sections import budget
from dotlib.sections.criteria import CRITERIA

ROOT = config.root()
BY_RULE = pd.DataFrame({"improvement": ["channel weight", "EMA"], "chosen": ["yes", "no"]})


def of_law(a, b, seeds=1, failed=()):
    """A record of the quick profile whose errors are a S^-b at S samples, the narrow network's a tenth higher."""
    samples = {name: 8192 * int(name.split("-")[1]) for name in LONG}
    levels = {name: np.log((1.1 if "half" in name else 1.0) * a * n**-b) for name, n in samples.items()}
    record = record_of(levels, seeds=seeds, failed=failed)
    return dataclasses.replace(record, runs=record.runs.assign(samples_seen=record.runs["arm"].map(samples)))


@pytest.mark.parametrize("size", ["quick", "full"])
def test_budgets_are_multiples_of_one_unit_with_the_specifications_width_and_half_of_it(size):
    unit = improvements.unit(PROFILES[size].base)
    assert len(BUDGETS) >= budget.LEAST
    for name in WIDTHS:
        for n in BUDGETS:
            found = arms.arm(f"{name}-{n}", size)
            assert found.model.width == WIDTHS[name]
            # whole epochs: of the full profile's smallest budget they are six
            assert steps(found) * found.training.batch == pytest.approx(n * unit, rel=0.05 if n == 1 else 0.01)
    assert WIDTHS["specified"] == PROFILES["full"].base.model.width == 2 * WIDTHS["half"]


def test_longest_run_of_the_full_profile_is_the_recipe_at_the_profiles_own_size():
    full = PROFILES["full"].base
    found = arms.arm("specified-16", "full")
    assert found == config.replace(
        full, {k: v(full) if callable(v) else v for k, v in improvements.recipe(BEST).items()}
    )
    assert found.training.epochs == 100 and found.data.phantoms == 5000


def test_quick_runs_train_with_the_curves_largest_set_and_are_judged_on_the_profiles_test_set():
    base = PROFILES["quick"].base.data
    for name in LONG:
        found = arms.arm(name, "quick")
        assert train_share(found.data) == 4096 and found.test == base
    assert arms.STUDIES[budget.STUDY].arms[0] == "specified-16" and set(arms.STUDIES[budget.STUDY].arms) == set(LONG)
    assert judgement.asked("specified-16", "default") and budget.STUDY in judgement.STUDIES


def test_recipe_has_what_one_cycle_has():
    assert set(GIVEN) <= set(BEST) and not set(BEST) & set(improvements.ALTERNATIVES)
    given = config.replace(PROFILES["quick"].base, {"optim": improvements.recipe(GIVEN)["optim"]})
    assert given.optim == config.ONECYCLE


def test_rule_asks_validation_in_both_directions():
    alone = dict.fromkeys(improvements.IMPROVEMENTS, -0.05) | {"depth": 0.01}
    within = dict.fromkeys(improvements.IMPROVEMENTS, -0.02) | {"EMA": 0.01}
    add, leave = both(0.03, alone=alone, within=within)
    table = budget.chosen(add, leave).set_index("improvement")
    assert not set(table.index) & {*GIVEN, *improvements.ALTERNATIVES} and len(table) == 11
    assert set(table.index[table["chosen"] == "no"]) == {"depth", "EMA"}
    ends = add.epochs.groupby(["arm", "seed"])["nrmse_mua"].last().unstack("arm")
    truth = 100 * (np.exp(np.log(ends["add-depth"] / ends["baseline"]).mean()) - 1)
    assert table.loc["depth", "alone, %"] == pytest.approx(truth)


def test_rule_reads_no_test_metric_and_leaves_out_failed_runs():
    levels = dict.fromkeys(improvements.IMPROVEMENTS, -0.05)
    add, leave = both(0.03, alone=levels, within=levels, failed=[("add-depth", 1)])
    table = budget.chosen(add, leave)
    blind = [dataclasses.replace(r, metrics=r.metrics.assign(value=np.nan)) for r in (add, leave)]
    assert budget.chosen(*blind).equals(table)
    ends = add.epochs.groupby(["arm", "seed"])["nrmse_mua"].last().unstack("arm").loc[[0, 2]]
    truth = 100 * (np.exp(np.log(ends["add-depth"] / ends["baseline"]).mean()) - 1)
    assert table.set_index("improvement").loc["depth", "alone, %"] == pytest.approx(truth)
    assert (budget.chosen(None, leave)["chosen"] == "not computed").all()


def test_recipe_is_the_one_that_the_recorded_ablation_speaks_for():
    folders = [ROOT / "results" / study for study in ("4.5-add-one-in", "4.5-leave-one-out")]
    table = budget.chosen(*map(records.load, folders))
    assert {*GIVEN, *table.loc[table["chosen"] == "yes", "improvement"]} == set(BEST)


def test_law_that_was_put_in_is_found_and_says_how_many_samples_a_gate_takes():
    table = budget.runs(of_law(8.0, 0.3))
    assert table.groupby("network")["samples"].apply(list).to_dict() == {
        name: sorted(8192 * n for n in BUDGETS) for name in WIDTHS
    }
    trend = budget.trend(table).set_index("network")
    assert trend["b"].tolist() == pytest.approx([0.3, 0.3])
    assert trend["last step, %"].tolist() == pytest.approx([100 * (4**-0.3 - 1)] * 2)
    assert trend["next four-fold, % (predicted)"].tolist() == pytest.approx([100 * (4**-0.3 - 1)] * 2)
    scale = float(table.set_index("arm").loc["specified-1", "value"]) / (8.0 * 8192**-0.3)
    wanted = (scale * 8.0 / budget.GATE) ** (1 / 0.3)
    assert trend.loc["specified", "samples to the gate (predicted)"] == pytest.approx(wanted)


def test_operations_are_those_of_the_networks():
    table = budget.runs(of_law(8.0, 0.3)).set_index("arm")
    assert table.loc["specified-16", "PFLOP"] == pytest.approx(16 * table.loc["specified-1", "PFLOP"])
    ratio = table.loc["specified-1", "PFLOP"] / table.loc["half-1", "PFLOP"]
    assert 2 < ratio < 4  # channels count twice, but for the first and last layers
    assert table.loc["half-1", "hours"] == pytest.approx(8192 / 34.0 / 3600)


def judged_levels(value, profile="quick"):
    arms = {*LONG, *trivial.PREDICTORS}
    columns = {(c.on, c.column) for c in budget.ONE_RUN}
    columns |= {("default", ("nrmse_p50", "mua"))}  # what the tail is over
    rows = [row for arm in arms for on, column in columns for row in rows_of(arm, on, column, [value])]
    return made(rows, profile=profile)


def test_gates_say_what_a_run_reached():
    table = budget.gates(judged_levels(0.05)).set_index("criterion")["specified-16"]
    assert table["nrmse of mua <= 0.10"] == table["nrmse of mua <= 0.06 (ambition)"] == "0.05: reached"
    assert table["median crc of mua 0.85-1.10"] == "0.05: not reached"
    assert table["SSIM of mua >= 0.95 at 64^3"] == "0.05: other grid"
    full = budget.gates(judged_levels(0.96, "full")).set_index("criterion")["half-16"]
    assert full["SSIM of mua >= 0.95 at 64^3"] == "0.96: reached" and full["nrmse of mua <= 0.10"].endswith(
        "not reached"
    )
    assert (budget.gates(made([]))["half-16"] == "--").all()


def test_gates_say_where_a_run_failed():
    judged = judged_levels(0.05)
    runs = judged.runs.assign(failed=np.where(judged.runs["arm"] == "half-4", "loss nan", ""))
    table = budget.gates(dataclasses.replace(judged, runs=runs))
    assert (table["half-4"] == "failed").all() and not table["half-16"].eq("failed").any()


def test_gates_are_of_both_conventions_and_beside_predictors_without_a_network():
    table = budget.gates(judged_levels(0.05)).set_index("criterion")
    assert table["convention"].unique().tolist() == ["honest", "both", "legacy"]
    assert len(table) == len(CRITERIA) - 2  # of one run there is no spread, and roughness has no threshold
    assert table.loc["RMSE < 0.07", "half-16"] == "0.05: reached"
    assert table.loc["SSIM > 0.75", "half-16"] == "0.05: not reached"
    assert table.loc["consistency: 95 % quantile / median of nrmse of mua <= 2", "half-16"] == "1: reached"
    assert table.loc["RMSE < 0.07", "trivial predictors"].startswith("met by all zeros")
    assert table.loc["SSIM > 0.75", "trivial predictors"].startswith("not met; best: ")


def test_answer_names_the_lowest_error_what_it_misses_and_the_trend():
    said = budget.answer(judged_levels(0.05), budget.runs(of_law(8.0, 0.3)), BY_RULE)
    lines = said.splitlines()
    assert lines[0].startswith("* The best recipe: one cycle, with ")
    assert (
        lines[1].startswith("* **Lowest nrmse of mua: ")
        and "`specified-16`" in lines[1]
        and "131,072 samples" in lines[1]
    )
    assert said.index("* honest, not reached: ") < said.index("* honest, reached: nrmse of mua <= 0.10")
    assert said.index("* honest, reached: ") < said.index("* legacy, not reached: SSIM > 0.75")
    assert re.search(r"specified width: the last step brought -34.0 %; predicted of the next: -34.0 %", said)
    assert "No long run" in budget.answer(None, budget.runs(None), BY_RULE)


def test_answer_says_where_the_rule_has_another_recipe_than_the_one_that_was_trained():
    table = budget.runs(of_law(8.0, 0.3))
    said = budget.answer(None, table, BY_RULE.assign(chosen=["yes", "yes"])).splitlines()[0]
    assert said.endswith("**By these records the rule has another one: channel weight, EMA.**")
    assert budget.recipe(BY_RULE.assign(chosen="no")).endswith("has another one: nothing added.**")
    for chosen in (["yes", "no"], ["no", "not computed"]):
        assert budget.recipe(BY_RULE.assign(chosen=chosen)) == "The best recipe: one cycle, with channel weight."


def test_failed_runs_are_in_no_law():
    table = budget.runs(of_law(8.0, 0.3, failed=[("specified-16", 0), ("specified-4", 0)]))
    assert (table["failed"] != "").sum() == 2
    assert budget.trend(table)["network"].tolist() == ["half"]
    assert "`half-16`" in budget.answer(None, table, BY_RULE)


def test_figure_draws_every_run_and_what_is_aimed_at():
    plots.style()
    table = budget.runs(of_law(8.0, 0.3, failed=[("half-4", 0)]))
    figure = figures.longest(table, {"gate": budget.GATE, "ambition": budget.AMBITION}, r"test nrmse of $\mu_a$")
    good = table[table["failed"] == ""]
    points = sorted(zip(good["PFLOP"], good["value"], strict=True))
    assert np.allclose(sorted(drawn(figure)), points) and len(drawn(figure, "x")) == 1
    dashed = [
        line.get_ydata()[0]
        for line in figure.axes[0].lines
        if line.get_linestyle() == "--" and len(line.get_xdata()) == 2
    ]
    assert {budget.GATE, budget.AMBITION} <= set(dashed)
    assert_legible(figure)
    plt.rcdefaults()
