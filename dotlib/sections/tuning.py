"""How section 4.3 was tuned: which setting mattered, and what giving trials up early would have cost; of a record.

Optuna's trials are made of the record's runs, so that the tables need no journal.
"""

import functools
import itertools
import math

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from .. import arms, search
from .settings import NO_RUN, tuning_points, used

SETTINGS = {"lr": "learning rate", "weight_decay": "weight decay", "warmup": "warm-up share"}
GOOD = 0.5  # the share of the points that count as good: of eight, an importance rests on four against all
FEWEST = 6  # points that came to their end, for an importance
SHARES = (0.0, 0.25, 0.5, 0.75)  # of the epochs, from which on trials might be given up


def trials(record) -> dict[str, dict[int, FrozenTrial]]:
    """The tuning's runs as Optuna's trials, by candidate and place among its points; diverged ones are infinite."""
    points = tuning_points(record)
    curves = {arm: rows.sort_values("epoch")["nrmse_mua"].tolist() for arm, rows in record.epochs.groupby("arm")}
    found = {candidate: {} for candidate in arms.TUNING}
    for candidate, rows in points.groupby("arm", sort=False):
        ranges = {name: FloatDistribution(low, high, log=True) for name, (low, high) in arms.ranges(candidate).items()}
        for place, (key, row) in enumerate(zip(arms.TUNING[candidate], rows.to_dict("records"), strict=True)):
            if row["failed"] != NO_RUN:
                found[candidate][place] = create_trial(
                    value=math.inf if row["failed"] else row["error"],
                    params={name: row[name] for name in SETTINGS},
                    distributions=ranges,
                    intermediate_values=dict(enumerate(curves.get(key, ()))),
                )
    return found


def slices(record) -> pd.DataFrame:
    """A row a trial and setting that does something there: candidate, optimiser, setting, value, ratio, failed.

    `ratio`: the error at the end over the candidate's lowest; of a trial that diverged the highest of all.
    """
    points = tuning_points(record)
    points = points[points["failed"] != NO_RUN].copy()
    points["ratio"] = points["error"] / points.groupby("arm")["error"].transform("min")
    points["ratio"] = points["ratio"].fillna(points["ratio"].max())
    points["optimiser"] = points["arm"].map(lambda arm: arms.CANDIDATES[arm]["name"])
    rows = points.melt(["arm", "optimiser", "ratio", "failed"], list(SETTINGS), "setting", "value")
    does = [setting in used(arm) for arm, setting in zip(rows["arm"], rows["setting"], strict=True)]
    return rows[does].rename(columns={"arm": "candidate"}).reset_index(drop=True)


def importance(record) -> pd.DataFrame:
    """How much each setting tells good points from others: candidate, n, setting, importance, low, high, p, used.

    PED-ANOVA (Watanabe 2023): the Pearson divergence between the density of the better half of the points along a
    setting's range and that of all of them, as a share of the three settings' sum. `low`, `high`: the middle 90 % of
    what the same points give when any half of them is called the better one; `p`: the share of these divisions that
    give as much at least. `used`: False for a warm-up that a constant rate does not have. NaN with fewer than six ends.
    """
    rows = []
    for candidate, found in trials(record).items():
        errors = {place: trial.value for place, trial in found.items() if math.isfinite(trial.value)}
        there = tuple(errors)
        for setting in SETTINGS:
            row = {"candidate": candidate, "n": len(there), "setting": setting, "used": setting in used(candidate)}
            row |= dict.fromkeys(("importance", "low", "high", "p"), np.nan)
            if len(there) >= FEWEST:
                best = sorted(there, key=errors.get)[: math.ceil(GOOD * len(there))]
                here = _shares(there, frozenset(best))[setting]
                chance = np.array([_shares(there, better)[setting] for better in _halves(there)])
                row |= {"importance": here, "low": np.quantile(chance, 0.05), "high": np.quantile(chance, 0.95)}
                row["p"] = float(np.mean(chance >= here - 1e-9))
            rows.append(row)
    return pd.DataFrame(rows)


def _halves(there: tuple[int, ...]) -> list[frozenset[int]]:
    return list(map(frozenset, itertools.combinations(there, math.ceil(GOOD * len(there)))))


@functools.cache
def _shares(there: tuple[int, ...], better: frozenset[int]) -> dict[str, float]:
    """The settings' shares if these points of Sobol's sequence were the better ones, by their places in the ranges,
    which are those of every candidate."""
    ranges = dict.fromkeys(SETTINGS, FloatDistribution(0, 1))
    made = [
        create_trial(
            value=float(i not in better),
            params={name: (cell + 0.5) / len(arms.SOBOL) for name, cell in zip(SETTINGS, arms.SOBOL[i], strict=True)},
            distributions=ranges,
        )
        for i in there
    ]
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=GOOD)
    return optuna.importance.get_param_importances(search.in_memory(made), evaluator=evaluator)


def pruning(record) -> pd.DataFrame:
    """What giving up trials by the median rule (`search.median`) would have spared and cost, had one worker tried the
    points in their order.

    Columns: from (per cent of the epochs), given up, epochs, spared (per cent), best lost (candidates whose best trial
    is given up), of, worst loss (per cent: error of the best that is left over that of the best).
    """
    every = {candidate: list(found.values()) for candidate, found in trials(record).items() if found}
    return pd.DataFrame([_replayed(share, every) for share in SHARES])


def _replayed(share: float, every: dict[str, list[FrozenTrial]]) -> dict:
    epochs = max(len(trial.intermediate_values) for found in every.values() for trial in found)
    spent, pruned, losses = 0, 0, []
    for found in every.values():
        study = search.in_memory([], pruner=search.median(epochs, share))
        for trial in found:
            live = study.ask(trial.distributions)
            for epoch, value in trial.intermediate_values.items():
                spent += 1
                live.report(value, epoch)
                if epoch + 1 < epochs and live.should_prune():
                    pruned += 1
                    study.tell(live, state=TrialState.PRUNED)
                    break
            else:
                study.tell(live, trial.value)
        left = [trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,))]
        losses.append(100 * (min(left) / min(trial.value for trial in found) - 1))
    whole = sum(len(trial.intermediate_values) for found in every.values() for trial in found)
    row = {"from, % of the epochs": 100 * share, "given up": pruned, "trials": sum(map(len, every.values()))}
    row |= {"epochs spared, %": 100 * (1 - spent / whole), "best lost": sum(loss > 0 for loss in losses)}
    return row | {"candidates": len(every), "worst loss, %": max(losses)}
