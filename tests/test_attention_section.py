"""Section 4.4's tables: counts follow equations, effects are those that were put in, words follow numbers."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from test_optimisers import PHANTOMS, percent, record_of

from dotlib import arms, config, stats
from dotlib.localisation import GRADIENT, INPUT, MAP, MUA, NORM, RANDOM
from dotlib.sections import attention, attention_costs, attention_maps, efficiency, hypotheses, optimisers

PLAIN = "stage1-onecycle"
GATES = {PLAIN: -1.0, "sigmoid-2": -1.1, "identity-2": -1.05}
EVERY = arms.STUDIES["4.4-attention"].arms
LIGHT = ("reconstruct", "reconstruct-sigmoid", "reconstruct-identity", "reconstruct-random")
C1, C2, C3 = 256, 128, 64  # channels behind the three deepest stages of the full networks


def more(record, values):
    """A record with further metrics: `values` {(metric, channel): f(row of runs) -> (P,) or (P, K) of inclusions}."""
    rows = []
    for (metric, channel), value in values.items():
        for run in record.runs.to_dict("records"):
            found = np.asarray(value(run), float)
            index = np.indices(found.shape).reshape(found.ndim, -1)
            row = {"arm": run["arm"], "seed": run["seed"], "checkpoint": "last", "metric": metric, "channel": channel}
            row |= {"phantom": index[0], "inclusion": index[1] if found.ndim > 1 else -1, "value": found.ravel()}
            rows.append(pd.DataFrame(row))
    return dataclasses.replace(record, metrics=pd.concat([record.metrics, *rows], ignore_index=True))


# --- what it costs


def gate(c):
    return c * c // 8 + c // 8 + c // 8 + 1


def excitation(c):
    return 2 * c * c // 16 + c // 16 + c


ADDED = {
    "sigmoid": gate,
    "identity": gate,
    "random": gate,
    "conv": lambda c: c * c // 8 + c // 16,
    "se": excitation,
    "cbam": lambda c: excitation(c) + 2 * 7**3,
    "attention-gate": lambda c: 2 * (c * c // 8) + c // 8 + c // 8 + 1,
}


def test_overheads_are_those_of_each_kinds_equation():
    table = attention_costs.overheads().set_index(["kind", "stages"])
    for kind, added in ADDED.items():
        assert table.loc[(kind, "1, 2"), "added"] == added(C1) + added(C2), kind
        assert table.loc[(kind, "1, 2, 3"), "added"] == added(C1) + added(C2) + added(C3), kind
    assert set(table.index.unique("kind")) == set(ADDED) and len(table) == 15
    assert table.loc[("sigmoid", "2"), "added"] == gate(C2) == 2081
    trained = table["trained"] / table["added"]
    assert (trained.loc["random"] == 0).all() and (trained.drop("random", level="kind") == 1).all()


def test_shares_are_of_the_networks_own_parameters():
    table = attention_costs.overheads().set_index(["kind", "stages"]).loc["sigmoid"]
    assert table["added"].tolist() == [2_081, 10_338, 10_867]
    assert table["of legacy, %"].tolist() == pytest.approx([100 * n / 6_977_954 for n in (2_081, 10_338, 10_867)])
    assert table["of stage1, %"].tolist() == pytest.approx([100 * n / 6_928_960 for n in (2_081, 10_338, 10_867)])
    assert table["over the claim"].tolist() == pytest.approx([0.994, 4.94, 5.19], abs=0.005)


@pytest.fixture(scope="module")
def counted():
    return attention_costs.costs("quick")


def test_costs_have_each_arm_of_the_study_in_one_group(counted):
    assert sorted(counted["arm"]) == sorted(EVERY) and set(counted["group"]) == set(attention_costs.GROUPS)


def test_operations_of_additions_are_those_of_their_products(counted):
    """Two an addition and a multiplication: 128 channels on 2^3 voxels, 64 on 4^3, at half the full width."""
    flop = 1e9 * counted.set_index("arm")["GFLOP"]
    added = flop - flop[PLAIN]
    stages = ((128, 8), (64, 64))
    for arm in ("sigmoid-2", "identity-2", "random-2"):
        assert added[arm] == pytest.approx(sum(2 * n * (c * c // 8 + c // 8) for c, n in stages)), arm
    assert added["conv-2"] == pytest.approx(sum(2 * n * 2 * (c * c // 16) for c, n in stages))
    assert added["se-2"] == pytest.approx(sum(2 * 2 * (c * c // 16) for c, _ in stages))
    assert added["sigmoid-3"] - added["sigmoid-2"] == pytest.approx(2 * 512 * (32 * 32 // 8 + 32 // 8))


def test_operations_of_a_transformer_hold_the_products_of_attention(counted):
    """Seven blocks each way, 96 channels, 64 patches, in the encoder one token more; a counter misses fused ones."""
    c, patches, voxels, code = 96, 64, 2 * 8**3, 256
    block = [n * 12 * c * c + 2 * n * n * c for n in (patches + 1, patches)]
    ends = patches * voxels * c + c * code + code * c + patches * c * 3 * 8**3
    found = counted.set_index("arm").loc["vit", "GFLOP"]
    assert found == pytest.approx(2e-9 * (7 * sum(block) + ends), rel=1e-6)


def test_parameters_of_an_arm_are_those_of_its_runs(counted):
    table = counted.set_index("arm")["parameters"]
    assert table[PLAIN] == 2_157_888 and table["sigmoid-2"] - table[PLAIN] == gate(128) + gate(64)


def test_error_beside_its_cost_is_the_geometric_mean_with_students_interval_over_seeds(counted):
    levels = {PLAIN: -1.0, "sigmoid-2": -1.3, "wide": 0.0}
    record = record_of(levels, seeds=4, spread=0.1, failed=[("wide", 2)])
    table = attention_costs.efficiency(record, counted).set_index("arm")
    assert list(table.index) == list(levels) and table["failed"].tolist() == [0, 0, 1]
    logs = np.log(optimisers.errors(record).loc["sigmoid-2"]).mean(axis=1)
    half = scipy_stats.t.ppf(0.975, 3) * logs.std() / 2
    expected = [np.exp(logs.mean() + x) for x in (0, -half, half)]
    assert table.loc["sigmoid-2", ["error", "low", "high"]].tolist() == pytest.approx(expected)
    assert table.loc["sigmoid-2", "GFLOP"] == counted.set_index("arm").loc["sigmoid-2", "GFLOP"]


def test_arm_that_always_failed_has_an_error_of_others_and_no_interval(counted):
    record = record_of({PLAIN: -1.0, "vit": 0.0}, seeds=2, failed=[("vit", 0), ("vit", 1)])
    row = attention_costs.efficiency(record, counted).set_index("arm").loc["vit"]
    assert np.isfinite(row["error"]) and np.isnan(row["low"]) and row["failed"] == 2
    assert attention_costs.efficiency(record_of({"x": 0.0}), counted).empty


def test_error_is_compared_with_plain_width_of_the_same_cost():
    """Errors of width that fall as cost^-1/2: whatever lies a tenth above that law is found a tenth above."""
    cost = {"narrow": 1.0, PLAIN: 4.0, "wide": 16.0, "on": 9.0, "above": 2.0, "beyond": 17.0}
    rows = [{"arm": arm, "group": "g", "parameters": 10 * c, "GFLOP": c, "error": c**-0.5} for arm, c in cost.items()]
    table = pd.DataFrame(rows)
    table.loc[table["arm"] == "above", "error"] *= 1.1
    found = attention_costs.bought(table).set_index("arm")
    assert list(found.index) == ["on", "above", "beyond"]
    for c in ("parameters", "GFLOP"):
        assert found.loc[["on", "above"], f"error at these {c}, %"].tolist() == pytest.approx([0, 10], abs=1e-9)
        assert np.isnan(found.loc["beyond", f"error at these {c}, %"])
        assert found.loc["on", f"{c}, %"] == pytest.approx(125)
    text = attention_costs.bought_answer(attention_costs.bought(table))
    assert text.index("above") < text.index("`on`") < text.index("outside the widths")
    assert "`above`: -50 % parameters (error +10.0 %), -50 % operations (error +10.0 %)." in text
    assert attention_costs.bought(table[table["arm"] != "wide"]).empty
    assert attention_costs.bought_answer(attention_costs.bought(table[:0])) == ""


def test_ways_differ_by_their_attention_alone():
    size = attention_costs.size_of("smoke", "cpu")
    ways = attention_costs.ways("smoke", size)
    assert [way.setting for way in ways] == [PLAIN, *attention_costs.TIMED] and ways[0].config.model.attention is None
    for way in ways[1:]:
        assert way.config.model.attention.kind == way.setting.removesuffix("-2")
        assert config.replace(way.config, {"model.attention": None}) == ways[0].config
    assert attention_costs.size_of("quick", "cuda").batches > 10 * attention_costs.size_of("quick", "cpu").batches


def timed(ratios, plain=100.0):
    """Rounds under a load that changes tenfold; `ratios` of a step's time by network, a number a round."""
    rows = []
    for name, values in {PLAIN: [1.0] * len(next(iter(ratios.values()))), **ratios}.items():
        for i, ratio in enumerate(values):
            rows.append({"round": i, "factor": "network", "setting": name, "speed": plain / ratio / (1 + 9 * (i % 2))})
    return pd.DataFrame(rows)


