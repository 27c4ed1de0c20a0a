"""The probe: sources and detectors on a patch of the tissue surface, and the pairs of them that are measured.

A phantom is described in the frame of its probe: the patch is centred where the surface meets the +z axis, a second one
where it meets -z. Lengths are in mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from . import phantoms
from .phantoms import AXES, CENTRE, EXPONENT, QUATERNION

STREAM = 4  # of random numbers
MAX_DRAWS = 100
Z = np.array([0.0, 0.0, 1.0])


class ProbeError(ValueError):
    """A probe that the tissue surface cannot carry, as one line that names the phantom."""


@dataclass(frozen=True)
class Patch:
    """What is drawn: optodes within `radius` (straight line) of the patch's centre, and `per_source` pairs a source.

    With two `patches` the later half of the sources, and of the detectors, lies on the opposite one.
    """

    radius: float = 30.0
    sources: int = 50
    detectors: int = 40
    pairs: int = 1000
    per_source: int = 20
    separation: tuple[float, float] = (10.0, 40.0)
    patches: int = 1

    def __post_init__(self):
        if self.pairs != self.sources * self.per_source:
            raise ValueError(
                f"probe: {self.sources} sources with {self.per_source} detectors each are not {self.pairs} pairs"
            )
        if self.per_source > self.detectors:
            raise ValueError(f"probe: {self.per_source} detectors a source; accepted: at most {self.detectors}")


STANDARD = Patch()


@dataclass(frozen=True)
class Probe:
    """Sources `(S, 3)` and detectors `(K, 3)` float32, pairs `(M, 2)` int16: 0-based (source, detector), sorted."""

    sources: np.ndarray
    detectors: np.ndarray
    pairs: np.ndarray


def scatter(tissue: np.ndarray, n: int, rng: np.random.Generator, radius: float = np.inf) -> np.ndarray:
    """`n` points `(n, 3)` float32, uniform in area on the tissue surface within `radius` of the point on +z.

    By rejection: directions, uniform in the cone that covers the patch, are kept in proportion to the area that they
    see. The points are tested as they are returned, rounded to float32.
    """
    row = np.asarray(tissue, dtype=np.float64)
    if np.any(row[CENTRE]):
        raise ValueError(f"probe: tissue centred at {row[CENTRE].tolist()} mm; accepted: the cube's centre")
    centre = _surface(row, Z[None])[0][0]
    least, most = _reach(row)
    floor = _cone(centre[2], least, radius)
    found = np.empty((0, 3), dtype=np.float32)
    while len(found) < n:
        draw = rng.random((max(4 * (n - len(found)), 16), 3))
        z, azimuth = 1 - draw[:, 0] * (1 - floor), 2 * np.pi * draw[:, 1]
        across = np.sqrt(np.maximum(1 - z**2, 0))
        points, area = _surface(row, np.stack([across * np.cos(azimuth), across * np.sin(azimuth), z], -1))
        points = points.astype(np.float32)
        keep = draw[:, 2] * most**3 / least < area
        keep &= np.linalg.norm(points - centre, axis=1) <= radius
        found = np.concatenate([found, points[keep]])
    return found[:n]


def _surface(row: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface's points `(N, 3)` in unit directions, and the area per solid angle there, mm^2.

    With f = |x/a| (1 on the surface) a point is at r = 1 / f(direction); its area r^2 / (normal . direction) is
    r^3 |grad f|, since direction . grad f = f(direction).
    """
    e = row[EXPONENT]
    local = np.abs(directions @ Rotation.from_quat(row[QUATERNION]).as_matrix()) / row[AXES]
    r = (local**e).sum(1) ** (-1 / e)
    slope = np.sqrt(((local ** (e - 1) / row[AXES]) ** 2).sum(1)) * r ** (e - 1)
    return directions * r[:, None], r**3 * slope


def _reach(row: np.ndarray) -> tuple[float, float]:
    """The least and the greatest distance of the surface from the centre, for exponents of at least 2.

    The area per solid angle is r^3 over the tangent plane's distance: at most greatest^3 / least.
    """
    if not row[EXPONENT] >= 2:
        raise ValueError(f"probe: tissue of exponent {row[EXPONENT]:g}; accepted: at least 2")
    a = row[AXES] / row[AXES].max()
    inverse = max(1 - 2 / row[EXPONENT], 1e-6)  # of the Hoelder dual of half the exponent; an ellipsoid's is infinite
    return row[AXES].min(), row[AXES].max() * (a ** (2 / inverse)).sum() ** (inverse / 2)


