"""Section 4.6's inclusions: each counted once, in its bin, by medians that can be read off; and an example of them."""

from dataclasses import replace

import numpy as np
import pytest
import seen as sets
import torch
from judged import errors, judged, lesion, places, rows
from scipy import stats as scipy_stats

from dotlib.data import phantoms
from dotlib.reconstruction_judgement import BEST, ENSEMBLE, FITTED, LIFTED, SHUFFLED
from dotlib.reconstruction_records import TRUTH
from dotlib.reconstruction_sets import FRESH, HOME
from dotlib.reconstructions import CONTROL, NETWORK
from dotlib.sections import inverse_inclusions, inverse_picture
from dotlib.sections.inverse import GAUSS_NEWTON

NAN = np.nan
# three phantoms, two rows of inclusions each; the last one has a single inclusion
DISTANCE = [[5, 13.9], [14, 19], [20, NAN]]
RADIUS = [[7.9, 8], [11, 10.9], [15, NAN]]
CONTRAST = [[0.1, 0.99], [1, 1.7], [1.75, NAN]]
COVERED = [[1, 0.95], [0.9, 0.6], [0.3, NAN]]
THERE = places(distance=DISTANCE, radius=RADIUS, contrast=CONTRAST, covered=COVERED)
CRC = np.array([[0.1, 0.3], [0.5, 0.9], [0.2, NAN]])


def by_bin(table, method):
    return table[table["method"] == method].set_index("bin")