def step_table(monkeypatch, **ratios):
    monkeypatch.setattr(attention_costs, "kept_bytes", lambda way, on: 2e6 if way.setting == PLAIN else 3e6)
    ways = [efficiency.Way("network", name, None) for name in (PLAIN, *ratios)]
    return attention_costs.step_times(timed(ratios), ways, "cpu")


def test_time_is_a_ratio_within_each_round_and_its_median_has_an_interval_from_six_on(monkeypatch):
    """Of six rounds the median's interval is their range: all lie on one side of it once in 32 times, 3.1 %."""
    values = [1.1, 1.2, 1.15, 1.12, 1.11, 1.9]
    row = step_table(monkeypatch, gate=values).set_index("network").loc["gate"]
    columns = ["time, ratio", "low", "high", "kept, ratio", "rounds"]
    assert row[columns].tolist() == pytest.approx([1.135, 1.1, 1.9, 1.5, 6])
    few = step_table(monkeypatch, gate=values[:5]).set_index("network").loc["gate"]
    assert few["time, ratio"] == pytest.approx(1.12) and np.isnan(few["low"]) and few["word"] == "not resolved"
    assert {attention_costs.size_of(name, "cpu").rounds for name in ("quick", "full")} == {6}


def test_what_is_slower_comes_first_and_one_round_resolves_nothing(monkeypatch):
    ratios = {"same": [0.98, 1.03, 1.0] * 2, "slow": [1.2, 1.21, 1.22] * 2, "fast": [0.8, 0.81, 0.8] * 2}
    table = step_table(monkeypatch, **ratios)
    assert table["word"].tolist() == ["--", "not resolved", "slower", "faster"]
    text = attention_costs.steps_answer(table)
    assert text.index("slow: slower") < text.index("same: not resolved") < text.index("fast: faster")
    assert "[1.200, 1.220] over 6 rounds; at most 5 %: no; +50 % memory" in text and text.count("\n") == 2
    assert table["a few"].tolist() == ["--", "yes", "no", "yes"]
    assert step_table(monkeypatch, some=[1.02, 1.04, 1.06] * 2)["a few"].tolist() == ["--", "not resolved"]
    one = step_table(monkeypatch, slow=[2.0])
    compiled = table.assign(**{"kept, ratio": np.nan})
    assert "memory" not in attention_costs.steps_answer(compiled)
    assert one["word"].tolist() == ["--", "not resolved"]
    assert "step, no interval over 1 round;" in attention_costs.steps_answer(one)


