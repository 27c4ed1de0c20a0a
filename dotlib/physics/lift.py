"""From Rytov data to volumes in one linear step: the regularised lift that a network starts from, and Tikhonov's.

Unknowns are x = (ln mua / mua0, ln musp / musp0) in the voxels of a coarse grid that hold tissue, Gaussian a priori
with covariance C; data y = J x + noise, whitened. Solved in measurement space: x = C J^T (J C J^T + lambda)^-1 y
(Tarantola 2005, section 3.2), where lambda = 1 is the posterior mean if prior and noise are what they are said to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import geometry, jacobian
from .geometry import Cells
from .homogeneous import Fit, Scene
from .rytov import Readings, rows

LAMBDAS = (1.0, 16.0)


@dataclass(frozen=True)
class Prior:
    """Covariance of x: Gaussian in space (`length` mm) plus a constant; sd of both channels, and their correlation."""

    length: float = 5.0
    sd: tuple[float, float] = (0.30, 0.22)
    correlation: float = 0.8
    constant: float = 0.3  # share of the sd that the whole tissue has in common

    @property
    def channels(self) -> Tensor:
        """Covariance (2, 2) of the two channels in one voxel."""
        a, b = self.sd
        return torch.tensor([[a * a, self.correlation * a * b], [self.correlation * a * b, b * b]])

    def apply(self, x: Tensor, tissue: Tensor, voxel: float) -> Tensor:
        """C x for x (..., 2, V) in the voxels that hold tissue, (g, g, g), which are `voxel` mm wide."""
        places = tissue.nonzero()
        places = places - places.amin(0)
        box = (places.amax(0) + 1).tolist()  # no larger than the tissue
        where = (places[:, 0] * box[1] + places[:, 1]) * box[2] + places[:, 2]
        step = torch.arange(max(box), device=x.device) * voxel
        kernel = torch.exp(-0.5 * ((step[:, None] - step) / self.length).square()).to(x.dtype)
        a, b, c = (kernel[:n, :n] for n in box)
        rows = x.reshape(-1, len(where))
        smooth = rows.new_zeros(len(rows), math.prod(box)).index_copy_(1, where, rows).unflatten(1, box)
        smooth = a @ (b @ (smooth @ c)).flatten(-2)
        smooth = smooth.flatten(1).index_select(1, where) + self.constant**2 * rows.sum(1, keepdim=True)
        return torch.einsum("cd,...dv->...cv", self.channels.to(x), smooth.view(x.shape))


@dataclass(frozen=True)
class Linear:
    """One object's readings linearised about a medium: whitened J (2M, 2, V) by x, and what is left of the data.

    `left` (2M,) whitened Rytov data; `sensitivity` (g, g, g): norm of the whitened column of ln mua, with gains known;
    `tissue` (g, g, g) bool, which holds the V voxels; `values` (2,) mua0, musp0 that x refers to; `voxel` mm.
    """

    J: Tensor
    left: Tensor
    sensitivity: Tensor
    tissue: Tensor
    values: Tensor
    voxel: float

    @property
    def flat(self) -> Tensor:
        """J as a matrix, (2M, 2 V)."""
        return self.J.flatten(1)


def linearise(scene: Scene, fit: Fit, grid: int = 16, dtype: torch.dtype = torch.complex64) -> Linear:
    """About the fit's medium, on `grid`^3 voxels; x and the data then refer to the fit's own values."""
    readings = scene.readings
    phi, J = jacobian.jacobian(fit.system, fit.light, readings.pairs, grid, dtype=dtype)
    tissue = occupied(scene.cells, grid)
    by_log = rows(J[:, :, tissue], phi) * fit.at.to(J.real.dtype)[:, None]
    left = readings.difference(phi) - fit.slopes @ fit.step
    return linear(readings, by_log, left, fit.values, tissue, scene.cube / grid)


def linear(readings: Readings, by_log: Tensor, left: Tensor, values: Tensor, tissue: Tensor, voxel: float) -> Linear:
    """From derivatives (2M, 2, V) by x and data (2M,), neither of them whitened."""
    weighted = readings.weight.to(by_log.dtype)[:, None] * by_log[:, 0]
    sensitivity = scattered(weighted.square().sum(0).sqrt(), tissue)
    return Linear(readings.white(by_log), readings.white(left).to(by_log.dtype), sensitivity, tissue, values, voxel)


def occupied(cells: Cells, grid: int) -> Tensor:
    """The coarse voxels (grid, grid, grid) that hold cells."""
    return coarse(cells, grid).bincount(minlength=grid**3).view(grid, grid, grid) > 0


def coarse(cells: Cells, grid: int) -> Tensor:
    """The coarse voxel of each cell, (N,)."""
    i, j, k = (geometry.steps(cells.index, cells.grid) // (cells.grid // grid)).unbind(1)
    return (i * grid + j) * grid + k


def scattered(x: Tensor, tissue: Tensor) -> Tensor:
    """Values (..., V) in the voxels that hold tissue, (..., g, g, g), zero elsewhere."""
    out = x.new_zeros(*x.shape[:-1], tissue.numel())
    return out.index_copy_(-1, tissue.flatten().nonzero()[:, 0], x).unflatten(-1, tissue.shape)


def solve(problem: Linear, prior: Prior, lambdas: Sequence[float] = LAMBDAS) -> Tensor:
    """x (L, 2, g, g, g) for each regularisation."""
    spread, weights = duals(problem, prior, lambdas)
    return scattered((torch.stack(weights) @ spread).unflatten(1, (2, -1)), problem.tissue)


def duals(
    problem: Linear, prior: Prior, lambdas: Sequence[float], offset: Tensor | float = 0.0
) -> tuple[Tensor, list[Tensor]]:
    """J C (2M, 2 V), and for each regularisation the weights (2M,) of its rows that make x up.

    `offset` (2M,) is J x of where the data were taken, for Gauss-Newton.
    """
    spread, gram = covariance(problem, prior)
    eye, data, found = torch.eye(len(gram), dtype=gram.dtype, device=gram.device), problem.left + offset, []
    for regularisation in lambdas:
        factor = torch.linalg.cholesky(gram + regularisation * eye)
        found.append(torch.cholesky_solve(data.double()[:, None], factor)[:, 0].to(spread.dtype))
    return spread, found


def covariance(problem: Linear, prior: Prior) -> tuple[Tensor, Tensor]:
    """J C (2M, 2 V), and J C J^T (2M, 2M) in fp64: what the prior's tissue does to the whitened readings."""
    spread = prior.apply(problem.J, problem.tissue, problem.voxel).flatten(1)
    return spread, (spread @ problem.flat.T).double()


