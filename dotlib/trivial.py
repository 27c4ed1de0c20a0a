"""What predictors that know nothing, or only the tissue, score; and the arithmetic of the earlier work's targets."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import metrics, stats
from .data import phantoms
from .data.phantoms import FAMILIES

CHUNK = 16
MEAN_TISSUE = tuple(sum(bounds) / 2 for bounds in (FAMILIES["default"].mua, FAMILIES["default"].musp))  # mm^-1

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
    out = {"legacy_rmse": metrics.legacy_rmse(pred, truth), "legacy_ssim": metrics.legacy_ssim(pred, truth)}
    out["legacy_mua_rmse"] = (pred - truth)[:, 0].square().mean((1, 2, 3)).sqrt()
    out["legacy_musp_rmse"] = (pred - truth)[:, 1].square().mean((1, 2, 3)).sqrt()
    for name, value in by_channel.items():
        out |= {f"{name}_mua": value[:, 0], f"{name}_musp": value[:, 1]}
    return {name: value.double().numpy() for name, value in out.items()}


def family(name: str, n: int, grid: int, seed: int) -> pd.DataFrame:
    """`score` on `n` fresh phantoms of a family, with the mean volume of `n` others."""
    mean = phantoms.rasterise(phantoms.sample(name, n, seed, first=n), grid).mean(0)
    return score(phantoms.sample(name, n, seed), grid, mean).assign(family=name)


def summary(scores: pd.DataFrame, columns: dict[str, str], rng: np.random.Generator) -> pd.DataFrame:
    """Mean over phantoms with its 95 % BCa interval, as text, per family and predictor; and n.

    `legacy_rmse` is pooled (root mean square), and `legacy_psnr` is computed from it.
    """
    rows = []
    for (name, predictor), part in scores.groupby(["family", "predictor"], sort=False):
        row = {"family": name, "predictor": predictor}
        for column, label in columns.items():
            if column in ("legacy_rmse", "legacy_psnr"):
                interval = stats.phantom_interval(part["legacy_rmse"].to_numpy(), rng, pooled)
                interval = psnr(interval) if column == "legacy_psnr" else interval
            else:
                interval = stats.phantom_interval(part[column].to_numpy(), rng)
            row[label] = interval_text(interval)
        rows.append(row | {"n": len(part)})
    return pd.DataFrame(rows)


def pooled(rmse: np.ndarray, axis: int = -1) -> np.ndarray:
    """RMSE over all phantoms together."""
    return np.sqrt(np.mean(np.square(rmse), axis=axis))


def psnr(rmse: stats.Interval) -> stats.Interval:
    """The PSNR, dB, that an RMSE implies at data range 1."""
    value, high, low = (float(-20 * np.log10(x)) for x in rmse[:3])
    return stats.Interval(value, low, high, rmse.n)


def beside_reported(scores: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Where the earlier baseline's RMSE lies beside the 95 % interval of each tumour-free ellipsoid."""
    reported, rows = ROADMAP["baseline"][0][0], []
    for (name, predictor), part in scores.groupby(["family", "predictor"], sort=False):
        if predictor.startswith("ellipsoid"):
            interval = stats.phantom_interval(part["legacy_rmse"].to_numpy(), rng, pooled)
            place = "below" if reported < interval.low else "above" if reported > interval.high else "inside"
            row = {"family": name, "predictor": predictor, "pooled RMSE": interval_text(interval)}
            rows.append(row | {f"reported {reported} lies": place, "n": len(part)})
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
    """What hard voxels cost: pooled legacy RMSE between two correct descriptions of the same phantoms, per grid.

    Hard voxels against volume fractions; and each against itself for the phantom moved by a third of a voxel along each
    axis, where what fractions show is the movement and what hard voxels show beyond it is aliasing.
    """
    rows = []
    for grid in grids:
        hard, smooth = phantoms.hard(ellipsoids, grid), phantoms.rasterise(ellipsoids, grid)
        moved = ellipsoids.copy()
        moved[:, :, phantoms.CENTRE] += phantoms.CUBE / grid / 3
        row = {"grid": f"{grid}^3", "voxel, mm": phantoms.CUBE / grid}
        pairs = {
            "hard against fractions": (hard, smooth),
            "hard against hard, moved": (hard, phantoms.hard(moved, grid)),
            "fractions against fractions, moved": (smooth, phantoms.rasterise(moved, grid)),
        }
        for name, pair in pairs.items():
            row[name] = float(pooled(metrics.legacy_rmse(*pair).numpy()))
        rows.append(row | {"n": len(ellipsoids)})
    return pd.DataFrame(rows)
