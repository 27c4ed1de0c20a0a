"""What a network reconstructs from: draws of each phantom's readings, lifted to volumes and stored beside them.

A draw is a subset of the pairs, a noise and a coupling. Draw 0 has the recorded noise and judges; the others, of
training phantoms alone, have noise of their own. All are linearised about the medium that fits draw 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import CHANNELS, LIFTED, TOKEN, Data, Lift, Noise
from ..physics import closed_form, diffusion, gauss_newton, homogeneous, jacobian, lift, rytov
from ..physics.homogeneous import Fit, Scene
from ..physics.lift import Linear
from ..physics.rytov import Readings
from . import dataset, noise, phantoms, placement, sampling, simulate, store
from .recording import SimulationError
from .split import NAMES
from .surface import Surface

STREAM = 9  # of random numbers
VERSION = 1  # raised by hand whenever the same configuration would give other lifts
PRIOR = lift.Prior()
# mm^-1, where coverage is taken: mean fitted mua and musp of 384 phantoms of the default family, (0.00599, 1.015) with
# standard errors of (0.00008, 0.007), rounded. Fixed, so that no fit moves a mask.
POPULATION = (0.0060, 1.02)
COVERED, SEEN_FROM = 0.4, 256  # whitened sensitivity to ln mua from which a voxel is covered, and the pairs that see it
OF_READINGS = CHANNELS.index("tissue")  # so many channels are; a control is left tissue, mua0 and musp0
READ = ("ellipsoids", *store.MEASURED, "phi_clean")


@dataclass(frozen=True)
class Lifts:
    """The lifts of a configuration's phantoms, from its file of readings at `path`; `labels` (P,) is their split."""

    data: Data
    lift: Lift
    path: Path
    labels: np.ndarray
    verb: str = "lift"

    def __len__(self) -> int:
        return len(self.labels)

    def identity(self, every: bool = False) -> str:
        held = _of(self.data, every) | {"prior": str(PRIOR)}
        held |= {"split": hashlib.sha256(self.labels.tobytes()).hexdigest()[:12]}
        return json.dumps(
            held | {"lift": self.lift.model_dump(mode="json", exclude_defaults=not every)}, sort_keys=True
        )

    def make(self, first: int, count: int, device: str) -> dict[str, np.ndarray]:
        """Lifts (count, draws, 8, 16, 16, 16) or tokens (count, draws, 13, pairs, 1, 1).

        Zeros where a phantom is excluded, or has fewer draws or pairs.
        """
        columns, column = self._columns(first, count), self.lift.column
        shape = (len(TOKEN), self.lift.count, 1, 1) if column == "tokens" else (len(CHANNELS), *[LIFTED] * 3)
        out = np.zeros((count, self.lift.draws, *shape), store.COLUMNS[column].dtype)
        used = np.flatnonzero(self.labels[first : first + count] >= 0)
        drawn = {i: [self._draw(columns, i, first + i, draw, device) for draw in self._draws(first + i)] for i in used}
        if self.lift.kind == "closed-form":
            for i, draws in drawn.items():
                try:
                    for draw, one in enumerate(draws):
                        out[i, draw] = closed(Surface(columns["ellipsoids"][i, 0]), one).cpu().numpy()
                except homogeneous.FitError as error:
                    raise SimulationError(f"lift: {str(error).replace('object 0', f'phantom {first + i}')}") from None
            return {"lift": out, "checks": np.zeros(count, "i4")}
        scenes = {i: self._scene(columns, i, draws[0], device) for i, draws in drawn.items()}
        for (i, place), fit in zip(scenes.items(), fitted(scenes, first), strict=True):
            for draw, lifted in enumerate(self._lifted(place, fit, drawn[i])):
                out[i, draw, :, : lifted.shape[1]] = lifted.cpu().numpy()
        return {column: out, "checks": np.zeros(count, "i4")}

    def scenes(self, first: int, count: int, used: Sequence[int], device: str) -> list[Scene]:
        """Draw 0 of some of the phantoms `first` ... `first + count - 1`."""
        columns = self._columns(first, count)
        return [self._scene(columns, i, self._draw(columns, i, first + i, 0, device), device) for i in used]

    def _columns(self, first: int, count: int) -> dict[str, np.ndarray]:
        """Of some phantoms, as they are taken to be."""
        columns = _read(self.path, first, count)
        if self.lift.surface == "sphere":
            for i in np.flatnonzero(self.labels[first : first + count] >= 0):
                row = placement.inside(np.concatenate([columns["sources"][i], columns["detectors"][i]]))
                columns["ellipsoids"][i, 0] = row
                for name in ("sources", "detectors"):
                    columns[name][i] = placement.onto(row, columns[name][i])
        return columns

    def _scene(self, columns: dict[str, np.ndarray], i: int, one: Readings, device: str) -> Scene:
        return scene(columns["ellipsoids"][i, 0], one, self.data.model_grid, device)

    def _draws(self, index: int) -> range:
        return range(self.lift.draws if self.labels[index] == NAMES.index("train") else 1)

    def _draw(self, columns: dict[str, np.ndarray], i: int, index: int, draw: int, device: str) -> Readings:
        """One draw of phantom `index`, row `i` of the columns."""
        row = {name: values[i] for name, values in columns.items()}
        if draw:
            rng = np.random.default_rng([STREAM, self.lift.seed, index, draw])
            clean = row["phi_clean"].astype(np.complex128)
            model = self.lift.noise or self.data.measurements.noise
            values = noise.measure(clean, -np.angle(clean), row["pairs"], model, rng)
            row |= dict(zip(("log_amplitude", "phase", "sigma"), values, strict=True))
        probe = [row[name][None] for name in ("sources", "detectors", "pairs", "sigma")]
        lost, where = np.isnan(row["phase"])[None], np.array([index])
        seed = (self.lift.seed, draw)
        chosen = sampling.subsets(self.lift.pattern, *probe, lost, self.lift.count, seed, where)[0]
        return readings(row, chosen[chosen >= 0], self.data, self.lift.gain, device)

    def _lifted(self, place: Scene, fit: Fit, draws: list[Readings]) -> list[Tensor]:
        """The channels of each draw, linearised about one medium."""
        if self.lift.kind in ("gauss-newton", "tokens"):
            return [channels(self.lift, replace(place, readings=one), fit) for one in draws]
        pairs, which = torch.cat([one.pairs for one in draws]).unique(dim=0, return_inverse=True)
        phi, J = jacobian.jacobian(fit.system, fit.light, pairs, LIFTED, dtype=torch.complex64)
        tissue, out = lift.occupied(place.cells, LIFTED), []
        J = J[:, :, tissue]
        for one, rows in zip(draws, which.split([len(one.pairs) for one in draws]), strict=True):
            by_log = rytov.rows(J[rows], phi[rows]) * fit.at.float()[:, None]
            own = homogeneous.refit(one, fit, phi[rows], by_log.sum(2).double())
            left = one.difference(own.phi) - own.slopes @ own.step
            out.append(_linear(self.lift.kind, lift.linear(one, by_log, left, own.values, tissue, place.cube / LIFTED)))
        return out


