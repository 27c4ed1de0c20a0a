"""The judgement of a trained network on the frozen test set."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from . import metrics
from .config import Config
from .data import phantoms, samples
from .data.dataset import Dataset
from .inference import CHANNELS, predict


def judge(
    model: nn.Module, data: Dataset, dtype: torch.dtype = torch.float32, config: Config | None = None
) -> pd.DataFrame:
    """Every volume metric on the test set, one row per (metric, phantom, channel[, inclusion]).

    `config`, of a network that sees lifts: its phantoms' draw 0 and what their probes cover; `skill` then is against
    the best homogeneous volume ("homogeneous") and the one that was fitted to the readings ("fitted").
    """
    on = next(model.parameters()).device
    labels = phantoms.labels(data.part("test"), data.grid)
    if config is None or config.task == "autoencode":
        truth = data.volumes("test", on)
        return table(metrics.evaluate(predict(model, truth, dtype).cpu(), truth.cpu(), labels, data.voxel))
    seen = samples.of(config, data, "test", on)
    truth, fraction = data.volumes("test"), samples.fractions(data, "test").float()
    fitted = seen.lifts[:, 0, -2:].float().amax((2, 3, 4), keepdim=True).cpu() * seen.fraction.float().cpu()
    found = predict(model, seen.frozen(), dtype).cpu()
    references = {"homogeneous": homogeneous(truth, fraction), "fitted": fitted}
    return table(metrics.evaluate(found, truth, labels, data.voxel, references, samples.covered(config, data)))


def homogeneous(truth: Tensor, fraction: Tensor) -> Tensor:
    """The homogeneous medium of least squared error, as volumes (P, 2, D, H, W): no fit to readings can
    be better in all of the tissue."""
    share = (truth * fraction).sum((2, 3, 4), keepdim=True) / fraction.square().sum((2, 3, 4), keepdim=True)
    return share * fraction


def table(values: dict[str, Tensor]) -> pd.DataFrame:
    """The columns of `metrics.evaluate`, (P,), (P, C) or (P, K, C), as rows of one value each.

    `channel` is empty for values that pool both, `inclusion` -1 for those that concern the whole phantom.
    """
    frames = []
    for metric, value in values.items():
        grid = np.indices(value.shape).reshape(value.ndim, -1)
        channel = [""] * value.numel() if value.ndim == 1 else [CHANNELS[c] for c in grid[-1]]
        inclusion = grid[1] if value.ndim == 3 else np.full(value.numel(), -1)
        row = {"metric": metric, "phantom": grid[0], "inclusion": inclusion, "channel": channel}
        frames.append(pd.DataFrame(row | {"value": value.double().flatten().numpy()}))
    return pd.concat(frames, ignore_index=True)


def ssim_share(data: Dataset) -> float:
    """Share of the test set's tissue in which the SSIM window fits: what `ssim` rests on."""
    tissue = data.tissue("test")
    return (metrics.erode(tissue).sum() / tissue.sum()).item()


def showcase(data: Dataset) -> tuple[np.ndarray, int]:
    """The first test phantom, as a table (1, 6, 13), and the z index of the plane through its largest inclusion."""
    chosen = data.part("test")[:1]
    sizes = np.nan_to_num(chosen[0, 1:, phantoms.AXES]).prod(-1)
    z = np.nan_to_num(chosen[0, 1 + sizes.argmax(), phantoms.CENTRE])[2]
    return chosen, int(np.clip((z + phantoms.CUBE / 2) // data.voxel, 0, data.grid - 1))
