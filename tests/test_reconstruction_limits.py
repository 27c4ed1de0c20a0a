"""How sure of a contrast readings can make: by a dense posterior, estimates drawn at random, and simulated light."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ball import dense
from seen import BASE

from dotlib import metrics
from dotlib.data import lifts
from dotlib.physics import jacobian, lift
from dotlib.physics.lift import Linear, Prior
from dotlib.reconstruction_limits import NOISE, TISSUE, least_sd, limits
from dotlib.reconstruction_sets import HOME

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS, GRID, VOXEL = 60, 4, 3.0


@pytest.fixture(scope="module")
def problem():
    """Random readings of a cube without a corner."""
    chance = torch.Generator().manual_seed(5)
    tissue = torch.ones(GRID, GRID, GRID, dtype=torch.bool)
    tissue[0, 0, 0] = False
    J = torch.randn(ROWS, 2, int(tissue.sum()), generator=chance, dtype=torch.float64)
    nothing = torch.zeros(ROWS, dtype=torch.float64)
    return Linear(J, nothing, tissue.double(), tissue, torch.tensor([0.01, 1.0]), VOXEL)


@pytest.fixture(scope="module")
def shapes():
    """Two voxels, and one beside a half."""
    out = torch.zeros(2, GRID, GRID, GRID, dtype=torch.float64)
    out[0, 1, 1, 1:3] = 1
    out[1, 2, 3, 1], out[1, 2, 3, 2] = 1, 0.5
    return out


def test_sd_of_noise_is_that_of_the_best_estimate(problem, shapes):
    """Least squares of drawn readings, by numpy: 4,000 of them."""
    rng, bound = np.random.default_rng(0), least_sd(problem, shapes).numpy()
    for k, shape in enumerate(shapes):
        columns = (problem.J @ shape[problem.tissue]).numpy()
        drawn = columns @ np.array([0.3, 0.2]) + rng.standard_normal((4000, ROWS))
        found = np.linalg.lstsq(columns, drawn.T, rcond=None)[0][0]
        assert found.mean() == pytest.approx(0.3, abs=4 * bound[k] / np.sqrt(4000))
        assert found.std() == pytest.approx(bound[k], rel=0.05)


def test_sd_in_a_tissue_is_that_of_the_joint_posterior(problem, shapes):
    """Contrasts without a prior and every voxel with its own, together, in the space of the unknowns."""
    prior = Prior(length=3.0, sd=(0.2, 0.1), constant=0.3)
    C = dense(prior, problem.tissue, VOXEL)
    J = problem.flat.numpy()
    for shape, bound in zip(shapes, least_sd(problem, shapes, prior), strict=True):
        columns = (problem.J @ shape[problem.tissue]).numpy()
        every = np.hstack([columns, J])
        precision = every.T @ every
        precision[2:, 2:] += np.linalg.inv(C)
        assert bound.item() == pytest.approx(np.sqrt(np.linalg.inv(precision)[0, 0]), rel=1e-6)
    assert (least_sd(problem, shapes, prior) > least_sd(problem, shapes)).all()


def test_sd_of_noise_is_that_of_readings_that_are_solved_with_more_and_less_of_the_contrast(lit):
    """By central differences of the forward model over the inclusion's own cells, to numpy's inverse."""
    seen = lit[HOME]
    k = seen.regions.inclusions[0].flatten(1).sum(1).argmax().item()
    draws = lifts.Lifts(BASE, seen.view.lift, seen.data.path, seen.data.labels)
    index = int(np.flatnonzero(seen.data.labels == 2)[0])
    place = draws.scenes(index, 1, [0], "cpu")[0]
    fit, readings = lifts.fitted({0: place}, index)[0], place.readings
    inside = seen.regions.inclusions[0, k].flatten()[lift.coarse(place.cells, 16)].double()
    s, d = readings.pairs.T

    def solved(channel, change):
        values = fit.at[:, None].repeat(1, len(inside))
        values[channel] *= 1 + change * inside
        light = jacobian.fields_of([place.system(values)], [readings.sources], [readings.detectors])[0]
        phi = light.detectors.read(light.phi)[d, s].log()
        return torch.cat([phi.real, phi.imag])

    slopes = torch.stack([(solved(c, 0.01) - solved(c, -0.01)) / 0.02 for c in (0, 1)], 1)
    columns = replace(readings, model_error=0.0).white(slopes).numpy()
    rows = limits(seen, 7.5)
    found = rows[(rows["metric"] == NOISE) & (rows["phantom"] == 0) & (rows["inclusion"] == k)]["value"].item()
    true = metrics.contrast(seen.truth, seen.regions)[0, k, 0].abs().item()
    assert found * true == pytest.approx(np.sqrt(np.linalg.inv(columns.T @ columns)[0, 0]), rel=0.05)


def test_readings_tell_less_where_more_is_unknown(lit):
    """Each inclusion of simulated phantoms that is there has both numbers; one that is not has none."""
    seen = lit[HOME]
    rows = limits(seen, 7.5)
    noise, tissue = (
        rows[rows["metric"] == name].set_index(["phantom", "inclusion"])["value"] for name in (NOISE, TISSUE)
    )
    there = seen.regions.inclusions.flatten(2).any(-1).numpy()
    assert there.any() and not there.all()
    assert set(noise[noise.notna()].index) == set(zip(*np.nonzero(there), strict=True))
    assert ((noise > 0) & (noise < tissue))[noise.notna()].all() and (rows["channel"] == "mua").all()
