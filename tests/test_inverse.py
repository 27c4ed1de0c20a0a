"""Section 4.6's comparison of methods: effects that were put in are found, and words follow the numbers."""

import numpy as np
import pandas as pd
import pytest
from judged import errors, judged, rows
from scipy import stats as scipy_stats

from dotlib.reconstruction_judgement import BEST, ENSEMBLE, ENSEMBLES, FITTED, LIFTED, SHUFFLED
from dotlib.reconstruction_records import TRUTH
from dotlib.reconstruction_sets import FRESH, HOME
from dotlib.reconstructions import CONTROL, MORE, NETWORK
from dotlib.sections import inverse, inverse_inclusions
from dotlib.sections.inverse import GAUSS_NEWTON

PHANTOMS = np.array([0.1, 0.2, 0.4, 0.5])
GROWN, LONGER, MOVED = MORE
COVERED = "nrmse_covered"


def against(network, classical, **kept):
    """The effect of a network on the covered nrmse of Gauss-Newton's, both given by their errors."""
    record = judged(errors(NETWORK, network, **kept), errors(GAUSS_NEWTON, classical))
    return inverse.effect(record, NETWORK, GAUSS_NEWTON, COVERED)


def test_effect_of_four_fifths_of_an_error_is_a_fifth_less():
    found = against(0.8 * np.tile(PHANTOMS, (3, 1)), PHANTOMS)
    assert found[:3] == pytest.approx([-20, -20, -20]) and found.n == 3


def test_effect_of_five_fourths_of_an_error_is_a_quarter_more():
    assert against(1.25 * np.tile(PHANTOMS, (3, 1)), PHANTOMS)[:3] == pytest.approx([25, 25, 25])


def test_effect_is_the_geometric_mean_of_ratios():
    """0.5 and 1.28 of an error: sqrt(0.64) of it. The arithmetic mean would lie at 0.89."""
    assert against([[0.05, 0.256]], PHANTOMS[:2]).estimate == pytest.approx(-20)


def test_interval_over_seeds_is_students_where_phantoms_are_alike():
    """Ratios by seed, the same in every phantom: phantoms add nothing to what seeds leave open."""
    logs = np.array([-0.3, -0.2, -0.25, -0.05])
    found = against(np.exp(logs)[:, None] * PHANTOMS, PHANTOMS)
    low, high = scipy_stats.t.interval(0.95, 3, logs.mean(), scipy_stats.sem(logs))
    assert found[:3] == pytest.approx(100 * np.expm1([logs.mean(), low, high]))


def test_interval_is_wider_where_phantoms_differ():
    """The claim is for new phantoms too: a few phantoms that disagree leave more open than seeds do."""
    ratio = np.exp(np.add.outer([-0.3, -0.2, -0.25], [0.4, -0.4, 0.4, -0.4]))
    wide = against(ratio * PHANTOMS, PHANTOMS)
    narrow = against(np.exp([[-0.3], [-0.2], [-0.25]]) * PHANTOMS, PHANTOMS)
    assert wide.estimate == pytest.approx(narrow.estimate) and wide.low < narrow.low and wide.high > narrow.high


def test_phantoms_without_an_error_are_left_out():
    """In one the network has none, in another the classical method; in a third one seed's is zero."""
    network = 0.8 * np.tile([*PHANTOMS, 9, 9, 9], (2, 1))
    network[0, 4], network[1, 6] = np.nan, 0
    found = against(network, [*PHANTOMS, 1, np.nan, 1])
    assert found[:3] == pytest.approx([-20, -20, -20]) and found.n == 2


def test_one_run_has_no_limits_and_no_verdict():
    found = inverse.contrasts(judged(errors(NETWORK, [0.8 * PHANTOMS]), errors(LIFTED, PHANTOMS)))
    assert found["effect"].tolist() == pytest.approx([-20, -20])
    assert np.isinf(found["high"]).all() and set(found["verdict"]) == {"not resolved"} and set(found["seeds"]) == {1}
    assert inverse.contrasts_table(found)["covered, %"].tolist() == ["-20"]


