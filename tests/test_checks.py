"""The verification of records: a fault made by hand in one phantom of a good file is found there, and only there."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from dotlib import __main__ as command
from dotlib.config import Data, Measurements
from dotlib.data import checks, dataset, phantoms, recording, store
from dotlib.data.phantoms import AXES, CENTRE, EXPONENT, MUA, MUSP, QUATERNION
from dotlib.data.surface import Surface

BAD = 4  # the phantom that is spoilt


def spoil(columns, change):
    """The columns with phantom BAD changed by `change(its columns)`, in place of a copy."""
    out = {name: values.copy() for name, values in columns.items()}
    change({name: values[BAD] for name, values in out.items() if values.ndim > 1}, out)
    return out


def outward(c, by):
    """Move source 1 along the normal."""
    point = torch.from_numpy(c["sources"][1:2].astype(float))
    c["sources"][1] = (point + by * Surface(c["ellipsoids"][0])(point)[1])[0].numpy()


def put(name, where, value):
    return lambda c, _: c[name].__setitem__(where, value)


def bigger(c, _):
    c["ellipsoids"][0, AXES] *= 33 / 25


def outside(c, _):
    c["ellipsoids"][1, CENTRE] = Surface(c["ellipsoids"][0]).along(np.array([[0.0, 0, -1]]))[0]


def together(c, _):
    source, detector = c["pairs"][3]
    c["detectors"][detector] = c["sources"][source]


def far(c, _):
    source, detector = c["pairs"][3]
    c["detectors"][detector] = Surface(c["ellipsoids"][0]).along(-c["sources"][source][None].astype(float))[0]


FAULTS = {
    "not finite": [
        put("sigma", (0, 1), np.nan), put("log_amplitude", 2, np.inf), put("phase", 2, np.nan),
        put("sigma", (0, 0), -1), put("sources", (1, 1), np.nan), put("ellipsoids", (0, MUA), np.nan),
        put("phi_clean", 0, np.nan), put("log_amplitude", 5, np.nan),
    ],
    "property out of range": [
        put("ellipsoids", (0, MUA), 0), put("ellipsoids", (1, MUSP), -1), put("ellipsoids", (1, MUA), 0.2),
        put("ellipsoids", (0, QUATERNION), 0), put("ellipsoids", (1, AXES), -5), put("ellipsoids", (0, EXPONENT), 0.5),
    ],
    "pair names no optode": [put("pairs", (0, 1), 12), put("pairs", (0, 0), -1)],
    "optode off the surface": [lambda c, _: outward(c, 0.12), lambda c, _: outward(c, -0.12)],
    "pair measured twice": [lambda c, _: c["pairs"].__setitem__(0, c["pairs"][1])],
    "separation outside 10-40 mm": [together, far],
    "sd of ln A above 0.3 in most pairs": [put("sigma", (slice(13), 0), 0.31)],
    "most pairs lost": [lambda c, _: [c[name].__setitem__(slice(13), np.nan) for name in store.LOST]],
    "ln A outside -46 ... 7": [put("log_amplitude", 3, -47), put("log_amplitude", 3, 8)],
    "ln A does not fall with separation": [
        lambda c, _: c["log_amplitude"].__setitem__(slice(None), np.exp(c["log_amplitude"])),
        lambda c, out: c["log_amplitude"].__setitem__(slice(None), out["log_amplitude"][BAD + 1]),
        lambda c, _: c["log_amplitude"].__setitem__(slice(None), c["log_amplitude"][::-1]),
    ],
    "phase on another branch": [
        lambda c, _: c["phase"].__setitem__(0, c["phase"][0] + 2 * np.pi),
        lambda c, _: c["phase"].__setitem__(slice(5), c["phase"][:5] - 2 * np.pi),
        lambda c, _: c["phase"].__setitem__(slice(None), -c["phase"]),
    ],
    "inclusion embedded below 80%": [outside],
    "tissue touches the cube's wall": [bigger],
}  # fmt: skip
CASES = [(reason, i) for reason, changes in FAULTS.items() for i in range(len(changes))]


def test_good_phantoms_have_no_fault(columns, recorded):
    assert not checks.examine(columns).any()
    faults, changed = checks.report(recorded)
    assert len(faults) == 36 and not faults.any() and changed == 0


def test_every_reason_is_tried():
    assert {*FAULTS, checks.DUPLICATE} == set(checks.REASONS)


@pytest.mark.parametrize(("reason", "case"), CASES)
def test_fault_is_found_in_its_phantom(columns, reason, case):
    bits = checks.examine(spoil(columns, FAULTS[reason][case]))
    assert reason in checks.reasons(bits[BAD])
    assert not np.delete(bits, BAD).any()
    also = {"separation outside 10-40 mm": 3, "tissue touches the cube's wall": 3}  # what moves, also leaves its place
    assert len(checks.reasons(bits[BAD])) <= also.get(reason, 1)


def test_small_deviations_are_no_fault(columns):
    """An optode 0.08 mm off, a tenth of the pairs lost, a noisy tenth, an instrument's phase offset."""

    def change(c, _):
        outward(c, 0.08)
        for name in store.LOST:
            c[name][:2] = np.nan
        c["sigma"][:2, 0] = 1
        c["phase"] -= 2

    assert not checks.examine(spoil(columns, change)).any()


