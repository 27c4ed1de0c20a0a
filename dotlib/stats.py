"""What may be claimed from a table of errors: R seeds by P phantoms, lower is better.

The unit of replication is the training run: intervals that compare arms run over seeds (Student's t), those that
describe a test set over phantoms (BCa).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import integrate, optimize, special, stats
from statsmodels.stats.multitest import multipletests


class Interval(NamedTuple):
    """An estimate with its confidence limits and the number of replicates behind them; NaN where there is none."""

    estimate: float = np.nan
    low: float = np.nan
    high: float = np.nan
    n: int = 0

    def map(self, rising: Callable[[float], float]) -> Interval:
        """The interval of a rising function of the estimate."""
        return Interval(*(float(rising(x)) for x in self[:3]), self.n)

    def negated(self) -> Interval:
        """The interval of the estimate with its sign changed."""
        return Interval(-self.estimate, -self.high, -self.low, self.n)

    def limits(self) -> str:
        """'[low, high]' to three digits, dashes without finite limits."""
        return limits(self.low, self.high)


class Contrast(NamedTuple):
    """Arm a against arm b: effect in per cent of b's error, its p value, the paired log difference's sd over seeds,
    Cohen's dz (mean / sd), number of seeds in which a is lower."""

    effect: Interval
    p: float
    sd: float
    dz: float
    wins: int


class Equivalence(NamedTuple):
    """Arm a against arm b: effect in per cent with the interval of level 1 - 2 alpha, the p value of the two one-sided
    tests, and 'equivalent', 'not equivalent' or 'not resolved'."""

    effect: Interval
    p: float
    verdict: str


class Judgement(NamedTuple):
    """A promised improvement: 'confirmed', 'refuted' or 'not resolved'; the change itself: 'better', 'worse' or
    'not resolved'; whether the whole interval lies above the promise."""

    verdict: str
    change: str
    exceeded: bool


def limits(low: float, high: float) -> str:
    """'[low, high]' to three digits, dashes where one is not finite."""
    return f"[{low:.3g}, {high:.3g}]" if np.isfinite([low, high]).all() else "--"


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
    half = special.stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.inf
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


