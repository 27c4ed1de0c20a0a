"""SNIRF: files written from the specification's text, by another library and by us; every bad one is one line."""

import dataclasses
import os
import time

import h5py
import numpy as np
import pytest

from dotlib.data import snirf

WAVELENGTHS, FREQUENCIES = [760.0, 850.0], [110e6, 140e6]
EMPTY = {reason: [] for reason in ("without a partner", "not finite", "saturated", "dark")}


def probe(seed=0, sources=4, detectors=5):
    """A made-up recording of all pairs of a patch: amplitudes fall and phases grow with the separation."""
    rng = np.random.default_rng(seed)
    optodes = rng.uniform(-20, 20, (sources + detectors, 3)) * [1, 1, 0.2]
    pairs = np.stack(np.indices((sources, detectors)), -1).reshape(-1, 2)
    separation = np.linalg.norm(optodes[pairs[:, 0]] - optodes[sources + pairs[:, 1]], axis=1)
    log_amplitude = -3 - 0.2 * separation + 0.1 * rng.standard_normal(len(pairs))
    phase = 0.2 + 0.05 * separation + 0.01 * rng.standard_normal(len(pairs))
    sigma = rng.uniform(0.005, 0.1, (len(pairs), 2))
    return snirf.Recording(
        optodes[:sources], optodes[sources:], pairs, log_amplitude, phase, sigma, 140e6, 850.0, "mm", EMPTY, False
    )


def single(recording):
    return dataclasses.replace(recording, sigma=np.full_like(recording.sigma, np.nan))


def string(group, name, value):
    """As the specification's sample code writes `"s"`."""
    group.create_dataset(name, dtype=h5py.string_dtype(encoding="ascii", length=None), data=value)


def channels(recording, seed=None):
    """Of each channel: data type, 1-based source, detector, wavelength, frequency; unit; row of the recording."""
    rows = [
        (kind, s + 1, d + 1, w + 1, f + 1, "V" if kind == 101 else "rad", m)
        for kind in (101, 102)
        for w in range(2)
        for f in range(2)
        for m, (s, d) in enumerate(recording.pairs.tolist())
    ]
    return rows if seed is None else [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def by_hand(path, recording, rows=None, samples=None, lists=False, length="mm", frequency="Hz", degrees=False):
    """Written item by item from the specification; decoys at 760 nm and 110 MHz are twice as large, their phase half.

    `samples` is what is added to ln A and phase in each of T samples, `(T, M, 2)`.
    """
    scale = {"mm": 1, "cm": 10, "m": 1000}[length]
    hertz = {"Hz": 1, "MHz": 1e6, "GHz": 1e9}[frequency]
    rows = channels(recording) if rows is None else rows
    samples = np.zeros((1, len(recording.pairs), 2)) if samples is None else samples
    series = np.empty((len(samples), len(rows)))
    for column, (kind, _, _, w, f, _, m) in enumerate(rows):
        decoy = (w, f) != (2, 2)
        if kind == 101:
            series[:, column] = np.exp(recording.log_amplitude[m] + samples[:, m, 0]) * (2 if decoy else 1)
        else:
            phase = (recording.phase[m] + samples[:, m, 1]) * (0.5 if decoy else 1)
            series[:, column] = np.rad2deg(phase) if degrees else phase
    names = ("dataType", "sourceIndex", "detectorIndex", "wavelengthIndex", "dataTypeIndex", "dataUnit")
    if degrees:
        rows = [(*row[:5], "deg" if row[0] == 102 else "V", row[6]) for row in rows]
    with h5py.File(path, "w") as file:
        string(file, "formatVersion", "1.1")
        tags = file.create_group("/nirs/metaDataTags")
        string(tags, "SubjectID", "phantom")
        string(tags, "MeasurementDate", "2024-01-31")
        string(tags, "MeasurementTime", "12:00:00Z")
        string(tags, "LengthUnit", length)
        string(tags, "TimeUnit", "s")
        string(tags, "FrequencyUnit", frequency)
        geometry = file.create_group("/nirs/probe")
        geometry.create_dataset("wavelengths", dtype="f8", data=np.array(WAVELENGTHS))
        geometry.create_dataset("frequencies", dtype="f8", data=np.array(FREQUENCIES) / hertz)
        geometry.create_dataset("sourcePos3D", dtype="f8", data=recording.sources / scale)
        geometry.create_dataset("detectorPos3D", dtype="f8", data=recording.detectors / scale)
        data = file.create_group("/nirs/data1")
        data.create_dataset("dataTimeSeries", dtype="f8", data=series)
        data.create_dataset("time", dtype="f8", data=np.arange(len(series)) / 10)
        if lists:
            group = data.create_group("measurementLists")
            for name, values in zip(names, zip(*(row[:6] for row in rows), strict=True), strict=True):
                if name == "dataUnit":
                    string(group, name, np.array(values).astype("O"))
                else:
                    group.create_dataset(name, dtype="i4", data=np.array(values))
            return
        for k, row in enumerate(rows):
            group = data.create_group(f"measurementList{k + 1}")
            for name, value in zip(names, row[:6], strict=True):
                if name == "dataUnit":
                    string(group, name, value)
                else:
                    group.create_dataset(name, dtype="i4", data=value)


def same(found, wanted, exact=True):
    """The readings of two recordings; ln A passes through A, which is worth some 1e-16."""
    assert np.array_equal(found.pairs, wanted.pairs) and found.pairs.dtype.kind == "i"
    assert (found.frequency, found.wavelength) == (wanted.frequency, wanted.wavelength)
    np.testing.assert_allclose(found.log_amplitude, wanted.log_amplitude, rtol=0, atol=4e-15)
    for name in ("sources", "detectors", "phase"):
        a, b = getattr(found, name), getattr(wanted, name)
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=0 if exact else 4e-15, atol=0)
    assert found.flipped == wanted.flipped
    assert {why: lost.tolist() for why, lost in found.excluded.items()} == wanted.excluded


