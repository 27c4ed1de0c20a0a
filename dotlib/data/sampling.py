"""Which of a phantom's pairs are used: named patterns that choose some of up to 1,000.

A pattern gives every pair a key, and the pairs with the smallest keys are used; a key of infinity is a pair that cannot
be. Geometry is lateral: x and y in the frame of the probe, whose patch is centred on the +z axis. Lengths are in mm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .probe import separations

STREAM = 8  # of random numbers
BLOCK = 256  # phantoms at a time: bounds the memory
BAND = 1.25  # a geometric pattern draws among the so many times `count` pairs that lie nearest to its geometry
RING = (0.7, 0.9)  # radius of `circular`, of the distance of the outermost optode from the patch's centre
CLUSTERS = 4
CELL = 10.0  # mm, lateral width of a region; the patch's centre is the centre of one
LAYERS = (6.0, 7.5)  # mm, mean depths between which a region lies
PENETRATION = 8.2  # mm, 1 / sqrt(3 mua (mua + musp)) of the default family's middle: 0.005 and 0.98 mm^-1
RANGE, BINS = (10.0, 40.0), 6  # mm, of separations: bins of equal width; beyond it they belong to the end bins
ACCESS = (0.3, 0.7)  # where a clinical patch ends on one side, of the distance of its outermost optode
OPTODES_LOST, PAIRS_LOST = 0.05, 0.05  # of a clinical acquisition: probabilities


@dataclass(frozen=True)
class Block:
    """What a pattern sees of P phantoms, and their uniform random numbers in [0, 1).

    Lateral places of all optodes, the sources first `(P, S + K, 2)`; each pair's numbers among them `(P, M, 2)`, its
    separation, sd of ln A and loss `(P, M)`; the phantoms' indices; `band`, the number of pairs of a band; random
    numbers of each phantom `(P, 2)`, of each pair, twice `(P, M)`, and of each optode `(P, S + K)`.
    """

    optodes: np.ndarray
    pairs: np.ndarray
    separation: np.ndarray
    sigma: np.ndarray
    lost: np.ndarray
    indices: Sequence[int]
    band: int
    own: np.ndarray
    u: np.ndarray
    v: np.ndarray
    luck: np.ndarray

    def ends(self, of_optodes: np.ndarray) -> np.ndarray:
        """What each pair's source and detector have of the optodes' values `(P, S + K, ...)`: `(P, M, 2, ...)`."""
        return of_optodes[np.arange(len(self.pairs))[:, None, None], self.pairs]

    def midpoints(self) -> np.ndarray:
        """Lateral midpoints of the pairs `(P, M, 2)`."""
        return self.ends(self.optodes).mean(2)

    def along(self) -> np.ndarray:
        """The optodes' coordinate in a random lateral direction, uniform in angle: `(P, S + K)`."""
        angle = 2 * np.pi * self.own[:, :1]
        return self.optodes[..., 0] * np.cos(angle) + self.optodes[..., 1] * np.sin(angle)

    def distance(self, low: float, high: float) -> np.ndarray:
        """A random distance `(P, 1)`, uniform between two shares of the outermost optode's distance from the axis."""
        return (low + (high - low) * self.own[:, 1:]) * np.linalg.norm(self.optodes, axis=-1).max(1, keepdims=True)


def random(block: Block) -> np.ndarray:
    """Uniform, without replacement."""
    return block.u


def snr(block: Block) -> np.ndarray:
    """Without replacement, with probability in proportion to the amplitude's signal-to-noise ratio, 1 / sigma of ln A.

    The smallest of exponential variables whose rates are the weights (Efraimidis and Spirakis 2006, algorithm A).
    ValueError for a pair that is not lost and whose sigma is not a positive number.
    """
    wrong = ~block.lost & ~((block.sigma > 0) & np.isfinite(block.sigma))
    if wrong.any():
        i, pair = np.argwhere(wrong)[0]
        found = f"pair {pair} has sigma {block.sigma[i, pair]:g} of ln A"
        raise ValueError(f"sampling: snr: phantom {block.indices[i]}: {found}; accepted: positive numbers")
    return -np.log1p(-block.u) * block.sigma


