"""The statistics against scipy, statsmodels, published numbers and simulations with known truth."""

import math

import numpy as np
import pytest
from scipy import stats as reference
from scipy.integrate import quad
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from dotlib import stats
from dotlib.stats import Interval


@pytest.fixture
def errors():
    return np.exp(np.random.default_rng(0).normal(-2, 0.3, (2, 6, 40)))


def test_seeds_interval_is_students_over_seed_means(errors):
    means = errors[0].mean(1)
    expected = reference.ttest_1samp(means, 0).confidence_interval(0.9)
    found = stats.seeds_interval(errors[0], level=0.9)
    assert found[1:3] == pytest.approx((expected.low, expected.high))
    assert (found.estimate, found.n) == (pytest.approx(means.mean()), 6)
    assert stats.seeds_interval(means, 0.9) == pytest.approx(found)


def test_seeds_interval_leaves_nan_phantoms_out(errors):
    holed = errors[0].copy()
    holed[0, 3] = np.nan
    means = [np.delete(holed[0], 3).mean(), *holed[1:].mean(1)]
    assert stats.seeds_interval(holed) == pytest.approx(stats.seeds_interval(means))
    holed[2] = np.nan
    with pytest.raises(ValueError, match="seed 2"):
        stats.seeds_interval(holed)


def test_one_seed_resolves_nothing():
    assert stats.seeds_interval([[0.1, 0.2]]) == (pytest.approx(0.15), -math.inf, math.inf, 1)
    contrast = stats.paired_contrast([[0.1, 0.1]], [[0.2, 0.2]])
    assert contrast.effect[:3] == (pytest.approx(-50), -100, math.inf)
    assert math.isnan(contrast.dz) and stats.verdict(contrast.effect) == "not resolved"


def test_phantom_interval_is_bca_and_replays(errors):
    phantoms = errors[0].mean(0)
    expected = reference.bootstrap((phantoms,), np.mean, method="BCa", rng=np.random.default_rng(5)).confidence_interval
    one, two = (stats.phantom_interval(errors[0], np.random.default_rng(5)) for _ in range(2))
    assert one == two
    assert one[1:] == (pytest.approx(expected.low), pytest.approx(expected.high), 40)
    assert one.estimate == pytest.approx(phantoms.mean())


def test_phantom_interval_leaves_nan_phantoms_out(errors):
    holed = errors[0].copy()
    holed[:, 7] = np.nan
    kept = stats.phantom_interval(np.delete(holed, 7, axis=1), np.random.default_rng(1))
    assert stats.phantom_interval(holed, np.random.default_rng(1)) == kept
    assert stats.phantom_interval([0.3, 0.3, 0.3], np.random.default_rng(1)) == (*[pytest.approx(0.3)] * 3, 3)
    with pytest.raises(ValueError, match="1 phantoms"):
        stats.phantom_interval([0.1, np.nan], np.random.default_rng(1))


def test_paired_contrast_agrees_with_the_paired_t_test(errors):
    a, b = errors[0] * 0.9, errors[1]
    logs = np.log(a).mean(1), np.log(b).mean(1)
    expected = reference.ttest_rel(*logs).confidence_interval(0.95)
    found = stats.paired_contrast(a, b)
    assert np.log1p(np.array(found.effect[1:3]) / 100) == pytest.approx((expected.low, expected.high))
    difference = logs[0] - logs[1]
    assert found.effect.estimate == pytest.approx(100 * (np.exp(difference.mean()) - 1))
    assert found.dz == pytest.approx(reference.ttest_rel(*logs).statistic / math.sqrt(6))
    assert found.p == pytest.approx(reference.ttest_rel(*logs).pvalue)
    assert (found.wins, found.effect.n) == ((difference < 0).sum(), 6)


def test_paired_contrast_reads_a_constant_ratio_exactly(errors):
    found = stats.paired_contrast(0.8 * errors[0], errors[0])
    assert found.effect[:3] == pytest.approx((-20, -20, -20)) and found.wins == 6
    back = stats.paired_contrast(errors[0], 0.8 * errors[0])
    assert back.effect.estimate == pytest.approx(25) and stats.verdict(back.effect) == "worse"
    same = stats.paired_contrast(errors[0], errors[0])
    assert same.effect[:3] == (0, 0, 0) and math.isnan(same.dz) and same.wins == 0


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_paired_contrast_refuses_what_has_no_logarithm(errors, bad):
    a = errors[0].copy()
    a[1, 1] = bad
    with pytest.raises(ValueError, match="positive and finite"):
        stats.paired_contrast(a, errors[1])
    with pytest.raises(ValueError, match="equal shapes"):
        stats.paired_contrast(errors[0][:5], errors[1])


@pytest.mark.parametrize(
    ("limits", "word"),
    [((-3, -1), "better"), ((1, 3), "worse"), ((-1, 1), "not resolved"), ((-1, 0), "not resolved")],
)
def test_verdict_needs_an_interval_without_zero(limits, word):
    assert stats.verdict(Interval(0.0, *limits, 5)) == word


