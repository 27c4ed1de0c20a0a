"""Time to target against cases counted by hand, closed forms and, where it is installed, lifelines."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from dotlib import convergence
from dotlib.convergence import Speedup, Times
from dotlib.stats import Interval, wilson

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
    assert convergence.reaching(times) == wilson(4, 6)


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
    assert curve["at_risk"].tolist() == [6, 6, 4, 3, 2]
    assert curve["share"].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 - 4 / 6 * 2 / 3, 1 - 4 / 9])
    # Greenwood's variance on the log-log scale at epoch 5
    survival, spread = 4 / 9, math.sqrt(2 / (6 * 4) + 1 / (3 * 2)) / abs(math.log(4 / 9))
    limits = [1 - survival ** math.exp(sign * 1.959964 * spread) for sign in (-1, 1)]
    assert curve.loc[3, ["low", "high"]].tolist() == pytest.approx(limits, rel=1e-5)


def test_kaplan_meier_without_censoring_is_the_empirical_share():
    curve = convergence.kaplan_meier(arrivals([4, 7, 7, 9]))
    assert curve["share"].tolist() == [0, 0.25, 0.75, 1]
    assert curve[["low", "high"]].isna().any(axis=1).tolist() == [True, False, False, True]


def test_kaplan_meier_stays_at_0_where_nobody_arrives():
    curve = convergence.kaplan_meier(arrivals([30, 30, 30], [0, 0, 0]))
    assert curve["share"].tolist() == [0, 0] and curve["low"].isna().all()


def test_kaplan_meier_agrees_with_lifelines():
    lifelines = pytest.importorskip("lifelines")
    rng = np.random.default_rng(0)
    times = arrivals(rng.integers(1, 25, 40), rng.random(40) < 0.7)
    theirs = lifelines.KaplanMeierFitter().fit(times.epochs, times.reached)
    ours = convergence.kaplan_meier(times).set_index("epoch")
    expected = theirs.survival_function_.iloc[:, 0].reindex(ours.index)
    assert 1 - ours["share"].to_numpy() == pytest.approx(expected.to_numpy())
    limits = 1 - theirs.confidence_interval_.reindex(ours.index).to_numpy()[:, ::-1]
    inner = ours["low"].notna()
    assert inner.sum() > 10 and ours.loc[inner, ["low", "high"]].to_numpy() == pytest.approx(limits[inner])


def test_logrank_is_observed_less_expected_by_hand():
    a, b = arrivals([1, 3]), arrivals([2, 4], [1, 0])
    # at risk (a, b) at epochs 1, 2, 3: (2, 2), (1, 2), (1, 1): expected in a 1/2 + 1/3 + 1/2
    z = (2 - 4 / 3) / math.sqrt(1 / 4 + 2 / 9 + 1 / 4)
    assert convergence.logrank(a, b) == pytest.approx(2 * reference.norm.sf(z))
    assert convergence.logrank(b, a) == pytest.approx(convergence.logrank(a, b))
    assert math.isnan(convergence.logrank(arrivals([5, 5], [0, 0]), arrivals([5, 5], [0, 0])))


def test_logrank_agrees_with_lifelines():
    statistics = pytest.importorskip("lifelines.statistics")
    rng = np.random.default_rng(1)
    a, b = (arrivals(rng.integers(1, m, 10), rng.random(10) < 0.8) for m in (20, 30))
    theirs = statistics.logrank_test(a.epochs, b.epochs, a.reached, b.reached)
    assert convergence.logrank(a, b) == pytest.approx(theirs.p_value)


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


def test_speedup_at_least_holds_when_the_censored_runs_go_on():
    rng, kept = np.random.default_rng(2), 0
    for _ in range(1000):
        a, b = np.exp(rng.normal(3, 0.2, 5)), np.exp(rng.normal(3.4, 0.3, 5))
        ended = Times(np.minimum(b, 30), b <= 30)
        ratio, reading = convergence.speedup(arrivals(a), ended)
        assert reading == ("measured" if (b <= 30).all() else "at least")
        kept += ratio.low <= math.exp(0.4)
    assert kept > 960  # at least one-sided 97.5 %, less three standard errors


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
