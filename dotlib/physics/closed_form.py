"""The lift without a solver: half-space Green's functions on each optode's tangent plane, in place of solved fields.

Cheap, and weaker: on a curved surface a half-space fit puts musp 20 to 35 % low, and what it explains is only its own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import geometry, green, lift
from .geometry import Surface
from .homogeneous import BOUNDS, FitError
from .lift import Linear
from .rytov import Readings, rows

START = (0.005, 0.8)  # mm^-1: about what a half-space makes of the default family's readings
STEPS = 12
CLOSE = 1e-3  # of ln mua, ln musp
APART = 1e-4  # of them, for derivatives


def fit(readings: Readings) -> tuple[Tensor, Tensor]:
    """mua and musp (2,), mm^-1, of a half-space with the same straight-line separations, and its readings (M,).

    Gauss-Newton with unknown gains left free. Raises FitError where they do not settle within what tissue can have.
    """
    s, d = readings.pairs.T
    separation = (readings.sources[s] - readings.detectors[d]).norm(dim=1).cpu().numpy()

    def model(where: np.ndarray) -> Tensor:
        found = green.semi_infinite(separation, *np.exp(where), readings.frequency, readings.n)
        return torch.as_tensor(found, device=readings.pairs.device)

    where = np.log(START)
    for _ in range(STEPS):
        phi = model(where)
        slopes = torch.stack([(model(where + move).log() - phi.log()) / APART for move in APART * np.eye(2)], 1)
        white = readings.white(torch.cat([slopes.real, slopes.imag]))
        left = readings.white(readings.difference(phi))
        step = torch.linalg.lstsq(white, left[:, None]).solution[:, 0].clamp(-0.7, 0.7).cpu().numpy()
        where = np.clip(where + step, *np.log(BOUNDS).T)
        if np.abs(step).max() < CLOSE:
            return torch.as_tensor(np.exp(where), device=readings.pairs.device), model(where)
    raise FitError(0, f"the half-space still moves after {STEPS} steps; are these readings of a patch of tissue?")


def linearise(surface: Surface, readings: Readings, cube: float, grid: int = 16) -> Linear:
    """The readings linearised about the half-space that fits them, on `grid`^3 voxels of a cube of `cube` mm.

    Raises what `fit` does.
    """
    values, phi = fit(readings)
    device, voxel = readings.pairs.device, cube / grid
    places = geometry.centres(torch.arange(grid**3, device=device), grid, voxel)
    tissue = surface(places, 0.0)[0] < voxel / 2
    by_log = rows(_derivatives(surface, readings, values, places[tissue], voxel), phi) * values.float()[:, None]
    return lift.linear(readings, by_log, readings.difference(phi), values, tissue.view(grid, grid, grid), voxel)


def _derivatives(surface: Surface, readings: Readings, values: Tensor, places: Tensor, voxel: float) -> Tensor:
    """Derivatives (M, 2, V) of the half-space's readings by mua and musp in voxels at `places` (V, 3)."""
    mua, musp = values.tolist()
    D = 1 / (3 * (mua + musp))
    k = complex(green.wave_number(mua, musp, readings.frequency, readings.n))
    raised = 4 * green.boundary_parameter(readings.n).item() * D
    out = []
    for points, depth in ((readings.sources, 1 / musp), (readings.detectors, 0.0)):
        normal = surface(points, float("inf"))[1]
        near, near_slope = _point(places, points - depth * normal, k, D, voxel)
        far, far_slope = _point(places, points + (depth + raised) * normal, k, D, voxel)
        out.append((near - far, near_slope - far_slope))
    (phi, phi_slope), (psi, psi_slope) = out
    s, d = readings.pairs.T
    by_mua = -(phi[s] * psi[d]) * voxel**3
    by_musp = 3 * D**2 * voxel**3 * sum(a[s] * b[d] for a, b in zip(phi_slope, psi_slope, strict=True))
    return torch.stack([by_mua + by_musp, by_musp], 1)


def _point(places: Tensor, points: Tensor, k: complex, D: float, voxel: float) -> tuple[Tensor, Tensor]:
    """Fluence (O, V) and its gradient (3, O, V) of point sources in an infinite medium, no nearer than half a voxel."""
    way = (places.T[:, None] - points.T[:, :, None]).float()
    r = way.norm(dim=0).clamp_min(voxel / 2)
    phi = torch.polar(torch.exp(-k.real * r) / (4 * torch.pi * D * r), -k.imag * r)
    return phi, (-phi * (k + 1 / r) / r) * way
