"""The lift of a half-space against its closed form, finite differences, the finite volumes, and places known."""

import dataclasses

import numpy as np
import pytest
import torch
from ball import CENTRE, CUBE, ROW, SD, VALUES, changed, light, scene, voxels
from scene import FREQUENCY

from dotlib.data.surface import Surface
from dotlib.physics import closed_form, green, jacobian, lift
from dotlib.physics.homogeneous import FitError
from dotlib.physics.lift import Prior
from dotlib.physics.rytov import Readings, rows

TOP = 24.0  # mm, of the half-space


def plane(points, near):
    """A half-space's surface."""
    return points[:, 2] - TOP, torch.tensor([0.0, 0.0, 1.0], dtype=points.dtype).expand(len(points), 3)


def patch(mua, musp, gain="global"):
    """Readings of a half-space by its closed form: 3 sources and 4 detectors on its surface."""
    places = np.array([(-9, -4), (8, 3), (-3, 9), (3, -9), (12, -10), (-11, 7), (1, 1)], dtype=float)
    optodes = torch.as_tensor(np.c_[places, np.full(len(places), TOP)])
    sources, detectors = optodes[:3], optodes[3:]
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    separation = (sources[pairs[:, 0]] - detectors[pairs[:, 1]]).norm(dim=1).numpy()
    phi = torch.as_tensor(green.semi_infinite(separation, mua, musp, FREQUENCY))
    sigma = torch.full((len(pairs), 2), SD).double()
    return Readings(sources, detectors, pairs, phi.abs().log(), -phi.angle(), sigma, FREQUENCY, gain=gain), separation


def calibrated(*spheres):
    """The ball's readings by what it would have read without the spheres, as of a half-space of the same separations.

    So is a recording calibrated on a homogeneous phantom: what is left of the surface's shape is of second order.
    """
    place = scene(32, *spheres)
    r = place.readings
    s, d = r.pairs.T
    separation = (r.sources[s] - r.detectors[d]).norm(dim=1).numpy()
    half = torch.as_tensor(green.semi_infinite(separation, *VALUES, FREQUENCY))
    phi = light(32, spheres)[3] / light(32)[3] * half
    return changed(place, log_amplitude=phi.abs().log(), phase=-phi.angle()).readings


@pytest.mark.parametrize("gain", ["global", "optode", "known"])
@pytest.mark.parametrize("values", [(0.003, 1.3), (0.006, 0.9), (0.02, 0.6)])
def test_fit_of_a_half_spaces_readings_is_its_medium(values, gain):
    readings, _ = patch(*values, gain)
    if gain != "known":
        moved = {"log_amplitude": readings.log_amplitude + 8, "phase": readings.phase - 2}
        readings = dataclasses.replace(readings, **moved)
    found, phi = closed_form.fit(readings)
    np.testing.assert_allclose(found, values, rtol=1e-3)
    own, _ = patch(*found.tolist())
    np.testing.assert_allclose(phi, torch.polar(own.log_amplitude.exp(), -own.phase), rtol=1e-9)


@pytest.mark.parametrize("kind", ["shuffled", "reversed"])
def test_readings_of_no_half_space_are_one_line(kind):
    readings, _ = patch(0.006, 0.9)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    a, b = readings.log_amplitude, readings.phase
    a, b = (a[order], b[order]) if kind == "shuffled" else (-a, -b)
    with pytest.raises(FitError, match=r"^fit: object 0: the half-space still moves after 12 steps; .*\?$"):
        closed_form.fit(dataclasses.replace(readings, log_amplitude=a, phase=b))


@pytest.mark.parametrize("values", [(0.006, 0.9), (0.01, 1.0), (0.02, 0.8)])
def test_sum_of_the_derivatives_is_that_of_the_half_space(values):
    """By ln mua, over 2 mm voxels of a large part of it: beyond 12 mm to a tenth in ln A, to a hundredth in the phase.

    The image's boundary is not quite Robin's, and the source's own place does not follow the medium here.
    """
    readings, separation = patch(*values, "known")
    linear = closed_form.linearise(plane, readings, CUBE, 32)
    by_log = linear.J[:, 0].sum(1).view(2, -1).numpy() / readings.weight.view(2, -1).numpy()
    up, down = (green.semi_infinite(separation, values[0] * (1 + e), values[1], FREQUENCY) for e in (1e-4, -1e-4))
    exact = np.log(up / down) / 2e-4
    far = separation > 12
    assert far.sum() > 6
    np.testing.assert_allclose(by_log[0, far], exact.real[far], rtol=0.1)
    np.testing.assert_allclose(by_log[1, far], exact.imag[far], rtol=0.01)