def test_one_run_has_no_limits_beside_a_method_of_more_runs():
    """Neither has an ensemble, of which there is one: the runs are those of the method that is judged."""
    others = errors(SHUFFLED, PHANTOMS * np.array([[1.0], [1.1], [0.9]]))
    record = judged(errors(NETWORK, [0.8 * PHANTOMS]), errors(ENSEMBLE, [0.7 * PHANTOMS]), others)
    for arm, level in ((NETWORK, 0.8), (ENSEMBLE, 0.7)):
        found = inverse.effect(record, arm, SHUFFLED, COVERED)
        assert found.estimate == pytest.approx(100 * (level / 0.99 ** (1 / 3) - 1)), arm
        assert np.isinf(found.high) and found.n == 1, arm


def test_one_phantom_has_no_limits():
    found = against([[0.08], [0.08]], [0.1])
    assert found.estimate == pytest.approx(-20) and np.isinf(found.high)


def test_seeds_are_paired_by_their_number():
    """Both of two arms lost a seed, not the same one: by the seed that both have the ratio is 0.8 exactly."""
    own = np.array([[0.7], [1.0], [2.0]])
    record = judged(errors(NETWORK, 0.8 * own * PHANTOMS, seeds=[0, 1, 3]),
                    errors(SHUFFLED, own[[1, 2, 0]] * PHANTOMS, seeds=[1, 3, 4]))  # fmt: skip
    found = inverse.effect(record, NETWORK, SHUFFLED, COVERED)
    assert found[:3] == pytest.approx([-20, -20, -20]) and found.n == 2


def test_seeds_that_one_arm_alone_has_are_left_out():
    record = judged(errors(NETWORK, 0.8 * np.array([[1.0], [1.0], [5.0]]) * PHANTOMS),
                    errors(SHUFFLED, np.tile(PHANTOMS, (2, 1))))  # fmt: skip
    found = inverse.effect(record, NETWORK, SHUFFLED, COVERED)
    assert found[:3] == pytest.approx([-20, -20, -20]) and found.n == 2


def test_effect_without_a_common_seed_or_phantom_or_method_has_no_numbers():
    twice = np.tile(PHANTOMS, (2, 1))
    others = errors(SHUFFLED, twice, seeds=[5, 6]), errors(FITTED, np.full(4, np.nan))
    record = judged(errors(NETWORK, twice), *others)
    for other in (SHUFFLED, FITTED, GAUSS_NEWTON):
        assert np.isnan(inverse.effect(record, NETWORK, other, COVERED).estimate), other


def test_effect_is_of_its_set_part_and_channel():
    record = judged(
        errors(NETWORK, [0.8 * PHANTOMS]), errors(LIFTED, PHANTOMS),
        rows(NETWORK, HOME, "nrmse", [0.5 * PHANTOMS], "musp"), rows(LIFTED, HOME, "nrmse", PHANTOMS, "musp"),
        errors(NETWORK, [0.6 * PHANTOMS], FRESH), errors(LIFTED, PHANTOMS, FRESH),
    )  # fmt: skip
    assert inverse.effect(record, NETWORK, LIFTED, "nrmse").estimate == pytest.approx(-20)
    assert inverse.effect(record, NETWORK, LIFTED, "nrmse", channel="musp").estimate == pytest.approx(-50)
    assert inverse.effect(record, NETWORK, LIFTED, "nrmse", FRESH).estimate == pytest.approx(-40)


def test_errors_are_means_over_phantoms_and_inclusions_medians():
    """Of what exists: a phantom without an error and an inclusion without contrast count nowhere."""
    record = judged(
        rows(NETWORK, HOME, "nrmse", [[0.1, 0.2, 0.9, np.nan], [0.3, 0.3, 0.3, 0.7]]),
        rows(NETWORK, HOME, "crc", [[[0.1, 0.2], [0.9, np.nan], [np.inf, np.nan], [np.nan, np.nan]],
                                    [[0.4, 0.5], [0.6, 9.0], [0.4, np.nan], [np.nan, np.nan]]]),
    )  # fmt: skip
    assert inverse.per_seed(record, NETWORK, HOME, "nrmse").tolist() == pytest.approx([0.4, 0.4])
    assert inverse.per_seed(record, NETWORK, HOME, "crc").tolist() == pytest.approx([0.2, 0.5])


