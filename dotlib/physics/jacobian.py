"""Sensitivity of readings to the medium, by adjoint fields: the exact derivative of the discretised readings.

A reading is d^T A^-1 s. Its derivative has three parts: -psi^T dA phi, with the fields phi of the source and psi of the
detector, and those of the two operators, which depend on the tissue around the optode (Arridge 1995).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import jvp

from . import diffusion, geometry, optodes
from .diffusion import Operator, System

CHUNK = 64  # pairs at a time


@dataclass(frozen=True)
class Fields:
    """One object's sources and detectors and their fields (N, S), (N, K)."""

    sources: Operator
    detectors: Operator
    phi: Tensor
    psi: Tensor


def fields(system: System, sources: Tensor, detectors: Tensor, precise: bool = False) -> Fields:
    """The fields of sources (S, 3) and detectors (K, 3), mm, on the surface."""
    s, d = system.optodes(sources, True, "source"), system.optodes(detectors, False, "detector")
    n = len(system.cells)
    phi = diffusion.solve([system], [torch.cat([s.columns(n), d.columns(n)], 1)], precise)[0]
    return Fields(s, d, phi[:, : len(sources)], phi[:, len(sources) :])


def jacobian(
    system: System, light: Fields, pairs: Tensor, grid: int, parameters: Literal["mua D", "mua musp"] = "mua musp"
) -> tuple[Tensor, Tensor]:
    """Readings (M,) and their derivatives (M, 2, grid, grid, grid), complex, mm^-2 per unit of mua and D (or musp).

    The parameters of a coarse voxel change all cells in it alike; `grid` divides the system's. Divided by the reading,
    the derivative is that of ln A (real part) and of minus the phase (imaginary part). Memory grows with M grid^3.
    """
    cells = system.cells
    if cells.grid % grid:
        raise ValueError(f"jacobian: grid {grid} does not divide the system's {cells.grid}")
    if parameters not in ("mua D", "mua musp"):
        raise ValueError(f"jacobian: parameters {parameters!r}; 'mua D' or 'mua musp' is accepted")
    pairs = torch.as_tensor(pairs, dtype=torch.long, device=light.phi.device)
    s, d = pairs.T
    readings = light.detectors.read(light.phi)[d, s]
    out = light.phi.new_empty(len(pairs), 2, grid**3)
    gather = _Gather(system, grid, parameters)
    for part in torch.arange(len(pairs), device=pairs.device).split(CHUNK):
        out[part] = gather(light.phi, light.psi, s[part], d[part])
    gather.add_operators(out, light.sources, s, light.psi, d)
    gather.add_operators(out, light.detectors, d, light.phi, s)
    return readings, out.unflatten(2, (grid, grid, grid))


class _Gather:
    """Sums over the cells of each coarse voxel, of derivatives with respect to a cell's own mua and D."""

    def __init__(self, system: System, grid: int, parameters: str):
        cells, D = system.cells, system.D
        self.system, self.parameters, self.size = system, parameters, grid**3
        steps = geometry.steps(cells.index, cells.grid) // (cells.grid // grid)
        self.voxel = (steps[:, 0] * grid + steps[:, 1]) * grid + steps[:, 2]
        other = torch.cat([D, D[:1]])[cells.neighbour]
        self.volume = cells.volume * cells.h**3
        # d coupling / dD of this side of the face
        self.face = cells.aperture * cells.h * 2 * other**2 / (D[:, None] + other) ** 2
        depth = cells.depth / D
        series = 2 * system.A + depth
        free = depth > -diffusion.OUTSIDE * system.A  # where the depth is clamped, D does not count
        self.wall = torch.where(free, cells.wall * cells.h**2 * depth / (D * series**2), 0.0)

    def __call__(self, phi: Tensor, psi: Tensor, s: Tensor, d: Tensor) -> Tensor:
        """-psi^T dA phi of pairs (m,): (m, 2, grid^3)."""
        zero = phi.new_zeros(1, len(s))
        a, b = torch.cat([phi[:, s], zero]), torch.cat([psi[:, d], zero])
        product = a[:-1] * b[:-1]
        by_D = self.wall[:, None] * product
        for face in range(6):
            other = self.system.cells.neighbour[:, face]
            by_D += self.face[:, face, None] * ((a[:-1] - a[other]) * (b[:-1] - b[other]))
        out = phi.new_zeros(2, self.size, len(s))
        for channel, part in enumerate(self._chain(self.volume[:, None] * product, by_D, self.system.D[:, None])):
            out[channel].index_add_(0, self.voxel, part)
        return -out.permute(2, 0, 1)

    def add_operators(self, out: Tensor, optode: Operator, own: Tensor, fields: Tensor, others: Tensor) -> None:
        """Add what a change of the tissue around each pair's optode `own` (M,) does to its reading of the other."""
        by_musp, by_D = self._slopes(optode)
        for o in own.unique().tolist():
            rows = (own == o).nonzero()[:, 0]
            values = fields[optode.cell[o].clamp_min(0)][:, others[rows]]
            near, D = optode.near[o].clamp_min(0), self.system.D[optode.near[o]][:, None]
            musp, spread = ((w[o].to(fields.dtype) @ values) * optode.mean[o, :, None] for w in (by_musp, by_D))
            # the mean of musp = 1 / (3 D) - mua moves the source
            for channel, part in enumerate(self._chain(-musp, spread - musp / (3 * D**2), D)):
                block = out.new_zeros(self.size, len(rows)).index_add_(0, self.voxel[near], part)
                out[rows, channel] += block.T

    def _slopes(self, optode: Operator) -> tuple[Tensor, Tensor]:
        """Derivatives (O, K) of an operator's weights by the local means of musp and of D."""
        D = (optode.mean * self.system.D[optode.near]).sum(1)

        def weights(points: Tensor, D: Tensor) -> Tensor:
            return optodes.weights(self.system.cells, optode.cell, points, D, self.system.A)

        at = (optode.points, D)
        still = (torch.zeros_like(optode.points), torch.zeros_like(D))
        return jvp(weights, at, (optode.shift, still[1]))[1], jvp(weights, at, (still[0], torch.ones_like(D)))[1]

    def _chain(self, by_mua: Tensor, by_D: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
        """From (mua, D) to the parameters asked for: dD = -3 D^2 (dmua + dmusp)."""
        if self.parameters == "mua D":
            return by_mua, by_D
        by_musp = -3 * D**2 * by_D
        return by_mua + by_musp, by_musp
