"""The optimisers' settings in section 4.3: what tuning chose, and what each setting of the one-cycle recipe does."""

import numpy as np
import pandas as pd

from .. import arms, optim
from ..config import ONECYCLE
from .optimisers import Pair, contrasts, runs_of, same_seeds

RECIPE = "stage1-onecycle"
SENSITIVITY = {
    "beta2": (r"$\beta_2$", ONECYCLE.betas[1]),
    "lr": ("highest learning rate", ONECYCLE.lr),
    "warmup": ("warm-up share", ONECYCLE.warmup),
    "decay": ("weight decay", ONECYCLE.weight_decay),
}
NO_RUN = "no run"


def tuning_points(record) -> pd.DataFrame:
    """The points that each candidate was tried with: arm, lr, weight_decay, warmup, error, failed, chosen, edge.

    `error` is the last validation error; `edge` names the settings of the chosen point that are the lowest or highest
    tried.
    """
    last = record.epochs.sort_values("epoch").groupby("arm")["nrmse_mua"].last()
    failed, parts = record.runs.set_index("arm")["failed"], []
    for name, keys in arms.TUNING.items():
        part = pd.DataFrame(arms.points(name)).assign(arm=name)
        part["failed"] = failed.reindex(keys, fill_value=NO_RUN).to_numpy()
        part["error"] = last.reindex(keys).where(part["failed"].to_numpy() == "").to_numpy()
        part["chosen"] = part["error"].notna() & (part["error"] == part["error"].min())
        ends = [(setting, part[setting].isin([part[setting].min(), part[setting].max()])) for setting in used(name)]
        part["edge"] = [
            ", ".join(setting for setting, at in ends if at[i]) if part.loc[i, "chosen"] else "" for i in part.index
        ]
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def used(candidate: str) -> list[str]:
    """The settings that do something: without a schedule there is no warm-up."""
    fields = arms.CANDIDATES[candidate]
    warm = fields["schedule"] != "constant" or fields["name"] == "schedule-free"
    return ["lr", "weight_decay", *["warmup"] * warm]


def tuned(record) -> pd.DataFrame:
    """What each candidate was given: the chosen point, its error, that of the worst over it, failed points, edge."""
    rows = []
    for arm, points in tuning_points(record).groupby("arm", sort=False):
        best = points[points["chosen"]].head(1)
        row = {"candidate": arm} | (dict(best[["lr", "weight_decay", "warmup", "error"]].iloc[0]) if len(best) else {})
        row |= {"worst / best": points["error"].max() / points["error"].min(), "points": points["error"].count()}
        row["failed"] = int((~points["failed"].isin(["", NO_RUN])).sum())
        rows.append(row | {"at the edge": best["edge"].iloc[0] if len(best) else ""})
    return pd.DataFrame(rows)


def sensitivity_runs(record) -> pd.DataFrame:
    """Runs around the one-cycle recipe: setting, value_of (its value), seed, value, base, failed."""
    parts = []
    for prefix, (setting, base) in SENSITIVITY.items():
        for arm in (f"{prefix}-{base:g}", *_around(prefix)):
            value = float(arm.rpartition("-")[2])
            part = runs_of(record, [RECIPE if value == base else arm])
            parts.append(part.assign(setting=setting, value_of=value, base=value == base))
    return same_seeds(pd.concat(parts))


def sensitivity(record) -> pd.DataFrame:
    """Each changed setting against the recipe, exploratory."""
    pairs = [Pair(setting, arm, RECIPE) for prefix, (setting, _) in SENSITIVITY.items() for arm in _around(prefix)]
    return contrasts(record, pairs).assign(standing="exploratory")


def _around(prefix: str) -> list[str]:
    return [arm for arm in arms.STUDIES["4.3-sensitivity"].arms if arm.rpartition("-")[0] == prefix]


def meaning(record) -> pd.DataFrame:
    """What each setting comes to in the steps of the record's runs, computed from the configuration, before any result.

    A row an arm: steps; 1 / (1 - beta2), the steps over which squared gradients are averaged; the steps of warm-up,
    and 2 / (1 - beta2), which they should be by a rule (Ma & Yarats 2021); the sum of the rates, about the distance
    that a weight can travel; what decay alone leaves of a weight, per cent: exp(-sum of rate x decay).
    """
    rows = []
    names = (RECIPE, *(arm for prefix in SENSITIVITY for arm in _around(prefix)))
    for arm, steps in record.runs.drop_duplicates("arm").set_index("arm")["steps"].reindex(names).dropna().items():
        config = arms.arm(arm, record.profile).optim
        used = pd.DataFrame([optim.settings(config, step, int(steps)) for step in range(int(steps))])
        memory = 1 / (1 - config.betas[1])
        row = {"arm": arm, "steps": int(steps), "memory of squares": memory}
        row |= {"warm-up": config.warmup * steps, "warm-up by rule": 2 * memory, "sum of rates": used["lr"].sum()}
        rows.append(row | {"decay leaves, %": 100 * np.exp(-(used["lr"] * used["weight_decay"]).sum())})
    return pd.DataFrame(rows)


def answer(record) -> str:
    """Whether each setting of the recipe is the best that was tried, in Markdown; those that are not come first."""
    table, beaten, others = sensitivity(record), [], []
    for setting, base in SENSITIVITY.values():
        rows = table[(table["group"] == setting) & (table["seeds"] > 0)]
        better, worse = _values(rows[rows["high"] < 0]), _values(rows[rows["low"] > 0])
        found = " ".join([*[f"Better: {better}."] * bool(better), *[f"Worse: {worse}."] * bool(worse)])
        if better:
            beaten.append(f"* **{setting}: the recipe's {base:g} is not the best tried.** {found}")
        else:
            others.append(
                f"* **{setting}: nothing was found better than the recipe's {base:g}.** {found or 'Not resolved.'}"
            )
    return "\n".join(["Exploratory, by unadjusted 95 % intervals:\n", *beaten, *others])


def _values(rows: pd.DataFrame) -> str:
    return ", ".join(
        f"{row['label'].rpartition('-')[2]} ({row['effect']:+.1f} % [{row['low']:.3g}, {row['high']:.3g}])"
        for row in rows.to_dict("records")
    )
