"""Section 4.2: the two networks under two optimisers beside trivial predictors, and what their outputs look like.

A record is a whole `records.Record`, which holds every metric and the trivial predictors', or None.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .. import comparison, evaluation, inference, outcomes, study
from ..data import dataset, phantoms

PAIRS = [
    ("stage1-adam", "legacy-adam"),
    ("stage1-onecycle", "legacy-onecycle"),
    ("legacy-onecycle", "legacy-adam"),
    ("stage1-onecycle", "stage1-adam"),
]
PRIMARY = ("nrmse", "mua")
ERRORS = {"nrmse mua (primary)": PRIMARY, "legacy RMSE": ("legacy_rmse", "")}
LEVELS = ("mean volume", "ellipsoid, own background")


@dataclass(frozen=True)
class Shown:
    """A test phantom (6, 13), its volume and what arms make of it, (2, D, H, W) in mm^-1; the z index of a plane."""

    phantom: np.ndarray
    truth: np.ndarray
    predictions: Mapping[str, np.ndarray]
    plane: int
    provenance: Mapping[str, str]


def rows(record) -> pd.DataFrame | None:
    """Every metric of runs and trivial predictors, with the skill."""
    if record is None:
        return None
    return comparison.with_skill(pd.concat([record.metrics, record.beside], ignore_index=True))


def per_run(record) -> pd.DataFrame:
    """The primary endpoint of each run: mean over phantoms, last checkpoint."""
    chosen = record.metrics.query("checkpoint == 'last' and metric == @PRIMARY[0] and channel == @PRIMARY[1]")
    return chosen.groupby(["arm", "seed"], as_index=False, sort=False)["value"].mean()


def levels(every: pd.DataFrame) -> dict[str, float]:
    """The primary endpoint of two trivial predictors."""
    return {name: float(comparison.matrix(every, name, PRIMARY).mean()) for name in LEVELS}


def contrasts(record) -> pd.DataFrame | None:
    """The four contrasts on the primary endpoint and on the earlier work's."""
    return None if record is None else comparison.contrasts(record.metrics, PAIRS, ERRORS)


def pictured(profile: str, store: Path) -> Shown:
    """The first test phantom through the networks that the page shows, trained here where they are not; one seed.

    Short of the full profile those of `4.2-shown`, in a quarter of the steps.
    """
    name = "4.2-baseline" if profile == "full" else "4.2-shown"
    histories, stored = study.results(name, profile, 1, store), study.members(name, profile, 1, store)
    data = dataset.load(next(iter(stored.values())).config.data)
    chosen, plane = evaluation.showcase(data)
    truth = phantoms.rasterise(chosen, data.grid)
    found = {
        arm: inference.predict(inference.trained(run.config, run.folder()), truth)[0].numpy()
        for (arm, _), run in stored.items()
    }
    return Shown(chosen[0], truth[0].numpy(), found, plane, outcomes.provenance(histories))