# --- what is found


def test_confirmatory_intervals_share_five_per_cent_and_agree_with_the_verdicts():
    record = record_of(GATES, seeds=10, spread=0.03)
    table = attention.primary(record)
    logs = np.log(optimisers.errors(record)).mean(axis=1)
    for (_, row), h in zip(table.iterrows(), attention.H3, strict=True):
        difference = logs.loc[h.a] - logs.loc[PLAIN]
        half = scipy_stats.t.ppf(0.9875, 9) * difference.std() / np.sqrt(10)
        expected = [percent(difference.mean() + x) for x in (0, -half, half)]
        assert row[["effect", "low", "high"]].tolist() == pytest.approx(expected)
        found = hypotheses.finding(record, h, {}).improvement
        assert [-found.high, -found.low] == pytest.approx(row[["low", "high"]].tolist())
    assert table["label"].tolist() == ["sigmoid-2", "identity-2"] and table["confirmatory"].all()
    assert table["Holm p"].tolist() == pytest.approx(stats.holm(table["p"]))
    assert table[["expected low", "expected high"]].to_numpy().tolist() == [[-15, -10]] * 2


def test_secondary_errors_stand_below_and_have_their_own_effects():
    table = attention.gates(record_of(GATES, seeds=4)).set_index(["standing", "label"])["effect"]
    logs = np.log1p(table / 100)
    assert logs["primary", "sigmoid-2"] == pytest.approx(-0.1)
    assert logs["nrmse musp: secondary", "identity-2"] == pytest.approx(-0.1)
    assert logs["legacy RMSE: secondary", "sigmoid-2"] == pytest.approx(-0.2)
    assert logs["nrmse mua, best checkpoint: secondary", "sigmoid-2"] == pytest.approx(-0.05)