def channels(chosen: Lift, place: Scene, fit: Fit) -> Tensor:
    """What a network takes of one recording, (8, 16, 16, 16) or (13, M, 1, 1) of tokens, by the kind of lift.

    `fit` may be that of another draw.
    """
    phi, slopes = jacobian.uniform(fit.system, fit.light, place.readings.pairs)
    own = homogeneous.refit(place.readings, fit, phi, rytov.rows(slopes, phi) * fit.at)
    if chosen.kind == "tokens":
        return lift.tokens(place.readings, own)
    problem = lift.linearise(place, own, LIFTED)
    if chosen.kind != "gauss-newton":
        return _linear(chosen.kind, problem)
    x = lift.solve(problem, PRIOR)  # the stronger regularisation stays linear
    x[0] = gauss_newton.reconstruct(place, own, prior=PRIOR, grid=LIFTED, most=chosen.steps).x
    return lift.channels(problem, x)


def closed(surface: Surface, one: Readings) -> Tensor:
    """The same without a solver."""
    problem = closed_form.linearise(surface, one, phantoms.CUBE, LIFTED)
    return lift.channels(problem, lift.solve(problem, PRIOR))


def _linear(kind: str, problem: Linear) -> Tensor:
    if kind == "back-projection":
        plain = lift.back_projection(problem)
        return lift.channels(problem, torch.stack([plain, torch.zeros_like(plain)]))
    found = lift.channels(problem, lift.solve(problem, PRIOR))
    if kind == "none":
        found[:OF_READINGS] = 0
    return found


def _of(data: Data, every: bool) -> dict[str, str | int]:
    """What lifts and coverage rest on; the model's grid where it is not that of the readings."""
    held = {"readings": store.identity(data, every), "version": VERSION}
    return held if data.model_grid == data.light_grid else held | {"model": data.model_grid}


@dataclass(frozen=True)
class Coverage:
    """What each test phantom's probe sees, whatever an arm does with it: masks on 16^3 voxels.

    A voxel is covered where the whitened sensitivity of ln A and phase to ln mua exceeds 0.4, at the population's mean
    values, of one random subset of 256 pairs with the noise of `config.Noise` as it stands by default.
    """

    data: Data
    path: Path
    labels: np.ndarray
    verb: str = "find the coverage of"

    def __len__(self) -> int:
        return len(self.labels)

    def identity(self, every: bool = False) -> str:
        held = _of(self.data, every) | {"covered": [COVERED, *POPULATION]}
        return json.dumps(held | {"split": hashlib.sha256(self.labels.tobytes()).hexdigest()[:12]}, sort_keys=True)

    def make(self, first: int, count: int, device: str) -> dict[str, np.ndarray]:
        """Masks (count, 16, 16, 16), empty but for test phantoms."""
        columns = _read(self.path, first, count)
        out = np.zeros((count, LIFTED, LIFTED, LIFTED), bool)
        for i in np.flatnonzero(self.labels[first : first + count] == NAMES.index("test")):
            row = {name: values[i] for name, values in columns.items()}
            out[i] = covered(row, self.data, first + i, device)
        return {"covered": out, "checks": np.zeros(count, "i4")}


