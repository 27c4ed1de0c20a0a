"""Phantoms at any points, all of a batch at once: what a deformed grid sees of the undeformed ellipsoids."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from .phantoms import AXES, CENTRE, EXPONENT, MUA, MUSP, QUATERNION


class Bodies(NamedTuple):
    """Ellipsoid tables (P, 6, 13) as tensors; unused rows are unit balls without volume fractions.

    centre (P, 6, 3) mm; inverse (P, 6, 3, 3): from mm to the body's unit ball; axes (P, 6, 3) mm; exponent (P, 6);
    values (P, 6, 2) mm^-1; used (P, 6) bool.
    """

    centre: Tensor
    inverse: Tensor
    axes: Tensor
    exponent: Tensor
    values: Tensor
    used: Tensor

    @classmethod
    def of(cls, ellipsoids: np.ndarray, device: torch.device | str = "cpu") -> Bodies:
        used = np.isfinite(ellipsoids[..., MUA])
        rows = np.where(used[..., None], ellipsoids, np.array([0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 2, 0, 0])).astype(float)
        turned = Rotation.from_quat(rows[..., QUATERNION].reshape(-1, 4)).as_matrix().reshape(*used.shape, 3, 3)
        inverse = turned.swapaxes(-1, -2) / rows[..., AXES, None]
        parts = (rows[..., CENTRE], inverse, rows[..., AXES], rows[..., EXPONENT], rows[..., MUA : MUSP + 1])
        return cls(*(torch.tensor(x, dtype=torch.float32, device=device) for x in parts), torch.tensor(used).to(device))

    def __getitem__(self, chosen) -> Bodies:
        return Bodies(*(part[chosen] for part in tuple(self)))

    def at(self, points: Tensor, voxel: float) -> Tensor:
        """(mua, musp) of each phantom at its points (P, ..., 3), mm: (P, 2, ...), fp32, mm^-1.

        Anti-aliased as `phantoms.rasterise` is: the ramp of the volume fractions is `voxel` mm wide.
        """
        shape, points = points.shape[1:-1], points.flatten(1, -2).mT
        centre, inverse, axes, exponent, values, used = self
        out, air = None, None
        for k in range(used.shape[1]):
            if not used[:, k].any():
                continue
            fraction = _fraction(points, centre[:, k], inverse[:, k], axes[:, k], exponent[:, k], voxel)
            fraction = torch.where(used[:, k, None], fraction, 0)[:, None]
            value = values[:, k, :, None]
            if out is None:
                out, air = value.repeat(1, 1, points.shape[2]), fraction
            else:
                out = out.lerp_(value, fraction)
        return (out * air).unflatten(2, shape)


def _fraction(points: Tensor, centre: Tensor, inverse: Tensor, axes: Tensor, exponent: Tensor, voxel: float) -> Tensor:
    """Volume fractions (P, N): with f = |x/a|_e, 1/2 - (f^3 - 1) / (3 |grad f| voxel), within 0 and 1."""
    u = torch.baddbmm(-inverse @ centre[:, :, None], inverse, points).unbind(1)
    flat = axes.square().reciprocal()[:, :, None].unbind(1)
    if (exponent == 2).all():
        squares = [x.square() for x in u]
        norm = sum(squares).clamp_min_(1e-12).sqrt_()
        slope = sum(x * w for x, w in zip(squares, flat, strict=True)).sqrt_().div_(norm)
    else:
        e, sizes = exponent[:, None], [x.abs() for x in u]
        norm = sum(x.pow(e) for x in sizes).clamp_min_(1e-12).pow(1 / e)
        slope = sum(x.pow(2 * e - 2) * w for x, w in zip(sizes, flat, strict=True)).sqrt_().mul_(norm.pow(1 - e))
    excess = (norm * norm).mul_(norm).sub_(1)
    return excess.div_(slope.mul_(-3 * voxel)).add_(0.5).clamp_(0, 1).nan_to_num_(1.0)
