"""Tables that compare arms over paired seeds on one frozen test set, beside what trivial predictors score there."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from . import metrics, stats, trivial
from .data import phantoms
from .data.dataset import Dataset
from .evaluation import table

ASSUMED_SD = (
    0.07  # over seeds, of the paired log difference: what the detectable difference is computed with beforehand
)

Column = tuple[str, str]  # metric, channel


def trivial_rows(data: Dataset) -> pd.DataFrame:
    """Every metric of the trivial predictors on the test set, as rows like a run's: one `arm` each, seed 0."""
    ellipsoids = data.part("test")
    truth, labels = data.volumes("test"), phantoms.labels(ellipsoids, data.grid)
    mean = data.volumes("train").mean(0)
    frames = []
    for name, predictor in trivial.PREDICTORS.items():
        values = metrics.evaluate(predictor(ellipsoids, mean), truth, labels, data.voxel)
        frames.append(table(values).assign(arm=name, seed=0, checkpoint="last"))
    return pd.concat(frames, ignore_index=True)


def matrix(rows: pd.DataFrame, arm: str, column: Column, checkpoint: str = "last") -> np.ndarray:
    """One metric of one arm as (R seeds, P phantoms, or phantoms x inclusions)."""
    keys = {"arm": arm, "metric": column[0], "channel": column[1], "checkpoint": checkpoint}
    chosen = rows[(rows[list(keys)] == pd.Series(keys)).all(axis=1)]
    return chosen.pivot(index="seed", columns=["phantom", "inclusion"], values="value").to_numpy()


def arms(rows: pd.DataFrame, columns: Mapping[str, Column], checkpoint: str = "last") -> pd.DataFrame:
    """Arms by metrics: mean over phantoms (median over inclusions), then over seeds with its t interval."""
    out = []
    for arm in rows["arm"].unique():
        values = {label: matrix(rows, arm, column, checkpoint) for label, column in columns.items()}
        row = {"arm": arm, "seeds": len(next(iter(values.values())))}
        for label, value in values.items():
            row[label] = _cell(pd.DataFrame(value.T), np.median if columns[label][0] in PER_INCLUSION else np.mean)
        out.append(row)
    return pd.DataFrame(out)


PER_INCLUSION = ("contrast", "crc", "cnr", "localisation", "dice", "volume_ratio")


def _cell(values: pd.DataFrame, statistic) -> str:
    per_seed = np.array([statistic(run.dropna()) if run.notna().any() else np.nan for _, run in values.items()])
    if np.isnan(per_seed).any():
        return "--"
    return trivial.interval_text(stats.seeds_interval(per_seed)) if len(per_seed) > 1 else f"{per_seed[0]:.3g}"


def contrasts(rows: pd.DataFrame, pairs: Iterable[tuple[str, str]], columns: Mapping[str, Column]) -> pd.DataFrame:
    """Each pair (a against b) on each error: effect in per cent with its interval over paired seeds, and the verdict.

    `detectable` is the smallest difference, per cent, that as many seeds find with 80 % power if the log difference
    varies by `ASSUMED_SD`; it does not depend on the result.
    """
    out = []
    for a, b in pairs:
        for label, column in columns.items():
            c = stats.paired_contrast(matrix(rows, a, column), matrix(rows, b, column))
            out.append(
                {
                    "contrast": f"{a} against {b}",
                    "error": label,
                    "detectable, %": stats.detectable_difference(ASSUMED_SD, c.effect.n) if c.effect.n > 1 else np.nan,
                    "effect, %": c.effect.estimate,
                    "95 % interval": f"[{c.effect.low:.3g}, {c.effect.high:.3g}]",
                    "Cohen dz": c.dz,
                    "lower in": f"{c.wins} of {c.effect.n} seeds",
                    "verdict": stats.verdict(c.effect),
                }
            )
    return pd.DataFrame(out)
