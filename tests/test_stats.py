"""The statistics against scipy, statsmodels, published numbers and simulations with known truth."""

import math

import numpy as np
import pytest
from scipy import stats as reference
from statsmodels.stats.proportion import proportion_confint

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


def test_phantom_interval_covers_the_mean_of_a_skewed_law():
    rng = np.random.default_rng(2)
    sets = rng.lognormal(0, 0.5, (300, 60))
    intervals = [stats.phantom_interval(values, rng, resamples=400) for values in sets]
    covered = sum(i.low <= math.exp(0.125) <= i.high for i in intervals)
    assert 0.89 < covered / 300 < 0.98


def test_paired_contrast_agrees_with_the_paired_t_test(errors):
    a, b = errors[0] * 0.9, errors[1]
    logs = np.log(a).mean(1), np.log(b).mean(1)
    expected = reference.ttest_rel(*logs).confidence_interval(0.95)
    found = stats.paired_contrast(a, b)
    assert np.log1p(np.array(found.effect[1:3]) / 100) == pytest.approx((expected.low, expected.high))
    difference = logs[0] - logs[1]
    assert found.effect.estimate == pytest.approx(100 * (np.exp(difference.mean()) - 1))
    assert found.dz == pytest.approx(reference.ttest_rel(*logs).statistic / math.sqrt(6))
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


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_detectable_difference_inverts_the_noncentral_t(n):
    shift = -math.log1p(-stats.detectable_difference(0.2, n, power=0.7) / 100) / 0.2
    limit = reference.t.ppf(0.975, n - 1)
    law = reference.nct(n - 1, shift * math.sqrt(n))
    assert law.sf(limit) + law.cdf(-limit) == pytest.approx(0.7, abs=1e-4)


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
        (lambda: stats.seeds_interval(np.zeros((2, 2, 2))), "shape"),
        (lambda: stats.seeds_interval([]), "shape"),
        (lambda: stats.seeds_interval([np.inf, 1.0]), "finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