def refused(path, *words, **options):
    """The line that reading raises: it names the file and says these words."""
    with pytest.raises(snirf.SnirfError) as error:
        snirf.read(path, **options)
    line = str(error.value)
    assert "\n" not in line and len(line) < 300 + len(str(path)) and line.startswith(f"{path}: ")
    assert all(word in line for word in words), line


@pytest.fixture
def path(tmp_path):
    return tmp_path / "recording.snirf"


@pytest.fixture
def file(path):
    """A good file of one wavelength and frequency, to be spoilt: `with h5py.File(file, "r+")`."""
    snirf.write(path, single(probe()))
    return path


def replace(path, name, value, **options):
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        if value is not None:
            file.create_dataset(name, data=value, **options)


def test_round_trip_keeps_the_bits(path):
    wanted = single(probe())
    snirf.write(path, wanted)
    found = snirf.read(path)
    same(found, wanted)
    assert np.isnan(found.sigma).all() and found.length_unit == "mm"
    with h5py.File(path) as file:
        amplitude = file["nirs/data1/dataTimeSeries"][0, : len(wanted.pairs)]
    assert np.array_equal(found.log_amplitude, np.log(amplitude))


def test_round_trip_keeps_sigma(path):
    """It is written as two samples."""
    wanted = probe()
    snirf.write(path, wanted)
    found = snirf.read(path)
    same(found, wanted, exact=False)
    np.testing.assert_allclose(found.sigma, wanted.sigma, rtol=1e-11)


def test_round_trip_sorts_pairs(path):
    wanted = single(probe())
    order = np.random.default_rng(1).permutation(len(wanted.pairs))
    mixed = {name: getattr(wanted, name)[order] for name in ("pairs", "log_amplitude", "phase")}
    snirf.write(path, dataclasses.replace(wanted, **mixed))
    same(snirf.read(path), wanted)


