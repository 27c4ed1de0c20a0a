"""Section 4.3's tables: known effects are recovered, failed and missing runs are told, verdicts follow the numbers."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from dotlib import arms, chapter, config, convergence, records, report, stats, stats_crossed
from dotlib.sections import factorial, hypotheses, optimisers, schedules, speed

PHANTOMS, EPOCHS, STEPS = 8, 10, 512


def record_of(levels, seeds=5, spread=0.0, gap=None, precision=None, failed=(), seed=0, profile="quick"):
    """A record whose runs have the log errors `levels[arm]`, plus what phantoms and seeds add; musp and legacy twice
    as much, and half at the best checkpoint.

    `spread` is the sd of what an arm's seeds add besides, zero in the mean; validation is `gap[arm]` times the training
    loss; `failed` holds (arm, seed), whose runs end after half of the epochs and are judged by the worst of all.
    """
    rng, metrics, epochs, runs = np.random.default_rng(seed), [], [], []
    phantom, shared = rng.normal(0, 0.3, PHANTOMS), rng.normal(0, 0.1, seeds)
    for arm, level in levels.items():
        own = rng.normal(0, spread, seeds)
        for s in range(seeds):
            value = np.exp(level + phantom + shared[s] + own[s] - own.mean())
            row = {"arm": arm, "seed": s, "failed": "non-finite loss at step 7" if (arm, s) in failed else ""}
            runs.append(
                row | {"samples_seen": 8192, "samples_per_second": 34.0, "config": "c", "data": "d", "code": "e"}
            )
            runs[-1] |= {"precision": (precision or {}).get(arm, "bf16"), "steps": STEPS}
            last = EPOCHS // 2 if row["failed"] else EPOCHS
            curve = value.mean() * np.exp(1.5 * (1 - np.arange(1, EPOCHS + 1) / EPOCHS))[:last]
            loss = {"train_loss": curve, "validation_loss": curve * (gap or {}).get(arm, 1.1), "nrmse_mua": curve}
            epochs.append(pd.DataFrame({"arm": arm, "seed": s, "epoch": np.arange(last)} | loss))
            value = np.exp(max(levels.values()) + 1 + phantom) if row["failed"] else value
            for checkpoint, power in (("last", 1.0), ("best", 0.5)):
                for i, (metric, channel) in enumerate(optimisers.ERRORS.values()):
                    key = {"arm": arm, "seed": s, "checkpoint": checkpoint, "metric": metric, "channel": channel}
                    power_of = power * (2 if i else 1)
                    rows = {"inclusion": -1, "phantom": np.arange(PHANTOMS), "value": value**power_of}
                    metrics.append(pd.DataFrame(key | rows))
    frames = (pd.concat(metrics, ignore_index=True), pd.concat(epochs, ignore_index=True), pd.DataFrame(runs))
    return records.Record(*frames, profile, "made up")


def percent(log):
    return 100 * np.expm1(log)


FACTORIAL = {"adamw": -0.2, "cosine": -0.1, "onecycle": -0.25, "onecycle-momentum": -0.3, "both": 0.04}


def factorial_levels():
    """Log errors: AdamW -0.2; schedules -0.1, -0.25, -0.3; 0.04 more where AdamW meets cosine; beta2 -0.05, 0.02."""
    levels = {}
    for o in ("adam", "adamw"):
        for s in factorial.SCHEDULES:
            both = FACTORIAL["both"] if (o, s) == ("adamw", "cosine") else 0
            levels[f"{o}-{s}"] = -1 + (o == "adamw") * FACTORIAL["adamw"] + FACTORIAL.get(s, 0) + both
    levels["adam-constant-b95"] = levels["adam-constant"] - 0.05
    levels["adamw-onecycle-momentum-b95"] = levels["adamw-onecycle-momentum"] + 0.02
    return levels


def test_factorial_recovers_the_effects_that_were_put_in():
    table = factorial.effects(record_of(factorial_levels())).set_index("contrast")["effect"]
    found = dict(zip(table.index, np.log1p(table / 100), strict=True))
    truth = {
        "main effects: AdamW, not Adam": -0.2 + 0.04 / 4,
        "main effects: annealing": -0.1 + 0.04 / 2,
        "main effects: one cycle's shape": -0.15 - 0.04 / 2,
        "main effects: momentum cycling": -0.05,
        "interactions of AdamW with: annealing": 0.04,
        "interactions of AdamW with: one cycle's shape": -0.04,
        "interactions of AdamW with: momentum cycling": 0.0,
        "beta2 0.95, not 0.999, in: adam-constant": -0.05,
        "beta2 0.95, not 0.999, in: adamw-onecycle-momentum": 0.02,
    }
    assert found == pytest.approx(truth, abs=1e-9)


def test_factorial_effects_are_contrasts_and_the_first_seven_are_orthogonal():
    weights = pd.DataFrame(factorial.weights()).fillna(0)
    assert weights.sum().abs().max() < 1e-12
    crossed = weights.loc[[f"{o}-{s}" for o in factorial.OPTIMISERS for s in factorial.SCHEDULES]].to_numpy()[:, :7]
    product = crossed.T @ crossed
    assert np.allclose(product[0, 1:], 0) and np.allclose(product[1:4, 4:], 0)


def test_effect_is_the_paired_contrast_of_the_two_arms():
    record = record_of({"a": -1.2, "b": -1.0}, spread=0.05)
    row = optimisers.contrasts(record, [optimisers.Pair("g", "a", "b")]).iloc[0]
    table = np.log(optimisers.errors(record))
    difference = (table.loc["a"] - table.loc["b"]).mean(axis=1)
    assert row["effect"] == pytest.approx(percent(difference.mean()))
    assert row["p"] == pytest.approx(scipy_stats.ttest_1samp(difference, 0).pvalue)
    half = scipy_stats.t.ppf(0.975, 4) * difference.std() / np.sqrt(5)
    assert row[["low", "high"]].tolist() == pytest.approx([percent(difference.mean() + x) for x in (-half, half)])


def test_interval_is_for_new_phantoms_too_and_students_stands_beside_it():
    record = record_of({"a": -1.2, "b": -1.0}, spread=0.02)
    tilt = np.where(record.metrics["arm"] == "a", np.exp(0.3 * np.cos(3.0 * record.metrics["phantom"])), 1)
    record = dataclasses.replace(record, metrics=record.metrics.assign(value=record.metrics["value"] * tilt))
    row = optimisers.contrasts(record, [optimisers.Pair("g", "a", "b")]).iloc[0]
    table = np.log(optimisers.errors(record))
    alone = stats.paired_contrast(np.exp(table.loc["a"]), np.exp(table.loc["b"])).effect
    assert row["seeds alone"] == f"[{alone.low:.3g}, {alone.high:.3g}]"
    assert row["low"] < alone.low - 1 and row["high"] > alone.high + 1


def test_seeds_are_paired_where_both_arms_have_them():
    record = record_of({"a": -1.2, "b": -1.0}, seeds=6, spread=0.05)
    seed = record.metrics["seed"]
    lacking = np.where(record.metrics["arm"] == "a", seed.isin([0, 3]), seed == 5)
    row = optimisers.contrasts(
        dataclasses.replace(record, metrics=record.metrics[~lacking].sample(frac=1, random_state=0)),
        [optimisers.Pair("g", "a", "b")],
    ).iloc[0]
    table = np.log(optimisers.errors(record)).mean(axis=1)
    assert row["seeds"] == 3
    assert np.log1p(row["effect"] / 100) == pytest.approx((table.loc["a"] - table.loc["b"])[[1, 2, 4]].mean())


def test_table_of_ends_says_what_stands_beside_the_effect():
    levels = {"stage1-onecycle": -0.3, "stage1-adam": 0.0, "adamw-onecycle-momentum-b95": -0.1, "adam-constant": 0.0}
    record = record_of(levels, spread=0.05)
    uneven = np.exp(0.05 * np.cos(5.0 * record.metrics["phantom"] + 3.0 * record.metrics["seed"]))
    of_one = np.where(record.metrics["arm"] == "stage1-onecycle", uneven, 1)
    record = dataclasses.replace(record, metrics=record.metrics.assign(value=record.metrics["value"] * of_one))
    table, (a, b) = optimisers.all_ends(record), (optimisers.errors(record).loc[x] for x in list(levels)[:2])
    wins = stats.probability_of_improvement(a.to_numpy(), b.to_numpy())
    assert table.loc[0, "P(better)"] == f"{wins.estimate:.2f} [{wins.low:.2f}, {wins.high:.2f}]"
    assert table.loc[0, "sizes"] == ", ".join(f"{x:.2g}" for x in stats_crossed.components(a, b))
    assert table.loc[0, "Cohen dz"] == pytest.approx(stats.paired_contrast(a, b).dz)
    logs = np.log1p(table["effect"] / 100)
    assert table["standing"].tolist() == ["primary"] * 2 + [
        f"{name}: secondary" for name in ("nrmse musp", "legacy RMSE", "nrmse mua, best checkpoint") for _ in range(2)
    ]
    assert logs.tolist() == pytest.approx([-0.3, -0.1, -0.6, -0.2, -0.6, -0.2, -0.15, -0.05], abs=0.01)
    assert {"Cohen dz", "P(better)"} <= set(optimisers.shown(table, "P(better)"))


def test_confirmatory_intervals_share_five_per_cent():
    levels = {arm: -1 - 0.1 * i for i, arm in enumerate(sum(optimisers.ENDS.values(), ()))}
    record = record_of(levels, spread=0.05, seeds=10)
    table = optimisers.ends(record)
    plain = optimisers.contrasts(record, [optimisers.Pair("", *pair) for pair in optimisers.ENDS.values()])
    ratio = [np.log1p(t["high"] / 100) - np.log1p(t["effect"] / 100) for t in (table, plain)]
    assert (ratio[0] / ratio[1]).tolist() == pytest.approx(
        [scipy_stats.t.ppf(0.9875, 9) / scipy_stats.t.ppf(0.975, 9)] * 2
    )
    assert table["Holm p"].tolist() == pytest.approx(stats.holm(plain["p"]))
    h = hypotheses.HYPOTHESES[0]
    found = hypotheses.finding(record, h, {}).improvement
    assert [-found.high, -found.low] == pytest.approx(table.loc[0, ["low", "high"]].tolist())


def test_study_of_another_profile_than_the_first_is_not_judged():
    here, other = record_of({"a": -1, "b": -2}), record_of({"d": 0}, profile="full")
    evidence = {"4.3-tuning": other, "4.3-ends": None, "4.3-factorial": here, "4.3-sensitivity": other}
    assert optimisers.judged(evidence) == {"4.3-factorial": here}
    assert optimisers.judged({"4.3-ends": None, "4.3-tuning": other}) == {}


def test_together_keeps_each_studys_run_of_a_shared_arm():
    first, second = record_of({"a": -1, "b": -2}), record_of({"b": -5, "c": -3}, seeds=7)
    every = optimisers.together({"4.3-ends": first, "4.3-additions": second})
    assert every.runs.groupby("arm").size().to_dict() == {
        "4.3-ends: a": 5, "4.3-ends: b": 5, "4.3-additions: b": 7, "4.3-additions: c": 7
    }  # fmt: skip
    assert len(every.provenance) == 1 + 24 and every.source == "made up; made up"
    assert len(every.metrics) == len(first.metrics) + len(second.metrics)
    assert optimisers.together({}) is None


def everywhere(record):
    return dict.fromkeys(optimisers.STUDIES, record)


def test_verdict_takes_both_arms_from_the_study_with_most_seeds():
    assert hypotheses.study_of(hypotheses.HYPOTHESES[0]) == "4.3-ends"
    levels = {"stage1-onecycle": -0.1, "stage1-adam": 0.0, "stage1-onecycle-50": 0.2, "progressive-specified": -0.3}
    other = record_of({"stage1-onecycle": 3.0, "stage1-adam": -3.0}, seeds=10)
    table = hypotheses.verdicts({"4.3-ends": other, "4.3-additions": record_of(levels)}, {}).set_index("hypothesis")
    found = -np.log1p(-table["found, %"] / 100)
    assert table.loc["H1, as specified", "seeds"] == 10 and found["H1, as specified"] == pytest.approx(-6.0)
    assert found["H10"] == pytest.approx(0.3) and found["H11, as specified"] == pytest.approx(0.3)
    alone = hypotheses.verdicts({"4.3-additions": record_of(levels)}, {}).set_index("hypothesis")
    assert alone.loc["H1, as specified", ["verdict", "note", "failed"]].tolist() == [
        "not computed", "its study is not computed", 0
    ]  # fmt: skip


def verdict_of(levels, name, **options):
    table = hypotheses.verdicts(everywhere(record_of(levels, **options)), {}).set_index("hypothesis")
    return tuple(table.loc[name, ["verdict", "against 0", "note"]])


@pytest.mark.parametrize(
    ("a", "spread", "expected"),
    [
        (-0.2, 0.001, ("confirmed", "better", "")),  # 18 %
        (-0.5, 0.001, ("confirmed", "better", "more than expected")),
        (-0.1, 0.001, ("refuted", "better", "")),
        (+0.1, 0.001, ("refuted", "worse", "")),
        (-0.2, 0.3, ("not resolved", "not resolved", "")),
        (-0.2, 0.04, ("not resolved", "better", "")),
    ],
)
def test_verdict_compares_the_interval_with_what_was_promised(a, spread, expected):
    assert verdict_of({"stage1-onecycle": a, "stage1-adam": 0}, "H1, as specified", spread=spread) == expected


def test_verdict_on_an_arm_that_was_not_run_is_not_computed():
    verdict, _, note = verdict_of({"stage1-onecycle": 0, "stage1-adam": 0}, "H8")
    assert (verdict, note) == ("not computed", "an arm has no runs")
    table = hypotheses.verdicts(everywhere(record_of({"x": 0})), {})
    assert (table["verdict"] == "not computed").all() and len(table) == len(hypotheses.HYPOTHESES)


@pytest.mark.parametrize(("factor", "verdict"), [(0.8, "confirmed"), (1.2, "refuted")])
def test_overfitting_is_judged_by_validation_over_training(factor, verdict):
    levels = {"decay-schedule": -0.3 * (factor > 1), "stage1-onecycle": 0}  # the endpoint says the opposite
    gap = {"decay-schedule": 1.1 * factor, "stage1-onecycle": 1.1}
    record = record_of(levels, gap=gap)
    ratio = optimisers.gaps(record, list(levels))
    assert ratio["decay-schedule"].tolist() == pytest.approx([1.1 * factor] * 5)
    gap["decay-schedule"] += 1e-9
    assert verdict_of(levels, "H12", gap=gap)[0] == verdict
    curves = record.epochs["arm"] == "decay-schedule"
    record.epochs.loc[curves, "validation_loss"] *= np.exp(0.01 * record.epochs.loc[curves, "seed"])
    ratio = optimisers.gaps(record, list(levels))
    effect = stats.paired_contrast(ratio["decay-schedule"], ratio["stage1-onecycle"]).effect
    row = hypotheses.verdicts(everywhere(record), {}).set_index("hypothesis").loc["H12"]
    assert row["interval, %"] == f"[{-effect.high:.3g}, {-effect.low:.3g}]"


@pytest.mark.parametrize(
    ("difference", "spread", "verdict"),
    [(0.01, 0.005, "confirmed"), (0.2, 0.005, "refuted"), (-0.2, 0.005, "refuted"), (0.0, 0.2, "not resolved")],
)
def test_equal_quality_is_a_test_of_equivalence(difference, spread, verdict):
    levels, precision = {"stage1-onecycle": difference, "fp32": 0}, {"fp32": "fp32"}
    assert verdict_of(levels, "H13, quality", spread=spread, precision=precision)[0] == verdict


def test_equal_quality_needs_two_precisions():
    verdict, _, note = verdict_of({"stage1-onecycle": 0, "fp32": 0}, "H13, quality", precision=dict.fromkeys(
        ("stage1-onecycle", "fp32"), "fp32"))  # fmt: skip
    assert verdict == "not computed" and "ran in fp32" in note


# curves fall as exp(1.5 (1 - epoch / 10)): a factor of exp(-0.15) an epoch
@pytest.mark.parametrize(("a", "verdict"), [(-0.6, "confirmed"), (-0.3, "not resolved"), (0.3, "refuted")])
def test_speed_is_judged_by_the_epochs_saved(a, verdict):
    levels = {"stage1-onecycle": a, "stage1-adam": 0}
    record = record_of(levels)
    record.epochs["nrmse_mua"] /= record.epochs.groupby("seed")["nrmse_mua"].transform("min")  # seeds alike
    target = 1.001 * np.exp(0.3 + 0.15 * 2 if a > 0 else 0.3 - a - 0.3)
    found = speed.times(record, tuple(levels), target)
    row = (
        hypotheses.verdicts(everywhere(record), {"as specified": target})
        .set_index("hypothesis")
        .loc["H1, speed as specified"]
    )
    b, a = (int(found[arm].epochs[0]) for arm in ("stage1-adam", "stage1-onecycle"))
    assert row["found, %"] == pytest.approx(100 * (1 - a / b)) and row["verdict"] == verdict
    ups = speed.ups(record, {"as specified": target}).iloc[0]
    of = [found[arm] for arm in ("stage1-onecycle", "stage1-adam")]
    ratio, reading = convergence.speedup(*of)
    assert (ups["speed-up"], ups["reading"]) == (pytest.approx(b / a), reading)
    assert ups["interval"] == f"[{ratio.low:.3g}, {ratio.high:.3g}]"
    assert ups["log-rank p"] == pytest.approx(convergence.logrank(*of))
    low, high = (100 * (1 - 1 / x) for x in (ratio.low, ratio.high))
    assert row["interval, %"] == f"[{low:.3g}, {high:.3g}]"


def test_failed_run_never_reaches_the_target_and_stays_in_the_tables():
    levels = {"stage1-onecycle": -0.3, "stage1-adam": 0.0}
    record = record_of(levels, failed=[("stage1-adam", 1)])
    lost = record.epochs[(record.epochs["arm"] != "stage1-adam") | (record.epochs["seed"] != 1)]
    for run in (record, dataclasses.replace(record, epochs=lost)):  # half of its curve, or none
        found = speed.times(run, tuple(levels), 1.01 * record.epochs["nrmse_mua"].max() / np.exp(1.35))
        assert found["stage1-adam"].reached.tolist() == [True, False, True, True, True]
        assert found["stage1-adam"].epochs[1] == EPOCHS
    assert optimisers.ends(record)["failed"].tolist() == [1, 0]
    assert optimisers.runs_of(record, ["stage1-adam"])["failed"].tolist().count("") == 4
    assert optimisers.gaps(record, list(levels)).index.tolist() == [0, 2, 3, 4]
    table = hypotheses.verdicts(everywhere(record), {}).set_index("hypothesis")
    assert table.loc["H1, as specified", "failed"] == 1
    assert "1 failed" in hypotheses.answer(table.reset_index())


def test_arm_all_of_whose_runs_failed_has_no_interval_and_no_verdict():
    """Others' worst values have no spread of their own."""
    levels = {**factorial_levels(), "stage1-onecycle": -0.3, "stage1-adam": 0.0, "stage1-onecycle-50": 0.1}
    lost = ("stage1-adam", "adam-cosine", "adam-constant", "stage1-onecycle-50")
    record = record_of(levels, spread=0.02, failed=[(arm, s) for arm in lost for s in range(5)])
    ends = optimisers.all_ends(record)
    tables = [ends, optimisers.budgets(record)[lambda t: t["seeds"] > 0], factorial.effects(record)]
    hit = [ends.index, slice(None), tables[2]["label"].isin(["AdamW, not Adam", "annealing", "one cycle's shape"])]
    for table, rows in zip(tables, hit, strict=True):
        assert table.loc[rows, ["low", "high", "p", "sd of log", "Cohen dz"]].isna().all(axis=None)
        assert (table.loc[rows, ["seeds alone", "sizes"]] == "--").all(axis=None) and table.loc[rows, "seeds"].all()
    assert ends[["Holm p"]].isna().all(axis=None) and (ends["P(better)"] == "--").all()
    assert (optimisers.shown(ends)["interval, %"] == "--").all()
    kept = factorial.effects(record).set_index("contrast").loc["main effects: momentum cycling"]
    assert np.isfinite([kept["low"], kept["p"]]).all()
    row = speed.ups(record, {"as specified": 1.0}).iloc[0]
    assert row["reading"] == "every run of an arm failed" and row["seeds"] == 0
    found = hypotheses.verdicts(everywhere(record), {"as specified": 1.0}).set_index("hypothesis")
    names = ["H1, as specified", "H1, tuned", "H1, speed as specified", "H10"]
    assert found.loc[names, "verdict"].tolist() == ["not computed"] * 4
    assert (found.loc[names, "note"] == "every run of an arm failed").all()


