"""The settings of the classical reconstructions, by validation phantoms alone: a baseline is given its best chance."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import config as configuration
from . import metrics, records
from .config import Data, Lift
from .data import classical, dataset, lifts, samples, store
from .data.split import NAMES

NAME, TABLE = "4.6-tuning", "settings"
MOST = 24  # validation phantoms, the first


class Setting(NamedTuple):
    """Regularisation lambda, and the prior's length, mm."""

    regularisation: float
    length: float


def _grid(lambdas: tuple[float, ...], lengths: tuple[float, ...]) -> tuple[Setting, ...]:
    return tuple(Setting(*point) for point in itertools.product(lambdas, lengths))


SETTINGS: dict[classical.Method, tuple[Setting, ...]] = {
    "tikhonov": _grid((0.25, 0.5, 1, 2), (5, 8, 12)),
    "gaussian": _grid((0.1, 0.3, 1, 3), (5, 7.5, 10)),
    "tv": _grid((0.3, 1, 3, 10), (5,)),
}


def table(base: Data, most: int = MOST, folder: Path | None = None) -> pd.DataFrame:
    """Rows of method, regularisation, length, nrmse and nrmse_covered of mua, n: the first validation phantoms."""
    data, rows = dataset.load(base, folder), []
    chosen = slice(most)
    truth, fraction = data.volumes("validation")[chosen], samples.fractions(data, "validation")[chosen]
    tissue, covered = data.tissue("validation")[chosen], coverage(base, data, most)
    settings = [(method, setting) for method, points in SETTINGS.items() for setting in points]
    for method, setting in tqdm(settings, desc="settings", file=sys.stderr):
        coarse = classical.volumes(
            base, Lift(), method, setting.regularisation, "validation", most, setting.length, folder
        )  # fmt: skip
        found = metrics.clamp(classical.refined(coarse, fraction))
        row = {"method": method, **setting._asdict()}
        for name, mask in (("nrmse", tissue), ("nrmse_covered", tissue & covered)):
            row[name] = metrics.nrmse(found, truth, mask)[:, 0].nanmean().item()
        rows.append(row | {"n": len(found)})
    return pd.DataFrame(rows)


def coverage(base: Data, data: dataset.Dataset, most: int) -> Tensor:
    """What the probes of the first validation phantoms cover, (P, G, G, G)."""
    masks = []
    with store.File(data.path) as file:
        for i in np.flatnonzero(data.labels == NAMES.index("validation"))[:most]:
            row = {name: file.raw(name, i, i + 1)[0] for name in lifts.READ}
            masks.append(lifts.covered(row, base, int(i)))
    return samples.finer(torch.from_numpy(np.stack(masks)), data.grid)


def best(settings: pd.DataFrame) -> dict[str, Setting]:
    """The setting of each method with the least mean nrmse of mua in the covered tissue."""
    rows = settings.loc[settings.groupby("method")["nrmse_covered"].idxmin()]
    return {row.method: Setting(row.regularisation, row.length) for row in rows.itertuples()}


def save(settings: pd.DataFrame, profile: str, folder: Path) -> None:
    """Write the record of a profile's settings."""
    records.write(folder, {TABLE: settings}, profile, len(settings))


def load(folder: Path) -> tuple[pd.DataFrame, str]:
    """The recorded settings and their profile. Raises ResultsError for a record that cannot be used."""
    about, texts = records.read(folder, (TABLE,))
    return pd.read_csv(io.StringIO(texts[TABLE])), about.profile


def recorded() -> Mapping[str, Setting]:
    """The best settings, as recorded; found at the quick size and taken at every one."""
    return best(load(configuration.root() / "results" / NAME)[0])
