"""Section 4.6 elsewhere: ratios that were put in on other light and phantoms, an sd against its error, and times."""

import numpy as np
import pytest
from judged import bins, errors, judged, rows
from scipy import stats as scipy_stats

from dotlib.reconstruction_judgement import BEST, FITTED, LIFTED
from dotlib.reconstruction_scores import BINS
from dotlib.reconstruction_sets import COUNTS, COVERAGES, FAMILIES, FRESH, NOISES, PATTERNS, PROBES
from dotlib.reconstructions import MORE, NETWORK
from dotlib.sections import inverse_ensemble, inverse_views

LEVELS = np.array([[0.1, 0.3], [0.2, 0.6]])  # two seeds, two phantoms: means 0.2 and 0.4
READINGS = "readings at 48^3"


def elsewhere(**factors):
    """The network on fresh phantoms, and on sets (words joined by _) with so many times the error."""
    named = {name.replace("_", " "): factor for name, factor in factors.items()}
    return [errors(NETWORK, LEVELS, FRESH), *[errors(NETWORK, np.multiply(f, LEVELS), n) for n, f in named.items()]]


def test_views_relate_each_set_to_fresh_phantoms_by_seed():
    """Seed 0 has twice the error, seed 1 four times: whatever their levels are."""
    table = inverse_views.views(judged(*elsewhere(deep=[[2], [4]]))).set_index("set")
    logs = np.log([2, 4])
    low, high = scipy_stats.t.interval(0.95, 1, logs.mean(), scipy_stats.sem(logs))
    found = table.loc["deep", ["ratio", "ratio low", "ratio high"]].tolist()
    assert found == pytest.approx(np.exp([logs.mean(), low, high]))
    low, high = scipy_stats.t.interval(0.95, 1, 1.0, scipy_stats.sem([0.4, 1.6]))
    assert table.loc["deep", ["nrmse", "low", "high", "seeds"]].tolist() == pytest.approx([1, low, high, 2])
    assert table.loc[FRESH, ["ratio", "ratio low", "ratio high"]].tolist() == pytest.approx([1, 1, 1])


def test_ratio_is_paired_by_seed_where_one_lacks_a_seed():
    record = judged(errors(NETWORK, LEVELS, FRESH), errors(NETWORK, 3 * LEVELS[1:], "deep", seeds=[1]))
    row = inverse_views.views(record).set_index("set").loc["deep"]
    assert row["ratio"] == pytest.approx(3) and row["nrmse"] == pytest.approx(1.2)


def test_views_are_of_the_metric_that_is_asked_for():
    record = judged(
        rows(NETWORK, FRESH, "nrmse", [[0.2]]), rows(NETWORK, FRESH, "nrmse_covered", [[0.2]]),
        rows(NETWORK, "deep", "nrmse", [[0.6]]), rows(NETWORK, "deep", "nrmse_covered", [[0.4]]),
        rows(NETWORK, "deep", "nrmse_covered", [[9]], "musp"),
    )  # fmt: skip
    for metric, ratio in (("nrmse", 3), ("nrmse_covered", 2)):
        assert inverse_views.views(record, metric)["ratio"].tolist() == pytest.approx([1, ratio])


def test_views_have_groups_in_order_and_leave_out_what_was_not_judged():
    """Coverage has a table of its own; home is no view."""
    names = [READINGS, "all around", "home", "deep", "none", *PROBES, *NOISES, "64 pairs", "snr", "stratified"]
    record = judged(*elsewhere(), *[errors(NETWORK, LEVELS, name) for name in names])
    table = inverse_views.views(record)
    expected = [("", FRESH), ("pattern", "snr"), ("pattern", "stratified"), ("pairs", "64 pairs")]
    expected += [("noise", name) for name in NOISES] + [("probe", name) for name in PROBES]
    expected += [("family", "none"), ("family", "deep"), ("readings", READINGS)]
    assert list(zip(table["group"], table["set"], strict=True)) == expected


def test_views_show_networks_and_what_has_a_solution_everywhere():
    arms = (BEST, "reconstruct-snr", FITTED, LIFTED, NETWORK, *MORE)
    table = inverse_views.views(judged(*[errors(arm, [[0.2]], FRESH) for arm in arms]))
    assert table["method"].tolist() == [FITTED, LIFTED, NETWORK, *MORE]


def test_views_table_is_error_and_ratio_by_method():
    record = judged(
        errors(LIFTED, [0.5], FRESH), errors(NETWORK, [[0.2], [0.2]], FRESH),
        errors(NETWORK, [[0.4], [0.4]], "deep"), errors(LIFTED, [0.6], "snr"),
    )  # fmt: skip
    table = inverse_views.views_table(inverse_views.views(record))
    assert list(table.columns) == ["group", "set", LIFTED, NETWORK]
    assert table.iloc[0].tolist() == ["", FRESH, "0.5", "0.2 [0.2, 0.2]"]
    assert table.iloc[1, :3].tolist() == ["pattern", "snr", "0.6, x 1.2"] and table.iloc[1].isna()[NETWORK]
    assert table.iloc[2, [1, 3]].tolist() == ["deep", "0.4, x 2 [2, 2]"]


