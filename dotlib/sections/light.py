"""The forward model under test on phantoms with tumours: its error against finer grids, beside noise and signal.

Errors are those of ln A and, in degrees, of the phase; a table of errors has one row a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ..config import Measurements
from ..data import phantoms, probe
from ..data.recording import medium
from ..physics import diffusion
from ..workers import cpu_cores

STREAM = 41  # of random numbers
SEPARATION = probe.STANDARD.separation  # mm
# eight detectors: their fields are solved together, whatever the number of sources
FEW = probe.Patch(sources=50, detectors=8, pairs=200, per_source=4)


@dataclass(frozen=True)
class Light:
    """Sizes of the studies of the forward model."""

    spheres: int
    sphere_grids: tuple[int, ...]
    phantoms: int
    grids: tuple[int, ...]  # compared with the finest one
    finest: int
    map_grid: int  # of the sensitivity maps
    draws: int  # of the noise


SIZES = {
    "smoke": Light(3, (16, 32), 4, (16, 32), 48, 32, 200),
    "quick": Light(6, (16, 32, 64), 6, (16, 32, 48, 64), 96, 64, 1000),
    "full": Light(12, (16, 32, 48, 64, 96), 24, (16, 32, 48, 64, 96), 128, 64, 1000),
}


def difference(phi: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    """What readings differ by: ln A, and the phase in degrees."""
    ratio = phi / reference
    return {"log_amplitude": np.log(np.abs(ratio)), "phase": -np.degrees(np.angle(ratio))}


def spread(errors: pd.DataFrame, column: str) -> tuple[float, float]:
    """Median and 95 % quantile of absolute values."""
    return tuple(errors[column].abs().quantile((0.5, 0.95)))


def showcase(rows: np.ndarray) -> np.ndarray:
    """A point (3,), mm, at the centre of a phantom's largest tumour, or of the cube where it has none."""
    size = rows[1:, phantoms.AXES].prod(-1)
    return rows[1 + np.nanargmax(size), phantoms.CENTRE] if np.isfinite(size).any() else np.zeros(3)


def drawn(count: int, seed: int = 0) -> list[tuple[np.ndarray, probe.Probe]]:
    """Phantoms of the default family in the frames of their probes, with few detectors each."""
    return [probe.draw(rows, seed, i, FEW) for i, rows in enumerate(phantoms.sample("default", count, seed))]


def read(rows: np.ndarray, optodes: probe.Probe, grid: int, m: Measurements, precise: bool = False) -> np.ndarray:
    """Readings (M,) of one phantom."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = (v[None] for v in (optodes.sources, optodes.detectors, optodes.pairs))
    return diffusion.readings([medium(rows, grid, device)], *where, m.frequency, m.n, precise, device)[0]


def convergence(objects: Sequence, grids: Iterable[int], finest: int, m: Measurements) -> pd.DataFrame:
    """Differences of each grid's readings from the finest grid's: grid, phantom, separation, log_amplitude, phase."""

    def one(i: int) -> pd.DataFrame:
        rows, optodes = objects[i]
        reference = read(rows, optodes, finest, m)
        where = {"phantom": i, "separation": probe.separations(optodes.sources, optodes.detectors, optodes.pairs)}
        return pd.concat(
            pd.DataFrame({"grid": grid} | where | difference(read(rows, optodes, grid, m), reference)) for grid in grids
        )

    return pd.concat(each(one, len(objects)), ignore_index=True)


def signal(objects: Sequence, grid: int, m: Measurements) -> pd.DataFrame:
    """What the tumours change in the readings: phantom, log_amplitude, phase."""

    def one(i: int) -> pd.DataFrame:
        rows, optodes = objects[i]
        twin = phantoms.without_inclusions(rows[None])[0]
        return pd.DataFrame({"phantom": i} | difference(read(rows, optodes, grid, m), read(twin, optodes, grid, m)))

    return pd.concat(each(one, len(objects)), ignore_index=True)


def each(function: Callable[[int], pd.DataFrame], count: int) -> list[pd.DataFrame]:
    """One phantom a core: the solver's sweeps leave Python alone."""
    with ThreadPoolExecutor(1 if torch.cuda.is_available() else cpu_cores()) as pool:
        return list(pool.map(function, range(count)))


