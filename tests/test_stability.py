"""What section 4.5 says of arms one by one: spread over seeds, gap, error over phantoms; and of its own judgement."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from test_optimisers import record_of

from dotlib import arms, improvements, power_law, stats_aa
from dotlib.sections import false_discovery, learning_curve, stability


def test_stability_is_the_sd_over_seeds_with_the_interval_of_a_variance():
    record = record_of({"full": -1.0, "leave-ema": -1.0}, seeds=12, spread=0.08)
    row = stability.stability(record).set_index("arm").loc["full"]
    table = record.metrics[(record.metrics["channel"] == "mua") & (record.metrics["checkpoint"] == "last")]
    means = np.log(table[table["arm"] == "full"].pivot(index="seed", columns="phantom", values="value")).mean(axis=1)
    assert row["sd"] == pytest.approx(100 * np.std(means, ddof=1))
    limits = [100 * np.sqrt(11 * means.var() / scipy_stats.chi2.ppf(q, 11)) for q in (0.975, 0.025)]
    assert row[["low", "high"]].tolist() == pytest.approx(limits)


@pytest.mark.parametrize(("low", "high", "word"), [(1, 4.9, "met"), (5.1, 9, "not met"), (4, 6, "not resolved")])
def test_stability_is_met_by_the_whole_interval(monkeypatch, low, high, word):
    monkeypatch.setattr(stability, "spread", lambda logs: stability.stats.Interval((low + high) / 2, low, high, 3))
    assert stability.stability(record_of({"full": -1.0}))["verdict"].tolist() == [word]


def test_failed_run_counts_in_the_spread_and_an_arm_that_always_failed_has_none():
    lost = [("leave-ema", 0), *(("leave-depth", s) for s in range(3))]
    record = record_of({"full": -1.0, "leave-ema": -1.0, "leave-depth": 0.0}, seeds=3, failed=lost)
    table = stability.stability(record).set_index("arm")
    assert table["failed"].tolist() == [0, 1, 3] and table.loc["leave-ema", "sd"] > 3 * table.loc["full", "sd"]
    assert table.loc["leave-depth", "verdict"] == "not computed" and np.isnan(table.loc["leave-depth", "sd"])
    gaps = stability.gaps(record).set_index("arm")
    assert gaps["seeds"].tolist() == [3, 2, 0] and np.isnan(gaps.loc["leave-depth", "ratio"])


def test_gap_is_validation_over_training_and_says_where_it_is_no_comparison():
    changed = ("dropout", "augmentation", "ema", "channel-weight", "depth")
    levels = {"baseline": 0.0} | {f"add-{name}": 0.0 for name in changed}
    table = stability.gaps(record_of(levels, gap={"add-depth": 1.4})).set_index("arm")
    assert table["ratio"].to_dict() == pytest.approx(dict.fromkeys(levels, 1.1) | {"add-depth": 1.4})
    assert table["not comparable"].to_dict() == {
        "baseline": "",
        "add-dropout": "dropout is on in training only",
        "add-augmentation": "training volumes are augmented",
        "add-ema": "validated with averaged weights",
        "add-channel-weight": "another loss",
        "add-depth": "",
    }
    for arm in ("add-multi-scale-loss", "add-ssim-loss", "full"):
        assert "another loss" in stability.reasons(arms.arm(arm, "quick"))


@pytest.mark.parametrize(("profile", "numbers"), [("quick", [256, 512, 1024, 2048, 4096]),
                                                  ("full", [256, 512, 1024, 2048, 3500, 4096])])  # fmt: skip
def test_learning_curve_has_each_number_of_phantoms_once(profile, numbers):
    levels = {arm: -0.1 * i for i, arm in enumerate((*improvements.PHANTOMS, "stage1-onecycle", "trained-small"))}
    table = learning_curve.runs(record_of(levels, seeds=2, profile=profile))
    assert table["phantoms"].unique().tolist() == numbers
    assert (table.groupby("phantoms").size() == 2).all()
    value = np.log(table.groupby("arm")["value"].apply(lambda x: np.exp(np.log(x).mean())))
    found = value - value["phantoms-256"]
    assert found.to_dict() == pytest.approx({arm: levels[arm] for arm in found.index}, abs=1e-9)


def of_law(a, b, c, seeds=3, failed=(), spread=0.0):
    """A record of the quick profile whose errors are c + a N^-b, times what phantoms and seeds add."""
    sizes = dict(zip(improvements.PHANTOMS, improvements.SIZES_OF_DATA, strict=True))
    levels = {arm: np.log(c + a * n**-b) for arm, n in sizes.items()}
    return record_of(levels, seeds=seeds, failed=failed, spread=spread)


@pytest.mark.parametrize(("a", "b", "c"), [(4.0, 0.5, 0.1), (2.0, 0.3, 0.0)])
def test_law_that_was_put_in_is_found(a, b, c):
    table = learning_curve.runs(of_law(a, b, c))
    law = learning_curve.laws(table)["c + a N^-b" if c else "a N^-b"]
    scale = float(np.exp(np.log(table["value"]).groupby(table["phantoms"]).mean()[256])) / (c + a * 256**-b)
    found = (law.a.estimate / scale, law.b.estimate, law.c.estimate / scale)
    assert found == pytest.approx((a, b, c), rel=1e-3, abs=1e-4)
    drawn = learning_curve.drawn({"it": law}, table)
    assert (drawn["form"] == "it").all()
    assert (drawn["value"] / scale).tolist() == pytest.approx((c + a * drawn["phantoms"] ** -b).tolist(), rel=1e-4)
    assert drawn["phantoms"].iloc[[0, -1]].tolist() == pytest.approx([256, 4096])
    levels = learning_curve.levels(table)
    form = next(iter(learning_curve.laws(table)))  # of the lower AICc
    assert (levels[form] / levels["nrmse of mua"]).tolist() == pytest.approx([1] * 5, rel=1e-3)
    assert form == ("c + a N^-b" if c else "a N^-b") and learning_curve.forms(table)["law"][0] == form
    said = learning_curve.answer(table)
    assert said.index(f"{form}: b = {b:.3g}") < said.index("%;")
    truth = 100 * ((c + a * 8192**-b) / (c + a * 4096**-b) - 1)
    assert learning_curve.forms(table)["from 4,096 to 8,192, %"][0].startswith(f"{truth:.3g}")


def test_errors_on_their_floor_from_the_second_size_on_predict_nothing():
    levels = dict(zip(improvements.PHANTOMS, np.log([0.300, 0.284, 0.284, 0.284, 0.284]), strict=True))
    table = learning_curve.runs(record_of(levels, seeds=3, spread=0.01))
    row = learning_curve.forms(table).set_index("law").loc["c + a N^-b"]
    assert row["b"] == "5 (largest tried)" and row["b resolved"] == "no"
    assert row["a"] == row["from 4,096 to 8,192, %"] == "--"
    assert "b = 5 (largest tried), not resolved, no prediction" in learning_curve.answer(table)


def test_law_is_fitted_to_the_seeds_of_which_no_run_failed():
    whole = learning_curve.runs(of_law(4.0, 0.5, 0.1, seeds=5, spread=0.02))
    lost = learning_curve.runs(of_law(4.0, 0.5, 0.1, seeds=5, spread=0.02, failed=[("phantoms-512", 1)]))
    assert learning_curve.paired(lost).index.tolist() == [0, 2, 3, 4]
    for form, floor in learning_curve.FORMS.items():
        expected = power_law.fit(learning_curve.paired(whole).drop(1).to_numpy(), improvements.SIZES_OF_DATA, floor)
        assert learning_curve.laws(lost)[form].b == pytest.approx(expected.b) and expected.b.n == 4
    assert learning_curve.levels(lost)["failed"].tolist() == [0, 1, 0, 0, 0]


def test_too_few_sizes_have_no_law_and_say_so():
    levels = {arm: -0.1 * i for i, arm in enumerate(list(improvements.PHANTOMS)[:3])}
    for record in (record_of(levels), record_of({"trained-small": 0.0}), record_of(levels, profile="smoke")):
        table = learning_curve.runs(record)
        assert learning_curve.laws(table) == {} and learning_curve.drawn({}, table).empty
        assert learning_curve.forms(table).empty
        assert "no law is fitted" in learning_curve.answer(table)
    assert learning_curve.runs(record_of({"trained-small": 0.0})).empty
    assert "no law is fitted" in learning_curve.answer(learning_curve.runs(None))


def test_false_discovery_is_of_good_runs_alone_and_needs_three():
    record = record_of({"stage1-onecycle": -1.0, "stage1-adam": 0.0}, seeds=10, spread=0.05,
                       failed=[("stage1-adam", s) for s in range(8)])  # fmt: skip
    table = false_discovery.rates(record, 20)
    assert table["runs"].tolist() == [10] * 8 + [2] * 3
    assert table["verdict"].tolist() == ["too few repetitions"] * 8 + ["not computed"] * 3
    assert "a check that the code runs" in false_discovery.answer(table)
    nothing = false_discovery.rates(None, 20)
    assert (nothing["verdict"] == "not computed").all() and "not computed" in false_discovery.answer(nothing)


def test_false_discovery_is_judged_by_its_interval_and_what_is_exceeded_comes_first(monkeypatch):
    good, of = (0.05, 0.04, 0.06), []
    rates = iter([good, (0.1, 0.09, 0.11), good, (0.07, 0.06, 0.08), *[good] * 7])

    def made(errors, seeds, family, n, rng, interaction, phantom):
        of.append((interaction, phantom))
        return stats_aa.Rate(*next(rates), n, seeds, family)

    monkeypatch.setattr(stats_aa, "false_discovery", made)
    table = false_discovery.rates(record_of({"stage1-onecycle": 0.0, "stage1-adam": 0.0}, seeds=10), 2000)
    assert table["verdict"].tolist() == ["held", "exceeded", "held", "not resolved", *["held"] * 7]
    apart = (False, pytest.approx(0.15 / np.sqrt(2)))  # a contrast's spread over phantoms, of the plan, by two arms
    assert table["repetitions"].tolist() == [10_000, 2000, 2000, 10_000, 10_000, 2000, *[10_000] * 5]
    assert of == [(False, 0.0)] * 2 + [(True, 0.0)] + [(False, 0.0)] * 2 + [apart] * 3 + [(False, 0.0)] * 3
    text = false_discovery.answer(table)
    assert text.index("exceeded") < text.index("not resolved") < text.index("held")


def test_experiments_are_those_of_the_plan():
    sizes = {(seeds, size, of) for _, seeds, size, of in false_discovery.EXPERIMENTS}
    ablation = [(3, len(improvements.IMPROVEMENTS), of) for of in (false_discovery.TWO, false_discovery.FOUR)]
    ablation += [(3, len(improvements.IMPROVEMENTS), false_discovery.APART)]
    for of in (false_discovery.TWO, false_discovery.APART):
        ablation += [(5, 1, of), (10, 2, of)]
    assert sizes == {(3, 1, false_discovery.TWO), *ablation}
    assert {arm for arm, *_ in false_discovery.EXPERIMENTS} <= set(arms.STUDIES[false_discovery.STUDY].arms)
