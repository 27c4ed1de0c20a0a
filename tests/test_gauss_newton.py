"""Gauss-Newton against the same steps by dense matrices, finite differences of its objective, and known inclusions."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch
from ball import CUBE, VALUES, changed, properties, scene, voxels

from dotlib.config import Noise
from dotlib.data import noise
from dotlib.physics import diffusion, gauss_newton, homogeneous, jacobian, lift
from dotlib.physics.gauss_newton import BEND, RIDGE, Penalty
from dotlib.physics.lift import Prior

TUMOUR = ((2, 2, 18), 6, 1.3, 2.0)
MILD = ((2, 2, 18), 6, 1.3, 1.3)
PRIOR = Prior(length=4.0)  # whose covariance on 8 mm voxels can be inverted
GRID = 8


def prepared(*spheres, **options):
    """The ball at 16^3 and its fit."""
    place = scene(16, *spheres, **options)
    return place, homogeneous.fit([place])[0]


@pytest.fixture(scope="module")
def noisy():
    return prepared(TUMOUR, noise=1)


@pytest.fixture(scope="module")
def exact():
    return prepared(TUMOUR)


def covariance(prior, tissue, voxel):
    """Dense (2 V, 2 V), fp64."""
    places = np.argwhere(tissue.numpy()) * voxel
    square = ((places[:, None] - places) ** 2).sum(-1)
    a, b = prior.sd
    between = np.array([[a * a, prior.correlation * a * b], [prior.correlation * a * b, b * b]])
    return np.kron(between, np.exp(-square / (2 * prior.length**2)) + prior.constant**2)


class Dense:
    """The same objective, derivatives and steps by numpy, fields in double precision."""

    def __init__(self, place, fit, regularisation, prior, grid):
        self.place, self.values, self.regularisation, self.grid = place, fit.values, regularisation, grid
        self.voxel, self.tissue = lift.coarse(place.cells, grid), lift.occupied(place.cells, grid)
        self.C = covariance(prior, self.tissue, CUBE / grid)

    def light(self, x):
        """System, fields and readings of the medium of x (2 V,)."""
        volume = torch.zeros(2, self.grid**3, dtype=torch.float64)
        volume[:, self.tissue.flatten()] = torch.as_tensor(x).view(2, -1)
        system = self.place.system(self.values[:, None] * volume[:, self.voxel].exp())
        light = jacobian.fields(system, self.place.readings.sources, self.place.readings.detectors, True)
        s, d = self.place.readings.pairs.T
        return system, light, light.detectors.read(light.phi)[d, s]

    def left(self, x):
        r = self.place.readings
        return r.white(r.difference(self.light(x)[2])).numpy()

    def J(self, x):
        system, light, phi = self.light(x)
        J = jacobian.jacobian(system, light, self.place.readings.pairs, self.grid)[1][:, :, self.tissue]
        J = J / phi[:, None, None] * self.values[:, None] * torch.as_tensor(x).view(2, -1).exp()
        return self.place.readings.white(torch.cat([J.real, J.imag]).flatten(1)).numpy()

    def objective(self, x):
        return (self.left(x) ** 2).sum() + self.regularisation * x @ scipy.linalg.solve(self.C, x, assume_a="pos")

    def step(self, x):
        """The minimum of the objective with readings linearised at x."""
        J, C = self.J(x), self.C
        gram = J @ C @ J.T + self.regularisation * np.eye(len(J))
        return C @ J.T @ scipy.linalg.solve(gram, self.left(x) + J @ x, assume_a="pos")


def unknowns(solution, tissue):
    return solution.x[:, tissue].flatten().double().numpy()


def falls(values):
    return (np.diff(values) < 0).all()


@pytest.mark.parametrize("kind", ["gaussian", "tv"])
@pytest.mark.parametrize("regularisation", [1.0, 0.1])
def test_objective_and_misfit_fall_with_every_iteration(noisy, kind, regularisation):
    told = []
    found = gauss_newton.reconstruct(*noisy, regularisation, kind, grid=GRID, report=lambda *row: told.append(row))
    assert falls(found.objective) and falls(found.misfit) and len(found.misfit) > 2
    assert found.misfit[-1] < 0.4 * found.misfit[0]
    assert found.converged and found.objective[-1] > 0.98 * found.objective[-2]
    assert told == list(zip(range(len(told)), found.objective[1:], found.misfit[1:], strict=True))


def test_misfit_of_measured_readings_ends_at_about_one():
    """Noise of a recording, and a tumour that the homogeneous medium does not explain."""
    place = scene(16, TUMOUR)
    r = place.readings
    clean = torch.polar(r.log_amplitude.exp(), -r.phase).numpy()
    law = Noise(relative=0.02)
    log_amplitude, phase, sigma = noise.measure(clean, r.phase.numpy(), r.pairs.numpy(), law, np.random.default_rng(0))
    place = changed(
        place,
        **{k: torch.as_tensor(v) for k, v in {"log_amplitude": log_amplitude, "phase": phase, "sigma": sigma}.items()},
    )
    found = gauss_newton.reconstruct(place, homogeneous.fit([place])[0])
    assert found.misfit[0] > 1.2 and 0.6 < found.misfit[-1] < 1.2
    assert falls(found.objective) and max(np.diff(found.misfit)) < 1e-3 * found.misfit[0]


def test_misfit_of_exact_readings_vanishes_without_a_penalty(exact):
    found = gauss_newton.reconstruct(*exact, 1e-4)
    assert found.misfit[0] > 2 and found.misfit[-1] < 0.02


def test_reported_objective_is_that_of_dense_matrices(noisy):
    dense = Dense(*noisy, 0.5, PRIOR, GRID)
    found = gauss_newton.reconstruct(*noisy, 0.5, prior=PRIOR, grid=GRID)
    x = unknowns(found, dense.tissue)
    assert found.objective[-1] == pytest.approx(dense.objective(x), rel=1e-3)
    assert found.objective[0] == pytest.approx(dense.objective(0 * x), rel=1e-3)
    assert found.misfit[-1] == pytest.approx(np.sqrt((dense.left(x) ** 2).mean()), rel=1e-3)


def test_gaussian_iterations_are_steps_of_dense_matrices(noisy):
    dense = Dense(*noisy, 1.0, PRIOR, GRID)
    x = np.zeros(len(dense.C))
    for most in (1, 2):  # full steps
        x = dense.step(x)
        found = unknowns(gauss_newton.reconstruct(*noisy, 1.0, prior=PRIOR, grid=GRID, most=most), dense.tissue)
        assert np.abs(found - x).max() < 1e-3 * np.abs(x).max()


@pytest.mark.parametrize("kind", ["gaussian", "tv"])
def test_solution_is_where_the_objective_is_level(kind, monkeypatch):
    """By central differences along some directions, of readings solved anew: misfit and penalty pull alike."""
    monkeypatch.setattr(gauss_newton, "ENOUGH", 1e-7)
    place, fit = prepared(MILD, noise=1)
    found, dense = (
        gauss_newton.reconstruct(place, fit, 0.3, kind, PRIOR, GRID, most=60),
        Dense(place, fit, 0.3, PRIOR, GRID),
    )
    penalty = Penalty(kind, 0.3, PRIOR, dense.tissue, CUBE / GRID)

    def pull(x):
        if kind == "gaussian":
            return 0.3 * x @ scipy.linalg.solve(dense.C, x, assume_a="pos")
        return 0.3 * penalty.of(torch.as_tensor(x).view(2, -1), torch.zeros(2, 1))

    def slopes(function, x):
        return np.array([(function(x + 1e-4 * way) - function(x - 1e-4 * way)) / 2e-4 for way in ways])

    x, rng = unknowns(found, dense.tissue), np.random.default_rng(0)
    ways = [x, *(rng.standard_normal((3, len(x))) @ dense.C)]
    of_misfit, of_penalty = slopes(lambda x: (dense.left(x) ** 2).sum(), x), slopes(pull, x)
    assert (np.abs(of_penalty) > 0.5).all()
    assert (np.abs(of_misfit + of_penalty) < 0.02 * np.abs(of_penalty)).all()


@pytest.fixture(scope="module")
def recovered(noisy):
    place, fit = noisy
    solution = gauss_newton.reconstruct(place, fit, 0.1)
    x = lift.solve(lift.linearise(place, fit), Prior(), (0.1,))[0]
    return place, fit, solution, lift.tikhonov(x, fit.values)


def test_tumour_is_recovered_better_than_by_one_step(recovered):
    """A scatterer, far from linear: root mean square error in the tissue within two radii of it."""
    place, fit, solution, tikhonov = recovered
    truth = properties(16, (TUMOUR,))
    near = ((voxels(16) - torch.tensor(TUMOUR[0])).norm(dim=-1) < 12) & lift.occupied(place.cells, 16)

    def errors(volume):
        return ((volume - truth)[:, near].square().mean(1).sqrt() / torch.tensor(VALUES)).numpy()

    one, many, none = errors(tikhonov), errors(solution.volume()), errors(fit.values.view(2, 1, 1, 1))
    assert (many < 0.9 * one).all() and (many < 0.6 * none).all()


def test_tumour_is_recovered_where_it_is(recovered):
    _, _, solution, _ = recovered
    assert solution.x[1].max() > 0.2
    peak = voxels(16).reshape(-1, 3)[solution.x[1].argmax()]
    assert (peak - torch.tensor(TUMOUR[0])).abs().max() <= 4


def test_absorber_and_clearing_have_their_signs():
    for factor in (2.0, 0.5):
        place, fit = prepared(((2, 2, 18), 6, factor, 1.0))
        x = gauss_newton.reconstruct(place, fit, 0.3).x[0] * (1 if factor > 1 else -1)
        peak = voxels(16).reshape(-1, 3)[x.argmax()]
        assert (peak - torch.tensor((2, 2, 18))).abs().max() <= 4 and x.max() > 0.1


def test_volume_is_the_homogeneous_medium_times_the_exponential(recovered):
    _, fit, solution, _ = recovered
    for channel in range(2):
        expected = fit.values[channel].item() * np.exp(solution.x[channel].double().numpy())
        np.testing.assert_allclose(solution.volume()[channel], expected, rtol=1e-5)
    assert torch.equal(solution.values, fit.values)


def test_volumes_own_readings_are_what_the_misfit_says(noisy):
    """The reconstructed volume, put on the grid and solved like any medium."""
    place, fit = noisy
    found = gauss_newton.reconstruct(place, fit, grid=GRID)
    fine = found.volume().double()
    for axis in (1, 2, 3):
        fine = fine.repeat_interleave(16 // GRID, axis)
    r = place.readings
    probe = (v.numpy()[None] for v in (r.sources, r.detectors, r.pairs))
    there = diffusion.Medium(*fine, place.surface, place.cells.h)
    phi = diffusion.readings([there], *probe, r.frequency, precise=True)[0]
    left = r.white(r.difference(torch.as_tensor(phi)))
    assert left.square().mean().sqrt().item() == pytest.approx(found.misfit[-1], rel=1e-3)


def test_one_factor_on_all_readings_changes_nothing(noisy):
    place, _ = noisy
    louder = changed(place, log_amplitude=place.readings.log_amplitude + 4, phase=place.readings.phase - 2)
    a, b = (gauss_newton.reconstruct(one, homogeneous.fit([one])[0], grid=GRID).x for one in (place, louder))
    assert (a - b).abs().max() < 1e-4 * a.abs().max()


# a step that is too long, or that leads uphill
def bent(monkeypatch, factor):
    step = Penalty.step

    def longer(self, problem, x, offset):
        better, dual = step(self, problem, x, offset)
        return x + factor * (better - x), factor * dual  # from x = 0, whose dual is 0

    monkeypatch.setattr(Penalty, "step", longer)


def test_step_that_is_too_long_is_halved(noisy, monkeypatch):
    straight = gauss_newton.reconstruct(*noisy, prior=PRIOR, grid=GRID, most=1)
    bent(monkeypatch, 8)
    found = gauss_newton.reconstruct(*noisy, prior=PRIOR, grid=GRID, most=1)
    assert len(found.objective) == 2 and falls(found.objective)
    share = (found.x.norm() / straight.x.norm()).item()
    assert share == pytest.approx(8 * 0.5 ** round(np.log2(8 / share)), rel=1e-4)
    dense = Dense(*noisy, 1.0, PRIOR, GRID)
    x = unknowns(straight, dense.tissue)
    assert dense.objective(2 * share * x) > found.objective[0]  # twice the step would not have done
    assert found.objective[1] == pytest.approx(dense.objective(share * x), rel=1e-3)


def test_step_uphill_is_not_taken(noisy, monkeypatch):
    bent(monkeypatch, -1)
    found = gauss_newton.reconstruct(*noisy, prior=PRIOR, grid=GRID)
    assert found.converged and len(found.objective) == len(found.misfit) == 1
    assert not found.x.any()


# total variation
@pytest.fixture(scope="module")
def variation():
    """The penalty on an irregular part of 5^3 voxels, and a random x on it."""
    rng = torch.Generator().manual_seed(0)
    tissue = torch.rand(5, 5, 5, generator=rng) < 0.6
    x = 0.2 * torch.randn(2, int(tissue.sum()), generator=rng).double()
    return Penalty("tv", 1.0, Prior(), tissue, 4.0), x


def test_total_variation_is_the_sum_over_faces(variation):
    """Written voxel by voxel: the size of each jump in the metric of the channels' covariance, smoothed."""
    penalty, x = variation
    a, b = penalty.prior.sd
    between = np.array([[a * a, 0.8 * a * b], [0.8 * a * b, b * b]])
    metric, places = np.linalg.inv(between), [tuple(p) for p in np.argwhere(penalty.tissue.numpy())]
    of = dict(zip(places, x.T.numpy(), strict=True))
    total = sum(RIDGE * v @ metric @ v for v in of.values())
    for place, value in of.items():
        for step in np.eye(3, dtype=int):
            if (after := tuple(place + step)) in of:
                jump = of[after] - value
                total += 2 * (np.sqrt(jump @ metric @ jump + BEND**2) - BEND)
    assert penalty.of(x, torch.zeros_like(x)) == pytest.approx(total, rel=1e-6)