def test_same_recording_gives_the_same_bytes(tmp_path):
    """Also a second later, which is what HDF5's time stamps resolve; and nothing else is left behind."""
    a, b = tmp_path / "a.snirf", tmp_path / "b.snirf"
    snirf.write(a, probe())
    time.sleep(1.1)
    snirf.write(b, probe())
    assert a.read_bytes() == b.read_bytes()
    snirf.write(a, probe(seed=1), subject="S", date="2024-01-31", time="12:00:00Z")
    assert a.read_bytes() != b.read_bytes()
    assert sorted(tmp_path.iterdir()) == [a, b]
    with h5py.File(a) as file:
        held = [file[f"nirs/metaDataTags/{name}"].asstr()[()] for name in ("SubjectID", "MeasurementDate")]
        assert [*held, file["formatVersion"].asstr()[()]] == ["S", "2024-01-31", "1.1"]


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("units", [("mm", "Hz", False), ("cm", "MHz", True), ("m", "GHz", True)])
def test_file_by_hand_reads_the_same(path, lists, units):
    """Two wavelengths, two frequencies, channels in any order, either form of the list, any unit."""
    wanted = probe()
    length, frequency, degrees = units
    by_hand(path, wanted, channels(wanted, seed=3), None, lists, length, frequency, degrees)
    found = snirf.read(path, wavelength=850, frequency=140e6)
    same(found, wanted, exact=False)
    assert found.length_unit == length
    decoy = snirf.read(path, wavelength=760, frequency=110e6)
    np.testing.assert_allclose(decoy.log_amplitude, wanted.log_amplitude + np.log(2), rtol=1e-14)
    np.testing.assert_allclose(decoy.phase, wanted.phase / 2, rtol=1e-14)


def test_choices_are_asked_for(path):
    by_hand(path, probe())
    refused(path, "which wavelength? accepted: 760, 850 nm", frequency=140e6)
    refused(path, "which modulation frequency? accepted: 110000000, 140000000 Hz", wavelength=850)
    refused(path, "no wavelength 800 nm; accepted: 760, 850 nm", wavelength=800)
    refused(path, "no modulation frequency 100000000 Hz; accepted: 110000000,", wavelength=850, frequency=1e8)
    refused(path, "no group data2", "data1", wavelength=850, frequency=140e6, block=2)
    refused(path, "no group nirs2", "nirs", entry=2)
    refused(path, "units of 'lenght'; accepted: length, frequency, phase", units={"lenght": "mm"})


def test_other_blocks_and_entries(path):
    """The block and the entry asked for, and not the first."""
    snirf.write(path, single(probe()))
    with h5py.File(path, "r+") as file:
        file.copy("nirs/data1", "nirs/data2")
        file["nirs/data2/dataTimeSeries"][:, :20] *= np.e
        file.copy("nirs", "nirs2")
        file.move("nirs", "nirs1")
        file["nirs2/data1/dataTimeSeries"][:, :20] *= np.e**2
    first = snirf.read(path).log_amplitude
    np.testing.assert_allclose(snirf.read(path, block=2).log_amplitude, first + 1, rtol=1e-14)
    np.testing.assert_allclose(snirf.read(path, entry=2).log_amplitude, first + 2, rtol=1e-14)


def test_sigma_is_the_standard_error(path):
    rng = np.random.default_rng(5)
    wanted = probe()
    samples = rng.normal(scale=0.05, size=(7, len(wanted.pairs), 2))
    by_hand(path, wanted, samples=samples)
    found = snirf.read(path, wavelength=850, frequency=140e6)
    np.testing.assert_allclose(found.sigma, samples.std(0, ddof=1) / np.sqrt(7), rtol=1e-10)
    np.testing.assert_allclose(found.log_amplitude, wanted.log_amplitude + samples[..., 0].mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.phase, wanted.phase + samples[..., 1].mean(0), rtol=1e-12)
    by_hand(path, wanted, samples=1e-6 * samples)
    assert np.all(snirf.read(path, wavelength=850, frequency=140e6).sigma == snirf.FLOOR)


