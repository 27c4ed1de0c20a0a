"""Section 4.5's ablation: effects that were put in are found with their sign, both ways, and advice follows."""

import dataclasses
import functools
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from test_optimisers import percent, record_of

from dotlib import arms, config, improvements, stats_crossed
from dotlib.comparison import ASSUMED
from dotlib.sections import ablation, advice, attention_costs, optimisers

NAMES = improvements.IMPROVEMENTS
ALONE = {name: -0.02 * i for i, name in enumerate(NAMES)}  # log effects that are put in
WITHIN = {name: 0.03 * (i % 5 - 2) for i, name in enumerate(NAMES)}


def judged_on(record, phantoms="a1b2"):
    """A record that names its test phantoms."""
    return dataclasses.replace(record, runs=record.runs.assign(test=phantoms))


def add_levels(alone=ALONE, base=-0.5):
    return {"baseline": base} | {ablation.arm(name, "alone"): base + alone[name] for name in NAMES}


def leave_levels(within=WITHIN, base=-1.5):
    """Having an improvement adds `within` to the log error without it; an alternative, to that without the other."""
    levels = {"full": base} | {ablation.arm(name, "in full"): base - within[name] for name in improvements.FULL}
    for name, other in improvements.ALTERNATIVES.items():
        levels[ablation.arm(name, "in full")] = base - within[other] + within[name]
    return levels


@functools.cache
def found(spread=0.0, seeds=3):
    """The effects of `both`."""
    return ablation.effects(*both(spread, seeds))


def both(spread=0.0, seeds=3, alone=ALONE, within=WITHIN, failed=()):
    mine = [[run for run in failed if run[0] in levels] for levels in (add_levels(alone), leave_levels(within))]
    add = record_of(add_levels(alone), seeds, spread, failed=mine[0], seed=1)
    return judged_on(add), judged_on(record_of(leave_levels(within), seeds, spread, failed=mine[1], seed=2))


def test_strength_is_that_of_having_the_improvement():
    """dz by scipy's paired t over seeds, the probability as Mann and Whitney's statistic a phantom."""
    add, leave = both(0.05)
    table = ablation.strength(found(0.05)).set_index("improvement")
    for where, record, name in (("alone", add, "EMA"), ("in full", leave, "EMA"), ("in full", leave, "depth 3")):
        _, having, lacking = ablation.pair(name, where)
        a, b = (optimisers.errors(record).loc[arm].to_numpy() for arm in (having, lacking))
        dz = scipy_stats.ttest_rel(np.log(a).mean(1), np.log(b).mean(1)).statistic / np.sqrt(len(a))
        wins = np.mean([scipy_stats.mannwhitneyu(*pair).statistic for pair in zip(b.T, a.T, strict=True)]) / len(a) ** 2
        row = table.loc[ablation.named(name)]
        assert row[f"Cohen dz {where}"] == pytest.approx(dz), (name, where)
        assert row[f"P(better) {where}"].startswith(f"{wins:.2f} ["), (name, where)
    nothing = ablation.strength(ablation.effects(None, None))
    assert nothing.iloc[:, 1::2].isna().all(axis=None) and (nothing.iloc[:, 2::2] == "--").all(axis=None)


def test_grid_has_every_improvement_in_both_directions_and_no_other_arm():
    add, leave = both()
    table = ablation.grid(add, leave)
    assert table["improvement"].tolist() == [ablation.named(name) for name in NAMES]
    for where, reference in (("alone", "baseline"), ("in full", "full")):
        study = arms.STUDIES[ablation.OF[where]]
        assert sorted(table[where]) == sorted(set(study.arms) - {reference}), where
        assert (table[f"runs {where}"] == study.seeds).all()
    assert (ablation.grid(None, None)[["runs alone", "runs in full"]] == 0).all(axis=None)


