"""The regularised lift against dense matrices written entry by entry, symmetry, and places that are known."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch
from ball import CENTRE, RADIUS, ROW, VALUES, changed, dense, scene, voxels

from dotlib.config import CHANNELS
from dotlib.data.phantoms import CUBE
from dotlib.data.surface import Surface
from dotlib.physics import homogeneous, jacobian, lift
from dotlib.physics.homogeneous import Scene
from dotlib.physics.lift import Prior

TUMOUR = ((6, 2, 16), 6, 2.0, 1.3)
PRIOR, SHORT = Prior(), Prior(length=4.0)  # whose covariance can be inverted


def flat(x, tissue):
    """Values (..., 2, g, g, g) of the voxels that hold tissue, (..., 2 V), fp64."""
    return x[..., tissue].flatten(-2).double().numpy()


def lifted(place):
    """x of the whole chain: fit, Jacobian, solution."""
    return lift.solve(lift.linearise(place, homogeneous.fit([place])[0]), PRIOR)


def peak(x):
    """Where x (g, g, g) is largest, mm."""
    return voxels(len(x)).reshape(-1, 3)[x.argmax()]


@pytest.fixture(scope="module")
def problem():
    """Noisy readings of a tumour at 32^3, linearised on 16^3 voxels: the scene, the fit, the problem."""
    place = scene(32, TUMOUR, noise=0)
    fit = homogeneous.fit([place])[0]
    return place, fit, lift.linearise(place, fit)


@pytest.fixture(scope="module")
def tissue():
    """An irregular part of 6^3 voxels."""
    return torch.rand(6, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.4


@pytest.mark.parametrize("prior", [PRIOR, SHORT, Prior(9.0, (0.5, 0.1), -0.4, 0.0)])
@pytest.mark.parametrize("part", [(slice(None),) * 3, (slice(1, 5), slice(2, 4), slice(3, 6))])
def test_prior_is_the_covariance_entry_by_entry(tissue, prior, part):
    """Also where the tissue fills a part of the grid only, with sides that differ."""
    mine = torch.zeros_like(tissue)
    mine[part] = tissue[part]
    x = torch.randn(3, 2, int(mine.sum()), generator=torch.Generator().manual_seed(1)).double()
    found = prior.apply(x, mine, 4.0)
    assert found.shape == x.shape
    np.testing.assert_allclose(found.flatten(1), x.flatten(1).numpy() @ dense(prior, mine, 4.0), atol=1e-6)


def test_prior_is_symmetric_and_positive(tissue):
    """Over all columns of the identity."""
    size = 2 * int(tissue.sum())
    columns = PRIOR.apply(torch.eye(size).double().unflatten(1, (2, -1)), tissue, 4.0).flatten(1)
    np.testing.assert_allclose(columns, columns.T, atol=1e-12)
    sizes = torch.linalg.eigvalsh(columns)
    assert sizes.min() > 1e-9 and sizes.max() > 0.1


def test_solution_is_that_of_dense_matrices(problem):
    _, _, linear = problem
    J, y = linear.flat.double().numpy(), linear.left.double().numpy()
    C = dense(PRIOR, linear.tissue, linear.voxel)
    found = lift.solve(linear, PRIOR)
    assert found.shape[0] == len(lift.LAMBDAS)
    for x, regularisation in zip(found, lift.LAMBDAS, strict=True):
        exact = C @ J.T @ scipy.linalg.solve(J @ C @ J.T + regularisation * np.eye(len(y)), y, assume_a="pos")
        assert np.abs(flat(x, linear.tissue) - exact).max() < 1e-4 * np.abs(exact).max()
        assert not x[:, ~linear.tissue].any()


def test_solution_in_measurement_space_is_that_in_parameter_space(problem):
    """(J^T J + lambda C^-1)^-1 J^T y, on 8^3 voxels."""
    linear = lift.linearise(*problem[:2], grid=8)
    J, y = linear.flat.double().numpy(), linear.left.double().numpy()
    precision = scipy.linalg.inv(dense(SHORT, linear.tissue, linear.voxel))
    for x, regularisation in zip(lift.solve(linear, SHORT, (0.3, 5.0)), (0.3, 5.0), strict=True):
        exact = scipy.linalg.solve(J.T @ J + regularisation * precision, J.T @ y, assume_a="pos")
        assert np.abs(flat(x, linear.tissue) - exact).max() < 1e-4 * np.abs(exact).max()


def test_linearised_readings_are_whitened_derivatives_by_the_logarithms(problem):
    """In double precision and by numpy's least squares, with the fit's values as what x refers to."""
    place, fit, linear = problem
    light = jacobian.fields(fit.system, place.readings.sources, place.readings.detectors, True)
    phi, J = jacobian.jacobian(fit.system, light, place.readings.pairs, 16)
    by_log = (J / phi.view(-1, 1, 1, 1, 1) * fit.at.view(2, 1, 1, 1)).flatten(1).numpy()
    measured = torch.polar(place.readings.log_amplitude.exp(), -place.readings.phase)
    left = (measured / phi).log().numpy()
    step = (fit.values / fit.at).log().numpy()
    left = left - by_log.reshape(len(phi), 2, -1).sum(2) @ step
    weight = 1 / np.hypot(place.readings.sigma.T.numpy().ravel(), 0.03)
    rows = weight[:, None] * np.concatenate([np.c_[by_log, left].real, np.c_[by_log, left].imag])
    gains = weight[:, None] * np.kron(np.eye(2), np.ones((len(phi), 1)))
    exact = rows - gains @ np.linalg.lstsq(gains, rows, rcond=None)[0]
    J = lift.scattered(linear.J, linear.tissue).flatten(1).numpy()
    assert np.abs(J - exact[:, :-1]).max() < 1e-4 * np.abs(exact[:, :-1]).max()
    assert np.abs(linear.left.numpy() - exact[:, -1]).max() < 1e-3 * np.abs(exact[:, -1]).max()
    sensitivity = np.linalg.norm(rows[:, : 16**3], axis=0).reshape(16, 16, 16)  # gains are known to it
    assert np.abs(linear.sensitivity.numpy() - sensitivity).max() < 1e-4 * sensitivity.max()
    assert torch.equal(linear.values, fit.values) and linear.voxel == CUBE / 16


def test_jacobian_in_single_precision_is_that_in_double(problem):
    place, fit, _ = problem
    phi, single = jacobian.jacobian(fit.system, fit.light, place.readings.pairs, 16, dtype=torch.complex64)
    phi_double, double = jacobian.jacobian(fit.system, fit.light, place.readings.pairs, 16)
    assert single.dtype == torch.complex64 and double.dtype == torch.complex128
    assert torch.equal(phi, phi_double)
    error, size = ((v.abs().flatten(2).amax(2)) for v in (single - double, double))
    assert 0 < (error / size).max() < 1e-5


def test_tissue_is_every_voxel_that_the_ball_reaches():
    place = scene(32)
    occupied = lift.occupied(place.cells, 16)
    way = voxels(16) - torch.tensor(CENTRE).double()
    nearest = (way.abs() - 2).clamp_min(0).norm(dim=-1)  # of each voxel to the centre
    assert occupied[nearest < RADIUS - 1].all()
    assert not occupied[nearest > RADIUS].any()


@pytest.mark.parametrize("place", [(6, 2, 18), (-6, 6, 14), (-2, -6, 18), (10, -6, 14), (-10, -2, 14)])
def test_lift_of_a_small_absorber_peaks_where_it_is(place):
    """Within one voxel, whose width is 4 mm, along each axis."""
    x = lifted(scene(32, (place, 4, 1.5, 1.0)))
    assert (peak(x[0, 0]) - torch.tensor(place)).abs().max() <= 4
    assert x[0, 0].max() > 0.02 and x[0, 0].max() > -2 * x[0, 0].min()


def test_lift_of_a_small_scatterer_peaks_where_it_is():
    x = lifted(scene(32, ((6, 2, 18), 4, 1.0, 1.3)))
    assert (peak(x[0, 1]) - torch.tensor((6, 2, 18))).abs().max() <= 4


def test_lift_of_a_homogeneous_medium_is_flat():
    """Though the medium that was solved is not the fitted one: x refers to the fit's values."""
    place = scene(32, values=(0.0065, 1.05))
    fit = homogeneous.fit([place])[0]
    assert fit.step.abs().max() > 0.04
    assert lift.solve(lift.linearise(place, fit), PRIOR)[0].abs().max() < 0.003