def test_samples_across_a_whole_turn_are_averaged_together(path):
    """A phase that a device folds into 0 ... 360 degrees, of pairs whose mean is near 0."""
    wanted = probe()
    samples = np.random.default_rng(6).normal(scale=0.05, size=(9, len(wanted.pairs), 2))
    wanted = dataclasses.replace(wanted, phase=wanted.phase - wanted.phase[4])
    by_hand(path, wanted, samples=samples, degrees=True)
    with h5py.File(path, "r+") as file:
        held = file["nirs/data1/dataTimeSeries"]
        half = held.shape[1] // 2
        held[:, half:] = held[:, half:] % 360
        assert np.ptp(held[:, -20 + 4]) > 300  # pair 4, at 850 nm and 140 MHz: samples at both ends
    found = snirf.read(path, wavelength=850, frequency=140e6)
    np.testing.assert_allclose(found.sigma[:, 1], samples[..., 1].std(0, ddof=1) / 3, rtol=1e-8)
    turns = (found.phase - (wanted.phase + samples[..., 1].mean(0))) / (2 * np.pi)
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-12)


def test_phase_of_the_other_sign_is_turned(path):
    wanted = probe()
    by_hand(path, dataclasses.replace(wanted, phase=-wanted.phase), channels(wanted, seed=2))
    same(snirf.read(path, wavelength=850, frequency=140e6), dataclasses.replace(wanted, flipped=True), exact=False)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("offset", np.linspace(-np.pi, np.pi, 7))
def test_sign_is_found_behind_any_offset(path, sign, offset):
    """An offset of the device folds some pairs by a turn; where none is folded, it remains."""
    wanted = single(probe())
    phase = (sign * wanted.phase + offset + np.pi) % (2 * np.pi) - np.pi
    snirf.write(path, dataclasses.replace(wanted, phase=phase))
    found = snirf.read(path)
    assert found.flipped == (sign < 0)
    assert np.array_equal(found.phase, sign * phase)


def test_sign_of_equal_separations_stays(path):
    """Nothing tells the sign of one pair, or of pairs that are equally far apart."""
    one = single(probe())
    for keep in ([0], [0, 1]):
        held = {name: getattr(one, name)[keep] for name in ("pairs", "log_amplitude", "sigma")}
        phase = np.array([1.0, -1.0])[: len(keep)]
        sources, detectors = np.zeros((1, 3)), np.array([[20.0, 0, 0], [0, 20.0, 0]])
        snirf.write(path, dataclasses.replace(one, **held, phase=phase, sources=sources, detectors=detectors))
        assert not snirf.read(path).flipped


def test_excluded_pairs_are_counted_by_reason(path):
    wanted = single(probe())
    snirf.write(path, wanted)
    with h5py.File(path, "r+") as file:
        series = file["nirs/data1/dataTimeSeries"][()].repeat(3, 0)
        series[1, 0] = np.nan  # amplitude of pair 0
        series[2, 20 + 1] = np.inf  # phase of pair 1
        series[0, 2] = 0
        series[1, 3] = -1e-9
        series[:, 4] = 1e-7 * np.exp(wanted.log_amplitude).max()
        series[2, 5] = 1e9  # beside which all others would be dark
        del file["nirs/data1/dataTimeSeries"]
        file["nirs/data1/dataTimeSeries"] = series
        file["nirs/data1/measurementList7/dataType"][()] = 1  # the amplitude of pair 6 is a continuous wave's
        file["nirs/data1/measurementList28/dataType"][()] = 152  # the phase of pair 7 is fluorescence
    found = snirf.read(path, saturation=4.9)
    lost = {"without a partner": [6, 7], "not finite": [0, 1], "saturated": [5], "dark": [2, 3, 4]}
    assert {why: pairs.tolist() for why, pairs in found.excluded.items()} == {
        why: wanted.pairs[rows].tolist() for why, rows in lost.items()
    }
    assert np.array_equal(found.pairs, wanted.pairs[8:]) and np.allclose(found.phase, wanted.phase[8:], rtol=1e-14)
    assert len(snirf.read(path, saturation=4.9, dark=0).excluded["dark"]) == 2
    assert len(snirf.read(path).excluded["saturated"]) == 0
    refused(path, "no usable pair at 850 nm and 140000000 Hz: 2 without a partner, 2 not finite,", saturation=1e-12)


