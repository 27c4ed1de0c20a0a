"""Phantoms at any points, all of a batch at once: what a deformed grid sees of the undeformed ellipsoids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from .phantoms import AXES, CENTRE, EXPONENT, MUA, MUSP, QUATERNION


@dataclass(frozen=True)
class Bodies:
    """Ellipsoid tables (P, 6, 13) as tensors; K rows, those that some phantom uses, others being balls of no fraction.

    centre (P, K, 3) mm; inverse (P, K, 3, 3): from mm to the body's unit ball; axes (P, K, 3) mm; exponent (P, K), or
    None where all are 2; values (P, K, 2) mm^-1; used (P, K) bool.
    """

    centre: Tensor
    inverse: Tensor
    axes: Tensor
    exponent: Tensor | None
    values: Tensor
    used: Tensor

    @classmethod
    def of(cls, ellipsoids: np.ndarray, device: torch.device | str = "cpu") -> Bodies:
        ellipsoids = ellipsoids[:, np.isfinite(ellipsoids[..., MUA]).any(0)]
        used = np.isfinite(ellipsoids[..., MUA])
        rows = np.where(used[..., None], ellipsoids, np.array([0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 2, 0, 0])).astype(float)
        turned = Rotation.from_quat(rows[..., QUATERNION].reshape(-1, 4)).as_matrix().reshape(*used.shape, 3, 3)
        inverse = turned.swapaxes(-1, -2) / rows[..., AXES, None]
        exponent = rows[..., EXPONENT] if (rows[..., EXPONENT] != 2).any() else None
        parts = (rows[..., CENTRE], inverse, rows[..., AXES], exponent, rows[..., MUA : MUSP + 1])
        tensors = (None if x is None else torch.tensor(x, dtype=torch.float32, device=device) for x in parts)
        return cls(*tensors, torch.tensor(used, device=device))

    def __getitem__(self, chosen: Tensor | slice) -> Bodies:
        return Bodies(*(part if part is None else part[chosen] for part in vars(self).values()))

    def at(self, points: Tensor, voxel: float) -> Tensor:
        """(mua, musp) of each phantom at its points (P, ..., 3), mm: (P, 2, ...), fp32, mm^-1.

        Anti-aliased as `phantoms.rasterise` is: the ramp of the volume fractions is `voxel` mm wide.
        """
        shape, points = points.shape[1:-1], points.flatten(1, -2).mT
        out = self.values[:, 0, :, None].repeat(1, 1, points.shape[2])
        for k in range(1, self.used.shape[1]):
            out.lerp_(self.values[:, k, :, None], self._fraction(k, points, voxel))
        return out.mul_(self._fraction(0, points, voxel)).unflatten(2, shape)

    def _fraction(self, k: int, points: Tensor, voxel: float) -> Tensor:
        """Volume fractions (P, 1, N) of row k: with f = |x/a|, 1/2 - (f^3 - 1) / (3 |grad f| voxel), within 0 and 1."""
        inverse = self.inverse[:, k]
        u = torch.baddbmm(-inverse @ self.centre[:, k, :, None], inverse, points).unbind(1)
        flat = self.axes[:, k].square().reciprocal()[:, :, None].unbind(1)
        if self.exponent is None:
            squares = [x.square() for x in u]
            norm = sum(squares).clamp_min_(1e-12).sqrt_()
            slope = sum(x * w for x, w in zip(squares, flat, strict=True)).sqrt_().div_(norm)
        else:
            e, sizes = self.exponent[:, k, None], [x.abs() for x in u]
            norm = sum(x.pow(e) for x in sizes).clamp_min_(1e-12).pow(1 / e)
            slope = sum(x.pow(2 * e - 2) * w for x, w in zip(sizes, flat, strict=True)).sqrt_().mul_(norm.pow(1 - e))
        excess = (norm * norm).mul_(norm).sub_(1)
        inside = excess.div_(slope.mul_(-3 * voxel)).add_(0.5).clamp_(0, 1).nan_to_num_(1.0)
        return torch.where(self.used[:, k, None], inside, 0)[:, None]
