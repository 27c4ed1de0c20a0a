"""Optodes on the grid: one operator takes fluence to a detector and, transposed, a source to the cells."""

import torch
from torch import Tensor

from .geometry import Cells

RADIUS = 2.6  # voxels; cells and wall within it take part
REACH = 3  # voxels that this radius spans at most
FULL = 0.1  # volume fraction from which a cell takes part
ROBIN = 0.6  # weight of the wall in a cell beside that of its value


def around(cells: Cells, points: Tensor) -> Tensor:
    """The cells up to a voxel beyond RADIUS around each of O points (O, 3), mm: (O, K) indices, the last may be -1."""
    steps = torch.arange(-REACH, REACH + 1, device=points.device)
    offsets = torch.cartesian_prod(steps, steps, steps)
    voxel = (points / cells.h + cells.grid / 2).floor().long()[:, None] + offsets
    inside = ((voxel >= 0) & (voxel < cells.grid)).all(-1)
    flat = (voxel[..., 0] * cells.grid + voxel[..., 1]) * cells.grid + voxel[..., 2]
    cell = torch.where(inside, cells.lookup()[flat.clamp(0, cells.grid**3 - 1)], -1)
    far = (cells.centre[cell] - points[:, None]).norm(dim=-1) > (RADIUS + 1) * cells.h
    cell = torch.where(far, -1, cell)
    first = (cell < 0).long().sort(dim=1, stable=True).indices
    return cell.gather(1, first)[:, : int((cell >= 0).sum(1).max())]


def weights(cells: Cells, cell: Tensor, points: Tensor, D: Tensor, A: float) -> Tensor:
    """Weights (O, K) with which the values of `cell` give the value at each point; differentiable in points and D.

    Weighted least squares of a quadratic to the cells' values, with phi + 2 A D dphi/dnu = 0 as soft rows where the
    cells hold wall, D (O,) mm being that around the point. The transpose is a source with the moments of a point.
    """
    relative = (cells.centre[cell] - points[:, None]) / cells.h
    weight = _bump(relative) * (cells.volume[cell] >= FULL) * (cell >= 0)
    basis = _monomials(relative)
    normal = torch.einsum("ok,oki,okj->oij", weight, basis, basis)
    k, o = (cells.wall[cell] > 0).logical_and(cell >= 0).nonzero(as_tuple=True)[::-1]
    outward = cells.normal[cell[o, k]]
    foot = relative[o, k] + outward * (cells.depth[cell[o, k]] / cells.h)[:, None]
    area = ROBIN * cells.wall[cell[o, k]] * _bump(foot)
    length = (2 * A / cells.h) * D[o, None]
    robin = (_monomials(foot) + length * _slopes(foot, outward)) / (1 + length)
    rows = area[:, None, None] * robin[:, :, None] * robin[:, None, :]
    normal = normal.index_add(0, o, rows)
    first = torch.eye(10, 1, dtype=normal.dtype, device=normal.device)
    return weight * (basis @ torch.linalg.solve(normal, first.expand(len(normal), -1, -1)))[..., 0]


def local_mean(cells: Cells, cell: Tensor, points: Tensor) -> Tensor:
    """Weights (O, K), of sum 1, of a mean over the tissue around each point."""
    near = _bump((cells.centre[cell] - points[:, None]) / cells.h) * cells.volume[cell] * (cell >= 0)
    return near / near.sum(-1, keepdim=True)


def _bump(relative: Tensor) -> Tensor:
    """1 at the point, falling smoothly to 0 at RADIUS."""
    return (1 - relative.square().sum(-1) / RADIUS**2).clamp_min(0) ** 3


def _monomials(x: Tensor) -> Tensor:
    a, b, c = x.unbind(-1)
    return torch.stack([torch.ones_like(a), a, b, c, a * a, b * b, c * c, a * b, b * c, c * a], -1)


def _slopes(x: Tensor, direction: Tensor) -> Tensor:
    """Derivatives of the monomials along `direction`."""
    (a, b, c), (p, q, r) = x.unbind(-1), direction.unbind(-1)
    return torch.stack(
        [torch.zeros_like(a), p, q, r, 2 * a * p, 2 * b * q, 2 * c * r, a * q + b * p, b * r + c * q, c * p + a * r], -1
    )
