"""Tables that compare arms over paired seeds on one frozen test set, beside what trivial predictors score there."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from . import metrics, stats, trivial
from .data import phantoms
from .data.dataset import Dataset
from .evaluation import table
from .stats_crossed import Components, crossed_contrast, detectable_difference

# the detectable difference is computed beforehand, from these sds of the paired log difference
ASSUMED = Components(seed=0.07, phantom=0.15, rest=0.05)
REFERENCE = "ellipsoid, own background"  # for the skill: the best that can be said without any tumour

Column = tuple[str, str]  # metric, channel


def trivial_rows(data: Dataset) -> pd.DataFrame:
    """Every metric of the trivial predictors on the test set, as rows like a run's: one `arm` each, seed 0."""
    ellipsoids = data.part("test")
    truth, labels, mean = data.volumes("test"), phantoms.labels(ellipsoids, data.grid), data.mean("train")
    frames = []
    for name, predictor in trivial.PREDICTORS.items():
        values = metrics.evaluate(predictor(ellipsoids, mean), truth, labels, data.voxel)
        frames.append(table(values).assign(arm=name, seed=0, checkpoint="last"))
    return pd.concat(frames, ignore_index=True)


def with_skill(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows and, for each arm, `skill`: 1 - MSE / MSE(`REFERENCE`) per phantom and channel."""
    rmse = rows[rows["metric"] == "rmse"]
    keys = ["phantom", "channel"]
    reference = rmse[rmse["arm"] == REFERENCE].set_index(keys)["value"]
    ratio = rmse["value"].to_numpy() / reference.loc[rmse[keys].itertuples(index=False, name=None)].to_numpy()
    return pd.concat([rows, rmse.assign(metric="skill", value=1 - ratio**2)], ignore_index=True)


def matrix(rows: pd.DataFrame, arm: str, column: Column, checkpoint: str = "last") -> np.ndarray:
    """One metric of one arm as (R seeds, P phantoms, or phantoms x inclusions)."""
    keys = {"arm": arm, "metric": column[0], "channel": column[1], "checkpoint": checkpoint}
    chosen = rows[(rows[list(keys)] == pd.Series(keys)).all(axis=1)]
    return chosen.pivot(index="seed", columns=["phantom", "inclusion"], values="value").to_numpy()


def per_seed(rows: pd.DataFrame, arm: str, column: Column, checkpoint: str = "last") -> np.ndarray:
    """One number a seed, (R,): mean over phantoms, median over inclusions, and legacy RMSE pooled, with its PSNR."""
    legacy = column[0] in ("legacy_rmse", "legacy_psnr")
    values = matrix(rows, arm, ("legacy_rmse", "") if legacy else column, checkpoint)
    if legacy:
        found = trivial.pooled(values)
        return -20 * np.log10(found) if column[0] == "legacy_psnr" else found
    statistic = np.median if (rows.loc[rows["metric"] == column[0], "inclusion"] >= 0).all() else np.mean
    runs = [run[~np.isnan(run)] for run in values]
    return np.array([statistic(run) if run.size else np.nan for run in runs])


def arms(rows: pd.DataFrame, columns: Mapping[str, Column]) -> pd.DataFrame:
    """Arms by metrics, last checkpoint: `per_seed`, then the mean over seeds with its 95 % t interval."""
    out = []
    for arm in rows["arm"].unique():
        values = {label: per_seed(rows, arm, column) for label, column in columns.items()}
        out.append({"arm": arm, "seeds": len(next(iter(values.values())))} | {k: _cell(v) for k, v in values.items()})
    return pd.DataFrame(out)


def _cell(values: np.ndarray) -> str:
    if np.isnan(values).any():
        return "--"
    return trivial.interval_text(stats.seeds_interval(values)) if len(values) > 1 else f"{values[0]:.3g}"


def contrasts(rows: pd.DataFrame, pairs: Iterable[tuple[str, str]], columns: Mapping[str, Column]) -> pd.DataFrame:
    """Each pair (a against b) on each error: effect in per cent with its interval for new seeds and phantoms, verdict.

    The first of `columns` is the primary endpoint: its contrasts are one family, Holm-adjusted, and only they have a
    verdict (at 5 %). `detectable` is the smallest difference, per cent, that as many seeds and phantoms find with 80 %
    power at 5 % if the log difference varies as `ASSUMED`; it does not depend on the result.
    """
    primary, out = next(iter(columns)), []
    for label, column in columns.items():
        for a, b in pairs:
            errors = matrix(rows, a, column), matrix(rows, b, column)
            c, (seeds, tested) = crossed_contrast(*errors), errors[0].shape
            row = {"contrast": f"{a} against {b}", "error": label}
            row["detectable, %"] = detectable_difference(ASSUMED, seeds, tested) if seeds > 1 else np.nan
            row |= {"effect, %": c.effect.estimate, "95 % interval": f"[{c.effect.low:.3g}, {c.effect.high:.3g}]"}
            row |= {"sd of log": c.sd, "Cohen dz": c.dz, "lower in": f"{c.wins} of {c.effect.n} seeds", "p": c.p}
            out.append(row)
    frame = pd.DataFrame(out)
    family = frame["error"] == primary
    frame.loc[family, "Holm p"] = stats.holm(frame.loc[family, "p"])
    sign = np.where(frame["effect, %"] < 0, "better", "worse")
    frame["verdict"] = np.where(family, np.where(frame["Holm p"] < 0.05, sign, "not resolved"), "secondary")
    return frame


def answer(rows: pd.DataFrame, table: pd.DataFrame, trained: Iterable[str]) -> str:
    """What the tables say, in Markdown: each primary contrast, and the arms against the ellipsoid without tumours."""
    lines = []
    for _, row in table[table["verdict"] != "secondary"].iterrows():
        effect = f"{row['effect, %']:+.1f} %, unadjusted {row['95 % interval']}, lower in {row['lower in']}"
        lines.append(f"* **{row['contrast']}**, {row['error']}: {row['verdict']} ({effect}).")
    for label, column, better in CLAIMS:
        level = per_seed(rows, REFERENCE, column)[0]
        wins = [arm for arm in trained if better(per_seed(rows, arm, column), level).all()]
        place = f"the true ellipsoid *without tumours* on {label} ({level:.3g})"
        lines.append(f"* Better than {place} in every seed: {', '.join(wins) or 'no arm'}.")
    return "\n".join(lines)


CLAIMS = (
    ("nrmse of mua", ("nrmse", "mua"), np.less),
    ("legacy RMSE", ("legacy_rmse", ""), np.less),
    ("legacy SSIM", ("legacy_ssim", ""), np.greater),
)