SSIM = ("ssim", "mua")


def test_more_similarity_is_less_of_an_error_and_failed_runs_seeds_are_left_out():
    level = {PLAIN: 0.8, "sigmoid-2": 0.9, "identity-2": 0.7}
    record = record_of(GATES, seeds=4, failed=[("sigmoid-2", 1)])
    record = more(record, {SSIM: lambda run: np.full(PHANTOMS, np.nan if run["failed"] else level[run["arm"]])})
    table = attention.secondary(record).set_index(["standing", "label"]).loc["1 - SSIM of mua: secondary"]
    assert table["effect"].tolist() == pytest.approx([-50, 50]) and table["seeds"].tolist() == [3, 4]


def test_record_without_similarity_says_not_computed():
    table = optimisers.shown(attention.gates(record_of(GATES)))
    assert (table.loc[table["standing"].str.contains("SSIM"), "interval, %"] == "not computed").all()


def test_exploratory_contrasts_are_every_arm_and_both_gates_beside_their_controls():
    levels = {arm: -0.01 * i for i, arm in enumerate(EVERY)}
    table = attention.exploratory(record_of(levels, seeds=3))
    assert set(table["standing"]) == {"exploratory"} and not table["confirmatory"].any()
    plain = table[table["group"] == f"against {PLAIN}"]
    assert plain["label"].tolist() == list(EVERY[1:])
    found = dict(zip(table["contrast"], np.log1p(table["effect"] / 100), strict=True))
    for a, b in [(g, c) for g in ("sigmoid-2", "identity-2") for c in (*attention.CONTROLS, *attention.COMPARATORS)]:
        assert found.pop(f"{a} against {b}") == pytest.approx(levels[a] - levels[b]), (a, b)
    assert len(found) == len(EVERY) - 1


@pytest.mark.parametrize(
    ("random", "conv", "word"),
    [
        (-0.5, -0.5, attention.MORE),  # the controls lie 0.5 above the gate
        (-0.5, 0.5, attention.LESS),
        (0.5, -0.5, attention.LESS),
        (-0.5, 0.0, attention.OPEN),
        (0.0, 0.0, attention.OPEN),
    ],
)
def test_gate_does_more_only_where_it_exceeds_both_controls(random, conv, word):
    levels = {PLAIN: 0.0, "sigmoid-2": -1.0, "identity-2": -1.0, "random-2": -1.0 - random, "conv-2": -1.0 - conv}
    record = record_of(levels, seeds=3, spread=0.02)
    table = attention.controls(record).set_index("gate")
    assert table.loc["sigmoid-2", "word"] == word and table.loc["sigmoid-2", "seeds"] == 3
    text = attention.answer({"4.4-attention": record})
    said = {attention.MORE: "Yes", attention.LESS: "No", attention.OPEN: "Not resolved"}[word]
    assert f"Does sigmoid-2 do more than both controls? {said}**" in text


