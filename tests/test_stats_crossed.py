"""The crossed contrast against an analysis of variance by statsmodels, its limiting cases and its symmetries."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from dotlib import stats, stats_crossed


def table(rng, seeds, phantoms, seed=0.05, phantom=0.15, rest=0.1):
    """Two arms' errors (R, P) whose log ratio has these standard deviations."""
    base = rng.normal(-2, 0.3, (seeds, phantoms))
    difference = rng.normal(0, seed, (seeds, 1)) + rng.normal(0, phantom, phantoms)
    return np.exp(base + difference + rng.normal(0, rest, (seeds, phantoms))), np.exp(base)


@pytest.fixture
def errors():
    return table(np.random.default_rng(0), 5, 12)


def analysis(a, b):
    """statsmodels' two-way analysis of variance of the log ratio: mean squares (seed, phantom, rest)."""
    runs, phantoms = np.indices(a.shape)
    frame = pd.DataFrame({"d": np.log(a / b).ravel(), "seed": runs.ravel(), "phantom": phantoms.ravel()})
    found = anova_lm(ols("d ~ C(seed) + C(phantom)", frame).fit())
    return (found["sum_sq"] / found["df"]).to_numpy()


def logs(effect):
    return np.log1p(np.array(effect[:3]) / 100)


def test_crossed_contrast_is_the_satterthwaite_t_of_the_analysis_of_variance(errors):
    seed, phantom, rest = analysis(*errors)
    total = seed + phantom - rest
    df = total**2 / (seed**2 / 4 + phantom**2 / 11 + rest**2 / 44)
    difference = np.log(errors[0] / errors[1])
    law = reference.t(df, loc=difference.mean(), scale=math.sqrt(total / 60))
    found = stats_crossed.crossed_contrast(*errors, level=0.9)
    assert phantom > rest and found.df == pytest.approx(df)
    assert logs(found.effect) == pytest.approx([difference.mean(), *law.interval(0.9)])
    assert found.p == pytest.approx(2 * min(law.cdf(0), law.sf(0)))


def test_components_are_those_of_the_analysis_of_variance(errors):
    seed, phantom, rest = analysis(*errors)
    expected = math.sqrt((seed - rest) / 12), math.sqrt((phantom - rest) / 5), math.sqrt(rest)
    assert stats_crossed.components(*errors) == pytest.approx(expected)


def test_components_find_the_truth_in_a_large_table():
    found = stats_crossed.components(*table(np.random.default_rng(1), 300, 400))
    assert found == pytest.approx((0.05, 0.15, 0.1), rel=0.15)
    alike = stats_crossed.components(*table(np.random.default_rng(1), 4, 9, 0, 0, 0))
    assert alike == pytest.approx((0, 0, 0), abs=1e-12)


def test_without_a_phantom_component_it_is_the_paired_t_over_seeds():
    a, b = table(np.random.default_rng(2), 6, 20)
    a *= np.exp(-np.log(a / b).mean(axis=0))  # every phantom's mean difference is 0
    a *= np.exp(0.04)
    found, paired = stats_crossed.crossed_contrast(a, b), stats.paired_contrast(a, b)
    assert found.effect == pytest.approx(paired.effect) and found.p == pytest.approx(paired.p)
    assert found.df == 5
    assert (found.sd, found.dz, found.wins) == pytest.approx((paired.sd, paired.dz, paired.wins))


def test_without_seed_and_rest_it_is_the_t_over_phantoms():
    b = np.full((4, 15), 0.2)
    a = b * np.exp(np.random.default_rng(3).normal(0.03, 0.1, 15))
    expected = reference.ttest_1samp(np.log(a / b)[0], 0)
    found = stats_crossed.crossed_contrast(a, b)
    assert found.df == pytest.approx(14) and found.p == pytest.approx(expected.pvalue)
    assert logs(found.effect)[1:] == pytest.approx(expected.confidence_interval(0.95))


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_it_never_claims_more_than_the_paired_t_over_seeds(seeds):
    rng = np.random.default_rng(seeds)
    for _ in range(200):
        a, b = table(rng, seeds, 16, *rng.choice([0.0, 0.02, 0.1], 2), 0.05)
        a *= np.exp(rng.normal(0, 0.1))
        found, paired = stats_crossed.crossed_contrast(a, b), stats.paired_contrast(a, b)
        assert found.p >= paired.p * (1 - 1e-9)
        assert found.effect.low <= paired.effect.low + 1e-9 and found.effect.high >= paired.effect.high - 1e-9
        assert (found.p < 0.05) == (stats.verdict(found.effect) != "not resolved")