def covered(row: dict[str, np.ndarray], data: Data, index: int, device: str = "cpu") -> np.ndarray:
    """The mask of one phantom, by the columns of its probe."""
    none = np.zeros(len(row["pairs"]), bool)
    probe = [row[name][None] for name in ("sources", "detectors", "pairs", "sigma")]
    chosen = sampling.subsets("random", *probe, none[None], SEEN_FROM, (0,), np.array([index]))[0]
    flat = dict.fromkeys(("log_amplitude", "phase"), np.zeros(len(none))) | {"sigma": np.zeros((len(none), 2))}
    place = scene(
        row["ellipsoids"][0], readings(row | flat, slice(None), data, "known", device), data.model_grid, device
    )
    system = place.system(torch.tensor(POPULATION, dtype=torch.float64, device=device))
    light = jacobian.fields_of([system], [place.readings.sources], [place.readings.detectors])[0]
    s, d = place.readings.pairs.T
    amplitude = light.detectors.read(light.phi)[d, s].abs().cpu().numpy()
    nominal = readings(row | flat | {"sigma": noise.sd(amplitude, Noise())}, chosen[chosen >= 0], data, "known", device)
    phi, J = jacobian.jacobian(system, light, nominal.pairs, LIFTED, dtype=torch.complex64)
    by_log = rytov.rows(J[:, :1], phi)[:, 0] * POPULATION[0] * nominal.weight.float().view(-1, 1, 1, 1)
    return (by_log.square().sum(0).sqrt() > COVERED).cpu().numpy()


def readings(row: dict[str, np.ndarray], chosen, data: Data, gain: str, device: str) -> Readings:
    """The chosen pairs of one phantom's columns as the physics takes them."""
    m = data.measurements

    def placed(name: str, part=slice(None)) -> Tensor:
        return torch.as_tensor(row[name][part].astype(np.float64), device=device)

    pairs = torch.as_tensor(row["pairs"][chosen].astype(np.int64), device=device)
    values = [placed(name, chosen) for name in ("log_amplitude", "phase", "sigma")]
    return Readings(placed("sources"), placed("detectors"), pairs, *values, m.frequency, m.n, gain)


def scene(tissue: np.ndarray, one: Readings, grid: int, device: str) -> Scene:
    """One phantom's tissue row (13,) and a draw of its readings."""
    return Scene.of(Surface(tissue), one, grid, phantoms.CUBE, device)


def _read(path: Path, first: int, count: int) -> dict[str, np.ndarray]:
    with store.File(path) as file:
        return {name: file.raw(name, first, first + count) for name in READ}


def fitted(scenes: dict[int, Scene], first: int) -> list[Fit]:
    """Homogeneous fits: on a CPU one after another, which bounds the memory, elsewhere together."""
    index, places = list(scenes), list(scenes.values())
    together = 1 if not places or places[0].cells.index.device.type == "cpu" else len(places)
    out = []
    for start in range(0, len(places), together):
        try:
            out += homogeneous.fit(places[start : start + together])
        except (homogeneous.FitError, diffusion.ConvergenceError) as error:
            line = str(error).replace(f"object {error.index}", f"phantom {first + index[start + error.index]}")
            raise SimulationError(f"lift: {line}") from None
    return out


def stored_as(chosen: Lift) -> Lift:
    """The lift whose file holds one: a control's are linear ones, of which it is shown less."""
    return chosen.model_copy(update={"kind": "linear"}) if chosen.kind == "none" else chosen


def column(path: Path, name: str, chosen: np.ndarray) -> np.ndarray:
    """One column of a file, of the phantoms that `chosen` (P,) marks."""
    with store.File(path) as file:
        blocks = range(0, len(file), store.BLOCK)
        return np.concatenate([file.raw(name, i, i + store.BLOCK)[chosen[i : i + store.BLOCK]] for i in blocks])


def key() -> str:
    """What tells lifts of one configuration apart that other code has made."""
    return hashlib.sha256(f"{VERSION} {PRIOR}".encode()).hexdigest()[:8]


def prepare(data: Data, chosen: Lift, folder: Path | None = None, part: str | None = None) -> tuple[Path, Path]:
    """The files of a configuration's lifts and coverage, made where they are missing, from that of its readings.

    With `part` the lifts of its phantoms alone.
    """
    held = data.model_copy(update={"train": None})
    found, paths = dataset.load(held, folder), []
    lifted = np.where(found.labels == NAMES.index(part), found.labels, -1) if part else found.labels
    for kind, work in (
        ("lift", Lifts(held, chosen, found.path, lifted)),
        ("covered", Coverage(held, found.path, found.labels)),
    ):
        name = hashlib.sha256(work.identity().encode()).hexdigest()[:12]
        paths.append(found.path.with_name(f"{found.path.stem}.{kind}-{name}.h5"))
        simulate.fill(work, paths[-1])
    return tuple(paths)
