"""Objects to shine light at: spheres with a known answer, and phantoms with a probe."""

from functools import cache

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dotlib.data import phantoms, probe
from dotlib.data.recording import medium
from dotlib.data.surface import Surface
from dotlib.physics import diffusion, green

FREQUENCY = 140e6
# radius, centre, mua, musp: the ranges of the default family, centres off the grid, and their middle
SPHERES = [
    (25.0, (0.37, -0.81, 0.52), 0.003, 0.78),
    (26.3, (-0.93, 0.14, 0.66), 0.007, 0.78),
    (27.4, (0.05, 0.49, -0.71), 0.005, 0.98),
    (28.8, (-0.28, -0.57, 0.90), 0.003, 1.18),
    (30.0, (0.61, 0.33, -0.12), 0.007, 1.18),
    (27.0, (-0.45, 0.97, 0.23), 0.0042, 1.07),
]


def tissue(axes, centre=(0, 0, 0), rotation=None, exponent=2.0, mua=0.005, musp=1.0):
    """A tissue row (13,)."""
    quaternion = (rotation or Rotation.identity()).as_quat()
    return np.array([*centre, *np.broadcast_to(axes, 3), *quaternion, exponent, mua, musp])


def phantom(grid, index=0, family="default"):
    """A phantom in its probe's frame, float64: medium, probe, table."""
    rows, optodes = probe.draw(phantoms.sample(family, 1, 0, index)[0], 0, index)
    return medium(rows, grid), optodes, rows


def patch(row, number, seed, radius=30.0):
    """Points of the surface within `radius` of a random one of them."""
    rng = np.random.default_rng(seed)
    surface, points = Surface(row), rng.standard_normal((40 * number, 3))
    points = surface.along(points)
    return points[np.linalg.norm(points - points[0], axis=1) < radius][:number]


@cache
def sphere_error(grid, case, precise=True, tumour=False):
    """Errors of ln A and phase (deg) over all pairs 10-40 mm of one of SPHERES, and their separations."""
    radius, centre, mua, musp = SPHERES[case]
    mua, musp = (0.012, 2.0) if tumour else (mua, musp)
    row = tissue(radius, centre, mua=mua, musp=musp)
    points = patch(row, 64, case)
    sources, detectors = points[:32], points[32:]
    constant = torch.ones(grid, grid, grid, dtype=torch.float64)
    there = diffusion.Medium(mua * constant, musp * constant, Surface(row), phantoms.CUBE / grid)
    separation = np.linalg.norm(sources[:, None] - detectors, axis=-1)
    pairs = np.argwhere((separation >= 10) & (separation <= 40))
    found = diffusion.readings([there], sources[None], detectors[None], pairs[None], FREQUENCY, precise=precise)[0]
    inner = (sources - centre) * (1 - 1 / musp / radius)
    exact = np.stack([green.sphere(s, detectors - np.array(centre), radius, mua, musp, FREQUENCY) for s in inner])
    ratio = found / exact[tuple(pairs.T)]
    return np.log(np.abs(ratio)), np.degrees(np.angle(ratio)), separation[tuple(pairs.T)]


def pooled(grid, cases, **options):
    """Median and 95 % quantile of |ln A| and |phase| over some of SPHERES: (2, 2)."""
    errors = np.concatenate([np.abs(sphere_error(grid, case, **options)[:2]) for case in cases], 1)
    return np.quantile(errors, (0.5, 0.95), axis=1).T
