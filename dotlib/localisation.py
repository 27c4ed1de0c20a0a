"""Do attention maps find tumours? Maps of trained networks scored against the tumours, beside what needs no attention.

A score is one number a voxel, on the volume's grid; a stage's are upsampled to it (trilinear). It is judged inside the
tissue, against the union of the inclusions, by voxel centres from the truth's labels.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import inference, study
from .data import phantoms
from .data.dataset import Dataset
from .models.attention import SpatialGate
from .models.autoencoder import Autoencoder
from .models.blocks import initialise

DRAWS = 20  # gates with random weights
MOST = 64  # test phantoms, the first
BATCH = 8  # phantoms at a time
INPUT = "input"  # in the place of a stage: what has the volume's own grid
MAP, NORM, RANDOM, GRADIENT, MUA = "gate's map", "feature norm", "random gates", "input gradient", "mua itself"
COLUMNS = ["arm", "seed", "stage", "score", "draw", "phantom", "auc", "ap", "prevalence"]

Scores = Mapping[tuple[str, str], Tensor]  # (stage, score): (B, draws, D, H, W)


def auc_and_ap(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve, and average precision, of each row of scores, (K, n) against bool (n,): two of (K,).

    AUC is the probability that a positive voxel scores higher than another one, ties counting half (Hanley & McNeil
    1982). AP is the sum over thresholds of precision x the recall that the threshold adds, voxels of one score at once
    (Davis & Goadrich 2006): of a score that knows nothing about the share of positive voxels, and just that where all
    are tied. NaN without positive voxels, without others, and where a score is not a number.
    """
    found, others = np.full((2, len(scores)), np.nan), int((~positive).sum())
    for i, row in enumerate(scores if positive.any() and others else ()):
        if not np.isnan(row).any():
            own, rest = np.sort(row[positive]), np.sort(row[~positive])  # sorted halves: ten times as fast as ranks
            below, up_to = np.searchsorted(rest, own), np.searchsorted(rest, own, "right")
            hits = len(own) - np.searchsorted(own, own)  # positive voxels at or above each of them
            found[:, i] = (below + up_to).mean() / (2 * others), (hits / (hits + others - below)).mean()
    return found[0], found[1]


def gate_of(model: Autoencoder, stage: str) -> nn.Module | None:
    """What is added behind a stage as attention, or None."""
    added = getattr(model.network, "added", {})
    return added[stage].gate if stage in added else None


