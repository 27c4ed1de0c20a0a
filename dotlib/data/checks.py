"""Verification of every record of a dataset: what is wrong with which phantom."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from . import phantoms, probe, store
from .phantoms import AXES, CENTRE, CUBE, EMBEDDED, EXPONENT, MUA, MUSP, QUATERNION
from .surface import Surface

Columns = Mapping[str, np.ndarray]
BATCH = 64  # phantoms that are in memory at a time
PLAUSIBLE = {MUA: (1e-4, 0.1), MUSP: (0.05, 10.0)}  # tissue and tumours, mm^-1
SEPARATION = probe.Patch().separation
OFF_SURFACE = 0.1  # mm
NOISY = 0.3  # sd of ln A of a noisy pair
MOST_NOISY = MOST_LOST = 0.5  # share of a phantom's pairs
CLEAR = 0.3  # sd (of ln A; rad) of a pair that shows which line over separation its phantom's readings follow
AMPLITUDE = (-46.0, 7.0)  # ln A: from what single precision resolves to a thousand times the light of the nearest pair
SPAN = 10.0  # mm of separation: a line over less says nothing
FALL = 1 / 30  # of ln A per mm; from 10 to 40 mm the spreading of light alone makes it fall by 2 ln 4
OTHER_SIGN = 0.5  # rad: a phase that falls by more over a probe
CHECKS = 1  # raised by hand whenever the same file would be judged in another way


def examine(columns: Columns) -> np.ndarray:
    """The faults of phantoms `(P,)` int32, bit i for the i-th of REASONS, from whichever columns of `store` there are.

    A phantom that is not finite, impossible or wired to no optode is examined no further. `duplicates` are not seen
    here: they need the whole file.
    """
    bits = np.zeros(len(next(iter(columns.values()))), dtype=np.int32)
    for reason, needs, test in TESTS:
        sound = (bits & GRAVE) == 0
        if sound.any() and set(needs) <= set(columns):
            failed = test({name: values[sound] for name, values in columns.items()})
            bits[sound] |= failed.astype(np.int32) << REASONS.index(reason)
    return bits


def _not_finite(c: Columns) -> np.ndarray:
    return ~np.all([store.finite(name, c) for name in c], axis=0)


def _half_lost(c: Columns) -> np.ndarray:
    """A reading with an amplitude but no phase, or without a standard deviation."""
    return (np.isnan(c["phase"]) != np.isnan(c["log_amplitude"])).any(1) | (c["sigma"] < 0).any((1, 2))


def _impossible(c: Columns) -> np.ndarray:
    rows = c["ellipsoids"]
    norm = np.linalg.norm(rows[..., QUATERNION], axis=-1)
    wrong = (rows[..., AXES] <= 0).any(-1) | (np.abs(norm - 1) > 1e-3) | (rows[..., EXPONENT] < 2)
    for column, (low, high) in PLAUSIBLE.items():
        wrong |= (rows[..., column] < low) | (rows[..., column] > high)
    return wrong.any(1)  # a comparison with the NaN of an unused row is false, either way


def _implausible(c: Columns) -> np.ndarray:
    bounds = np.array(list(PLAUSIBLE.values()))[:, :, None, None, None]
    outside = ((c["volumes"] < bounds[:, 0]) | (c["volumes"] > bounds[:, 1])).any(1)
    return (outside & c["mask"]).any((1, 2, 3)) | ~c["mask"].any((1, 2, 3))


def _unwired(c: Columns) -> np.ndarray:
    most = [c["sources"].shape[1], c["detectors"].shape[1]]
    return ((c["pairs"] < 0) | (c["pairs"] >= most)).any((1, 2))


def _off_surface(c: Columns) -> np.ndarray:
    optodes = torch.from_numpy(np.concatenate([c["sources"], c["detectors"]], axis=1).astype(np.float64))
    distances = [Surface(rows[0])(points)[0] for rows, points in zip(c["ellipsoids"], optodes, strict=True)]
    return ~(torch.stack(distances).abs() <= OFF_SURFACE).all(1).numpy()


def _off_mask(c: Columns) -> np.ndarray:
    """Where tissue is known by voxels, an optode's voxel or one beside it is tissue, and another one is air."""
    mask = np.pad(c["mask"], ((0, 0), (2, 2), (2, 2), (2, 2)))
    size = np.array(c["mask"].shape[1:])
    optodes = np.concatenate([c["sources"], c["detectors"]], axis=1)
    voxel = np.floor((optodes / CUBE + 0.5) * size).astype(int)
    beside = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    i, j, k = np.moveaxis(np.clip(voxel, 0, size - 1)[:, :, None] + beside + 2, -1, 0)
    found = mask[np.arange(len(mask))[:, None, None], i, j, k]
    inside_cube = ((voxel >= 0) & (voxel < size)).all((1, 2))
    return ~(inside_cube & (found.any(-1) & ~found.all(-1)).all(1))


