"""Phantoms at any points: the rasteriser's volumes where nothing moves, the rotated table's where they are turned."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dotlib.config import Augmentation
from dotlib.data import augment, phantoms
from dotlib.data.bodies import Bodies

FAMILIES = ("default", "superellipsoid", "none", "many")


def centres(grid, n):
    """Voxel centres, (n, grid, grid, grid, 3) mm."""
    c = (torch.arange(grid) + 0.5) * phantoms.CUBE / grid - phantoms.CUBE / 2
    return torch.stack(torch.meshgrid(c, c, c, indexing="ij"), -1).expand(n, grid, grid, grid, 3)


def relative(a, b):
    """Largest difference over the largest value of each channel."""
    return ((a - b).abs().amax((0, 2, 3, 4)) / b.amax((0, 2, 3, 4))).max().item()


@pytest.mark.parametrize("grid", [16, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_bodies_at_voxel_centres_are_the_rasterised_volumes(family, grid):
    tables = phantoms.sample(family, 5, 3)
    found = Bodies.of(tables).at(centres(grid, 5), phantoms.CUBE / grid)
    assert relative(found, phantoms.rasterise(tables, grid)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_turned_phantoms_are_as_sharp_as_the_rasterised_turned_tables(family):
    """Where interpolation of volumes blurs them by more than the motion is worth."""
    tables = phantoms.sample(family, 4, 1)
    turn = augment.sample(Augmentation(elastic=0, noise=0), 4, (0, 7))
    expected = phantoms.rasterise(phantoms.rotate(tables, Rotation.from_euler("xyz", turn.rotation)), 32)
    volumes = phantoms.rasterise(tables, 32)
    exact, blurred = augment.apply(turn, volumes, Bodies.of(tables))[0], augment.apply(turn, volumes)[0]
    assert relative(exact, expected) < 1e-4 < 0.02 < relative(blurred, expected)


def test_elastic_phantoms_are_what_interpolation_of_finer_volumes_tends_to():
    tables = phantoms.sample("default", 3, 2)
    moved = augment.sample(Augmentation(noise=0), 3, (0, 1))
    coarse = augment.apply(moved, phantoms.rasterise(tables, 32), Bodies.of(tables))[0]
    errors = []
    for grid in (32, 64, 128):
        fine = augment.apply(moved, phantoms.rasterise(tables, grid))[0]
        means = torch.nn.functional.avg_pool3d(fine, grid // 32)
        errors.append(((means - coarse).square().mean() / coarse.square().mean()).sqrt().item())
    assert errors[0] > 2 * errors[1] and errors[1] > errors[2] and errors[2] < 0.02


def test_chosen_bodies_are_those_of_the_chosen_tables():
    tables = phantoms.sample("default", 6, 0)
    chosen = torch.tensor([4, 0, 3])
    at = centres(16, 3)
    assert torch.equal(Bodies.of(tables)[chosen].at(at, 4.0), Bodies.of(tables[chosen.numpy()]).at(at, 4.0))


def test_values_far_from_every_body_are_air_and_deep_inside_their_own():
    table = np.full((1, 6, 13), np.nan, np.float32)
    table[0, 0] = [0, 0, 0, 20, 20, 20, 0, 0, 0, 1, 2, 0.005, 1.0]
    table[0, 1] = [5, 0, 0, 6, 4, 5, 0, 0, 0, 1, 2, 0.015, 2.0]
    points = torch.tensor([[[31.0, 0, 0], [5, 0, 0], [-10, 0, 0], [0, 20, 0]]])
    found = Bodies.of(table).at(points, 2.0)[0]
    torch.testing.assert_close(found[:, :3], torch.tensor([[0, 0.015, 0.005], [0, 2.0, 1.0]]))
    torch.testing.assert_close(found[:, 3], torch.tensor([0.0025, 0.5]))  # half a voxel at the wall
