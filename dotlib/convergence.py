"""Epochs until a validation error reaches a target; runs that miss it are right-censored at their last epoch."""

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats as survival

from .stats import Interval, seeds_interval, wilson


class Times(NamedTuple):
    """Per run: epochs needed, (R,), and whether the target was reached, (R,); else the epochs are those it had."""

    epochs: np.ndarray
    reached: np.ndarray


class Speedup(NamedTuple):
    """Ratio of arm b's epochs to arm a's (above 1: a is faster), and how to read it: 'measured', 'at least', 'at most'
    or 'not resolved'."""

    ratio: Interval
    reading: str


def time_to_target(curves: ArrayLike, target: float) -> Times:
    """First epoch, counted from 1, whose validation error is at or below the target; curves (R, E), lower is better.

    NaN (a failed run) never reaches it. Raises ValueError unless curves are (R, E) and the target is finite.
    """
    curves = np.asarray(curves, dtype=float)
    if curves.ndim != 2 or curves.size == 0 or not np.isfinite(target):
        raise ValueError(f"curves of shape {curves.shape}, target {target}: (runs, epochs) and a number are needed")
    below = curves <= target
    reached = below.any(axis=1)
    return Times(np.where(reached, below.argmax(axis=1) + 1, curves.shape[1]), reached)


def reaching(times: Times, level: float = 0.95) -> Interval:
    """Share of the runs that reach the target, with Wilson's interval."""
    return wilson(int(times.reached.sum()), len(times.reached), level)


def _censored(times: Times) -> survival.CensoredData:
    return survival.CensoredData.right_censored(times.epochs, ~times.reached)


def kaplan_meier(times: Times, level: float = 0.95) -> pd.DataFrame:
    """Share of runs that have reached the target by an epoch, a step function: epoch, share, low, high, at_risk.

    Kaplan and Meier (1958) with log-log limits (Kalbfleisch and Prentice), NaN where the share is 0 or 1; a row at
    epoch 0 and one at each epoch where a run arrives or ends.
    """
    curve = survival.ecdf(_censored(times)).sf
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.filterwarnings("ignore", "The confidence interval is undefined", RuntimeWarning)
        limits = curve.confidence_interval(level, method="log-log")
    epochs = np.unique(times.epochs)
    at_risk = (times.epochs >= epochs[:, None]).sum(axis=1)
    bounded = (curve.probabilities > 0) & (curve.probabilities < 1)
    low, high = (np.where(bounded, 1 - x.probabilities, np.nan) for x in (limits.high, limits.low))
    rows = {"epoch": curve.quantiles, "share": 1 - curve.probabilities, "low": low, "high": high, "at_risk": at_risk}
    start = {"epoch": [0.0], "share": [0.0], "low": [np.nan], "high": [np.nan], "at_risk": [len(times.epochs)]}
    return pd.concat([pd.DataFrame(start), pd.DataFrame(rows).astype({"epoch": float})], ignore_index=True)


def logrank(a: Times, b: Times) -> float:
    """Two-sided p value of the log-rank test (Mantel 1966) that both arms arrive at one rate; NaN where none arrives.

    Seeds are taken as unpaired and the law is that of many runs: beside `speedup`, not instead of it.
    """
    if not (a.reached.any() or b.reached.any()):
        return np.nan
    return float(survival.logrank(_censored(a), _censored(b)).pvalue)


def speedup(a: Times, b: Times, level: float = 0.95) -> Speedup:
    """How many times fewer epochs arm a needs than arm b: geometric mean of b / a over paired seeds, Student's t.

    A run that is first seen at the target after k epochs arrived in (k - 1, k]: the limits allow for that.
    Where only runs of b miss the target their epochs are too small, so mean and lower limit are bounds ('at least',
    upper limit infinite); only runs of a: 'at most', lower limit 0; runs of both: 'not resolved'.
    Raises ValueError on unequal numbers of runs.
    """
    if len(a.epochs) != len(b.epochs):
        raise ValueError(f"{len(a.epochs)} and {len(b.epochs)} runs: paired seeds are needed")
    missed_a, missed_b = not a.reached.all(), not b.reached.all()
    if missed_a and missed_b:
        return Speedup(Interval(np.nan, 0.0, np.inf, len(a.epochs)), "not resolved")
    centre = _limits(b.epochs, a.epochs, level)
    low = 0.0 if missed_a or b.epochs.min() <= 1 else _limits(b.epochs - 1, a.epochs, level).low
    high = np.inf if missed_b or a.epochs.min() <= 1 else _limits(b.epochs, a.epochs - 1, level).high
    reading = "at most" if missed_a else "at least" if missed_b else "measured"
    return Speedup(Interval(centre.estimate, low, high, centre.n), reading)


def _limits(b: np.ndarray, a: np.ndarray, level: float) -> Interval:
    """Geometric mean of b / a over paired seeds with Student's interval."""
    log = seeds_interval(np.log(b) - np.log(a), level)
    return Interval(*(float(np.exp(x)) for x in log[:3]), log.n)


def time_saved(ratio: Interval) -> Interval:
    """Epochs saved in per cent of arm b's, 100 (1 - 1 / ratio), from the ratio b / a."""
    with np.errstate(divide="ignore"):
        return Interval(*(float(100 * (1 - 1 / np.float64(x))) for x in ratio[:3]), ratio.n)
