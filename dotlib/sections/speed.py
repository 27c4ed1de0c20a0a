"""How soon runs reach a target that was named beforehand, as tables of recorded runs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .. import convergence
from .optimisers import ENDS, all_failed, curves
from .settings import tuning_points


def times(record, names: Sequence[str], target: float) -> dict[str, convergence.Times]:
    """Epochs until the validation nrmse of mua is at the target, by arm, over the seeds that all of them have.

    A run that failed never reaches it. Empty where an arm has no run.
    """
    runs = record.runs[record.runs["arm"].isin(list(names))]
    seeds = [set(runs.loc[runs["arm"] == arm, "seed"]) for arm in names]
    if not (common := sorted(set.intersection(*seeds))):
        return {}
    epochs = record.epochs[record.epochs["arm"].isin(list(names))].set_index(["arm", "seed"])
    length = range(epochs["epoch"].min(), epochs["epoch"].max() + 1)
    good = runs[runs["failed"] == ""].set_index(["arm", "seed"]).index
    curves = epochs[epochs.index.isin(good)].set_index("epoch", append=True)["nrmse_mua"]
    index = [pd.MultiIndex.from_product([[arm], common, length]) for arm in names]
    table = {arm: curves.reindex(i).to_numpy().reshape(len(common), -1) for arm, i in zip(names, index, strict=True)}
    return {arm: convergence.time_to_target(curve, target) for arm, curve in table.items()}


def targets(record, tuning) -> dict[str, float]:
    """The validation nrmse of mua to be reached, by pair of ends, as results/PLAN.md has it.

    As specified: what `stage1-adam` has at its end, median over seeds, for want of a pilot. Tuned: what the best tuning
    run of `adam-constant` had at its end; without tuning in the record's profile there is none.
    """
    (_, adam), (_, constant) = ENDS.values()
    good = record.runs[(record.runs["arm"] == adam) & (record.runs["failed"] == "")]
    last = curves(record, [adam]).sort_values("epoch").groupby("seed")["nrmse_mua"].last().reindex(good["seed"])
    found = {"as specified": last.median()}
    if tuning is not None and tuning.profile == record.profile:
        points = tuning_points(tuning)
        found["tuned"] = points.loc[points["chosen"] & (points["arm"] == constant), "error"].min()
    return {name: float(target) for name, target in found.items() if np.isfinite(target)}


def survival(record, levels: Mapping[str, float]) -> pd.DataFrame:
    """Share of runs above their pair's target: rows of panel, arm, time (epochs), share, censored (count)."""
    parts = []
    for name, target in levels.items():
        for arm in reversed(ENDS[name]):
            for found in times(record, [arm], target).values():
                curve, missed = convergence.kaplan_meier(found), found.epochs[~found.reached]
                rows = {"time": curve["epoch"], "share": 1 - curve["share"]}
                rows["censored"] = [(missed == epoch).sum() for epoch in curve["epoch"]]
                parts.append(pd.DataFrame(rows).assign(arm=arm, panel=f"{name}: target {target:.3g}"))
    return pd.concat(parts, ignore_index=True)


def ups(record, levels: Mapping[str, float]) -> pd.DataFrame:
    """How many times fewer epochs a needs than b to reach the pair's target; a bound where runs miss it."""
    rows = []
    for name, target in levels.items():
        a, b = ENDS[name]
        row = {"contrast": f"{a} against {b}", "target": target, "seeds": 0}
        if all_failed(record, (a, b)):
            row["reading"] = "every run of an arm failed"
        elif found := times(record, (a, b), target):
            ratio, reading = convergence.speedup(found[a], found[b])
            saved = convergence.time_saved(ratio)
            row |= {"seeds": ratio.n, "speed-up": ratio.estimate, "interval": f"[{ratio.low:.3g}, {ratio.high:.3g}]"}
            row |= {"reading": reading, "epochs saved, %": saved.estimate}
            row |= {
                f"{x} reached": f"{t.reached.sum()} of {ratio.n}" for x, t in zip("ab", found.values(), strict=True)
            }
            row["log-rank p"] = convergence.logrank(found[a], found[b])
        rows.append(row)
    return pd.DataFrame(rows)
