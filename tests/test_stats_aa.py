"""The A/A experiment: on runs of known components, against wrong judgements that it must catch, and on real runs."""

import functools
import gc
import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as reference

from dotlib import records, stats, stats_aa, stats_crossed
from dotlib.sections.optimisers import errors

LIMIT = {3: 0.08, 5: 0.07, 10: 0.07}  # on the upper limit of a test at 5 %
ARMS = ("stage1-onecycle", "stage1-adam")


def runs(count, phantoms=64, seed=0.05, rest=0.05, key=0):
    """Errors (R, P) of one arm: phantoms apart by 0.2, seed effects and a rest that differs between phantoms."""
    rng = np.random.default_rng([key, count, phantoms])
    scale = rest * np.geomspace(0.5, 2, phantoms)
    effects = rng.normal(-2, 0.2, phantoms) + rng.normal(0, seed, (count, 1))
    return np.exp(effects + scale * rng.normal(size=(count, phantoms)))


@functools.cache
def real(arm):
    """The ten recorded runs of an arm, (10, 64)."""
    table = errors(records.load(Path(__file__).parents[1] / "results" / "4.3-ends")).loc[arm].to_numpy()
    assert table.shape == (10, 64)
    return table


def paired(ratio):
    return stats.paired_contrast(ratio, np.ones_like(ratio)).p


def over_phantoms(ratio):
    """The forbidden test: phantoms of single runs as replicates."""
    return paired(ratio[0])


def rng(*key):
    return np.random.default_rng(key)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_normal_runs_give_the_nominal_rate(seeds):
    """Differences of normal runs: Student's t over seeds errs in 5 %, and the crossed t, never narrower, in no more."""
    table = runs(400)
    exact = stats_aa.false_discovery(table, seeds, rng=rng(1, seeds), p_value=paired)
    assert exact.low < 0.05 < exact.high
    crossed = stats_aa.false_discovery(table, seeds, rng=rng(2, seeds))
    assert crossed.low > 0.01 and crossed.high <= LIMIT[seeds]


def test_phantoms_of_single_runs_are_seen_to_be_no_replicates():
    """The spread of EVIDENCE.md: 0.07 between pairs of runs, 0.135 between phantoms of one pair, 100 phantoms."""
    generator, half = rng(3), np.sqrt(2)
    table = np.exp(generator.normal(0, 0.07 / half, (400, 1)) + generator.normal(0, 0.135 / half, (400, 100)))
    found = stats_aa.false_discovery(table, 1, rng=rng(4), p_value=over_phantoms)
    share = 0.135 / np.hypot(0.135, 10 * 0.07)  # standard error taken over the one that is true
    expected = 2 * reference.norm.sf(reference.norm.ppf(0.975) * share)
    assert found.low < expected < found.high and 0.68 < expected < 0.74


@pytest.mark.parametrize("interaction", [False, True])
def test_a_family_shares_its_reference(interaction):
    """Without Holm, at 5 % each: as in a simulation of normal seed means by scipy, and less than without sharing."""
    seeds, family = 5, 4
    means = rng(5).normal(size=(20_000, family + 1, seeds))
    p = reference.ttest_1samp(means[:, :-1] - means[:, -1:], 0, axis=2).pvalue
    expected = (p <= 0.05).any(axis=1).mean()
    table = runs(400, phantoms=4, rest=0.001)
    p_value = lambda ratio: paired(ratio) / family  # noqa: E731
    found = stats_aa.false_discovery(table, seeds, family, rng=rng(6), p_value=p_value, interaction=interaction)
    assert found.low < expected < found.high < 1 - 0.95**family


@pytest.mark.parametrize(("interaction", "arms"), [(False, 2), (True, 4)])
def test_an_interaction_varies_as_four_arms_do(interaction, arms):
    """The log of a paired ratio has the variance of as many runs as there are arms in it."""
    table, logs = runs(400), []
    keep = lambda ratio: logs.append(np.log(ratio)) or 1.0  # noqa: E731
    stats_aa.false_discovery(table, 5, 2, 500, rng=rng(12), p_value=keep, interaction=interaction)
    assert np.var(logs, axis=(0, 1)).mean() == pytest.approx(arms * np.var(np.log(table), axis=0).mean(), rel=0.05)


def test_arms_apart_on_these_phantoms_mislead_a_test_over_seeds_and_not_the_crossed_one():
    """A mean of 64 effects of the arms' own moves Student's t over ten seeds, which does not see it."""
    seeds, own, table = 10, 0.15 / np.sqrt(2), runs(400)
    options = {"seeds": seeds, "phantom": own}
    found = stats_aa.false_discovery(table, rng=rng(13), p_value=paired, **options)
    of_seeds, of_phantoms = np.var(np.log(table).mean(axis=1), ddof=1), own**2 / 64  # of one arm's mean
    wider = np.sqrt(1 + seeds * of_phantoms / of_seeds)
    expected = 2 * reference.t.sf(reference.t.ppf(0.975, seeds - 1) / wider, seeds - 1)
    assert found.low < expected < found.high and expected > 0.1
    crossed = stats_aa.false_discovery(table, rng=rng(14), **options)
    assert crossed.low < 0.05 and crossed.high <= LIMIT[seeds]


