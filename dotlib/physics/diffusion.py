"""Frequency-domain diffusion: cut-cell finite volumes, 7-point, with a Robin boundary (Haskell et al. 1994).

    -div(D grad phi) + (mua + i omega n / c) phi = q,    phi + 2 A D dphi/dnu = 0,    D = 1 / (3 (mua + musp))

Lengths in mm, fluence in mm^-2 for a source of strength 1, time convention exp(+i omega t): phase lags are negative
angles. The matrix is complex symmetric and sources and detectors share one operator, so that readings are reciprocal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from . import geometry, green, multigrid, optodes
from .geometry import Cells, Surface
from .ssor import Ssor

# Of the residual in fp32, as the iteration updates it: so small since fields fall by up to nine decades to a detector,
# and fp32 holds each of them to its own size.
TOLERANCE = 1e-11
PRECISE = 1e-12  # of the residual in fp64
MOST = 500  # iterations
RESTARTS = 2  # of columns that stall
INNER = 1e-6  # of a correction to an fp64 residual
OUTER = 3  # such corrections, at most
OUTSIDE = 1.2  # in A D: a cell's centre counts as no farther outside, where 2 A would turn the wall's sign
OFF_SURFACE = 0.1  # mm
TINY = 1e-300  # below any light: no light is no residual


class ConvergenceError(RuntimeError):
    """A field that did not converge: `index` of the object in its batch, relative `residual` that was reached."""

    def __init__(self, index: int, residual: float, iterations: int):
        super().__init__(
            f"diffusion: object {index} has not converged: residual {residual:.2g}, iteration {iterations}"
        )
        self.index, self.residual, self.iterations = index, residual, iterations


@dataclass(frozen=True)
class Medium:
    """One object: mua and musp (G, G, G), mm^-1, on voxels of `h` mm in a cube centred at the origin, and its surface.

    The properties must hold tissue values in every voxel that touches the tissue.
    """

    mua: Tensor
    musp: Tensor
    surface: Surface
    h: float


@dataclass(frozen=True)
class Operator:
    """O optodes as weights (O, K) of cells (O, K), -1 where there is none; a row reads fluence or feeds a source.

    A source's weights act like a unit point source on fields that satisfy the boundary condition; near the wall they
    need not sum to 1.

    `points` (O, 3) is where the fluence is taken: at the surface, or one transport length below it; `shift` (O, 3) is
    how far that moves as musp grows, mm^2. `mean` (O, K) of the cells `near` (O, K) gives the tissue's values there.
    """

    points: Tensor
    shift: Tensor
    cell: Tensor
    weight: Tensor
    near: Tensor
    mean: Tensor

    def columns(self, n: int) -> Tensor:
        """The weights as columns (N, O)."""
        out = self.weight.new_zeros(n + 1, len(self.cell))
        return out.scatter_add_(0, torch.where(self.cell < 0, n, self.cell).T, self.weight.T)[:n]

    def read(self, phi: Tensor) -> Tensor:
        """Fluence (O, R) at the points from cells' values (N, R)."""
        values = phi[self.cell.clamp_min(0)]
        return torch.einsum("ok,okr->or", self.weight.to(phi.dtype), values)


@dataclass(frozen=True)
class System:
    """The discretised equation of one object: `mua` and `D` (N,) in its cells, `modulation` = omega n / c, mm^-1."""

    cells: Cells
    surface: Surface
    mua: Tensor
    D: Tensor
    A: float
    modulation: float

    @cached_property
    def coupling(self) -> Tensor:
        """Conductance of each face (N, 6), mm^2: harmonic mean of D."""
        other = torch.cat([self.D, self.D[:1]])[self.cells.neighbour]
        mean = 2 * self.D[:, None] * other / (self.D[:, None] + other)
        return self.cells.aperture * self.cells.h * mean

    @cached_property
    def wall(self) -> Tensor:
        """Conductance of each cell's wall to the outside (N,), mm^2: 2 A D and the way to the wall in series."""
        depth = (self.cells.depth / self.D).clamp_min(-OUTSIDE * self.A)
        return self.cells.wall * self.cells.h**2 / (2 * self.A + depth)

    @cached_property
    def sink(self) -> Tensor:
        """What a cell loses at fluence 1 by absorption and through its wall (N,), mm^2."""
        return self.wall + self.cells.volume * self.cells.h**3 * self.mua

    @cached_property
    def diag(self) -> Tensor:
        return torch.complex(self.coupling.sum(1) + self.sink, self.cells.volume * self.cells.h**3 * self.modulation)

    def apply(self, phi: Tensor) -> Tensor:
        """The matrix times cells' values (N, R)."""
        padded = torch.cat([phi, phi.new_zeros(1, phi.shape[1])])
        out = self.diag[:, None] * phi
        for face in range(6):
            out -= self.coupling[:, face, None] * padded[self.cells.neighbour[:, face]]
        return out

    def optodes(self, points: Tensor, buried: bool, name: str = "optode") -> Operator:
        """Detectors at points (O, 3) of the surface, or, `buried`, sources one 1/musp below them."""
        distance, normal = self.surface(points, math.inf)
        if (off := ~(distance.abs() <= OFF_SURFACE)).any():
            first = off.nonzero()[0, 0].item()
            raise ValueError(
                f"diffusion: {name} {first} lies {distance[first].item():+.3g} mm off the surface; "
                f"{OFF_SURFACE} mm at most is accepted"
            )
        near = optodes.around(self.cells, points)
        mean = optodes.local_mean(self.cells, near, points)
        inner, shift = points, torch.zeros_like(points)
        if buried:
            musp = (mean * (1 / (3 * self.D) - self.mua)[near]).sum(1, keepdim=True)
            inner, shift = points - normal / musp, normal / musp**2
        cell = optodes.around(self.cells, inner)
        D = (mean * self.D[near]).sum(1)
        return Operator(inner, shift, cell, optodes.weights(self.cells, cell, inner, D, self.A), near, mean)