def test_control_without_runs_leaves_the_question_open():
    assert attention.controls(record_of(GATES | {"random-2": 0.0}))["word"].tolist() == ["not computed"] * 2
    assert attention.controls(None)["word"].tolist() == ["not computed"] * 2


def test_claim_on_parameters_is_refuted_for_two_and_three_gates_and_right_for_one():
    table = attention.arithmetic().set_index("hypothesis")
    assert table["verdict"].tolist() == ["confirmed", "refuted", "refuted"]
    assert table["found, %"].round(3).tolist() == [0.030, 0.148, 0.156]


CRC = ("crc", "mua")


def recovered(record, level, failed=np.nan):
    """crc of two inclusions a phantom, one of them absent in half of the phantoms."""
    absent = np.where(np.arange(PHANTOMS)[:, None] % 2 * [0, 1], np.nan, 0)
    return more(record, {CRC: lambda run: absent + (failed if run["failed"] else level[run["arm"]](run["seed"]))})


def test_better_contrast_is_a_recovery_nearer_to_one_on_either_side():
    level = {PLAIN: lambda s: 0.6 + 0.01 * s, "sigmoid-2": lambda s: 1.2 - 0.01 * s, "identity-2": lambda s: 0.4}
    record = recovered(record_of(GATES, seeds=5, failed=[("identity-2", 0)]), level)
    table = attention.contrast({"4.4-gates": None, "4.4-shown": record}).set_index("hypothesis")
    row = table.loc["H3, contrast, sigmoid-2"]
    logs = np.log([(0.2 - 0.01 * s) / (0.4 - 0.01 * s) for s in range(5)])
    assert row["found, %"] == pytest.approx(-percent(logs.mean())) and row["seeds"] == 5
    assert (row["verdict"], row["against 0"]) == ("confirmed", "better") and "4.4-shown" in row["note"]
    worse = table.loc["H3, contrast, identity-2"]
    assert (worse["verdict"], worse["against 0"], worse["seeds"], worse["failed"]) == ("refuted", "worse", 4, 1)
    assert table.loc["H3, edges", "verdict"] == "not computed"


def test_contrast_is_not_computed_without_crc_or_without_the_arm():
    table = attention.contrast({"4.4-gates": record_of(GATES), "4.4-attention": None})
    assert set(table["verdict"]) == {"not computed"} and table["note"].str.contains("no record at hand").sum() == 2
    record = recovered(record_of({PLAIN: 0, "sigmoid-2": 0}), dict.fromkeys(GATES, lambda s: 0.5))
    table = attention.contrast({"4.4-shown": record}).set_index("hypothesis")
    assert table.loc["H3, contrast, identity-2", "note"] == "study 4.4-shown has no runs of identity-2"
    assert table.loc["H3, contrast, sigmoid-2", "verdict"] == "not resolved"  # every seed alike


def test_answer_puts_what_is_refuted_first_and_names_what_is_not_computed():
    levels = GATES | {"sigmoid-2": -1.3, "identity-2": -1.0}
    record = record_of(levels, seeds=10, spread=0.005)
    text = attention.answer({"4.4-gates": record})
    order = [text.index(f": {word}**") for word in ("refuted", "not computed", "confirmed")]
    assert order == sorted(order)
    assert text.index("gate from identity: refuted") < text.index("gate as specified: confirmed")
    assert text.count("do more than both controls? Not computed") == 2 and "nan" not in text
    assert "H3, gate as specified: not computed" in attention.answer({})