def test_units_named_by_the_caller_replace_the_file_s(path):
    wanted = probe()
    by_hand(path, wanted, length="cm", frequency="MHz", degrees=True)
    for name in ("LengthUnit", "FrequencyUnit"):
        replace(path, f"nirs/metaDataTags/{name}", None)
    with h5py.File(path, "r+") as file:
        for k in range(len(channels(wanted))):
            del file[f"nirs/data1/measurementList{k + 1}/dataUnit"]
    chosen = {"wavelength": 850, "frequency": 140e6}
    refused(path, "LengthUnit is missing", "accepted: mm, cm, m", "units={'length'", **chosen)
    units = {"length": "cm"}
    refused(path, "FrequencyUnit is missing", "accepted: Hz, MHz, GHz", units=units, **chosen)
    units["frequency"] = "MHz"
    refused(path, "phase without dataUnit reaches", "accepted: rad,", "deg,", "units={'phase'", units=units, **chosen)
    same(snirf.read(path, units={**units, "phase": "deg"}, **chosen), wanted, exact=False)


def test_unlikely_units_are_doubted(path):
    """Separations of a few mm as metres or centimetres, or the reverse; a modulation of 140 Hz."""
    wanted = probe()
    for true, said in (("m", "mm"), ("cm", "mm"), ("mm", "m")):
        by_hand(path, wanted, length=true)
        replace(path, "nirs/metaDataTags/LengthUnit", said, dtype=h5py.string_dtype())
        refused(path, "mm apart: another unit?", "accepted: mm, cm, m", wavelength=850, frequency=140e6)
        same(snirf.read(path, 850, 140e6, units={"length": true}), wanted, exact=False)
    by_hand(path, wanted, frequency="MHz")
    replace(path, "nirs/metaDataTags/FrequencyUnit", "Hz", dtype=h5py.string_dtype())
    refused(path, "modulated at 140 Hz: in another unit?", wavelength=850, frequency=140)


@pytest.mark.parametrize("unit", ["mHz", "hz", "kg"])
def test_unknown_units_are_refused(file, unit):
    """SNIRF's units are case-sensitive: mHz is not MHz."""
    for name in ("LengthUnit", "FrequencyUnit"):
        replace(file, f"nirs/metaDataTags/{name}", unit, dtype=h5py.string_dtype())
        refused(file, f"{name} is {unit!r}", "accepted: ")
        replace(file, f"nirs/metaDataTags/{name}", {"L": "mm", "F": "Hz"}[name[0]], dtype=h5py.string_dtype())
    replace(file, "nirs/data1/measurementList25/dataUnit", "turns", dtype=h5py.string_dtype())
    refused(file, "dataUnit is 'turns'", "accepted: rad, ", "deg, ")


def test_files_that_are_none_are_refused(tmp_path):
    refused(tmp_path / "none.snirf", "no such file")
    refused(tmp_path, "a directory")
    text = tmp_path / "text.snirf"
    text.write_text("source,detector\n", encoding="utf-8")
    refused(text, "no HDF5 file")
    snirf.write(tmp_path / "good.snirf", probe())
    text.write_bytes((tmp_path / "good.snirf").read_bytes()[:5000])
    refused(text, "truncated")
    with h5py.File(text, "w") as file:
        file["volumes"] = 1
    refused(text, "no group nirs", "volumes")