def test_lagged_matrix_is_half_the_gradient_of_total_variation(variation):
    penalty, x = variation
    gradient, none = torch.empty_like(x), torch.zeros_like(x)
    for place in np.ndindex(*x.shape):
        move = torch.zeros_like(x)
        move[place] = 1e-5
        gradient[place] = (penalty.of(x + move, none) - penalty.of(x - move, none)) / 2e-5
    half = penalty._laplacian(x) @ x.flatten()
    np.testing.assert_allclose(2 * half, gradient.flatten(), atol=1e-5 * gradient.abs().max())


def test_step_of_total_variation_is_that_of_dense_matrices(variation):
    """The minimum of |J x - y - J x0|^2 + x^T L x by its normal equations, stacked and solved by least squares."""
    penalty, x = variation
    rng = np.random.default_rng(1)
    J, y = rng.standard_normal((40, 2, int(penalty.tissue.sum()))), rng.standard_normal(40)
    linear = lift.Linear(
        torch.as_tensor(J),
        torch.as_tensor(y),
        penalty.tissue * 1.0,
        penalty.tissue,
        torch.ones(2),
        4.0,
    )
    flat = linear.flat.numpy()
    offset = flat @ x.flatten().numpy()
    root = np.linalg.cholesky(0.3 * penalty._laplacian(x).numpy()).T
    stacked, right = np.concatenate([flat, root]), np.concatenate([y + offset, np.zeros(len(root))])
    best = np.linalg.lstsq(stacked, right, rcond=None)[0]
    weaker = dataclasses.replace(penalty, regularisation=0.3)
    found, _ = weaker.step(linear, x, torch.as_tensor(offset))
    np.testing.assert_allclose(found.flatten(), best, atol=1e-8)
