"""Classical reconstructions of a dataset's readings, stored beside them: what every learned one stands beside."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import LIFTED, Data, Lift
from ..physics import gauss_newton, homogeneous, lift
from . import dataset, lifts, simulate, store
from .split import NAMES

Method = Literal["homogeneous", "tikhonov", "gaussian", "tv"]
VERSION = 1  # raised by hand whenever the same configuration would give other volumes
MOST = 12  # Gauss-Newton iterations


@dataclass(frozen=True)
class Classical:
    """Volumes of one method, from draw 0 of each phantom that `chosen` (P,) marks.

    `regularisation` is its lambda, `length`, mm, that of its prior.
    homogeneous: the fit; tikhonov: one linear step; gaussian, tv: Gauss-Newton until it converges, by its prior.
    """

    data: Data
    lift: Lift
    path: Path
    labels: np.ndarray
    chosen: np.ndarray
    method: Method
    regularisation: float
    length: float = lifts.PRIOR.length
    verb: str = "reconstruct"

    def __len__(self) -> int:
        return len(self.labels)

    def identity(self, every: bool = False) -> str:
        draws = lifts.Lifts(
            self.data, self.lift.model_copy(update={"draws": 1, "kind": "linear"}), self.path, self.labels
        )
        which = hashlib.sha256(self.chosen.tobytes()).hexdigest()[:12]
        held = {"lift": draws.identity(every), "version": VERSION, "phantoms": which, "method": self.method}
        return json.dumps(held | {"regularisation": self.regularisation, "length": self.length}, sort_keys=True)

    def make(self, first: int, count: int, device: str) -> dict[str, np.ndarray]:
        """Volumes (count, 2, 16, 16, 16), mm^-1; zeros where none is asked for."""
        draws = lifts.Lifts(self.data, self.lift, self.path, self.labels)
        out = np.zeros((count, 2, *[LIFTED] * 3), np.float32)
        used = np.flatnonzero(self.chosen[first : first + count])
        for i, place in zip(used, draws.scenes(first, count, used, device), strict=True):
            fit = lifts.fitted({i: place}, first)[0]
            out[i] = reconstruct(place, fit, self.method, self.regularisation, self.length).cpu().numpy()
        return {"estimate": out, "checks": np.zeros(count, "i4")}


def reconstruct(
    place: homogeneous.Scene, fit: homogeneous.Fit, method: Method, regularisation: float, length: float
) -> Tensor:
    """Volumes (2, 16, 16, 16), mm^-1, of one recording whose homogeneous medium is fitted."""
    if method == "homogeneous":
        return fit.values.float().view(2, 1, 1, 1).expand(2, *[LIFTED] * 3)
    prior = replace(lifts.PRIOR, length=length)
    if method == "tikhonov":
        x = lift.solve(lift.linearise(place, fit, LIFTED), prior, (regularisation,))[0]
        return lift.tikhonov(x, fit.values)
    return gauss_newton.reconstruct(place, fit, regularisation, method, prior, LIFTED, MOST).volume()


def volumes(
    data: Data, chosen: Lift, method: Method, regularisation: float, part: str, most: int | None = None,
    length: float = lifts.PRIOR.length, folder: Path | None = None,
) -> Tensor:  # fmt: skip
    """Volumes (P, 2, 16, 16, 16), mm^-1, of a part's phantoms, the first `most` of it; made where they are missing."""
    held = data.model_copy(update={"train": None})
    found = dataset.load(held, folder)
    wanted = np.flatnonzero(found.labels == NAMES.index(part))[:most]
    mask = np.zeros(len(found.labels), bool)
    mask[wanted] = True
    work = Classical(held, chosen, found.path, found.labels, mask, method, regularisation, length)
    name = hashlib.sha256(work.identity().encode()).hexdigest()[:12]
    path = found.path.with_name(f"{found.path.stem}.{method}-{name}.h5")
    simulate.fill(work, path)
    with store.File(path) as file:
        return torch.from_numpy(file.raw("estimate")[mask])


def refined(coarse: Tensor, fraction: Tensor) -> Tensor:
    """Volumes on the grid of the tissue's fractions (P, 1, G, G, G), by trilinear interpolation inside the tissue."""
    grid = fraction.shape[-1]
    inside = F.avg_pool3d(fraction.float(), grid // coarse.shape[-1]) > 0
    size = {"size": (grid,) * 3, "mode": "trilinear", "align_corners": False}
    spread, share = (F.interpolate(v, **size) for v in (coarse * inside, inside.float()))
    return spread / share.clamp_min(1e-6) * fraction
