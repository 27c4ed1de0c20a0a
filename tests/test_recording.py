"""Recordings of phantoms: in the probe's frame, by the noise law, on the right branch; what each field changes."""

import numpy as np
import pytest
from tiny import RECORDED

from dotlib.config import Data, Measurements, Noise, validate
from dotlib.data import noise, phantoms, probe, recording, store
from dotlib.physics import diffusion, green

N = 1.33


def test_phantom_is_the_same_in_any_block(recorded, one_thread):
    alone = recording.simulate(RECORDED, 17, 1)
    with store.File(recorded) as file:
        for name, values in alone.items():
            np.testing.assert_array_equal(file.raw(name, 17, 18), values, err_msg=name)


def test_recording_is_the_noise_law_on_the_clean_readings(recorded):
    """Phase and amplitude lie within their standard deviations of phi_clean, and are drawn by (seed, index)."""
    with store.File(recorded) as file:
        c = {name: file.raw(name) for name in file.names}
    clear = c["sigma"][..., 1] < 0.1
    amplitude = (c["log_amplitude"] - np.log(np.abs(c["phi_clean"]))) / c["sigma"][..., 0]
    turn = np.angle(np.exp(1j * c["phase"]) * c["phi_clean"]) / c["sigma"][..., 1]
    for z in (amplitude[clear], turn[clear]):
        assert abs(z.mean()) < 5 / np.sqrt(z.size) and z.std() == pytest.approx(1, abs=0.15) and np.abs(z).max() < 6
    i = 20
    rng = np.random.default_rng([noise.STREAM, 0, i])
    clean = c["phi_clean"][i].astype(complex)
    log_amplitude, _, _ = noise.measure(clean, np.zeros(24), c["pairs"][i], Noise(), rng)
    np.testing.assert_allclose(c["log_amplitude"][i], log_amplitude, atol=1e-5)


def test_phantom_is_in_the_frame_of_its_probe(recorded):
    with store.File(recorded) as file:
        tables, sources = file.raw("ellipsoids"), file.raw("sources")
    sampled = phantoms.sample("default", 36, 3)
    for column in (phantoms.AXES, phantoms.EXPONENT, phantoms.MUA, phantoms.MUSP):
        np.testing.assert_array_equal(tables[..., column], sampled[..., column])
    assert np.abs(tables[..., phantoms.QUATERNION] - sampled[..., phantoms.QUATERNION])[:, 0].max(1).min() > 1e-3
    assert (np.linalg.norm(sources[..., :2], axis=-1) <= 30).all() and sources[..., 2].min() > 0


@pytest.mark.parametrize("frequency", [0.0, 140e6, 1e9])
@pytest.mark.parametrize(("mua", "musp"), [(0.003, 0.78), (0.007, 1.18), (0.02, 2.5)])
def test_phase_of_a_half_space_is_that_along_a_path_from_the_source(frequency, mua, musp):
    separation = np.arange(0, 150, 0.1)
    phi = green.semi_infinite(separation, mua, musp, frequency, N)
    path = np.unwrap(-np.angle(phi))
    assert path[-1] > (4 * np.pi if frequency == 1e9 else 0) or frequency == 0
    found = recording.unwrapped(phi, mua, musp, separation, frequency, N)
    np.testing.assert_allclose(found, path, atol=1e-9)
    turned = recording.unwrapped(phi * np.exp(2.5j), mua, musp, separation, frequency, N)
    np.testing.assert_allclose(turned, path - 2.5, atol=1e-9)


def test_phase_of_a_phantom_is_that_along_a_path_over_its_surface(one_thread):
    """At 600 MHz, where it passes half a turn: detectors in a row, 1 mm apart, from 10 to 40 mm."""
    rows = phantoms.sample("default", 1, 7)[0]
    surface = recording.Surface(rows[0])
    angle = np.linspace(0, np.pi / 2, 400)
    points = surface.along(np.stack([np.sin(angle), 0 * angle, np.cos(angle)], 1))
    distance = np.linalg.norm(points - points[0], axis=1)
    row = points[np.searchsorted(distance, np.arange(10, 34))]
    pairs = np.stack([np.zeros(len(row), int), np.arange(len(row))], 1)
    media = [recording.medium(rows, 32)]
    phi = diffusion.readings(media, points[None, :1], row[None], pairs[None], 600e6, N)[0]
    separation = probe.separations(points[:1], row, pairs)
    phase = recording.unwrapped(phi, *recording.mean_properties(rows, 32), separation, 600e6, N)
    np.testing.assert_allclose(phase, np.unwrap(-np.angle(phi)) + 2 * np.pi * np.round(
        (phase[0] + np.angle(phi[0])) / (2 * np.pi)), atol=1e-9)  # fmt: skip
    assert 0 < phase[0] < np.pi < phase[-1] and (np.diff(phase) > 0).all()


def test_mean_properties_are_those_of_the_tissue():
    rows = phantoms.sample("single", 1, 0)[0]
    volume = phantoms.rasterise(rows[None], 64)[0].double().numpy()
    tissue = (
        phantoms.rasterise(phantoms.without_inclusions(rows[None]), 64)[0, 0].double().numpy() / rows[0, phantoms.MUA]
    )
    expected = volume.reshape(2, -1).sum(1) / tissue.sum()
    np.testing.assert_allclose(recording.mean_properties(rows, 64), expected, rtol=2e-3)


NOISY = {"log_amplitude", "phase"}
LIGHT = NOISY | {"sigma", "phi_clean"}
PLACES = {"sources", "detectors", "pairs"}
ONE = {"sources": 2, "detectors": 8, "pairs": 8}
# what changes with each field; the numbers of optodes and pairs change shapes
EFFECTS = {
    "frequency": (2e8, LIGHT), "n": (1.4, LIGHT), "grid": (48, LIGHT), "precise": (True, LIGHT),
    "radius": (20.0, PLACES | LIGHT), "patches": (2, PLACES | LIGHT),
    "noise.relative": (0.01, NOISY | {"sigma"}), "noise.floor": (1e-3, NOISY | {"sigma"}),
    "noise.jitter": (1.0, {"phase", "sigma"}), "noise.coupling": (0.1, {"log_amplitude"}),
    "noise.coupling_phase": (5.0, {"phase"}), "noise.dropout": (0.5, NOISY), "noise.dark": (0.1, NOISY),
    "noise.saturation": (0.5, NOISY), "noise.seed": (1, NOISY),
}  # fmt: skip


def one(seed=3, **fields):
    measurements = validate(Measurements, ONE | fields)
    return recording.simulate(Data(phantoms=1, grid=32, seed=seed, measurements=measurements), 0, 1)


@pytest.fixture(scope="module")
def base(one_thread):
    return one()


def changed(base, other):
    return {name for name in base if name != "checks" and base[name].tobytes() != other[name].tobytes()}


@pytest.mark.parametrize("field", EFFECTS)
def test_each_field_changes_its_columns_only(base, field):
    value, columns = EFFECTS[field]
    *parent, name = field.split(".")
    assert changed(base, one(**({"noise": {name: value}} if parent else {name: value}))) == columns


def test_seed_of_the_phantoms_changes_all_but_the_familys_name(base):
    assert changed(base, one(seed=4)) == set(base) - {"family", "checks"}


def test_effect_of_every_field_is_tried():
    noise = {f"noise.{name}" for name in Noise.model_fields}
    assert set(EFFECTS) == {*Measurements.model_fields, *noise} - {*ONE, "noise"}
