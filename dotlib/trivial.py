"""What predictors that know nothing, or only the tissue, score; and the arithmetic of the earlier work's targets."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import metrics, stats
from .data import phantoms

CHUNK = 16
MEAN_TISSUE = (0.005, 0.98)  # mm^-1, middle of the healthy ranges

# the earlier work's roadmap: legacy RMSE (mm^-1), SSIM, PSNR (dB), each from worst to best
ROADMAP = {
    "baseline": ((0.083, 0.083), (0.688, 0.688), (21.6, 21.6)),
    "phase 1": ((0.075, 0.065), (0.75, 0.80), (24.0, 26.0)),
    "phase 2": ((0.065, 0.055), (0.78, 0.85), (26.0, 28.0)),
    "phase 3": ((0.060, 0.050), (0.80, 0.87), (27.0, 29.0)),
}


def zeros(ellipsoids: np.ndarray, mean: Tensor) -> Tensor:
    return torch.zeros_like(mean).expand(len(ellipsoids), -1, -1, -1, -1)


def mean_volume(ellipsoids: np.ndarray, mean: Tensor) -> Tensor:
    return mean.expand(len(ellipsoids), -1, -1, -1, -1)


def mean_tissue(ellipsoids: np.ndarray, mean: Tensor) -> Tensor:
    table = phantoms.without_inclusions(ellipsoids)
    table[:, 0, [phantoms.MUA, phantoms.MUSP]] = MEAN_TISSUE
    return phantoms.rasterise(table, mean.shape[-1])


def own_background(ellipsoids: np.ndarray, mean: Tensor) -> Tensor:
    return phantoms.rasterise(phantoms.without_inclusions(ellipsoids), mean.shape[-1])


PREDICTORS = {
    "all zeros": zeros,
    "mean volume": mean_volume,
    "ellipsoid, mean tissue": mean_tissue,
    "ellipsoid, own background": own_background,
}


def score(ellipsoids: np.ndarray, grid: int, mean: Tensor) -> pd.DataFrame:
    """Scores of every trivial predictor on phantoms `(P, 6, 13)`: predictor, phantom, and a column for each metric.

    `mean` is the mean volume (2, D, H, W) of *other* phantoms of the family. Legacy metrics pool both channels over the
    cube; the honest ones are in the tissue, `background_noise` in its background.
    """
    rows = []
    for start in range(0, len(ellipsoids), CHUNK):
        part = ellipsoids[start : start + CHUNK]
        truth = phantoms.rasterise(part, grid)
        regions = metrics.regions(phantoms.labels(part, grid), phantoms.CUBE / grid)
        for name, predictor in PREDICTORS.items():
            columns = scores(predictor(part, mean), truth, regions)
            rows.append(pd.DataFrame({"predictor": name, "phantom": np.arange(start, start + len(part))} | columns))
    return pd.concat(rows, ignore_index=True)


def scores(pred: Tensor, truth: Tensor, regions: metrics.Regions) -> dict[str, np.ndarray]:
    """The metrics of the baseline tables, (P,) each."""
    by_channel = {
        "rmse": metrics.rmse(pred, truth, regions.tissue),
        "nrmse": metrics.nrmse(pred, truth, regions.tissue),
        "ssim": metrics.ssim(pred, truth, regions.tissue, metrics.RANGES),
        "background_noise": metrics.background_noise(pred, truth, regions.background),
    }
    out = {f"legacy_{k}": f(pred, truth) for k, f in _LEGACY.items()}
    out["legacy_mua_rmse"] = (pred - truth)[:, 0].square().mean((1, 2, 3)).sqrt()
    out["legacy_musp_rmse"] = (pred - truth)[:, 1].square().mean((1, 2, 3)).sqrt()
    for name, value in by_channel.items():
        out |= {f"{name}_mua": value[:, 0], f"{name}_musp": value[:, 1]}
    return {name: value.double().numpy() for name, value in out.items()}


_LEGACY = {"rmse": metrics.legacy_rmse, "psnr": metrics.legacy_psnr, "ssim": metrics.legacy_ssim}


def family(name: str, n: int, grid: int, seed: int) -> pd.DataFrame:
    """`score` on `n` fresh phantoms of a family, with the mean volume of `n` others."""
    mean = phantoms.rasterise(phantoms.sample(name, n, seed, first=n), grid).mean(0)
    return score(phantoms.sample(name, n, seed), grid, mean).assign(family=name)


def summary(scores: pd.DataFrame, columns: dict[str, str], rng: np.random.Generator) -> pd.DataFrame:
    """Mean over phantoms with its 95 % BCa interval, as text, per family and predictor; and n."""
    rows = []
    for (name, predictor), part in scores.groupby(["family", "predictor"], sort=False):
        row = {"family": name, "predictor": predictor}
        for column, label in columns.items():
            row[label] = interval_text(stats.phantom_interval(part[column].to_numpy(), rng))
        rows.append(row | {"n": len(part)})
    return pd.DataFrame(rows)


def interval_text(interval: stats.Interval) -> str:
    """An estimate and its interval in three significant digits."""
    return f"{interval.estimate:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


def targets() -> pd.DataFrame:
    """The roadmap's RMSE beside the PSNR that it implies at data range 1, and the PSNR that was asked for with it."""
    rows = []
    for phase, (rmse, ssim, psnr) in ROADMAP.items():
        implied = [-20 * np.log10(r) for r in rmse]
        agree = min(implied[1], psnr[1]) >= max(implied[0], psnr[0]) - 0.05
        rows.append(
            {
                "phase": phase,
                "RMSE asked": _range(rmse, 3),
                "PSNR it implies, dB": _range(implied, 1),
                "PSNR asked, dB": _range(psnr, 1),
                "SSIM asked": _range(ssim, 3),
                "whole range consistent": "yes" if np.allclose(implied, psnr, atol=0.05) else "no",
                "any value satisfies both": "yes" if agree else "no",
            }
        )
    return pd.DataFrame(rows)


def _range(values, digits: int) -> str:
    low, high = (f"{v:.{digits}f}" for v in values)
    return low if low == high else f"{low} to {high}"


def aliasing(ellipsoids: np.ndarray, grids: tuple[int, ...]) -> pd.DataFrame:
    """What hard voxels cost: legacy RMSE between two correct descriptions of the same phantoms, per grid.

    Hard voxels against volume fractions; and hard voxels against those of the same phantom moved by a third of a voxel
    along each axis, an equally valid placement.
    """
    rows = []
    for grid in grids:
        hard, smooth = phantoms.hard(ellipsoids, grid), phantoms.rasterise(ellipsoids, grid)
        moved = ellipsoids.copy()
        moved[:, :, phantoms.CENTRE] += phantoms.CUBE / grid / 3
        row = {"grid": f"{grid}^3", "voxel, mm": phantoms.CUBE / grid}
        row["hard against fractions"] = metrics.legacy_rmse(hard, smooth).mean().item()
        row["hard against hard, moved by a third of a voxel"] = (
            metrics.legacy_rmse(hard, phantoms.hard(moved, grid)).mean().item()
        )
        rows.append(row | {"n": len(ellipsoids)})
    return pd.DataFrame(rows)
