"""Phantoms: tables of ellipsoids, and the volumes and labels that are rasterised from them.

A phantom is a `(6, 13)` float32 table: row 0 the tissue, rows 1-5 its inclusions, unused rows NaN. Columns: centre (3,
mm), semi-axes (3, mm), quaternion xyzw (4), exponent (2 for an ellipsoid), mua and musp (mm^-1). The origin is the
centre of a cube of 64 mm. Later inclusions overwrite earlier ones and are clipped to the tissue; outside the tissue is
air (0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from .surface import Surface

CUBE = 64.0  # mm
ROWS, COLUMNS = 6, 13
CENTRE, AXES, QUATERNION, EXPONENT, MUA, MUSP = slice(0, 3), slice(3, 6), slice(6, 10), 10, 11, 12
EMBEDDED = 0.8  # the least share of an inclusion's volume that lies inside the tissue
MAX_DRAWS = 1000
STREAM = 1  # of random numbers; splits have 2, the order of training 3

Range = tuple[float, float]


@dataclass(frozen=True)
class Family:
    """Ranges from which phantoms are drawn uniformly; lengths in mm, coefficients in mm^-1, contrasts as factors."""

    number: tuple[int, int] = (1, 5)
    semi_axes: Range = (5.0, 15.0)
    radius: Range = (0.0, 1.0)  # of an inclusion's centre: 0 at the tissue's centre, 1 on its surface
    contrast_mua: Range = (1.5, 3.5)
    contrast_musp: Range = (1.5, 2.5)
    tissue_axes: Range = (25.0, 30.0)
    tissue_exponent: Range = (2.0, 2.0)
    mua: Range = (0.003, 0.007)
    musp: Range = (0.78, 1.18)


FAMILIES = {
    "default": Family(),
    "small": Family(semi_axes=(5.0, 9.0)),
    "small-5mm": Family(semi_axes=(5.0, 5.0)),
    "none": Family(number=(0, 0)),
    "superficial": Family(radius=(0.65, 1.0)),
    "deep": Family(radius=(0.0, 0.35)),
    "single": Family(number=(1, 1)),
    "many": Family(number=(4, 5)),
    "low-contrast": Family(contrast_mua=(1.2, 1.5), contrast_musp=(1.2, 1.5)),
    "high-contrast": Family(contrast_mua=(3.0, 3.5), contrast_musp=(2.2, 2.5)),
    "mua-only": Family(contrast_musp=(1.0, 1.0)),
    "musp-only": Family(contrast_mua=(1.0, 1.0)),
    "out-of-range": Family(mua=(0.007, 0.010), musp=(1.18, 1.50)),
    "superellipsoid": Family(tissue_axes=(20.0, 24.0), tissue_exponent=(2.5, 4.0)),  # reaches 31.6 mm at most
}


def sample(family: str, n: int, seed: int, first: int = 0) -> np.ndarray:
    """Draw phantoms `first` ... `first + n - 1` of a family as ellipsoid tables, `(n, 6, 13)` float32.

    Each phantom has its own stream of random numbers, seeded by (seed, index): phantom i is the same however many are
    drawn. Inclusions' centres are uniform in the tissue ellipsoid (in the family's range of radii; drawn out along the
    rays where the exponent is not 2) and redrawn until at least 80 % of the volume is inside. Raises ValueError for an
    unknown family, and for a phantom whose inclusion finds no place in 1,000 draws.
    """
    if family not in FAMILIES:
        raise ValueError(f"phantoms: unknown family {family!r}; accepted: {', '.join(FAMILIES)}")
    f = FAMILIES[family]
    streams = [np.random.default_rng([STREAM, seed, i]) for i in range(first, first + n)]
    u = np.stack([g.random((ROWS, 8)) for g in streams]) if n else np.zeros((0, ROWS, 8))
    q = np.stack([g.standard_normal((ROWS, 4)) for g in streams]) if n else np.zeros((0, ROWS, 4))
    table = np.full((n, ROWS, COLUMNS), np.nan)
    table[:, 0, CENTRE] = 0.0
    table[:, 0, AXES] = _between(u[:, 0, :3], f.tissue_axes)
    table[:, 0, EXPONENT] = _between(u[:, 0, 3], f.tissue_exponent)
    table[:, 0, MUA], table[:, 0, MUSP] = _between(u[:, 0, 4], f.mua), _between(u[:, 0, 5], f.musp)
    table[:, 1:, AXES] = _between(u[:, 1:, :3], f.semi_axes)
    table[:, 1:, EXPONENT] = 2.0
    table[:, 1:, MUA] = table[:, :1, MUA] * _between(u[:, 1:, 4], f.contrast_mua)
    table[:, 1:, MUSP] = table[:, :1, MUSP] * _between(u[:, 1:, 5], f.contrast_musp)
    table[:, :, QUATERNION] = q / np.linalg.norm(q, axis=-1, keepdims=True)
    number = f.number[0] + np.floor(u[:, 0, 6] * (f.number[1] - f.number[0] + 1)).astype(int)
    table[:, 1:][np.arange(1, ROWS) > number[:, None]] = np.nan
    _place(table, f, streams, first)
    return table.astype(np.float32)


def _between(u: np.ndarray, bounds: Range) -> np.ndarray:
    return bounds[0] + u * (bounds[1] - bounds[0])


def _place(table: np.ndarray, family: Family, streams: list, first: int) -> None:
    """Fill in the inclusions' centres, by rejection until each is embedded."""
    pending = np.isfinite(table[:, 1:, MUA])
    for _ in range(MAX_DRAWS):
        rows = np.flatnonzero(pending.any(1))
        if not rows.size:
            return
        draw = np.stack([streams[i].random((ROWS - 1, 3)) for i in rows])
        lo, hi = (r**3 for r in family.radius)
        r = np.cbrt(lo + draw[..., 0] * (hi - lo))
        z, azimuth = 2 * draw[..., 1] - 1, 2 * np.pi * draw[..., 2]
        unit = (
            np.stack([np.sqrt(1 - z**2) * np.cos(azimuth), np.sqrt(1 - z**2) * np.sin(azimuth), z], -1) * r[..., None]
        )
        tissue = table[rows, 0]
        if family.tissue_exponent != (2.0, 2.0):  # from the ball onto the superellipsoid, along each ray
            unit *= (r / np.maximum(_norm(unit, tissue[:, None, EXPONENT]), 1e-12))[..., None]
        body = Rotation.from_quat(tissue[:, QUATERNION]).as_matrix() * tissue[:, None, AXES]
        centres = np.einsum("pij,pkj->pki", body, unit)
        who, which = np.nonzero(pending[rows])
        table[rows[who], which + 1, CENTRE] = centres[who, which]
        inside = embedded(table[rows[who], 0], table[rows[who], which + 1]) >= EMBEDDED
        pending[rows[who], which] = ~inside
    raise ValueError(f"phantoms: phantom {first + rows[0]}: no place for an inclusion found in {MAX_DRAWS} draws")