def test_worst_is_the_set_of_the_largest_ratio():
    table = inverse_views.views(judged(*elsewhere(snr=1.1, linear=1.3, deep=2)))
    name, one = inverse_views.worst(table, NETWORK, PATTERNS)
    assert name == "linear" and one[:3] == pytest.approx([1.3, 1.3, 1.3])
    assert inverse_views.worst(table, NETWORK, ("circular",))[0] == ""


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({"snr": 1.1, "linear": 1.14, READINGS: 1.09}, ["met", "met"]),
        ({"snr": 1.1, "linear": 1.16, READINGS: 1.11}, ["not met", "not met"]),
        ({"snr": [[1.0], [1.2]], READINGS: 0.9}, ["not resolved", "met"]),
        ({"deep": 3}, ["not computed", "not computed"]),
    ],
)
def test_targets_stand_as_the_worst_loss_lies(factors, words):
    """15 per cent on a pattern, 10 on finer readings."""
    table = inverse_views.targets(judged(*elsewhere(**factors)))
    assert table["standing"].tolist() == words and table["asked"].tolist() == ["15 or less", "10 or less"]


def test_targets_name_the_worst_set_and_its_loss():
    table = inverse_views.targets(judged(*elsewhere(snr=1.1, linear=1.5)))
    assert table["found"].tolist() == ["50 [50, 50] (linear)", "--"]


def test_answer_has_the_largest_loss_first():
    table = inverse_views.views(judged(*elsewhere(snr=1.1, linear=1.3, deep=2, none=0.5), errors(LIFTED, [1], FRESH),
                                       errors(LIFTED, [9], "circular")))  # fmt: skip
    first, second = inverse_views.answer(table).splitlines()
    assert first == "* **family**: deep x 2.00, none x 0.50."
    assert second == "* **pattern**: linear x 1.30, snr x 1.10."


# --- patterns that were trained on


def trained():
    """`random` and `snr`, each tested on both and on `linear`, for which there is no specialist."""
    snr = "reconstruct-snr"
    return judged(
        errors(NETWORK, [[0.2], [0.2]], FRESH), errors(NETWORK, [[0.3], [0.3]], "snr"),
        errors(NETWORK, [[0.5], [0.5]], "linear"),
        errors(snr, [[0.4], [0.4]], FRESH), errors(snr, [[0.25], [0.25]], "snr"), errors(snr, [[0.2], [0.2]], "linear"),
    )  # fmt: skip


def test_patterns_relate_to_their_own_pattern_and_to_the_specialist():
    table = inverse_views.patterns(trained()).set_index(["trained on", "tested on"])
    assert len(table) == 6 and set(table["seeds"]) == {2}
    assert table["ratio"].to_dict() == pytest.approx({
        ("random", "random"): 1, ("random", "snr"): 1.5, ("random", "linear"): 2.5,
        ("snr", "random"): 1.6, ("snr", "snr"): 1, ("snr", "linear"): 0.8,
    })  # fmt: skip
    special = table["specialist"].dropna().to_dict()
    assert special == pytest.approx({
        ("random", "random"): 1, ("random", "snr"): 1.2, ("snr", "random"): 2, ("snr", "snr"): 1,
    })  # fmt: skip
    assert table.index[table["home"]].tolist() == [("random", "random"), ("snr", "snr")]


def test_patterns_without_fresh_phantoms_are_none():
    assert inverse_views.patterns(judged(errors(NETWORK, [[0.2]]))).empty


def test_sets_without_contrast_of_mua_are_not_among_those_with_it():
    names = (FRESH, "none", "musp-only", "mua-only", "deep")
    found = inverse_views.views(judged(*[errors(NETWORK, [[0.2]], name) for name in names]))
    assert set(inverse_views.with_contrast(found)["set"]) == {FRESH, "mua-only", "deep"}


# --- coverage and crosstalk


def test_coverage_has_each_probe_with_the_errors_in_three_parts():
    parts = {"nrmse_covered": 0.1, "nrmse_union": 0.2, "nrmse": 0.3}
    record = judged(*[rows(arm, name, metric, [[(k + 1) * value]])
                      for k, name in enumerate(COVERAGES) for metric, value in parts.items()
                      for arm in (NETWORK, "Gauss-Newton")])  # fmt: skip
    table = inverse_views.coverage(record)
    assert table["probe"].tolist() == [name for name in COVERAGES for _ in range(2)]
    assert table["method"].tolist() == ["Gauss-Newton", NETWORK] * 3 and set(table["seeds"]) == {1}
    assert table.iloc[:, 3:].to_numpy()[::2].tolist() == [
        ["0.1", "0.2", "0.3"], ["0.2", "0.4", "0.6"], ["0.3", "0.6", "0.9"]
    ]  # fmt: skip
    assert list(table.columns[3:]) == ["covered by it", "covered by any", "tissue"]