def test_table_has_controls_first_and_then_methods_networks_and_the_rest():
    late = ["reconstruct-one-draw", "reconstruct-tokens", ENSEMBLES[MOVED], ENSEMBLE, MOVED, NETWORK, GROWN]
    late += [GAUSS_NEWTON, LIFTED]
    record = judged(*[errors(arm, [PHANTOMS]) for arm in (*late, SHUFFLED, CONTROL, FITTED, BEST)],
                    rows(TRUTH, HOME, "contrast", [PHANTOMS]))  # fmt: skip
    assert inverse.table(record)["method"].tolist() == [
        BEST, FITTED, CONTROL, SHUFFLED, LIFTED, GAUSS_NEWTON, NETWORK, GROWN, MOVED, ENSEMBLE, ENSEMBLES[MOVED],
        *late[:2],
    ]  # fmt: skip


def test_table_has_the_mean_over_seeds_with_students_interval():
    record = judged(errors(NETWORK, [[0.1, 0.3], [0.2, 0.6]]), errors(LIFTED, [0.25, 0.75]))
    table = inverse.table(record).set_index("method")
    assert list(table.columns) == ["seeds", *inverse.FIDELITY]
    low, high = scipy_stats.t.interval(0.95, 1, 0.3, scipy_stats.sem([0.2, 0.4]))
    assert table.loc[NETWORK, ["seeds", "nrmse", "covered"]].tolist() == [2, *[f"0.3 [{low:.3g}, {high:.3g}]"] * 2]
    assert table.loc[LIFTED, ["seeds", "nrmse", "not covered", "SSIM"]].tolist() == [1, "0.5", "--", "--"]


def test_table_of_musp_has_the_values_of_musp():
    record = judged(rows(LIFTED, HOME, "nrmse", [0.25, 0.75]), rows(LIFTED, HOME, "nrmse", [0.1, 0.3], "musp"))
    assert inverse.table(record, channel="musp")["nrmse"].tolist() == ["0.2"]


def test_contrasts_pair_each_network_with_each_other_method_once():
    every = (BEST, CONTROL, LIFTED, GAUSS_NEWTON, NETWORK, GROWN, ENSEMBLE, ENSEMBLES[MOVED], "reconstruct-tokens")
    found = inverse.contrasts(judged(*[errors(arm, [PHANTOMS]) for arm in every]))
    pairs = list(zip(found["network"], found["against"], found["part"], strict=True))
    expected = {(a, b, part) for a in every[4:-1] for b in every[:4] for part in inverse.ERRORS}
    assert set(pairs) == expected and len(pairs) == len(expected)
    wide = inverse.contrasts_table(found)
    assert list(zip(wide["network"], wide["against"], strict=True)) == [pair[:2] for pair in pairs[::2]]


def compared(covered, tissue=None, seeds=3, reference=GAUSS_NEWTON):
    """A network with these shares of a classical method's errors, and skills of 0.5 in both parts."""
    parts = {"nrmse_covered": covered, "nrmse": covered if tissue is None else tissue}
    values = [rows(NETWORK, HOME, metric, share * np.tile(PHANTOMS, (seeds, 1))) for metric, share in parts.items()]
    values += [rows(NETWORK, HOME, name, np.full((seeds, 4), 0.5))
               for name in ("skill_homogeneous", "skill_homogeneous_covered")]  # fmt: skip
    return judged(*values, errors(reference, PHANTOMS))


def test_contrasts_table_shows_each_part_in_its_column():
    found = inverse.contrasts_table(inverse.contrasts(compared(0.6, 0.9)))
    assert list(found.columns) == ["network", "against", "covered, %", "tissue, %"]
    assert found.iloc[0].tolist() == [NETWORK, GAUSS_NEWTON, "-40 [-40, -40]", "-10 [-10, -10]"]


def test_answer_names_the_negative_results_first():
    """0.9 of the error in the tissue is better, 1.2 of it in the covered part is worse."""
    record = compared(1.2, 0.9)
    worse, better = inverse.answer(record, inverse.contrasts(record)).splitlines()
    assert worse == f"* {NETWORK} against {GAUSS_NEWTON}, covered: 20 [20, 20] %: worse, 3 run(s)."
    assert better == f"* {NETWORK} against {GAUSS_NEWTON}, tissue: -10 [-10, -10] %: better, 3 run(s)."