@pytest.mark.parametrize("offset", [0, 10, 20])
@pytest.mark.parametrize("frequency", [0, 1e6, 1e7])
def test_readings_of_little_phase_and_with_coupled_optodes_are_no_fault(frequency, offset, one_thread):
    noise = {"coupling": 0.1, "coupling_phase": offset}
    measured = Measurements(frequency=frequency, sources=4, detectors=12, pairs=24, noise=noise)
    found = recording.simulate(Data(phantoms=8, grid=32, measurements=measured), 0, 8)
    assert checks.reasons(np.bitwise_or.reduce(found["checks"])) == []


def test_lost_pairs_may_have_no_sd(columns):
    def lose(c, _):
        for name in (*store.LOST, "sigma"):
            c[name][:3] = np.nan

    assert not checks.examine(spoil(columns, lose)).any()


@pytest.mark.parametrize("wrapped", [0.1, 0.25])
def test_wrapped_phases_are_found_at_high_frequency(columns, wrapped):
    """The phases of a slope that takes the farthest pairs past half a turn, wrapped."""
    x = checks.separations(columns)[BAD]
    slope = np.pi / np.quantile(x, 1 - wrapped)
    straight = spoil(columns, lambda c, _: c["phase"].__setitem__(slice(None), slope * x))
    assert not checks.examine(straight).any()
    turned = spoil(columns, lambda c, _: c["phase"].__setitem__(slice(None), np.angle(np.exp(1j * slope * x))))
    assert checks.reasons(checks.examine(turned)[BAD]) == ["phase on another branch"]


@pytest.mark.parametrize("name", ["ellipsoids", "log_amplitude"])
def test_later_duplicate_is_the_faulty_one(columns, name):
    columns[name][5] = columns[name][1]
    seen = checks.Duplicates()
    first = seen({n: values[:3] for n, values in columns.items()})
    second = seen({n: values[3:] for n, values in columns.items()})
    found = np.concatenate([first, second])
    assert np.flatnonzero(found).tolist() == [5] and checks.reasons(found[5]) == [checks.DUPLICATE]


@pytest.fixture(scope="module")
def voxels():
    """Four phantoms as a user would give them, optodes on their surfaces."""
    tables = phantoms.sample("small", 4, 2)
    tables[:, 0, AXES] = 26
    volumes, mask = phantoms.hard(tables, 32).numpy(), phantoms.labels(tables, 32).numpy() > 0
    directions = np.array([[0.0, 0, 1], [0.5, 0, 1], [0, 0.5, 1], [0.4, 0.4, 1]])
    optodes = np.stack([Surface(rows[0]).along(directions) for rows in tables]).astype("f4")
    return {"volumes": volumes, "mask": mask, "sources": optodes[:, :1], "detectors": optodes[:, 1:]}


@pytest.mark.parametrize(
    ("reason", "name", "where", "value"),
    [
        (None, "mask", (2, 0, 0, 0), False),
        ("not finite", "volumes", (2, 0, 16, 16, 16), np.nan),
        ("property out of range", "volumes", (2, 0, 16, 16, 16), 0),
        ("property out of range", "volumes", (2, 1, 16, 16, 16), 99),
        ("optode off the surface", "sources", (2, 0, 2), 20),
        ("optode off the surface", "sources", (2, 0, 2), 31),
        ("optode off the surface", "sources", (2, 0, 2), 300),
    ],
)
def test_faults_of_voxels_are_found(voxels, reason, name, where, value):
    columns = {key: values.copy() for key, values in voxels.items()}
    columns[name][where] = value
    bits = checks.examine(columns)
    assert checks.reasons(bits[2]) == ([reason] if reason else []) and not np.delete(bits, 2).any()


