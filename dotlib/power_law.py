"""Learning curves over the number of training phantoms: error(N) = c + a N^-b, or a N^-b alone, from runs at several N.

Least squares on log errors. Limits are Student's t over seeds: each seed's log errors, at all N, move the parameters
along the fit's linearisation (delta method, seeds as clusters), whatever a seed's errors have in common. They speak of
new training runs on these training sets, which all seeds share; not of other phantoms. Percentiles of resampled seeds
cover less: 74 % at 3 seeds, 83 % at 5, 91 % at 10, in simulation, where 95 are asked for.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares

from .stats import Interval, log_ratio, per_cent, seeds_interval

STEEPEST = 5.0  # upper bound of b: an error that falls faster is on its floor from the second size
FAINTEST = -12.0  # lower bound of ln a, at the middle size: below, no error shows the fall
STARTS = (0.2, 0.7, 2.0)  # of b: from one alone the search can end beside the least squares


class PowerLaw(NamedTuple):
    """A learning curve c + a N^-b with t intervals over seeds; c is 0 in the form without a floor.

    identified: whether b's interval excludes 0 and the largest b tried; else c's limits, too, say little (in simulation
    they cover 84 % at worst). aicc: Akaike's criterion for small samples, of both forms on the same runs; limits of the
    form that it picks do not know of the choice, so report both. centre (3 or 2,): ln a, b, c of the fit, in units of
    `size` phantoms and of `error`; seeds (R, 3 or 2): what each seed moves them to.
    """

    a: Interval
    b: Interval
    c: Interval
    identified: bool
    aicc: float
    centre: np.ndarray
    seeds: np.ndarray
    size: float
    error: float


def _log_error(parameters: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """ln(c + a N^-b), (N,), from (ln a, b, c) or (ln a, b)."""
    log_a, b, c = (*parameters, 0.0)[:3]
    return np.log(c + np.exp(log_a) * sizes**-b)


def _gradient(parameters: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Its derivatives by the parameters, (N, 3 or 2)."""
    log_a, b, c = (*parameters, 0.0)[:3]
    fall = np.exp(log_a) * sizes**-b
    slopes = np.stack([fall, -np.log(sizes) * fall, np.ones_like(fall)], axis=1) / (c + fall)[:, None]
    return slopes[:, : len(parameters)]


def _least_squares(logs: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray:
    """The first `count` of ln a, b, c that fit log errors (N,) best."""
    bounds = [FAINTEST, 0.0, 0.0][:count], [np.inf, STEEPEST, np.inf][:count]
    starts = [np.array([0.0, b, 0.5 * np.exp(logs.min())])[:count] for b in STARTS]
    fits = [
        least_squares(lambda x: _log_error(x, sizes) - logs, x, lambda x: _gradient(x, sizes), bounds, ftol=1e-12)
        for x in starts
    ]
    return min(fits, key=lambda found: found.cost).x


def _aicc(residuals: np.ndarray, count: int) -> float:
    """From residuals (R, N) within seeds: a seed's own level costs it one residual, and is no parameter."""
    within = residuals - residuals.mean(axis=1, keepdims=True)
    n = residuals.size - len(residuals)
    if n <= count + 1:
        return np.inf
    squares = max(float(np.sum(within**2)), 1e-20)  # those of exact data are rounding
    return float(n * np.log(squares / n) + 2 * count * n / (n - count - 1))


def _exp(interval: Interval, unit: float = 1.0) -> Interval:
    with np.errstate(over="ignore"):  # limits from few seeds can be as wide as that
        return interval.map(lambda x: unit * np.exp(x))


def fit(errors: ArrayLike, sizes: ArrayLike, floor: bool = True) -> PowerLaw:
    """The learning curve of errors (R, N), row r of one seed, at N training-set sizes; with a floor c >= 0 or without.

    Raises ValueError on errors that are not positive and finite, and below 3 different sizes (4 with a floor).
    One seed has no bounds.
    """
    logs, sizes = log_ratio(errors, np.ones_like(errors, dtype=float)), np.asarray(sizes, dtype=float)
    least = 4 if floor else 3
    if logs.ndim != 2 or sizes.shape != logs.shape[1:] or not (sizes > 0).all() or len(set(sizes)) < least:
        raise ValueError(f"errors of shape {logs.shape}, sizes {sizes}: (seeds, sizes) of {least} sizes > 0 are needed")
    size, level, count = float(np.exp(np.log(sizes).mean())), logs.mean(), least - 1
    scaled, logs = sizes / size, logs - level
    centre = _least_squares(logs.mean(axis=0), scaled, count)
    seeds = centre + (logs - logs.mean(axis=0)) @ np.linalg.pinv(_gradient(centre, scaled)).T
    a, b = seeds_interval(seeds[:, 0] + level + seeds[:, 1] * np.log(size)), seeds_interval(seeds[:, 1])
    c = seeds_interval(seeds[:, 2] * np.exp(level)) if floor else Interval(0.0, 0.0, 0.0, len(logs))
    return PowerLaw(
        a=_exp(a),
        b=b,
        c=c._replace(low=max(c.low, 0.0)),
        identified=bool(b.low > 0 and b.high < STEEPEST),
        aicc=_aicc(logs - _log_error(centre, scaled), count),
        centre=centre,
        seeds=seeds,
        size=size,
        error=float(np.exp(level)),
    )


def _intervals(law: PowerLaw, values: np.ndarray, gradient: np.ndarray) -> list[Interval]:
    """Of functions of the parameters: values (K,) and gradient (K, 3 or 2) at the fit."""
    return [seeds_interval(x) for x in (values + (law.seeds - law.centre) @ gradient.T).T]


def curve(law: PowerLaw, sizes: ArrayLike) -> list[Interval]:
    """The fitted error at each of some training-set sizes, with its interval there (pointwise)."""
    scaled = np.asarray(sizes, dtype=float) / law.size
    found = _intervals(law, _log_error(law.centre, scaled), _gradient(law.centre, scaled))
    return [_exp(log, law.error) for log in found]


def change(law: PowerLaw, before: float, after: float) -> Interval:
    """Predicted change of the error, per cent, from `before` to `after` training phantoms; negative is better."""
    scaled = np.array([before, after]) / law.size
    values, gradient = np.diff(_log_error(law.centre, scaled)), np.diff(_gradient(law.centre, scaled), axis=0)
    with np.errstate(over="ignore"):
        return per_cent(_intervals(law, values, gradient)[0])