def circular(block: Block) -> np.ndarray:
    """Both optodes on a ring about the patch's centre, of random radius: the ring of fibres that surrounds a breast.

    A pair's distance from it is that of its farther optode.
    """
    radius = np.linalg.norm(block.optodes, axis=-1)
    return _near(block, block.ends(np.abs(radius - block.distance(*RING))).max(-1))


def linear(block: Block) -> np.ndarray:
    """Both optodes on a line through the patch's centre, of random direction: a linear array.

    A pair's distance from it is that of its farther optode.
    """
    return _near(block, block.ends(np.abs(block.along())).max(-1))


def clustered(block: Block) -> np.ndarray:
    """Midpoints about a few centres, which are the midpoints of pairs drawn at random."""
    middle = block.midpoints()
    order = np.argsort(np.where(block.lost, np.inf, block.v), axis=1)[:, :CLUSTERS]
    centres = np.take_along_axis(middle, order[..., None], 1)
    return _near(block, ((middle[:, :, None] - centres[:, None]) ** 2).sum(-1).min(-1))


def adaptive(block: Block) -> np.ndarray:
    """As many pairs from each region of the tissue under the patch, as far as each can supply.

    A pair's region is the lateral cell of its midpoint and the layer of its light's mean depth: `depth`.
    """
    cell = np.floor(block.midpoints() / CELL + 0.5).astype(np.int64)
    return _in_turn(block, cell @ (1_000_000, 1000) + np.digitize(depth(block.separation), LAYERS))


def clinical(block: Block) -> np.ndarray:
    """Of a patch without access on one side, some of whose optodes and pairs are lost: uniform among what remains.

    No optode lies beyond a line across the patch, of random direction and distance from its centre. What coupling does
    to the readings is part of their noise. The shares are assumptions, not taken from recordings.
    """
    there = (block.along() <= block.distance(*ACCESS)) & (block.luck >= OPTODES_LOST)
    return np.where(block.ends(there).all(-1) & (block.v >= PAIRS_LOST), block.u, np.inf)


def stratified(block: Block) -> np.ndarray:
    """As many pairs from each of six bins of separation between 10 and 40 mm, as far as each can supply."""
    step = (block.separation - RANGE[0]) / (RANGE[1] - RANGE[0]) * BINS
    return _in_turn(block, np.clip(np.floor(step), 0, BINS - 1).astype(np.int64))


PATTERNS: dict[str, Callable[[Block], np.ndarray]] = {
    f.__name__: f for f in (random, snr, circular, linear, clustered, adaptive, clinical, stratified)
}


def depth(separation: np.ndarray) -> np.ndarray:
    """Mean depth of the light between source and detector, mm: sqrt(separation / mueff) / 2 (Patterson et al. 1995).

    In a half-space of continuous light; 1 / mueff is PENETRATION, the same for every phantom.
    """
    return np.sqrt(separation * PENETRATION) / 2


def subsets(
    pattern: str, sources: np.ndarray, detectors: np.ndarray, pairs: np.ndarray, sigma: np.ndarray, lost: np.ndarray,
    count: int, seed: Sequence[int], indices: Sequence[int],
) -> np.ndarray:  # fmt: skip
    """Rows of `pairs` that a pattern chooses, `(P, count)` int16, ascending, each once and none of them lost.

    Takes sources `(P, S, 3)`, detectors `(P, K, 3)`, pairs `(P, M, 2)`, the sd of their readings `(P, M, 2)` and which
    are lost `(P, M)`. Where fewer than `count` pairs can be used, all of them are, and -1 follows. A phantom's subset
    depends on pattern, count, seed, its index and its own probe alone; all patterns share its random numbers. A
    geometric pattern draws uniformly among the 1.25 count pairs nearest to its geometry: the more, the wider it is.
    ValueError for an unknown pattern, a count below 1, shapes that do not fit or pairs of optodes that are not there.
    """
    if pattern not in PATTERNS:
        raise ValueError(f"sampling: pattern {pattern!r}; accepted: {', '.join(PATTERNS)}")
    if count < 1:
        raise ValueError(f"sampling: count = {count}; accepted: at least 1")
    arrays = [np.asarray(a) for a in (sources, detectors, pairs, sigma, lost)]
    _check(*arrays, indices)
    out = np.full((len(indices), count), -1, dtype=np.int16)
    for low in range(0, len(indices), BLOCK):
        part = slice(low, low + BLOCK)
        block = _block(*(a[part] for a in arrays), int(np.ceil(BAND * count)), seed, indices[part])
        keys = np.where(block.lost, np.inf, PATTERNS[pattern](block))
        chosen = np.argsort(keys, axis=1)[:, :count]
        usable = np.isfinite(np.take_along_axis(keys, chosen, 1))
        chosen = np.sort(np.where(usable, chosen, keys.shape[1]), axis=1)
        out[part, : chosen.shape[1]] = np.where(chosen < keys.shape[1], chosen, -1)
    return out