def test_verdicts_hold_every_part_of_the_hypothesis():
    table = attention.verdicts({})
    assert len(table) == 2 + 3 + 3 and set(table["standing"]) == {"primary", "arithmetic", "exploratory"}
    assert table["expected"].notna().all() and list(table) == attention.COLUMNS


def test_plan_says_what_ten_seeds_at_half_of_five_per_cent_and_three_seeds_can_find():
    """The numbers of results/PLAN.md."""
    table = attention.plan(hypotheses.PHANTOMS).set_index("standing")
    assert table.loc["primary", "detectable, %"].tolist() == pytest.approx([9.0, 9.0], abs=0.05)
    assert table.loc["exploratory", "detectable, %"] == pytest.approx(20, abs=0.5)
    assert table["seeds"].tolist() == [10, 10, 3]


def test_hypothesis_is_judged_by_the_confirmatory_study():
    assert {hypotheses.study_of(h) for h in attention.H3} == {attention.CONFIRMED}
    assert [(h.a, h.b) for h in attention.H3] == [("sigmoid-2", PLAIN), ("identity-2", PLAIN)]
    assert {h.standing for h in attention.H3} == {"primary"}


# --- what maps find


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_gates_start_as_they_are_said_to(profile):
    table = attention_maps.starts(profile).set_index(["arm", "stage"])
    for arm in ("identity-2", "conv-2"):
        assert (table.loc[arm, "kept"] == 1).all() and (table.loc[arm, "output"] == 0).all()
    pd.testing.assert_frame_equal(table.loc["sigmoid-2"], table.loc["random-2"])  # the same weights
    for arm in ("sigmoid-2", "attention-gate-2"):
        assert table.loc[arm, "kept"].between(table.loc[arm, "lowest"], table.loc[arm, "highest"]).all()
        assert table.loc[arm, "kept"].between(0.35, 0.65).all() and (table.loc[arm, "output"] > 0).all()
    assert table["grid"].unstack().to_numpy().tolist() == [[2, 4]] * len(attention_maps.STARTED)


def localised(values, seeds=3, phantoms=4, noise=0.0):
    """A table as `localisation.table`: AUC of (arm, stage, score), by seed or for all; random gates have ten draws."""
    rng, rows = np.random.default_rng(0), []
    for (arm, stage, score), value in values.items():
        for seed in range(seeds):
            for draw in range(10 if score == RANDOM else 1):
                level = value(seed, draw) if callable(value) else value
                auc = level + noise * rng.normal(size=phantoms)
                auc[-1] = np.nan  # a phantom without a tumour
                row = {"arm": arm, "seed": seed, "stage": stage, "score": score, "draw": draw}
                row |= {
                    "phantom": range(phantoms),
                    "auc": auc,
                    "ap": auc / 2,
                    "prevalence": np.where(np.isnan(auc), 0, 0.1),
                }
                rows.append(pd.DataFrame(row))
    return pd.concat(rows, ignore_index=True)


def test_summary_is_the_mean_over_phantoms_with_an_interval_over_seeds():
    auc = {0: 0.7, 1: 0.8, 2: 0.9}
    table = attention_maps.summary(localised({("sigmoid-2", "encoder1", MAP): lambda seed, _: auc[seed]}))
    row, half = table.iloc[0], scipy_stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert row[["AUC", "AP", "prevalence"]].tolist() == pytest.approx([0.8, 0.4, 0.1])
    assert row["AUC, interval"] == f"[{0.8 - half:.3g}, 1]" and row[["seeds", "phantoms"]].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (lambda seed, _: 0.9 - 0.01 * seed, attention_maps.FINDS),
        (lambda seed, _: 0.1 + 0.01 * seed, attention_maps.AWAY),
        (lambda seed, _: 0.3 + 0.2 * seed, attention_maps.OPEN),
    ],
)
def test_area_below_one_half_looks_away(value, word):
    table = localised({("sigmoid-2", "encoder1", MAP): value})
    assert attention_maps.summary(table)["word"].tolist() == [word]
    assert attention_maps.SAID[word] in attention_maps.answer(table)


