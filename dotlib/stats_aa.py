"""The A/A experiment: arms that do not differ in the mean, made from real runs of one arm and judged like any others.

Whatever the judgement finds there is false; the rate at which it does is to be its level.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from .stats import log_ratio
from .stats_crossed import crossed_contrast


class Rate(NamedTuple):
    """The share of families with a false discovery, its 95 % Clopper-Pearson limits, the number of families, of seeds
    an arm, and of contrasts in a family."""

    rate: float
    low: float
    high: float
    repetitions: int
    seeds: int
    family: int


def deviations(errors: ArrayLike) -> np.ndarray:
    """What sets the runs of one arm apart, (R, P): log errors less each phantom's mean, times sqrt(R / (R - 1)).

    The mean over phantoms of a row is its seed's effect. errors: positive, (R, P); a phantom's own mean is common to
    all runs, and cancels between arms. Raises ValueError below 3 runs or 2 phantoms, on runs that do not differ, and
    on errors that are not positive and finite.
    """
    logs = log_ratio(errors, np.ones_like(errors, dtype=float))
    if logs.ndim != 2 or logs.shape[0] < 3 or logs.shape[1] < 2 or not np.ptp(logs, axis=0).any():
        raise ValueError(f"errors of shape {logs.shape}: (seeds, phantoms) of 3 differing runs, 2 phantoms, are needed")
    return (logs - logs.mean(axis=0)) * np.sqrt(len(logs) / (len(logs) - 1))


def new_runs(rows: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Runs that could have been, (*shape, P): each turns two of the real ones, rows (R, P), by a random angle.

    cos(t) row + sin(t) other row has the real rows' covariance between phantoms: seed effects, unequal phantoms and
    what phantoms have in common are kept, and three quarters of the tails' excess. Whole rows drawn with replacement
    would put one run into both arms (differences of 0) or twice into one, and with random signs be 2 R values still.
    What the angle loses, the skewness, cancels in a difference of two runs of one arm.
    """
    one = rng.integers(len(rows), size=shape)
    other = (one + rng.integers(1, len(rows), size=shape)) % len(rows)
    angle = rng.uniform(0, 2 * np.pi, (*shape, 1))
    return np.cos(angle) * rows[one] + np.sin(angle) * rows[other]


def crossed_p(ratio: np.ndarray) -> float:
    """The p value that the notebooks give a contrast, its paired ratios of errors (R, P)."""
    return crossed_contrast(ratio, np.ones_like(ratio)).p


def false_discovery(
    errors: ArrayLike,
    seeds: int,
    family: int = 1,
    repetitions: int = 2000,
    *,
    rng: np.random.Generator,
    p_value: Callable[[np.ndarray], float] = crossed_p,
    alpha: float = 0.05,
    interaction: bool = False,
    phantom: float = 0.0,
) -> Rate:
    """How often a family of contrasts of an arm with itself has a Holm p value <= alpha, in repeated draws.

    errors: real runs of that arm, positive, (R, P). In each repetition `family` arms and their common reference have
    `seeds` new runs each (`new_runs`), on the same P phantoms; of an interaction these are pairs of arms, and what is
    judged is a ratio of two ratios. `phantom`: sd over phantoms of an effect that each arm has on its own, normal and 0
    over new phantoms, so that arms differ on these phantoms and not at all. p_value judges paired ratios (seeds, P).
    Given the real runs: ten of them know the spread between runs to a quarter, but a t test's level does not depend on
    it. Raises ValueError as `deviations`, and on counts below 1.
    """
    if min(seeds, family, repetitions) < 1:
        raise ValueError(f"{seeds} seeds, family of {family}, {repetitions} repetitions: at least 1 of each is needed")
    rows, found = deviations(errors), 0
    for _ in range(repetitions):
        runs = new_runs(rows, (1 + interaction, family + 1, seeds), rng)
        if phantom:
            runs = runs + phantom * rng.standard_normal((*runs.shape[:2], 1, runs.shape[-1]))
        *arms, reference = runs[0] - runs[1] if interaction else runs[0]
        smallest = np.fmin.reduce([p_value(np.exp(arm - reference)) for arm in arms])
        found += bool(family * smallest <= alpha)  # Holm's first step; statsmodels' own takes 50 ms a call
    limits = binomtest(found, repetitions).proportion_ci(method="exact")
    return Rate(found / repetitions, float(limits.low), float(limits.high), repetitions, seeds, family)
