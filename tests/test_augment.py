"""Augmentation against rotated tables, rot90, roll, scipy's splines and interpolation, and the laws of its draws."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation

from dotlib import trainer
from dotlib.config import Augmentation
from dotlib.data import augment, noise, phantoms, probe, split
from dotlib.data.augment import Deformation
from dotlib.data.phantoms import CUBE
from dotlib.metrics import RANGES

DEFAULT = Augmentation()
EXTREME = Augmentation(rotation=45, elastic=4)


def deformation(rotation=(0, 0, 0), displacement=0.0, noise=0.0, n=1, points=5):
    """`n` equal samples: degrees about each axis; a displacement in mm that broadcasts to the control points."""
    turn = np.broadcast_to(np.deg2rad(rotation), (n, 3)).astype(float)
    moved = np.broadcast_to(displacement, (n, 3, points, points, points)).astype(float)
    return Deformation(turn, moved, noise, tuple(range(n)))


def anything(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def matrix(degrees):
    """First about x, then y, then z, each written out."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ y @ x


def positions(field):
    """A field as mm from the cube's centre, (B, 3, D, H, W) in the order D, H, W."""
    return field.movedim(-1, 1).flip(1).double().numpy() * CUBE / 2


def places(grid):
    """Voxel centres, mm from the cube's centre, (3, D, H, W)."""
    return (np.indices((grid,) * 3) + 0.5) / grid * CUBE - CUBE / 2


def same(some, others):
    return all(torch.equal(x, y) for x, y in zip(some, others, strict=True))


@pytest.mark.parametrize("degrees", [(5, -5, 5), (-30, 20, 45)])
def test_turned_volumes_are_those_of_the_rotated_tables(degrees):
    tables, errors = phantoms.sample("default", 4, seed=0), []
    turned = phantoms.rotate(tables, Rotation.from_matrix(matrix(degrees)))
    for grid in (16, 32, 64):
        before, after = phantoms.rasterise(tables, grid), phantoms.rasterise(turned, grid)
        _, found = augment.apply(deformation(degrees, n=4), before)
        errors.append(float((found - after)[:, 0].norm() / after[:, 0].norm()))
    unturned = float((before - after)[:, 0].norm() / after[:, 0].norm())
    # interpolation smears edges over a voxel, whose share of the volume, and so the squared error, halves with it
    np.testing.assert_allclose(np.divide(errors[1:], errors[:-1]), 0.5**0.5, rtol=0.1)
    assert errors[2] < 0.055 and errors[2] < 0.25 * unturned


@pytest.mark.parametrize(
    ("degrees", "planes"),
    [
        ((90, 0, 0), [(3, 4)]),
        ((0, 90, 0), [(4, 2)]),
        ((0, 0, 90), [(2, 3)]),
        ((0, 0, -90), [(3, 2)]),
        ((90, 90, 0), [(3, 4), (4, 2)]),
        ((90, 0, 90), [(3, 4), (2, 3)]),
        ((180, 90, 90), [(3, 4), (3, 4), (4, 2), (2, 3)]),
    ],
)
@pytest.mark.parametrize("grid", [16, 32])
def test_quarter_turns_permute_voxels(degrees, planes, grid):
    volumes = expected = anything(2, 2, grid, grid, grid)
    for plane in planes:
        expected = torch.rot90(expected, 1, plane)
    field = augment.field(deformation(degrees, n=2), grid)
    torch.testing.assert_close(augment.warp(volumes, field, "bilinear"), expected, rtol=0, atol=1e-5)
    labels, turned = ((x[:, 0] * 250).to(torch.uint8) for x in (volumes, expected))
    assert torch.equal(augment.warp(labels, field, "nearest"), turned)