@pytest.mark.parametrize("name", NAMES)
def test_arms_of_a_pair_differ_by_the_improvement_in_the_direction_of_the_effect(name):
    """The arm that has the improvement is the first of its pair: its recipe, not its name, says so."""
    having = {"alone": {name}, "in full": improvements.without(name) if name in improvements.ALTERNATIVES else None}
    for where, on in having.items():
        _, a, b = ablation.pair(name, where)
        expected = improvements.recipe(improvements.FULL if on is None else on)
        base = config.profile("quick").base
        found, wanted = arms.arm(a, "quick"), {k: v(base) if callable(v) else v for k, v in expected.items()}
        assert found.seed == 0 and found == config.replace(base, {**wanted, "seed": 0}) != arms.arm(b, "quick")
        lacking = {*improvements.FULL} - {improvements.ALTERNATIVES.get(name, name)} if where == "in full" else {}
        wanted = {k: v(base) if callable(v) else v for k, v in improvements.recipe(lacking).items()}
        assert arms.arm(b, "quick") == config.replace(base, wanted)


def test_effects_that_were_put_in_are_found_in_both_directions_with_their_sign():
    table = found().set_index(["where", "name"])
    assert len(table) == 2 * len(NAMES)
    for where, truth in (("alone", ALONE), ("in full", WITHIN)):
        logs = np.log1p(table.loc[where, "effect"] / 100)
        assert logs.to_dict() == pytest.approx(truth, abs=1e-9)
    assert table.loc[("in full", "EMA"), "contrast"] == "full against leave-ema"
    assert table.loc[("in full", "fused links"), "contrast"] == "swap-fused-links against leave-dense-links"
    assert table.loc[("in full", "fused links"), "label"] == "fused links (for dense links)"


def test_each_direction_is_one_family_under_holm():
    table = ablation.effects(*both(spread=0.05, seeds=5))
    for where in ("alone", "in full"):
        rows = table[table["where"] == where]
        assert rows["Holm p"].tolist() == pytest.approx(multipletests(rows["p"], method="holm")[1].tolist())
        assert (rows["confirmatory"] == (rows["Holm p"] < 0.05)).all()
    assert 0 < table["confirmatory"].sum() < len(table)


def test_interval_is_that_of_seeds_crossed_with_phantoms():
    add, _ = both(spread=0.05)
    row = ablation.effects(add, None).set_index(["where", "name"]).loc["alone", "depth"]
    table = add.metrics[(add.metrics["metric"] == "nrmse") & (add.metrics["channel"] == "mua")]
    table = table[table["checkpoint"] == "last"].pivot(index=["arm", "seed"], columns="phantom", values="value")
    expected = stats_crossed.crossed_contrast(table.loc["add-depth"], table.loc["baseline"])
    assert row[["effect", "low", "high", "p"]].tolist() == pytest.approx([*expected.effect[:3], expected.p])


def test_words_are_resolved_by_holm_and_else_say_that_they_are_unadjusted():
    row = {"standing": "exploratory", "effect": -5.0, "low": -8.0, "high": -2.0, "seeds": 3, "Holm p": 0.01}
    assert ablation.word(row) == "better"
    assert ablation.word(row | {"Holm p": 0.2}) == "better, unadjusted"
    assert ablation.word(row | {"low": 2.0, "high": 8.0}) == "worse"
    assert ablation.word(row | {"high": 1.0}) == "not resolved"
    assert ablation.word(row | {"low": np.nan}) == "not computed"
    assert ablation.word(row | {"standing": "the same runs"}) == "the same runs"


def test_agreement_compares_the_two_directions():
    assert ablation.agreement("better", "better, unadjusted") == "yes: better"
    assert ablation.agreement("not resolved", "not resolved") == "yes: not resolved"
    assert ablation.agreement("worse", "better") == "no: worse alone, better in full"
    assert ablation.agreement("worse", "not computed") == "not computed"


def test_interaction_that_was_put_in_is_found():
    table = ablation.interactions(*both()).set_index("label")
    truth = {name: WITHIN[name] - ALONE[name] for name in NAMES}
    assert np.log1p(table["effect"] / 100).to_dict() == pytest.approx(truth, abs=1e-9)
    assert (table["seeds"] == 3).all() and (table["note"] == "").all()