def test_detectable_difference_gives_the_planned_seeds():
    assert stats.detectable_difference(0.07, 6) < 10 < stats.detectable_difference(0.07, 5)
    assert stats.detectable_difference(0.07, 18) < 5 < stats.detectable_difference(0.07, 16)
    assert (
        stats.detectable_difference(0.07, 10, alpha=0.05 / 8) < 10 < stats.detectable_difference(0.07, 9, 0.8, 0.05 / 8)
    )


def rejection(dz, n, alpha=0.05):
    """Power of the two-sided t test: the normal law's two tails, integrated over the law of the sample's sd."""
    limit, sd = reference.t.ppf(1 - alpha / 2, n - 1), reference.chi(n - 1, scale=1 / math.sqrt(n - 1))
    centre = dz * math.sqrt(n)

    def tails(s):
        return (reference.norm.sf(limit * s - centre) + reference.norm.cdf(-limit * s - centre)) * sd.pdf(s)

    return quad(tails, 0, sd.ppf(1 - 1e-12), epsabs=1e-9, limit=200)[0]


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_detectable_difference_inverts_the_noncentral_t(n):
    shift = -math.log1p(-stats.detectable_difference(0.2, n, power=0.7) / 100) / 0.2
    assert rejection(shift, n) == pytest.approx(0.7, abs=1e-6)


def test_detectable_difference_is_found_as_often_as_promised():
    sd, n, runs = 0.07, 6, 4000
    effect = -math.log1p(-stats.detectable_difference(sd, n) / 100)
    rng = np.random.default_rng(3)
    base = rng.normal(0, 0.3, (runs, n))
    arm = base - effect + rng.normal(0, sd, (runs, n))
    better = sum(
        stats.verdict(stats.paired_contrast(np.exp(a), np.exp(b)).effect) == "better"
        for a, b in zip(arm, base, strict=True)
    )
    interval = reference.binomtest(better, runs).proportion_ci(0.999)
    assert interval.low < 0.8 < interval.high


@pytest.mark.parametrize("n", [2, 5, 18])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_power_inverts_the_detectable_difference(n, alpha):
    found = stats.detectable_difference(1e-3, n, power=0.6, alpha=alpha)
    assert stats.power(found, 1e-3, n, alpha) == pytest.approx(0.6)


@pytest.mark.parametrize("dz", [5, 20, 40])  # statsmodels 0.14 has NaN at the last two
def test_power_of_two_seeds_is_found_in_simulation(dz):
    draws = np.random.default_rng(6).normal(dz, 1, (20_000, 2))
    found = int((reference.ttest_1samp(draws, 0, axis=1).pvalue < 0.01).sum())
    interval = reference.binomtest(found, 20_000).proportion_ci(0.999)
    assert interval.low < stats.power(-100 * math.expm1(-dz * 0.01), 0.01, 2, 0.01) < interval.high


@pytest.mark.parametrize("effect", [3.0, -3.0, 0.1])
def test_power_is_the_noncentral_t_on_both_sides(effect):
    expected = rejection(math.log(1 - effect / 100) / 0.05, 5, 0.01)
    assert stats.power(effect, 0.05, 5, 0.01) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("shift", [0.0, 0.03, -0.045, 0.2])
def test_equivalence_agrees_with_statsmodels(errors, shift):
    a, b = errors[1] * math.exp(shift), errors[1] * errors[0] ** 0.2
    b *= np.exp(np.log(errors[1]).mean() - np.log(b).mean())
    limit = math.log(1.05)
    logs = np.log(a).mean(1), np.log(b).mean(1)
    found = stats.equivalence(a, b, 5)
    assert found.p == pytest.approx(ttost_paired(*logs, -limit, limit)[0], rel=1e-6)
    expected = reference.ttest_rel(*logs).confidence_interval(0.9)
    assert np.log1p(np.array(found.effect[1:3]) / 100) == pytest.approx((expected.low, expected.high))
    assert (found.verdict == "equivalent") == (found.p < 0.05)


def test_equivalence_reads_its_margin_alike_from_both_arms(errors):
    base = errors[0]
    for ratio, word in [(1.049, "equivalent"), (1.051, "not equivalent"), (1.0, "equivalent")]:
        one, two = stats.equivalence(base * ratio, base, 5), stats.equivalence(base, base * ratio, 5)
        assert one.verdict == two.verdict == word
    noisy = base * np.exp(np.linspace(-0.3, 0.3, 6))[:, None]
    assert stats.equivalence(noisy, base, 5).verdict == "not resolved"
    assert stats.equivalence(base[:1], base[:1], 5).verdict == "not resolved"