def log_ratio(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """ln(a / b) of two arms' errors, (R, P) or (R,), row r of both from one seed.

    Raises ValueError on unequal shapes and on errors that are not positive and finite.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or not (np.isfinite(a) & (a > 0) & np.isfinite(b) & (b > 0)).all():
        raise ValueError(f"errors of shapes {a.shape}, {b.shape}: equal shapes, positive and finite, are needed")
    return np.log(a) - np.log(b)


def per_cent(interval: Interval) -> Interval:
    """An interval of a log ratio as change in per cent, 100 (exp(x) - 1)."""
    return interval.map(lambda x: 100 * np.expm1(x))


def paired_contrast(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Contrast:
    """Effect of arm a against arm b over paired seeds, from the differences of their log errors.

    a, b: positive errors (R, P) or (R,), row r of both from one seed; logarithms are averaged over phantoms. The
    effect is 100 (exp(mean difference) - 1) per cent, negative where a is better, with Student's t interval.
    It speaks of new training runs judged on these phantoms; `stats_crossed` also of new phantoms. Errors: `log_ratio`.
    """
    difference = _means(log_ratio(a, b), axis=1)
    interval = _t_interval(difference, level)
    sd = float(difference.std(ddof=1)) if len(difference) > 1 else np.nan
    dz = float(interval.estimate / sd) if sd > 0 else np.nan
    p = float(2 * special.stdtr(interval.n - 1, -abs(dz) * np.sqrt(interval.n))) if sd > 0 else np.nan
    return Contrast(per_cent(interval), p, sd, dz, int((difference < 0).sum()))


def equivalence(a: ArrayLike, b: ArrayLike, margin: float, alpha: float = 0.05) -> Equivalence:
    """Two one-sided paired t tests over seeds (Schuirmann 1987) for |ln(a / b)| < ln(1 + margin / 100).

    a, b: as in `paired_contrast`; margin in per cent, chosen before the result. The verdict reads the interval of level
    1 - 2 alpha: 'equivalent' inside the margin, 'not equivalent' wholly outside. p is NaN where seeds do not differ.
    Raises ValueError unless margin > 0 and 0 < alpha < 0.5.
    """
    if not (margin > 0 and 0 < alpha < 0.5):
        raise ValueError(f"margin {margin} per cent, alpha {alpha}: margin > 0 and 0 < alpha < 0.5 are needed")
    difference, limit = _means(log_ratio(a, b), axis=1), np.log1p(margin / 100)
    interval = _t_interval(difference, 1 - 2 * alpha)
    error = difference.std(ddof=1) / np.sqrt(interval.n) if interval.n > 1 else np.nan
    p = float(special.stdtr(interval.n - 1, (abs(interval.estimate) - limit) / error)) if error > 0 else np.nan
    inside = -limit < interval.low and interval.high < limit
    outside = interval.low > limit or interval.high < -limit
    word = "equivalent" if inside else "not equivalent" if outside else "not resolved"
    return Equivalence(per_cent(interval), p, word)


def probability_of_improvement(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """Probability that a run of arm a has a lower error than a run of arm b, ties counting half (Agarwal 2021).

    a (R, P), b (R', P), all pairs of runs, averaged over phantoms; or one number a run, (R,), (R',). The interval is
    Newcombe's score interval (2006, method 5) for R against R' runs, with Student's quantile of R + R' - 2: phantoms
    are no replicates, so for (R, P) it is wider than need be; a bootstrap over few seeds collapses where every run of
    one arm is better.
    Raises ValueError on shapes that do not fit and on NaN.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if (
        a.ndim not in (1, 2)
        or a.shape[1:] != b.shape[1:]
        or min(a.size, b.size) == 0
        or np.isnan([a.sum(), b.sum()]).any()
    ):
        raise ValueError(
            f"errors of shapes {a.shape}, {b.shape}: (R, P) and (R', P), or vectors, without NaN are needed"
        )
    share = float(np.mean((a[:, None] < b) + 0.5 * (a[:, None] == b)))
    low, high = _score_limit(share, len(a), len(b), level), 1 - _score_limit(1 - share, len(a), len(b), level)
    return Interval(share, low, high, min(len(a), len(b)))


def _score_limit(share: float, n: int, m: int, level: float) -> float:
    """Lower limit x of a Mann-Whitney share: share - x = z standard errors at x (Newcombe 2006, part 2, method 5)."""
    # Student's quantile for Newcombe's normal one, which covers 90 % at 3 + 3 runs
    z, extra = special.stdtrit(max(n + m - 2, 1), (1 + level) / 2), (n + m) / 2 - 1

    def excess(x: float) -> float:
        variance = x * (1 - x) * (1 + extra * ((1 - x) / (2 - x) + x / (1 + x))) / (n * m)
        return share - x - z * np.sqrt(variance)

    # the limit itself solves the equation at share 1: the search ends just below it
    return float(optimize.brentq(excess, 0, share - 1e-9)) if share > 1e-9 else 0.0


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


def judge(improvement: Interval, low: float, high: float = np.inf) -> Judgement:
    """A promised improvement of low to high per cent against the interval of the one found (positive: better).

    Confirmed: the whole interval reaches the promise's lower end or more. Refuted: the whole interval lies below it,
    even where the arm is better. Else, and without finite limits on the side that matters, not resolved.
    Raises ValueError unless low <= high.
    """
    if not low <= high:
        raise ValueError(f"promise of {low} to {high} per cent: low <= high is needed")
    change = verdict(improvement.negated())
    exceeded = bool(improvement.low > high)
    if improvement.low >= low and improvement.high >= low:
        return Judgement("confirmed", change, exceeded)
    refuted = improvement.high < low and improvement.low < low
    return Judgement("refuted" if refuted else "not resolved", change, exceeded)


def _power(dz: float, n: int, alpha: float) -> float:
    """Power of the two-sided one-sample t test at Cohen's dz; t^2 follows the noncentral F law with n dz^2."""
    # not statsmodels' TTestPower: noncentral t turns NaN from about dz 20, and solve_power stops at dz 10 in silence
    return float(stats.ncf.sf(special.stdtrit(n - 1, 1 - alpha / 2) ** 2, 1, n - 1, n * dz**2))


def power(effect: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """Probability that a two-sided paired t test over n seeds finds a reduction of the error by `effect` per cent.

    sd: that of the paired log difference over seeds. Raises ValueError on effect 0 or >= 100, sd <= 0, below 2 seeds.
    """
    if n < 2 or not sd > 0 or not effect < 100 or effect == 0:
        raise ValueError(
            f"effect {effect} per cent, sd {sd}, {n} seeds: an effect below 100, not 0, "
            "a positive sd and at least 2 seeds are needed"
        )
    return _power(np.log1p(-effect / 100) / sd, n, alpha)


def detectable_difference(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest reduction of the error, per cent, that a two-sided paired t test over n seeds finds.

    sd: that of the paired log difference over seeds. Raises ValueError on sd <= 0, below 2 seeds, and unless
    alpha < power < 1.
    """
    if n < 2 or not sd > 0 or not 0 < alpha < power < 1:
        raise ValueError(
            f"{n} seeds, sd {sd}, power {power}, alpha {alpha}: at least 2 seeds, a positive sd "
            "and 0 < alpha < power < 1 are needed"
        )
    dz = optimize.brentq(lambda dz: _power(dz, n, alpha) - power, 0, 1e5)
    return float(-100 * np.expm1(-dz * sd))


def equivalence_power(sd: float, n: int, margin: float, alpha: float = 0.05) -> float:
    """Probability that `equivalence` over n seeds finds two arms equivalent that do not differ.

    sd: that of the paired log difference over seeds; margin in per cent. The law of the mean, integrated over that of
    its standard error. Raises ValueError on sd <= 0, margin <= 0 or below 2 seeds.
    """
    if n < 2 or not sd > 0 or not margin > 0:
        raise ValueError(f"sd {sd}, {n} seeds, margin {margin} per cent: positive ones and 2 seeds are needed")
    limit, error = np.log1p(margin / 100), sd / np.sqrt(n)
    quantile, spread = special.stdtrit(n - 1, 1 - alpha), stats.chi(n - 1, scale=error / np.sqrt(n - 1))
    inside = integrate.quad(
        lambda s: (2 * special.ndtr((limit - quantile * s) / error) - 1) * spread.pdf(s), 0, limit / quantile
    )
    return float(inside[0])


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """The proportion k / n with Wilson's score interval. Raises ValueError unless 0 <= k <= n, n >= 1."""
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"{k} of {n}: 0 <= k <= n and n >= 1 are needed")
    limits = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    return Interval(k / n, float(limits.low), float(limits.high), n)