def test_continuous_wave_is_refused(file):
    with h5py.File(file, "r+") as held:
        for k in range(40):
            held[f"nirs/data1/measurementList{k + 1}/dataType"][()] = 1
    refused(file, "no frequency-domain data: data types 1 (continuous wave); accepted: 101 with 102")
    with h5py.File(file, "r+") as held:
        for k, kind in enumerate((101, 201, 301, 410, 99999)):
            held[f"nirs/data1/measurementList{k + 1}/dataType"][()] = kind
    refused(file, "101 (frequency domain)", "201 (time domain)", "410 (correlation)", "99999 (processed)")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("probe/sourcePos3D", None, ("sourcePos3D is missing",)),
        ("probe/sourcePos3D", np.zeros((4, 2)), ("sourcePos3D", "(4, 2)", "accepted: (optodes, 3)")),
        ("probe/detectorPos3D", np.full((5, 3), np.nan), ("detectorPos3D", "finite")),
        ("probe/detectorPos3D", np.zeros(5), ("detectorPos3D", "(5,)")),
        ("probe/frequencies", None, ("frequencies is missing",)),
        ("probe/wavelengths", [b"850"], ("wavelengths has shape", "type")),
        ("probe/useLocalIndex", 1, ("useLocalIndex is set",)),
        ("probe", None, ("no group probe",)),
        ("metaDataTags", None, ("no group metaDataTags",)),
        ("data1", None, ("no group data",)),
        ("data1/dataTimeSeries", np.zeros(40), ("dataTimeSeries", "(40,)", "2 dimensions")),
        ("data1/dataTimeSeries", np.zeros((0, 40)), ("dataTimeSeries", "(0, 40)")),
        ("data1/dataTimeSeries", np.ones((2, 39)), ("measurement list is not that of 39 columns",)),
        ("data1/dataTimeSeries", np.ones((2, 41)), ("no group measurementList41",)),
        ("data1/dataTimeSeries", None, ("dataTimeSeries is missing",)),
        ("data1/dataOffset", np.ones(3), ("dataOffset", "accepted: 40 numbers")),
        ("data1/measurementList3/sourceIndex", 5, ("channel 3: sourceIndex is 5; accepted: 1 to 4",)),
        ("data1/measurementList3/sourceIndex", 0, ("channel 3: sourceIndex is 0; accepted: 1 to 4",)),
        ("data1/measurementList3/detectorIndex", 6, ("channel 3: detectorIndex is 6; accepted: 1 to 5",)),
        ("data1/measurementList3/detectorIndex", 1.5, ("channel 3: detectorIndex is 1.5",)),
        ("data1/measurementList3/wavelengthIndex", 2, ("wavelengthIndex is 2; accepted: 1 to 1",)),
        ("data1/measurementList3/dataTypeIndex", 2, ("dataTypeIndex is 2; accepted: 1 to 1",)),
        ("data1/measurementList3/dataTypeIndex", None, ("measurementList3/dataTypeIndex is missing",)),
        ("data1/measurementList3/detectorIndex", 2, ("20 channels of type 101 for 19 pairs",)),
    ],
)
def test_faults_are_named(file, name, value, words):
    replace(file, f"nirs/{name}", value)
    refused(file, *words)


def test_flattened_positions_do_not_suffice(file):
    replace(file, "nirs/probe/sourcePos3D", None)
    replace(file, "nirs/probe/sourcePos2D", np.zeros((4, 2)))
    refused(file, "sourcePos3D is missing; sourcePos2D", "does not suffice")


def test_measurement_lists_of_another_length_are_refused(path):
    wanted = probe()
    by_hand(path, wanted, lists=True)
    replace(path, "nirs/data1/measurementLists/sourceIndex", np.ones(159, dtype="i4"))
    refused(path, "measurementLists/sourceIndex", "(159,)", "accepted: 160 numbers")
    by_hand(path, wanted, lists=True)
    replace(path, "nirs/data1/measurementLists/dataUnit", ["V"] * 159, dtype=h5py.string_dtype())
    refused(path, "measurement list is not that of 160 columns")