def separations(columns: Columns) -> np.ndarray:
    """Straight-line distance of each pair, `(P, M)`, mm."""
    return np.stack([probe.separations(*c) for c in zip(*(columns[n] for n in store.MEASURED[:3]), strict=True)])


def _measured_twice(c: Columns) -> np.ndarray:
    key = np.sort(c["pairs"][..., 0].astype(int) * c["detectors"].shape[1] + c["pairs"][..., 1], axis=1)
    return (np.diff(key, axis=1) == 0).any(1)


def _separation(c: Columns) -> np.ndarray:
    found = separations(c)
    return ((found < SEPARATION[0]) | (found > SEPARATION[1])).any(1)


def _noisy(c: Columns) -> np.ndarray:
    return (c["sigma"][..., 0] > NOISY).mean(1) > MOST_NOISY


def _lost(c: Columns) -> np.ndarray:
    return np.isnan(c["log_amplitude"]).mean(1) > MOST_LOST


def _amplitude(c: Columns) -> np.ndarray:
    return ((c["log_amplitude"] < AMPLITUDE[0]) | (c["log_amplitude"] > AMPLITUDE[1])).any(1)


def _line(c: Columns, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each phantom's line over separation in one kind of reading: slope `(P,)` per mm, residuals `(P, M)`, span `(P,)`.

    Of the clear pairs, the others' residuals are 0. The line is that of the least absolute deviations, so that a few
    pairs do not bend it; any offset of the instrument is in it.
    """
    clear = (c["sigma"][..., store.LOST.index(name)] < CLEAR) & np.isfinite(c[name])
    x, y = separations(c), np.where(clear, c[name], 0).astype(float)
    weight = clear.astype(float)
    for _ in range(20):
        total = np.maximum(weight.sum(1, keepdims=True), 1e-12)
        dx, dy = (v - (weight * v).sum(1, keepdims=True) / total for v in (x, y))
        slope = (weight * dx * dy).sum(1) / np.maximum((weight * dx**2).sum(1), 1e-12)
        residual = np.where(clear, dy - slope[:, None] * dx, 0)
        weight = clear / np.maximum(np.abs(residual), 1e-2)
    span = np.where(clear, x, -np.inf).max(1) - np.where(clear, x, np.inf).min(1)
    return slope, residual, np.maximum(span, 0)


def _not_falling(c: Columns) -> np.ndarray:
    """As with amplitudes that are no logarithms, or with readings of other pairs."""
    slope, _, span = _line(c, "log_amplitude")
    return (span >= SPAN) & (slope > -FALL)


def _branch(c: Columns) -> np.ndarray:
    """A pair more than half a turn from the phantom's line, or a line that falls, by more than its optodes' offsets."""
    slope, residual, span = _line(c, "phase")
    optodes = min(c["sources"].shape[1], c["detectors"].shape[1])
    error = np.sqrt((residual**2).mean(1) * 12 / optodes)  # of the rise over the span of uniform separations
    return (np.abs(residual) > np.pi).any(1) | ((span >= SPAN) & (slope * span < -np.maximum(OTHER_SIGN, 4 * error)))


def _not_embedded(c: Columns) -> np.ndarray:
    who, which = np.nonzero(np.isfinite(c["ellipsoids"][:, 1:, MUA]))
    out = np.zeros(len(c["ellipsoids"]), dtype=bool)
    if len(who):
        rows = c["ellipsoids"].astype(np.float64)
        share = phantoms.embedded(rows[who, 0], rows[who, which + 1])
        np.logical_or.at(out, who, share < EMBEDDED - 0.002)  # two of its 1,024 points: tables are rounded
    return out


def _touching(c: Columns) -> np.ndarray:
    tissue = c["ellipsoids"][:, 0].astype(np.float64)
    reach = np.stack([Surface(row).reach() for row in tissue])
    return (np.abs(tissue[:, CENTRE]) + reach >= CUBE / 2).any(1)


def _mask_touching(c: Columns) -> np.ndarray:
    inner = np.zeros(c["mask"].shape[1:], dtype=bool)
    inner[1:-1, 1:-1, 1:-1] = True
    return (c["mask"] & ~inner).any((1, 2, 3))


TESTS = (
    ("not finite", (), _not_finite),
    ("not finite", ("log_amplitude", "phase", "sigma"), _half_lost),
    ("property out of range", ("ellipsoids",), _impossible),
    ("property out of range", ("volumes", "mask"), _implausible),
    ("pair names no optode", store.MEASURED[:3], _unwired),
    ("optode off the surface", ("ellipsoids", *store.MEASURED[:2]), _off_surface),
    ("optode off the surface", ("mask", *store.MEASURED[:2]), _off_mask),
    ("pair measured twice", store.MEASURED[:3], _measured_twice),
    ("separation outside {:g}-{:g} mm".format(*SEPARATION), store.MEASURED[:3], _separation),
    (f"sd of ln A above {NOISY} in most pairs", ("sigma",), _noisy),
    ("most pairs lost", ("log_amplitude",), _lost),
    ("ln A outside {:g} ... {:g}".format(*AMPLITUDE), ("log_amplitude",), _amplitude),
    ("ln A does not fall with separation", store.MEASURED, _not_falling),
    ("phase on another branch", store.MEASURED, _branch),
    (f"inclusion embedded below {EMBEDDED:.0%}", ("ellipsoids",), _not_embedded),
    ("tissue touches the cube's wall", ("ellipsoids",), _touching),
    ("tissue touches the cube's wall", ("mask",), _mask_touching),
)
DUPLICATE = "duplicate of an earlier phantom"
REASONS = (*dict.fromkeys(reason for reason, *_ in TESTS), DUPLICATE)
LEGEND = json.dumps([CHECKS, *REASONS])  # what stored bits mean
GRAVE = sum(1 << REASONS.index(reason) for reason in REASONS[:3])


def reasons(bits: int) -> list[str]:
    """The faults in words."""
    return [reason for i, reason in enumerate(REASONS) if bits >> i & 1]


class Duplicates:
    """Finds phantoms whose truth or readings, to the bit, an earlier phantom had; the earlier one stays."""

    def __init__(self):
        self.seen: dict[str, set[int]] = {}  # eight bytes of each digest: a million phantoms take 0.1 GB

    def __call__(self, columns: Columns) -> np.ndarray:
        """Bits `(P,)` int32 of the next phantoms."""
        out = np.zeros(len(next(iter(columns.values()))), dtype=np.int32)
        for name in {"ellipsoids", "volumes", "log_amplitude"} & set(columns):
            seen = self.seen.setdefault(name, set())
            for i, values in enumerate(columns[name]):
                key = int.from_bytes(hashlib.sha256(values.tobytes()).digest()[:8])
                out[i] |= (key in seen) << REASONS.index(DUPLICATE)
                seen.add(key)
        return out


def examine_file(file: store.File) -> np.ndarray:
    """The faults of every phantom of a file, `(P,)` int32."""
    duplicates, out = Duplicates(), np.zeros(len(file), dtype=np.int32)
    for start in range(0, len(file), BATCH):
        columns = {n: file.raw(n, start, start + BATCH) for n in file.names if n not in store.DERIVED}
        out[start : start + BATCH] = examine(columns) | duplicates(columns)
    return out


def stored(file: store.File) -> np.ndarray | None:
    """The faults `(P,)` int32 that a file says its phantoms have; None where it says none, or by another legend."""
    return file.raw("checks") if "checks" in file and file.attribute("legend") == LEGEND else None


def faults(file: store.File) -> np.ndarray:
    """The faults of every phantom of a file, `(P,)` int32: stored, or examined; they are excluded from reading."""
    found = stored(file)
    found = examine_file(file) if found is None else found
    file.excluded |= found != 0
    return found


def report(path: Path) -> tuple[np.ndarray, int]:
    """Verify a file, bytes and records: faults `(P,)` int32, and how many phantoms have other ones stored with them.

    StoreError where it cannot be used, as when no phantom is left.
    """
    with store.File(path) as file:
        file.digests()
        found, before = examine_file(file), stored(file)
    if found.all():
        raise store.StoreError(f"{path}: {none_usable(found)}")
    return found, 0 if before is None else int((found != before).sum())


def none_usable(faults: np.ndarray) -> str:
    """Why no phantom of a file can be used."""
    return f"no usable phantom; phantom 0: {'; '.join(reasons(faults[0]))}"


def sample(path: Path, usable: np.ndarray, most: int = 256) -> dict[str, np.ndarray]:
    """What a summary figure of a file shows, of `most` usable phantoms at equal steps: flat arrays, empty if not there.

    Separation (mm), log-amplitude and its sd of each pair; equivalent radius of each inclusion (mm).
    """
    out = dict.fromkeys(("separation", "log_amplitude", "sigma", "radius"), np.empty(0))
    chosen = np.flatnonzero(usable)[:: -(-usable.sum() // most)]
    with store.File(path) as file:
        names = [name for name in ("ellipsoids", *store.MEASURED) if name in file]
        rows = [{name: file.raw(name, i, i + 1) for name in names} for i in chosen]
    if "ellipsoids" in names:
        radius = [np.cbrt(row["ellipsoids"][0, 1:, AXES].prod(-1)) for row in rows]
        out["radius"] = (r := np.concatenate(radius))[np.isfinite(r)]
    if "pairs" in names:
        out["separation"] = np.concatenate([separations(row).ravel() for row in rows])
        out["log_amplitude"] = np.concatenate([row["log_amplitude"].ravel() for row in rows])
        out["sigma"] = np.concatenate([row["sigma"][..., 0].ravel() for row in rows])
    return out