def test_failed_run_of_an_unpaired_seed_is_not_counted_with_the_contrast():
    record = record_of({"stage1-onecycle": -0.3, "stage1-onecycle-50": 0.0}, failed=[("stage1-onecycle", 3)])
    few = [frame[(frame["arm"] == "stage1-onecycle") | (frame["seed"] < 3)] for frame in (record.metrics, record.runs)]
    fewer = dataclasses.replace(record, metrics=few[0], runs=few[1])
    found = hypotheses.verdicts(everywhere(fewer), {}).set_index("hypothesis")
    assert found.loc["H10", ["seeds", "failed"]].tolist() == [3, 0]


def test_bound_says_so_before_its_number_and_that_it_is_more_than_expected():
    """One run of Adam misses the target: its epochs are too few, and so is what the other saves."""
    record = record_of({"stage1-onecycle": -0.9, "stage1-adam": 0.0}, failed=[("stage1-adam", 1)])
    record.epochs["nrmse_mua"] /= record.epochs.groupby("seed")["nrmse_mua"].transform("min")
    table = hypotheses.verdicts(everywhere(record), {"as specified": 1.001 * np.exp(0.9)})
    row = table.set_index("hypothesis").loc["H1, speed as specified"]
    assert row["note"] == "a bound: at least; more than expected" and row["verdict"] == "confirmed"
    assert f"Found: at least {row['found, %']:+.1f} %" in hypotheses.answer(table)