def test_interaction_has_the_interval_of_four_paired_arms():
    add, leave = both(spread=0.05, seeds=6)
    row = ablation.interactions(add, leave).set_index("label").loc["depth"]
    log = {}
    for record in (add, leave):
        rows = record.metrics[(record.metrics["channel"] == "mua") & (record.metrics["checkpoint"] == "last")]
        wide = rows.pivot(index=["arm", "seed"], columns="phantom", values="value")
        log |= {arm: np.log(wide.loc[arm]) for arm in wide.index.unique("arm")}
    difference = (log["full"] - log["leave-depth"] - log["add-depth"] + log["baseline"]).mean(axis=1)
    half = scipy_stats.t.ppf(0.975, 5) * difference.std() / np.sqrt(6)  # phantoms differ by nothing but noise
    assert row["effect"] == pytest.approx(percent(difference.mean()))
    assert row[["low", "high"]].tolist() == pytest.approx([percent(difference.mean() + x) for x in (-half, half)])


def test_interaction_is_over_the_seeds_that_all_four_arms_have():
    add, leave = both(spread=0.05, seeds=6)
    kept = [frame[(frame["arm"] != "leave-depth") | (frame["seed"] != 4)] for frame in (leave.metrics, leave.runs)]
    table = ablation.interactions(add, dataclasses.replace(leave, metrics=kept[0], runs=kept[1])).set_index("label")
    assert table.loc[["depth", "EMA"], "seeds"].tolist() == [5, 6]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: None, "a study is not computed"),
        (lambda r: dataclasses.replace(r, profile="full"), "the studies are of the profiles quick and full"),
        (lambda r: judged_on(r, "beef"), "the studies were judged on different phantoms"),
        (lambda r: judged_on(r, ""), "a record does not name its test phantoms"),
        (lambda r: dataclasses.replace(r, runs=r.runs.drop(columns="test")), "a record does not name its test"),
    ],
)
def test_studies_of_other_phantoms_are_not_combined(change, why):
    add, leave = both()
    table = ablation.interactions(add, change(leave))
    assert table["note"].str.startswith(why).all() and table["effect"].isna().all() and (table["seeds"] == 0).all()
    assert not table["confirmatory"].any()


def test_same_runs_say_so_and_are_no_effect():
    alone, within = dict.fromkeys(NAMES, 0.1) | {"dropout": 0.0}, dict.fromkeys(NAMES, 0.1) | {"EMA": 0.0}
    words = ablation.effects(*both(alone=alone, within=within)).set_index(["where", "name"])["word"]
    assert words.index[words == "the same runs"].tolist() == [("alone", "dropout"), ("in full", "EMA")]


def test_operations_are_with_the_improvement_over_without():
    table = found().set_index(["where", "name"])["operations"]
    for name in ("depth", "multi-scale loss", "dense links"):
        assert table["alone", name] > 1.001 and table["in full", name] > 1.001, name
    for name in ("optimiser", "tumour size", "augmentation", "EMA"):  # nothing of the network or the loss
        assert table["alone", name] == table["in full", name] == 1, name
    for name in ("data size", "batch"):  # but for whole epochs
        assert table["alone", name] == pytest.approx(1, rel=0.02) == table["in full", name], name
    assert table["alone", "duration"] == pytest.approx(2, rel=0.02)
    assert table["in full", "gradient loss"] == 1  # of the loss, elementwise work
    # the network that trained features come from is trained, too, in as many steps as the profile's base
    _, more, less = ablation.pair("random features", "alone")
    plain, base = (attention_costs.training_operations(arms.arm(name, "quick")) for name in (less, "stage1-onecycle"))
    teacher = (table["alone", "multi-scale loss"] - table["alone", "random features"]) * plain
    assert more == "add-random-features" and teacher == pytest.approx(base, rel=0.02)
    samples = 512 * 16
    assert base == samples * attention_costs.operations(arms.arm("stage1-onecycle", "quick"))


def test_failed_arm_is_named_and_an_arm_that_always_failed_has_no_interval():
    lost = [("add-depth", 1), *(("leave-ema", s) for s in range(3))]
    add, leave = both(spread=0.02, failed=lost)
    table = ablation.effects(add, leave).set_index(["where", "name"])
    assert table.loc[("alone", "depth"), "failed"] == 1 and table.loc[("alone", "depth"), "effect"] > 0
    assert table.loc[("in full", "EMA"), ["failed", "word"]].tolist() == [3, "not computed"]
    read = ablation.read(ablation.effects(add, leave)).set_index("improvement")
    assert read.loc["EMA", ["interval in full", "agree"]].tolist() == ["--", "not computed"]
    assert read.loc[["EMA", "depth", "dropout"], "failed"].tolist() == [3, 1, 0]
    assert advice.advice(table.reset_index()).set_index("improvement").loc["EMA", "advice"] == "not computed"
    assert np.isnan(ablation.interactions(add, leave).set_index("label").loc["EMA", "low"])


