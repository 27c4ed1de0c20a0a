"""Cut cells and surfaces against closed forms and brute force."""

import math

import numpy as np
import pytest
import torch
from scene import patch, tissue
from scipy.spatial.transform import Rotation

from dotlib.data import phantoms
from dotlib.data.surface import Surface
from dotlib.physics import geometry

TILT = Rotation.from_euler("xyz", (0.3, -0.7, 1.1))
BODIES = {
    "ellipsoid": tissue((25.2, 27.1, 29.7), (0.31, -0.17, 0.44), TILT),
    "superellipsoid": tissue((20.5, 22.1, 23.7), (0.31, -0.17, 0.44), TILT, 3.3),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("offset", [-3.0, -1.0, 0.0, 1.0, 3.0])
def test_distance_of_points_moved_along_the_normal(name, offset):
    surface = Surface(BODIES[name])
    points = torch.as_tensor(patch(BODIES[name], 500, 0, 100.0))
    _, normal = surface(points)
    distance, again = surface(points + offset * normal)
    np.testing.assert_allclose(distance, offset, atol=1e-7)
    np.testing.assert_allclose(again, normal, atol=1e-5)


@pytest.mark.parametrize("name", BODIES)
def test_distance_is_that_of_the_nearest_surface_point(name):
    surface = Surface(BODIES[name])
    cloud = surface.along(np.random.default_rng(0).standard_normal((200_000, 3)))
    points = np.random.default_rng(1).standard_normal((40, 3))
    points = surface.along(points) + np.random.default_rng(2).uniform(-4, 4, (40, 3))
    nearest = np.array([np.linalg.norm(cloud - p, axis=1).min() for p in points])
    distance, _ = surface(torch.as_tensor(points))
    distance = np.abs(distance.numpy())
    assert (distance <= nearest + 1e-9).all() and (nearest < np.hypot(distance, 0.4)).all()  # the cloud's gaps, mm


def test_estimate_beyond_near_has_the_right_sign():
    surface = Surface(BODIES["superellipsoid"])
    points = torch.as_tensor(np.random.default_rng(0).uniform(-32, 32, (5000, 3)))
    exact, estimate = surface(points)[0], surface(points, 0.0)[0]
    clear = exact.abs() > 0.5
    assert (exact[clear].sign() == estimate[clear].sign()).all()


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("grid", [16, 32])
def test_volume_fractions_agree_with_supersampling(name, grid):
    fine, h = 16, 64 / grid
    cells = geometry.cut(Surface(BODIES[name]), grid, h)
    mixed = ((cells.volume > 0.02) & (cells.volume < 0.98)).nonzero()[:, 0][::7]
    step = (torch.arange(fine).double() + 0.5) / fine - 0.5
    inside = torch.cartesian_prod(step, step, step) * h
    points = (cells.centre[mixed][:, None] + inside).flatten(0, 1)
    share = (Surface(BODIES[name])(points, 0.0)[0] < 0).double().view(len(mixed), -1).mean(1)
    np.testing.assert_allclose(cells.volume[mixed], share, atol=0.03 * h / 2 + 0.01)


@pytest.mark.parametrize("radius", [25.3, 29.1])
def test_volume_and_area_of_a_sphere_converge(radius):
    row, errors = tissue(radius, (0.21, -0.4, 0.33)), []
    for grid in (16, 32, 64):
        h = 64 / grid
        cells = geometry.cut(Surface(row), grid, h)
        volume = cells.volume.sum() * h**3 / (4 / 3 * math.pi * radius**3)
        assert cells.wall.sum() * h**2 == pytest.approx(4 * math.pi * radius**2, rel=1e-3)
        errors.append(abs(volume.item() - 1))
    assert errors[0] < 0.01 and errors[0] > 3 * errors[1] > 9 * errors[2]  # second order: fourfold


@pytest.mark.parametrize("name", BODIES)
def test_faces_are_shared_and_every_cell_is_closed(name):
    cells = geometry.cut(Surface(BODIES[name]), 32, 2.0)
    n = len(cells)
    for face in range(3):
        low, up = cells.neighbour[:, face], cells.neighbour[:, face + 3]
        own = (low < n).nonzero()[:, 0]
        assert (up[low[own]] == own).all()
        assert torch.equal(cells.aperture[own, face], cells.aperture[low[own], face + 3])
    assert (cells.aperture[cells.neighbour == n] == 0).all()
    whole = (cells.neighbour < n).all(1) & (cells.aperture == 1).all(1)
    assert (cells.wall[whole] == 0).all() and (cells.volume[whole] > 0.99).all()
    # the wall's vector is its area along the normal: flat to a few per cent within a cell
    cut = (cells.wall > 0.3).nonzero()[:, 0]
    vector = (cells.aperture[:, :3] - cells.aperture[:, 3:])[cut] * (cells.neighbour[cut] < n).all(1, keepdim=True)
    cosine = (vector * -cells.normal[cut]).sum(1) / vector.norm(dim=1).clamp_min(1e-9)
    assert cosine[(cells.neighbour[cut] < n).all(1)].abs().quantile(0.05) > 0.97


def test_medium_holds_tissue_values_where_cells_are():
    rows = phantoms.sample("many", 1, 3)[0]
    mua, musp = phantoms.medium(rows, 32)
    cells = geometry.cut(Surface(rows[0]), 32, 2.0)
    inner = cells.index[cells.volume > 1 - 1e-9]
    there = phantoms.rasterise(rows[None], 32)[0].flatten(1)[:, inner]
    whole = (
        phantoms.rasterise(phantoms.without_inclusions(rows[None]), 32)[0].flatten(1)[0, inner] > 0.999 * rows[0, 11]
    )
    np.testing.assert_allclose(mua.flatten()[inner][whole], there[0][whole], rtol=2e-3)
    assert (mua.flatten()[cells.index] >= 0.999 * rows[0, 11]).all()
    assert (musp.flatten()[cells.index] >= 0.999 * rows[0, 12]).all()


@pytest.mark.parametrize("row", [tissue(33.0), tissue(28.0, (5.0, 0, 0)), tissue(70.0), tissue(200.0)])
def test_tissue_that_touches_the_cube_is_one_line(row):
    with pytest.raises(ValueError, match=r"^geometry: the tissue touches the wall of the cube of 64 mm$"):
        geometry.cut(Surface(row), 32, 2.0)


@pytest.mark.parametrize("grid", [0, 4, 30, 36, 63, 65])
def test_grid_that_multigrid_cannot_halve_is_one_line(grid):
    with pytest.raises(ValueError, match=rf"^geometry: grid {grid}; one of 12, 16, .*64.* is accepted$"):
        geometry.cut(Surface(tissue(20.0)), grid, 1.0)
