"""What a run shows its network, and what it should answer: volumes for themselves, or lifts for volumes.

Under `reconstruct` a sample is a phantom with one of its stored draws of readings. Medium and optodes may be moved
together by one of the eight motions of the grid that keep the probe's axis: lifts move with them, value for value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import LIFTED, Config
from . import augment, dataset, phantoms, placement
from .bodies import Bodies
from .dataset import Dataset
from .split import NAMES

STREAM = 10  # of random numbers


@dataclass(frozen=True)
class Samples:
    """One part's phantoms on the device: `truth` (P, 2, G, G, G) fp16, mm^-1, and what is seen of them.

    `lifts` (P, R, C, 16, 16, 16) fp16, or tokens (P, R, C, M, 1, 1) fp32, are stored draws, `fraction` (P, 1, G, G, G)
    the tissue's volume fractions; both None where the network sees the volumes themselves. `bodies`: the ellipsoids,
    where volumes are deformed.
    """

    config: Config
    truth: Tensor
    lifts: Tensor | None = None
    fraction: Tensor | None = None
    bodies: Bodies | None = None

    def __len__(self) -> int:
        return len(self.truth)

    def frozen(self, chosen: Tensor | slice = slice(None)) -> Tensor:
        """What is seen of some phantoms when nothing is drawn: volumes, or their draw 0."""
        return self.truth[chosen] if self.lifts is None else joined(self.lifts[chosen][:, 0], self.fraction[chosen])

    def drawn(self, chosen: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What is seen of some phantoms in a training step, and the truth; random numbers are those of (seed, step)."""
        truth, c = self.truth[chosen], self.config
        if self.lifts is None:
            if c.augment is None:
                return truth, truth
            deformation = augment.sample(c.augment, len(truth), (c.seed, step))
            return augment.apply(deformation, truth.float(), self.bodies and self.bodies[chosen])
        rng = np.random.default_rng([STREAM, c.seed, step])
        draws, motions = rng.integers(self.lifts.shape[1], size=len(truth)), rng.integers(8, size=len(truth))
        seen, fraction = self.lifts[chosen, torch.from_numpy(draws).to(chosen)], self.fraction[chosen]
        if c.augment and c.augment.symmetry:
            seen, fraction, truth = (
                torch.stack([moved(one, int(m)) for one, m in zip(x, motions, strict=True)])
                for x in (seen, fraction, truth)
            )
        return joined(seen, fraction), truth


def joined(lifted: Tensor, fraction: Tensor) -> Tensor:
    """(B, C + r^3, 16, 16, 16): a lift's channels, then the fractions of the r^3 finer voxels in each of its own.

    Tokens (B, C, M, 1, 1), which have no voxels, stay alone.
    """
    if lifted.shape[-1] == 1:
        return lifted
    b, grid, r = len(lifted), lifted.shape[-1], fraction.shape[-1] // lifted.shape[-1]
    blocks = fraction.reshape(b, grid, r, grid, r, grid, r).permute(0, 2, 4, 6, 1, 3, 5)
    return torch.cat([lifted, blocks.reshape(b, r**3, grid, grid, grid)], 1)


def moved(volume: Tensor, motion: int) -> Tensor:
    """A volume (..., x, y, z) turned about z by `motion` quarter turns, and for 4 and more mirrored in x before."""
    return torch.rot90(volume.flip(-3) if motion >= 4 else volume, motion % 4, (-3, -2))


def prepare(configs: Iterable[Config]) -> None:
    """See to it that the files which runs need exist: readings where they have any, and lifts."""
    for data, lift, part in {
        (data, c.lift, part) for c in configs for data, part in ((c.data, None), (c.test, "test")) if data
    }:
        dataset.prepare(data)
        if lift:
            from . import lifts

            lifts.prepare(data, lifts.stored_as(lift), part=part)


def of(config: Config, data: Dataset, part: str, device: str = "cpu") -> Samples:
    """The samples of one part of a dataset, which is that of `config.data` or of `config.test`."""
    truth = data.volumes(part, device, torch.float16)
    if config.task == "autoencode":
        return Samples(config, truth, bodies=data.bodies(part, device) if config.augment else None)
    lifted = _stored(config, data, part, config.lift.column)
    draws, taken = lifted.shape[1] if part == "train" else 1, fractions(data, part, config.lift.surface)
    return Samples(config, truth, torch.from_numpy(lifted[:, :draws]).to(device), taken.to(device))


def standard(train: Samples) -> tuple[Tensor, Tensor] | None:
    """Mean and sd (C,) of what is seen, over the whole cube and every draw; None where it is the volumes."""
    if train.lifts is None:
        return None
    sums = torch.zeros(2, train.frozen(slice(1)).shape[1], dtype=torch.float64, device=train.truth.device)
    for start in range(0, len(train), 64):
        part = slice(start, start + 64)
        for draw in train.lifts[part].unbind(1):
            x = joined(draw, train.fraction[part]).double()
            sums += torch.stack([x.mean((2, 3, 4)).sum(0), x.square().mean((2, 3, 4)).sum(0)])
    mean, square = sums / (len(train) * train.lifts.shape[1])
    return mean.float(), (square - mean**2).clamp_min(0).sqrt().clamp_min(1e-3).float()


def covered(config: Config, data: Dataset) -> Tensor:
    """What the probes of the test phantoms see (P, G, G, G) bool, whatever the run makes of it."""
    return finer(torch.from_numpy(_stored(config, data, "test", "covered")), data.grid)


def finer(mask: Tensor, grid: int) -> Tensor:
    """A lift's masks (P, 16, 16, 16) on `grid`^3 voxels."""
    for axis in (1, 2, 3):
        mask = mask.repeat_interleave(grid // LIFTED, axis)
    return mask


def fractions(data: Dataset, part: str, surface: str = "known") -> Tensor:
    """Volume fractions of the tissue (P, 1, G, G, G) fp16, or of the sphere that it is taken for."""
    tables = phantoms.without_inclusions(data.part(part))
    if surface == "sphere":
        optodes = np.concatenate(list(data.measurements(part, "sources", "detectors").values()), 1)
        tables[:, 0] = [placement.inside(points) for points in optodes]
    tables[:, 0, [phantoms.MUA, phantoms.MUSP]] = 1
    return phantoms.rasterise(tables, data.grid, dtype=torch.float16)[:, :1].contiguous()


def _stored(config: Config, data: Dataset, part: str, column: str) -> np.ndarray:
    from . import lifts  # with the solver: what sees volumes does without it

    of, only = (config.test, part) if config.test and part == "test" else (config.data, None)
    path = lifts.prepare(of, lifts.stored_as(config.lift), data.path.parent, only)[column == "covered"]
    found = lifts.column(path, column, data.labels == NAMES.index(part))
    if config.lift.kind == "none" and column == "lift":
        found[:, :, : lifts.OF_READINGS] = 0
    return found
