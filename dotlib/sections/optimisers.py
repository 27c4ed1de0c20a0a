"""Section 4.3 as tables: contrasts of arms, budgets, additions; functions of recorded runs.

A record is a `records.Record`: metrics (rows of arm, seed, metric, phantom, value), epochs (learning curves), runs
(arm, seed, failed, samples_seen, samples_per_second, precision), profile, source.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .. import stats
from ..comparison import Column
from ..stats_crossed import components, crossed_contrast

PRIMARY: Column = ("nrmse", "mua")
ERRORS = {"nrmse mua (primary)": PRIMARY, "nrmse musp": ("nrmse", "musp"), "legacy RMSE": ("legacy_rmse", "")}
TUNING = "4.3-tuning"
STUDIES = (TUNING, "4.3-ends", "4.3-factorial", "4.3-additions", "4.3-sensitivity")

PROMISE = (15.0, 25.0)  # per cent less error: what the specification expects of the first of the ENDS over the second
ENDS = {"as specified": ("stage1-onecycle", "stage1-adam"), "tuned": ("adamw-onecycle-momentum-b95", "adam-constant")}
END_ARMS = tuple(dict.fromkeys(arm for pair in ENDS.values() for arm in reversed(pair)))  # of study 4.3-ends
BUDGETS = {
    "Adam, plateau": {25: "stage1-adam-25", 50: "stage1-adam-50", 100: "stage1-adam"},
    "AdamW, one cycle": {25: "stage1-onecycle-25", 50: "stage1-onecycle-50", 75: "stage1-onecycle-75",
                         100: "stage1-onecycle"},
}  # fmt: skip
ADDITIONS = {
    "adamw-constant": ("plateau", "progressive", "ema"),
    "stage1-adam": ("progressive-specified",),
    "stage1-onecycle": ("decay-schedule", "batch-32", "batch-48", "batch-64", "ema-onecycle", "stopped",
                        "stage1-onecycle-50", "stage1-onecycle-75", "fp32"),
    "batch-64": ("batch-64-accumulated",),
    "adamw-onecycle-momentum": ("schedule-free", "muon"),
}  # fmt: skip


class Pair(NamedTuple):
    """Arm a against arm b, under a heading of the table."""

    group: str
    a: str
    b: str


def judged(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded studies but tuning, by name; one of another profile than the first is left out.

    Arms are compared within one study: another may have run on another machine, whose bits differ.
    """
    found = {name: record for name, record in evidence.items() if record is not None and name != TUNING}
    first = next(iter(found.values()), None)
    return {name: record for name, record in found.items() if record.profile == first.profile}


def together(records: Mapping[str, Any]):
    """All runs of several studies as one record, arms under their studies' names; None where there are none.

    It is what a page of several studies rests on, and nothing to compare arms with.
    """
    if not records:
        return None
    parts = ("metrics", "epochs", "runs")
    frames = {
        part: pd.concat(
            [getattr(r, part).assign(arm=f"{name}: " + getattr(r, part)["arm"]) for name, r in records.items()]
        )
        for part in parts
    }
    first = next(iter(records.values()))
    return replace(first, **frames, source="; ".join(record.source for record in records.values()))


def errors(record, column: Column = PRIMARY, checkpoint: str = "last") -> pd.DataFrame:
    """One error as a table (arm, seed) x phantom."""
    keys = {"metric": column[0], "channel": column[1], "checkpoint": checkpoint}
    chosen = record.metrics[(record.metrics[list(keys)] == pd.Series(keys)).all(axis=1)]
    return chosen.pivot(index=["arm", "seed"], columns="phantom", values="value")


def runs_of(record, names: Iterable[str]) -> pd.DataFrame:
    """The endpoint of each run: arm, seed, value (geometric mean over phantoms), failed (the reason, or empty)."""
    values = np.exp(np.log(errors(record)).mean(axis=1)).rename("value").reset_index()
    values = values.merge(record.runs[["arm", "seed", "failed"]], on=["arm", "seed"])
    return values[values["arm"].isin(list(names))].reset_index(drop=True)