def test_targets_come_from_the_pilot_and_from_the_baseline():
    record = record_of({"stage1-adam": 0.2, "stage1-onecycle": -1.0}, seeds=4, spread=0.1, failed=[("stage1-adam", 2)])
    tuning = record_of({"tune-adam-constant-3": -0.5, "tune-adam-constant-4": -0.4, "tune-muon-0": -2.0}, seeds=1)
    last = {run: rows["nrmse_mua"].iloc[-1] for run, rows in record.epochs.groupby(["arm", "seed"])}
    found = speed.targets(record, tuning)
    assert found["as specified"] == sorted(last["stage1-adam", s] for s in (0, 1, 3))[1]
    assert found["tuned"] == tuning.epochs.loc[tuning.epochs["arm"] == "tune-adam-constant-3", "nrmse_mua"].min()
    assert set(speed.targets(record, None)) == {"as specified"}
    assert set(speed.targets(record, dataclasses.replace(tuning, profile="full"))) == {"as specified"}
    assert speed.targets(record_of({"x": 0}), None) == {}


def test_survival_ends_at_the_share_that_missed_and_ticks_it():
    record = record_of({"stage1-adam": 0.0, "stage1-onecycle": -1.0}, failed=[("stage1-adam", 0)])
    table = speed.survival(record, {"as specified": 1e9})
    assert table[table["arm"] == "stage1-adam"].iloc[-1][["share", "censored"]].tolist() == pytest.approx([0.2, 1])
    assert table[table["arm"] == "stage1-onecycle"].iloc[-1]["share"] == 0


