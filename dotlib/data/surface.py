"""The tissue's surface: a centred (super)ellipsoid |R^T x / a|_e = 1, its signed distance and its points."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

STEPS = 12  # of the closest-point iteration, at most: each gains a digit near the wall
CLOSE = 1e-7  # mm to the foot: the distance then errs by its square


class Surface:
    """The surface of one tissue row `(13,)` of an ellipsoid table (see `phantoms`); lengths in mm."""

    def __init__(self, row: np.ndarray):
        row = np.asarray(row, dtype=np.float64)
        self.centre, self.axes, self.exponent = row[0:3], row[3:6], row[10]
        self.matrix = Rotation.from_quat(row[6:10]).as_matrix()

    def __call__(self, points: Tensor, near: float = float("inf")) -> tuple[Tensor, Tensor]:
        """Signed distance `(N,)` of points `(N, 3)`, mm, negative inside, and the outward unit normal `(N, 3)`.

        Exact below the radius of curvature; points estimated to lie farther away than `near` keep the estimate, which
        has the right sign.
        """
        matrix, centre = (
            torch.as_tensor(v, dtype=points.dtype, device=points.device) for v in (self.matrix, self.centre)
        )
        x = matrix.T @ (points - centre).T  # components first: sums over them are fast
        distance, normal = self._estimate(x)
        close = (distance.abs() < near).nonzero()[:, 0]
        distance[close], normal[:, close] = self._closest(x[:, close])
        return distance, (matrix @ normal).T

    def _closest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """By turns along the gradient onto the surface, then sideways until the way to the point is normal."""
        foot = x
        for _ in range(STEPS):
            distance, normal = self._estimate(foot)
            foot = foot - distance * normal
            aside = x - foot
            aside = aside - (aside * normal).sum(0) * normal
            foot = foot + aside
            if (distance.abs() <= CLOSE).all() and (aside.abs() <= CLOSE).all():
                break
        distance, normal = self._estimate(foot)
        return ((x - foot) * normal).sum(0) + distance, normal

    def along(self, directions: np.ndarray) -> np.ndarray:
        """The surface's points `(N, 3)` in these directions from its centre."""
        body = np.abs(directions @ self.matrix / self.axes)
        norm = (body**self.exponent).sum(-1, keepdims=True) ** (1 / self.exponent)
        return directions / norm + self.centre

    def reach(self) -> np.ndarray:
        """Half the widths of the box that holds the surface, `(3,)`."""
        dual = self.exponent / (self.exponent - 1)
        return (np.abs(self.matrix * self.axes) ** dual).sum(1) ** (1 / dual)

    def _estimate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(f - 1) / |grad f| with f = |x/a|_e, and the normal, in the body's frame."""
        axes = torch.as_tensor(self.axes, dtype=x.dtype, device=x.device)[:, None]
        u, e = x / axes, self.exponent
        if e == 2:
            norm = u.square().sum(0).clamp_min(1e-12).sqrt()
            gradient = u / (axes * norm)
        else:
            size = u.abs().clamp_min(1e-12)
            norm = size.pow(e).sum(0).pow(1 / e)
            gradient = u.sign() * (size / norm).pow(e - 1) / axes
        slope = gradient.square().sum(0).sqrt().clamp_min(1e-12)
        return (norm - 1) / slope, gradient / slope