def test_crosstalk_is_of_the_channel_without_contrast():
    """Inclusions in musp alone: what shows in mua; medians over inclusions. And the other way round."""
    wrong, right = [[[0.1, 0.2], [0.6, np.nan]]], [[[0.5, 0.7], [0.9, np.nan]]]
    other = [[[-9, -9], [-9, -9]]]
    record = judged(
        errors(NETWORK, [[0.2, 0.2]], FRESH),
        rows(NETWORK, "musp-only", "crosstalk", wrong), rows(NETWORK, "musp-only", "crc", right, "musp"),
        rows(NETWORK, "musp-only", "crosstalk", other, "musp"), rows(NETWORK, "musp-only", "crc", other),
        rows(NETWORK, "mua-only", "crosstalk", np.multiply(2, wrong), "musp"), rows(NETWORK, "mua-only", "crc", right),
    )  # fmt: skip
    assert inverse_views.crosstalk(record).to_numpy().tolist() == [
        ["musp-only", NETWORK, "mua", "0.2", "0.7"], ["mua-only", NETWORK, "musp", "0.4", "0.7"]
    ]  # fmt: skip


# --- a record that has home alone


def test_record_of_home_alone_has_empty_views():
    record = judged(errors(NETWORK, LEVELS), errors(LIFTED, [0.5, 0.5]))
    table = inverse_views.views(record)
    assert table.empty and inverse_views.views_table(table).empty
    assert inverse_views.answer(table) == "* Not computed."
    assert inverse_views.coverage(record).empty and inverse_views.crosstalk(record).empty
    assert inverse_views.targets(record)["standing"].tolist() == ["not computed"] * 2


def test_every_set_of_a_group_is_in_one_group_alone():
    names = [name for group in inverse_views.GROUPS.values() for name in group]
    assert len(names) == len(set(names)) == len(PATTERNS) + len(COUNTS) + len(NOISES) + len(PROBES) + len(FAMILIES)


# --- an ensemble's sd


def test_sd_and_error_are_root_mean_squares_over_all_voxels():
    """Half of the voxels have 3, half 4 (root mean square sqrt(12.5)); a bin of more voxels counts more."""
    even = bins("covered", "mua", [3.0] * 5 + [4.0] * 5, 10.0, 0.1)
    uneven = bins("uncovered", "mua", [1.0] + [2.0] * 9, 2.0, [1.0] + [0.0] * 9, n=[91] + [1] * 9)
    table = inverse_ensemble.calibration(judged(calibration=[even, uneven])).set_index("part")
    assert table.loc["covered", ["sd", "rmse", "error / sd"]].tolist() == pytest.approx([12.5**0.5, 10, 10 / 12.5**0.5])
    assert table.loc["uncovered", "sd"] == pytest.approx((0.91 + 0.09 * 4) ** 0.5)
    assert table["beyond 1.96 sd"].tolist() == pytest.approx([0.1, 0.91])


def test_most_certain_tenth_is_the_first_bin_over_the_last():
    rmse = np.linspace(1, 4, BINS)
    table = inverse_ensemble.calibration(judged(calibration=[bins("covered", "mua", 1.0, rmse, 0.0)]))
    assert table["most certain tenth over least"].tolist() == pytest.approx([0.25])


def test_calibration_tells_scaled_from_unscaled():
    record = judged(calibration=[bins("covered", "mua", 1.0, 2.0, 0.3), bins("covered", "musp", 1.0, 2.0, 0.3),
                                 bins("covered", "mua", 2.0, 2.0, 0.05, scale=2.0)])  # fmt: skip
    table = inverse_ensemble.calibration(record)
    assert table["scaled by"].tolist() == [1, 1, 2] and table["error / sd"].tolist() == pytest.approx([2, 2, 1])
    assert inverse_ensemble.answer(table).splitlines() == [
        "* covered, as it is: the error is 2.00 times the sd; 30% beyond 1.96 sd.",
        "* covered, scaled by 2.00: the error is 1.00 times the sd; 5% beyond 1.96 sd.",
    ]


def test_calibration_of_a_single_seed_is_not_computed():
    table = inverse_ensemble.calibration(judged(errors(NETWORK, [[0.1]])))
    assert table.empty and inverse_ensemble.answer(table) == "* Not computed: fewer than two seeds."


def test_times_hold_the_fit_in_every_method_and_the_lift_in_the_networks():
    taken = [("fit", 1.0), ("lift", 10.0), ("tikhonov", 100.0), ("tv", 300.0), ("network", 0.5)]
    table = inverse_ensemble.times(judged(times=taken))
    assert dict(zip(table["method"], table["seconds"], strict=True)) == {
        FITTED: 1, "Tikhonov": 101, "Gauss-Newton, total variation": 301, "network": 11.5
    }  # fmt: skip
    assert set(table["phantoms"]) == {4} and set(table["threads"]) == {2}


def test_times_without_a_network_or_classical_methods_are_of_the_fit():
    table = inverse_ensemble.times(judged(times=[("fit", 1.0), ("lift", 10.0)]))
    assert table["method"].tolist() == [FITTED]