def test_constant_displacement_is_a_shift():
    volumes, shift = anything(1, 2, 16, 16, 16), (3, -2, 1)  # voxels of 4 mm
    _, found = augment.apply(deformation(displacement=4.0 * np.reshape(shift, (3, 1, 1, 1))), volumes)
    expected = torch.roll(volumes, [-s for s in shift], (2, 3, 4))
    expected[:, :, -3:] = expected[:, :, :, :2] = expected[..., -1:] = 0  # air comes in
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("grid", "points"), [(16, 2), (32, 5), (16, 9)])
def test_field_is_the_spline_of_scipy_turned_back(grid, points):
    rng, degrees = np.random.default_rng(0), (20, -35, 10)
    control = rng.normal(size=(1, 3, points, points, points))
    place = (places(grid) + CUBE / 2) / CUBE * (points - 1)
    u = [ndimage.map_coordinates(c, place, order=3, prefilter=False, mode="nearest") for c in control[0]]
    expected = np.einsum("ji,jdhw->idhw", matrix(degrees), places(grid) + u)
    found = positions(augment.field(deformation(degrees, control, points=points), grid))[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_warp_is_the_interpolation_of_scipy():
    grid, rng = 16, np.random.default_rng(1)
    volumes, wide = anything(2, 2, grid, grid, grid), rng.uniform(-1.3, 1.3, (2, grid, grid, grid, 3))
    field = torch.tensor(wide, dtype=torch.float32)
    labels = torch.from_numpy(rng.integers(0, 7, (2, grid, grid, grid)).astype(np.uint8))
    index = (positions(field) + CUBE / 2) / CUBE * grid - 0.5
    bilinear, nearest = augment.warp(volumes, field, "bilinear"), augment.warp(labels, field, "nearest")
    for b in range(2):
        for c in range(2):
            expected = ndimage.map_coordinates(volumes[b, c].double().numpy(), index[b], order=1, mode="grid-constant")
            np.testing.assert_allclose(bilinear[b, c], expected, rtol=0, atol=1e-5)
        expected = ndimage.map_coordinates(labels[b].numpy(), index[b], order=0, mode="grid-constant")
        np.testing.assert_array_equal(nearest[b], expected)
    assert nearest.dtype == torch.uint8


def test_warp_is_fp32_under_autocast():
    d = augment.sample(DEFAULT, 2, [0])
    half = anything(2, 2, 16, 16, 16).half()
    expected = augment.apply(d, half.float())
    warped = augment.warp(half, augment.field(d, 16), "bilinear")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = augment.apply(d, half)
    assert found[0].dtype == torch.float32 and same(found, expected) and torch.equal(warped, expected[1])


def test_labels_follow_the_volumes():
    tables, grid = phantoms.sample("single", 4, seed=3), 64
    labels, field = phantoms.labels(tables, grid), augment.field(augment.sample(EXTREME, 4, [1]), grid)
    found = augment.warp(labels, field, "nearest")
    assert set(found.unique().tolist()) == {0, 1, 2}
    body = (labels[:, None] == torch.tensor([1, 2]).view(2, 1, 1, 1)).float()
    fractions = augment.warp(body, field, "bilinear")
    for b in range(4):
        centroid, expected = (ndimage.center_of_mass(x.numpy()) for x in (found[b] == 2, fractions[b, 1]))
        assert np.abs(np.subtract(centroid, expected)).max() < 0.1  # voxels
        assert np.abs(np.subtract(centroid, ndimage.center_of_mass(body[b, 1].numpy()))).max() > 2
    clear = (fractions > 0.95).any(1)  # away from edges the two cannot differ
    assert torch.equal(found[clear], 1 + fractions.argmax(1)[clear].to(torch.uint8))


def test_draws_replay_and_split():
    volumes = anything(7, 2, 16, 16, 16)
    d, again, other = (augment.sample(DEFAULT, 7, seed) for seed in ([5, 0, 2], [5, 0, 2], [5, 0, 3]))
    whole = augment.apply(d, volumes)
    assert same(whole, augment.apply(d, volumes)) and same(whole, augment.apply(again, volumes))
    assert not (other.rotation == d.rotation).any() and not set(other.noise_seeds) & set(d.noise_seeds)
    for width in (1, 2, 4):
        parts = [augment.apply(d[i : i + width], volumes[i : i + width]) for i in range(0, 7, width)]
        assert same(whole, (torch.cat(x) for x in zip(*parts, strict=True)))


def test_draws_need_no_global_state():
    d = augment.sample(DEFAULT, 2, [1])
    torch.manual_seed(0)
    before = augment.apply(d, anything(2, 2, 16, 16, 16))
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert same(before, augment.apply(d, anything(2, 2, 16, 16, 16)))
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())


