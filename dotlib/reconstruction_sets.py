"""What reconstructions are judged on: the test phantoms as runs see them, and fresh ones whose light is seen otherwise.

Phantom i of every fresh set rests on the same random numbers: sets that change the light alone hold the same phantoms,
and `TUMOUR_FREE` is that of `FRESH` without its tumours, under the same probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from . import metrics
from .config import Data, Lift, Noise
from .config_parts import PatternName
from .data import dataset, lifts, phantoms, samples
from .data.dataset import Dataset
from .data.split import NAMES

SEED = 4600  # of the fresh phantoms; no training phantom has it
COUNT = 64
EVERY = (1, 1, 10**6)  # fractions by which all phantoms are test phantoms
GOLD = {16: 32, 32: 48, 64: 96}  # voxels a side of the finest readings, by the grid of the volumes
HOME, FRESH, TUMOUR_FREE, THRESHOLDS = "home", "fresh phantoms", "none", "none, for thresholds"
FAMILIES = (TUMOUR_FREE, "superficial", "deep", "mua-only", "musp-only", "out-of-range", "superellipsoid")
PATTERNS = tuple(name for name in get_args(PatternName) if name != Lift().pattern)
COUNTS = (64, 128, 512, 1000)
NOISES: dict[str, dict[str, Any]] = {
    "half the noise": {"relative": 0.0025, "jitter": 0.205},
    "twice the noise": {"relative": 0.01, "jitter": 0.82},
    "four times the noise": {"relative": 0.02, "jitter": 1.64},
    "coupling of 5 %, 2 degrees": {"coupling": 0.05, "coupling_phase": 2.0},
    "a fifth of the pairs lost": {"dropout": 0.2},
}
FEW = {"pairs": 500}  # candidates, of which 256 are used: as many as two patches offer within 40 mm
PROBES: dict[str, dict[str, Any]] = {
    "patch of 20 mm": {"radius": 20.0, "pairs": 500},
    "25 sources, 20 detectors": {"sources": 25, "detectors": 20, "pairs": 275},
}
ONE = "one patch"
COVERAGES: dict[str, dict[str, Any]] = {
    ONE: FEW, "two patches": FEW | {"patches": 2}, "all around": FEW | {"radius": None},
}  # fmt: skip


@dataclass(frozen=True)
class View:
    """A set by name: whose phantoms, and what is used of their readings; `group` says what it changes."""

    name: str
    group: str
    data: Data
    lift: Lift

    @property
    def part(self) -> str | None:
        """The part that is lifted: all of it at home, where runs were trained."""
        return None if self.group == HOME else "test"


@dataclass(frozen=True)
class Seen:
    """A set as methods are given it: P test phantoms.

    Lifts (P, 8, 16, 16, 16) fp16, volume fractions of the tissue (P, 1, G, G, G), truth (P, 2, G, G, G) mm^-1, what the
    probe covers (P, G, G, G), regions, and of each inclusion (P, K) the distance of its centre from the nearest optode,
    mm, its equivalent radius, mm, and its covered share, NaN where there is none.
    """

    view: View
    data: Dataset
    lifted: Tensor
    fraction: Tensor
    truth: Tensor
    labels: Tensor
    covered: Tensor
    regions: metrics.Regions
    distance: Tensor
    radius: Tensor
    share: Tensor

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def fitted(self) -> Tensor:
        """The fitted homogeneous tissue as volumes."""
        return self.lifted[:, -2:].float().amax((2, 3, 4), keepdim=True) * self.fraction


def views(base: Data) -> dict[str, View]:
    """All sets by name; `base` is what runs are trained with."""
    gold, changes = GOLD[base.grid], {"phantoms": min(COUNT, base.phantoms), "fractions": EVERY, "seed": SEED}
    fresh = base.model_copy(update=changes)

    def lit(**changes: Any) -> Data:
        return fresh.model_copy(update={"measurements": base.measurements.model_copy(update=changes)})

    def view(name: str, group: str, data: Data = fresh, **changes: Any) -> View:
        return View(name, group, data, Lift(**changes))

    def family(name: str, seed: int = SEED) -> Data:
        return fresh.model_copy(update={"family": name, "seed": seed})

    found = [view(HOME, HOME, base), view(FRESH, FRESH)]
    found += [view(name, "family", family(name)) for name in FAMILIES]
    found += [view(name, "pattern", pattern=name) for name in PATTERNS]
    found += [view(f"{n} pairs", "pairs", count=n) for n in COUNTS]
    found += [view(name, "noise", lit(noise=Noise(**fields))) for name, fields in NOISES.items()]
    found += [view(name, "probe", lit(**fields)) for name, fields in PROBES.items()]
    found += [view(name, "coverage", lit(**fields)) for name, fields in COVERAGES.items()]
    found += [view(f"readings at {gold}^3", "readings", lit(grid=gold, precise=True))]
    found += [view(THRESHOLDS, "thresholds", family("none", SEED + 1))]
    return {one.name: one for one in found}


def load(view: View, folder: Path | None = None) -> Seen:
    """A set from its files, which are made where they are missing."""
    data = dataset.load(view.data, folder)
    chosen = data.labels == NAMES.index("test")
    paths = lifts.prepare(view.data, view.lift, folder, view.part)
    columns = zip(paths, ("lift", "covered"), strict=True)
    lifted, covered = (torch.from_numpy(lifts.column(path, name, chosen)) for path, name in columns)
    tables, labels = data.part("test"), phantoms.labels(data.part("test"), data.grid)
    regions = metrics.regions(labels, data.voxel, phantoms.ROWS - 1)
    seen = samples.finer(covered, data.grid)
    optodes = np.concatenate(list(data.measurements("test", "sources", "detectors").values()), 1)
    return Seen(
        view, data, lifted[:, 0], samples.fractions(data, "test"), data.volumes("test"), labels, seen, regions,
        distances(tables, optodes), radii(tables), shares(regions, seen),
    )  # fmt: skip


def distances(tables: np.ndarray, optodes: np.ndarray) -> Tensor:
    """From the centre of each inclusion to the nearest optode, (P, K), mm; tables (P, 6, 13), optodes (P, N, 3)."""
    centres = tables[:, 1:, phantoms.CENTRE].astype(np.float64)
    ways = np.linalg.norm(centres[:, :, None] - optodes[:, None].astype(np.float64), axis=-1)
    return torch.from_numpy(ways.min(-1))


def radii(tables: np.ndarray) -> Tensor:
    """Radius of the sphere of the same volume as each inclusion, (P, K), mm."""
    return torch.from_numpy(np.cbrt(tables[:, 1:, phantoms.AXES].astype(np.float64).prod(-1)))


def shares(regions: metrics.Regions, covered: Tensor) -> Tensor:
    """Share of each inclusion's voxels that is covered, (P, K)."""
    inside = regions.inclusions.flatten(2).sum(-1)
    return (regions.inclusions & covered[:, None]).flatten(2).sum(-1) / torch.where(inside > 0, inside, torch.nan)


def union(masks: Sequence[Tensor]) -> Tensor:
    """What any of some sets of the same phantoms covers, (P, G, G, G)."""
    return torch.stack(list(masks)).any(0)