def _cone(height: float, least: float, radius: float) -> float:
    """Cosine of the half-angle in which every point lies that is within `radius` of the centre point at `height`."""
    if not np.isfinite(radius):
        return -1.0
    outside = height**2 - radius**2
    nearest = max(least, np.sqrt(max(outside, 0)))  # the point that is seen at the widest angle
    return max((nearest**2 + outside) / (2 * nearest * height), -1.0)


def frame(tissue: np.ndarray, rng: np.random.Generator) -> Rotation:
    """The rotation that takes a point of the surface, drawn uniformly in area, to +z, with a uniform roll about z."""
    z = scatter(tissue, 1, rng)[0].astype(np.float64)
    z /= np.linalg.norm(z)
    x = rng.standard_normal(3)
    x -= (x @ z) * z
    x /= np.linalg.norm(x)
    return Rotation.from_matrix(np.stack([x, np.cross(z, x), z]))


def place(tissue: np.ndarray, patch: Patch, rng: np.random.Generator) -> Probe:
    """Draw a probe on the tissue, whose row is already in the probe's frame.

    Where some source has too few detectors in the range of separations, all optodes are drawn again; ProbeError after
    100 draws. So they are uniform in area among the arrangements that can be paired.
    """
    for _ in range(MAX_DRAWS):
        optodes = scatter(tissue, patch.sources + patch.detectors, rng, patch.radius)
        sources, detectors = optodes[: patch.sources], optodes[patch.sources :]
        if patch.patches == 2:  # the tissue has a centre of symmetry
            for part in (sources, detectors):
                part[(len(part) + 1) // 2 :] *= -1
        near = _within(sources, detectors, patch.separation)
        if near.sum(1).min() >= patch.per_source:
            return Probe(sources, detectors, connect(near, patch.per_source, rng))
    raise ProbeError(
        "no probe with {} of {} detectors {:g}-{:g} mm from each of {} sources in {} draws of its patch".format(
            patch.per_source, patch.detectors, *patch.separation, patch.sources, MAX_DRAWS
        )
    )


def _within(sources: np.ndarray, detectors: np.ndarray, separation: tuple[float, float]) -> np.ndarray:
    every = np.stack(np.indices((len(sources), len(detectors))), -1).reshape(-1, 2)
    found = separations(sources, detectors, every).reshape(len(sources), len(detectors))
    return (found >= separation[0]) & (found <= separation[1])


def connect(near: np.ndarray, per_source: int, rng: np.random.Generator) -> np.ndarray:
    """Pairs `(S per_source, 2)` int16: `per_source` detectors of each source, drawn among those `near` it, `(S, K)`."""
    keys = np.where(near, rng.random(near.shape), np.inf)
    chosen = np.sort(np.argsort(keys, axis=1)[:, :per_source], axis=1)
    return np.stack([np.repeat(np.arange(len(near)), per_source), chosen.ravel()], -1).astype(np.int16)


def draw(rows: np.ndarray, seed: int, index: int, patch: Patch = STANDARD) -> tuple[np.ndarray, Probe]:
    """Give phantom `index` its probe: its table `(6, 13)` in the probe's frame, float32, and the probe.

    Depends on the rows, seed, index and patch alone. ProbeError names the phantom where no probe is found.
    """
    rng = np.random.default_rng([STREAM, seed, index])
    turned = phantoms.rotate(np.asarray(rows, dtype=np.float32)[None], frame(rows[0], rng))[0]
    try:
        return turned, place(turned[0], patch, rng)
    except ProbeError as error:
        raise ProbeError(f"probe: phantom {index}: {error}") from None


def separations(sources: np.ndarray, detectors: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Straight-line distance of each pair, `(M,)` float64, mm."""
    steps = np.asarray(sources, dtype=np.float64)[pairs[:, 0]] - np.asarray(detectors, dtype=np.float64)[pairs[:, 1]]
    return np.linalg.norm(steps, axis=1)