@contextlib.contextmanager
def _judging(model: nn.Module) -> Iterator[None]:
    """The model as it predicts; afterwards in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def entering(model: Autoencoder, volumes: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
    """What enters the gate of each stage, (B, C, d, d, d), or leaves a stage that has none."""
    entered: dict[str, Tensor] = {}
    with _judging(model), contextlib.ExitStack() as hooks:
        for stage in stages:
            if (gate := gate_of(model, stage)) is not None:
                note = gate.register_forward_pre_hook(lambda _, x, stage=stage: entered.__setitem__(stage, x[0]))
                hooks.callback(note.remove)
        features = model.features(inference.prepared(volumes))
    return {stage: entered.get(stage, features[stage]) for stage in stages}


def gradient(model: Autoencoder, volumes: Tensor) -> Tensor:
    """|d ||code||^2 / d z| summed over the channels, (B, 1, D, H, W), z the standardised volume (Simonyan 2014).

    Of z and not of mm^-1, whose two units could not be added: a change by one standard deviation counts alike in both.
    """
    with _judging(model), torch.enable_grad():
        z = model.standard(inference.prepared(volumes)).detach().requires_grad_()
        (slope,) = torch.autograd.grad(model.network.encode(z).square().sum(), z)
    return slope.abs().sum(1, keepdim=True)


@torch.no_grad()
def scores(model: Autoencoder, volumes: Tensor, stages: Sequence[str], draws: int = DRAWS) -> dict:
    """Every score of some phantoms (B, 2, D, H, W), by (stage, score): (B, 1, D, H, W); `RANDOM` has `draws` of them.

    A stage has the map of its gate, if that has one; the norm of the features that enter the gate; and the maps of the
    specification's gate with random weights, the same for every network, on the same features. `INPUT` has the input
    gradient, and the absorption coefficient that the network is shown.
    """
    found, grid = {}, volumes.shape[2:]
    for stage, x in entering(model, volumes, stages).items():
        gate = gate_of(model, stage)
        seen = None if gate is None else gate.map(x)
        maps = {} if seen is None else {MAP: seen}
        drawn = (initialise(SpatialGate(x.shape[1]), seed).to(x.device) for seed in range(draws))
        maps |= {NORM: x.norm(dim=1, keepdim=True), RANDOM: torch.cat([gate.map(x) for gate in drawn], 1)}
        for name, values in maps.items():
            found[stage, name] = F.interpolate(values.float(), size=grid, mode="trilinear", align_corners=False)
    return found | {(INPUT, GRADIENT): gradient(model, volumes), (INPUT, MUA): volumes[:, :1].float()}


def judge(found: Scores, labels: np.ndarray, first: int = 0) -> pd.DataFrame:
    """Scores of phantoms `first`, ... against their labels (B, D, H, W): the last seven of `COLUMNS`."""
    keys = [(*key, draw) for key, values in found.items() for draw in range(values.shape[1])]
    values = torch.cat(list(found.values()), 1).cpu().numpy()
    frames = []
    for p, label in enumerate(labels):
        tissue = label > 0
        positive, inside = label[tissue] > 1, values[p][:, tissue]
        frame = pd.DataFrame(keys, columns=["stage", "score", "draw"]).assign(phantom=first + p)
        auc, ap = auc_and_ap(inside, positive)
        frames.append(frame.assign(auc=auc, ap=ap, prevalence=positive.mean() if positive.size else np.nan))
    return pd.concat(frames, ignore_index=True)


def networks(name: str, profile: str, seeds: int, store: Path, on: str = "cpu") -> dict[tuple[str, int], Autoencoder]:
    """The trained networks of a study whose runs are computed, by (arm, seed), last checkpoint; none that diverged."""
    wanted = study.members(name, profile, seeds, store)
    return {
        key: inference.trained(run.config, run.folder(), on=on)
        for key, run in wanted.items()
        if not run.result().failed
    }


def test_part(data: Dataset, on: str = "cpu") -> tuple[Tensor, np.ndarray]:
    """The first `MOST` test phantoms: volumes (P, 2, D, H, W), mm^-1, and labels (P, D, H, W)."""
    tables = data.part("test")[:MOST]
    return phantoms.rasterise(tables, data.grid, on), phantoms.labels(tables, data.grid).numpy()


def table(
    models: Mapping[tuple[str, int], Autoencoder], volumes: Tensor, labels: np.ndarray, stages: Sequence[str]
) -> pd.DataFrame:
    """Every network's scores on phantoms (P, 2, D, H, W) with labels (P, D, H, W): a row a score, draw and phantom."""
    frames = []
    for (arm, seed), model in models.items():
        for first in range(0, len(volumes), BATCH):
            chosen = slice(first, first + BATCH)
            rows = judge(scores(model, volumes[chosen], stages), labels[chosen], first)
            frames.append(rows.assign(arm=arm, seed=seed))
    return pd.concat(frames, ignore_index=True)[COLUMNS] if frames else pd.DataFrame(columns=COLUMNS)


def largest(labels: np.ndarray) -> tuple[int, int, int]:
    """The voxel of the largest inclusion that lies nearest to its centroid; labels (D, H, W).

    Raises ValueError where there is no inclusion.
    """
    counts = np.bincount(labels.ravel(), minlength=3)[2:]
    if not counts.any():
        raise ValueError(f"labels {labels.shape}: no inclusion; a phantom with one is needed")
    voxels = np.argwhere(labels == 2 + counts.argmax())
    return tuple(int(i) for i in voxels[np.square(voxels - voxels.mean(0)).sum(1).argmin()])