def test_offset_is_added(file):
    """`dataOffset`, when added to the series, results in absolute values."""
    before = snirf.read(file)
    with h5py.File(file, "r+") as held:
        held["nirs/data1/dataOffset"] = np.where(np.arange(40) < 20, 1.0, 0.25)
    after = snirf.read(file)
    np.testing.assert_allclose(np.exp(after.log_amplitude), np.exp(before.log_amplitude) + 1, rtol=1e-14)
    np.testing.assert_allclose(after.phase, before.phase + 0.25, rtol=1e-14)


def test_values_in_arrays_and_strings_of_fixed_length_are_read(file):
    """What some writers store, though the specification asks for scalars and variable length."""
    wanted = snirf.read(file)
    replace(file, "nirs/metaDataTags/LengthUnit", np.array([b"mm"]))
    replace(file, "nirs/metaDataTags/FrequencyUnit", np.bytes_("Hz"))
    replace(file, "nirs/data1/measurementList25/dataUnit", np.bytes_("radian"))
    replace(file, "nirs/data1/measurementList25/sourceIndex", np.array([1.0]))
    same(snirf.read(file), dataclasses.replace(wanted, excluded=EMPTY))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("a.h5", {}, "suffix '.h5'; accepted: '.snirf'"),
        ("a.snirf", {"phase": np.zeros(3)}, "differ in number"),
        ("a.snirf", {"sigma": np.where(np.arange(40).reshape(20, 2) < 3, np.nan, 0.1)}, "37 of 40 readings"),
    ],
)
def test_recordings_that_cannot_be_written_are_refused(tmp_path, name, changes, words):
    with pytest.raises(snirf.SnirfError, match=words):
        snirf.write(tmp_path / name, dataclasses.replace(probe(), **changes))
    assert not list(tmp_path.iterdir())


def test_file_is_as_the_specification_asks(path):
    """Its required items, and no others but labels and units of phases; integers of 32 bits, strings of any length."""
    snirf.write(path, probe())
    tags = ("SubjectID", "MeasurementDate", "MeasurementTime", "LengthUnit", "TimeUnit", "FrequencyUnit")
    strings = ["formatVersion", *(f"nirs/metaDataTags/{name}" for name in tags)]
    strings += [f"nirs/data1/measurementList{k}/dataUnit" for k in range(21, 41)]
    indices = ("sourceIndex", "detectorIndex", "wavelengthIndex", "dataType", "dataTypeIndex")
    integers = [f"nirs/data1/measurementList{k}/{name}" for k in range(1, 41) for name in indices]
    ranks = {"data1/dataTimeSeries": 2, "data1/time": 1, "probe/wavelengths": 1, "probe/frequencies": 1}
    ranks |= {"probe/sourcePos3D": 2, "probe/detectorPos3D": 2}
    labels = ["nirs/probe/sourceLabels", "nirs/probe/detectorLabels"]
    found = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        assert sorted(found) == sorted([*strings, *integers, *labels, *(f"nirs/{name}" for name in ranks)])
        for name in strings + labels:
            assert h5py.check_string_dtype(file[name].dtype).length is None
        assert all(file[name].shape == () for name in strings + integers)
        assert {file[name].dtype for name in integers} == {np.dtype("i4")}
        assert all(
            (file[f"nirs/{name}"].ndim, file[f"nirs/{name}"].dtype) == (rank, "f8") for name, rank in ranks.items()
        )
        assert file["nirs/data1/dataTimeSeries"].shape == (2, 40) and len(file["nirs/data1/time"]) == 2


def test_validator_of_others_accepts_our_file(path, monkeypatch):
    """The format's own validator: no error and no warning; its reader finds our numbers."""
    monkeypatch.chdir(path.parent)  # it leaves a log
    pysnirf = pytest.importorskip("snirf")
    wanted = probe()
    snirf.write(path, wanted)
    result = pysnirf.validateSnirf(str(path))
    assert result.is_valid() and not result.errors and not result.warnings, result.codes
    with pysnirf.Snirf(str(path), "r") as held:
        data, geometry = held.nirs[0].data[0], held.nirs[0].probe
        assert np.array_equal(geometry.detectorPos3D, wanted.detectors)
        channel = data.measurementList[20 + 7]
        assert (channel.sourceIndex, channel.detectorIndex, channel.dataType) == (2, 3, 102)
        assert np.allclose(data.dataTimeSeries.mean(0)[27], wanted.phase[7], rtol=1e-14)


