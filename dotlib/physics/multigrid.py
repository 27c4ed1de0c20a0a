"""COCG preconditioned by multigrid, for several objects at once on any device."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from . import geometry
from .ssor import REST

COARSEST = 8  # voxels a side of the grid that is solved densely
DAMPING = 0.8
SMOOTHING = 2  # damped Jacobi steps before and after


@dataclass(frozen=True)
class Level:
    """The N cells of P objects on one grid: sorted `key` = object x grid^3 + flat index; real matrix by its parts.

    `neighbour` (N, 6), N where there is none, `coupling` (N, 6) to it, and `sink` (N,), the row's sum.
    """

    grid: int
    key: Tensor
    neighbour: Tensor
    coupling: Tensor
    sink: Tensor

    @cached_property
    def diag(self) -> Tensor:
        return self.sink + self.coupling.sum(1)

    @cached_property
    def steps(self) -> Tensor:
        """Voxel indices (N, 3)."""
        return geometry.steps(self.key % self.grid**3, self.grid)

    def find(self, steps: Tensor, of: Tensor) -> Tensor:
        """The cells at voxels (..., 3) of objects (...), N where there is none."""
        g, n = self.grid, len(self.key)
        wanted = ((of * g + steps[..., 0]) * g + steps[..., 1]) * g + steps[..., 2]
        place = torch.searchsorted(self.key, wanted).clamp_max(n - 1)
        inside = ((steps >= 0) & (steps < g)).all(-1)
        return torch.where(inside & (self.key[place] == wanted), place, n)

    def matrix(self) -> Tensor:
        """CSR, fp32."""
        n = len(self.key)
        own = torch.arange(n, device=self.key.device)[:, None]
        return _csr(torch.cat([own, self.neighbour], 1), torch.cat([self.diag[:, None], -self.coupling], 1), n)

    def coarser(self) -> tuple[Level, Tensor]:
        """Blocks of 2^3 cells: faces' conductances added and halved, sinks added; and the trilinear prolongation."""
        of, half = self.key // self.grid**3, self.grid // 2
        steps = self.steps // 2
        key, parent = torch.unique(
            ((of * half + steps[:, 0]) * half + steps[:, 1]) * half + steps[:, 2], return_inverse=True
        )
        across = torch.cat([parent, parent.new_tensor([-1])])[self.neighbour] != parent[:, None]
        zero = self.sink.new_zeros(len(key), 6)
        coupling = zero.index_add(0, parent, torch.where(across, self.coupling / 2, 0.0))
        sink = zero[:, 0].index_add(0, parent, self.sink)
        bare = Level(half, key, parent, coupling, sink)
        faces = torch.eye(3, dtype=torch.long, device=key.device).repeat(2, 1) * torch.tensor(
            [[-1]] * 3 + [[1]] * 3, device=key.device
        )
        neighbour = bare.find(bare.steps[:, None] + faces, (key // half**3)[:, None].expand(-1, 6))
        return Level(half, key, neighbour, coupling, sink), self._prolongation(bare, of)

    def _prolongation(self, coarse: Level, of: Tensor) -> Tensor:
        """CSR (N, coarse N): cell centres lie a quarter of a coarse voxel aside; weights of absent cells are shared."""
        corners = torch.cartesian_prod(*[torch.arange(2, device=of.device)] * 3)
        side = 2 * (self.steps % 2) - 1
        cell = coarse.find((self.steps // 2)[:, None] + corners * side[:, None], of[:, None].expand(-1, 8))
        weight = (0.75 - 0.5 * corners).prod(-1).to(self.sink.dtype) * (cell < len(coarse.key))
        return _csr(cell, weight / weight.sum(1, keepdim=True), len(coarse.key))


class Multigrid:
    """The hierarchy of P objects' matrices (their real part), and the solver that its V(2,2) cycle preconditions.

    A real, symmetric preconditioner serves real and imaginary parts alike.
    """

    def __init__(self, systems: Sequence):
        self.sizes = [len(s.cells) for s in systems]
        total, grid = sum(self.sizes), systems[0].cells.grid
        starts = [sum(self.sizes[:i]) for i in range(len(systems))]
        level = Level(
            grid,
            torch.cat([s.cells.index + i * grid**3 for i, s in enumerate(systems)]),
            torch.cat(
                [
                    torch.where(s.cells.neighbour < n, s.cells.neighbour + start, total)
                    for s, n, start in zip(systems, self.sizes, starts, strict=True)
                ]
            ),
            torch.cat([s.coupling for s in systems]),
            torch.cat([s.sink for s in systems]),
        )
        self.modulation = torch.cat([s.diag.imag for s in systems]).float()[:, None]
        self.grids = []  # matrix, damped inverse diagonal, prolongation, restriction
        while level.grid > COARSEST:
            coarse, prolong = level.coarser()
            inverse = (DAMPING / level.diag).float()[:, None]
            self.grids.append((level.matrix(), inverse, prolong, _transposed(prolong)))
            level = coarse
        self.coarsest, self.key = self._dense(level, len(systems)), level.key

    @staticmethod
    def _dense(level: Level, objects: int) -> Tensor:
        """Inverses (P, grid^3, grid^3); voxels without a cell are decoupled."""
        m = level.grid**3
        dense = torch.eye(m, dtype=level.sink.dtype, device=level.key.device).repeat(objects, 1, 1)
        of, own = level.key // m, level.key % m
        dense[of, own, own] = level.diag
        row, face = (level.neighbour < len(level.key)).nonzero(as_tuple=True)
        dense[of[row], own[row], own[level.neighbour[row, face]]] = -level.coupling[row, face]
        return torch.cholesky_inverse(torch.linalg.cholesky(dense)).float()

    def cycle(self, b: Tensor, grid: int = 0) -> Tensor:
        """One V-cycle for real right-hand sides (N, R) in fp32, from zero."""
        if grid == len(self.grids):
            objects, m, _ = self.coarsest.shape
            full = b.new_zeros(objects * m, b.shape[1])
            full[self.key] = b
            return (self.coarsest @ full.view(objects, m, -1)).flatten(0, 1)[self.key]
        matrix, inverse, prolong, restrict = self.grids[grid]
        x = inverse * b
        for _ in range(SMOOTHING - 1):
            x = x + inverse * (b - matrix @ x)
        x = x + prolong @ self.cycle(restrict @ (b - matrix @ x), grid + 1)
        for _ in range(SMOOTHING):
            x = x + inverse * (b - matrix @ x)
        return x

    def product(self, x: Tensor) -> Tensor:
        """The complex matrix times (N, R) complex64."""
        return _complex(self.grids[0][0] @ _real(x)).add_(1j * self.modulation * x)

    def solve(self, columns: Sequence[Tensor], tolerance: float, most: int) -> tuple[list[Tensor], list[float], int]:
        """Solve in fp32 for right-hand sides (N, R) of each object.

        Returns the solutions, complex128, each worst residual (as the iteration updates it), and iterations.
        """
        size = [b.abs().amax(0, keepdim=True).clamp_min(1e-300) for b in columns]  # keeps residuals from underflow
        r = torch.cat([(b / s).to(torch.complex64) for b, s in zip(columns, size, strict=True)])
        x, p, old = torch.zeros_like(r), torch.zeros_like(r), None
        norm = self._sums(r.abs().square()).sqrt().clamp_min(1e-30)
        reached = torch.ones_like(norm)
        done = 0
        while done < most and (reached > tolerance).any():
            done += 1
            z = _complex(self.cycle(_real(r)))
            rho = self._sums(r * z)
            p = z if old is None else z.add_(self._rows(_ratio(rho, old)) * p)
            q = self.product(p)
            step = _ratio(rho, self._sums(p * q))
            step = self._rows(torch.where(reached < REST * tolerance, torch.zeros_like(step), step))
            x += step * p
            r -= step * q
            old = rho
            reached = self._sums(r.abs().square()).sqrt() / norm
        parts = x.to(torch.complex128).split(self.sizes)
        return [part * s for part, s in zip(parts, size, strict=True)], reached.amax(1).tolist(), done

    def _sums(self, values: Tensor) -> Tensor:
        """Sums over each object's rows (P, R)."""
        return torch.stack([part.sum(0) for part in values.split(self.sizes)])

    def _rows(self, values: Tensor) -> Tensor:
        """Values (P, R) of the objects on each of their rows."""
        return torch.cat([v.expand(n, -1) for v, n in zip(values, self.sizes, strict=True)])


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where a column has been solved exactly."""
    return torch.where(b == 0, torch.zeros_like(a), a / b)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x).flatten(1)


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(1, (-1, 2)))


def _transposed(matrix: Tensor) -> Tensor:
    coo = matrix.to_sparse_coo()
    return _csr_of(coo.indices().flip(0), coo.values(), matrix.shape[::-1])


def _csr(column: Tensor, value: Tensor, columns: int) -> Tensor:
    """CSR fp32 from entries (N, K) a row; those in column `columns` are none."""
    row, k = (column < columns).nonzero(as_tuple=True)
    return _csr_of(torch.stack([row, column[row, k]]), value[row, k].float(), (len(column), columns))


def _csr_of(entries: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse", UserWarning)  # "in beta", "checks are disabled"
        return torch.sparse_coo_tensor(entries, values, tuple(shape)).coalesce().to_sparse_csr()
