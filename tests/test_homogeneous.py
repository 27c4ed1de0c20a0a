"""The homogeneous fit against the model's own media, the exact sphere, and readings that no tissue explains."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from ball import CENTRE, RADIUS, VALUES, changed, readings, scene
from scene import FREQUENCY

from dotlib import config
from dotlib.data import lifts, recording
from dotlib.physics import diffusion, green, homogeneous, jacobian
from dotlib.physics.homogeneous import FitError
from dotlib.physics.rytov import rows

OFF = (VALUES[0] * 1.3, VALUES[1] * 0.7)  # a start


def errors(fit, values=VALUES):
    """Relative errors of mua and musp."""
    return (fit.values / torch.tensor(values, dtype=torch.float64) - 1).abs()


@pytest.fixture(scope="module")
def fitted():
    """The ball at 16^3 with a tumour, and its fit."""
    place = scene(16, ((6, 2, 16), 6, 2.0, 1.5))
    return place, homogeneous.fit([place], OFF)[0]


# the last step is linear: what it leaves is of second order, and where gains are known all of the amplitude is in it
@pytest.mark.parametrize(("gain", "most"), [("global", 1e-3), ("optode", 1e-3), ("known", 3e-3)])
@pytest.mark.parametrize("start", [OFF, (VALUES[0] * 0.7, VALUES[1] * 1.3)])
def test_fit_of_the_models_own_readings_is_their_medium(gain, most, start):
    fit = homogeneous.fit([scene(32, gain=gain)], start)[0]
    assert errors(fit).max() < most
    assert fit.misfit < 0.02  # of readings without noise


@pytest.mark.parametrize("values", [(0.004, 1.2), (0.009, 0.7)])
def test_fit_of_the_exact_spheres_readings_is_its_medium(values):
    place = scene(32)
    sources, detectors = (v.numpy() - CENTRE for v in (place.readings.sources, place.readings.detectors))
    inner = sources * (1 - 1 / values[1] / RADIUS)
    table = np.stack([green.sphere(s, detectors, RADIUS, *values, FREQUENCY) for s in inner])
    phi = torch.as_tensor(table[tuple(place.readings.pairs.T)])
    place = changed(place, log_amplitude=phi.abs().log() + 7, phase=1 - phi.angle())
    assert errors(homogeneous.fit([place])[0], values).max() < 0.03


@pytest.mark.parametrize("gain", ["global", "optode"])
def test_fit_does_not_know_one_factor_on_all_readings(gain):
    place = scene(16, ((6, 2, 16), 6, 2.0, 1.5), gain=gain, noise=0)
    louder = changed(place, log_amplitude=place.readings.log_amplitude - 6, phase=place.readings.phase + 2.5)
    a, b = (homogeneous.fit([one])[0] for one in (place, louder))
    np.testing.assert_allclose(a.values, b.values, rtol=1e-7)
    assert abs(a.misfit - b.misfit) < 1e-7


def test_misfit_of_noisy_readings_is_about_one():
    """Whitening counts the noise, so large here that the model error beside it is small."""
    found = [homogeneous.fit([scene(16, noise=seed, sd=0.3)])[0].misfit for seed in range(4)]
    assert abs(np.mean(found) - 1) < 0.1


def test_fit_is_where_the_misfit_is_least(fitted):
    """In a box of media around the fit, each solved anew."""
    place, fit = fitted

    def misfit(values):
        s, d = place.readings.pairs.T
        light = jacobian.fields(place.system(values), place.readings.sources, place.readings.detectors, True)
        left = place.readings.white(place.readings.difference(light.detectors.read(light.phi)[d, s]))
        return left.square().mean().sqrt().item()

    least = misfit(fit.values)
    assert abs(least - fit.misfit) < 1e-3 * least
    for step in ((0.02, 0), (-0.02, 0), (0, 0.02), (0, -0.02)):
        assert misfit(fit.values * torch.tensor(step, dtype=torch.float64).exp()) > least


def test_objects_fitted_together_are_those_fitted_alone():
    places = [scene(16), scene(16, values=(0.009, 1.3)), scene(16, ((6, 2, 16), 6, 2.0, 1.5))]
    together = homogeneous.fit(places)
    for place, fit in zip(places, together, strict=True):
        np.testing.assert_allclose(fit.values, homogeneous.fit([place])[0].values, rtol=1e-6)
    assert together[0].values[0] < 0.8 * together[1].values[0]


def test_slopes_are_those_of_the_fits_own_readings(fitted):
    """By central differences of the logarithm of solved readings."""
    place, fit = fitted
    s, d = place.readings.pairs.T

    def logarithm(values):
        light = jacobian.fields(place.system(values), place.readings.sources, place.readings.detectors, True)
        return light.detectors.read(light.phi)[d, s].log()

    for channel, direction in enumerate(torch.eye(2, dtype=torch.float64)):
        up, down = (logarithm(fit.at * (sign * 1e-4 * direction).exp()) for sign in (1, -1))
        slope = (up - down) / 2e-4
        np.testing.assert_allclose(fit.slopes[:, channel], torch.cat([slope.real, slope.imag]), atol=2e-4)
    np.testing.assert_allclose(fit.phi.log(), logarithm(fit.at), atol=1e-5)


def test_refit_of_the_same_readings_changes_nothing(fitted):
    place, fit = fitted
    again = homogeneous.refit(place.readings, fit, fit.phi, fit.slopes)
    np.testing.assert_allclose(again.values, fit.values, rtol=1e-6)
    assert again.misfit == pytest.approx(fit.misfit, rel=1e-6)
    assert torch.equal(again.at, fit.at)


def test_refit_to_some_pairs_is_a_fit_to_them(fitted):
    place, fit = fitted
    chosen = torch.arange(0, len(place.readings.pairs), 2)
    some = dataclasses.replace(place, readings=place.readings.take(chosen))
    both = torch.cat([chosen, chosen + len(place.readings.pairs)])
    quick = homogeneous.refit(some.readings, fit, fit.phi[chosen], fit.slopes[both])
    slow = homogeneous.fit([some], tuple(fit.values.tolist()))[0]
    assert (quick.values / slow.values).log().abs().max() < 5e-3
    assert (quick.values / fit.values).log().abs().max() > 0.02  # it is another fit


def test_refit_to_other_readings_errs_in_second_order():
    """A medium near the one that was solved is found but for the square of the way."""
    fit = homogeneous.fit([scene(32)])[0]
    left = []
    for share in (0.2, 0.1, 0.05):
        values = (VALUES[0] * math.exp(share), VALUES[1] * math.exp(-share))
        left.append(errors(homogeneous.refit(readings(32, values=values), fit, fit.phi, fit.slopes), values).max())
    assert left[2] < 0.05**2
    assert left[1] < 0.35 * left[0] and left[2] < 0.35 * left[1]


def test_uniform_derivatives_are_the_jacobian_on_one_voxel(fitted):
    place, fit = fitted
    phi, J = jacobian.jacobian(fit.system, fit.light, place.readings.pairs, 1)
    phi_uniform, by_values = jacobian.uniform(fit.system, fit.light, place.readings.pairs)
    assert torch.equal(phi, phi_uniform)
    assert ((by_values - J.flatten(1)).abs() < 1e-10 * J.flatten(1).abs()).all()
    np.testing.assert_allclose(fit.slopes, rows(by_values, phi) * fit.at, rtol=1e-12)


@pytest.mark.parametrize("precise", [False, True])
def test_fields_of_several_objects_are_those_of_each(precise):
    place = scene(16)
    r = place.readings
    systems = [place.system(torch.tensor(v, dtype=torch.float64)) for v in (VALUES, OFF)]
    optodes = [r.sources, r.sources.flip(0)], [r.detectors, r.detectors.flip(0)]
    together = jacobian.fields_of(systems, *optodes, precise)
    for system, light, *own in zip(systems, together, *optodes, strict=True):
        alone = jacobian.fields(system, *own, precise)
        assert light.system is system
        for name in ("phi", "psi"):
            difference = (getattr(light, name) - getattr(alone, name)).abs().max()
            assert difference <= 1e-12 * getattr(alone, name).abs().max()
    s, d = r.pairs.T
    found = together[1].detectors.read(together[1].phi)[-1 - d, -1 - s]  # the second one's optodes are in reverse order
    there = diffusion.Medium(*(torch.full((16,) * 3, v).double() for v in OFF), place.surface, place.cells.h)
    probe = (v.numpy()[None] for v in (r.sources, r.detectors, r.pairs))
    np.testing.assert_allclose(found, diffusion.readings([there], *probe, FREQUENCY, precise=True)[0], rtol=1e-4)


# readings that no homogeneous medium comes near: one line each
@pytest.mark.parametrize("kind", ["shuffled", "reversed", "noise"])
def test_readings_of_no_tissue_are_one_line(kind):
    place = scene(16)
    r, rng = place.readings, torch.Generator().manual_seed(0)
    order = torch.randperm(len(r.pairs), generator=rng)
    noise = torch.randn(2, len(r.pairs), generator=rng).double()
    log_amplitude, phase = {
        "shuffled": (r.log_amplitude[order], r.phase[order]), "reversed": (-r.log_amplitude, -r.phase), "noise": noise,
    }[kind]  # fmt: skip
    with pytest.raises(
        FitError, match=r"^fit: object 1: mua comes out as \S+e-05 mm\^-1; 0.0001 to 0.2 is accepted$"
    ) as caught:
        homogeneous.fit([place, changed(place, log_amplitude=log_amplitude, phase=phase)])
    assert caught.value.index == 1


def test_steps_that_swing_and_promise_nothing_leave_the_medium_of_least_misfit(monkeypatch):
    """Of this phantom they swing by 0.115 for ever, about a misfit that is flat."""
    data = config.Data(phantoms=2977, grid=32, measurements=config.Measurements())
    columns = recording.simulate(data, 2976, 1)
    monkeypatch.setattr(lifts, "_read", lambda *where: columns)
    place = lifts.Lifts(data, config.Lift(draws=1), None, np.zeros(2977, "i1")).scenes(2976, 1, [0], "cpu")[0]
    visited, step = [], homogeneous._step

    def seen(*arguments):
        visited.append(step(*arguments))
        return visited[-1]

    monkeypatch.setattr(homogeneous, "_step", seen)
    found = homogeneous.fit([place])[0]
    left = [place.readings.white(place.readings.difference(one.phi)).norm().item() for one in visited]
    assert len(visited) == homogeneous.MOST and min(v.step.abs().max() for v in visited) > homogeneous.CLOSE
    assert found is visited[int(np.argmin(left))] and found is not visited[-1]
    assert max(left[2:]) < 1.01 * min(left)
    monkeypatch.setattr(homogeneous, "FLAT", 0.0)
    with pytest.raises(FitError, match=r"^fit: object 0: mua and musp still move after 8 solutions"):
        homogeneous.fit([place])


def test_fit_that_does_not_settle_is_one_line(monkeypatch):
    monkeypatch.setattr(homogeneous, "MOST", 1)
    with pytest.raises(
        FitError,
        match=r"^fit: object 0: mua and musp still move after 1 solutions; are these readings of this surface\?$",
    ):
        homogeneous.fit([scene(16)], (0.012, 0.5))
