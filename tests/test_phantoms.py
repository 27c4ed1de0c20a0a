"""Rasterised phantoms against closed forms, brute force on dense points, and resampling by torch and scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scipy.special import gamma

from dotlib.data import phantoms
from dotlib.data.phantoms import AXES, CENTRE, CUBE, EXPONENT, FAMILIES, MUA, MUSP, QUATERNION

UNTURNED = (0, 0, 0, 1)


def table(*rows):
    """One phantom from rows (centre, semi-axes, quaternion, exponent, mua, musp)."""
    out = np.full((1, phantoms.ROWS, phantoms.COLUMNS), np.nan)
    for k, (centre, axes, quaternion, *rest) in enumerate(rows):
        out[0, k] = [*centre, *np.broadcast_to(axes, 3), *quaternion, *rest]
    return out


def bodies(n, exponent, axes, seed=0):
    """`n` phantoms of one body with coefficients 1, off the grid and turned at random: their volumes are fractions."""
    rng = np.random.default_rng(seed)
    turns = rng.standard_normal((n, 4))
    turns /= np.linalg.norm(turns, axis=1, keepdims=True)
    return np.concatenate([table((rng.uniform(-2, 2, 3), rng.uniform(*axes, 3), q, exponent, 1, 1)) for q in turns])


def matrix(q):
    x, y, z, w = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def centres(grid):
    x = (np.arange(grid) + 0.5) * CUBE / grid - CUBE / 2
    return np.stack(np.meshgrid(x, x, x, indexing="ij"), -1)


def radius(row, points):
    """|x / a| of points in the body's own frame: 1 on the surface."""
    local = (points - row[CENTRE]) @ matrix(row[QUATERNION]) / row[AXES]
    return (np.abs(local) ** row[EXPONENT]).sum(-1) ** (1 / row[EXPONENT])


def used(rows):
    return rows[np.isfinite(rows[:, MUA])]


def brute_labels(rows, points):
    out = np.zeros(points.shape[:-1], dtype=np.uint8)
    for label, row in enumerate(used(rows), 1):
        inside = radius(row, points) < 1
        out[inside if label == 1 else inside & (out > 0)] = label
    return out


def supersampled(rows, grid, fold=8):
    """Mean (mua, musp) of `fold`^3 points in each voxel, and whether the points disagree, on a grid."""
    label = brute_labels(rows, centres(grid * fold)).reshape(grid, fold, grid, fold, grid, fold)
    palette = np.concatenate([np.zeros((1, 2)), used(rows)[:, MUA : MUSP + 1]])
    mixed = label.max((1, 3, 5)) > label.min((1, 3, 5))
    return np.stack([palette[label, c].mean((1, 3, 5)) for c in range(2)]), mixed


@pytest.mark.parametrize("exponent", [2, 2.5, 4])
def test_volume_converges_with_second_order(exponent):
    tables = bodies(24, exponent, (6, 20))
    volume = 8 * gamma(1 + 1 / exponent) ** 3 / gamma(1 + 3 / exponent) * tables[:, 0, AXES].prod(-1)
    if exponent == 2:
        np.testing.assert_allclose(volume, 4 / 3 * np.pi * tables[:, 0, AXES].prod(-1))
    errors = []
    for grid in (16, 32, 64):
        found = phantoms.rasterise(tables, grid)[:, 0].double().sum((1, 2, 3)).numpy() * (CUBE / grid) ** 3
        errors.append(np.abs(found / volume - 1))
        assert (errors[-1] < 0.1 * (CUBE / grid / tables[:, 0, AXES].min(-1)) ** 2).all()
    rms = [np.sqrt(np.mean(e**2)) for e in errors]
    assert np.log2(rms[0] / rms[2]) / 2 > 2, rms


@pytest.mark.parametrize("exponent", [2, 3])
def test_fractions_agree_with_supersampling(exponent):
    for rows in bodies(2, exponent, (5, 15), seed=1):
        (truth, _), mixed = supersampled(rows, 16)
        error = phantoms.rasterise(rows[None], 16)[0, 0].numpy() - truth
        hard = phantoms.hard(rows[None], 16)[0, 0].numpy() - truth
        assert np.abs(error).max() < 0.15  # a sixth of a voxel, at the sharpest ends
        assert np.abs(error[mixed]).mean() < min(0.05, 0.3 * np.abs(hard[mixed]).mean())


@pytest.mark.parametrize("grid", [16, 24])
@pytest.mark.parametrize("family", ["many", "superellipsoid"])
def test_mixture_agrees_with_supersampling(family, grid):
    rows = phantoms.sample(family, 1, 5)[0].astype(np.float64)
    truth, mixed = supersampled(rows, grid)
    scale = truth.max((1, 2, 3))
    found, hard = (f(rows[None], grid)[0].numpy() for f in (phantoms.rasterise, phantoms.hard))
    error = np.abs(found - truth)[:, mixed].mean(1) / scale
    assert (error < 0.015).all() and (5 * error < np.abs(hard - truth)[:, mixed].mean(1) / scale).all()
    np.testing.assert_allclose(found.sum((1, 2, 3)), truth.sum((1, 2, 3)), rtol=5e-3 * (24 / grid) ** 2)
    assert (np.abs(found - truth).max((1, 2, 3)) < 0.15 * scale).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_values_lie_between_air_and_the_largest_region(family):
    tables = phantoms.sample(family, 3, 2)
    for grid in (16, 32):
        volumes = phantoms.rasterise(tables, grid)
        highest = torch.tensor(np.nanmax(tables[..., [MUA, MUSP]], 1))[..., None, None, None]
        assert (volumes >= 0).all() and (volumes <= highest * (1 + 1e-6)).all()
        assert (volumes.amax((2, 3, 4)) > 0.999 * torch.tensor(tables[:, 0, [MUA, MUSP]])).all()


