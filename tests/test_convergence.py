"""Time to target against cases counted by hand, closed forms and statsmodels."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as reference
from statsmodels.duration import survfunc

from dotlib import convergence
from dotlib.convergence import Speedup, Times
from dotlib.stats import Interval

NAN = math.nan


def arrivals(epochs, reached=None):
    return Times(np.array(epochs), np.ones(len(epochs), bool) if reached is None else np.array(reached, bool))


def test_time_to_target_is_the_first_epoch_at_or_below():
    curves = [
        [0.9, 0.5, 0.4, 0.2],
        [0.3, 0.9, 0.9, 0.9],  # once is enough
        [0.9, 0.5, 0.45, 0.41],
        [0.9, 0.4, NAN, NAN],  # failed after it had arrived
        [0.9, NAN, NAN, NAN],
        [NAN, 0.1, 0.1, 0.1],
    ]
    times = convergence.time_to_target(curves, 0.4)
    assert times.epochs.tolist() == [3, 1, 4, 2, 4, 2]
    assert times.reached.tolist() == [True, True, False, True, False, True]


@pytest.mark.parametrize("target", [0.02, 0.3])
def test_time_to_target_inverts_an_exponential_decay(target):
    rates = np.array([0.03, 0.1, 0.7])
    curves = np.exp(-rates[:, None] * np.arange(1, 61))
    times = convergence.time_to_target(curves, target)
    needed = np.ceil(-np.log(target) / rates)
    assert times.epochs.tolist() == np.minimum(needed, 60).tolist()
    assert times.reached.tolist() == (needed <= 60).tolist()


def test_kaplan_meier_is_the_product_by_hand():
    # 6 runs: arrivals at 2, 2, 5; ends at 3 and 6; at 5 three are at risk
    curve = convergence.kaplan_meier(arrivals([2, 3, 5, 2, 6, 6], [1, 0, 1, 1, 0, 0]))
    assert curve["epoch"].tolist() == [0, 2, 3, 5, 6]
    assert curve["share"].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 - 4 / 6 * 2 / 3, 1 - 4 / 9])


def test_kaplan_meier_without_censoring_is_the_empirical_share():
    curve = convergence.kaplan_meier(arrivals([4, 7, 7, 9]))
    assert curve["share"].tolist() == [0, 0.25, 0.75, 1]


def test_kaplan_meier_stays_at_0_where_nobody_arrives():
    curve = convergence.kaplan_meier(arrivals([30, 30, 30], [0, 0, 0]))
    assert curve["share"].tolist() == [0, 0]


def random_times(rng, latest, runs, share):
    return arrivals(rng.integers(1, latest, runs), rng.random(runs) < share)


def test_kaplan_meier_agrees_with_statsmodels():
    times = random_times(np.random.default_rng(0), 25, 40, 0.7)
    theirs = survfunc.SurvfuncRight(times.epochs, times.reached)
    ours = convergence.kaplan_meier(times).set_index("epoch")["share"]
    assert ours.loc[theirs.surv_times].to_numpy() == pytest.approx(1 - theirs.surv_prob)
    assert len(theirs.surv_times) > 10


def observed_less_expected(times, chosen):
    """Arrivals among the chosen runs, less those expected if all runs were one arm."""
    inside = np.isin(np.arange(len(times.epochs)), chosen)
    difference = 0.0
    for epoch in np.unique(times.epochs[times.reached]):
        risk, now = times.epochs >= epoch, (times.epochs == epoch) & times.reached
        difference += (now & inside).sum() - now.sum() * (risk & inside).sum() / risk.sum()
    return difference


@pytest.mark.parametrize("runs", [(3, 3), (5, 5), (3, 6)])
def test_logrank_ranks_observed_less_expected_among_all_ways(runs):
    rng, (n, m) = np.random.default_rng(runs), runs
    a, b = random_times(rng, 12, n, 0.8), random_times(rng, 30, m, 0.8)
    both = Times(*(np.concatenate(x) for x in zip(a, b, strict=True)))
    every = [observed_less_expected(both, chosen) for chosen in itertools.combinations(range(n + m), n)]
    tails = [np.mean(np.array(every) * sign >= every[0] * sign - 1e-9) for sign in (1, -1)]
    assert convergence.logrank(a, b) == pytest.approx(min(1, 2 * min(tails)))
    assert convergence.logrank(b, a) == pytest.approx(convergence.logrank(a, b))


def test_logrank_nears_the_law_of_many_runs():
    rng, found = np.random.default_rng(0), []
    for runs in [10] * 10 + [12] * 10:  # all ways, some of them
        a, b = random_times(rng, 40, runs, 0.8), random_times(rng, 55, runs, 0.8)
        epochs, reached = (np.concatenate(x) for x in zip(a, b, strict=True))
        theirs = survfunc.survdiff(epochs, reached, np.repeat([0, 1], runs))[1]
        assert scipy_logrank(a, b) == pytest.approx(theirs)
        found.append((convergence.logrank(a, b), theirs))
    ours, theirs = np.array(found).T
    assert abs(ours - theirs).max() < 0.12 and np.corrcoef(ours, theirs)[0, 1] > 0.98


def scipy_logrank(a, b):
    of = [reference.CensoredData.right_censored(x.epochs, ~x.reached) for x in (a, b)]
    return reference.logrank(*of).pvalue


def test_logrank_says_nothing_where_no_two_runs_differ():
    nobody, at_once = arrivals([9] * 5, [0] * 5), arrivals([9] * 5)
    for pair in ((nobody, nobody), (at_once, at_once)):
        assert math.isnan(convergence.logrank(*pair))
    assert convergence.logrank(arrivals([3] * 5), at_once) == pytest.approx(2 / math.comb(10, 5))


def test_speedup_is_the_paired_t_on_logarithms():
    a, b = np.array([10, 12, 9, 15]), np.array([14, 15, 13, 17])
    ratio, reading = convergence.speedup(arrivals(a), arrivals(b), level=0.9)
    low = reference.ttest_rel(np.log(b - 1), np.log(a)).confidence_interval(0.9).low  # b in (b - 1, b], at its least
    high = reference.ttest_rel(np.log(b), np.log(a - 1)).confidence_interval(0.9).high
    assert ratio[:3] == pytest.approx((reference.gmean(b / a), math.exp(low), math.exp(high)))
    assert (ratio.n, reading) == (4, "measured")
    back = convergence.speedup(arrivals(b), arrivals(a), level=0.9).ratio
    assert (1 / back.estimate, 1 / back.high, 1 / back.low) == pytest.approx(ratio[:3])


def test_speedup_is_known_to_an_epoch_where_seeds_agree():
    ratio = convergence.speedup(arrivals([20] * 5), arrivals([26] * 5)).ratio
    assert ratio[:3] == pytest.approx((26 / 20, 25 / 20, 26 / 19))
    assert convergence.speedup(arrivals([1, 1]), arrivals([4, 4])).ratio[1:3] == pytest.approx((3.0, math.inf))


def test_speedup_is_a_bound_where_one_arm_is_censored():
    a, b = arrivals([10, 12, 9]), arrivals([14, 20, 20], [1, 0, 0])
    measured = convergence.speedup(a, arrivals(b.epochs)).ratio
    assert convergence.speedup(a, b) == Speedup(measured._replace(high=math.inf), "at least")
    bound = convergence.speedup(b, a)
    assert bound.reading == "at most" and bound.ratio.low == 0
    assert (bound.ratio.estimate, bound.ratio.high) == pytest.approx((1 / measured.estimate, 1 / measured.low))


def test_speedup_is_not_resolved_where_both_arms_are_censored():
    a, b = arrivals([10, 20, 9], [1, 0, 1]), arrivals([14, 18, 20], [1, 1, 0])
    ratio, reading = convergence.speedup(a, b)
    assert math.isnan(ratio.estimate) and ratio[1:] == (0, math.inf, 3) and reading == "not resolved"


def test_speedup_of_one_seed_has_no_limits():
    ratio, _ = convergence.speedup(arrivals([10]), arrivals([15]))
    assert ratio == (pytest.approx(1.5), 0, math.inf, 1)


def test_time_saved_is_the_share_of_the_slower_arms_epochs():
    saved = convergence.time_saved(Interval(1.25, 1.0, 2.0, 5))
    assert saved == (pytest.approx(20), 0, 50, 5)
    assert convergence.time_saved(Interval(0.8, 0.0, math.inf, 5)) == (pytest.approx(-25), -math.inf, 100, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: convergence.time_to_target([0.3, 0.2], 0.1), "runs, epochs"),
        (lambda: convergence.time_to_target(np.zeros((0, 3)), 0.1), "runs, epochs"),
        (lambda: convergence.time_to_target([[0.3, 0.2]], NAN), "target nan"),
        (lambda: convergence.speedup(arrivals([3]), arrivals([3, 4])), "paired seeds"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
