"""Section 4.3 as tables: contrasts of arms, additions, tuning, sensitivity; functions of recorded runs.

A record is a `records.Record`: metrics (rows of arm, seed, metric, phantom, value), epochs (learning curves), runs
(arm, seed, failed, samples_seen, samples_per_second, precision), profile, source.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .. import arms, stats
from ..comparison import Column
from ..config import ONECYCLE
from ..stats_crossed import components, crossed_contrast

PRIMARY: Column = ("nrmse", "mua")
ERRORS = {"nrmse mua (primary)": PRIMARY, "nrmse musp": ("nrmse", "musp"), "legacy RMSE": ("legacy_rmse", "")}
TUNING = "4.3-tuning"
STUDIES = (TUNING, "4.3-ends", "4.3-factorial", "4.3-additions", "4.3-sensitivity")

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
SENSITIVITY = {
    "beta2": (r"$\beta_2$", ONECYCLE.betas[1]),
    "lr": ("highest learning rate", ONECYCLE.lr),
    "warmup": ("warm-up share", ONECYCLE.warmup),
    "decay": ("weight decay", ONECYCLE.weight_decay),
}


NO_RUN = "no run"


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


def effect(table: pd.DataFrame, weights: Mapping[str, float], level: float = 0.95) -> dict[str, Any]:
    """A contrast of log errors over paired seeds crossed with phantoms: seeds, effect, low, high (per cent), p, ...

    `seeds alone`: Student's interval, for these phantoms; `sizes`: sds of the log difference between seeds, between
    phantoms, the rest. Without a common seed there are 0 seeds and no numbers.
    """
    ratio = combined(table, weights)
    if ratio is None:
        names = ("effect", "low", "high", "p", "sd of log", "Cohen dz")
        return {"seeds": 0, "seeds alone": "--", "sizes": "--"} | dict.fromkeys(names, np.nan)
    ones = np.ones_like(ratio)
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
        row = {"group": group, "label": a, "contrast": f"{a} against {b}"} | effect(table, {a: 1, b: -1}, level)
        found = [table.loc[arm].to_numpy() for arm in (a, b) if arm in table.index]
        row["P(better)"] = stats.probability_of_improvement(*found).estimate if len(found) == 2 else np.nan
        if all_failed(record, (a, b)):
            row |= dict.fromkeys(("low", "high", "p"), np.nan)
        rows.append(row | {"failed": failures(record, (a, b))})
    return forest_rows(rows)


def all_failed(record, names: Sequence[str]) -> bool:
    """Whether no run of one of these arms came to its end: the worst values of others have no spread of their own."""
    runs = record.runs[record.runs["arm"].isin(list(names))]
    return bool((runs["failed"] != "").groupby(runs["arm"]).all().any())


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
    return named.join(table[[*more, "sd of log", "p"]]).join(table[[c for c in ("standing",) if c in table]])


def ends(record) -> pd.DataFrame:
    """The confirmatory family: both pairs of ends, intervals at 5 % shared out among them (Bonferroni), Holm's p."""
    pairs = [Pair(f"{name}, against {b}", a, b) for name, (a, b) in ENDS.items()]
    table = contrasts(record, pairs, level=1 - 0.05 / len(pairs))
    promised = {"expected low": -25.0, "expected high": -15.0}  # H1
    standing = {"standing": "primary", "confirmatory": True}
    return table.assign(**promised, **standing, **{"Holm p": stats.holm(table["p"])})


def secondary(record) -> pd.DataFrame:
    """The ends on the other errors, unadjusted."""
    pairs = [Pair(name, a, b) for name, (a, b) in ENDS.items()]
    names = list(ERRORS)[1:]
    tables = [contrasts(record, pairs, ERRORS[name]).assign(standing=f"{name}: secondary") for name in names]
    return pd.concat(tables, ignore_index=True)


def all_ends(record) -> pd.DataFrame:
    """The confirmatory contrasts, and below them those on the other errors."""
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
    """One cycle against Adam at 25, 50 and 100 per cent of the epochs, each with its own schedule."""
    adam, cycle = BUDGETS.values()
    return contrasts(record, [Pair(f"{share} % of the epochs", cycle[share], adam[share]) for share in adam])


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
    """Each addition against its own reference; beside it its gap, validation over training loss, and what it cost."""
    pairs = [Pair(f"against {b}", a, b) for b, names in ADDITIONS.items() for a in names]
    costs = record.runs.groupby("arm")[["samples_seen", "samples_per_second"]].median()
    table = contrasts(record, pairs).assign(standing="exploratory")
    gap = [100 * (np.exp(np.log(gaps(record, [a])[a]).mean()) - 1) for a in table["label"]]
    costs = costs.reindex(table["label"]).set_axis(["samples seen", "samples/s"], axis=1).reset_index(drop=True)
    return table.assign(**{"gap, %": gap}).join(costs)


def tuning_points(record, column: str = "nrmse_mua") -> pd.DataFrame:
    """The points that each candidate was tried with: arm, lr, weight_decay, warmup, error, failed, chosen, edge.

    `error` is the last validation error; `edge` says that the chosen rate is the lowest or highest tried.
    """
    last = record.epochs.sort_values("epoch").groupby("arm")[column].last()
    failed, parts = record.runs.set_index("arm")["failed"], []
    for name, keys in arms.TUNING.items():
        part = pd.DataFrame(arms.points(name)).assign(arm=name)
        part["failed"] = failed.reindex(keys, fill_value=NO_RUN).to_numpy()
        part["error"] = last.reindex(keys).where(part["failed"].to_numpy() == "").to_numpy()
        part["chosen"] = part["error"].notna() & (part["error"] == part["error"].min())
        part["edge"] = part["chosen"] & part["lr"].isin([part["lr"].min(), part["lr"].max()])
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def tuned(record) -> pd.DataFrame:
    """What each candidate was given: the chosen point, its error, that of the worst over it, failed points, edge."""
    rows = []
    for arm, points in tuning_points(record).groupby("arm", sort=False):
        best = points[points["chosen"]].head(1)
        row = {"candidate": arm} | (dict(best[["lr", "weight_decay", "warmup", "error"]].iloc[0]) if len(best) else {})
        row |= {"worst / best": points["error"].max() / points["error"].min(), "points": points["error"].count()}
        row["failed"] = int((~points["failed"].isin(["", NO_RUN])).sum())
        rows.append(row | {"edge": "edge" if points["edge"].any() else ""})
    return pd.DataFrame(rows)


def sensitivity_runs(record) -> pd.DataFrame:
    """Runs around the one-cycle recipe: setting, value_of (its value), seed, value, base, failed."""
    parts = []
    for prefix, (setting, base) in SENSITIVITY.items():
        for arm in (f"{prefix}-{base:g}", *arms.STUDIES["4.3-sensitivity"].arms):
            if arm.rpartition("-")[0] == prefix:
                value = float(arm.rpartition("-")[2])
                part = runs_of(record, ["stage1-onecycle" if value == base else arm])
                parts.append(part.assign(setting=setting, value_of=value, base=value == base))
    return same_seeds(pd.concat(parts))