def back_projection(problem: Linear) -> Tensor:
    """J^T y over the squared sensitivity, (2, g, g, g): what needs no solution."""
    size = problem.J.square().sum(0)
    return scattered(torch.einsum("m,mcv->cv", problem.left, problem.J) / (size + 1), problem.tissue)


def channels(problem: Linear, x: Tensor) -> Tensor:
    """What a network takes, (8, g, g, g), as in `config.CHANNELS`: x (2, 2, g, g, g), coverage, tissue, mua0 and musp0.

    Coverage is ln(1 + 10 s) of the whitened sensitivity s to ln mua.
    """
    tissue = problem.tissue.to(x.dtype)
    level = problem.values.to(x.dtype).view(2, 1, 1, 1) * tissue
    coverage = torch.log1p(10 * problem.sensitivity)
    return torch.cat([x.flatten(0, 1), torch.stack([coverage, tissue]), level])


def tokens(readings: Readings, fit: Fit) -> Tensor:
    """Each pair as a token, (13, M, 1, 1), as in `config.TOKEN`: whitened Rytov data that the fit to them leaves.

    The sd is that which whitens: of noise and model error together.
    """
    left = readings.white(readings.difference(fit.phi) - fit.slopes @ fit.step)
    s, d = readings.pairs.T
    source, detector = readings.sources[s], readings.detectors[d]
    rows = [*left.view(2, -1), *-readings.weight.log().view(2, -1), *source.T, *detector.T]
    rows += [(source - detector).norm(dim=1), *fit.values[:, None].expand(2, len(source))]
    return torch.stack(rows).float()[..., None, None]


def tikhonov(x: Tensor, values: Tensor) -> Tensor:
    """mua and musp (2, g, g, g), mm^-1, of one linear step x: 1 + x, since a step overshoots inside exp."""
    return values.to(x.dtype).view(2, 1, 1, 1) * (1 + x).clamp_min(0)
