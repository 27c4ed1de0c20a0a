"""Epochs until a validation error reaches a target; runs that miss it are right-censored at their last epoch."""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats as survival

from .stats import Interval, seeds_interval

WAYS = 200_000  # more than there are to share 20 runs out between two arms


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


def _censored(times: Times) -> survival.CensoredData:
    return survival.CensoredData.right_censored(times.epochs, ~times.reached)


def kaplan_meier(times: Times) -> pd.DataFrame:
    """Share of runs that have reached the target by an epoch (Kaplan and Meier 1958), a step function: epoch, share.

    A row at epoch 0 and one at each epoch where a run arrives or ends.
    """
    curve = survival.ecdf(_censored(times)).sf
    return pd.DataFrame({"epoch": [0.0, *curve.quantiles], "share": [0.0, *(1 - curve.probabilities)]})


def logrank(a: Times, b: Times) -> float:
    """Two-sided p value of the log-rank test (Mantel 1966) that both arms arrive at one rate.

    Arrivals in a less those expected there, among all ways to share the runs out between the arms: exact up to 10 runs
    an arm, from 200,000 of the ways beyond. (The chi-square law is of many runs: at 5 an arm it rejects 8 % in
    simulation instead of 5.) NaN where no two runs differ. Seeds are taken as unpaired: beside `speedup`, not instead
    of it.
    """
    epochs, reached = (np.concatenate(both) for both in zip(a, b, strict=True))
    arrivals = np.unique(epochs[reached])
    hazard = np.array([np.sum(reached & (epochs == t)) / np.sum(epochs >= t) for t in arrivals])
    scores = reached - (epochs[:, None] >= arrivals) @ hazard  # their sum over an arm: observed less expected
    if np.ptp(scores) < 1e-12:
        return np.nan
    n = len(a.epochs)
    every, found = scores[_ways(n, len(scores))].sum(1), scores[:n].sum()
    return float(min(1.0, 2 * min(np.mean(every <= found + 1e-9), np.mean(every >= found - 1e-9))))


@functools.cache
def _ways(n: int, runs: int) -> np.ndarray:
    """All ways to choose n of the runs, (ways, n), the first n among them; `WAYS` of them where there are more."""
    if (ways := math.comb(runs, n)) > WAYS:
        drawn = np.tile(np.arange(runs, dtype=np.int16), (WAYS, 1))
        np.random.default_rng(0).permuted(drawn[1:], axis=1, out=drawn[1:])
        return drawn[:, :n]
    chosen = itertools.chain.from_iterable(itertools.combinations(range(runs), n))
    return np.fromiter(chosen, np.int8, ways * n).reshape(ways, n)


def speedup(a: Times, b: Times, level: float = 0.95) -> Speedup:
    """How many times fewer epochs arm a needs than arm b: geometric mean of b / a over paired seeds, Student's t.

    A run that is first seen at the target after k epochs arrived in (k - 1, k]: the limits allow for that, and so
    cover the true ratio too often (in simulation 97-100 % instead of 95, the more so with more seeds).
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
    return seeds_interval(np.log(b) - np.log(a), level).map(np.exp)


def time_saved(ratio: Interval) -> Interval:
    """Epochs saved in per cent of arm b's, 100 (1 - 1 / ratio), from the ratio b / a."""
    with np.errstate(divide="ignore"):
        return ratio.map(lambda x: 100 * (1 - 1 / np.float64(x)))
