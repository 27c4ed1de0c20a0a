"""The case that all solvers share: a homogeneous sphere with one patch of optodes, and its exact readings."""

from dataclasses import dataclass

import numpy as np

from dotlib.data import probe
from dotlib.physics import green

RADIUS, MUA, MUSP, INDEX, FREQUENCY = 27.3, 0.005, 1.0, 1.33, 140e6  # mm, mm^-1, mm^-1, -, Hz
ROW = np.array([0, 0, 0, RADIUS, RADIUS, RADIUS, 0, 0, 0, 1, 2, MUA, MUSP], dtype=np.float64)  # of an ellipsoid table


@dataclass(frozen=True)
class Case:
    """Sources `(S, 3)` and detectors `(K, 3)` on the sphere round the origin, mm, pairs `(M, 2)`, exact fluence `(M,)`.

    A source is a unit isotropic point one 1/musp below its place on the surface.
    """

    sources: np.ndarray
    detectors: np.ndarray
    pairs: np.ndarray
    exact: np.ndarray

    @property
    def inner(self) -> np.ndarray:
        return self.sources * (1 - 1 / (MUSP * RADIUS))


def draw(seed: int = 0) -> Case:
    """50 sources, 40 detectors and 1,000 pairs, 10-40 mm apart, on one patch."""
    drawn = probe.place(ROW, probe.Patch(), np.random.default_rng(seed))
    sources, detectors = (
        x / np.linalg.norm(x, axis=1, keepdims=True) * RADIUS
        for x in (drawn.sources.astype(np.float64), drawn.detectors.astype(np.float64))
    )
    exact = np.empty(len(drawn.pairs), dtype=complex)
    for s, source in enumerate(sources * (1 - 1 / (MUSP * RADIUS))):
        mine = drawn.pairs[:, 0] == s
        exact[mine] = green.sphere(source, detectors[drawn.pairs[mine, 1]], RADIUS, MUA, MUSP, FREQUENCY, INDEX)
    return Case(sources, detectors, drawn.pairs, exact)


def errors(phi: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Median and 95th percentile of the absolute errors of ln A and of the phase, degrees."""
    ratio = np.log(phi / exact)
    size = {"ln_a": abs(ratio.real), "phase": abs(np.degrees(ratio.imag))}
    return {
        f"{name}_{q}": float(np.percentile(e, p)) for name, e in size.items() for q, p in (("median", 50), ("p95", 95))
    }