def test_the_rate_counts_families_in_which_holm_finds_something(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # statsmodels collects garbage in every call: 50 ms each
    table, alpha = runs(10, phantoms=8), 0.3
    rows, generator, found = stats_aa.deviations(table), rng(7), 0
    for _ in range(300):
        drawn = np.exp(stats_aa.new_runs(rows, (4, 5), generator))
        p = [stats_crossed.crossed_contrast(arm, drawn[-1]).p for arm in drawn[:-1]]
        found += (stats.holm(p) <= alpha).any()
    assert 0 < found < 300
    rate = stats_aa.false_discovery(table, 5, 3, 300, rng=rng(7), alpha=alpha)
    limits = reference.beta.ppf([0.025, 0.975], [found, found + 1], [301 - found, 300 - found])
    assert rate == pytest.approx((found / 300, *limits, 300, 5, 3))


def test_deviations_are_runs_without_what_they_share():
    table = runs(10)
    rows = stats_aa.deviations(table)
    assert rows.T @ rows / 10 == pytest.approx(np.cov(np.log(table).T))
    phantoms = rng(8).lognormal(size=64)
    assert stats_aa.deviations(table * phantoms) == pytest.approx(rows)


def test_new_runs_have_the_spread_of_the_real_ones():
    rows = stats_aa.deviations(runs(10, phantoms=6))
    drawn = stats_aa.new_runs(rows, (200_000,), rng(9))
    assert drawn.mean(axis=0) == pytest.approx(0, abs=1e-3)
    assert np.cov(drawn.T) == pytest.approx(rows.T @ rows / 10, rel=0.05, abs=1e-4)
    means, real_means = drawn.mean(axis=1), rows.mean(axis=1)
    fourth = 0.75 * np.mean(real_means**4)  # E cos^4 = 3/8 twice, and 6 E cos^2 sin^2 = 3/4 of both squares
    pairs = (np.sum(real_means**2) ** 2 - np.sum(real_means**4)) / 90
    assert np.mean(means**4) == pytest.approx(fourth + 0.75 * pairs, rel=0.02)


def test_no_run_is_drawn_twice_and_a_seed_replays():
    rows = stats_aa.deviations(runs(3))
    drawn = stats_aa.new_runs(rows, (9, 10), rng(10))
    assert len(np.unique(drawn.reshape(90, -1).round(9), axis=0)) == 90
    assert (stats_aa.new_runs(rows, (9, 10), rng(10)) == drawn).all()


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("arm", ARMS)
def test_real_runs_keep_the_error_rate(arm, seeds):
    assert stats_aa.false_discovery(real(arm), seeds, rng=rng(seeds, 1)).high <= LIMIT[seeds]


@pytest.mark.parametrize("interaction", [False, True])
def test_real_runs_keep_the_error_rate_of_a_family(interaction):
    assert stats_aa.false_discovery(real(ARMS[0]), 5, 8, rng=rng(5, 8), interaction=interaction).high <= LIMIT[5]


@pytest.mark.parametrize("arm", ARMS)
def test_real_single_runs_would_often_differ(arm):
    """As often as the standard error over phantoms, over the spread between runs, makes normal ones."""
    found = stats_aa.false_discovery(real(arm), 1, rng=rng(11), p_value=over_phantoms)
    share = stats_crossed.components(real(arm), np.ones((10, 64))).rest / 8 / np.log(real(arm)).mean(axis=1).std(ddof=1)
    expected = 2 * reference.norm.sf(reference.norm.ppf(0.975) * share)
    assert found.low > 0.4 and found.rate == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("arm", ARMS)
def test_real_runs_shared_out_between_two_arms_keep_the_error_rate(arm, seeds):
    """Without a model of new runs: all ways to share out the ten; the t over seeds, which the crossed never exceeds."""
    means, pairings = np.log(real(arm)).mean(axis=1), list(itertools.permutations(range(seeds)))
    differences = [
        means[list(one)] - means[list(other)][pairings]
        for one in itertools.combinations(range(10), seeds)
        for other in itertools.combinations(set(range(10)) - set(one), seeds)
    ]
    found = reference.ttest_1samp(np.concatenate(differences), 0, axis=1).pvalue <= 0.05
    assert np.mean(found) <= LIMIT[seeds]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.ones(5), "seeds, phantoms"),
        (runs(2), "3 differing runs"),
        (np.ones((5, 4)), "3 differing runs"),
        (runs(5)[:, :1], "2 phantoms"),
        (-runs(5), "positive and finite"),
        (np.full((5, 3), np.nan), "positive and finite"),
    ],
)
def test_runs_that_do_not_do_are_named(table, message):
    with pytest.raises(ValueError, match=message):
        stats_aa.false_discovery(table, 5, rng=rng(0))


@pytest.mark.parametrize("counts", [(0, 1, 10), (5, 0, 10), (5, 1, 0)])
def test_counts_below_one_are_refused(counts):
    with pytest.raises(ValueError, match="at least 1 of each"):
        stats_aa.false_discovery(runs(5), *counts, rng=rng(0))
