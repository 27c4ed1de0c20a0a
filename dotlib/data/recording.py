"""Phantoms with their probes and recordings: anatomy, light and noise meet here."""

from __future__ import annotations

import re

import numpy as np

from ..config import Data
from ..physics import diffusion, green
from . import checks, noise, phantoms, probe, store
from .surface import Surface


class SimulationError(RuntimeError):
    """A simulation that stopped, as one line."""


def simulate(config: Data, first: int, count: int, device: str = "cpu") -> dict[str, np.ndarray]:
    """The columns of phantoms `first` ... `first + count - 1`: tables, probes, readings, checks.

    On a CPU they are the same in any block. Raises SimulationError, naming the phantom, for a probe that cannot be
    placed and for light that does not converge.
    """
    m = config.measurements
    size = {"radius": np.inf if m.radius is None else m.radius, "patches": m.patches}
    patch = probe.Patch(
        sources=m.sources, detectors=m.detectors, pairs=m.pairs, per_source=m.pairs // m.sources, **size
    )  # fmt: skip
    try:
        drawn = [
            probe.draw(rows, config.seed, first + i, patch)
            for i, rows in enumerate(phantoms.sample(config.family, count, config.seed, first))
        ]
        tables = np.stack([rows for rows, _ in drawn])
        out = {n: np.stack([getattr(p, n) for _, p in drawn]) for n in store.MEASURED[:3]}
        media = [medium(rows, config.light_grid, device) for rows in tables]
        phi = diffusion.readings(media, *out.values(), m.frequency, m.n, m.precise, device)
    except (diffusion.ConvergenceError, ValueError) as error:  # of the batch's object, which is no phantom's number
        named = re.sub(r"\bobject (\d+)", lambda found: f"phantom {first + int(found[1])}", str(error))
        raise SimulationError(f"simulate: {named}") from None
    recordings = []
    for i, rows in enumerate(tables):
        separation = probe.separations(*(out[n][i] for n in store.MEASURED[:3]))
        phase = unwrapped(phi[i], *mean_properties(rows, config.light_grid), separation, m.frequency, m.n)
        rng = np.random.default_rng([noise.STREAM, m.noise.seed, first + i])
        recordings.append(noise.measure(phi[i], phase, out["pairs"][i], m.noise, rng))
    out |= dict(zip(store.MEASURED[3:], map(np.stack, zip(*recordings, strict=True)), strict=True))
    out |= {"ellipsoids": tables, "phi_clean": phi, "family": np.full(count, config.family, "S16")}
    out = {n: out[n].astype(store.COLUMNS[n].dtype) for n in store.COLUMNS if n in out}
    return out | {"checks": checks.examine(out)}


def medium(rows: np.ndarray, grid: int, device: str = "cpu") -> diffusion.Medium:
    """A phantom `(R, 13)` as the solver takes it."""
    return diffusion.Medium(*phantoms.medium(rows, grid, device), Surface(rows[0]), phantoms.CUBE / grid)


def mean_properties(rows: np.ndarray, grid: int) -> np.ndarray:
    """Mean mua and musp over the voxels of a phantom's tissue, mm^-1."""
    tissue = phantoms.labels(rows[None], grid)[0] > 0
    return phantoms.medium(rows, grid)[:, tissue].mean(1).numpy()


def unwrapped(
    phi: np.ndarray, mua: float, musp: float, separation: np.ndarray, frequency: float, n: float
) -> np.ndarray:
    """Phase of the fluence `phi` `(M,)`, rad, on the branch of a half-space of (mua, musp) at the same separations.

    phase = phase_ref - arg(phi / phi_ref), and phase_ref is within a quarter of a turn of that of the source without
    its image, Im(k) times the way: |1 - image / source| has a positive real part at every separation.
    """
    reference = green.semi_infinite(separation, mua, musp, frequency, n)
    way = np.imag(green.wave_number(mua, musp, frequency, n)) * np.hypot(separation, 1 / musp)
    phase = -np.angle(reference)
    phase += 2 * np.pi * np.round((way - phase) / (2 * np.pi))
    return phase - np.angle(phi / reference)