def test_no_option_shifts_the_draws_of_another():
    d = augment.sample(DEFAULT, 3, [0])
    changed = augment.sample(Augmentation(rotation=10, elastic=0, noise=0), 3, [0])
    np.testing.assert_allclose(changed.rotation, 2 * d.rotation)
    assert changed.noise_seeds == d.noise_seeds and not changed.displacement.any()


def test_stream_is_its_own():
    assert augment.STREAM not in {module.STREAM for module in (phantoms, split, trainer, probe, noise)}


def test_angles_are_uniform_and_displacements_normal_to_two_sd():
    d = augment.sample(DEFAULT, 2000, [0])
    assert stats.kstest(np.rad2deg(d.rotation).ravel(), "uniform", (-5, 10)).pvalue > 0.01
    assert d.displacement.shape == (2000, 3, 5, 5, 5)
    u = d.displacement.ravel()
    middle = u[np.abs(u) < 2]
    assert np.abs(u).max() == 2 and stats.kstest(middle, stats.truncnorm(-2, 2).cdf).pvalue > 0.01
    tail = 2 * stats.norm.sf(2)
    assert 1 - len(middle) / len(u) == pytest.approx(tail, abs=4 * np.sqrt(tail / len(u)))
    assert np.abs(augment.sample(EXTREME, 50, [0]).displacement).max() == pytest.approx(16 / 2.48)  # not 2 sd = 8 mm
    # at the cube's centre, a control point, the spline weighs (1, 4, 1) / 6 along each axis
    field = augment.field(deformation(displacement=d.displacement, n=2000), 1)
    weights = np.array([1, 4, 1]) / 6
    assert positions(field).std() == pytest.approx(u.std() * (weights**2).sum() ** 1.5, rel=4 / np.sqrt(12_000))


def least_determinant(d, grid=32):
    """Of the map's finite differences over the cube."""
    x = augment.field(d, grid).double() * grid / 2
    corner = x[:, :-1, :-1, :-1]
    steps = (x[:, 1:, :-1, :-1], x[:, :-1, 1:, :-1], x[:, :-1, :-1, 1:])
    a, b, c = (step.flip(-1) - corner.flip(-1) for step in steps)
    return float((torch.linalg.cross(a, b) * c).sum(-1).min())


@pytest.mark.parametrize(("config", "n"), [(DEFAULT, 200), (EXTREME, 50), (Augmentation(elastic=4, spacing=8), 50)])
def test_no_map_folds(config, n):
    d = augment.sample(config, n, [0])
    least = min(least_determinant(d[i : i + 50]) for i in range(0, n, 50))
    assert least > (0.5 if config is DEFAULT else 0)


@pytest.mark.parametrize(("inverse", "folds"), [(augment.INJECTIVE, False), (2.4, True)])
def test_bound_is_where_the_worst_displacements_fold(inverse, folds):
    rng, least = np.random.default_rng(0), 1.0
    value = np.array([[1, -3, 3, -1], [4, 0, -6, 3], [1, 3, 3, -3], [0, 0, 0, 1]]) / 6  # of 1, t, t^2, t^3
    for t in rng.random((200, 3)):
        b, slope = (value @ np.array(x) for x in (t ** np.arange(4)[:, None], [0 * t, 1 + 0 * t, 2 * t, 3 * t**2]))
        axes = [[(slope if m == a else b)[:, m] for m in range(3)] for a in range(3)]
        gradient = np.stack([np.einsum("i,j,k->ijk", *axis).ravel() for axis in axes], -1)  # (64, 3)
        for _ in range(8):  # the determinant is linear in each component's displacements: minimise them in turn
            jacobian = np.eye(3) + rng.choice([-1, 1], (3, 64)) @ gradient / inverse
            for i in 4 * [0, 1, 2]:
                normal = np.cross(jacobian[i - 2], jacobian[i - 1])
                jacobian[i] = np.eye(3)[i] - np.sign(gradient @ normal) @ gradient / inverse
            least = min(least, np.linalg.det(jacobian))
    assert (least < 0) == folds