def test_missing_studies_are_not_computed():
    add, _ = both(spread=0.02)
    read = ablation.read(ablation.effects(add, None))
    assert (read["agree"] == "not computed").all() and read["in full, %"].isna().all()
    assert read["alone, %"].notna().all() and (read["seeds"] == "3, 0").all()
    neither = ablation.effects(None, None)
    assert (neither["word"] == "not computed").all() and len(neither) == 2 * len(NAMES)
    assert set(advice.advice(neither)["advice"]) == {"not computed"}


def test_power_names_the_difference_that_each_family_can_find():
    table = ablation.power(64).set_index(["contrasts", "seeds"])
    assert table.loc[(2, 10), "in the family, %"] == pytest.approx(9.0, abs=0.05)  # as results/PLAN.md has it
    assert table.loc[(len(NAMES), 3), "by itself, %"] == pytest.approx(20.5, abs=0.05)
    few = stats_crossed.detectable_difference(ASSUMED, 3, 64, alpha=0.05 / len(NAMES))
    assert table.loc[(len(NAMES), 3), "in the family, %"] == pytest.approx(few)
    assert table["planned"].to_dict() == {(2, 3): "no", (2, 10): "yes", (24, 3): "yes", (24, 10): "no"}


@pytest.mark.parametrize(
    ("alone", "within", "expected"),
    [
        ("better", "better", "switch on"),
        ("not resolved", "better", "switch on"),
        ("the same runs", "better", "switch on"),
        ("worse", "better", "depends on the rest"),
        ("worse, unadjusted", "better", "depends on the rest"),
        ("not resolved", "worse", "leave out"),
        ("worse", "not resolved", "leave out"),
        ("better", "worse", "depends on the rest"),
        ("worse", "better, unadjusted", "depends on the rest"),
        ("better", "not resolved", "open in full"),
        ("not resolved", "the same runs", "either way"),
        ("the same runs", "the same runs", "the same runs"),
        ("better, unadjusted", "better, unadjusted", "either way"),
        ("worse, unadjusted", "worse, unadjusted", "either way"),
        ("better", "worse, unadjusted", "depends on the rest"),
        ("worse, unadjusted", "better", "depends on the rest"),
        ("better", "not computed", "not computed"),
        ("not computed", "worse", "not computed"),
    ],
)
def test_advice_follows_the_words_of_both_directions(alone, within, expected):
    assert advice.rule(alone, within) == expected


@pytest.mark.parametrize(
    ("instead", "expected"),
    [
        ("better than depth", "switch on"),
        ("not resolved from depth", "either way"),
        ("worse than depth", "leave out"),
        ("not computed", "not computed"),
    ],
)
def test_alternative_must_be_better_than_what_it_takes_the_place_of(instead, expected):
    assert advice.rule("better", "better", instead) == expected
    assert advice.rule("better", "worse", instead) == ("not computed" if "comp" in instead else "depends on the rest")


def test_alternative_that_is_better_than_a_harmful_one_is_not_advised():
    """Dense links are harmful, fused ones less so: better than dense, and worse than none."""
    within = WITHIN | {"dense links": 0.5, "fused links": 0.3, "guided links": -0.3}
    effects = ablation.effects(*both(spread=0.01, seeds=10, within=within))
    rows = effects[effects["where"] == "in full"].set_index("name")
    assert rows.loc["fused links", ["word", "instead"]].tolist() == ["worse", "better than dense links"]
    assert (rows.loc[list(improvements.FULL), "instead"] == "").all()
    table = advice.advice(effects).set_index("improvement")["advice"]
    assert table["fused links (for dense links)"] != "switch on" == table["guided links (for dense links)"]