def embedded(tissue: np.ndarray, inclusion: np.ndarray, points: int = 1024) -> np.ndarray:
    """Share of each inclusion's volume inside the tissue, `(N,)`, from rows `(N, 13)`, by quasi-random points."""
    from scipy.stats import qmc  # half a second, and few need it

    u = qmc.Sobol(3, scramble=False).random(points)
    z, azimuth = 2 * u[:, 1] - 1, 2 * np.pi * u[:, 2]
    ball = np.cbrt(u[:, :1]) * np.stack(
        [np.sqrt(1 - z**2) * np.cos(azimuth), np.sqrt(1 - z**2) * np.sin(azimuth), z], -1
    )
    to_world = Rotation.from_quat(inclusion[:, QUATERNION]).as_matrix() * inclusion[:, None, AXES]
    to_body = Rotation.from_quat(tissue[:, QUATERNION]).inv().as_matrix() / tissue[:, AXES, None]
    offset = np.einsum("nij,nj->ni", to_body, inclusion[:, CENTRE] - tissue[:, CENTRE])
    body = (to_body @ to_world).astype(np.float32) @ ball.T.astype(np.float32) + offset[..., None].astype(np.float32)
    if (tissue[:, EXPONENT] == 2).all():
        return (np.einsum("nip,nip->np", body, body) <= 1).mean(1)
    return (_norm(np.moveaxis(body, 1, -1), tissue[:, EXPONENT, None]) <= 1).mean(1)