def test_stronger_regularisation_is_a_smaller_lift_that_explains_less(problem):
    _, _, linear = problem
    found = lift.solve(linear, PRIOR, (0.1, 1.0, 16.0, 100.0))
    left = [(linear.left - linear.flat @ x[:, linear.tissue].flatten()).norm().item() for x in found]
    assert left == sorted(left) and left[-1] < linear.left.norm()
    sizes = found.flatten(1).norm(dim=1).tolist()
    assert sizes == sorted(sizes, reverse=True)


def test_order_of_the_pairs_does_not_count():
    place = scene(16, TUMOUR, noise=0)
    order = torch.randperm(len(place.readings.pairs), generator=torch.Generator().manual_seed(3))
    a, b = lifted(place), lifted(dataclasses.replace(place, readings=place.readings.take(order)))
    assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("gain", ["global", "optode", "known"])
def test_one_factor_on_all_readings_changes_the_volume_only_where_gains_are_known(gain):
    place = scene(16, TUMOUR, gain=gain, noise=0)
    size, turn = (0.3, 0.1) if gain == "known" else (-9.0, 2.6)
    louder = changed(place, log_amplitude=place.readings.log_amplitude + size, phase=place.readings.phase + turn)
    a, b = lifted(place), lifted(louder)
    change = (a - b).abs().max()
    assert change > 0.1 * a.abs().max() if gain == "known" else change < 1e-4 * a.abs().max()


