"""The homogeneous medium that explains a recording best, by the finite-volume model of its own surface.

A half-space fitted to readings of a curved surface errs by 20 to 35 % in musp; here every step solves the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import diffusion, geometry, jacobian
from .diffusion import System
from .geometry import Cells, Surface
from .jacobian import Fields
from .rytov import Readings, rows

START = (0.0068, 1.1)  # mua, musp, mm^-1
MOST = 8  # solutions
CLOSE = 0.1  # of ln mua, ln musp: a last step below it is taken without another solution
LARGEST = 0.7  # a step's
DAMPED = 2  # solutions, after which steps are halved: what tumours leave of the misfit makes whole ones swing
FLAT = 0.01  # share of the misfit that a step may still promise where steps swing and lead nowhere
BOUNDS = ((1e-4, 0.2), (0.1, 10.0))  # mm^-1, of mua and musp


class FitError(ArithmeticError):
    """Readings that no homogeneous medium comes near, as one line; `index` of the object in its batch."""

    def __init__(self, index: int, line: str):
        super().__init__(f"fit: object {index}: {line}")
        self.index = index


@dataclass(frozen=True)
class Scene:
    """One object to be reconstructed: its surface, the cells that it cuts, and what was read on it."""

    surface: Surface
    cells: Cells
    readings: Readings

    @classmethod
    def of(cls, surface: Surface, readings: Readings, grid: int, cube: float, device="cpu") -> Scene:
        """In a cube of `cube` mm round the origin with `grid`^3 voxels."""
        return cls(surface, geometry.cut(surface, grid, cube / grid, device), readings)

    @property
    def cube(self) -> float:
        """Width of the whole grid, mm."""
        return self.cells.grid * self.cells.h

    def system(self, values: Tensor) -> System:
        """The equation for mua and musp, (2,) or of each cell (2, N), mm^-1."""
        mua, musp = values.reshape(2, -1).expand(2, len(self.cells))
        return diffusion.system(self.cells, self.surface, mua, musp, self.readings.frequency, self.readings.n)


@dataclass(frozen=True)
class Fit:
    """A homogeneous fit: `values` (2,) mua, musp, mm^-1, and the medium `at` (2,) beside it that was solved last.

    `phi` (M,) are its readings, `slopes` (2M, 2) their derivatives by ln mua and ln musp; `misfit`: root mean square of
    the whitened rows that the fit leaves, linearised; 1 where noise and model error are all that is left.
    """

    values: Tensor
    at: Tensor
    system: System
    light: Fields
    phi: Tensor
    slopes: Tensor
    misfit: float

    @property
    def step(self) -> Tensor:
        """From the medium that was solved to the fit, in ln mua and ln musp."""
        return (self.values / self.at).log()


def fit(scenes: Sequence[Scene], start: Sequence[float] = START) -> list[Fit]:
    """Fit mua and musp to each object's readings, gains left free: Gauss-Newton in their logarithms.

    All objects' fields are solved together. Where steps go on swinging, for what tumours leave of the misfit, the
    medium of least misfit counts, if no step promises more than a hundredth of it. Raises FitError where values leave
    what tissue can have, or do not settle; and what `diffusion` raises.
    """
    where = [torch.tensor(start, dtype=torch.float64, device=s.cells.index.device).log() for s in scenes]
    found: list[Fit | None] = [None] * len(scenes)
    best: list[tuple[float, Fit] | None] = [None] * len(scenes)  # by the misfit of the medium itself
    for count in range(MOST):
        open_ = [i for i, one in enumerate(found) if one is None]
        systems = [scenes[i].system(where[i].exp()) for i in open_]
        lights = jacobian.fields_of(
            systems, *([getattr(scenes[i].readings, n) for i in open_] for n in ("sources", "detectors"))
        )
        for i, system, light in zip(open_, systems, lights, strict=True):
            one = _step(scenes[i].readings, where[i].exp(), system, light)
            _require_tissue(i, one.values)
            if one.step.abs().max() <= CLOSE:
                found[i] = one
            misfit = scenes[i].readings.white(scenes[i].readings.difference(one.phi)).square().mean().sqrt().item()
            if best[i] is None or misfit < best[i][0]:
                best[i] = misfit, one
            where[i] = where[i] + (1.0 if count < DAMPED else 0.5) * one.step.clamp(-LARGEST, LARGEST)
        if all(found):
            return found
    for i in [i for i, one in enumerate(found) if one is None]:
        misfit, found[i] = best[i]
        if found[i].misfit < (1 - FLAT) * misfit:
            raise FitError(i, f"mua and musp still move after {MOST} solutions; are these readings of this surface?")
    return found


def refit(readings: Readings, near: Fit, phi: Tensor, slopes: Tensor) -> Fit:
    """The fit to other readings of an object by the medium that was solved for `near`: to first order, no solution.

    `phi` (M,) and `slopes` (2M, 2), by ln mua and ln musp, are that medium's at the pairs of these readings.
    """
    white, left = readings.white(slopes), readings.white(readings.difference(phi))
    step = torch.linalg.lstsq(white, left[:, None]).solution[:, 0]
    misfit = (left - white @ step).square().mean().sqrt().item()
    return replace(near, values=near.at * step.clamp(-4, 4).exp(), phi=phi, slopes=slopes, misfit=misfit)


def _step(readings: Readings, at: Tensor, system: System, light: Fields) -> Fit:
    phi, slopes = jacobian.uniform(system, light, readings.pairs)
    slopes = rows(slopes, phi) * at
    return refit(readings, Fit(at, at, system, light, phi, slopes, math.nan), phi, slopes)


def _require_tissue(index: int, values: Tensor) -> None:
    for name, value, (low, high) in zip(("mua", "musp"), values.tolist(), BOUNDS, strict=True):
        if not low <= value <= high:
            raise FitError(index, f"{name} comes out as {value:.3g} mm^-1; {low:g} to {high:g} is accepted")
