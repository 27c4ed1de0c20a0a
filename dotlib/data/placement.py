"""Where a probe of unknown tissue lies: a sphere fitted to its optodes, and the frame in which it is reconstructed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from .phantoms import AXES, CENTRE, COLUMNS, CUBE, EXPONENT, MUA, MUSP, QUATERNION
from .surface import Surface

RADII = (20.0, 29.0)  # mm: spheres that the cube holds, with a voxel of 2 mm to spare
FAR = 5.0  # mm: an optode that lies farther from the fitted sphere is no optode on it
LARGEST, STEPS = CUBE / 2 - 0.5, 5  # mm: reach of a sphere whose centre is not the cube's; attempts
LEAST = 4  # points that determine a sphere


class PlacementError(ValueError):
    """Optodes through which no surface of the kind passes, as one line."""


@dataclass(frozen=True)
class Placement:
    """A probe in the frame of its reconstruction: the sphere's centre is the origin, the patch's centre lies on +z.

    `tissue` (13,) is the sphere's row of an ellipsoid table; `sources`, `detectors` (S, 3), (K, 3) mm lie on it;
    `turn` and `origin` take the file's places there: x' = turn (x - origin). `moved`: the farthest that an optode was
    from the sphere, mm.
    """

    tissue: np.ndarray
    sources: np.ndarray
    detectors: np.ndarray
    turn: Rotation
    origin: np.ndarray
    moved: float

    def affine(self, grid: int) -> np.ndarray:
        """From voxel indices of the reconstruction, at voxel centres, to the file's coordinates, mm: (4, 4)."""
        h, back = CUBE / grid, self.turn.inv().as_matrix()
        out = np.eye(4)
        out[:3, :3] = back * h
        out[:3, 3] = back @ np.full(3, h / 2 - CUBE / 2) + self.origin
        return out


def sphere(points: np.ndarray, radius: float | None = None) -> np.ndarray:
    """The row (13,) of the sphere nearest to points (N, 3), mm, in least squares; of `radius`, or of one, in RADII.

    The patch of an ellipsoid may be flatter than any sphere that the cube holds: then the largest is fitted.
    """
    if len(points) < LEAST or not np.isfinite(points).all():
        raise PlacementError(f"sphere: {len(points)} optodes; {LEAST} with finite positions at least are accepted")
    if radius is not None and not RADII[0] <= radius <= RADII[1]:
        raise PlacementError(f"sphere: radius {radius:g} mm; {RADII[0]:g} to {RADII[1]:g} mm are accepted")
    middle = points.mean(0)
    near = points - middle  # positions may be metres from the origin
    system = np.column_stack([2 * near, np.ones(len(near))])
    solution, _, rank, _ = np.linalg.lstsq(system, (near**2).sum(1), rcond=1e-9)
    found = np.sqrt(max(solution[3] + (solution[:3] ** 2).sum(), 0))
    if radius is None and rank == 4 and RADII[0] <= found <= RADII[1]:
        return _row(solution[:3] + middle, found)
    held = radius if radius is not None else float(np.clip(found, *RADII)) if rank == 4 else RADII[1]
    start = -held * _outward(near, solution[:3] if rank == 4 else None)
    fit = least_squares(lambda centre: np.linalg.norm(near - centre, axis=1) - held, start)
    return _row(fit.x + middle, held)


def _outward(near: np.ndarray, centre: np.ndarray | None) -> np.ndarray:
    """The normal of a patch about its mean: away from the centre; of a plane patch, the one on the side of +z."""
    normal = np.linalg.svd(near)[2][2]
    side = -centre if centre is not None else np.array([0.0, 0.0, 1.0])
    return normal * (1.0 if normal @ side >= 0 else -1.0)


def _row(centre: np.ndarray, radius: float) -> np.ndarray:
    row = np.zeros(COLUMNS)
    row[CENTRE], row[AXES], row[EXPONENT] = centre, radius, 2.0
    row[QUATERNION] = Rotation.identity().as_quat()
    row[[MUA, MUSP]] = 1.0  # its volume is its volume fractions
    return row


def inside(points: np.ndarray) -> np.ndarray:
    """The row (13,) of the sphere nearest to points (N, 3) in the frame of a cube: smaller where it must be."""
    row = sphere(points)
    for _ in range(STEPS):
        beyond = np.abs(row[CENTRE]).max() + row[AXES][0] - LARGEST
        if beyond <= 0:
            return row
        row = sphere(points, max(row[AXES][0] - beyond, RADII[0]))
    raise PlacementError(f"sphere: none of {RADII[0]:g} mm or more fits the optodes within a cube of {CUBE:g} mm")


def onto(tissue: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) moved to the nearest point of the surface."""
    distance, normal = (v.numpy() for v in Surface(tissue)(torch.as_tensor(points, dtype=torch.float64)))
    return points - distance[:, None] * normal


def place(sources: np.ndarray, detectors: np.ndarray, radius: float | None = None) -> Placement:
    """The frame of a probe (S, 3), (K, 3), mm, of unknown tissue, taken for a sphere; `radius`, mm, where it is known.

    Raises PlacementError, naming the optode, where one lies more than 5 mm from it.
    """
    every = np.concatenate([sources, detectors]).astype(np.float64)
    row = sphere(every, radius)
    off = np.abs(np.linalg.norm(every - row[CENTRE], axis=1) - row[AXES][0])
    if off.max() > FAR:
        worst = int(off.argmax())
        name = f"source {worst}" if worst < len(sources) else f"detector {worst - len(sources)}"
        raise PlacementError(
            f"{name} lies {off.max():.1f} mm from the sphere of {row[AXES][0]:.1f} mm that fits the optodes; "
            f"{FAR:g} mm at most is accepted"
        )
    z = every.mean(0) - row[CENTRE]
    z /= np.linalg.norm(z)
    x = np.eye(3)[np.abs(z).argmin()]  # no direction round the axis is special
    x -= (x @ z) * z
    x /= np.linalg.norm(x)
    turn = Rotation.from_matrix(np.stack([x, np.cross(z, x), z]))
    tissue = _row(np.zeros(3), row[AXES][0])
    optodes = onto(tissue, turn.apply(every - row[CENTRE]))
    return Placement(tissue, optodes[: len(sources)], optodes[len(sources) :], turn, row[CENTRE].copy(), off.max())
