"""The sphere of a probe and its frame, on spheres and planes that are known and under motions of the file's axes."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dotlib.data import phantoms, placement, probe
from dotlib.data.phantoms import AXES, CENTRE, EXPONENT
from dotlib.data.placement import PlacementError
from dotlib.data.surface import Surface

CENTRES = [(0, 0, 0), (3.7, -8.1, 52.0), (-120.0, 64.0, 250.0)]
TURN = Rotation.from_euler("xyz", (1.1, -0.4, 2.3))


def patch(radius, centre=(0, 0, 0), number=30, reach=0.9, turn=None, seed=0):
    """Points (number, 3) on a sphere, within `reach` rad of the direction that `turn` gives +z."""
    rng = np.random.default_rng(seed)
    z, azimuth = rng.uniform(np.cos(reach), 1, number), rng.uniform(0, 2 * np.pi, number)
    across = np.sqrt(1 - z**2)
    points = radius * np.stack([across * np.cos(azimuth), across * np.sin(azimuth), z], 1)
    return (turn.apply(points) if turn else points) + np.array(centre)


def plane(bend=0.0, number=7, height=12.0, turn=None):
    """A square of points at z = height, sunk by bend r^2."""
    x, y = (v.ravel() for v in np.meshgrid(*[np.linspace(-20, 20, number)] * 2))
    points = np.stack([x, y, height - bend * (x**2 + y**2)], 1)
    return turn.apply(points) if turn else points


def placed(points, sources=12, **options):
    return placement.place(points[:sources], points[sources:], **options)


def optodes(found):
    return np.concatenate([found.sources, found.detectors])


def between(points):
    return np.linalg.norm(points[:, None] - points, axis=-1)


@pytest.mark.parametrize("centre", CENTRES)
@pytest.mark.parametrize(("radius", "number", "reach"), [(20.5, 30, 0.9), (28.9, 90, 0.6), (24.0, 4, 1.2)])
def test_sphere_through_points_of_a_sphere_is_that_sphere(centre, radius, number, reach):
    row = placement.sphere(patch(radius, centre, number, reach, TURN))
    np.testing.assert_allclose(row[CENTRE], centre, atol=1e-9)
    np.testing.assert_allclose(row[AXES], radius, atol=1e-9)
    assert row[EXPONENT] == 2


@pytest.mark.parametrize("turn", [TURN, TURN * Rotation.from_euler("x", np.pi)])
@pytest.mark.parametrize(("radius", "held"), [(12.0, 20.0), (60.0, 29.0), (2e4, 29.0)])
def test_sphere_that_the_cube_does_not_hold_is_the_nearest_that_it_does(radius, held, turn):
    """It touches the patch from the side of the curvature's centre, be that above or below."""
    points = patch(radius, np.array([5, 6, 7]) - turn.apply([0, 0, radius]), reach=min(0.9, 25 / radius), turn=turn)
    row = placement.sphere(points)
    np.testing.assert_allclose(row[AXES], held)
    outward = (points.mean(0) - row[CENTRE]) / np.linalg.norm(points.mean(0) - row[CENTRE])
    assert outward @ turn.apply([0, 0, 1]) > 0.99
    away = np.linalg.norm(points - row[CENTRE], axis=1) - held
    best = np.square(away).sum()
    for move in 0.05 * np.concatenate([np.eye(3), -np.eye(3)]):  # a minimum of the squares
        assert np.square(np.linalg.norm(points - row[CENTRE] - move, axis=1) - held).sum() > best


@pytest.mark.parametrize("turn", [None, TURN])
def test_flat_patch_gets_the_largest_sphere_below_it(turn):
    """On the normal through its middle; above and below are told apart by +z."""
    row = placement.sphere(plane(turn=turn))
    normal = np.array([0, 0, 1.0]) if turn is None else turn.apply([0, 0, 1])
    normal *= np.sign(normal[2])
    np.testing.assert_allclose(row[AXES], placement.RADII[1])
    middle = plane(turn=turn).mean(0) - row[CENTRE]
    np.testing.assert_allclose(middle / np.linalg.norm(middle), normal, atol=1e-5)
    assert 29 * np.cos(20 * np.sqrt(2) / 29) < np.linalg.norm(middle) < 29


