"""What finished runs are judged on: phantoms of every family, and the base's test phantoms otherwise described."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import metrics
from .config import Augmentation, Data
from .data import augment, phantoms, probe
from .data.dataset import Dataset

SEED = 4500  # of the families' phantoms, of what chance finds and of the noise; no training phantom has it
COUNT = 64  # phantoms of a family, or as many as the base has in its test part
CHUNK = 32
NOISE = 0.01  # sd of what the network sees, over each channel's range
VARIANTS = (
    "hard voxels",
    "moved by a third of a voxel",
    "input noise 1 %",
    "voxels twice as large",
    "voxels half as large",
)
NAMES = (*phantoms.FAMILIES, *VARIANTS)  # of all sets


class Part(NamedTuple):
    """Some phantoms of a set, volumes (P, 2, D, H, W) in mm^-1, on the grid of the set.

    `seen` and `seen_twin` are what a network is given of the phantoms and of their tumour-free twins, `truth` what it
    should answer, `reference` the ellipsoid with its own background: the twin's truth. `chance`: (P, K, 2) mm, the
    localisation of an image that knows nothing.
    """

    tables: np.ndarray
    seen: Tensor
    seen_twin: Tensor
    truth: Tensor
    reference: Tensor
    regions: metrics.Regions
    chance: Tensor


@dataclass(frozen=True, eq=False)
class Phantoms:
    """Tables (P, 6, 13), and how volumes are made of them: `hard` voxels hold their centre's value, not a mixture."""

    name: str
    tables: np.ndarray
    grid: int
    hard: bool = False
    noise: float = 0.0

    def __len__(self) -> int:
        return len(self.tables)

    @property
    def digest(self) -> str:
        """What tells two sets apart."""
        how = f"{self.name} {self.grid} {self.hard} {self.noise} {CHUNK} {SEED}"
        return hashlib.sha256(how.encode() + np.ascontiguousarray(self.tables).tobytes()).hexdigest()[:12]

    def volumes(self, tables: np.ndarray, device: str = "cpu") -> Tensor:
        """Volumes of some tables in the way of this set."""
        if self.hard:
            return phantoms.hard(tables, self.grid).to(device)
        return phantoms.rasterise(tables, self.grid, device)

    def parts(self, device: str = "cpu") -> Iterator[Part]:
        """The set, `CHUNK` phantoms at a time; noise is the same on a phantom and on its twin."""
        changes = augment.sample(Augmentation(rotation=0, elastic=0, noise=self.noise), len(self), (SEED,))
        for start in range(0, len(self), CHUNK):
            chosen = slice(start, start + CHUNK)
            tables = self.tables[chosen]
            twins = phantoms.without_inclusions(tables)
            labels = phantoms.labels(tables, self.grid)
            regions = metrics.regions(labels, phantoms.CUBE / self.grid, phantoms.ROWS - 1).to(device)
            seen, truth = augment.apply(changes[chosen], self.volumes(tables, device))
            seen_twin, reference = augment.apply(changes[chosen], self.volumes(twins, device))
            chance = metrics.localisation_chance(truth, regions, torch.Generator().manual_seed(SEED + start))
            yield Part(tables, seen, seen_twin, truth, reference, regions, chance)


def sets(base: Data, data: Dataset) -> dict[str, Phantoms]:
    """The sets by name: the test part of `data`, which is that of `base`, under its family's name; a set of every other
    family; and the test part as hard voxels, moved, seen through noise, and in other voxels than the base's."""
    own = Phantoms(base.family, data.part("test"), base.grid)
    count = min(COUNT, len(own))
    others = [Phantoms(name, drawn(name, base, count), base.grid) for name in phantoms.FAMILIES if name != base.family]
    moved = own.tables.copy()
    moved[:, :, phantoms.CENTRE] += data.voxel / 3
    hard, third, noisy, coarse, fine = VARIANTS
    variants = [replace(own, name=hard, hard=True), replace(own, name=third, tables=moved)]
    variants += [replace(own, name=noisy, noise=NOISE)]
    variants += [replace(own, name=coarse, grid=base.grid // 2), replace(own, name=fine, grid=2 * base.grid)]
    return {found.name: found for found in (own, *others, *variants)}


def drawn(family: str, base: Data, count: int) -> np.ndarray:
    """`count` phantoms of a family, (count, 6, 13), in the frame that a file of `base` in that family would have.

    The frame of a probe is drawn from tissue, seed and index before its optodes, and before any light: it takes no
    simulation. Without measurements phantoms are as they were drawn.
    """
    tables = phantoms.sample(family, count, SEED)
    if base.measurements is None:
        return tables
    for i, rows in enumerate(tables):
        turn = probe.frame(rows[0], np.random.default_rng([probe.STREAM, SEED, i]))
        tables[i] = phantoms.rotate(rows[None], turn)[0]
    return tables