def test_derivatives_are_those_of_pairs_of_point_sources():
    """Entry by entry, with the gradients by central differences: sources and images along each optode's own normal."""
    readings = dataclasses.replace(calibrated(((6, 2, 18), 4, 1.5, 1.0)), gain="known")
    linear = closed_form.linearise(Surface(ROW), readings, CUBE)
    values, phi = closed_form.fit(readings)
    mua, musp = values.tolist()
    D = 1 / (3 * (mua + musp))
    raised = 4 * green.boundary_parameter(readings.n) * D
    places = voxels(16).reshape(-1, 3).numpy()

    def fluence(at, point, depth):
        normal = point - CENTRE
        normal = normal / np.linalg.norm(normal)
        near, far = point - depth * normal, point + (depth + raised) * normal
        return sum(sign * green.infinite(np.linalg.norm(at - p, axis=-1), mua, musp, FREQUENCY)
                   for sign, p in ((1, near), (-1, far)))  # fmt: skip

    def gradient(at, *where):
        return np.stack([(fluence(at + e, *where) - fluence(at - e, *where)) / 2e-4 for e in 1e-4 * np.eye(3)], -1)

    for pair in (0, 17, 40):
        s, d = readings.pairs[pair].tolist()
        source, detector = (readings.sources[s].numpy(), 1 / musp), (readings.detectors[d].numpy(), 0.0)
        by_D = -(gradient(places, *source) * gradient(places, *detector)).sum(-1)
        by_musp = -3 * D**2 * by_D
        by_mua = by_musp - fluence(places, *source) * fluence(places, *detector)
        exact = np.stack([mua * by_mua, musp * by_musp]) * 4**3 / phi[pair].numpy()
        far = min_distance(places, source[0], detector[0]) > 8  # nearer the point sources are blunted
        found = linear.J.unflatten(0, (2, -1))[:, pair] / readings.weight.view(2, -1)[:, pair, None, None]
        tissue = linear.tissue.flatten().numpy()
        for row, part in zip(found.numpy()[:, :, far[tissue]], (exact.real, exact.imag), strict=True):
            mine = part[:, tissue & far]
            np.testing.assert_allclose(row, mine, atol=1e-4 * np.abs(mine).max())


def min_distance(places, *points):
    return np.min([np.linalg.norm(places - p, axis=1) for p in points], 0)


@pytest.mark.parametrize(("channel", "median"), [(0, 0.9), (1, 0.7)])
def test_derivatives_resemble_those_of_the_finite_volumes(channel, median):
    """Over the voxels between the optodes and below, for each pair: what is left is the surface's shape."""
    place = scene(32, gain="known")
    readings = calibrated()
    linear = closed_form.linearise(place.surface, dataclasses.replace(readings, gain="known"), CUBE)
    light = jacobian.fields(place.system(linear.values), place.readings.sources, place.readings.detectors)
    phi, J = jacobian.jacobian(light.system, light, place.readings.pairs, 16)
    both = linear.tissue & lift.occupied(place.cells, 16)
    theirs = rows(J, phi)[:, channel, both].numpy()
    ours = linear.J[:, channel, both[linear.tissue]].numpy()
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)]
    assert np.median(alike) > median


def test_tissue_is_every_voxel_whose_centre_is_less_than_half_a_voxel_outside():
    linear = closed_form.linearise(Surface(ROW), calibrated(), CUBE)
    distance = (voxels(16) - torch.tensor(CENTRE).double()).norm(dim=-1) - ROW[3]
    assert torch.equal(linear.tissue, distance < 2)
    assert linear.J.shape == (2 * len(calibrated().pairs), 2, int(linear.tissue.sum()))


@pytest.mark.parametrize("place", [(6, 2, 18), (-6, 6, 14), (-2, -6, 18), (10, -6, 14)])
def test_lift_of_a_small_absorber_peaks_within_8_mm(place):
    linear = closed_form.linearise(Surface(ROW), calibrated((place, 4, 1.5, 1.0)), CUBE)
    np.testing.assert_allclose(linear.values, VALUES, rtol=0.05)
    x = lift.solve(linear, Prior())[0, 0]
    peak = voxels(16).reshape(-1, 3)[x.argmax()]
    assert (peak - torch.tensor(place)).norm() <= 8 and x.max() > 0.01


def test_lift_of_a_half_spaces_own_readings_is_flat():
    x = lift.solve(closed_form.linearise(Surface(ROW), calibrated(), CUBE), Prior())
    assert x.abs().max() < 1e-4


def test_one_factor_on_all_readings_changes_nothing():
    readings = calibrated(((6, 2, 18), 4, 1.5, 1.0))
    louder = dataclasses.replace(readings, log_amplitude=readings.log_amplitude - 5, phase=readings.phase + 2.8)
    a, b = (lift.solve(closed_form.linearise(Surface(ROW), one, CUBE), Prior()) for one in (readings, louder))
    assert (a - b).abs().max() < 1e-4 * a.abs().max()