def test_one_run_resolves_nothing():
    table = attention_maps.summary(localised({("sigmoid-2", "encoder1", MAP): 0.99}, seeds=1))
    assert table[["word", "AUC, interval"]].iloc[0].tolist() == ["not resolved", "--"]


MAPS = {
    ("sigmoid-2", "encoder1", MAP): lambda seed, _: 0.7 + 0.1 * seed,
    ("sigmoid-2", "encoder1", NORM): lambda seed, _: 0.6 + 0.1 * seed,
    (PLAIN, "encoder1", NORM): lambda seed, _: 0.65 + 0.1 * seed,
    ("sigmoid-2", "encoder1", RANDOM): lambda seed, draw: 0.45 + 0.1 * draw,
    (PLAIN, "encoder1", RANDOM): 1.0,
    ("sigmoid-2", INPUT, GRADIENT): lambda seed, _: 0.5 + 0.15 * seed,
    ("sigmoid-2", INPUT, MUA): 1.0,
}


def test_map_is_set_against_what_needs_no_attention_seed_by_seed():
    table = attention_maps.beside(localised(MAPS)).set_index("map less")
    expected = {
        NORM: (0.1, "more"),
        f"{NORM} of {PLAIN}": (0.05, "more"),
        RANDOM: (-0.1, "not resolved"),
        GRADIENT: (0.15, "more"),
        MUA: (-0.2, "not resolved"),
    }
    assert table["AUC"].to_dict() == pytest.approx({name: value for name, (value, _) in expected.items()})
    assert table["word"].to_dict() == {name: word for name, (_, word) in expected.items()}
    # draws 0.45, ..., 1.35 reach 0.7, 0.8, 0.9 with seven, six and five of ten
    assert table.loc[RANDOM, "random as high"] == pytest.approx(0.6) and table["random as high"].count() == 1


def test_answer_on_maps_puts_what_looks_away_first():
    away = {("sigmoid-2", "encoder2", MAP): lambda seed, _: 0.1 + 0.01 * seed, ("sigmoid-2", "encoder2", NORM): 0.5}
    away |= {("sigmoid-2", "encoder2", RANDOM): 0.3, ("sigmoid-2", "encoder1", MAP): 0.99}
    text = attention_maps.answer(localised(MAPS | away))
    assert text.index("encoder2: the map is lower") < text.index("encoder1: the map is higher")
    assert "100% of the random gates do as well" in text
    assert "no network" in attention_maps.answer(localised({(PLAIN, "encoder1", NORM): 0.5})).lower()


def test_gated_stages_are_in_the_order_of_the_pass():
    assert attention_maps.stages_of("sigmoid-3", "quick") == ["encoder3", "encoder2", "encoder1"]
    assert attention_maps.stages_of("sigmoid-3", "smoke") == ["encoder2", "encoder1"]


# --- under reconstruction


def test_gates_under_light_are_held_against_the_plain_network_and_their_control():
    """Gates of 0.9 and 0.8 of the plain network's error, an untrained one of 1.1."""
    levels = dict(zip(LIGHT, np.log([1, 0.9, 0.8, 1.1]), strict=True))
    table = attention.under_light(record_of(levels))
    assert list(zip(table["group"], table["label"], strict=True)) == [
        *[("against reconstruct", gate) for gate in LIGHT[1:]],
        *[("against the control", gate) for gate in LIGHT[1:3]],
    ]
    assert table["effect"].tolist() == pytest.approx([-10, -20, 10, 100 * (0.9 / 1.1 - 1), 100 * (0.8 / 1.1 - 1)])
    assert set(table["seeds"]) == {5} and set(table["standing"]) == {"exploratory"}


def test_gate_that_was_not_run_under_light_has_no_effect():
    table = attention.under_light(record_of(dict.fromkeys(LIGHT[:2], 0.0), seeds=2))
    assert table["seeds"].tolist() == [2, 0, 0, 0, 0] and table["effect"].isna().tolist() == [False] + [True] * 4