def test_mask_at_the_wall_and_empty_mask_are_found(voxels):
    columns = {key: voxels[key].copy() for key in ("volumes", "mask")}
    columns["mask"][0] = False
    columns["mask"][1, 16, 16, :] = True
    columns["volumes"][1] = 0.5
    columns["volumes"][1, 0] = 0.01
    found = [checks.reasons(b) for b in checks.examine(columns)]
    assert found == [["property out of range"], ["tissue touches the cube's wall"], [], []]


@pytest.fixture
def spoilt(recorded, tmp_path):
    """A file of 36 phantoms: 5 with a NaN, 9 a duplicate of 8, stored without its checks and digests."""
    path = shutil.copy(recorded, tmp_path / "own.h5")
    with h5py.File(path, "r+") as file:
        file["sigma"][5, 0, 0] = np.nan
        for name in ("ellipsoids", *store.MEASURED):
            file[name][9] = file[name][8]
        del file["checks"], file["digests"]
    return path


def test_check_lists_bad_phantoms_and_draws_a_summary(spoilt, capsys):
    assert command.main(["check", str(spoilt)]) == 0
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == f"{spoilt}: 36 phantoms, 2 excluded" and err == ""
    assert {"not finite: 1", f"{checks.DUPLICATE}: 1"} < set(lines)
    assert {"phantom 5: not finite", f"phantom 9: {checks.DUPLICATE}"} < set(lines)
    assert Path(f"{spoilt}.summary.png").read_bytes().startswith(b"\x89PNG")


def test_summary_does_not_overwrite_the_file(recorded, tmp_path):
    path = shutil.copy(recorded, tmp_path / "data.png")
    assert command.main(["check", str(path)]) == 0
    assert path.read_bytes() == recorded.read_bytes() and (tmp_path / "data.png.summary.png").exists()


def test_check_says_where_the_stored_checks_differ(recorded, tmp_path, capsys):
    path = shutil.copy(recorded, tmp_path / "own.h5")
    with h5py.File(path, "r+") as file:
        file["checks"][3] = 1
    assert command.main(["check", str(path)]) == 0
    assert "the file's own checks differ for 1 phantoms" in capsys.readouterr().out


@pytest.mark.parametrize("legend", [b"[0]", None, checks.LEGEND.encode()])
def test_stored_checks_count_by_todays_legend_only(recorded, tmp_path, capsys, legend):
    path = shutil.copy(recorded, tmp_path / "own.h5")
    with h5py.File(path, "r+") as file:
        assert file.attrs["legend"].decode() == checks.LEGEND
        file["checks"][3] = 1
        del file.attrs["legend"]
        if legend:
            file.attrs["legend"] = np.bytes_(legend)
    known = legend == checks.LEGEND.encode()
    assert np.flatnonzero(dataset.read(path).labels < 0).tolist() == [3] * known
    assert checks.report(path)[1] == known


@pytest.mark.parametrize("harm", ["missing", "truncated", "flipped", "all bad"])
def test_check_of_a_file_that_cannot_be_used_ends_with_2(spoilt, capsys, harm):
    content = spoilt.read_bytes()
    if harm == "missing":
        spoilt.unlink()
    elif harm == "all bad":
        with h5py.File(spoilt, "r+") as file:
            file["sigma"][:] = np.nan
    else:
        with h5py.File(spoilt) as file:
            place = file["phase"].id.get_chunk_info(0).byte_offset
        spoilt.write_bytes(content[:9000] if harm == "truncated" else content[:place] + b"?" + content[place + 1 :])
    assert command.main(["check", str(spoilt)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"dotlib: {spoilt}: ") and err.count("\n") == 1


def test_check_without_a_place_for_its_figure_still_verifies(spoilt, capsys):
    Path(f"{spoilt}.summary.png").mkdir()
    assert command.main(["check", str(spoilt)]) == 0
    assert "no summary: " in capsys.readouterr().out


def test_summary_takes_usable_phantoms_at_equal_steps(recorded):
    usable = np.ones(36, dtype=bool)
    usable[::2] = False
    found = checks.sample(recorded, usable, most=9)
    with store.File(recorded) as file:
        expected = file.raw("log_amplitude")[1::2][::2]
        tables = file.raw("ellipsoids")[1::2][::2, 1:, AXES].prod(-1)
    np.testing.assert_array_equal(found["log_amplitude"], expected.ravel())
    np.testing.assert_allclose(found["radius"], np.cbrt(tables[np.isfinite(tables)]))
    assert found["separation"].shape == found["sigma"].shape == (9 * 24,)
