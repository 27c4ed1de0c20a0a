"""The numbers of reconstructions on one set: errors, inclusions, lesions that are found, calibration of an sd."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import metrics
from .evaluation import homogeneous, table
from .inference import CHANNELS
from .reconstruction_sets import HOME, SEED, Seen

# of `metrics.evaluate`, what is kept of the test phantoms; elsewhere errors, contrast and what shows in a wrong channel
KEPT = (
    "nrmse", "nrmse_covered", "nrmse_uncovered", "ssim", "skill_homogeneous", "skill_fitted",
    "skill_homogeneous_covered", "skill_fitted_covered", "background_noise_covered", "bias_covered", "background_noise",
    "bias", "crc", "contrast", "cnr", "localisation", "dice", "volume_ratio",
)  # fmt: skip
LEVELS = np.geomspace(2e-4, 2e-2, 48)  # thresholds of a lesion above its background: mua, mm^-1
OF_MUSP = 100.0  # thresholds of musp over those of mua
RATE = 0.1  # false lesions a tumour-free phantom at the operating point
BINS = 10
BEYOND = 1.959963984540054  # of a normal distribution, in sd: 5 %


def scores(pred: Tensor, seen: Seen, union: Tensor | None = None) -> pd.DataFrame:
    """Volumes (P, 2, D, H, W) on one set as rows of metric, phantom, inclusion, channel, value.

    `union`: what any probe of the sets that are compared covers, (P, D, H, W), for `nrmse_union`.
    """
    if seen.view.name == HOME:
        references = {"homogeneous": homogeneous(seen.truth, seen.fraction.float()), "fitted": seen.fitted}
        found = metrics.evaluate(pred, seen.truth, seen.labels, seen.data.voxel, references, seen.covered)
        return table({name: found[name] for name in KEPT})
    clamped, masks = metrics.clamp(pred), seen.regions
    parts = {"": masks.tissue, "_covered": masks.tissue & seen.covered}
    parts |= {} if union is None else {"_union": masks.tissue & union}
    found = {f"nrmse{name}": metrics.nrmse(clamped, seen.truth, mask) for name, mask in parts.items()}
    found |= {f.__name__: f(clamped, seen.truth, masks) for f in (metrics.crc, metrics.crosstalk)}
    return table(found | {"contrast": metrics.contrast(clamped, masks)})


def facts(seen: Seen) -> pd.DataFrame:
    """What is true of the inclusions of a set, as rows like those of `scores`; of mua where a channel has one."""
    masks = seen.regions
    found = {"contrast": metrics.contrast(seen.truth, masks)}
    if seen.view.name == HOME:
        chance = torch.Generator().manual_seed(SEED)
        found["localisation"] = metrics.localisation_chance(seen.truth, masks, chance)
        places = {"distance": seen.distance, "radius": seen.radius, "covered": seen.share}
        present = masks.inclusions.flatten(2).any(-1)
        found |= {name: value.where(present, torch.nan)[..., None] for name, value in places.items()}
    return table(found)


def twins(pred: Tensor, twin: Tensor, seen: Seen) -> pd.DataFrame:
    """The clinical criterion, 1 where it is met, by phantoms and the same without tumours under one probe."""
    met = metrics.contrast_visible(metrics.clamp(pred), metrics.clamp(twin), seen.regions)
    return table({"contrast_visible": met[..., None]})


def thresholds() -> Tensor:
    """Thresholds (N, 2) of mua and musp, mm^-1."""
    return torch.from_numpy(np.stack([LEVELS, OF_MUSP * LEVELS], 1))


def lesions(pred: Tensor, seen: Seen, empty: Tensor, of_empty: Seen) -> pd.DataFrame:
    """The free-response curve: rows of channel, threshold, recall, false_lesions (a phantom), operating.

    `operating`: from which threshold upwards the tumour-free phantoms `of_empty`, reconstructed as `empty`, show at
    most 0.1 false lesions each; none is marked where the highest threshold still shows more.
    """
    levels = thresholds()
    found = metrics.froc(metrics.clamp(pred), seen.regions, levels)
    none = metrics.froc(metrics.clamp(empty), of_empty.regions, levels).false_lesions
    frames = []
    for c, channel in enumerate(CHANNELS):
        many = np.flatnonzero(none[:, c].numpy() > RATE)
        first = many[-1] + 1 if many.size else 0
        frame = {"threshold": levels[:, c], "recall": found.recall[:, c], "false_lesions": found.false_lesions[:, c]}
        frames.append(
            pd.DataFrame({name: x.numpy() for name, x in frame.items()}).assign(
                channel=channel, operating=np.arange(len(levels)) == first
            )
        )
    return pd.concat(frames, ignore_index=True)


def calibration(volumes: Tensor, seen: Seen, scale: Tensor | None = None) -> pd.DataFrame:
    """An ensemble's sd against its error: rows of part, channel, bin, sd, rmse, beyond, n (voxels).

    `volumes` (R, P, 2, D, H, W) of R networks; the sd is that of one of them, about their mean, times `scale` (2,).
    Bins of equal size by sd, within the covered tissue and the rest; `beyond`: share of voxels whose error exceeds 1.96
    sd, 5 % of a calibrated normal error.
    """
    mean, sd = volumes.mean(0), volumes.std(0)
    sd = sd if scale is None else sd * scale.view(2, 1, 1, 1)
    error, tissue, frames = (mean - seen.truth).abs(), seen.regions.tissue, []
    for part, mask in {"covered": tissue & seen.covered, "uncovered": tissue & ~seen.covered}.items():
        for c, channel in enumerate(CHANNELS):
            spread, off = (x[:, c][mask].double().numpy() for x in (sd, error))
            for b, chosen in enumerate(np.array_split(np.argsort(spread, kind="stable"), BINS)):
                row = {"part": part, "channel": channel, "bin": b, "n": len(chosen)}
                row |= {name: np.sqrt(np.mean(x[chosen] ** 2)) for name, x in (("sd", spread), ("rmse", off))}
                frames.append(row | {"beyond": np.mean(off[chosen] > BEYOND * spread[chosen])})
    return pd.DataFrame(frames)


def inflation(volumes: Tensor, truth: Tensor, tissue: Tensor) -> Tensor:
    """The factor (2,) by which an ensemble's sd is to be multiplied so that its mean square is that of the error."""
    mean, sd = volumes.mean(0), volumes.std(0)
    return (metrics.mean((mean - truth).square(), tissue).mean(0) / metrics.mean(sd.square(), tissue).mean(0)).sqrt()