@pytest.mark.parametrize("exponent", [2, 2.5, 4])
def test_fraction_is_one_at_a_voxel_on_the_centre(exponent):
    volume = phantoms.rasterise(table(((2, -2, 2), (9, 12, 15), UNTURNED, exponent, 1, 1)), 16)
    assert volume[0, 0, 8, 7, 8] == 1 and volume.isfinite().all()


def test_volume_in_half_precision_is_the_rounded_volume():
    tables = phantoms.sample("default", 2, 3)
    half = phantoms.rasterise(tables, 32, dtype=torch.float16)
    assert torch.equal(half, phantoms.rasterise(tables, 32).half())


@pytest.mark.parametrize(("axis", "dims"), [("x", (3, 4)), ("y", (4, 2)), ("z", (2, 3))])
def test_quarter_turn_is_the_turned_grid(axis, dims):
    tables = np.concatenate([phantoms.sample("default", 2, 1), phantoms.sample("superellipsoid", 1, 1)])
    turned = phantoms.rotate(tables, Rotation.from_euler(axis, 90, degrees=True))
    expected = torch.rot90(phantoms.rasterise(tables, 32), 1, dims)
    torch.testing.assert_close(phantoms.rasterise(turned, 32), expected, atol=2e-5, rtol=0)


def test_rotated_phantoms_are_the_resampled_volumes():
    tables = phantoms.sample("default", 2, 1)
    turns = Rotation.from_rotvec([[0.4, -0.7, 0.9], [-1.1, 0.3, 0.5]])
    for grid, bound in ((32, 0.06), (64, 0.04)):  # what cubic interpolation does to an edge
        before, after = (phantoms.rasterise(t, grid).numpy() for t in (tables, phantoms.rotate(tables, turns)))
        for p, turn in enumerate(turns.as_matrix()):
            offset = (np.eye(3) - turn.T) @ np.full(3, (grid - 1) / 2)
            resampled = np.stack([ndimage.affine_transform(v, turn.T, offset) for v in before[p]])
            error = np.square(resampled - after[p]).sum((1, 2, 3)) / np.square(after[p]).sum((1, 2, 3))
            assert (np.sqrt(error) < bound).all()


LAYERS = (
    ((0, 0, 0), 26, UNTURNED, 2, 0.005, 1.0),
    ((4, 0, 0), 8, UNTURNED, 2, 0.010, 2.0),
    ((10, 0, 0), 7, UNTURNED, 2, 0.015, 1.5),
    ((0, 24, 0), 8, UNTURNED, 2, 0.012, 2.4),
)


@pytest.mark.parametrize(
    ("x", "y", "label", "swapped"),
    [
        (-2.5, 0.5, 2, 3),
        (8.5, 0.5, 3, 3),  # in both: the later one
        (15.5, 0.5, 3, 2),
        (-15.5, 0.5, 1, 1),
        (0.5, 22.5, 4, 4),
        (0.5, 28.5, 0, 0),  # in the inclusion, outside the tissue
        (30.5, 0.5, 0, 0),
    ],
)
def test_later_inclusion_overwrites_and_tissue_clips(x, y, label, swapped):
    index = tuple(int(c + 32) for c in (x, y, 0.5))
    for order, expected in (((0, 1, 2, 3), label), ((0, 2, 1, 3), swapped)):
        rows = table(*(LAYERS[k] for k in order))
        assert phantoms.labels(rows, 64)[0][index] == expected
        values = LAYERS[order[expected - 1]][-2:] if expected else (0, 0)
        for volume in (phantoms.rasterise(rows, 64), phantoms.hard(rows, 64)):
            assert volume[0, :, *index].tolist() == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_and_hard_volumes_agree_with_brute_force(family):
    tables = phantoms.sample(family, 2, 7)
    labels, hard = phantoms.labels(tables, 32), phantoms.hard(tables, 32).numpy()
    assert labels.dtype == torch.uint8
    for p, rows in enumerate(tables):
        expected = brute_labels(rows.astype(np.float64), centres(32))
        assert (labels[p].numpy() != expected).sum() <= 1  # a voxel's centre on a surface, to rounding
        palette = np.concatenate([[[0, 0]], used(rows)[:, MUA : MUSP + 1]])
        np.testing.assert_array_equal(hard[p], np.moveaxis(palette[labels[p].numpy()], -1, 0).astype(hard.dtype))


def test_twin_without_inclusions_keeps_the_tissue():
    tables = phantoms.sample("many", 2, 1)
    twin = phantoms.without_inclusions(tables)
    np.testing.assert_array_equal(twin[:, 0], tables[:, 0])
    assert np.isnan(twin[:, 1:]).all() and np.isfinite(tables[:, 1]).all()
    assert torch.equal(phantoms.labels(twin, 32), (phantoms.labels(tables, 32) > 0).to(torch.uint8))
