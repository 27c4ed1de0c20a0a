"""The hypotheses of 4.4 and 4.5: pairs as planned, the weaker of two directions, and all of H1 to H14 in one table."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from test_optimisers import record_of

from dotlib import records
from dotlib.data import phantoms
from dotlib.sections import hypotheses, optimisers
from dotlib.sections import hypotheses_architecture as architecture

OWN = {h.name: h for h in architecture.HYPOTHESES}
STUDIES = ("4.4-gates", "4.5-roadmap", "4.5-add-one-in", "4.5-leave-one-out", "4.6-patterns", "4.6-architecture")


def verdicts(record, *studies):
    found = hypotheses.verdicts(dict.fromkeys(studies or STUDIES, record), {}, architecture.HYPOTHESES)
    return found.set_index("hypothesis")


PATTERNS = ("snr", "adaptive", "stratified", "circular", "linear", "clustered", "clinical")


def test_pairs_are_arms_of_one_planned_study():
    studies = {name: hypotheses.study_of(h) for name, h in OWN.items()}
    assert set(studies.values()) == set(STUDIES)
    assert {n for n, s in studies.items() if s == "4.4-gates"} == {"H3, gate as specified", "H3, gate from identity"}
    assert studies["H2, first phase"] == "4.5-roadmap"
    for name, study in studies.items():
        where = {", alone": "4.5-add-one-in", ", in full": "4.5-leave-one-out"}
        assert all(study == expected for end, expected in where.items() if name.endswith(end)), name


def test_expected_ranges_are_those_of_the_specification():
    ranges = {architecture.claim_of(name): (h.low, h.high) for name, h in OWN.items()}
    assert ranges.pop("H2, larger tumours") == pytest.approx((np.nan, np.inf), nan_ok=True)
    assert ranges == {
        "H2, more data": (5, 15), "H2, first phase": (20, 30), "H3, gate as specified": (10, 15),
        "H3, gate from identity": (10, 15), "H5": (5, 10), "H6": (5, 12), "H7, weight": (0, np.inf),
        "H9, 2 blocks": (5, 10), "H9, 3 blocks": (5, 10),
        "H12, dropout": (0, np.inf), "H12, dropout, endpoint": (0, np.inf), "H12, decay": (0, np.inf),
        "H14, dense": (0, np.inf), "H14, fused": (0, np.inf), "H14, guided": (0, np.inf),
        "H14, hybrid": (0, np.inf),
        **{f"H14, {links} under reconstruct": (0, np.inf) for links in ("dense", "fused", "guided")},
        **{f"H4, {pattern}": (10, 20) for pattern in PATTERNS},
        **{f"H4, {pattern}, gap": (0, np.inf) for pattern in PATTERNS},
    }  # fmt: skip


def test_gates_are_a_primary_family_of_two_at_ten_seeds():
    primary = [h for h in architecture.HYPOTHESES if h.standing == "primary"]
    assert len(primary) == hypotheses.FAMILY == 2
    plan = hypotheses.plan(64, architecture.HYPOTHESES).set_index("hypothesis")
    assert plan.loc["H3, gate as specified", ["seeds", "expected, %"]].tolist() == [10, "10-15"]
    assert plan.loc["H3, gate from identity", "detectable, %"] == pytest.approx(9.0, abs=0.05)
    assert plan.loc["H5, alone", ["seeds", "detectable, %"]].tolist() == [3, pytest.approx(20.5, abs=0.05)]
    assert plan.loc[["H6, alone", "H12, dropout, in full"], "detectable, %"].isna().all()


def test_primary_intervals_share_five_per_cent():
    record = record_of({"stage1-onecycle": 0.0, "sigmoid-2": -0.2, "identity-2": 0.0}, seeds=10, spread=0.05)
    row = verdicts(record).loc["H3, gate as specified"]
    table = np.log(optimisers.errors(record)).mean(axis=1)
    difference = table["sigmoid-2"] - table["stage1-onecycle"]
    half = scipy_stats.t.ppf(0.9875, 9) * difference.std() / np.sqrt(10)
    limits = [-100 * np.expm1(difference.mean() + x) for x in (half, -half)]
    assert row["interval, %"] == "[{:.3g}, {:.3g}]".format(*limits) and row["seeds"] == 10


@pytest.mark.parametrize(
    ("claim", "arm"),
    [("H2, more data", "data-size"), ("H5", "augmentation"), ("H7, weight", "channel-weight"),
     ("H9, 2 blocks", "depth"), ("H12, dropout, endpoint", "dropout"),
     ("H14, dense", "dense-links"), ("H14, hybrid", "hybrid-vit")],
)  # fmt: skip
def test_direction_of_a_pair_is_with_the_improvement_against_without(claim, arm):
    """A lower error of the arm that has it is found as an improvement, in both directions."""
    alone = verdicts(record_of({"baseline": 0.0, f"add-{arm}": -0.3}), "4.5-add-one-in")
    full = verdicts(record_of({"full": 0.0, f"leave-{arm}": 0.3}), "4.5-leave-one-out")
    found = alone.loc[f"{claim}, alone", "found, %"], full.loc[f"{claim}, in full", "found, %"]
    assert found == pytest.approx((100 * (1 - np.exp(-0.3)),) * 2)


def test_runs_that_are_the_same_improve_nothing():
    record = record_of({"full": 0.0, "leave-channel-weight": 0.0})
    row = verdicts(record).loc["H7, weight, in full"]
    assert row[["found, %", "verdict", "note"]].tolist() == [0, "refuted", "the same runs as leave-channel-weight"]


@pytest.mark.parametrize(
    ("claim", "arm", "none"),
    [("H14, fused", "fused-links", "dense-links"), ("H14, guided", "guided-links", "dense-links"),
     ("H9, 3 blocks", "depth-3", "depth")],
)  # fmt: skip
def test_alternatives_in_full_are_set_against_none(claim, arm, none):
    levels = {f"swap-{arm}": -0.2, f"leave-{none}": 0.1, "full": 0.3}
    row = verdicts(record_of(levels), "4.5-leave-one-out").loc[f"{claim}, in full"]
    assert row["found, %"] == pytest.approx(100 * (1 - np.exp(-0.3))) and "against none" in row["note"]


@pytest.mark.parametrize(("phase1", "word"), [(-0.3, "confirmed"), (-0.1, "refuted"), (0.1, "refuted")])
def test_first_phase_is_judged_and_says_what_changes_with_it(phase1, word):
    record = record_of({"stage1-phase0": 0.0, "stage1-phase1": phase1}, spread=0.001)
    row = verdicts(record, "4.5-roadmap").loc["H2, first phase"]
    assert row["verdict"] == word and "change at once" in row["note"]


def test_factor_without_a_promise_has_no_verdict_but_a_direction():
    row = verdicts(record_of({"baseline": 0.0, "add-tumour-size": -0.3}, spread=0.001)).loc["H2, larger tumours, alone"]
    assert row[["verdict", "against 0", "expected, %"]].tolist() == ["nothing expected", "better", "--"]


def similar(record, levels, seeds=3):
    """The record with an SSIM of mua, exp(level) in the mean over phantoms, of each arm at the last checkpoint."""
    rng, rows = np.random.default_rng(4), record.metrics[record.metrics["checkpoint"] == "last"]
    of = rows[rows["metric"] == "nrmse"].drop_duplicates(["arm", "seed", "phantom"])
    uneven = rng.uniform(-0.1, 0.1, of["phantom"].nunique())
    uneven -= uneven.mean()
    seed = 0.002 * np.cos(of["seed"].to_numpy() * (1 + of["arm"].map(list(levels).index).to_numpy()))
    value = np.exp(of["arm"].map(levels).to_numpy() + seed) + uneven[of["phantom"].to_numpy()]
    ssim = of.assign(metric="ssim", channel="mua", value=value)
    return records.Record(pd.concat([record.metrics, ssim]), record.epochs, record.runs, record.profile, record.source)


@pytest.mark.parametrize(("gain", "word"), [(0.08, "confirmed"), (0.01, "refuted"), (-0.08, "refuted")])
def test_better_ssim_is_a_higher_mean_over_phantoms(gain, word):
    levels = {"full": -0.5 + gain, "leave-multi-scale-loss": -0.5}
    record = similar(record_of(levels, seeds=5), levels)
    row = verdicts(record).loc["H6, in full"]
    table = record.metrics[record.metrics["metric"] == "ssim"].groupby(["arm", "seed"])["value"].mean()
    ratio = np.log(table["full"] / table["leave-multi-scale-loss"])
    half = scipy_stats.t.ppf(0.975, 4) * ratio.std() / np.sqrt(5)
    limits = [100 * np.expm1(ratio.mean() + x) for x in (-half, half)]
    assert row["interval, %"] == "[{:.3g}, {:.3g}]".format(*limits) and row["verdict"] == word
    assert row["against 0"] == ("better" if gain > 0 else "worse") and "over seeds alone" in row["note"]


def test_ssim_leaves_out_failed_runs_and_records_without_it_are_not_computed():
    levels = {"full": -0.4, "leave-multi-scale-loss": -0.5}
    record = similar(record_of(levels, seeds=5, failed=[("full", 2)]), levels)
    lost = (record.metrics["metric"] == "ssim") & (record.metrics["arm"] == "full") & (record.metrics["seed"] == 2)
    record.metrics.loc[lost.to_numpy(), "value"] = np.nan  # as a diverged run's is recorded
    row = verdicts(record).loc["H6, in full"]
    assert row["seeds"] == 4 and "1 failed left out" in row["note"]
    row = verdicts(record_of(levels)).loc["H6, in full"]
    assert (row["verdict"], row["note"]) == ("not computed", "an arm has no runs, or none with an SSIM")


@pytest.mark.parametrize(("claim", "word"), [("H12, dropout", "not resolved"), ("H12, decay", "confirmed")])
def test_overfitting_is_the_ratio_of_losses_which_says_nothing_of_dropout(claim, word):
    """A training loss that is taken with dropout is another thing: the number is shown, and no verdict rests on it."""
    changed = {"H12, dropout": "dropout", "H12, decay": "decay-schedule"}[claim]
    record = record_of({"full": 0.0, f"leave-{changed}": 0.0}, gap={"full": 1.1, f"leave-{changed}": 1.3})
    row = verdicts(record).loc[f"{claim}, in full"]
    assert row["found, %"] == pytest.approx(100 * (1 - 1.1 / 1.3))
    assert (row["verdict"], row["against 0"]) == (word, "better")
    assert ("cannot be compared: dropout is on in training only" in row["note"]) == (word == "not resolved")


@pytest.mark.parametrize(("ssim", "word"), [(0.94, "refuted"), (0.96, "not resolved")])
def test_promise_that_no_ssim_can_keep_is_not_refuted(ssim, word):
    """5 % above 0.96 is more than 1."""
    record = record_of({"full": 0.0, "leave-multi-scale-loss": 0.0}, seeds=4)
    similar = record.metrics[record.metrics["metric"] == "nrmse"].assign(metric="ssim", value=ssim)
    record = dataclasses.replace(record, metrics=pd.concat([record.metrics, similar[similar["channel"] == "mua"]]))
    row = verdicts(record).loc["H6, in full"]
    assert row["verdict"] == word and ("no more than 4.2 % is possible" in row["note"]) == (word != "refuted")
    lower = record.metrics["value"].where(record.metrics["arm"] != "full", record.metrics["value"] - 0.1)
    row = verdicts(dataclasses.replace(record, metrics=record.metrics.assign(value=lower))).loc["H6, in full"]
    assert (row["verdict"], row["against 0"]) == ("refuted", "worse")  # worse is worse


def table_of(**words):
    """Rows of `every_row` with made-up verdicts; `H5__alone` is 'H5, alone'."""
    rows = [
        {"hypothesis": name.replace("__", ", ").replace("_", " "), "expected": "e", "expected, %": "5-10",
         "found, %": 1.0, "interval, %": "[0, 2]", "seeds": 3, "failed": 0, "standing": "exploratory",
         "verdict": word, "against 0": "better", "note": ""}
        for name, word in words.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


WEAKER = {
    ("refuted", "confirmed"): "refuted", ("refuted", "not resolved"): "refuted", ("refuted", "not computed"): "refuted",
    ("not resolved", "confirmed"): "not resolved", ("confirmed", "confirmed"): "confirmed",
    ("not computed", "confirmed"): "not computed", ("not computed", "not resolved"): "not computed",
}  # fmt: skip


@pytest.mark.parametrize("pair", [*WEAKER, *((b, a) for a, b in WEAKER if a != b)])
def test_verdict_of_a_claim_is_the_weaker_of_its_directions(pair):
    claims = architecture.claims(table_of(H5__alone=pair[0], H5__in_full=pair[1], H9__alone="confirmed"))
    assert claims["claim"].tolist() == ["H5", "H9"]
    assert claims["verdict"].tolist() == [WEAKER.get(pair) or WEAKER[pair[::-1]], "confirmed"]
    assert claims["found, %"][0] == f"alone: +1.0 [0, 2] ({pair[0]}); in full: +1.0 [0, 2] ({pair[1]})"


def test_order_of_weakness_is_that_of_the_plan():
    planned = ("refuted", "not resolved", "confirmed")
    ranks = [architecture.WEAK.index(word) for word in planned]
    assert ranks == sorted(ranks) and set(architecture.WEAK) == set(hypotheses.ORDER)


def test_every_hypothesis_of_the_specification_has_a_row():
    table = architecture.every_row({}, {}, "smoke")
    assert sorted({architecture.number(name) for name in table["hypothesis"]}) == list(range(1, 15))
    assert table["expected"].notna().all() and table["hypothesis"].is_unique
    assert len(table) == len(hypotheses.HYPOTHESES) + len(architecture.HYPOTHESES) + 2
    assert table["hypothesis"].map(architecture.number).is_monotonic_increasing
    unknown = table[table["hypothesis"] != architecture.PREMISE]
    assert (unknown["verdict"] == "not computed").all() and (unknown["note"] != "").all()
    claims = architecture.claims(table)
    assert set(claims["claim"]) == {architecture.claim_of(name) for name in table["hypothesis"]}
    sampled = {name: h for name, h in OWN.items() if name.startswith("H4")}
    assert len(sampled) == 14 and set(sampled) <= set(claims["claim"])
    assert all("task reconstruct" in h.note and h.b == "reconstruct" for h in sampled.values())


def test_rows_of_other_sections_are_those_that_they_have():
    record = record_of({"stage1-onecycle": -0.4, "stage1-adam": 0.0}, seeds=10, spread=0.02)
    table = architecture.every_row({"4.3-ends": record}, {}, "smoke").set_index("hypothesis")
    own = hypotheses.verdicts({"4.3-ends": record}, {}).set_index("hypothesis")
    assert table.loc[own.index, own.columns].equals(own)


def test_answer_puts_what_is_refuted_first_and_what_is_not_computed_on_one_line():
    words = {"H5__alone": "confirmed", "H9__alone": "refuted", "H12": "not resolved", "H4": "not computed",
             "H8": "not computed"}  # fmt: skip
    lines = architecture.answer(architecture.claims(table_of(**words))).splitlines()
    assert [line.split("**")[1] for line in lines] == [
        "H9: refuted", "H12: not resolved", "Not computed:", "H5: confirmed"
    ]  # fmt: skip
    assert lines[2] == "* **Not computed:** H4, H8."
    assert "exploratory, 3 seeds" in lines[0] and "nan" not in "".join(lines)


def test_premise_is_counted_on_the_phantoms_tables():
    """Uniform contrasts of 1.5-3.5 and 1.5-2.5: mua's is the lower one with a probability of 1/4."""
    tables = phantoms.sample("default", 300, 5)
    contrast = architecture.contrasts(tables)
    by_hand = [
        row[[phantoms.MUA, phantoms.MUSP]] / table[0, [phantoms.MUA, phantoms.MUSP]]
        for table in tables
        for row in itertools.takewhile(lambda row: np.isfinite(row[phantoms.MUA]), table[1:])
    ]
    assert contrast == pytest.approx(np.array(by_hand, dtype=float), rel=1e-5)
    lower = architecture._lower(contrast, 0)
    assert scipy_stats.binomtest(round(lower.estimate * lower.n / 100), lower.n, 0.25).pvalue > 0.01
    assert lower.estimate + architecture._lower(contrast, 1).estimate == pytest.approx(100)