def same_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of those seeds that every arm in the table has."""
    counts = runs.groupby("seed")["arm"].nunique()
    return runs[runs["seed"].isin(counts.index[counts == runs["arm"].nunique()])].reset_index(drop=True)


def combined(table: pd.DataFrame, weights: Mapping[str, float]) -> np.ndarray | None:
    """exp of the weighted sum of log errors, (R, P), over the seeds that all arms have; None where there are none."""
    if not set(weights) <= set(table.index.unique("arm")):
        return None
    logs = {arm: np.log(table.loc[arm]) for arm in weights}
    seeds = sorted(set.intersection(*(set(rows.index) for rows in logs.values())))
    return np.exp(sum(weight * logs[arm].loc[seeds].to_numpy() for arm, weight in weights.items())) if seeds else None


def effect(record, weights: Mapping[str, float], column: Column = PRIMARY, level: float = 0.95) -> dict[str, Any]:
    """A contrast of log errors over paired seeds crossed with phantoms: seeds, effect, low, high (per cent), p, ...

    `seeds alone`: Student's interval, for these phantoms; `sizes`: sds of the log difference between seeds, between
    phantoms, the rest. Without a common seed there are 0 seeds and no numbers; where every run of an arm failed there
    is an effect, of others' worst values, and nothing that rests on their spread.
    """
    ratio = combined(errors(record, column), weights)
    blank = {"seeds alone": "--", "sizes": "--"}
    blank |= dict.fromkeys(("effect", "low", "high", "p", "sd of log", "Cohen dz"), np.nan)
    if ratio is None:
        return {"seeds": 0} | blank
    ones = np.ones_like(ratio)
    if all_failed(record, weights):
        return {"seeds": len(ratio)} | blank | {"effect": crossed_contrast(ratio, ones).effect.estimate}
    c, alone = crossed_contrast(ratio, ones, level), stats.paired_contrast(ratio, ones, level).effect
    numbers = {"effect": c.effect.estimate, "low": c.effect.low, "high": c.effect.high, "p": c.p}
    numbers |= {"sd of log": c.sd, "Cohen dz": c.dz, "seeds alone": f"[{alone.low:.3g}, {alone.high:.3g}]"}
    numbers["sizes"] = ", ".join(f"{size:.2g}" for size in components(ratio, ones))
    return {"seeds": c.effect.n} | numbers


def failures(record, names: Iterable[str]) -> int:
    """How many runs of these arms failed, of the seeds that all of them have."""
    runs = record.runs[record.runs["arm"].isin(list(names))]
    return int((same_seeds(runs)["failed"] != "").sum())


def contrasts(record, pairs: Sequence[Pair], column: Column = PRIMARY, level: float = 0.95) -> pd.DataFrame:
    """Each pair's effect on one error (`effect`), the probability that a run of a beats one of b, and failed runs."""
    table, rows = errors(record, column), []
    for group, a, b in pairs:
        row = {"group": group, "label": a, "contrast": f"{a} against {b}"}
        row |= effect(record, {a: 1, b: -1}, column, level) | {"P(better)": "--"}
        if row["seeds"] and not all_failed(record, (a, b)):
            wins = stats.probability_of_improvement(*(table.loc[arm].to_numpy() for arm in (a, b)))
            row["P(better)"] = f"{wins.estimate:.2f} [{wins.low:.2f}, {wins.high:.2f}]"
        rows.append(row | {"failed": failures(record, (a, b))})
    return forest_rows(rows)


def all_failed(record, names: Iterable[str]) -> bool:
    """Whether no run of one of these arms came to its end: the worst values of others have no spread of their own."""
    runs = record.runs[record.runs["arm"].isin(list(names))]
    return bool((runs["failed"] != "").groupby(runs["arm"]).all().any())


def twin(record, arm: str) -> str:
    """The first arm before it whose runs ended with the very same errors, or '': what `arm` changes took no effect."""
    table, order = errors(record), list(record.runs["arm"].unique())
    before = order[: order.index(arm)] if arm in order else []
    return next((b for b in before if table.loc[b].equals(table.loc[arm])), "")


