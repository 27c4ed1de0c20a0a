"""What may be claimed from a table of errors: R seeds by P phantoms, lower is better.

The unit of replication is the training run: intervals that compare arms run over seeds (Student's t), those that
describe a test set over phantoms (BCa).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower


class Interval(NamedTuple):
    """An estimate with its confidence limits and the number of replicates behind them."""

    estimate: float
    low: float
    high: float
    n: int


class Contrast(NamedTuple):
    """Arm a against arm b: effect in per cent of b's error, its p value, the paired log difference's sd over seeds,
    Cohen's dz (mean / sd), number of seeds in which a is lower."""

    effect: Interval
    p: float
    sd: float
    dz: float
    wins: int


def _means(values: ArrayLike, axis: int) -> np.ndarray:
    """Means along one axis of (R, P), without NaN; a vector is taken as it is."""
    values = np.asarray(values, dtype=float)
    if values.ndim not in (1, 2) or values.size == 0 or np.isinf(values).any():
        raise ValueError(f"values of shape {values.shape}: finite or NaN (seeds, phantoms), or a vector, are needed")
    if values.ndim == 1:
        return values
    count = np.sum(~np.isnan(values), axis=axis)
    return np.where(count > 0, np.nansum(values, axis=axis) / np.maximum(count, 1), np.nan)


def _t_interval(values: np.ndarray, level: float) -> Interval:
    """Student's interval of the mean; unbounded from one value."""
    n, centre = len(values), float(values.mean())
    half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.inf
    return Interval(centre, float(centre - half), float(centre + half), n)


def seeds_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean over seeds with Student's t interval; values (R, P), averaged over phantoms first, or (R,).

    NaN phantoms are left out. Raises ValueError on a seed without any value.
    """
    seeds = _means(values, axis=1)
    if np.isnan(seeds).any():
        raise ValueError(f"seed {int(np.isnan(seeds).argmax())} (row, 0-based) has no value: a number is needed")
    return _t_interval(seeds, level)


def phantom_interval(
    values: ArrayLike, rng: np.random.Generator, statistic=np.mean, level: float = 0.95, resamples: int = 9999
) -> Interval:
    """A statistic over phantoms with its BCa bootstrap interval; values (R, P), averaged over seeds first, or (P,).

    NaN phantoms are left out of n. Equal values have an interval of no width. Raises ValueError below 2 phantoms.
    """
    phantoms = _means(values, axis=0)
    phantoms = phantoms[~np.isnan(phantoms)]
    if len(phantoms) < 2:
        raise ValueError(f"{len(phantoms)} phantoms with a value: at least 2 are needed")
    centre = float(statistic(phantoms))
    if np.ptp(phantoms) == 0:
        return Interval(centre, centre, centre, len(phantoms))
    limits = stats.bootstrap(
        (phantoms,), statistic, confidence_level=level, n_resamples=resamples, method="BCa", rng=rng
    ).confidence_interval
    return Interval(centre, float(limits.low), float(limits.high), len(phantoms))


def paired_contrast(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Contrast:
    """Effect of arm a against arm b over paired seeds, from the differences of their log errors.

    a, b: positive errors (R, P) or (R,), row r of both from one seed; logarithms are averaged over phantoms. The
    effect is 100 (exp(mean difference) - 1) per cent, negative where a is better, with Student's t interval.
    Raises ValueError on unequal shapes and on errors that are not positive and finite.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or not (np.isfinite(a) & (a > 0) & np.isfinite(b) & (b > 0)).all():
        raise ValueError(f"errors of shapes {a.shape}, {b.shape}: equal shapes, positive and finite, are needed")
    difference = _means(np.log(a) - np.log(b), axis=1)
    interval = _t_interval(difference, level)
    sd = difference.std(ddof=1) if len(difference) > 1 else np.nan
    effect = Interval(*(float(100 * np.expm1(x)) for x in interval[:3]), interval.n)
    dz = float(interval.estimate / sd) if sd > 0 else np.nan
    p = float(stats.ttest_1samp(difference, 0).pvalue) if sd > 0 else np.nan
    return Contrast(effect, p, float(sd), dz, int((difference < 0).sum()))


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's adjusted p values of one family (Holm 1979); unknown ones (NaN) count, and stay NaN."""
    p = np.asarray(p, dtype=float)
    adjusted = multipletests(np.where(np.isnan(p), 1.0, p), method="holm")[1]
    return np.where(np.isnan(p), np.nan, adjusted)


def verdict(interval: Interval) -> str:
    """'better' or 'worse' where the interval of an error's change excludes 0, else 'not resolved'."""
    if interval.high < 0:
        return "better"
    return "worse" if interval.low > 0 else "not resolved"


def detectable_difference(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest reduction of the error, per cent, that a two-sided paired t test over n seeds finds.

    sd: that of the paired log difference over seeds. Raises ValueError on sd <= 0 and below 2 seeds.
    """
    if n < 2 or sd <= 0:
        raise ValueError(f"{n} seeds, sd {sd}: at least 2 seeds and a positive sd are needed")
    dz = float(TTestPower().solve_power(nobs=n, alpha=alpha, power=power))
    return float(-100 * np.expm1(-dz * sd))


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """The proportion k / n with Wilson's score interval. Raises ValueError unless 0 <= k <= n, n >= 1."""
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"{k} of {n}: 0 <= k <= n and n >= 1 are needed")
    limits = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    return Interval(k / n, float(limits.low), float(limits.high), n)