def assemble(medium: Medium, frequency: float, n: float = 1.33, device="cpu") -> System:
    """Discretise one object; raises ValueError for properties that are not positive, in one line."""
    if not 0 <= frequency < math.inf:
        raise ValueError(f"diffusion: frequency {frequency} Hz; 0 or more is accepted")
    grid = len(medium.mua)
    if not medium.mua.shape == medium.musp.shape == (grid, grid, grid):
        shapes = f"{tuple(medium.mua.shape)} and {tuple(medium.musp.shape)}"
        raise ValueError(f"diffusion: mua and musp have shapes {shapes}; equal cubes are accepted")
    cells = geometry.cut(medium.surface, grid, medium.h, device)
    mua, musp = (v.to(device, torch.float64).flatten()[cells.index] for v in (medium.mua, medium.musp))
    for name, values in (("mua", mua), ("musp", musp)):
        if bad := cells.index[~(values > 0) | values.isinf()].tolist():
            place = (bad[0] // grid**2, bad[0] // grid % grid, bad[0] % grid)
            many = f"{len(bad)} voxels, first {place}"
            raise ValueError(f"diffusion: {name} is not positive in {many}; mm^-1 > 0 is accepted")
    return system(cells, medium.surface, mua, musp, frequency, n)


def system(cells: Cells, surface: Surface, mua: Tensor, musp: Tensor, frequency: float, n: float) -> System:
    """The equation for values (N,) of the cells, mm^-1."""
    modulation = 2 * math.pi * frequency * n / green.C
    return System(cells, surface, mua, 1 / (3 * (mua + musp)), green.boundary_parameter(n), modulation)


def solve(
    systems: Sequence[System], columns: Sequence[Tensor], precise: bool = False, method: str = "",
    report: Callable[[int, float, int], None] | None = None,
) -> list[Tensor]:  # fmt: skip
    """Fields (N, R) of each object's right-hand sides (N, R), complex; all objects have as many columns.

    In fp32, or `precise`: corrected until the residual in fp64 is below 1e-12. `method` is "ssor" (fused sweeps on a
    CPU), "multigrid" (any device) or, if empty, what suits the device. `report` is told each object's index, residual
    and iterations. Raises ConvergenceError: a field that has not converged is never returned.
    """
    method = method or ("ssor" if columns[0].device.type == "cpu" else "multigrid")
    if method not in ("ssor", "multigrid"):
        raise ValueError(f"diffusion: method {method!r}; 'ssor' or 'multigrid' is accepted")
    if method == "multigrid":
        return _converged(multigrid.Multigrid(systems), systems, columns, precise, report)
    fields = []
    for i, (system, b) in enumerate(zip(systems, columns, strict=True)):
        fields += _converged(Ssor(system), [system], [b], precise, report, i)
    return fields


def _converged(solver, systems, columns, precise: bool, report, first: int = 0) -> list[Tensor]:
    tolerance = INNER if precise else TOLERANCE
    fields, reached, done = solver.solve(columns, tolerance, MOST)
    for _ in range(RESTARTS):
        if max(reached) <= tolerance:
            break
        # unconjugated products may vanish on the way, and a column with them stall: started anew it goes on
        starts = [_usable(system, b, x) for system, b, x in zip(systems, columns, fields, strict=True)]
        left = [b - system.apply(x) for system, b, x in zip(systems, columns, starts, strict=True)]
        more, reached, again = solver.solve(left, tolerance, MOST)
        fields, done = [x + dx for x, dx in zip(starts, more, strict=True)], done + again
    _accept(reached, tolerance, done, first)
    for _ in range(OUTER + 1 if precise else 0):
        left = [b - system.apply(x) for system, b, x in zip(systems, columns, fields, strict=True)]
        norms = [(r.norm(dim=0) / b.norm(dim=0).clamp_min(TINY)) for r, b in zip(left, columns, strict=True)]
        reached = [norm.max().item() for norm in norms]
        if max(reached) <= PRECISE:
            break
        more, _, again = solver.solve(left, tolerance, MOST)
        fields, done = [x + dx for x, dx in zip(fields, more, strict=True)], done + again
    if precise:
        _accept(reached, PRECISE, done, first)
    if report:
        for index, residual in enumerate(reached, first):
            report(index, residual, done)
    return fields


def _usable(system: System, b: Tensor, x: Tensor) -> Tensor:
    """The columns of x that are nearer to a solution than zero is, and zero in the place of the others."""
    near = (b - system.apply(x)).norm(dim=0) < b.norm(dim=0)
    return torch.where(near, x, torch.zeros_like(x))


def _accept(reached: Sequence[float], tolerance: float, done: int, first: int) -> None:
    for index, residual in enumerate(reached, first):
        if not residual <= tolerance:
            raise ConvergenceError(index, residual, done)


def readings(
    media: Sequence[Medium], sources, detectors, pairs, frequency: float, n: float = 1.33, precise: bool = False,
    device="cpu",
) -> np.ndarray:  # fmt: skip
    """Fluence (P, M), mm^-2, complex128, at the detectors of each pair, for sources of strength 1.

    Sources (P, S, 3) and detectors (P, K, 3) lie on the surfaces, mm; pairs (P, M, 2) are 0-based (source, detector).
    The fields are solved from whichever side has fewer optodes. Raises ValueError, one line, for an optode off its
    surface, for a pair of no optodes or of separation 0, or for a bad medium; and ConvergenceError.
    """
    if {len(sources), len(detectors), len(pairs)} != {len(media)} or not len(media):
        raise ValueError(f"diffusion: {len(media)} media for {len(sources)} probes; one probe each is accepted")
    for index, wired in enumerate(zip(sources, detectors, pairs, strict=True)):
        _check_pairs(index, *map(np.asarray, wired))
    together = 1 if torch.device(device).type == "cpu" else len(media)  # one field at a time bounds the memory
    out = []
    for first in range(0, len(media), together):
        part = slice(first, first + together)
        probes = [np.asarray(values[part]) for values in (sources, detectors, pairs)]
        out += _batch(media[part], *probes, (frequency, n, device), precise, first)
    return np.stack(out)


def _check_pairs(index: int, sources: np.ndarray, detectors: np.ndarray, pairs: np.ndarray) -> None:
    most = (len(sources), len(detectors))
    if (wrong := ((pairs < 0) | (pairs >= most)).any(1)).any():
        first = wrong.argmax()
        raise ValueError(
            f"object {index}: pair {first} is {tuple(map(int, pairs[first]))}; indices below {most} are accepted"
        )
    if (touching := (sources[pairs[:, 0]] == detectors[pairs[:, 1]]).all(1)).any():
        first = touching.argmax()
        raise ValueError(
            f"object {index}: pair {first}: source {pairs[first, 0]} and detector {pairs[first, 1]} coincide"
        )


def _batch(media, sources, detectors, pairs, light: tuple, precise: bool, first: int) -> list[np.ndarray]:
    few = sources.shape[1] < detectors.shape[1]
    systems, lit, read = [], [], []
    for index, medium in enumerate(media):
        try:
            systems.append(assemble(medium, *light))
            above, below = (
                torch.as_tensor(v[index], dtype=torch.float64, device=light[2]) for v in (detectors, sources)
            )
            source, detector = systems[-1].optodes(below, True, "source"), systems[-1].optodes(above, False, "detector")
        except ValueError as error:
            raise ValueError(f"object {first + index}: {error}") from None
        lit.append((source if few else detector).columns(len(systems[-1].cells)))
        read.append(detector if few else source)
    try:
        fields = solve(systems, lit, precise)
    except ConvergenceError as error:
        raise ConvergenceError(first + error.index, error.residual, error.iterations) from None
    tables = [operator.read(phi).cpu().numpy() for operator, phi in zip(read, fields, strict=True)]
    order = (1, 0) if few else (0, 1)  # rows are those that read
    return [table[pair[:, order[0]], pair[:, order[1]]] for table, pair in zip(tables, pairs, strict=True)]
