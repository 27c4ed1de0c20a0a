"""Readings as Rytov data: turns, gains and whitening, against numpy's least squares."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from dotlib.physics import rytov
from dotlib.physics.rytov import Readings

GAINS = ("global", "optode", "known")
SOURCES, DETECTORS = 4, 5


def made_up(gain="global", **changed):
    """Readings of all pairs but two, and a model's of about the same."""
    rng = np.random.default_rng(0)
    optodes = torch.as_tensor(rng.uniform(-20, 20, (SOURCES + DETECTORS, 3)))
    pairs = torch.cartesian_prod(torch.arange(SOURCES), torch.arange(DETECTORS))[torch.arange(20) % 13 != 3]
    m = len(pairs)
    values = {
        "log_amplitude": torch.as_tensor(rng.uniform(-12, -4, m)),
        "phase": torch.as_tensor(rng.uniform(0.2, 2.5, m)),
        "sigma": torch.as_tensor(rng.uniform(0.003, 0.2, (m, 2))),
    } | {"pairs": pairs, "sources": optodes[:SOURCES], "detectors": optodes[SOURCES:]}
    found = Readings(**values | changed, frequency=140e6, gain=gain)
    shift = torch.as_tensor(rng.uniform(-0.3, 0.3, (2, m)))
    phi = torch.polar((values["log_amplitude"] + shift[0]).exp(), -values["phase"] + shift[1])
    return found, phi


def with_factors(readings, by_source, by_detector):
    """The readings times complex factors of their optodes."""
    s, d = readings.pairs.T
    factor = by_source[s] * by_detector[d]
    moved = {"log_amplitude": readings.log_amplitude + factor.abs().log(), "phase": readings.phase - factor.angle()}
    return dataclasses.replace(readings, **moved)


def factors(number, seed, spread=1.0):
    """Complex factors: amplitudes over decades, phases within a tenth of a turn times `spread`."""
    rng = np.random.default_rng(seed)
    amplitude, angle = rng.uniform(0.1, 10, number), spread * rng.uniform(-0.6, 0.6, number)
    return torch.as_tensor(amplitude * np.exp(1j * angle))


def patterns(readings):
    """What gains can do to the rows (2M, q), as zeros and ones, one column for each unknown: linearly dependent."""
    s, d = readings.pairs.T.numpy()
    if readings.gain == "known":
        return np.zeros((2 * len(s), 0))
    one = np.ones((len(s), 1))
    if readings.gain == "optode":
        one = np.concatenate([s[:, None] == np.arange(SOURCES), d[:, None] == np.arange(DETECTORS)], 1).astype(float)
    return np.kron(np.eye(2), one)


def whitening(readings):
    """One over the sd of noise and 3 % model error, of each row (2M,)."""
    sd = np.sqrt(readings.sigma.numpy() ** 2 + 0.03**2)
    return 1 / np.concatenate([sd[:, 0], sd[:, 1]])


def test_difference_of_a_models_own_readings_is_zero():
    readings, phi = made_up()
    own = dataclasses.replace(readings, log_amplitude=phi.abs().log(), phase=-phi.angle())
    assert own.difference(phi).abs().max() < 1e-14


def test_difference_is_the_logarithm_of_the_ratio():
    readings, phi = made_up()
    measured = torch.polar(readings.log_amplitude.exp(), -readings.phase)
    ratio = (measured / phi).log()
    np.testing.assert_allclose(readings.difference(phi), torch.cat([ratio.real, ratio.imag]), atol=1e-13)


def test_difference_does_not_know_whole_turns():
    readings, phi = made_up()
    turns = torch.as_tensor(np.random.default_rng(1).integers(-3, 4, len(phi)))
    wrapped = dataclasses.replace(readings, phase=readings.phase + 2 * math.pi * turns.double())
    np.testing.assert_allclose(wrapped.difference(phi), readings.difference(phi), atol=1e-13)


@pytest.mark.parametrize("offset", [1.0, math.pi - 0.1, math.pi, -2.0])
def test_difference_holds_together_beside_half_a_turn(offset):
    """An offset takes the phases of some pairs past half a turn: they must not come out a turn from the others."""
    readings, phi = made_up()
    moved = dataclasses.replace(readings, phase=readings.phase + offset)
    change = (moved.difference(phi) - readings.difference(phi))[len(phi) :]
    assert change.std() < 1e-12
    assert abs(math.remainder(change.mean().item() + offset, 2 * math.pi)) < 1e-12


@pytest.mark.parametrize("gain", GAINS)
def test_one_factor_on_all_readings_is_seen_only_where_gains_are_known(gain):
    readings, phi = made_up(gain)
    moved = dataclasses.replace(readings, log_amplitude=readings.log_amplitude + 5, phase=readings.phase - 2.9)
    before, after = (one.white(one.difference(phi)) for one in (readings, moved))
    change = (after - before).abs().max()
    assert change > 1 if gain == "known" else change < 1e-10