def test_answer_puts_negative_results_first():
    table = hypotheses.verdicts(
        everywhere(record_of({"stage1-onecycle": -0.5, "stage1-adam": 0, "progressive-specified": 0.1}, spread=0.001)),
        {},
    )
    answer = hypotheses.answer(table)
    words = [line.split("**")[1].split(": ")[1] for line in answer.splitlines()]
    assert "nan" not in answer and "confirmed** (primary, 5 seeds; more than expected)" in answer
    assert words == sorted(words, key=hypotheses.ORDER.index) and set(words) == {"refuted", "not computed", "confirmed"}
    assert len(words) == len(hypotheses.HYPOTHESES)


def test_hypotheses_name_arms_and_recorded_studies():
    assert {arm for h in hypotheses.HYPOTHESES for arm in (h.a, h.b)} <= set(arms.ARMS)
    assert set(optimisers.STUDIES) <= set(arms.STUDIES)
    assert set(optimisers.ERRORS.values()) <= set(records.COLUMNS)
    recorded = {arm for name in optimisers.STUDIES for arm in arms.STUDIES[name].arms}
    named = {*optimisers.ADDITIONS, *(arm for names in optimisers.ADDITIONS.values() for arm in names)}
    named |= {arm for shares in optimisers.BUDGETS.values() for arm in shares.values()}
    assert named | {arm for weights in factorial.weights().values() for arm in weights} <= recorded