def test_noise_has_the_sd_of_each_channel():
    n, grid = 8, 32
    d = augment.sample(Augmentation(rotation=0, elastic=0, noise=0.02), n, [0])
    seen, truth = augment.apply(d, anything(n, 2, grid, grid, grid))
    error = (seen - truth).double() / 0.02 / torch.tensor(RANGES).double().view(2, 1, 1, 1)
    count = n * grid**3
    for channel in error.unbind(1):
        assert float(channel.std()) == pytest.approx(1, abs=4 / np.sqrt(2 * count) + 1e-4)  # and fp32's rounding
        assert float(channel.mean()) == pytest.approx(0, abs=4 / np.sqrt(count))
        assert stats.kstest(channel.flatten()[:50_000].numpy(), "norm").pvalue > 0.001
    alike = np.corrcoef(error.flatten(0, 1).flatten(1).numpy()) - np.eye(2 * n)
    assert np.abs(alike).max() < 5 / np.sqrt(grid**3)  # no two samples or channels share their noise


def test_default_noise_spares_the_absorption_of_tissue():
    lowest = phantoms.FAMILIES["default"].mua[0]
    assert DEFAULT.noise * RANGES[0] < 0.1 * lowest < 0.01  # while 0.01 mm^-1 would be more than three times it


def test_what_does_not_move_passes_bit_for_bit():
    volumes, clean = anything(3, 2, 16, 16, 16), Augmentation(rotation=0, elastic=0, noise=0)
    seen, truth = augment.apply(augment.sample(clean, 3, [0]), volumes)
    assert torch.equal(truth, volumes) and torch.equal(seen, truth)
    noisy = augment.sample(Augmentation(rotation=0, elastic=0), 3, [0])
    seen, truth = augment.apply(noisy, volumes)
    assert torch.equal(truth, volumes) and not (seen == truth).all()
    turn, volumes = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0, 0]]), anything(3, 2, 20, 20, 20)
    _, truth = augment.apply(Deformation(turn, noisy.displacement, 0.0, noisy.noise_seeds), volumes)
    assert same(truth[[0, 2]], volumes[[0, 2]]) and not torch.equal(truth[1], volumes[1])
    seen, truth = augment.apply(augment.sample(Augmentation(noise=0), 3, [0]), volumes)
    assert torch.equal(seen, truth)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: augment.apply(deformation(n=2), anything(1, 2, 8, 8, 8)), r"\(1, 2, 8, 8, 8\); accepted: \(2, 2"),
        (lambda: augment.apply(deformation(), anything(1, 1, 8, 8, 8)), r"\(1, 1, 8, 8, 8\); accepted"),
        (lambda: augment.apply(deformation(), anything(1, 2, 8, 8, 4)), r"\(1, 2, 8, 8, 4\); accepted"),
        (lambda: augment.warp(anything(1, 8, 8, 8), augment.field(deformation(), 4), "nearest"), r"field \(1, 4, 4"),
        (lambda: augment.warp(anything(1, 4, 4, 4), augment.field(deformation(), 4), "cubic"), "mode 'cubic'"),
        (lambda: augment.warp(anything(1, 4, 4, 4).int(), augment.field(deformation(), 4), "bilinear"), "torch.int32"),
    ],
)
def test_errors_say_what_is_accepted(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "accepted" in str(error.value) and "\n" not in str(error.value)