def test_probability_of_improvement_counts_pairs_of_runs():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 6, (4, 7)), rng.integers(0, 6, (3, 7))
    wins = [(x < y) + 0.5 * (x == y) for p in range(7) for x in a[:, p] for y in b[:, p]]
    assert stats.probability_of_improvement(a, b).estimate == pytest.approx(np.mean(wins))
    ranks = [reference.mannwhitneyu(b[:, p], a[:, p]).statistic / 12 for p in range(7)]
    assert stats.probability_of_improvement(a, b).estimate == pytest.approx(np.mean(ranks))


def test_probability_of_improvement_has_newcombes_limits():
    a, b = np.array([1.0, 2, 3, 7, 9]), np.array([4.0, 5, 6, 8])
    share, low, high, n = stats.probability_of_improvement(a, b, level=0.9)
    assert (share, n) == (pytest.approx(13 / 20), 4)
    for x in (low, high):  # Hanley and McNeil's variance at the limit, both (runs - 1) replaced by their mean
        q1, q2, extra = x / (2 - x), 2 * x * x / (1 + x), (5 + 4) / 2 - 1
        variance = (x * (1 - x) + extra * (q1 - x * x) + extra * (q2 - x * x)) / 20
        assert abs(share - x) == pytest.approx(reference.t.ppf(0.95, 7) * math.sqrt(variance), abs=1e-6)
    back = stats.probability_of_improvement(b, a, level=0.9)
    assert (1 - back.high, 1 - back.low) == pytest.approx((low, high), abs=1e-6)


def test_probability_of_improvement_stays_open_where_every_run_is_better():
    few, more = (stats.probability_of_improvement(np.arange(n), np.arange(n) + 100.0) for n in (3, 10))
    assert few.estimate == few.high == more.estimate == 1
    assert 0.3 < few.low < 0.5 < more.low < 0.9  # 3 + 3 runs separate by chance in 10 % of cases
    assert stats.probability_of_improvement([1.0, 1, 1], [1.0, 1, 1]).estimate == 0.5


@pytest.mark.parametrize(
    ("limits", "verdict", "change", "exceeded"),
    [
        ((16, 22), "confirmed", "better", False),
        ((15, 40), "confirmed", "better", False),
        ((26, 40), "confirmed", "better", True),
        ((25, 40), "confirmed", "better", False),
        ((14.9, 30), "not resolved", "better", False),
        ((-5, 15), "not resolved", "not resolved", False),
        ((3, 14.9), "refuted", "better", False),
        ((-3, 4), "refuted", "not resolved", False),
        ((-30, -4), "refuted", "worse", False),
        ((-math.inf, math.inf), "not resolved", "not resolved", False),
        ((16, math.inf), "confirmed", "better", False),
        ((-math.inf, 10), "refuted", "not resolved", False),
        ((math.nan, math.nan), "not resolved", "not resolved", False),
        ((math.nan, 10), "not resolved", "not resolved", False),
        ((16, math.nan), "not resolved", "better", False),
    ],
)
def test_judge_reads_a_promise_of_15_to_25(limits, verdict, change, exceeded):
    assert stats.judge(Interval(math.nan, *limits, 5), 15, 25) == (verdict, change, exceeded)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 7), (40, 40)])
def test_wilson_agrees_with_statsmodels(k, n):
    found = stats.wilson(k, n)
    assert found[1:3] == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-9)
    assert (found.estimate, found.n) == (k / n, n)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.wilson(3, 2), "3 of 2"),
        (lambda: stats.wilson(0, 0), "n >= 1"),
        (lambda: stats.detectable_difference(0.07, 1), "2 seeds"),
        (lambda: stats.detectable_difference(0.0, 5), "positive sd"),
        (lambda: stats.detectable_difference(0.07, 5, power=1.0), "alpha < power < 1"),
        (lambda: stats.power(0, 0.07, 5), "not 0"),
        (lambda: stats.equivalence_power(0.07, 1, 5), "1 seeds"),
        (lambda: stats.equivalence_power(0.07, 5, 0), "margin 0"),
        (lambda: stats.power(100, 0.07, 5), "below 100"),
        (lambda: stats.power(10, np.nan, 5), "positive sd"),
        (lambda: stats.power(10, 0.07, 1), "2 seeds"),
        (lambda: stats.equivalence([1.0, 2], [1.0, 2], 0), "margin > 0"),
        (lambda: stats.equivalence([1.0, 2], [1.0, 2], 5, 0.5), "alpha < 0.5"),
        (lambda: stats.judge(Interval(0, 0, 0, 3), 25, 15), "low <= high"),
        (lambda: stats.probability_of_improvement([1.0, np.nan], [1.0, 2]), "without NaN"),
        (lambda: stats.probability_of_improvement(np.ones((3, 4)), np.ones((3, 5))), "shapes"),
        (lambda: stats.probability_of_improvement([], [1.0]), "vectors"),
        (lambda: stats.seeds_interval(np.zeros((2, 2, 2))), "shape"),
        (lambda: stats.seeds_interval([]), "shape"),
        (lambda: stats.seeds_interval([np.inf, 1.0]), "finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
