"""The numbers of a judgement: how well volumes agree with a set of phantoms, and what a learning curve says.

Rows of metric, channel, value, and the number n of phantoms, inclusions or epochs that a value rests on. Volumes are
clamped to >= 0 but for the legacy metrics.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import metrics, trivial
from .inference import CHANNELS
from .judged_sets import Part
from .trainer import History

INSIDE = (0.85, 1.10)  # of crc
BY_PHANTOM = ("nrmse", "rmse", "ssim", "background_noise", "bias", "skill", "legacy_ssim")  # means over phantoms
BY_INCLUSION = ("contrast", "contrast_twin", "crc", "localisation", "localisation_chance")  # medians over inclusions
TRAINING = "training"  # in the place of a set: what a run's learning curve says
ROW = ["metric", "channel", "value", "n"]


def scores(raw: Tensor, raw_twin: Tensor, part: Part) -> dict[str, Tensor]:
    """What `summary` takes, a value for each phantom (P,), channel (P, 2) and inclusion (P, K, 2).

    `present`: inclusions that truly have a contrast, those that crc is defined of. `passed`: 1 where the clinical
    criterion on mua is met; a contrast that is undefined, as in an image of zeros, does not meet it.
    """
    truth, masks = part.truth, part.regions
    pred, twin = metrics.clamp(raw), metrics.clamp(raw_twin)
    fidelity = [f(pred, truth, masks.tissue) for f in (metrics.nrmse, metrics.rmse)]
    values = dict(zip(("nrmse", "rmse"), fidelity, strict=True))
    fits = truth.shape[-1] > 2 * metrics.RADIUS  # SSIM's window into the cube
    values["ssim"] = metrics.ssim(pred, truth, masks.tissue, metrics.RANGES) if fits else fidelity[0] * torch.nan
    values["skill"] = metrics.skill(pred, truth, part.reference, masks.tissue)
    values |= {f.__name__: f(pred, truth, masks.background) for f in (metrics.background_noise, metrics.bias)}
    values |= {f.__name__: f(raw, truth) for f in (metrics.legacy_rmse, metrics.legacy_ssim)}
    by_channel = [metrics.legacy_rmse(raw[:, c : c + 1], truth[:, c : c + 1]) for c in range(2)]
    values["legacy_rmse_of"] = torch.stack(by_channel, 1)
    values |= {"contrast": metrics.contrast(pred, masks), "contrast_twin": metrics.contrast(twin, masks)}
    values |= {f.__name__: f(pred, truth, masks) for f in (metrics.crc, metrics.localisation)}
    values |= {"localisation_chance": part.chance, "present": ~metrics.crc(truth, truth, masks).isnan()}
    return values | {"passed": metrics.contrast_visible(pred, twin, masks) == 1}


def summary(values: Mapping[str, Tensor]) -> pd.DataFrame:
    """The numbers of a set: rows of metric, channel, value, n.

    Means over phantoms, medians over inclusions; quantiles of nrmse, the median of skill; `legacy_rmse` pooled, of both
    channels together and of each, and its `legacy_psnr`; `crc_inside`, the share of present inclusions whose crc lies
    in `INSIDE`; `contrast_passed`, how many of the n present meet the clinical criterion: in these two an undefined
    contrast counts as not met, elsewhere what is not finite is left out of n.
    """
    rows = []
    for name in BY_PHANTOM:
        rows += _each(name, values[name], np.mean)
    rows += _each("abs_bias", values["bias"].abs(), np.mean)
    rows += _each("log_nrmse", values["nrmse"].log(), np.mean)  # of mua: the primary endpoint
    rows += _each("skill_p50", values["skill"], np.median)
    for share in (50, 95):
        rows += _each(f"nrmse_p{share}", values["nrmse"], functools.partial(np.percentile, q=share))
    rows += _each("legacy_rmse", values["legacy_rmse"], trivial.pooled)
    rows += _each("legacy_psnr", values["legacy_rmse"], lambda x: -20 * np.log10(trivial.pooled(x)))
    rows += _each("legacy_rmse", values["legacy_rmse_of"], trivial.pooled)
    present = values["present"]
    for name in BY_INCLUSION:
        rows += _each(name, values[name].where(present, torch.nan), np.median)
    inside = (values["crc"] >= INSIDE[0]) & (values["crc"] <= INSIDE[1])
    rows += _each("crc_inside", inside.double().where(present, torch.nan), np.mean)
    rows += _each("contrast_passed", values["passed"].double().where(present[..., 0], torch.nan)[..., None], np.sum)
    return pd.DataFrame(rows, columns=ROW)


def _each(name: str, values: Tensor, statistic: Callable[[np.ndarray], float]) -> list[tuple]:
    """A row for each channel, the last axis; a vector has none."""
    columns = values.double().reshape(-1, values.shape[-1] if values.ndim > 1 else 1).numpy().T
    rows = []
    for channel, column in zip(CHANNELS if values.ndim > 1 else ("",), columns, strict=False):
        kept = column[np.isfinite(column)]
        with np.errstate(divide="ignore"):  # the PSNR of what is exact
            rows.append((name, channel, float(statistic(kept)) if kept.size else np.nan, kept.size))
    return rows


def training(history: History) -> pd.DataFrame:
    """What the learning curve says, as rows of metric, channel, value, n (epochs).

    `loss_ratio`: validation over training loss of the last epoch; `roughness`: root mean square of the second
    differences of the log validation loss over the last half of the epochs, so that a straight decline has none;
    `gpu_busy`: mean busy share of the GPU, NaN where none was watched.
    """
    epochs = history.epochs
    if history.failed or epochs.empty:
        return pd.DataFrame([], columns=ROW)
    last, busy = epochs.iloc[-1], epochs["gpu_busy"].dropna()
    bends = np.diff(np.log(epochs["validation_loss"].to_numpy()[len(epochs) // 2 :]), 2)
    rows = [("loss_ratio", "", last["validation_loss"] / last["train_loss"], 1)]
    rows.append(("roughness", "", np.sqrt(np.mean(bends**2)) if bends.size else np.nan, bends.size))
    rows.append(("gpu_busy", "", busy.mean(), len(busy)))
    return pd.DataFrame(rows, columns=ROW)
