"""Cut cells: the voxels that hold tissue, the open parts of their faces, and the wall that passes through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-4  # volume fraction below which a cell is dropped
BLOCK = 4  # voxels a side of the blocks that are tested first
# Multigrid halves a grid until at most 8 voxels a side are left.
GRIDS = tuple(sorted(m * 2**k for m in (5, 6, 7, 8) for k in range(1, 6) if m * 2**k % BLOCK == 0 and m * 2**k <= 192))

# Signed distance (N,), mm, negative inside, and outward unit normal (N, 3) of points; beyond `near` estimates will do.
Surface = Callable[[Tensor, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Cells:
    """The N cells of one object on a cube of `grid`^3 voxels of `h` mm, in the order of their flat index.

    `volume` (N,) and `aperture` (N, 6) are fractions of a whole cell and face, `wall` (N,) is in faces; `depth` (N,)
    is that of the cell's centre below the wall (mm, negative outside), `normal` (N, 3) points outwards; both are exact
    in cells that hold wall. `neighbour` (N, 6) is the cell behind each face, N where there is none: first the lower
    ones along x, y, z, then the upper ones.
    """

    grid: int
    h: float
    index: Tensor
    centre: Tensor
    volume: Tensor
    wall: Tensor
    depth: Tensor
    normal: Tensor
    neighbour: Tensor
    aperture: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def lookup(self) -> Tensor:
        """The cell of each voxel, `(grid^3,)`, -1 where there is none."""
        table = torch.full((self.grid**3,), -1, dtype=torch.long, device=self.index.device)
        table[self.index] = torch.arange(len(self), device=table.device)
        return table


def cut(surface: Surface, grid: int, h: float, device="cpu") -> Cells:
    """Cut a cube of `grid`^3 voxels, centred at the origin, along a smooth surface.

    Fractions are those of the tangent plane in each cell and each face; the wall's area vector is what closes the
    cell's open faces (divergence theorem). Raises ValueError where the tissue touches the cube's own wall.
    """
    if grid not in GRIDS:
        raise ValueError(f"geometry: grid {grid}; one of {', '.join(map(str, GRIDS))} is accepted")
    distance, normal = _distances(surface, grid, h, device)
    near = (distance.abs() < h).nonzero()[:, 0]
    volume = (distance < 0).double()
    volume[near] = _fraction(distance[near], normal[near], h)
    volume = volume.view(grid, grid, grid)
    apertures = [_apertures(surface, volume, near, axis, h) for axis in range(3)]
    return _compact(grid, h, distance, normal, volume, apertures)


def steps(index: Tensor, grid: int) -> Tensor:
    """Indices (N, 3) along x, y, z of voxels with these flat indices."""
    return torch.stack([index // grid**2, index // grid % grid, index % grid], -1)


def centres(index: Tensor, grid: int, h: float) -> Tensor:
    """Centres (N, 3), mm, of voxels with these flat indices."""
    return (steps(index, grid).double() + 0.5 - grid / 2) * h


def _distances(surface: Surface, grid: int, h: float, device) -> tuple[Tensor, Tensor]:
    """Signed distance and normal of all voxels: blocks that are far from the wall are not looked into."""
    blocks, width = grid // BLOCK, BLOCK * h
    far, _ = surface(centres(torch.arange(blocks**3, device=device), blocks, width), 0.0)
    distance = far.view(blocks, blocks, blocks)
    for axis in range(3):
        distance = distance.repeat_interleave(BLOCK, axis)
    distance = distance.flatten()
    normal = distance.new_zeros(grid**3, 3)
    # for blocks that hold wall the estimate must stay below twice their width: true of axes within a factor of two
    inner = (distance.abs() < 2 * width).nonzero()[:, 0]
    distance[inner], normal[inner] = surface(centres(inner, grid, h), 2 * h)
    return distance, normal


def _apertures(surface: Surface, volume: Tensor, near: Tensor, axis: int, h: float) -> Tensor:
    """Open fractions of the `grid + 1` layers of faces normal to one axis; those in the wall of the cube are closed."""
    grid = volume.shape[0]
    pad = [0, 0] * (2 - axis) + [1, 1]
    mask = torch.zeros(grid**3, dtype=torch.bool, device=volume.device)
    mask[near] = True
    mask = F.pad(mask.view(grid, grid, grid), pad)
    whole = F.pad(volume, pad)
    n = grid + 1
    out = torch.minimum(whole.narrow(axis, 0, n), whole.narrow(axis, 1, n)).ge(1).double()
    cut_faces = mask.narrow(axis, 0, n) | mask.narrow(axis, 1, n)
    points = (cut_faces.nonzero().double() + 0.5 - grid / 2) * h
    points[:, axis] -= h / 2
    distance, normal = surface(points, 2 * h)
    out[cut_faces] = _fraction(distance, normal[:, [a for a in range(3) if a != axis]], h)
    outer = volume.select(axis, 0), volume.select(axis, -1)
    if any(out.select(axis, side).any() for side in (0, -1)) or any((layer == 1).any() for layer in outer):
        raise ValueError(f"geometry: the tissue touches the wall of the cube of {grid * h:g} mm")
    return out


def _fraction(distance: Tensor, normal: Tensor, h: float) -> Tensor:
    """Fraction of a cube (or, of a square, with two components of the normal) that lies below a plane.

    The plane is at `distance` (N,) from the centre, along `normal` (N, k); inclusion-exclusion over the corners.
    """
    m = normal.abs().clamp_min(1e-3)  # the formula divides by them
    reach = m.sum(-1) / 2 - distance / h
    total = torch.zeros_like(distance)
    k = m.shape[1]
    for corner in range(2**k):
        inside = torch.tensor([corner >> a & 1 for a in range(k)], dtype=m.dtype, device=m.device)
        total += (-1) ** int(inside.sum()) * (reach - m @ inside).clamp_min(0) ** k
    return (total / ((2 if k == 2 else 6) * m.prod(-1))).clamp(0, 1)


def _compact(grid: int, h: float, distance, normal, volume: Tensor, apertures: list[Tensor]) -> Cells:
    index = (volume.flatten() >= SMALLEST).nonzero()[:, 0]
    n = len(index)
    table = torch.full((grid**3,), n, dtype=torch.long, device=index.device)
    table[index] = torch.arange(n, device=index.device)
    neighbour, aperture, area = [], [], []
    for axis, faces in enumerate(apertures):
        area.append(-faces.diff(dim=axis).flatten()[index])
    for side in (0, 1):
        for axis, faces in enumerate(apertures):
            step = (1 if side else -1) * (grid**2, grid, 1)[axis]
            fraction = faces.narrow(axis, side, grid).flatten()[index]
            cell = torch.where(fraction > 0, table[(index + step).clamp(0, grid**3 - 1)], n)
            neighbour.append(cell)
            aperture.append(torch.where(cell < n, fraction, 0.0))
    return Cells(
        grid, h, index, centres(index, grid, h), volume.flatten()[index], torch.stack(area, -1).norm(dim=-1),
        -distance[index], normal[index], torch.stack(neighbour, -1), torch.stack(aperture, -1),
    )  # fmt: skip