def test_plan_rests_on_no_result_and_on_the_studies_seeds():
    plan = hypotheses.plan(64).set_index("hypothesis")
    assert plan.loc[["H1, as specified", "H1, tuned"], "seeds"].tolist() == [10, 10]
    assert plan.loc["H11, tuned", "seeds"] == 3
    assert plan.loc["H1, tuned", "detectable, %"] == pytest.approx(9.0, abs=0.05)  # as results/PLAN.md has them
    assert plan.loc["H11, tuned", "detectable, %"] == pytest.approx(20.5, abs=0.05)
    sd = np.hypot(0.07, 0.05 / 8)
    assert hypotheses.power_of_equality(64) == pytest.approx(stats.equivalence_power(sd, 3, hypotheses.MARGIN))
    assert plan["detectable, %"].isna().sum() == sum(h.of != "error" for h in hypotheses.HYPOTHESES)


def test_budgets_compare_at_equal_shares_of_the_epochs():
    names = [arm for shares in optimisers.BUDGETS.values() for arm in shares.values()]
    table = optimisers.budgets(record_of({arm: -i / 10 for i, arm in enumerate(names)}))
    equal, fewer = np.log1p(table["effect"] / 100)[:3], np.log1p(table["effect"] / 100)[3:]
    assert equal.tolist() == pytest.approx([-0.3, -0.3, -0.4])
    assert fewer.tolist() == pytest.approx([-0.1, -0.2, -0.3])  # against Adam with all its epochs
    assert (table["contrast"][3:].str.endswith("against stage1-adam")).all()
    more = record_of(dict.fromkeys(names, 0.0), seeds=7)
    fewer = (more.metrics["arm"] == names[0]) & (more.metrics["seed"] > 4)
    runs = optimisers.budget_runs(dataclasses.replace(more, metrics=more.metrics[~fewer]))
    assert runs.groupby(["optimiser", "budget"]).size().tolist() == [5] * 7
    for name, shares in optimisers.BUDGETS.items():
        full = arms.arm(shares[100], "full").training.epochs
        assert [arms.arm(arm, "full").training.epochs for arm in shares.values()] == [
            full * s // 100 for s in shares
        ], name


