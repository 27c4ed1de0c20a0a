"""Gauss-Newton: the classical nonlinear reconstruction, with the solver's own Jacobian and a line search.

Minimises |W (y - F(x))|^2 + lambda R(x) over x = (ln mua / mua0, ln musp / musp0) on a coarse grid; R is x^T C^-1 x of
a Gaussian prior, or total variation, smoothed at BEND and solved by lagged diffusivity (Vogel and Oman 1996).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from . import diffusion, jacobian, lift
from .homogeneous import Fit, Scene
from .jacobian import Fields
from .lift import Linear, Prior
from .rytov import rows

BEND = 0.1  # sd: jumps of x between voxels below it count as smooth, total variation
HALVINGS = 6  # of a step that does not lessen the objective
ENOUGH = 0.02  # relative fall of the objective below which the iteration has converged
RIDGE = 1e-3  # of total variation: what keeps voxels out of sight where they are
STANDARD = Prior()


@dataclass(frozen=True)
class Solution:
    """x (2, g, g, g), the medium's values (2,) mua0, musp0 that it refers to, and the way there.

    `objective` and `misfit` (root mean square of the whitened rows) before the first and after each iteration;
    `converged`: whether the last step lessened the objective by less than 2 %, or none did.
    """

    x: Tensor
    values: Tensor
    objective: tuple[float, ...]
    misfit: tuple[float, ...]
    converged: bool

    def volume(self) -> Tensor:
        """mua and musp (2, g, g, g), mm^-1."""
        return self.values.to(self.x.dtype).view(2, 1, 1, 1) * self.x.exp()


@dataclass(frozen=True)
class Penalty:
    """R, by its kind: `step` solves the linearised problem, `of` gives R(x)."""

    kind: Literal["gaussian", "tv"]
    regularisation: float
    prior: Prior
    tissue: Tensor
    voxel: float

    @cached_property
    def edges(self) -> tuple[Tensor, Tensor]:
        """Neighbouring voxels (E,), (E,) of the tissue, by their place in it."""
        place = torch.full(self.tissue.shape, -1, device=self.tissue.device)
        place[self.tissue] = torch.arange(int(self.tissue.sum()), device=place.device)
        found = []
        for axis in range(3):
            n = place.shape[axis] - 1
            pair = torch.stack([place.narrow(axis, 0, n).flatten(), place.narrow(axis, 1, n).flatten()])
            found.append(pair[:, (pair >= 0).all(0)])
        return tuple(torch.cat(found, 1))

    @cached_property
    def precision(self) -> Tensor:
        """Inverse covariance (2, 2) of the two channels in one voxel, fp64."""
        return torch.linalg.inv(self.prior.channels.double()).to(self.tissue.device)

    def jumps(self, x: Tensor) -> Tensor:
        """Size (E,) of the jump of x (2, V) across each edge, in sd of both channels together."""
        a, b = self.edges
        jump = (x[:, b] - x[:, a]).double()
        return ((self.precision @ jump) * jump).sum(0).add(BEND**2).sqrt()

    def of(self, x: Tensor, dual: Tensor) -> float:
        """R(x) of x (2, V); `dual` is C^-1 x of the Gaussian one, whose covariance is never inverted."""
        if self.kind == "gaussian":
            return (x.double() * dual.double()).sum().item()
        size = ((self.precision @ x.double()) * x.double()).sum()
        return (2 * (self.jumps(x) - BEND).sum() + RIDGE * size).item()

    def step(self, problem: Linear, x: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """The minimum (2, V) of the linearised objective, and its dual."""
        if self.kind == "gaussian":
            spread, (weights,) = lift.duals(problem, self.prior, (self.regularisation,), offset)
            return (spread.T @ weights).view(2, -1), (problem.flat.T @ weights).view(2, -1)
        J, data = problem.flat.double(), (problem.left + offset).double()
        normal = J.T @ J + self.regularisation * self._laplacian(x)
        found = torch.cholesky_solve((J.T @ data)[:, None], torch.linalg.cholesky(normal))[:, 0]
        return found.to(x.dtype).view(2, -1), torch.zeros_like(x)

    def _laplacian(self, x: Tensor) -> Tensor:
        """The matrix (2 V, 2 V) of half of R's gradient at x, its weights held."""
        (a, b), weight = self.edges, 1 / self.jumps(x)
        spatial = torch.eye(x.shape[1], dtype=weight.dtype, device=x.device) * RIDGE
        for row, column, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
            spatial.index_put_((row, column), sign * weight, accumulate=True)
        return torch.kron(self.precision.contiguous(), spatial)


@dataclass(frozen=True)
class Point:
    """A medium x (2, V) on the way, solved: `dual` is C^-1 x, `data` (2M,) what is left, `left` the same whitened."""

    x: Tensor
    dual: Tensor
    light: Fields
    data: Tensor
    left: Tensor
    objective: float

    @property
    def misfit(self) -> float:
        return self.left.square().mean().sqrt().item()


def reconstruct(
    scene: Scene,
    fit: Fit,
    regularisation: float = 1.0,
    kind: Literal["gaussian", "tv"] = "gaussian",
    prior: Prior = STANDARD,
    grid: int = 16,
    most: int = 10,
    report: Callable[[int, float, float], None] | None = None,
) -> Solution:
    """Reconstruct one object from a homogeneous fit of it, in at most `most` iterations.

    The objective falls with every iteration: a step that would raise it, or leads to a medium without a
    solution, is halved, up to six times, and then left.
    """
    readings, tissue = scene.readings, lift.occupied(scene.cells, grid)
    penalty = Penalty(kind, regularisation, prior, tissue, scene.cube / grid)
    place = (tissue.flatten().long().cumsum(0) - 1)[lift.coarse(scene.cells, grid)]  # of each cell's voxel in x
    s, d = readings.pairs.T

    def at(x: Tensor, dual: Tensor) -> Point:
        system = scene.system(fit.values[:, None] * x.double().exp()[:, place])
        light = jacobian.fields_of([system], [readings.sources], [readings.detectors])[0]
        data = readings.difference(light.detectors.read(light.phi)[d, s])
        left = readings.white(data)
        value = left.square().sum().item() + regularisation * penalty.of(x, dual)
        return Point(x, dual, light, data, left, value)

    def linearised(point: Point) -> Linear:
        phi, J = jacobian.jacobian(point.light.system, point.light, readings.pairs, grid, dtype=torch.complex64)
        scale = (fit.values[:, None] * point.x.double().exp()).to(J.real.dtype)
        return lift.linear(readings, rows(J[:, :, tissue], phi) * scale, point.data, fit.values, tissue, penalty.voxel)

    zero = torch.zeros(2, int(tissue.sum()), device=tissue.device)
    point = at(zero, zero)
    way, converged = [(point.objective, point.misfit)], False
    while not converged and len(way) <= most:
        problem = linearised(point)
        better, towards = penalty.step(problem, point.x, problem.flat @ point.x.flatten())
        for share in (0.5**halving for halving in range(HALVINGS + 1)):
            with contextlib.suppress(diffusion.ConvergenceError):  # of a medium that no field comes through
                ahead = at(point.x + share * (better - point.x), point.dual + share * (towards - point.dual))
                if ahead.objective < point.objective:
                    break
        else:
            converged = True
            break
        converged = ahead.objective > (1 - ENOUGH) * point.objective
        point = ahead
        way.append((point.objective, point.misfit))
        if report:
            report(len(way) - 2, *way[-1])
    return Solution(lift.scattered(point.x, tissue), fit.values, *map(tuple, zip(*way, strict=True)), converged)