@pytest.mark.parametrize(
    ("mua", "musp", "word"), [((1.5, 1.6), (2.0, 2.1), "confirmed"), ((2.0, 2.1), (1.5, 1.6), "refuted"),
                              ((1.5, 2.5), (1.5, 2.5), "not resolved")],
)  # fmt: skip
def test_premise_follows_the_share_of_inclusions(monkeypatch, mua, musp, word):
    family = phantoms.Family(contrast_mua=mua, contrast_musp=musp, number=(1, 1), semi_axes=(5, 6))
    monkeypatch.setitem(phantoms.FAMILIES, "default", family)
    row = architecture.premise_row("smoke")
    assert row["verdict"] == word and "no run" in row["note"]
    table = architecture.premise("smoke").set_index("channel")
    assert table.loc["mua", "lower in, %"] == pytest.approx(row["found, %"]) and (table["inclusions"] == 24).all()
    assert mua[0] <= table.loc["mua", "5 %"] <= table.loc["mua", "median"] <= table.loc["mua", "95 %"] <= mua[1]


def test_note_of_one_direction_stays_with_it_and_a_common_one_is_said_once():
    table = table_of(H5__alone="confirmed", H5__in_full="refuted")
    table["note"] = ["more than expected; a caveat", "a caveat"]
    (row,) = architecture.claims(table).to_dict("records")
    assert row["note"] == "a caveat"
    assert row["found, %"] == "alone: +1.0 [0, 2] (confirmed, more than expected); in full: +1.0 [0, 2] (refuted)"
