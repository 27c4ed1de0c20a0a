"""Random deformations and noise of training volumes: drawn as data, then applied without chance.

`sample` draws a `Deformation`, which can be logged, replayed and split into parts; `apply` is a function of it. Volumes
go in and volumes come out. Measurements belong to the undeformed medium: they stay true only of a rigid motion of the
medium and its optodes together (`samples`); those of an elastically deformed one have to be simulated anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..config import Augmentation
from ..metrics import RANGES
from .bodies import Bodies
from .phantoms import CUBE

STREAM = 6  # of random numbers; phantoms have 1, splits 2, the order of training 3, probes 4, detector noise 5
CLIP = 2.0  # sd at which displacements are clipped
INJECTIVE = 2.48  # displacements below spacing / 2.4795 cannot fold a cubic B-spline map (Choi and Lee 2000)


@dataclass(frozen=True, eq=False)
class Deformation:
    """What happens to each of B samples: the medium is displaced, then turned about the cube's centre; noise is added.

    rotation: (B, 3) rad, about the fixed x, then y, then z axis, which are D, H, W; right-handed. displacement:
    (B, 3, n, n, n) mm, coefficients of a uniform cubic B-spline at n >= 2 points an axis, the first and last on the
    cube's faces. noise: sd over each channel's range; noise_seeds: one a sample. `deformation[i:j]` is that of some
    samples, which get the same bits however a batch is split.
    """

    rotation: np.ndarray
    displacement: np.ndarray
    noise: float
    noise_seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.noise_seeds)

    def __getitem__(self, part: slice) -> Deformation:
        rotation, displacement = self.rotation[part], self.displacement[part]
        return replace(self, rotation=rotation, displacement=displacement, noise_seeds=self.noise_seeds[part])

    def moved(self) -> np.ndarray:
        """Whether each sample is deformed at all, (B,) bool."""
        return self.rotation.any(1) | self.displacement.any((1, 2, 3, 4))


def sample(config: Augmentation, n: int, seed: Sequence[int]) -> Deformation:
    """Draw the deformations of `n` samples: a function of (config, n, seed) only; no option shifts another's draws.

    Angles are uniform in +-config.rotation degrees. Displacements are normal with sd config.elastic mm, clipped at 2 sd
    and at 1/2.48 of the distance between control points, the greatest at which no map folds (Choi and Lee 2000,
    Graphical Models 62, 411). seed: non-negative numbers, as many in each call of a run.
    """
    rng = np.random.default_rng([STREAM, *seed])
    points = max(round(CUBE / config.spacing) + 1, 2)
    noise_seeds = tuple(rng.integers(2**63, size=n).tolist())
    rotation = np.deg2rad(config.rotation) * rng.uniform(-1, 1, (n, 3))
    bound = min(CLIP * config.elastic, CUBE / (points - 1) / INJECTIVE)
    displacement = np.clip(config.elastic * rng.standard_normal((n, 3, points, points, points)), -bound, bound)
    return Deformation(rotation, displacement, config.noise, noise_seeds)


def field(deformation: Deformation, grid: int, device: torch.device | str = "cpu") -> Tensor:
    """Where each voxel's value comes from, (B, grid, grid, grid, 3) fp32, for `grid_sample` without align_corners.

    The backward map p -> R^-1 (p + u(p)) at voxel centres, p in mm from the cube's centre; -1 and 1 are the cube's
    faces, and components come in the order (W, H, D) that `grid_sample` wants. u is a B-spline, so smooth to the second
    derivative; beyond the faces its coefficients repeat.
    """
    back = Rotation.from_euler("xyz", deformation.rotation).as_matrix().mT[:, ::-1] / (CUBE / 2)  # rows for W, H, D
    u = (back @ deformation.displacement.reshape(len(deformation), 3, -1)).reshape(deformation.displacement.shape)
    u = _placed(u.astype(np.float32), device)
    points, weights = (_placed(x, device) for x in _spline(grid, u.shape[-1]))
    for axis in (4, 3, 2):  # sums of slices, not products of matrices: these depend on the size of the batch
        shape = [1] * axis + [grid] + [1] * (4 - axis)
        u = sum(u.index_select(axis, k) * w.view(shape) for k, w in zip(points, weights, strict=True))
    centres = (np.arange(grid) + 0.5) / grid * CUBE - CUBE / 2
    x, y, z = _placed((back[..., None] * centres).astype(np.float32), device).unbind(2)
    return (x[:, :, :, None, None] + y[:, :, None, :, None] + z[:, :, None, None, :] + u).movedim(1, -1)


def _spline(grid: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The four control points on which each voxel of an axis depends, and their weights, both (4, grid)."""
    place = (np.arange(grid) + 0.5) / grid * (n - 1)
    t = place % 1
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    points = np.clip(place.astype(np.int64) + np.arange(-1, 3)[:, None], 0, n - 1)
    return points, weights.astype(np.float32)


