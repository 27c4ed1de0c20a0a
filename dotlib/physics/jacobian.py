"""Sensitivity of readings to the medium, by adjoint fields: the exact derivative of the discretised readings.

A reading is d^T A^-1 s. Its derivative has three parts: -psi^T dA phi, with the fields phi of the source and psi of the
detector, and those of the two operators, which depend on the tissue around the optode (Arridge 1995).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from . import diffusion, geometry, optodes
from .diffusion import Operator, System

TERMS = 2_000_000  # products of two fields in memory at a time


@dataclass(frozen=True)
class Fields:
    """One object's sources and detectors and their fields (N, S), (N, K)."""

    system: System
    sources: Operator
    detectors: Operator
    phi: Tensor
    psi: Tensor

    @cached_property
    def slopes(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Derivatives (O, K) of the weights by the local means of musp and of D, of sources and of detectors."""
        return _slopes(self.system, self.sources), _slopes(self.system, self.detectors)


def fields(system: System, sources: Tensor, detectors: Tensor, precise: bool = False) -> Fields:
    """The fields of sources (S, 3) and detectors (K, 3), mm, on the surface."""
    return fields_of([system], [sources], [detectors], precise)[0]


def fields_of(
    systems: Sequence[System], sources: Sequence[Tensor], detectors: Sequence[Tensor], precise: bool = False
) -> list[Fields]:
    """The same of several objects, solved together; each has as many optodes."""
    out, columns = [], []
    for system, below, above in zip(systems, sources, detectors, strict=True):
        s, d = system.optodes(below, True, "source"), system.optodes(above, False, "detector")
        n = len(system.cells)
        columns.append(torch.cat([s.columns(n), d.columns(n)], 1))
        out.append((s, d))
    solved = diffusion.solve(systems, columns, precise)
    return [
        Fields(system, s, d, phi[:, : len(s.cell)], phi[:, len(s.cell) :])
        for system, (s, d), phi in zip(systems, out, solved, strict=True)
    ]


def jacobian(
    system: System,
    light: Fields,
    pairs: Tensor,
    grid: int,
    parameters: Literal["mua D", "mua musp"] = "mua musp",
    dtype: torch.dtype = torch.complex128,
) -> tuple[Tensor, Tensor]:
    """Readings (M,) and their derivatives (M, 2, grid, grid, grid), mm^-2 per unit of mua and D (or musp).

    The parameters of a coarse voxel change all cells in it alike; `grid` divides the system's. Divided by the reading,
    the derivative is that of ln A (real part) and of minus the phase (imaginary part). Memory grows with M grid^3.
    `dtype` is that of the derivatives and of their sums; in complex64 they err by some 1e-6 of a pair's largest.
    """
    cells = system.cells
    if cells.grid % grid:
        raise ValueError(f"jacobian: grid {grid} does not divide the system's {cells.grid}")
    if parameters not in ("mua D", "mua musp"):
        raise ValueError(f"jacobian: parameters {parameters!r}; 'mua D' or 'mua musp' is accepted")
    pairs = torch.as_tensor(pairs, dtype=torch.long, device=light.phi.device)
    s, d = pairs.T
    readings = light.detectors.read(light.phi)[d, s]
    out = torch.zeros(2, grid**3, len(pairs), dtype=dtype, device=pairs.device)
    gather = _Gather(system, grid, parameters)
    gather.add_fields(out, light.phi, light.psi, s, d)
    gather.add_operators(out, light.sources, light.slopes[0], s, light.psi, d)
    gather.add_operators(out, light.detectors, light.slopes[1], d, light.phi, s)
    return readings, out.permute(2, 0, 1).unflatten(2, (grid, grid, grid))


def uniform(system: System, light: Fields, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Readings (M,) of a homogeneous medium and their derivatives (M, 2) by its mua and musp: `jacobian`'s sums."""
    s, d = pairs.T
    gather = _Gather(system, 1, "mua musp")
    a = torch.cat([light.phi, light.phi.new_zeros(1, light.phi.shape[1])])
    by_D = gather.wall[:, None] * light.phi
    for face in range(6):  # a face's two sides change alike
        by_D += 2 * gather.face[:, face, None] * (light.phi - a[system.cells.neighbour[:, face]])
    by_mua, by_musp = gather._chain(gather.volume[:, None] * light.phi, by_D, system.D[:, None])
    out = -torch.stack([(light.psi.T @ x)[d, s] for x in (by_mua, by_musp)])[:, None]
    gather.add_operators(out, light.sources, light.slopes[0], s, light.psi, d)
    gather.add_operators(out, light.detectors, light.slopes[1], d, light.phi, s)
    return light.detectors.read(light.phi)[d, s], out[:, 0].T


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

    def add_fields(self, out: Tensor, phi: Tensor, psi: Tensor, s: Tensor, d: Tensor) -> None:
        """Add -psi^T dA phi of each pair: a product of matrices, sources by detectors, in each coarse voxel."""
        a, b = (torch.cat([x, x.new_zeros(1, x.shape[1])]).to(out.dtype) for x in (phi, psi))
        weights = torch.cat([self.wall[:, None], self.face], 1)
        zero = torch.zeros_like(weights[:, :1])
        by_mua, by_D = self._chain(
            torch.cat([self.volume[:, None], zero.expand(-1, 7)], 1),
            torch.cat([zero, weights], 1),
            self.system.D[:, None],
        )
        voxels, table = self._table()
        for part in torch.arange(len(voxels), device=s.device).split(max(1, TERMS // (table.shape[1] * a.shape[1]))):
            cell = table[part]  # (V, c), N where there is none
            near = torch.cat([self.system.cells.neighbour, torch.full_like(cell.new_zeros(1, 6), len(a) - 1)])[cell]
            left, right = (self._terms(x, cell, near) for x in (a, b))
            for channel, weight in enumerate((by_mua, by_D)):
                scaled = torch.cat([weight, weight.new_zeros(1, 8)])[cell].flatten(1).to(out.dtype)
                every = (right * scaled[..., None]).mT @ left  # (V, K, S)
                out[channel, voxels[part]] = -every.flatten(1).index_select(1, d * a.shape[1] + s)

    @staticmethod
    def _terms(x: Tensor, cell: Tensor, near: Tensor) -> Tensor:
        """Of each cell its value, twice, and its differences across six faces: (V, 8 c, columns)."""
        own = x[cell][:, :, None]
        return torch.cat([own, own, own - x[near]], 2).flatten(1, 2)

    def _table(self) -> tuple[Tensor, Tensor]:
        """The coarse voxels that hold cells (V,), and their cells (V, c), N where there is none."""
        voxel, order = self.voxel.sort(stable=True)
        voxels, counts = voxel.unique_consecutive(return_counts=True)
        place = torch.arange(len(voxel), device=voxel.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        table = torch.full((len(voxels), int(counts.max())), len(voxel), device=voxel.device)
        table[torch.arange(len(voxels), device=voxel.device).repeat_interleave(counts), place] = order
        return voxels, table

    def add_operators(
        self, out: Tensor, optode: Operator, slopes: tuple[Tensor, Tensor], own: Tensor, fields: Tensor, others: Tensor
    ) -> None:
        """Add what a change of the tissue around each pair's optode `own` (M,) does to its reading of the other."""
        by_musp, by_D = slopes
        for o in own.unique().tolist():
            rows = (own == o).nonzero()[:, 0]
            values = fields[optode.cell[o].clamp_min(0)][:, others[rows]]
            near, D = optode.near[o].clamp_min(0), self.system.D[optode.near[o]][:, None]
            musp, spread = ((w[o].to(fields.dtype) @ values) * optode.mean[o, :, None] for w in (by_musp, by_D))
            # the mean of musp = 1 / (3 D) - mua moves the source
            voxels, place = self.voxel[near].unique(return_inverse=True)
            for channel, part in enumerate(self._chain(-musp, spread - musp / (3 * D**2), D)):
                block = out.new_zeros(len(voxels), len(rows)).index_add_(0, place, part.to(out.dtype))
                out[channel, voxels[:, None], rows] += block

    def _chain(self, by_mua: Tensor, by_D: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
        """From (mua, D) to the parameters asked for: dD = -3 D^2 (dmua + dmusp)."""
        if self.parameters == "mua D":
            return by_mua, by_D
        by_musp = -3 * D**2 * by_D
        return by_mua + by_musp, by_musp


def _slopes(system: System, optode: Operator) -> tuple[Tensor, Tensor]:
    """Derivatives (O, K) of an operator's weights by the local means of musp and of D."""
    D = (optode.mean * system.D[optode.near]).sum(1)

    points, D = optode.points.clone().requires_grad_(), D.requires_grad_()
    with torch.enable_grad():
        weights = optodes.weights(system.cells, optode.cell, points, D, system.A)
        # differentiated twice, which gives derivatives along one direction, and needs less than forward mode does
        direction = torch.zeros_like(weights, requires_grad=True)
        along = (weights * direction).sum()  # a number: given a direction, torch would load sympy for a second
        by_points, by_D = torch.autograd.grad(along, (points, D), create_graph=True)
        moved = (by_points * optode.shift).sum()
        return tuple(torch.autograd.grad(total, direction, retain_graph=True)[0] for total in (moved, by_D.sum()))