@pytest.mark.parametrize("gain", GAINS)
def test_factors_of_each_optode_are_seen_unless_each_has_a_gain(gain):
    readings, phi = made_up(gain)
    moved = with_factors(readings, factors(SOURCES, 2), factors(DETECTORS, 3))
    before, after = (one.white(one.difference(phi)) for one in (readings, moved))
    change = (after - before).abs().max()
    assert change < 1e-10 if gain == "optode" else change > 1


@pytest.mark.parametrize(("gain", "count"), [("global", 2), ("optode", 2 * (SOURCES + DETECTORS - 1)), ("known", 0)])
def test_gains_are_orthonormal_and_as_many_as_there_are_unknowns(gain, count):
    """Of the factors of all sources and all detectors one is not determined."""
    gains = made_up(gain)[0].gains
    assert gains.shape[1] == count
    np.testing.assert_allclose(gains.T @ gains, np.eye(count), atol=1e-12)


@pytest.mark.parametrize("gain", GAINS)
def test_white_is_what_least_squares_leaves(gain):
    readings, _ = made_up(gain)
    rows = np.random.default_rng(4).standard_normal((2 * len(readings.pairs), 2, 3))
    weight = whitening(readings)
    unknown, flat = weight[:, None] * patterns(readings), weight[:, None] * rows.reshape(len(rows), -1)
    left = flat - unknown @ np.linalg.lstsq(unknown, flat, rcond=None)[0]
    found = readings.white(torch.as_tensor(rows))
    np.testing.assert_allclose(found, left.reshape(rows.shape), atol=1e-9)
    one = readings.white(torch.as_tensor(rows[:, 1, 2]))
    np.testing.assert_allclose(one, found[:, 1, 2], atol=1e-10)


@pytest.mark.parametrize("gain", GAINS)
def test_white_takes_out_gains_once(gain):
    """Whitened rows whose whitening is undone are whitened to themselves."""
    readings, phi = made_up(gain)
    once = readings.white(readings.difference(phi))
    again = readings.white(once / torch.as_tensor(whitening(readings)))
    np.testing.assert_allclose(again, once, atol=1e-10)


def test_rows_are_derivatives_of_log_amplitude_and_of_minus_the_phase():
    rng = np.random.default_rng(5)
    phi, slopes = (torch.as_tensor(rng.standard_normal(s) + 1j * rng.standard_normal(s)) for s in (7, (7, 2, 3)))
    moved = phi.view(-1, 1, 1) + 1e-7 * slopes
    ratio = moved / phi.view(-1, 1, 1)
    differences = torch.cat([ratio.abs().log(), ratio.angle()]) / 1e-7
    np.testing.assert_allclose(rytov.rows(slopes, phi), differences, atol=1e-5)


def test_taken_pairs_are_the_readings_of_these_pairs():
    readings, phi = made_up("optode")
    chosen = torch.tensor([5, 1, 9])
    taken = readings.take(chosen)
    part = readings.difference(phi).view(2, -1)[:, chosen]
    change = taken.difference(phi[chosen]).view(2, -1) - part
    assert change.abs().max() < 1e-13
    assert (taken.frequency, taken.n, taken.gain) == (readings.frequency, readings.n, "optode")
    np.testing.assert_array_equal(taken.weight.view(2, -1), readings.weight.view(2, -1)[:, chosen])


# bad input: one line each
def bad(match):
    return pytest.raises(ValueError, match=rf"^readings: {match}$")


def test_shapes_that_do_not_fit_are_one_line():
    pairs = made_up()[0].pairs
    shapes = r"\[\(18, 2\), \(18,\), \(17,\), \(18, 2\)\]"
    with bad(rf"pairs, log-amplitude, phase, sd have shapes {shapes}; one row a pair is accepted"):
        made_up(phase=torch.zeros(17).double())
    with bad(r"pairs, log-amplitude, phase, sd have shapes .*; one row a pair is accepted"):
        none = torch.zeros(0).double()
        made_up(pairs=pairs[:0], log_amplitude=none, phase=none, sigma=torch.zeros(0, 2).double())


@pytest.mark.parametrize("name", ["log_amplitude", "phase", "sigma"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_value_that_is_not_finite_is_one_line(name, value):
    values = getattr(made_up()[0], name).clone()
    values[4:6] = value
    with bad("pair 4 is not finite; leave lost pairs out"):
        made_up(**{name: values})


@pytest.mark.parametrize("pair", [(SOURCES, 0), (0, DETECTORS), (-1, 2)])
def test_pair_of_no_optodes_is_one_line(pair):
    pairs = made_up()[0].pairs.clone()
    pairs[7] = torch.tensor(pair)
    with bad(rf"pair 7 is \({pair[0]}, {pair[1]}\); indices below \(4, 5\) are accepted"):
        made_up(pairs=pairs)


def test_gain_that_is_none_is_one_line():
    with bad("gain 'free'; 'global', 'optode' or 'known' is accepted"):
        made_up("free")