def _norm(x: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    return (np.abs(x) ** exponent[..., None]).sum(-1) ** (1 / exponent)


def rotate(ellipsoids: np.ndarray, rotation: Rotation) -> np.ndarray:
    """Rotate phantoms `(P, 6, 13)` about the cube's centre; one rotation, or one a phantom."""
    out = ellipsoids.astype(np.float64)
    for p in range(len(out)):
        r = rotation if rotation.single else rotation[p]
        used = np.isfinite(out[p, :, MUA])
        out[p, used, CENTRE] = r.apply(out[p, used, CENTRE])
        out[p, used, QUATERNION] = (r * Rotation.from_quat(out[p, used, QUATERNION])).as_quat()
    return out.astype(ellipsoids.dtype)


def without_inclusions(ellipsoids: np.ndarray) -> np.ndarray:
    """The tumour-free twin of each phantom."""
    out = ellipsoids.copy()
    out[:, 1:] = np.nan
    return out


def rasterise(ellipsoids: np.ndarray, grid: int, device="cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Anti-aliased volumes `(P, 2, grid, grid, grid)` of (mua, musp) in mm^-1.

    A voxel mixes air, tissue and inclusions by their volume fractions, composited in the table's order.
    """
    out = torch.zeros(len(ellipsoids), 2, grid, grid, grid, device=device, dtype=dtype)
    for p, rows in enumerate(np.asarray(ellipsoids, dtype=np.float64)):
        box, tissue, values = _mixed(rows, grid, device)
        for value, volume in zip(values, out[p], strict=True):
            volume[box] = (value * tissue).to(dtype)
    return out


def medium(rows: np.ndarray, grid: int, device="cpu") -> torch.Tensor:
    """mua and musp of one phantom `(6, 13)` as if there were no air: `(2, grid, grid, grid)` float64, mm^-1.

    Valid in every voxel that touches the tissue, also where its centre lies outside.
    """
    rows = np.asarray(rows, dtype=np.float64)
    box, _, values = _mixed(rows, grid, device, torch.float64)
    out = torch.as_tensor(rows[0, MUA : MUSP + 1], device=device)[:, None, None, None].repeat(1, grid, grid, grid)
    out[:, *box] = torch.stack(values)
    return out


def _mixed(rows: np.ndarray, grid: int, device, dtype=torch.float32) -> tuple[tuple[slice, ...], torch.Tensor, list]:
    """The tissue's window, its volume fractions there, and (mua, musp) with the inclusions but without air."""
    parts = _parts(rows, grid, device, dtype)
    box, tissue = next(parts)
    medium = [torch.full_like(tissue, v) for v in rows[0, MUA : MUSP + 1]]
    for k, (window, fraction) in enumerate(parts, 1):
        inner = tuple(slice(w.start - b.start, w.stop - b.start) for w, b in zip(window, box, strict=True))
        for channel, value in zip(medium, rows[k, MUA : MUSP + 1], strict=True):
            channel[inner].lerp_(fraction.new_tensor(value), fraction)
    return box, tissue, medium


def labels(ellipsoids: np.ndarray, grid: int, device="cpu") -> torch.Tensor:
    """Labels `(P, grid, grid, grid)` uint8 by voxel centres: 0 air, 1 background, k + 2 inclusion k (the last wins)."""
    out = torch.zeros(len(ellipsoids), grid, grid, grid, device=device, dtype=torch.uint8)
    for p, rows in enumerate(np.asarray(ellipsoids, dtype=np.float64)):
        for k, (window, fraction) in enumerate(_parts(rows, grid, device), 1):
            region = out[p][window]
            region[(fraction > 0.5) & ((region > 0) | (k == 1))] = k
    return out


def hard(ellipsoids: np.ndarray, grid: int) -> torch.Tensor:
    """Volumes like `rasterise`, but each voxel takes the values of the one region that holds its centre."""
    values = np.nan_to_num(ellipsoids[:, :, [MUA, MUSP]])
    palette = torch.as_tensor(np.concatenate([np.zeros_like(values[:, :1]), values], 1)).mT  # (P, 2, 7)
    index = labels(ellipsoids, grid).long().flatten(1)[:, None].expand(-1, 2, -1)
    return palette.gather(2, index).unflatten(2, (grid, grid, grid))


def _parts(
    rows: np.ndarray, grid: int, device, dtype=torch.float32
) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
    """Per ellipsoid of one phantom: its window of voxels, and the volume fraction of each voxel there.

    With f = |x/a| (1 on the surface) the fraction falls linearly, over one voxel, in (f^3 - 1) / (3 |grad f|): to first
    order the signed distance; and since r^2 dr = d(f^3)/3 along every ray, its integral is the ellipsoid's volume
    exactly. A ramp one voxel wide has the variance of the voxel's box in every direction.
    """
    voxel = CUBE / grid
    within = np.array([[0] * 3, [grid] * 3])  # after the tissue: its window, to which inclusions are clipped
    for k, row in enumerate(rows[np.isfinite(rows[:, MUA])]):
        body = Surface(row)
        axes, e, matrix, reach = body.axes, body.exponent, body.matrix, body.reach()
        lo = np.clip(np.floor((row[CENTRE] - reach) / voxel + grid / 2), *within).astype(int)
        hi = np.clip(np.ceil((row[CENTRE] + reach) / voxel + grid / 2), *within).astype(int)
        x = [
            (torch.arange(lo[d], hi[d], device=device, dtype=dtype) + 0.5) * voxel - CUBE / 2 - row[CENTRE][d]
            for d in range(3)
        ]
        norm, gradient = 0.0, 0.0
        for m in range(3):
            c = matrix[:, m] / axes[m]
            u = (x[0] * c[0])[:, None, None] + (x[1] * c[1])[:, None] + x[2] * c[2]
            power = u.square() if e == 2 else u.abs().pow(e)
            norm = norm + power
            gradient = gradient + (power if e == 2 else u.abs().pow(2 * e - 2)) / axes[m] ** 2
        f = norm.clamp_min(1e-12).pow(1 / e)
        slope = gradient.mul_(f.pow(2 - 2 * e)).sqrt_()
        if k == 0:
            within = np.array([lo, hi])
        yield tuple(map(slice, lo, hi)), f.pow(3).sub_(1).div_(slope.mul_(-3 * voxel)).add_(0.5).clamp_(0, 1)
