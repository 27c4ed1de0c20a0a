"""What the readings tell of an inclusion's contrast: Fisher's bound, and what is left of it in an unknown tissue.

The contrasts of mua and musp over an inclusion's true shape are two parameters of the readings, linearised about the
fitted homogeneous medium; unknown gains are projected out. The bound is of mua's, with musp's unknown, over the true
contrast: the least sd of crc that an estimate without bias can have (Kay 1993, chapter 3).
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from . import metrics
from .config import LIFTED
from .data import lifts
from .data.split import NAMES
from .evaluation import table
from .physics import lift
from .physics.lift import Linear, Prior
from .reconstruction_sets import Seen

NOISE, TISSUE = "crc_sd_noise", "crc_sd_tissue"


def limits(seen: Seen, length: float, device: str = "cpu") -> pd.DataFrame:
    """The least sd of crc of mua for each inclusion of a set's test phantoms, as rows like those of `facts`.

    `crc_sd_noise`: all else known and the noise of the readings alone, which no prior beats. `crc_sd_tissue`: around it
    a tissue as the lift's prior has it, with a correlation `length`, mm, and the model error that the lift allows for;
    who knows more of the tissue may do better.
    """
    share = seen.regions.tissue[:, None].float()
    inside = seen.regions.inclusions.float()
    size = seen.data.grid // LIFTED
    shapes = F.avg_pool3d(inside, size) / F.avg_pool3d(share, size).clamp_min(1e-9)
    sds = torch.full((2, *inside.shape[:2]), torch.nan, dtype=torch.float64)
    held = seen.view.data.model_copy(update={"train": None})
    draws = lifts.Lifts(held, seen.view.lift, seen.data.path, seen.data.labels)
    around = replace(lifts.PRIOR, length=length)
    wanted = np.flatnonzero(seen.data.labels == NAMES.index("test"))
    for p, index in enumerate(tqdm(wanted, desc="limits", file=sys.stderr)):
        place = draws.scenes(index, 1, [0], device)[0]
        fit = lifts.fitted({0: place}, index)[0]
        there = inside[p].flatten(1).any(1)
        exact = replace(place, readings=replace(place.readings, model_error=0.0))
        mine = shapes[p, there].to(device)
        sds[0, p, there] = least_sd(lift.linearise(exact, fit, LIFTED), mine).cpu()
        sds[1, p, there] = least_sd(lift.linearise(place, fit, LIFTED), mine, around).cpu()
    true = metrics.contrast(seen.truth, seen.regions)[..., :1].abs()
    return table({name: sd[..., None] / true for name, sd in zip((NOISE, TISSUE), sds, strict=True)})


def least_sd(problem: Linear, shapes: Tensor, around: Prior | None = None) -> Tensor:
    """Least sd (K,) of mua's contrast over each of some shapes (K, g, g, g), shares of voxels; musp's is unknown.

    `around`: the tissue, which is known without it.
    """
    columns = torch.einsum("mcv,kv->kmc", problem.J.double(), shapes[:, problem.tissue].double())
    if around is not None:
        _, gram = lift.covariance(problem, around)
        factor = torch.linalg.cholesky(gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        columns = torch.linalg.solve_triangular(factor, columns, upper=False)
    return torch.linalg.inv(columns.mT @ columns)[:, 0, 0].sqrt()