def order(errors: pd.DataFrame, column: str) -> float:
    """Slope of log median absolute error over log voxel width."""
    medians = errors[column].abs().groupby(errors["grid"]).median()
    return float(-np.polyfit(np.log(medians.index), np.log(medians), 1)[0])


def levels(sigma: np.ndarray, amplitude: np.ndarray) -> pd.DataFrame:
    """Standard deviations of a dataset's readings by name: those of the brightest 1 % of each phantom's pairs, and all.

    `sigma` (P, M, 2), rad, and `amplitude` (P, M); columns name, log_amplitude, phase (deg).
    """
    every = pd.DataFrame({"log_amplitude": sigma[..., 0].ravel(), "phase": np.degrees(sigma[..., 1]).ravel()})
    bright = (amplitude >= np.quantile(amplitude, 0.99, axis=1, keepdims=True)).ravel()
    return pd.concat([every[bright].assign(name="brightest 1 %"), every.assign(name="all pairs")])


def beside_noise(errors: pd.DataFrame, finest: int, noise: pd.DataFrame, tumours: pd.DataFrame) -> pd.DataFrame:
    """Discretisation error, detector noise and signal in one table: ln A in per cent, phase in degrees.

    The finest grid errs as well: the last column multiplies the differences from it by what a scheme of second order
    then lacks, 1 / (1 - (h_finest / h)^2).
    """
    parts = {}
    for grid, part in errors.groupby("grid"):
        parts[f"grid {grid}^3, {phantoms.CUBE / grid:.3g} mm"] = part, 1 / (1 - (grid / finest) ** 2)
    parts |= {f"noise, {name}": (part, np.nan) for name, part in noise.groupby("name", sort=False)}
    parts |= {"signal of tumours": (tumours, np.nan)}
    rows = []
    for name, (part, factor) in parts.items():
        (ln_median, ln_high), (phase_median, phase_high) = (spread(part, c) for c in ("log_amplitude", "phase"))
        row = {"source": name, "ln A, %": 100 * ln_median, "p95, %": 100 * ln_high}
        row |= {"phase, deg": phase_median, "p95, deg": phase_high}
        rows.append(row | {"extr., %": 100 * factor * ln_median, "pairs": len(part)})
    return pd.DataFrame(rows)


def answer(errors: pd.DataFrame, grid: int, finest: int, noise: pd.DataFrame, tumours: pd.DataFrame) -> str:
    """How a grid's own error compares with noise and signal, in words."""
    part = errors[errors["grid"] == grid]
    median, high = spread(part, "log_amplitude")
    bright, every = (v["log_amplitude"].median() for _, v in noise.groupby("name", sort=False))
    share = median / tumours["log_amplitude"].abs().median()
    return (
        f"On {grid}^3, this profile's grid, ln A differs from {finest}^3 by {100 * median:.2g} % in the median pair "
        f"(95 % of the pairs: below {100 * high:.2g} %). That is {median / bright:.2g} times the detector noise of the "
        f"brightest pairs and {median / every:.2g} times that of the median pair, and {100 * share:.1f} % of what the "
        f"tumours change. The phase differs by {spread(part, 'phase')[0]:.2g} deg. Between the grids the median "
        f"difference falls with the power {order(errors, 'log_amplitude'):.1f} of the voxel for ln A, "
        f"{order(errors, 'phase'):.1f} for the phase (against a finest grid that errs itself)."
    )


def reciprocity(objects: Sequence, grid: int, m: Measurements) -> pd.DataFrame:
    """Largest relative change of a reading when source and detector swap roles, per phantom, in fp64 and fp32.

    Roles: the same two rows of weights, one as source and the other as detector, then the other way round.
    """
    rows = []
    for i, (table, optodes) in enumerate(objects):
        system = diffusion.assemble(medium(table, grid), m.frequency, m.n)
        s = system.optodes(torch.from_numpy(optodes.sources).double(), True)
        d = system.optodes(torch.from_numpy(optodes.detectors).double(), False)
        for name, precise in (("fp64", True), ("fp32", False)):
            n = len(system.cells)
            from_sources, from_detectors = (diffusion.solve([system], [o.columns(n)], precise)[0] for o in (s, d))
            forth, back = d.read(from_sources).T, s.read(from_detectors)
            rows.append({"phantom": i, "precision": name, "change": ((forth - back).abs() / back.abs()).max().item()})
    return pd.DataFrame(rows).pivot(index="phantom", columns="precision", values="change").reset_index()