def test_page_puts_what_is_worse_first_and_counts_everything():
    alone = ALONE | {"depth": 0.5, "dropout": 0.0}
    within = WITHIN | {"depth": 0.6, "attention": -0.4, "dropout": 0.0}
    table = advice.advice(ablation.effects(*both(spread=0.01, seeds=10, alone=alone, within=within)))
    claims = {"claim": ["H9", "H5"], "verdict": ["confirmed", "refuted"], "standing": ["primary", "exploratory"]}
    claims = pd.DataFrame(claims | {"note": ["", "the same runs as a"]})
    text = advice.page(table, claims, ["A remark."])
    order = [text.index(advice.HEADS[word]) for word in advice.ADVICE if (table["advice"] == word).any()]
    assert order == sorted(order)
    assert {"depth", "attention"} <= set(table["improvement"])
    assert text.count(" % operations") == (abs(table["operations"] - 1) >= 0.005).sum() == 8
    [line] = [line for line in text.splitlines() if line.startswith("* duration: ")]
    assert line.endswith("; +48 % operations")  # twice as many steps, beside as many of the loss's network in both
    heads = text.index(advice.HEADS["leave out"]), text.index(advice.HEADS["either way"])
    assert heads[0] < text.index("* depth: in full +8") < heads[1]
    assert text.index(advice.HEADS["switch on"]) < text.index("* attention: in full -3")
    assert text.index("* refuted: H5 (exploratory, the same runs as a).") < text.index("* confirmed: H9 (primary).")
    assert text.endswith("* A remark.") and "nrmse of mua" in text.splitlines()[0]
    counts = table["advice"].value_counts()
    for word in advice.ADVICE:
        assert f"{counts.get(word, 0)} {word}" in text.splitlines()[0]


def test_page_without_records_says_not_computed_and_no_number():
    text = advice.page(advice.advice(ablation.effects(None, None)), pd.DataFrame({"claim": [], "verdict": []}))
    assert "Not computed" in text and "nan" not in text and "switch on.**" in text.splitlines()[0]
    assert all(ablation.named(name) in text for name in NAMES)


def test_remarks_name_what_is_resolved_and_what_could_not_have_been():
    flat = dict.fromkeys(NAMES, 0.0)
    add, leave = both(0.005, seeds=10, alone=flat, within=flat | {"depth": 0.5})
    text = advice.interplay(ablation.interactions(add, leave))
    assert re.search(r"1 of 24 resolved after Holm's adjustment: depth \(\+6\d\.\d %\)\.$", text)
    assert advice.interplay(ablation.interactions(add, None)) == "Interactions: not computed, a study is not computed."
    said = advice.reach(ablation.effects(*both(spread=0.03)), 64)
    assert "as the plan assumed, 80 % power finds a reduction of 20.5 %" in said and "of 67.6 % at Holm's first" in said
    assert float(re.search(r"as the median contrast here does, one of (\d+\.\d) %", said)[1]) < 20
    assert "not computed" in advice.reach(ablation.effects(None, None), 64)


def test_page_names_what_more_seeds_might_resolve():
    """Both unadjusted intervals say the same, and Holm's p of neither says so."""
    flat = dict.fromkeys(NAMES, 0.0)
    table = ablation.effects(*both(0.01, 3, flat | {"EMA": -0.07, "depth": 0.07}, flat | {"EMA": -0.05, "depth": 0.05}))
    said = table.set_index(["name", "where"])["word"]
    assert (said[["EMA"]] == "better, unadjusted").all() and (said[["depth"]] == "worse, unadjusted").all()
    text = advice.page(advice.advice(table), pd.DataFrame({"claim": [], "verdict": []}))
    line = next(line for line in text.splitlines() if "Worth more seeds" in line)
    assert "worse: depth; better: EMA" in line


def test_all_together_is_the_full_recipe_against_the_baseline():
    add, leave = both()
    chosen = "metric == 'nrmse' and channel == 'mua' and checkpoint == 'last' and arm == @arm"
    ends = ((add, "baseline"), (leave, "full"))
    base, full = (np.log(record.metrics.query(chosen, local_dict={"arm": arm})["value"]).mean() for record, arm in ends)
    row = ablation.altogether(add, leave)
    assert np.log1p(row["effect"] / 100) == pytest.approx(full - base) and row["seeds"] == 3
    assert f"{row['effect']:+.1f} %" in advice.altogether(row)
    missing = ablation.altogether(add, judged_on(leave, "beef"))
    assert missing["seeds"] == 0 and advice.altogether(missing).endswith("not computed.")