def test_file_written_by_others_reads_the_same(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    pysnirf = pytest.importorskip("snirf")
    wanted = single(probe())
    held = pysnirf.Snirf()
    held.formatVersion = "1.1"
    held.nirs.appendGroup()
    nirs = held.nirs[0]
    tags = {"SubjectID": "phantom", "MeasurementDate": "2024-01-31", "MeasurementTime": "12:00:00Z"}
    for name, value in {**tags, "LengthUnit": "cm", "TimeUnit": "s", "FrequencyUnit": "MHz"}.items():
        setattr(nirs.metaDataTags, name, value)
    nirs.probe.wavelengths, nirs.probe.frequencies = np.array([850.0]), np.array([140.0])
    nirs.probe.sourcePos3D, nirs.probe.detectorPos3D = wanted.sources / 10, wanted.detectors / 10
    nirs.probe.sourceLabels = [f"S{k}" for k in range(4)]
    nirs.probe.detectorLabels = [f"D{k}" for k in range(5)]
    nirs.data.appendGroup()
    data = nirs.data[0]
    data.dataTimeSeries = np.concatenate([np.rad2deg(wanted.phase), np.exp(wanted.log_amplitude)])[None]
    data.time = np.zeros(1)
    for k in range(40):
        data.measurementList.appendGroup()
        channel = data.measurementList[k]
        channel.sourceIndex, channel.detectorIndex = (wanted.pairs[k % 20] + 1).tolist()
        channel.dataType, channel.dataUnit = (102, "deg") if k < 20 else (101, "V")
        channel.wavelengthIndex = channel.dataTypeIndex = 1
    held.save(str(path))
    held.close()
    same(snirf.read(path), wanted, exact=False)


def pipe(kind):
    """What puts another file, a pipe that nobody writes to, in the place of a dataset."""

    def make(file, name, values):
        if kind == "link":
            file[name] = h5py.ExternalLink("pipe", "/x")
        elif kind == "soft":
            file[name] = h5py.SoftLink("/nirs/probe/wavelengths")
        elif kind == "storage":
            file.create_dataset(name, values.shape, values.dtype, external=[("pipe", 0, values.nbytes)])
        else:
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            layout[:] = h5py.VirtualSource("pipe", name, values.shape)
            file.create_virtual_dataset(name, layout)

    return make


@pytest.mark.parametrize("kind", ["link", "soft", "storage", "virtual"])
@pytest.mark.parametrize("name", ["nirs/probe/sourcePos3D", "nirs/data1/dataTimeSeries"])
def test_items_of_other_files_are_refused_and_these_not_opened(file, kind, name, monkeypatch):
    os.mkfifo(file.with_name("pipe"))
    monkeypatch.chdir(file.parent)
    with h5py.File(file, "r+") as held:
        values = held[name][()]
        del held[name]
        pipe(kind)(held, name, values)
    start = time.monotonic()
    refused(file, f"/{name}", "accepted: items of the file itself")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("name", ["nirs/probe/sourcePos3D", "nirs/data1/dataTimeSeries"])
def test_header_that_claims_more_than_memory_is_one_line(file, name):
    with h5py.File(file, "r+") as held:
        del held[name]
        held.create_dataset(name, (10**10, 3), "f8", chunks=True)
    with pytest.raises(snirf.SnirfError, match=r"reading it took more than 2 GB; damaged, or made to do harm$"):
        snirf.read(file)


def test_names_in_a_file_do_not_act_on_the_terminal(file):
    with h5py.File(file, "r+") as held:
        del held["nirs/probe"]
        held.create_group("nirs/\x1b[2Jprobe\nno")
    with pytest.raises(snirf.SnirfError) as error:
        snirf.read(file)
    assert str(error.value).isprintable() and "[2Jprobe" in str(error.value)
