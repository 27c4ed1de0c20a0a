"""The dataset of a configuration: phantoms, readings, their split, and volumes on the device that needs them."""

from __future__ import annotations

import functools
import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..config import Config, ConfigError, Data, root
from . import checks, phantoms, store
from .bodies import Bodies
from .split import NAMES, QUALITY_EDGE, digest, quality, split, strata


@dataclass(frozen=True)
class Dataset:
    """Phantoms and their split: 0, 1, 2 as in NAMES, -1 for a phantom that failed its checks.

    `ellipsoids` `(P, 6, 13)` is None where a user's file has no such tables, `grid` where it has no volumes and nobody
    named one; `path` is the file of the readings, None where there are none.
    """

    ellipsoids: np.ndarray | None
    labels: np.ndarray
    grid: int | None
    path: Path | None = None
    content: str = ""  # hash of the file's arrays

    @property
    def digest(self) -> str:
        """Hash that freezes phantoms, readings and split."""
        tables = np.empty(0, "f4") if self.ellipsoids is None else self.ellipsoids
        plain = digest(tables, self.labels)
        return hashlib.sha256((plain + self.content).encode()).hexdigest()[:16] if self.content else plain

    @property
    def voxel(self) -> float:
        """Width of a voxel, mm."""
        return phantoms.CUBE / self._named_grid()

    def _named_grid(self) -> int:
        if self.grid is None:
            raise store.StoreError(f"{self.path}: no grid was named; accepted: {', '.join(map(str, store.GRIDS))}")
        return self.grid

    def part(self, name: str) -> np.ndarray:
        """The tables of `train`, `validation` or `test`."""
        if self.ellipsoids is None:
            raise store.StoreError(f"{self.path}: dataset 'ellipsoids' is missing")
        return self.ellipsoids[self.labels == NAMES.index(name)]

    def part_digest(self, name: str) -> str:
        """Hash of the phantoms of one part: what a judgement on it rests on."""
        volumes = self.volumes(name).numpy() if self.ellipsoids is None else self.part(name)
        return digest(volumes, np.full(len(volumes), NAMES.index(name), np.int8))

    def measurements(self, name: str, *columns: str) -> dict[str, np.ndarray]:
        """Readings of one part, read from the file: columns of `store` by name; without a choice `store.MEASURED`."""
        if self.path is None:
            raise ValueError("dataset: data.measurements is None: these phantoms have no readings")
        chosen = self.labels == NAMES.index(name)
        with store.File(self.path) as file:
            file.excluded |= self.labels < 0
            return {column: _chosen(file, column, chosen) for column in columns or store.MEASURED}

    def volumes(self, name: str, device="cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Anti-aliased volumes of one part, (P, 2, D, H, W), mm^-1; 5,000 of 64^3 in float16 take 5.2 GB."""
        if self.ellipsoids is None:
            return torch.from_numpy(self.measurements(name, "volumes")["volumes"]).to(device, dtype)
        return phantoms.rasterise(self.part(name), self._named_grid(), device, dtype)

    def bodies(self, name: str, device="cpu") -> Bodies | None:
        """The ellipsoids of one part on a device; None where a file has volumes alone."""
        return None if self.ellipsoids is None else Bodies.of(self.part(name), device)

    def mean(self, name: str) -> torch.Tensor:
        """Mean volume of one part, (2, D, H, W), mm^-1."""
        if self.ellipsoids is None:
            return self.volumes(name).mean(0)
        tables = self.part(name)
        chunks = (phantoms.rasterise(tables[i : i + 64], self._named_grid()).sum(0) for i in range(0, len(tables), 64))
        return sum(chunks) / len(tables)

    def tissue(self, name: str, device="cpu") -> torch.Tensor:
        """Tissue masks of one part, (P, D, H, W) bool."""
        if self.ellipsoids is None:
            return torch.from_numpy(self.measurements(name, "mask")["mask"]).to(device)
        return phantoms.labels(self.part(name), self._named_grid(), device) > 0


def _chosen(file: store.File, column: str, chosen: np.ndarray) -> np.ndarray:
    """The chosen phantoms of one column, without the others in memory beside them."""
    blocks = range(0, len(file), 16 * store.BLOCK)
    return np.concatenate([file.read(column, i, i + blocks.step)[chosen[i : i + blocks.step]] for i in blocks])


def load(config: Data, folder: Path | None = None) -> Dataset:
    """The phantoms of a configuration and their split; with measurements from its file, simulated where it is missing.

    The files lie in `folder`, the project's data/ by default. Phantom i of every family rests on the same random
    numbers, and is in the same part: that which it has in the default family.
    """
    if config.measurements is None:
        tables = _tables(config.family, config.phantoms, config.seed)
        found = Dataset(tables, split(strata(tables), config.fractions, config.seed), config.grid)
    else:
        prepare(config, folder)
        found = read(location(config, folder), config.grid, config.fractions, config.seed, store.identity(config))
    if (common := _default(config)) != config:
        labels = np.where(found.labels < 0, np.int8(-1), load(common, folder).labels)
        found = replace(found, labels=labels)
    return found if config.train is None else fewer(found, config.train)


def _default(config: Data) -> Data:
    """The same phantoms of the default family, whose split is that of all families."""
    return config.model_copy(update={"family": "default", "train": None} if config.family != "default" else {})


def judging(config: Config, data: Dataset) -> Dataset:
    """The dataset whose test part judges what is trained with `data`, the phantoms of `config.data`.

    Raises ConfigError where one of its phantoms has the random numbers, so nearly the shape, of one that is in use.
    """
    if config.test is None:
        return data
    test = load(config.test)
    if config.test.seed == config.data.seed:
        n = min(len(data.labels), len(test.labels))
        twins = (test.labels[:n] == NAMES.index("test")) & np.isin(data.labels[:n], (0, 1))
        if twins.any():
            raise ConfigError(
                f"test: {twins.sum()} of its phantoms are of the same draw as ones that are trained with; "
                "another data.seed is accepted"
            )
    return test


def fewer(data: Dataset, train: int) -> Dataset:
    """The same with the first `train` phantoms of its training part; the others are in no part."""
    chosen = np.flatnonzero(data.labels == NAMES.index("train"))
    if train > len(chosen):
        raise store.StoreError(f"data.train {train}: at most the {len(chosen)} of the training part are accepted")
    labels = data.labels.copy()
    labels[chosen[train:]] = -1
    return replace(data, labels=labels)


def read(
    path: Path,
    grid: int | None = None,
    fractions: tuple[int, int, int] | None = None,
    seed: int = 0,
    identity: str | None = None,
) -> Dataset:
    """The dataset of any file of the schema, a user's own too; volumes of ellipsoids are rasterised at `grid`.

    With `fractions` the phantoms are split anew, else as the file says, or 70 / 15 / 15 %. Phantoms that failed their
    checks (examined here where the file does not say) are in no part, and a line on standard error counts them. Raises
    StoreError for a file that cannot be used, that has no usable phantom, or another configuration than `identity`.
    """
    with store.File(path) as file:
        if identity is not None:
            file.require(identity)
        if (faults := checks.faults(file)).all():
            raise store.StoreError(f"{path}: {checks.none_usable(faults)}")
        tables = file.read("ellipsoids") if "ellipsoids" in file else None
        if fractions is None and "split" in file:
            labels = np.where(file.excluded, np.int8(-1), file.read("split"))
            if not np.isin(labels, (-1, 0, 1, 2)).all():
                raise store.StoreError(f"{path}: split holds {np.unique(labels).tolist()}; accepted: -1, 0, 1, 2")
        else:
            measured = _quality(file)
            stratum = np.zeros(len(file), np.int8) if tables is None and measured is None else strata(tables, measured)
            labels = split(stratum, fractions or Data.model_fields["fractions"].default, seed, file.excluded)
        if file.excluded.any():
            print(
                f"{path}: {file.excluded.sum()} of {len(file)} phantoms are excluded; `dotlib check` lists them",
                file=sys.stderr,
            )
        own = file.sizes.get("D")
        if tables is None and own is not None and grid not in (None, own):
            raise store.StoreError(f"{path}: volumes of {own}^3, not {grid}^3")
        return Dataset(tables, labels, grid or own, Path(path), file.content())


def _quality(file: store.File) -> np.ndarray | None:
    """The quality of each phantom's measurements, as the file says or from its readings; None where it has none."""
    if "quality" in file or "sigma" not in file:
        return file.raw("quality") if "quality" in file else None
    step = 16 * store.BLOCK
    return np.concatenate([quality(file.raw("sigma", i, i + step)) for i in range(0, len(file), step)])


def prepare(config: Data, folder: Path | None = None) -> None:
    """See to it that the file of a configuration exists, if it needs one, and that of the split of all families."""
    for data in {config, _default(config)} if config.measurements else ():
        if not (file := location(data, folder)).exists():
            from . import simulate  # with the solver: what reads a file does without it

            simulate.simulate(data, file)


def location(config: Data, folder: Path | None = None) -> Path:
    """The file of a configuration: `<family>-<phantoms>-<grid>-<hash>.h5`; the hash knows the sampled tables too."""
    grid = config.light_grid
    held = store.identity(config).encode() + _tables(config.family, config.phantoms, config.seed).tobytes()
    name = f"{config.family}-{config.phantoms}-{grid}-{hashlib.sha256(held).hexdigest()[:12]}.h5"
    return (root() / "data" if folder is None else folder) / name


def key(config: Data) -> str:
    """What tells the data of two configurations apart, without simulating; without measurements their digest."""
    plain = load(config.model_copy(update={"measurements": None})).digest
    if config.measurements is None:
        return plain
    rules = f"{plain} {location(config, Path()).name} {QUALITY_EDGE} {checks.LEGEND}"  # of the split and who is in it
    rules += f" {location(common, Path()).name}" if (common := _default(config)) != config else ""
    return hashlib.sha256(rules.encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=4)
def _tables(family: str, n: int, seed: int) -> np.ndarray:
    tables = phantoms.sample(family, n, seed)
    tables.setflags(write=False)  # shared
    return tables


def standard(volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel, (2,) each, mm^-1, over the voxels that hold tissue."""
    sums = volumes.new_zeros(3, 2, dtype=torch.float64)
    for volume in volumes:
        values = volume[:, volume[1] > 0].double()
        sums += torch.stack([torch.full_like(values[:, 0], values.shape[1]), values.sum(1), values.square().sum(1)])
    mean, square = sums[1] / sums[0], sums[2] / sums[0]
    return mean.float(), (square - mean**2).sqrt().float()