def warp(volumes: Tensor, field: Tensor, mode: str) -> Tensor:
    """Volumes (B, C, D, H, W) or (B, D, H, W) at the positions of a field, with 0 (air) around the cube.

    mode: "bilinear" (trilinear, here) for coefficients, computed in and returned as fp32, under autocast too; "nearest"
    for labels, whose dtype is kept. Raises ValueError for another mode, for integers under "bilinear", and for shapes
    that do not fit.
    """
    fits = volumes.ndim in (4, 5) and len(volumes) == len(field) and volumes.shape[-3:] == field.shape[1:4]
    if not fits or field.shape[4:] != (3,):
        shapes = f"volumes {tuple(volumes.shape)}, field {tuple(field.shape)}"
        raise ValueError(f"augment: {shapes}; accepted: (B, C, D, H, W) or (B, D, H, W), and (B, D, H, W, 3)")
    if mode not in ("bilinear", "nearest") or (mode == "bilinear" and not volumes.is_floating_point()):
        raise ValueError(f"augment: mode {mode!r} of {volumes.dtype}; accepted: 'nearest', or 'bilinear' of floats")
    x = volumes.float() if volumes.ndim == 5 else volumes.float().unsqueeze(1)
    x = F.grid_sample(x, field, mode, padding_mode="zeros", align_corners=False).reshape(volumes.shape)
    return x.to(volumes.dtype) if mode == "nearest" else x


def apply(deformation: Deformation, volumes: Tensor, bodies: Bodies | None = None) -> tuple[Tensor, Tensor]:
    """What the network sees and what it should answer, both (B, 2, D, H, W) fp32, mm^-1, on the volumes' device.

    The truth is the deformed clean volume, bit for bit the given one where nothing moves; what is seen has noise of sd
    `noise` x RANGES on top, in air too, and is the truth where there is none. With the phantoms' `bodies` the deformed
    volume is rasterised anew, as sharp as the given one (but for the ramp of volume fractions, which an elastic map
    stretches); without, it is interpolated, which blurs it. The same device gives the same bits. Raises ValueError for
    volumes that are not cubes of two channels, one a sample.
    """
    grid = volumes.shape[-1]
    if volumes.shape != (len(deformation), len(RANGES), grid, grid, grid):
        wanted = f"({len(deformation)}, {len(RANGES)}, D, D, D)"
        raise ValueError(f"augment: volumes {tuple(volumes.shape)}; accepted: {wanted}, one a deformation")
    truth = volumes.float()
    if (moved := deformation.moved()).any():
        places = field(deformation, grid, volumes.device)
        if bodies is None:
            warped = warp(truth, places, "bilinear")
        else:
            warped = bodies.at(places.flip(-1) * (CUBE / 2), CUBE / grid)
        truth = torch.where(_placed(moved, volumes.device)[:, None, None, None, None], warped, truth)
    if not deformation.noise:
        return truth, truth
    generators = (torch.Generator(truth.device).manual_seed(seed) for seed in deformation.noise_seeds)
    noise = torch.stack([torch.randn(truth.shape[1:], generator=g, device=truth.device) for g in generators])
    sd = _placed(deformation.noise * np.float32(RANGES), truth.device)[:, None, None, None]
    return truth + sd * noise, truth


def _placed(values: np.ndarray, device: torch.device | str) -> Tensor:
    """On the device; from pinned memory, so that the host does not wait for a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor if torch.device(device).type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
