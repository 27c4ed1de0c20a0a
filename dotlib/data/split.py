"""Training, validation and test: stratified, stable when phantoms are appended, frozen by hash."""

import hashlib

import numpy as np

from .phantoms import AXES, FAMILIES, MUA, MUSP

NAMES = ("train", "validation", "test")
STREAM = 2  # of random numbers; phantoms have 1
SIZE_EDGES = (0.0, 9.5, 11.5)  # mm, equivalent radius of the largest inclusion; none is a stratum of its own
# sd of ln A of a phantom's median pair; the median of 160 default phantoms simulated at 32^3 is 0.0302 (0.022-0.057).
# Fixed, so that appended phantoms move no label.
QUALITY_EDGE = 0.030
MUA_EDGE, MUSP_EDGE = (sum(bounds) / 2 for bounds in (FAMILIES["default"].mua, FAMILIES["default"].musp))


def quality(sigma: np.ndarray) -> np.ndarray:
    """What tells good measurements from poor: the sd of ln A of each phantom's median pair `(P,)`, where NaN is poor.

    `sigma` `(P, M, 2)`: sd of its readings.
    """
    return np.median(np.where(np.isnan(sigma[..., 0]), np.inf, sigma[..., 0]), 1)


def strata(ellipsoids: np.ndarray | None, measured: np.ndarray | None = None) -> np.ndarray:
    """Stratum of each phantom `(P,)` int8 from what is known of it: at most 32.

    Size of its largest inclusion (4) x low or high tissue mua (2) x musp (2), from its table; x good or poor
    measurements (2), from their `quality` `(P,)`.
    """
    out = np.zeros(len(measured if ellipsoids is None else ellipsoids), dtype=np.int8)
    if ellipsoids is not None:
        radius = np.cbrt(np.nan_to_num(ellipsoids[:, 1:, AXES]).prod(-1)).max(1)
        size = np.searchsorted(SIZE_EDGES, radius)
        out += size.astype(np.int8) * 4
        out += (ellipsoids[:, 0, MUA] > MUA_EDGE) * np.int8(2) + (ellipsoids[:, 0, MUSP] > MUSP_EDGE)
    if measured is not None:
        out += (measured > QUALITY_EDGE) * np.int8(16)
    return out


def split(
    stratum: np.ndarray, fractions: tuple[int, int, int], seed: int, excluded: np.ndarray | None = None
) -> np.ndarray:
    """Label each phantom 0 train, 1 validation or 2 test, -1 where it is `excluded`, `(P,)` int8.

    Phantoms are taken in order, and each joins the set that lacks most: its deficit within the stratum plus that over
    all phantoms, threefold, so that the sets come out in their exact sizes, plus a small seeded draw. So the
    sets keep the strata's proportions, and appended phantoms change no label (sequential allocation by minimisation,
    Pocock & Simon 1975).
    """
    share = [part / sum(fractions) for part in fractions]
    draws = 0.5 * np.array(share) * np.random.default_rng([STREAM, seed]).random((len(stratum), 3))
    chosen = np.arange(len(stratum)) if excluded is None else np.flatnonzero(~excluded)
    own: dict[int, list[int]] = {}
    overall = [0, 0, 0]
    labels = []  # by plain numbers, spelt out: many times as fast as arrays of three
    for n, (of, draw) in enumerate(zip(stratum[chosen].tolist(), draws[chosen].tolist(), strict=True), 1):
        mine = own.setdefault(of, [0, 0, 0])
        m = mine[0] + mine[1] + mine[2] + 1
        train = m * share[0] - mine[0] + 3 * (n * share[0] - overall[0]) + draw[0]
        validation = m * share[1] - mine[1] + 3 * (n * share[1] - overall[1]) + draw[1]
        test = m * share[2] - mine[2] + 3 * (n * share[2] - overall[2]) + draw[2]
        label = 0 if train >= validation and train >= test else 1 if validation >= test else 2
        mine[label] += 1
        overall[label] += 1
        labels.append(label)
    out = np.full(len(stratum), -1, dtype=np.int8)
    out[chosen] = labels
    return out


def digest(ellipsoids: np.ndarray, labels: np.ndarray) -> str:
    """Hash that freezes a split: the phantoms' tables and their labels."""
    return hashlib.sha256(np.ascontiguousarray(ellipsoids).tobytes() + labels.tobytes()).hexdigest()[:16]