@pytest.mark.parametrize("index", range(4))
def test_patch_of_an_ellipsoid_gets_a_sphere_within_the_radii(index):
    """Which no other radius in them, at its own best centre, would fit much better."""
    _, found = probe.draw(phantoms.sample("default", 1, 2, index)[0], 2, index)
    points = np.concatenate([found.sources, found.detectors]).astype("f8")
    row = placement.sphere(points)
    assert placement.RADII[0] <= row[AXES][0] <= placement.RADII[1] and (row[AXES] == row[AXES][0]).all()

    def rms(row):
        return np.sqrt(np.square(np.linalg.norm(points - row[CENTRE], axis=1) - row[AXES][0]).mean())

    others = [placement.sphere(points, radius) for radius in np.linspace(*placement.RADII, 10)]
    assert rms(row) < 1.02 * min(map(rms, others)) + 1e-9 and rms(row) < 1.5
    assert np.linalg.norm(optodes(placement.place(found.sources, found.detectors))[0]) == pytest.approx(row[AXES][0])


@pytest.mark.parametrize("radius", [21.0, 24.0, 28.0])
def test_radius_that_is_known_is_kept(radius):
    for points in (patch(radius + 0.7, CENTRES[1], turn=TURN), patch(radius) * (1, 1.1, 0.9), plane()):
        row = placement.sphere(points, radius)
        np.testing.assert_allclose(row[AXES], radius)
        found = placed(points, radius=radius) if np.ptp(points[:, 2]) else placed(points / 2, radius=radius)
        np.testing.assert_allclose(np.linalg.norm(optodes(found), axis=1), radius, atol=1e-6)
    assert placed(patch(25.0)).tissue[AXES][0] == pytest.approx(25) != radius


@pytest.mark.parametrize("points", [patch(25.0, CENTRES[1], turn=TURN), plane(bend=1 / 52, turn=TURN)])
def test_patch_is_centred_on_z_and_optodes_lie_on_the_sphere(points):
    found = placed(points)
    middle = found.turn.apply(points.mean(0) - found.origin)
    np.testing.assert_allclose(middle / np.linalg.norm(middle), (0, 0, 1), atol=1e-12)
    assert not found.tissue[CENTRE].any() and np.linalg.det(found.turn.as_matrix()) == pytest.approx(1)
    distance = Surface(found.tissue)(torch.as_tensor(optodes(found)))[0]
    assert distance.abs().max() < 1e-6
    assert (found.sources.shape, found.detectors.shape) == ((12, 3), (len(points) - 12, 3))
    moved = np.linalg.norm(found.turn.apply(points - found.origin) - optodes(found), axis=1)
    assert found.moved == pytest.approx(moved.max(), abs=1e-6)


def test_optodes_of_a_sphere_keep_their_distances():
    points = patch(25.0, CENTRES[2], turn=TURN)
    found = placed(points)
    np.testing.assert_allclose(between(optodes(found)), between(points), atol=1e-6)
    assert found.moved < 1e-6
    before, after = (np.linalg.det(p[:3]) for p in (points - found.origin, optodes(found)))
    assert after == pytest.approx(before) and abs(before) > 100  # and their handedness


@pytest.mark.parametrize("grid", [16, 32])
def test_affine_takes_voxels_back_to_the_file(grid):
    """The sphere's centre lies between the middle voxels; each optode comes back from its place among them."""
    points = patch(26.0, CENTRES[1], turn=TURN)
    found = placed(points)
    affine, voxel = found.affine(grid), 64 / grid
    np.testing.assert_allclose((affine @ [*[grid / 2 - 0.5] * 3, 1])[:3], CENTRES[1], atol=1e-9)
    index = (optodes(found) + 32) / voxel - 0.5
    np.testing.assert_allclose(index @ affine[:3, :3].T + affine[:3, 3], points, atol=1e-6)
    np.testing.assert_allclose(affine[:3, :3].T @ affine[:3, :3], voxel**2 * np.eye(3), atol=1e-9)
    assert affine[3].tolist() == [0, 0, 0, 1] and np.linalg.det(affine[:3, :3]) > 0


