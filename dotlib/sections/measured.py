"""Numbers of judged runs with their intervals, and how they stand to a target.

`judged` is a `judged_records.Judged`: `table` (arm, seed, set, metric, channel, value, n), `runs` (arm, seed, failed).
"""

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from .. import stats
from ..comparison import Column
from ..stats import Interval

WORDS = ("not met", "not resolved", "not computed", "met")  # negative results first
Range = tuple[float, float]  # of values that meet a target, ends included


def per_seed(judged, arm: str, on: str, column: Column, of: str = "value") -> pd.Series:
    """One number of an arm by seed, on one set; empty where it was not judged there."""
    keys = {"arm": arm, "set": on, "metric": column[0], "channel": column[1]}
    rows = judged.table
    for key, value in keys.items():
        rows = rows[rows[key] == value]
    return rows.set_index("seed")[of].sort_index()


def over_seeds(values: pd.Series, least: float = -np.inf, most: float = np.inf) -> Interval:
    """Mean over seeds with Student's interval, cut off at `least` and `most`, which no mean can pass; without numbers
    where a seed has none."""
    if values.empty or values.isna().any():
        return Interval(n=len(values))
    if np.isinf(values).any():  # the PSNR of what is exact
        return Interval(*[float(values.mean())] * 3, len(values))
    found = stats.seeds_interval(values.to_numpy())
    return found if found.n == 1 else found._replace(low=max(found.low, least), high=min(found.high, most))


def spread(logs: pd.Series, level: float = 0.95) -> Interval:
    """Standard deviation over seeds of a logarithm, in per cent, with its chi-square interval."""
    n = len(logs)
    if n < 2 or logs.isna().any():
        return Interval(n=n)
    sd = 100 * float(logs.std(ddof=1))
    high, low = (np.sqrt((n - 1) / scipy_stats.chi2.ppf((1 + side * level) / 2, n - 1)) for side in (-1, 1))
    return Interval(sd, sd * float(low), sd * float(high), n)


def passed(counts: pd.Series, totals: pd.Series) -> Interval:
    """The share of inclusions that pass, by the seeds' mean count, with Wilson's interval over the inclusions.

    All seeds see the same inclusions, so their counts are not added up; n is the number of seeds.
    """
    if counts.empty or counts.isna().any() or not totals.max() > 0:
        return Interval(n=len(counts))
    share = stats.wilson(round(counts.mean()), int(totals.max()))
    return Interval(float(counts.mean() / totals.max()), share.low, share.high, len(counts))


def ratio(values: pd.Series, reference: pd.Series) -> Interval:
    """Ratio of two errors over the seeds that both have, geometric mean with Student's interval of the logarithms."""
    seeds = values.index.intersection(reference.index)
    logs = np.log(values.loc[seeds]) - np.log(reference.loc[seeds])
    return over_seeds(logs.replace([np.inf, -np.inf], np.nan)).map(np.exp)


def below(limit: float) -> Range:
    return (-np.inf, limit)


def above(limit: float) -> Range:
    return (limit, np.inf)


def point(value: float) -> Interval:
    """A number that is known, as an interval of no width."""
    return Interval(value, value, value, 1)


def shortfall(value: float, target: Range) -> float:
    """How far a value lies outside a target; negative inside."""
    return max(target[0] - value, value - target[1])


def standing(found: Interval, target: Range) -> str:
    """'met' where the whole interval lies in the target's range, 'not met' where it lies outside, or 'not resolved'."""
    if np.isnan(found.estimate):
        return "not computed"
    if target[0] <= found.low and found.high <= target[1]:
        return "met"
    return "not met" if found.high < target[0] or found.low > target[1] else "not resolved"


def failures(judged, arm: str) -> int:
    """How many runs of an arm diverged."""
    return int((judged.runs.loc[judged.runs["arm"] == arm, "failed"] != "").sum())


def text(found: Interval) -> str:
    """An estimate with its interval, three significant digits; without one from a single seed."""
    if np.isnan(found.estimate):
        return "--"
    return f"{found.estimate:.3g} {found.limits()}".removesuffix(" --")


def listed(words: pd.Series, names: pd.Series) -> str:
    """The names under each word, those of `WORDS` in their order: 'not met: a, b; met: c'."""
    order = [*WORDS[:-1], *(word for word in words.unique() if word not in WORDS), WORDS[-1]]
    return "; ".join(f"{word}: {', '.join(names[words == word])}" for word in order if (words == word).any())