def test_additions_meet_their_own_reference():
    names = {*optimisers.ADDITIONS, *sum(optimisers.ADDITIONS.values(), ())}
    levels = {arm: i / 10 for i, arm in enumerate(sorted(names))}
    gap = {"muon": 1.3}
    table = optimisers.additions(record_of(levels, gap=gap)).set_index("label")
    for b, members in optimisers.ADDITIONS.items():
        for a in members:
            assert np.log1p(table.loc[a, "effect"] / 100) == pytest.approx(levels[a] - levels[b])
    assert table.loc["muon", "gap, %"] == pytest.approx(30) and (table["samples seen"] == 8192).all()
    assert (table["standing"] == "exploratory").all()


def test_addition_that_never_took_effect_says_so():
    levels = {"stage1-onecycle": 0.0, "stopped": 0.0, "stage1-onecycle-50": 0.2, "ema-onecycle": -0.1, "batch-32": 1e-9}
    record = record_of(levels)
    table = optimisers.additions(record).set_index("label")["standing"]
    assert table["stopped"] == "the same runs"
    assert (table[["ema-onecycle", "stage1-onecycle-50", "batch-32"]] == "exploratory").all()
    found = hypotheses.verdicts(everywhere(record), {}).set_index("hypothesis")["note"]
    assert "the same runs as stage1-onecycle" in found["H10, stopped early"] and "same" not in found["H10"]


