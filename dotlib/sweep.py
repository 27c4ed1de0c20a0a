"""Sweeps: candidates of the tuning, each tried with as many points, by any number of workers.

Equal budget: every candidate has the same number of trials, of the same epochs each, under the same rule of pruning. By
default nothing is pruned: the tuning of 4.3 compares ends, and a rate that anneals shows its error there only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd

from . import arms, cluster, slurm, study, tracking, workers
from . import config as configuration
from .config import ConfigError
from .data import samples
from .ledger import ERROR, Ledger, Turn
from .run import FAILURES, StudyError
from .search import PRUNERS, SAMPLERS, STARTUP, Search


def planned(
    candidates: Iterable[str],
    profile: str,
    store: Path,
    trials: int = STARTUP,
    sampler: str = "sobol",
    pruner: str = "none",
) -> tuple[Search, ...]:
    """The searches of some candidates. Their runs are those of study 4.3-tuning, where a point is one of its points."""
    if trials < 1:
        raise ConfigError(f"trials = {trials}: a positive number is accepted")
    configuration.named("sampler", dict.fromkeys(SAMPLERS), sampler)
    configuration.named("pruner", dict.fromkeys(PRUNERS), pruner)
    first = {candidate: configuration.named("candidate", arms.TUNING, candidate)[0] for candidate in candidates}
    bases = study.runs(first.values(), profile, 1, store, arms.TUNING_SEED)
    return tuple(
        Search(candidate, profile, bases[arm, arms.TUNING_SEED], trials, sampler, pruner)
        for candidate, arm in first.items()
    )


def compute(searches: Sequence[Search], on: str = "here", per_gpu: int = 1) -> pd.DataFrame:
    """Compute the trials that are missing: their `budget`. Raises StudyError, a line for each that could not be.

    `here`: by spawned workers, as those of a study; `slurm`: by jobs that each work until nothing is left to begin.
    """
    ledgers, told = [Ledger(search) for search in searches], []
    if left := sum(ledger.left(again=True) for ledger in ledgers):
        if on == "slurm":
            slurm.require()
        tracking.resolved()  # refused here, once, rather than in every run
        tracking.images()
        samples.prepare(search.base.config for search in searches)
        if on == "slurm":
            told = slurm.run(_tasks(tuple(searches), left), folder=searches[0].base.store / "slurm")
        else:
            turns = {f"trial {i}": Work(tuple(searches)) for i in range(left)}
            failed = study.here(turns, sum(search.trials for search in searches), per_gpu, "trial")
            told = [line.removeprefix(f"{turn}: ") for turn, line in failed.items()]
    if unfinished := [(f"{one.search.name}, trial {i}", why) for one in ledgers for i, why in one.unfinished().items()]:
        lines = [*(f"{which}: {why}" for which, why in unfinished if why), *dict.fromkeys(told)]
        if not lines:
            lines = [
                f"{len(unfinished)} trials are not finished, the first {unfinished[0][0]}; start again to continue"
            ]
        raise StudyError("\n".join(lines))
    return budget(ledgers)


@dataclass(frozen=True)
class Work:
    """A trial, whichever is next when a worker comes to it."""

    searches: tuple[Search, ...]

    def result(self) -> bool:
        return any(map(advance, self.searches))


def advance(search: Search) -> bool:
    """Do the next trial of a search; False where there is none to begin. One that fails is written down, not raised.

    Raises Ended where this process is asked to end; then the trial is begun anew where it stood, by whoever is next.
    """
    if workers.asked_to_end():
        raise workers.Ended(f"{search.name}: no further trial is begun")
    ledger = Ledger(search)
    with ledger.written(), ledger.turn() as turn:
        if turn is None:
            return False
        try:
            history = turn.run.computed(_reporter(turn), f"sweep {search.name}")
        except optuna.TrialPruned:
            ledger.prune(turn)
        except workers.Ended:
            raise
        except FAILURES as error:
            ledger.fail(turn, error)
        else:
            ledger.finish(turn, history)
    return True


def _reporter(turn: Turn):
    """Tells Optuna of each epoch but the last, of which the result tells, and ends a trial that it gives up."""

    def report(row: dict) -> None:
        if row["epoch"] + 1 < turn.run.config.training.epochs:
            turn.trial.report(row[ERROR], row["epoch"])
            if turn.trial.should_prune():
                raise optuna.TrialPruned

    return report


@dataclass(frozen=True)
class SweepTask(slurm.FolderTask):
    """One of the jobs that work on a sweep."""

    name: str
    searches: tuple[Search, ...]
    folder: Path

    def done(self) -> bool:
        """Nothing is left for it: all trials are finished, in work, or failed."""
        return not any(Ledger(search).left() for search in self.searches)

    def work(self) -> None:
        try:
            while any(map(advance, self.searches)):
                pass
        except workers.Ended:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            self.keep_failure(str(error))


def _tasks(searches: tuple[Search, ...], left: int) -> list[SweepTask]:
    """As many as may run at a time, in folders that a second driver of the same searches finds."""
    key = hashlib.sha256("\n".join(search.name for search in searches).encode()).hexdigest()[:8]
    folder = searches[0].base.store / "sweeps" / f"jobs-{key}"
    number = min(cluster.asked().concurrency, left)
    return [SweepTask(f"worker {i + 1} of {number}", searches, folder / str(i)) for i in range(number)]


def budget(ledgers: Iterable[Ledger]) -> pd.DataFrame:
    """What each candidate's trials took and found.

    Columns: candidate, trials, epochs, pruned, spared (epochs that pruned ones left out), failed (diverged), error, lr,
    weight_decay, warmup of the best; NaN where every trial failed.
    """
    rows = []
    for ledger in ledgers:
        search, found = ledger.search, ledger.table()
        whole, pruned = search.base.config.training.epochs, [row for row in found if row["pruned"]]
        row = {"candidate": search.candidate, "trials": len(found), "epochs": sum(row["epochs"] for row in found)}
        row |= {"pruned": len(pruned), "spared": sum(whole - row["epochs"] for row in pruned)}
        row |= {"failed": sum(bool(row["failed"]) for row in found)}
        good = [row for row in found if not math.isnan(row["error"])]
        best = min(good, key=lambda row: row["error"], default={})
        rows.append(row | {name: best.get(name, math.nan) for name in ("error", *search.distributions)})
    return pd.DataFrame(rows)
