"""Sets of made-up phantoms on which reconstructions are judged: spheres of one value each, without light."""

import numpy as np
import torch

from dotlib import metrics
from dotlib.config import CHANNELS, LIFTED, Data, Lift, Measurements
from dotlib.data import phantoms
from dotlib.data.dataset import Dataset
from dotlib.reconstruction_sets import FRESH, Seen, View, radii, shares

RADIUS, MUA, MUSP = 26.0, 0.005, 1.0  # of the tissue
BASE = Data(
    phantoms=3, fractions=(1, 1, 1), grid=16, seed=3, measurements=Measurements(sources=8, detectors=12, pairs=64)
)


def table(*spheres):
    """A phantom (6, 13): spheres of (centre, radius, mua, musp) in a ball of tissue."""
    out = np.full((phantoms.ROWS, phantoms.COLUMNS), np.nan, "f4")
    for k, (centre, radius, mua, musp) in enumerate([((0, 0, 0), RADIUS, MUA, MUSP), *spheres]):
        out[k] = [*centre, radius, radius, radius, 0, 0, 0, 1, 2, mua, musp]
    return out


def made_up(tables, name=FRESH, group=None, grid=16, covered=None, data=BASE):
    """A set of phantoms by their tables, whose truth has hard edges; half of the cube is covered, z > 0."""
    tables = np.stack(tables)
    labels, truth = phantoms.labels(tables, grid), phantoms.hard(tables, grid)
    if covered is None:
        covered = torch.zeros(len(tables), grid, grid, grid, dtype=torch.bool)
        covered[..., grid // 2 :] = True
    regions = metrics.regions(labels, phantoms.CUBE / grid, phantoms.ROWS - 1)
    fraction = (labels > 0).half()[:, None]
    lifted = torch.zeros(len(tables), len(CHANNELS), *[LIFTED] * 3, dtype=torch.float16)
    lifted[:, -3:] = torch.tensor([1, MUA, MUSP]).view(3, 1, 1, 1)
    return Seen(
        View(name, group or name, data, Lift()), Dataset(tables, np.full(len(tables), 2, np.int8), grid), lifted,
        fraction, truth, labels, covered, regions, torch.full((len(tables), 5), 7.0, dtype=torch.float64),
        radii(tables), shares(regions, covered),
    )  # fmt: skip