def test_one_cycle_overwrites_beta1_and_ends_where_it_should():
    facts = schedules.facts(schedules.table(schedules.drawn())).set_index("arm")
    recipe = config.ONECYCLE
    assert facts.loc["stage1-onecycle", ["lowest beta1", "highest beta1"]].tolist() == pytest.approx([0.85, 0.95])
    assert facts.loc["adamw-onecycle", ["lowest beta1", "highest beta1"]].tolist() == [0.9, 0.9]
    assert facts.loc["stage1-onecycle", "last lr"] == pytest.approx(recipe.lr / recipe.div / recipe.final_div)
    assert facts.loc["progressive-specified", "mean / highest"] == pytest.approx(0.3 + 0.5 / 2 + 0.2 / 10)
    assert facts.loc["decay-schedule", ["first decay", "last decay"]].tolist() == pytest.approx([5e-4, 1e-5])
    assert facts.loc[["stage1-adam", "adamw-constant"], "mean / highest"].tolist() == pytest.approx([1, 1])


def test_page_without_a_record_is_one_line(tmp_path):
    book = report.Book("4.3", "smoke", tmp_path)
    line = chapter.Page(book, None).show(optimisers.ends, "ends", "C.")
    assert "not computed" in line and line._repr_markdown_() == line and "\n" not in line
    assert not list(tmp_path.iterdir())


