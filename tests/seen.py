"""Sets on which reconstructions are judged: made-up spheres of one value each without light, and few phantoms with."""

import numpy as np
import pytest
import torch
from tiny import Inline

from dotlib import metrics
from dotlib.config import CHANNELS, LIFTED, Data, Lift, Measurements
from dotlib.data import phantoms, simulate
from dotlib.data.dataset import Dataset
from dotlib.reconstruction_sets import FRESH, Seen, View, load, radii, shares, views

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


class Lit(dict):
    """Sets of BASE by name, simulated and lifted in `folder` when first asked for."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def __missing__(self, name):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulate, "ProcessPoolExecutor", Inline)
            patch.setattr(simulate, "_pace", lambda shard: 0.0)  # nothing is made twice for the time it takes
            self[name] = load(views(BASE)[name], self.folder)
        return self[name]
