"""What is sought for one candidate of the tuning: its points, one after another, and the run that tries each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial

from . import arms
from . import config as configuration
from .config import Optim
from .run import Run

SAMPLERS, PRUNERS = ("sobol", "tpe"), ("none", "median")
STARTUP = len(arms.SOBOL)  # points of Sobol's sequence, with which TPE begins
Point = Mapping[str, float]  # lr, weight_decay, warmup


@dataclass(frozen=True)
class Search:
    """The trials of one candidate: as many points, each tried by a run like `base`, which tries the first of them.

    Trial i of `sobol` is point i of `arms.points`, a function of i alone. `tpe` begins with the same eight points; each
    further one is drawn by the tree-structured Parzen estimator (Bergstra 2011) from what is known of those before it
    when it is begun, trials in work counting as bad ones, with a generator of (tuning seed, i): with one worker it is a
    function of i, whenever the search was interrupted.
    """

    candidate: str
    profile: str
    base: Run
    trials: int = STARTUP
    sampler: str = "sobol"
    pruner: str = "none"

    @property
    def name(self) -> str:
        """It holds what tells its runs apart: configuration, data, precision, version of the code."""
        parts = [self.profile, self.candidate, self.sampler, *["median"] * (self.pruner == "median"), self.base.key[:8]]
        return "-".join(parts)

    @property
    def folder(self) -> Path:
        return self.base.store / "sweeps" / self.name

    @cached_property
    def distributions(self) -> dict[str, FloatDistribution]:
        limits = arms.ranges(self.candidate)
        return {name: FloatDistribution(low, high, log=True) for name, (low, high) in limits.items()}

    @cached_property
    def _sobol(self) -> list[dict[str, float]]:
        return arms.points(self.candidate, self.trials if self.sampler == "sobol" else STARTUP)

    def fixed(self, index: int) -> Point | None:
        """The point of a trial, where it is a function of its place alone."""
        return self._sobol[index] if index < len(self._sobol) else None

    def accepts(self, point: object) -> bool:
        """Whether this may be a point: in its ranges."""
        return (
            isinstance(point, dict)
            and set(point) == set(self.distributions)
            and all(
                type(point[name]) is float and d.low <= point[name] <= d.high for name, d in self.distributions.items()
            )
        )

    def drawn(self, index: int, known: list[FrozenTrial]) -> Point:
        """The point of a trial by TPE, from the `known` trials before it."""
        seed = int(np.random.default_rng([arms.TUNING_SEED, index]).integers(2**31))
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, constant_liar=True)
        study = in_memory(known, sampler=sampler)
        return {name: arms.rounded(value) for name, value in study.ask(self.distributions).params.items()}

    def run(self, point: Point) -> Run:
        """The run that tries a point."""
        optim = Optim.model_validate(arms.CANDIDATES[self.candidate] | dict(point))
        config = configuration.replace(self.base.config, {"optim": optim})
        return self.base.model_copy(update={"config": config})


def in_memory(trials: Iterable[FrozenTrial], **options) -> optuna.Study:
    """A study of these trials that is kept nowhere."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it tells of each study
    study = optuna.create_study(**options)
    study.add_trials(trials)
    return study


def median(epochs: int, share: float = 0.5) -> optuna.pruners.MedianPruner:
    """The rule by which a trial of so many epochs is given up: its lowest error so far is above the median error that
    the finished trials had at this epoch; from a share of the epochs on, and once half of Sobol's points are finished.

    Before half of the epochs it would have cost three of twelve candidates of the recorded tuning their best trial
    (`sections.tuning.pruning`), for rates that anneal show their error at the end; share and number were chosen on it.
    """
    return optuna.pruners.MedianPruner(STARTUP // 2, round(share * epochs))