def test_facts_have_a_row_for_each_inclusion_that_is_there():
    table = inverse_inclusions.facts(judged(THERE))
    assert list(zip(table["phantom"], table["inclusion"], strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert table["distance"].tolist() == [5, 13.9, 14, 19, 20] and table["contrast"].tolist() == [
        0.1,
        0.99,
        1,
        1.7,
        1.75,
    ]


@pytest.mark.parametrize(
    ("fact", "counts"),
    [
        ("distance", {"below 14": 2, "14 to 20": 2, "20 and more": 1}),
        ("radius", {"below 8": 1, "8 to 11": 2, "11 and more": 2}),
        ("contrast", {"below 1": 2, "1 to 1.75": 2, "1.75 and more": 1}),
        ("covered", {"below 0.5": 1, "0.5 to 0.9": 1, "0.9 and more": 3}),
    ],
)
def test_each_inclusion_is_counted_once_in_its_bin(fact, counts):
    """A lower edge belongs to its bin; more seeds count no inclusion twice."""
    table = inverse_inclusions.binned(judged(THERE, rows(NETWORK, HOME, "crc", [CRC, CRC])), fact)
    assert table.set_index("bin")["inclusions"].to_dict() == counts and list(table["bin"]) == list(counts)


@pytest.mark.parametrize("fact", ["distance", "radius", "contrast"])
def test_last_bin_has_no_upper_edge(fact):
    """It is called 'and more'."""
    facts = {"distance": [[1.0]], "radius": [[1.0]], "contrast": [[1.0]], "covered": [[1.0]]} | {fact: [[99.0]]}
    table = inverse_inclusions.binned(judged(places(**facts), rows(NETWORK, HOME, "crc", [[[0.5]]])), fact)
    assert table["inclusions"].tolist() == [0, 0, 1]


def test_bins_hold_medians_of_each_seed_with_students_interval():
    """Seed 0 has 0.1, 0.3 within 14 mm, seed 1 three times as much: medians 0.2 and 0.6."""
    record = judged(THERE, rows(NETWORK, HOME, "crc", [CRC, 3 * CRC]), rows(LIFTED, HOME, "crc", [2 * CRC]))
    table = inverse_inclusions.binned(record, "distance")
    near = by_bin(table, NETWORK).loc["below 14"]
    low, high = scipy_stats.t.interval(0.95, 1, 0.4, scipy_stats.sem([0.2, 0.6]))
    assert [near[name] for name in ("median", "low", "high", "seeds")] == pytest.approx([0.4, low, high, 2])
    assert near["middle"] == pytest.approx((5 + 13.9) / 2)
    assert [near["q25"], near["q75"]] == pytest.approx([0.25, 0.45])  # of 0.1, 0.3, 0.3, 0.9
    classical = by_bin(table, LIFTED)
    assert classical["median"].tolist() == pytest.approx([0.4, 1.4, 0.4]) and np.isinf(classical["high"]).all()


def test_bins_leave_out_what_does_not_exist():
    """An inclusion without a crc, here the one of 0.3, and a value where there is no inclusion."""
    crc = CRC.copy()
    crc[0, 1], crc[2, 1] = NAN, 50
    table = by_bin(inverse_inclusions.binned(judged(THERE, rows(NETWORK, HOME, "crc", [crc])), "distance"), NETWORK)
    assert table["median"].tolist() == pytest.approx([0.1, 0.7, 0.2]) and table["inclusions"].tolist() == [1, 2, 1]


def test_empty_bin_has_no_numbers():
    here = places(distance=[[5.0]], radius=[[9.0]], contrast=[[1.0]], covered=[[1.0]])
    table = inverse_inclusions.binned(judged(here, rows(NETWORK, HOME, "crc", [[[0.5]]])), "distance")
    assert table["inclusions"].tolist() == [1, 0, 0] and table["median"].isna().tolist() == [False, True, True]
    assert inverse_inclusions.binned_table(table).iloc[0].tolist() == [NETWORK, "0.5", "--", "--"]


def test_binned_table_keeps_the_order_and_tells_the_counts():
    record = judged(THERE, rows(NETWORK, HOME, "crc", [CRC]), rows(LIFTED, HOME, "crc", [2 * CRC]))
    table = inverse_inclusions.binned_table(inverse_inclusions.binned(record, "distance"))
    assert list(table.columns) == ["method", "below 14 (n = 2)", "14 to 20 (n = 2)", "20 and more (n = 1)"]
    assert table.to_numpy().tolist() == [[LIFTED, "0.4", "1.4", "0.4"], [NETWORK, "0.2", "0.7", "0.2"]]


def test_limits_are_medians_of_inclusions_with_a_contrast_beside_what_is_reached():
    there = places(distance=DISTANCE, radius=RADIUS, contrast=[[0.05, 0.99], [1, -1.7], [1.75, NAN]], covered=COVERED)
    bounds = places(crc_sd_noise=[[9, 0.1], [0.2, 0.4], [2, NAN]], crc_sd_tissue=[[9, 0.3], [0.4, 0.6], [4, NAN]])
    record = judged(there, bounds, rows(NETWORK, HOME, "crc", [CRC]), rows(CONTROL, HOME, "crc", [CRC]))
    table = inverse_inclusions.limits(record)
    assert table.iloc[:, 1:5].to_numpy().tolist() == [
        [1, pytest.approx(0.1), pytest.approx(0.3), 1], [2, pytest.approx(0.3), pytest.approx(0.5), 0.5], [1, 2, 4, 0]
    ]  # fmt: skip
    heads = ["inclusions", "noise alone", "tissue unknown", "below 0.5, share", f"crc, {NETWORK}"]
    assert list(table.columns[1:]) == heads
    assert table.iloc[:, 0].tolist() == ["below 14", "14 to 20", "20 and more"]
    assert table[heads[-1]].tolist() == ["0.2", "0.7", "0.2"]
    assert inverse_inclusions.limits(judged(there, rows(NETWORK, HOME, "crc", [CRC]))).columns.empty


def test_near_is_the_median_within_twenty_millimetres():
    """0.1, 0.3, 0.5, 0.9; the one at 20 mm is not among them."""
    found = inverse_inclusions.near(judged(THERE, rows(NETWORK, HOME, "crc", [CRC, CRC])), NETWORK)
    assert found == (0.4, 0.4, 0.4, 2)
    assert np.isnan(inverse_inclusions.near(judged(THERE), NETWORK).estimate)


# --- where they are placed

PLACED = np.array([[1.0, 2.0], [3.0, 5.0], [7.0, NAN]])
CHANCE = places(localisation=[[4.0, 5.0], [6.0, 4.5], [4.2, NAN]])


def put(arm, shown, placed=PLACED, seeds=1):
    """Localisation and contrasts of a method."""
    return rows(arm, HOME, "localisation", [placed] * seeds) + rows(arm, HOME, "contrast", [shown] * seeds)


def test_flat_prediction_places_nothing():
    """Its localisation, the middle of the window, is not asked for."""
    record = judged(THERE, CHANCE, put(NETWORK, np.full((3, 2), 0.049)))
    table = inverse_inclusions.localised(record)
    assert table["shown"].tolist() == [0, 0, 0] and table["median"].isna().all()
    assert inverse_inclusions.localised_table(table)["median distance, mm"].tolist() == ["--"] * 3


def test_localised_are_medians_of_what_is_shown():
    """Of three above 90 % covered the second is not shown: 1 and 3 remain."""
    shown = np.array([[0.05, 0.01], [0.4, 0.4], [0.4, NAN]])
    table = inverse_inclusions.localised(judged(THERE, CHANCE, put(NETWORK, shown, seeds=2)))
    assert table["part"].tolist() == ["more than 90 % covered", "50 to 90 % covered", "less than 50 % covered"]
    assert table["inclusions"].tolist() == [3, 1, 1] and table["median"].tolist() == [2, 5, 7]
    assert table["shown"].tolist() == pytest.approx([2 / 3, 1, 1]) and set(table["seeds"]) == {2}
    assert table["low"].tolist() == table["high"].tolist() == [2, 5, 7]


def test_chance_stands_beside_on_all_inclusions():
    """Median of 4, 5, 6: also of those that the method does not show."""
    record = judged(THERE, CHANCE, put(NETWORK, np.array([[0.4, 0.0], [0.0, 0.4], [0.4, NAN]])))
    assert inverse_inclusions.localised(record)["chance"].tolist() == [5, 4.5, 4.2]


def test_methods_that_know_nothing_of_inclusions_are_not_localised():
    shown = np.ones((3, 2))
    arms = (BEST, FITTED, CONTROL, SHUFFLED, LIFTED, NETWORK)
    table = inverse_inclusions.localised(judged(THERE, CHANCE, *[put(arm, shown) for arm in arms]))
    assert list(table["method"].unique()) == [LIFTED, NETWORK]


# --- whether they are found


def test_operating_point_is_that_which_is_marked():
    """Of mua alone, means over seeds; 0.5 and 0.7 at it."""
    found = [lesion(NETWORK, s, t, t * 100 + 0.2 * s, 10 * t, t == 0.005) for s in (0, 1) for t in (0.001, 0.005)]
    found += [lesion(NETWORK, 0, 0.5, 0.9, 9, True, "musp"), lesion(LIFTED, 0, 0.002, 0.4, 0.3, True)]
    table = inverse_inclusions.operating(judged(errors(NETWORK, [[1], [1]]), errors(LIFTED, [1]), lesions=found))
    assert table["method"].tolist() == [LIFTED, NETWORK] and table["seeds"].tolist() == [1, 2]
    assert table.iloc[0].tolist() == [LIFTED, 1, "0.002", "0.4", "0.3"]
    assert table["recall"][1].startswith("0.6 [") and table["false lesions"][1] == "0.05 [0.05, 0.05]"


def test_method_without_an_operating_point_has_no_numbers():
    """Its highest threshold still shows too many."""
    table = inverse_inclusions.operating(judged(errors(LIFTED, [1]), lesions=[lesion(LIFTED, 0, 0.01, 0.5, 3)]))
    assert table.iloc[0].tolist() == [LIFTED, 0, "--", "--", "--"]


def test_lesion_curves_are_means_over_seeds_of_mua():
    found = [lesion(NETWORK, s, t, r, f, t == 2) for s, t, r, f in [(0, 1, 0.6, 4), (1, 1, 0.8, 2), (0, 2, 0.2, 1),
                                                                  (1, 2, 0.4, 0)]]  # fmt: skip
    found += [lesion(arm, 0, 1, 0.5, 1, True) for arm in (BEST, CONTROL, SHUFFLED, ENSEMBLE)]
    found += [lesion(NETWORK, 0, 1, 0.0, 9, False, "musp")]
    curves, points = inverse_inclusions.lesion_curves(judged(errors(NETWORK, [[1]]), lesions=found))
    assert curves[["method", "threshold"]].to_numpy().tolist() == [[NETWORK, 1], [NETWORK, 2]]
    assert curves[["recall", "false_lesions"]].to_numpy().tolist() == [
        pytest.approx([0.7, 3]),
        pytest.approx([0.3, 0.5]),
    ]
    assert points.iloc[0].tolist() == [NETWORK, pytest.approx(0.3), 0.5] and len(points) == 1


def wilson(share, n):
    """Wilson's interval by its equation."""
    z = scipy_stats.norm.ppf(0.975)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return ((share + z**2 / (2 * n) + side * half) / (1 + z**2 / n) for side in (-1, 1))


def test_visible_is_the_share_of_present_inclusions_with_wilsons_interval():
    """Five are there; one seed meets it in three, one in four, the others in none. Where nothing is, nothing counts."""
    true = rows(TRUTH, FRESH, "contrast", [[[0.1, 1], [2, 1], [0.5, 0.09], [NAN, NAN]]])
    met = np.array([[[1, 1], [0, 1], [0, 1], [1, NAN]], [[1, 1], [1, 1], [0, 1], [1, NAN]]], float)
    record = judged(true, rows(NETWORK, FRESH, "contrast_visible", met), errors(NETWORK, [[1], [1]], FRESH))
    row = inverse_inclusions.visible(record).iloc[0]
    low, high = wilson(4 / 5, 5)  # 3.5 is rounded to 4, as Wilson's interval takes whole counts
    assert row.tolist() == [NETWORK, 2, 5, f"0.7 [{low:.3g}, {high:.3g}]"]


def test_value_that_does_not_exist_is_not_visible():
    true = rows(TRUTH, FRESH, "contrast", [[[1.0, 1.0]]])
    record = judged(true, rows(LIFTED, FRESH, "contrast_visible", [[[1, NAN]]]))
    low, high = wilson(0.5, 2)
    assert inverse_inclusions.visible(record).iloc[0].tolist() == [LIFTED, 1, 2, f"0.5 [{low:.3g}, {high:.3g}]"]


# --- what was asked


def recovered(crc, placed, seeds=2):
    values = [rows(NETWORK, HOME, "crc", [crc * np.ones((3, 2))] * seeds)]
    return [THERE, CHANCE, *values, put(NETWORK, np.ones((3, 2)), np.asarray(placed, float), seeds)]


@pytest.mark.parametrize(
    ("crc", "placed", "words"),
    [
        (0.75, [[1, 1], [1, 3], [9, NAN]], ["met", "met", "met"]),
        (0.65, [[2.5, 2.5], [2.5, 5], [1, NAN]], ["not met", "not met", "not met"]),
        (0.65, [[1, 1], [1, 5], [1, NAN]], ["not met", "met", "not met"]),
    ],
)
def test_targets_stand_as_crc_and_distance_lie(crc, placed, words):
    """0.70 within 20 mm, 2 mm above 90 % covered, 4 mm from 50 %."""
    table = inverse_inclusions.targets(judged(*recovered(crc, placed)))
    assert table["standing"].tolist() == words
    assert table["asked"].tolist() == ["0.7 or more", "2 or less", "4 or less"]


def test_targets_name_gauss_newton_beside():
    here = recovered(0.75, PLACED)
    assert inverse_inclusions.targets(judged(*here))["found"][0] == f"0.75 [0.75, 0.75]; {GAUSS_NEWTON}: --"
    record = judged(*here, rows(GAUSS_NEWTON, HOME, "crc", [CRC]))
    assert inverse_inclusions.targets(record)["found"][0] == f"0.75 [0.75, 0.75]; {GAUSS_NEWTON}: 0.4"


def test_targets_say_of_how_many_inclusions_readings_tell():
    """Within twenty millimetres, of four that have a contrast."""
    bounds = places(crc_sd_noise=[[0.1] * 2] * 3, crc_sd_tissue=[[0.49, 0.5], [0.1, 3], [0.1, NAN]])
    record = judged(THERE, bounds, rows(NETWORK, HOME, "crc", [CRC]))
    assert inverse_inclusions.targets(record)["found"][0].endswith("; told in an unknown tissue: 2 of 4")


def test_targets_of_one_run_are_not_resolved_and_of_none_not_computed():
    record = judged(*recovered(0.1, PLACED, seeds=1))
    assert set(inverse_inclusions.targets(record)["standing"]) == {"not resolved"}
    assert set(inverse_inclusions.targets(record, "reconstruct-more")["standing"]) == {"not computed"}


# --- an example


def test_example_is_the_inclusion_of_at_least_eight_millimetres_that_is_covered_most():
    """One is covered more but smaller, another of no radius; its centre, y = 9 mm, is in plane 10 of 16 of 4 mm."""
    one = sets.table(((0, 0, 0), 6, 0.01, 1.0), ((5, -9, 0), 9, 0.01, 1.0))
    two = sets.table(((0, 2, 0), 8, 0.01, 1.0), ((0, 9, 5), 10, 0.01, 1.0))
    radius = torch.tensor([[6, 9, NAN, NAN, NAN], [8, 10, NAN, NAN, NAN]])
    share = torch.tensor([[1, 0.4, NAN, NAN, NAN], [0.5, 0.7, NAN, NAN, NAN]])
    seen = replace(sets.made_up([one, two]), radius=radius, share=share)
    assert inverse_picture.example(seen) == (1, 1, 10)
    assert inverse_picture.example(replace(seen, share=share * torch.tensor([[2.0], [1.0]]))) == (0, 1, 5)


def test_examples_plane_shows_its_inclusion():
    """In the truth, of an inclusion of 8 mm at each place along y."""
    for y in (-15, -8, 0, 7, 16):
        seen = sets.made_up([sets.table(((0, y, 0), 8, 0.02, 1.0))])
        seen = replace(seen, radius=torch.tensor([[8, NAN, NAN, NAN, NAN]]), share=torch.tensor([[1.0, 0, 0, 0, 0]]))
        phantom, _, plane = inverse_picture.example(seen)
        sums = (seen.truth[phantom, 0] > 0.015).sum((0, 2))
        assert sums[plane] == sums.max() and abs((plane + 0.5) * phantoms.CUBE / 16 - 32 - y) <= 2, y