@pytest.mark.parametrize("angles", [(0.3, 0.2, -0.5), (np.pi, 0.1, 0), (1.5, -2.0, 0.7)])
def test_motion_of_the_file_leaves_the_reconstruction_but_for_roll(angles):
    """On a probe that no sphere fits exactly."""
    points = patch(26.0, number=40) + np.random.default_rng(1).normal(0, 0.2, (40, 3))
    motion, way = Rotation.from_euler("xyz", angles), np.array([31.0, -75.0, 8.0])
    a, b = placed(points), placed(motion.apply(points) + way)
    np.testing.assert_allclose(b.tissue, a.tissue, atol=1e-9)
    np.testing.assert_allclose(b.origin, motion.apply(a.origin) + way, atol=1e-9)
    assert b.moved == pytest.approx(a.moved)
    p, q = optodes(a), optodes(b)
    np.testing.assert_allclose(q[:, 2], p[:, 2], atol=1e-6)
    roll = (q[:, 0] + 1j * q[:, 1]) / (p[:, 0] + 1j * p[:, 1])
    np.testing.assert_allclose(roll, roll[0], atol=1e-6)
    assert abs(roll[0]) == pytest.approx(1)
    whole = (b.turn * motion * a.turn.inv()).as_matrix()
    np.testing.assert_allclose(whole[2], (0, 0, 1), atol=1e-9)


@pytest.mark.parametrize(("which", "name"), [(4, "source 4"), (12, "detector 0"), (29, "detector 17")])
def test_optode_off_the_sphere_is_named(which, name):
    points = patch(25.0, CENTRES[1], number=60, turn=TURN)
    points[which] += 10 * (points[which] - CENTRES[1]) / 25
    with pytest.raises(PlacementError, match=rf"^{name} lies \d+\.\d mm from the sphere of .*5 mm at most") as error:
        placed(points)
    assert "\n" not in str(error.value)
    points[which] -= 8 * (points[which] - CENTRES[1]) / 35
    assert 1 < placed(points).moved < 5


@pytest.mark.parametrize("spoil", [lambda p: p[:3], lambda p: np.where(p == p[5, 1], np.nan, p), lambda p: p[:0]])
def test_too_few_points_are_one_line(spoil):
    points = spoil(patch(25.0))
    with pytest.raises(PlacementError, match=rf"^sphere: {len(points)} optodes; 4 with finite positions") as error:
        placed(points, sources=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("radius", [19.9, 35.0, -1.0])
def test_radius_that_the_cube_does_not_hold_is_refused(radius):
    points = 25 * np.eye(3)[[0, 1, 2, 0]] * np.array([[1], [1], [1], [-1]])
    with pytest.raises(placement.PlacementError, match=rf"^sphere: radius {radius:g} mm; 20 to 29 mm are accepted$"):
        placement.sphere(points, radius)


def test_sphere_is_found_metres_from_the_origin():
    """Of a shallow patch too, which must not pass for a plane."""
    angle = np.linspace(0, 6, 40)
    shallow = np.stack([np.cos(angle) * 0.1, np.sin(angle) * 0.1, np.full(40, -1.0)], -1) * np.linspace(0.2, 1, 40)[
        :, None
    ] ** [[1, 1, 0]]
    shallow /= np.linalg.norm(shallow, axis=1, keepdims=True)
    far = np.array([4000.0, -3000.0, 5000.0])
    found = placement.sphere(25 * shallow + far)
    np.testing.assert_allclose(found[:3], far, atol=1e-3)


def test_sphere_in_the_frame_of_a_cube_stays_in_it():
    """A flat patch, whose own sphere would reach beyond the wall on the other side; it stays near the patch."""
    grid = np.stack(np.meshgrid(np.linspace(-20, 20, 9), np.linspace(-20, 20, 9)), -1).reshape(-1, 2)
    flat = np.column_stack([grid, 23 - (grid**2).sum(1) / 70])
    free, held = placement.sphere(flat), placement.inside(flat)
    assert abs(free[2]) + free[3] > 32 > np.abs(held[:3]).max() + held[3]
    off = np.abs(np.linalg.norm(flat - held[:3], axis=1) - held[3])
    assert held[3] < free[3] == 29 and off.max() < 5


def test_sphere_that_the_cube_holds_is_the_nearest_one():
    rng = np.random.default_rng(2)
    points = rng.standard_normal((40, 3))
    points = 27 * points / np.linalg.norm(points, axis=1, keepdims=True) + [0.5, -1, 2]
    np.testing.assert_allclose(placement.inside(points), placement.sphere(points))


def test_probe_that_no_sphere_in_the_cube_fits_is_refused():
    rng = np.random.default_rng(2)
    points = 24 * np.eye(3)[rng.integers(3, size=40)] * rng.choice([-1, 1], (40, 1)) + [0, 0, 40]
    with pytest.raises(PlacementError, match="within a cube of 64 mm"):
        placement.inside(points + rng.normal(0, 0.1, points.shape))