def test_answer_is_about_the_best_classical_method_of_each_part():
    record = judged(
        errors(NETWORK, [0.5 * PHANTOMS]), errors(BEST, 0.1 * PHANTOMS),
        rows(LIFTED, HOME, "nrmse", PHANTOMS), rows(LIFTED, HOME, "nrmse_covered", 2 * PHANTOMS),
        rows(GAUSS_NEWTON, HOME, "nrmse", 2 * PHANTOMS), rows(GAUSS_NEWTON, HOME, "nrmse_covered", PHANTOMS),
    )  # fmt: skip
    text = inverse.answer(record, inverse.contrasts(record))
    assert f"against {GAUSS_NEWTON}, covered: -50 %: not resolved, 1 run(s)" in text
    assert f"against {LIFTED}, tissue: -50 %" in text and len(text.splitlines()) == 2


@pytest.mark.parametrize(
    ("covered", "tissue", "words"),
    [
        (0.4, 0.8, ["met", "met", "met", "met"]),
        (0.7, 0.9, ["met", "not met", "met", "not met"]),
        (0.9, 0.95, ["not met"] * 4),
        (1.5, 1.5, ["not met"] * 4),
    ],
)
def test_targets_stand_as_the_effect_lies(covered, tissue, words):
    """Must 20 and 8 per cent below Gauss-Newton, aim 50 and 15: shares of 0.8 and 0.92, 0.5 and 0.85."""
    table = inverse.targets(compared(covered, tissue), NETWORK)
    assert table["asked"].tolist()[:4] == ["must 20 or more", "aim 50 or more", "must 8 or more", "aim 15 or more"]
    assert table["standing"].tolist()[:4] == words
    assert table["found"][0].startswith(f"{100 * (1 - covered):.3g} [")


def test_targets_of_skill_stand_by_their_own_limits():
    """0.5 is more than 0.35 and less than 0.75."""
    assert inverse.targets(compared(0.4), NETWORK)["standing"].tolist()[4:] == ["met", "not met"]


def test_targets_are_not_resolved_where_the_interval_holds_the_limit():
    shares = np.array([[0.7], [0.9], [0.8]])
    record = judged(errors(NETWORK, shares * PHANTOMS), errors(GAUSS_NEWTON, PHANTOMS))
    assert inverse.targets(record, NETWORK)["standing"][0] == "not resolved"


def test_targets_of_one_run_are_not_resolved():
    assert set(inverse.targets(compared(0.1, seeds=1), NETWORK)["standing"]) == {"not resolved"}


def test_targets_without_gauss_newton_are_not_computed():
    table = inverse.targets(compared(0.4, reference=LIFTED), NETWORK)
    assert table["standing"].tolist() == ["not computed"] * 4 + ["met", "not met"] and set(table["found"][:4]) == {"--"}


def test_asked_has_every_network_with_every_table():
    record = compared(0.4)

    def other(record, arm):
        return pd.DataFrame([inverse.asking("what", "1 or more", inverse.Interval(2, 2, 2, 3), (1, np.inf))])

    table = inverse.asked(record, (NETWORK, GROWN), (inverse.targets, other))
    assert table["network"].tolist() == [NETWORK] * 7 + [GROWN] * 7 and table.index.is_unique
    assert table["standing"].tolist()[6::7] == ["met", "met"]
    assert table["standing"].tolist()[7:13] == ["not computed"] * 6  # it was not judged


def test_record_of_controls_alone_has_no_contrasts():
    """All networks failed: the tables are empty and the answer says so."""
    record = judged(errors(LIFTED, PHANTOMS), errors(BEST, PHANTOMS))
    found = inverse.contrasts(record)
    assert found.empty and inverse.contrasts_table(found).empty and inverse.answer(record, found) == "* Not computed."


def test_inclusions_of_a_record_without_any_lesion_have_no_operating_point():
    record = judged(errors(LIFTED, PHANTOMS))
    assert inverse_inclusions.operating(record).empty
    assert all(table.empty for table in inverse_inclusions.lesion_curves(record))