def _check(sources, detectors, pairs, sigma, lost, indices) -> None:
    n, m = len(indices), pairs.shape[1] if pairs.ndim == 3 else 0
    wanted = (n, *sources.shape[1:2], 3), (n, *detectors.shape[1:2], 3), (n, m, 2), (n, m, 2), (n, m)
    found = tuple(a.shape for a in (sources, detectors, pairs, sigma, lost))
    if found != wanted or not m:
        shapes, accepted = ", ".join(map(str, found)), "(P, S, 3), (P, K, 3), (P, M, 2), (P, M, 2), (P, M)"
        raise ValueError(f"sampling: {n} indices, arrays of shapes {shapes}; accepted: P, {accepted}")
    if m > np.iinfo(np.int16).max:
        raise ValueError(f"sampling: {m} pairs; accepted: at most {np.iinfo(np.int16).max}")
    wrong = (pairs < 0) | (pairs >= (sources.shape[1], detectors.shape[1]))
    if wrong.any():
        i, pair, _ = np.argwhere(wrong)[0]
        found = f"phantom {indices[i]}: pair {pair} is {pairs[i, pair].tolist()}"
        raise ValueError(f"sampling: {found}; accepted: from 0 to below {sources.shape[1]}, {detectors.shape[1]}")


def _block(sources, detectors, pairs, sigma, lost, band: int, seed: Sequence[int], indices: Sequence[int]) -> Block:
    m, optodes = pairs.shape[1], np.concatenate([sources, detectors], 1)
    sizes = np.cumsum([2, m, m])
    streams = [np.random.default_rng([STREAM, *seed, int(i)]) for i in indices]
    draws = np.split(np.stack([rng.random(sizes[-1] + optodes.shape[1]) for rng in streams]), sizes, axis=1)
    apart = np.stack([separations(*probe) for probe in zip(sources, detectors, pairs, strict=True)])
    numbers = pairs.astype(np.int64) + np.array([0, sources.shape[1]])
    places, lost = optodes[..., :2].astype(np.float64), lost.astype(bool)
    return Block(places, numbers, apart, sigma[..., 0], lost, indices, band, *draws)


def _near(block: Block, distance: np.ndarray) -> np.ndarray:
    """Keys that choose at random within the band of the nearest pairs, and then by distance."""
    order = np.lexsort((block.v, np.where(block.lost, np.inf, distance)), axis=1)
    rank = np.argsort(order, axis=1)
    return np.where(rank < block.band, block.u, 1 + rank)


def _in_turn(block: Block, group: np.ndarray) -> np.ndarray:
    """Keys that choose one pair of each group at random, then one more of each: the last round from random groups."""
    order = np.lexsort((np.where(block.lost, np.inf, block.u), group), axis=1)
    place = np.broadcast_to(np.arange(order.shape[1]), order.shape)
    first = np.diff(np.take_along_axis(group, order, 1), axis=1, prepend=-1) != 0
    turn = place - np.maximum.accumulate(np.where(first, place, 0), axis=1)
    return np.take_along_axis(turn, np.argsort(order, axis=1), 1) + block.v
