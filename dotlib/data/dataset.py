"""The dataset of a configuration: phantoms, their split, and volumes on the device that needs them."""

from dataclasses import dataclass

import numpy as np
import torch

from ..config import Data
from . import phantoms
from .split import NAMES, digest, split, strata


@dataclass(frozen=True)
class Dataset:
    """Phantom tables `(P, 6, 13)` and their split; `digest` freezes both."""

    ellipsoids: np.ndarray
    labels: np.ndarray
    grid: int

    @property
    def digest(self) -> str:
        return digest(self.ellipsoids, self.labels)

    @property
    def voxel(self) -> float:
        """Width of a voxel, mm."""
        return phantoms.CUBE / self.grid

    def part(self, name: str) -> np.ndarray:
        """The tables of `train`, `validation` or `test`."""
        return self.ellipsoids[self.labels == NAMES.index(name)]

    def volumes(self, name: str, device="cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Anti-aliased volumes of one part, (P, 2, D, H, W), mm^-1; 5,000 of 64^3 in float16 take 5.2 GB."""
        return phantoms.rasterise(self.part(name), self.grid, device, dtype)

    def mean(self, name: str) -> torch.Tensor:
        """Mean volume of one part, (2, D, H, W), mm^-1."""
        tables = self.part(name)
        chunks = (phantoms.rasterise(tables[i : i + 64], self.grid).sum(0) for i in range(0, len(tables), 64))
        return sum(chunks) / len(tables)

    def tissue(self, name: str, device="cpu") -> torch.Tensor:
        """Tissue masks of one part, (P, D, H, W) bool."""
        return phantoms.labels(self.part(name), self.grid, device) > 0


def load(config: Data) -> Dataset:
    """Draw the phantoms of a configuration and split them."""
    ellipsoids = phantoms.sample(config.family, config.phantoms, config.seed)
    return Dataset(ellipsoids, split(strata(ellipsoids), config.fractions, config.seed), config.grid)


def standard(volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel, (2,) each, mm^-1, over the voxels that hold tissue."""
    sums = volumes.new_zeros(3, 2, dtype=torch.float64)
    for volume in volumes:
        values = volume[:, volume[1] > 0].double()
        sums += torch.stack([torch.full_like(values[:, 0], values.shape[1]), values.sum(1), values.square().sum(1)])
    mean, square = sums[1] / sums[0], sums[2] / sums[0]
    return mean.float(), (square - mean**2).sqrt().float()