def test_where_satterthwaite_claims_more_the_seeds_decide():
    # seed means 0.1 -+ 0.04: t over 2 df is 4.33, p about 0.05; Satterthwaite's own df are 2.8
    phantoms = np.linspace(-0.05, 0.05, 10)
    difference = 0.1 + np.array([[-0.04], [0.0], [0.04]]) + phantoms
    a, b = np.exp(difference), np.ones((3, 10))
    seed, phantom, rest = analysis(a, b)
    total = seed + phantom - rest
    alone = reference.t(total**2 / (seed**2 / 2 + phantom**2 / 9), scale=math.sqrt(total / 30))
    paired, found = stats.paired_contrast(a, b), stats_crossed.crossed_contrast(a, b)
    assert alone.ppf(0.975) < np.diff(logs(paired.effect)[1:]).item() / 2
    assert found.effect == pytest.approx(paired.effect) and found.df == 2
    assert found.p == pytest.approx(max(paired.p, 2 * alone.sf(0.1)))


def test_degrees_of_freedom_do_not_fall_below_those_of_a_part():
    # seed means almost alike and MS_phantom just above MS_rest: Satterthwaite's formula gives df 0.3
    rng = np.random.default_rng(7)
    rest = rng.normal(0, 0.1, (3, 8))
    rest -= rest.mean(axis=0) + rest.mean(axis=1, keepdims=True) - rest.mean()
    _, _, scale = analysis(np.exp(rest), np.ones((3, 8)))
    phantoms = np.tile([1.0, -1.0], 4)
    rest += math.sqrt(1.2 * scale / 3 * 7 / 8) * phantoms + [[-0.001], [0.0], [0.001]]
    seed, phantom, rest_square = analysis(np.exp(rest), np.ones((3, 8)))
    formula = (seed + phantom - rest_square) ** 2 / (seed**2 / 2 + phantom**2 / 7 + rest_square**2 / 14)
    found = stats_crossed.crossed_contrast(np.exp(rest), np.ones((3, 8)))
    assert formula < 1 and found.df == 2
    half = reference.t.ppf(0.975, 2) * math.sqrt((seed + phantom - rest_square) / 24)
    assert logs(found.effect)[2] == pytest.approx(rest.mean() + half)


def test_order_and_direction_do_not_matter(errors):
    a, b = errors
    found, back = stats_crossed.crossed_contrast(a, b), stats_crossed.crossed_contrast(b, a)
    assert logs(back.effect) == pytest.approx(-logs(found.effect)[[0, 2, 1]])
    assert (back.p, back.df, back.dz, back.wins) == pytest.approx((found.p, found.df, -found.dz, 5 - found.wins))
    rng = np.random.default_rng(5)
    rows, columns = rng.permutation(5)[:, None], rng.permutation(12)
    shuffled = stats_crossed.crossed_contrast(a[rows, columns], b[rows, columns])
    assert shuffled.effect == pytest.approx(found.effect) and shuffled[1:] == pytest.approx(found[1:])


def test_a_constant_ratio_and_a_single_seed(errors):
    b = np.full((3, 4), 0.5)
    found = stats_crossed.crossed_contrast(b * 0.8, b)
    assert found.effect[:3] == pytest.approx((-20, -20, -20)) and math.isnan(found.p) and found.wins == 3
    one = stats_crossed.crossed_contrast(errors[0][:1], errors[1][:1])
    assert one.effect[1:] == (-100, math.inf, 1) and math.isnan(one.p) and math.isnan(one.sd)
    assert stats.verdict(one.effect) == "not resolved"
    assert np.isnan(stats_crossed.components(errors[0][:1], errors[1][:1])).all()


def test_detectable_difference_has_the_limits_of_either_sample():
    found = stats_crossed.detectable_difference(stats_crossed.Components(0.07, 0.0, 0.08), 6, 64)
    assert found == pytest.approx(stats.detectable_difference(math.hypot(0.07, 0.01), 6))
    # phantoms alone: a t test over 64 of them; ever more seeds leave it there
    alone = stats.detectable_difference(0.15, 64)
    assert stats_crossed.detectable_difference(stats_crossed.Components(0, 0.15, 0), 5, 64) == pytest.approx(alone)
    many = stats_crossed.detectable_difference(stats_crossed.Components(0.07, 0.15, 0.05), 10_000, 64)
    assert many == pytest.approx(alone, rel=0.01) and many > alone


@pytest.mark.parametrize(
    ("sizes", "seeds", "phantoms"), [((0.1, 0.1, 0.1), 1, 64), ((0.1, 0.1, 0.1), 5, 1), ((0, 0, 0), 5, 64)]
)
def test_detectable_difference_names_what_it_needs(sizes, seeds, phantoms):
    with pytest.raises(ValueError, match="positive size"):
        stats_crossed.detectable_difference(stats_crossed.Components(*sizes), seeds, phantoms)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones(5), np.ones(5), "seeds, phantoms"),
        (np.ones((5, 1)), np.ones((5, 1)), "2 phantoms"),
        (np.ones((5, 3)), np.ones((5, 4)), "equal shapes"),
        (np.ones((5, 3)), np.zeros((5, 3)), "positive and finite"),
        (np.full((5, 3), np.nan), np.ones((5, 3)), "positive and finite"),
    ],
)
def test_bad_input_is_named(a, b, message):
    with pytest.raises(ValueError, match=message):
        stats_crossed.crossed_contrast(a, b)