def test_page_writes_under_the_profile_of_the_record(tmp_path):
    record = record_of({"a": 0, "b": -1}, seeds=4, profile="quick")
    book, pairs = report.Book("4.3", "smoke", tmp_path), [optimisers.Pair("", "b", "a")]
    page = chapter.Page(book, record)
    made = page.show(lambda r: optimisers.shown(optimisers.contrasts(r, pairs)), "pairs", "C.")
    (sidecar,) = report.sidecars(tmp_path)
    assert (sidecar["profile"], sidecar["n"]) == ("quick", "8 phantoms, 4 seeds")
    both = optimisers.together({"x": record, "y": record_of({"c": 0}, seeds=6)})
    assert chapter.Page(book, both).n() == "8 phantoms, 4-6 seeds"
    assert made.data["effect, %"].tolist() == pytest.approx([percent(-1)])
    assert (
        made.words.endswith(page.scope())
        and page.scope() == "Task: autoencode; profile: quick; n = 8 phantoms, 4 seeds."
    )
    assert page.say(lambda r: "Better.") == f"{page.scope()}\n\nBetter."


def test_page_shows_texts_whole_and_gaps_as_dashes():
    line = "non-finite loss at step 7, " * 9
    shown = chapter.readable(pd.DataFrame({"failed": [line], "effect": [np.nan], "p": [1.23456e-8]})).to_html()
    assert line in shown and "--" in shown and "1.23e-08" in shown


def test_failed_runs_are_named_with_their_reason():
    evidence = {"x": record_of({"a": 0, "b": 0}, failed=[("b", 3)]), "y": None}
    assert chapter.failures(evidence).to_numpy().tolist() == [["x", "b", 3, "non-finite loss at step 7"]]
    found = chapter.found(evidence).set_index("study")
    assert found["failed"].tolist() == [1, 0] and found.loc["y", "from"] == "not computed"
    assert chapter.failures({"y": None}).empty