def forest_rows(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of effects with what a forest plot needs besides: exploratory, and nothing expected, unless they say so."""
    blank = {"confirmatory": False, "expected low": np.nan, "expected high": np.nan}
    return pd.DataFrame([blank | dict(row) for row in rows])


def shown(table: pd.DataFrame, *more: str) -> pd.DataFrame:
    """Effects as they are read: the estimate and its interval, per cent, their p value, and columns asked for."""
    bounds = table[["low", "high", "seeds"]].itertuples(index=False)
    limits = [
        "not computed" if not n else "--" if np.isnan(low) else f"[{low:.3g}, {high:.3g}]" for low, high, n in bounds
    ]
    named = table[["contrast", "seeds", "failed"]].assign(**{"effect, %": table["effect"], "interval, %": limits})
    return named.join(table[[*more, "Cohen dz", "p"]]).join(table[[c for c in ("standing",) if c in table]])


def ends(record) -> pd.DataFrame:
    """The confirmatory family: both pairs of ends (`family`)."""
    pairs = [Pair(f"{name}, against {b}", a, b) for name, (a, b) in ENDS.items()]
    return family(record, pairs, [PROMISE] * len(pairs))


def family(record, pairs: Sequence[Pair], promises: Sequence[tuple[float, float]]) -> pd.DataFrame:
    """A confirmatory family: intervals at 5 % shared out among the pairs (Bonferroni), Holm's p; beside each pair the
    improvement, least and most, that is expected of it."""
    table = contrasts(record, pairs, level=1 - 0.05 / len(pairs))
    promised = {"expected low": [-most for _, most in promises], "expected high": [-least for least, _ in promises]}
    standing = {"standing": "primary", "confirmatory": True}
    return table.assign(**promised, **standing, **{"Holm p": stats.holm(table["p"])})


def secondary(record) -> pd.DataFrame:
    """The ends on the other errors, and on the primary one at the checkpoint that validation found best; unadjusted."""
    return other_errors(record, [Pair(name, a, b) for name, (a, b) in ENDS.items()])


def other_errors(record, pairs: Sequence[Pair]) -> pd.DataFrame:
    """Pairs on the errors that are not primary, and on the primary one at the checkpoint that validation found best."""
    names = list(ERRORS)[1:]
    tables = [contrasts(record, pairs, ERRORS[name]).assign(standing=f"{name}: secondary") for name in names]
    best = replace(record, metrics=record.metrics[record.metrics["checkpoint"] == "best"].assign(checkpoint="last"))
    tables.append(contrasts(best, pairs).assign(standing="nrmse mua, best checkpoint: secondary"))
    return pd.concat(tables, ignore_index=True)


def all_ends(record) -> pd.DataFrame:
    """The confirmatory contrasts, and below them the secondary ones."""
    return pd.concat([ends(record), secondary(record)], ignore_index=True)


def budget_runs(record) -> pd.DataFrame:
    """Runs of the specified ends at each share of the epochs: optimiser, budget (per cent), seed, value, failed."""
    parts = [
        runs_of(record, [arm]).assign(optimiser=name, budget=share)
        for name, shares in BUDGETS.items()
        for share, arm in shares.items()
    ]
    return same_seeds(pd.concat(parts))


def budgets(record) -> pd.DataFrame:
    """One cycle against Adam at 25, 50 and 100 per cent of the epochs, each with its own schedule; and with fewer
    epochs than Adam's full number."""
    adam, cycle = BUDGETS.values()
    pairs = [Pair(f"{share} % of the epochs", cycle[share], adam[share]) for share in adam]
    pairs += [Pair("fewer than Adam's 100 %", arm, adam[100]) for share, arm in cycle.items() if share < 100]
    return contrasts(record, pairs)


def curves(record, names: Iterable[str]) -> pd.DataFrame:
    """Learning curves of some arms, in the order in which they are named."""
    names = list(names)
    rows = record.epochs[record.epochs["arm"].isin(names)]
    return rows.sort_values("arm", key=lambda arm: arm.map(names.index), kind="stable")


def gaps(record, names: Sequence[str]) -> pd.DataFrame:
    """Validation over training loss at the end, seeds by arms, of the seeds in which none of them failed."""
    good = record.runs[record.runs["failed"] == ""].set_index(["arm", "seed"]).index
    last = record.epochs.sort_values("epoch").groupby(["arm", "seed"]).last()
    ratio = (last["validation_loss"] / last["train_loss"])[lambda x: x.index.isin(good)]
    return ratio.unstack("arm").reindex(columns=list(names)).dropna()


def additions(record) -> pd.DataFrame:
    """Each addition against its own reference; beside it its gap, validation over training loss, and what it cost.

    Where an addition never took effect, both have `the same runs`.
    """
    pairs = [Pair(f"against {b}", a, b) for b, names in ADDITIONS.items() for a in names]
    costs = record.runs.groupby("arm")[["samples_seen", "samples_per_second"]].median()
    table = contrasts(record, pairs).assign(standing="exploratory")
    same = [twin(record, a) == b for _, a, b in pairs]
    table.loc[same, "standing"] = "the same runs"
    gap = [100 * (np.exp(np.log(gaps(record, [a])[a]).mean()) - 1) for a in table["label"]]
    costs = costs.reindex(table["label"]).set_axis(["samples seen", "samples/s"], axis=1).reset_index(drop=True)
    return table.assign(**{"gap, %": gap}).join(costs)