def test_factors_of_each_optode_do_not_change_the_volume_where_each_has_a_gain():
    place = scene(16, TUMOUR, gain="optode", noise=0)
    s, d = place.readings.pairs.T
    drawn = torch.randn(4, 8, generator=torch.Generator().manual_seed(4)).double()
    moved = changed(
        place,
        log_amplitude=place.readings.log_amplitude + drawn[0, s] + drawn[1, d],
        phase=place.readings.phase + 0.3 * (drawn[2, s] + drawn[3, d]),
    )
    a, b = lifted(place), lifted(moved)
    assert (a - b).abs().max() < 1e-4 * a.abs().max()


# a quarter of a turn about z, half a turn about x, and the mirror of x: what becomes of points, and of volumes
@pytest.mark.parametrize(("matrix", "turn"), [
    ([[0, -1, 0], [1, 0, 0], [0, 0, 1]], lambda x: torch.rot90(x, 1, (-3, -2))),
    ([[1, 0, 0], [0, -1, 0], [0, 0, -1]], lambda x: x.flip(-2, -1)),
    ([[-1, 0, 0], [0, 1, 0], [0, 0, 1]], lambda x: x.flip(-3)),
])  # fmt: skip
def test_lift_turns_with_medium_and_optodes(matrix, turn):
    matrix, surface = torch.tensor(matrix, dtype=torch.float64), Surface(ROW)

    def turned(points, near):
        distance, normal = surface(points @ matrix, near)
        return distance, normal @ matrix.T

    r = scene(16, TUMOUR, noise=0).readings
    moved = dataclasses.replace(r, sources=r.sources @ matrix.T, detectors=r.detectors @ matrix.T)
    x, found = (lifted(Scene.of(s, one, 16, CUBE)) for s, one in ((surface, r), (turned, moved)))
    assert (found - turn(x)).abs().max() < 1e-3 * x.abs().max()
    assert (found - x).abs().max() > 0.5 * x.abs().max()


def test_coverage_falls_with_depth(problem):
    """Below the middle of the patch, from the second voxel under the surface."""
    _, _, linear = problem
    top = int(linear.tissue[8, 8].nonzero().max())
    below = linear.sensitivity[7:9, 7:9, : top - 1].mean((0, 1)).flip(0)
    below = below[below > 0]
    assert len(below) > 9 and (below.diff() < 0).all()
    assert below[5] < 0.2 * below[0]  # 20 mm deeper


def test_coverage_is_of_the_probe_not_of_the_data(problem):
    place, fit, linear = problem
    r = place.readings
    other = changed(place, log_amplitude=r.log_amplitude.flip(0), phase=r.phase + 1, gain="optode")
    found = lift.linearise(other, fit)
    assert torch.equal(found.sensitivity, linear.sensitivity)
    assert not torch.allclose(found.left, linear.left)
    noisier = lift.linearise(changed(place, sigma=3 * r.sigma + 0.05), fit)
    covered = linear.sensitivity > 0
    assert (noisier.sensitivity < linear.sensitivity)[covered].all()


def test_channels_are_in_the_order_of_their_names(problem):
    _, fit, linear = problem
    x = lift.solve(linear, PRIOR)
    found = dict(zip(CHANNELS, lift.channels(linear, x), strict=True))
    ones = linear.tissue.float()
    for row, regularisation in enumerate((1.0, 16.0)):
        [alone] = lift.solve(linear, PRIOR, (regularisation,))
        for channel, name in enumerate(("mua", "musp")):
            np.testing.assert_allclose(found[f"{name}, lambda {regularisation:g}"], alone[channel], atol=1e-6)
            assert torch.equal(found[f"{name}, lambda {regularisation:g}"], x[row, channel])
    np.testing.assert_allclose(found["coverage"], np.log(1 + 10 * linear.sensitivity.numpy()), atol=1e-6)
    assert torch.equal(found["tissue"], ones)
    for name, value in zip(("mua0", "musp0"), fit.values.tolist(), strict=True):
        np.testing.assert_allclose(found[name], value * ones, rtol=1e-6)


def test_tikhonov_of_no_change_is_the_homogeneous_medium():
    values = torch.tensor(VALUES, dtype=torch.float64)
    volume = lift.tikhonov(torch.zeros(2, 4, 4, 4), values)
    for channel, value in zip(volume, VALUES, strict=True):
        np.testing.assert_allclose(channel, value, rtol=1e-6)
    x = torch.zeros(2, 1, 1, 2)
    x[0, 0, 0], x[1, 0, 0] = torch.tensor([0.5, -1.5]), torch.tensor([-0.25, 0.1])
    found = lift.tikhonov(x, values).flatten().tolist()
    np.testing.assert_allclose(found, [1.5 * VALUES[0], 0, 0.75 * VALUES[1], 1.1 * VALUES[1]], rtol=1e-6)


def test_back_projection_is_its_formula(problem):
    _, _, linear = problem
    J = lift.scattered(linear.J, linear.tissue).double().numpy()
    y = linear.left.double().numpy()
    exact = np.einsum("mcxyz,m->cxyz", J, y) / (np.einsum("mcxyz,mcxyz->cxyz", J, J) + 1)
    assert np.abs(lift.back_projection(linear).numpy() - exact).max() < 1e-5 * np.abs(exact).max()
