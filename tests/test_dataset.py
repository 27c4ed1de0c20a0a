"""The dataset of a configuration or of a user's file: what it is called, what it holds, and which files are refused."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tiny import RECORDED

from dotlib import arms, config, study
from dotlib.config import Data
from dotlib.data import checks, dataset, ledger, phantoms, simulate, split, store
from dotlib.data.store import StoreError


def changed(**fields):
    """The small configuration with other fields, those of its measurements by `measurements__name`."""
    inner = {name.split("__")[1]: value for name, value in fields.items() if "__" in name}
    outer = {name: value for name, value in fields.items() if "__" not in name}
    measurements = RECORDED.measurements.model_dump() | inner
    return config.validate(Data, RECORDED.model_dump() | {"measurements": measurements} | outer)


@pytest.fixture
def folder(recorded, tmp_path, monkeypatch):
    """A folder that has the small file under its name; whatever simulates fails the test."""
    shutil.copy(recorded, dataset.location(RECORDED, tmp_path))
    monkeypatch.setattr(simulate, "simulate", lambda *arguments: pytest.fail("simulated"))
    return tmp_path


@pytest.fixture
def own(recorded, tmp_path):
    """A copy to be changed: `own(name=array or None, ...)` writes a user's file of those datasets, None without."""

    def make(*names, **arrays):
        path = tmp_path / "own.h5"
        with store.File(recorded) as source, h5py.File(path, "w") as file:
            file.attrs["schema"] = store.SCHEMA
            for name, array in ({name: source.raw(name) for name in names or source.names} | arrays).items():
                if array is not None:
                    file[name] = array
                    file[name].attrs["unit"] = store.COLUMNS[name].unit if name in store.COLUMNS else ""
        return path

    return make


def test_file_is_simulated_where_it_is_missing(tmp_path, recorded, monkeypatch):
    monkeypatch.setattr(simulate, "simulate", lambda c, path: asked.append(shutil.copy(recorded, path)))
    asked = []
    first, again = dataset.load(RECORDED, tmp_path), dataset.load(RECORDED, tmp_path)
    assert asked == [dataset.location(RECORDED, tmp_path)] and first.digest == again.digest


def test_location_tells_what_the_file_holds():
    name = dataset.location(RECORDED, Path("x")).name
    assert name.startswith("default-36-32-") and name.endswith(".h5")
    other = [
        {"seed": 4}, {"family": "deep"}, {"phantoms": 37}, {"grid": 64}, {"measurements__grid": 48},
        {"measurements__frequency": 1e8}, {"measurements__precise": True}, {"measurements__n": 1.4},
        {"measurements__noise": {"seed": 1}}, {"measurements__noise": {"coupling": 0.1}},
    ]  # fmt: skip
    names = {dataset.location(changed(**fields), Path("x")).name for fields in other}
    assert len(names | {name}) == 1 + len(other)
    same = [{"fractions": (1, 1, 1)}, {"grid": 16, "measurements__grid": 32}, {"measurements__grid": 32}]
    assert {dataset.location(changed(**fields), Path("x")).name for fields in same} == {name}


@pytest.mark.parametrize("what", ["physics", "tables"])
def test_location_changes_with_the_physics_and_the_sampling(monkeypatch, what):
    before, key = dataset.location(RECORDED, Path("x")), dataset.key(RECORDED)
    if what == "physics":
        monkeypatch.setattr(store, "PHYSICS", 0)
    else:
        plain = dataset._tables
        monkeypatch.setattr(dataset, "_tables", lambda *a: plain(*a) * np.float32(1.001))
    assert dataset.location(RECORDED, Path("x")) != before and dataset.key(RECORDED) != key


@pytest.mark.parametrize(("module", "name"), [(dataset, "QUALITY_EDGE"), (checks, "LEGEND")])
def test_key_changes_with_the_rules_of_the_split(monkeypatch, module, name):
    key, plain = dataset.key(RECORDED), dataset.key(Data(phantoms=36, grid=32, seed=3))
    monkeypatch.setattr(module, name, "other")
    assert dataset.key(RECORDED) != key and dataset.key(Data(phantoms=36, grid=32, seed=3)) == plain


def test_legend_knows_the_version_and_the_order_of_the_checks():
    assert json.loads(checks.LEGEND) == [checks.CHECKS, *checks.REASONS]


def test_key_needs_no_file(folder):
    keys = {dataset.key(c) for c in (RECORDED, changed(seed=4), changed(fractions=(1, 1, 1)), changed(grid=64))}
    assert len(keys) == 4
    plain = Data(phantoms=36, grid=32, seed=3)
    assert dataset.key(plain) == dataset.load(plain).digest not in keys


def test_study_sees_to_its_files_before_it_starts_workers(tmp_path, monkeypatch, nothing_computes):
    order = []
    run = study.Run(config=arms.arm("stage1-adam", "smoke"), data="0", store=tmp_path)
    monkeypatch.setattr(dataset, "prepare", order.append)
    with pytest.raises(pytest.fail.Exception, match="workers were started"):
        study.compute({("a", 0): run, ("a", 1): run})
    assert order == [run.config.data]


def test_parts_hold_their_phantoms_and_readings(folder, recorded):
    data = dataset.load(changed(fractions=(4, 1, 1)), folder)
    with store.File(recorded) as file:
        whole = {name: file.raw(name) for name in file.names}
    seen = []
    for i, part in enumerate(split.NAMES):
        found = data.measurements(part, "ellipsoids", *store.MEASURED, "phi_clean")
        np.testing.assert_array_equal(found["ellipsoids"], data.part(part))
        for name, values in found.items():
            np.testing.assert_array_equal(values, whole[name][data.labels == i])
        seen.append(len(found["phase"]))
    assert seen == [24, 6, 6] and set(data.measurements("test")) == set(store.MEASURED)
    assert torch.equal(data.volumes("test"), phantoms.rasterise(data.part("test"), 32))


def test_split_is_the_users_or_that_of_the_fractions(own, recorded):
    with store.File(recorded) as file:
        stratum = split.strata(file.raw("ellipsoids"), split.quality(file.raw("sigma")))
    expected = split.split(stratum, (14, 3, 3), 3)
    np.testing.assert_array_equal(dataset.read(recorded, seed=3).labels, expected)
    users = np.arange(36).astype("i1") % 3
    assert dataset.read(own(split=users)).labels.tolist() == users.tolist()
    np.testing.assert_array_equal(dataset.read(own(split=users), fractions=(14, 3, 3), seed=3).labels, expected)


def test_digest_changes_with_a_reading(own, recorded):
    with store.File(recorded) as file:
        phase = file.raw("phase")
    before = dataset.read(own(phase=phase.copy())).digest
    phase[7, 3] = np.nextafter(phase[7, 3], np.float32(9))
    assert dataset.read(own(phase=phase)).digest != before == dataset.read(recorded).digest


def test_bad_phantoms_are_in_no_part_and_are_counted(own, recorded, capsys):
    with store.File(recorded) as file:
        sigma = file.raw("sigma")
    sigma[[2, 30]] = np.nan
    data = dataset.read(own(sigma=sigma, checks=None), fractions=(4, 1, 1))
    assert np.flatnonzero(data.labels < 0).tolist() == [2, 30]
    assert sum(len(data.part(name)) for name in split.NAMES) == 34
    assert "2 of 36 phantoms are excluded" in capsys.readouterr().err
    assert all(np.isfinite(data.measurements(name)["sigma"]).all() for name in split.NAMES)


def test_phantoms_without_measurements_have_none():
    with pytest.raises(ValueError, match=r"data\.measurements is None"):
        dataset.load(Data(phantoms=24, grid=16)).measurements("train")


def test_own_volumes_can_be_read(own):
    tables = phantoms.sample("default", 36, 1)
    volumes, mask = phantoms.rasterise(tables, 16).numpy(), phantoms.labels(tables, 16).numpy() > 0
    mask[:, [0, -1]] = mask[:, :, [0, -1]] = mask[..., [0, -1]] = False
    volumes = np.where(mask[:, None], np.maximum(volumes, [[[[[0.003]]], [[[0.78]]]]]), 0).astype("f4")
    data = dataset.read(own("family", volumes=volumes, mask=mask))
    assert data.grid == 16 and (data.labels >= 0).all()
    np.testing.assert_array_equal(data.volumes("test").numpy(), volumes[data.labels == 2])
    np.testing.assert_array_equal(data.tissue("test").numpy(), mask[data.labels == 2])
    np.testing.assert_allclose(data.mean("train").numpy(), volumes[data.labels == 0].mean(0), atol=1e-6)
    assert dataset.standard(data.volumes("train"))[0][1] > 0.78
    with pytest.raises(StoreError, match="'sources' is missing"):
        data.measurements("train")
    with pytest.raises(StoreError, match=r"volumes of 16\^3, not 32\^3"):
        dataset.read(own("family", volumes=volumes, mask=mask), grid=32)


def test_own_measurements_without_truth_can_be_read(own, recorded):
    data = dataset.read(own(*store.MEASURED))
    assert np.abs(np.bincount(data.labels) - [25.2, 5.4, 5.4]).max() < 2
    with store.File(recorded) as file:
        np.testing.assert_array_equal(data.measurements("test")["phase"], file.raw("phase")[data.labels == 2])
    with pytest.raises(StoreError, match="'volumes' is missing"):
        data.volumes("test")


def test_file_of_another_configuration_is_refused(folder):
    shutil.move(dataset.location(RECORDED, folder), dataset.location(changed(seed=4), folder))
    with pytest.raises(StoreError, match=r"holds .*, not .*") as error:
        dataset.load(changed(seed=4), folder)
    assert "\n" not in str(error.value)


FAULTS = {
    "schema": (lambda f: f.attrs.__setitem__("schema", 2), "schema 2; accepted: 1"),
    "no schema": (lambda f: f.attrs.__delitem__("schema"), "schema None; accepted: 1"),
    "missing": (lambda f: f.__delitem__("sigma"), "dataset 'sigma' is missing"),
    "no truth, no readings": (lambda f: [f.__delitem__(n) for n in ("ellipsoids", *store.MEASURED)], "is missing"),
    "unknown": (lambda f: f.move("family", "families"), "unknown dataset 'families'"),
    "schema of text": (lambda f: f.attrs.__setitem__("schema", "a\nb" * 99), r"schema 'a\\nb.{,80}; accepted: 1"),
    "digests": (lambda f: f.__setitem__("digests", [b"x" * 16] * 2), r"digests are no dataset of shape \(3,\)"),
    "digests of another type": (lambda f: f.__setitem__("digests", np.zeros(3)), "digests are no dataset"),
    "digests, a group": (lambda f: f.create_group("digests"), "digests are no dataset"),
    "shape": (lambda f: replaced(f, "phase", lambda a: a[:, :-1]), r"phase has shape \(36, 23\); accepted: \(36, 24\)"),
    "axes": (lambda f: replaced(f, "sources", lambda a: a[0]), r"sources has shape"),
    "phantoms": (lambda f: replaced(f, "sigma", lambda a: a[:-1]), "sigma has shape"),
    "type": (lambda f: replaced(f, "phase", lambda a: a.astype("f8")), "phase has type float64; accepted: float32"),
    "unit": (lambda f: f["phase"].attrs.__setitem__("unit", "deg"), "phase has unit 'deg'; accepted: 'rad'"),
    "no unit": (lambda f: f["sources"].attrs.__delitem__("unit"), "sources has unit None; accepted: 'mm'"),
    "group": (lambda f: (f.__delitem__("phase"), f.create_group("phase")), "phase is no dataset"),
    "NaN": (lambda f: f["sigma"].__setitem__((5, 2, 0), np.nan), "sigma: phantom 5 is not finite"),
    "infinity": (lambda f: f["phase"].__setitem__((6, 1), np.inf), "phase: phantom 6 is not finite"),
    "half a row": (lambda f: f["ellipsoids"].__setitem__((7, 1, 3), np.nan), "ellipsoids: phantom 7 is not finite"),
    "half a sd": (lambda f: (lose(f, 5), f["sigma"].__setitem__((5, 3), np.nan)), "sigma: phantom 5 is not finite"),
    "split": (lambda f: f.__setitem__("split", np.full(36, 7, "i1")), "split holds"),
    "no part": (
        lambda f: f["checks"].__setitem__(slice(None), 2),
        f"no usable phantom; phantom 0: {checks.REASONS[1]}",
    ),
}


def lose(file, phantom):
    for name in (*store.LOST, "sigma"):
        file[name][phantom, 2] = np.nan


def replaced(file, name, change):
    unit, values = file[name].attrs["unit"], change(file[name][:])
    del file[name]
    file[name] = values
    file[name].attrs["unit"] = unit


@pytest.mark.parametrize("fault", FAULTS)
def test_file_with_a_fault_is_one_line(recorded, tmp_path, fault):
    """It names the file, the dataset and, where it is one phantom's, the phantom."""
    spoil, line = FAULTS[fault]
    path = shutil.copy(recorded, tmp_path / "own.h5")
    with h5py.File(path, "r+") as file:
        del file["digests"]
        if fault == "half a row":
            file["ellipsoids"][7, 1] = file["ellipsoids"][7, 0]
        spoil(file)
    with pytest.raises(StoreError, match=line) as error:
        data = dataset.read(path)
        for part in split.NAMES:
            data.measurements(part)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_lost_pair_without_sd_is_read(own, recorded):
    with store.File(recorded) as file:
        c = {name: file.raw(name) for name in (*store.LOST, "sigma")}
    for values in c.values():
        values[5, 2] = np.nan
    data = dataset.read(own(**c), fractions=(1, 1, 1))
    assert (data.labels >= 0).all() and sum(np.isnan(data.measurements(n)["sigma"]).sum() for n in split.NAMES) == 2


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_unreadable_file_keeps_the_systems_words(recorded, monkeypatch, code):
    def refuse(*arguments, **options):
        raise OSError(code, "Unable to synchronously open file")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(StoreError, match=f"small.h5: {os.strerror(code)}$"):
        store.File(recorded)


@pytest.mark.parametrize("shape", [(16, 16, 32), (20, 20, 20)])
def test_volumes_are_cubes_of_a_grid_that_the_models_take(own, shape):
    volumes, mask = np.ones((36, 2, *shape), "f4"), np.ones((36, *shape), bool)
    with pytest.raises(StoreError, match=r"accepted: \(36, 2, 16, 16, 16\)|volumes of 20\^3; accepted: 16, 32, 64"):
        dataset.read(own("family", volumes=volumes, mask=mask))


def test_grid_that_nobody_named_is_one_line(recorded):
    data = dataset.read(recorded)
    assert data.grid is None and dataset.read(recorded, 32).volumes("test").shape[-1] == 32
    for ask in (data.volumes, data.mean, data.tissue, lambda _: data.voxel):
        with pytest.raises(StoreError, match="no grid was named; accepted: 16, 32, 64"):
            ask("test")


def test_changed_reading_beside_its_digest_is_refused(recorded, tmp_path):
    path = shutil.copy(recorded, tmp_path / "own.h5")
    with h5py.File(path, "r+") as file:
        file["phase"][20, 0] += 0.01
    with pytest.raises(StoreError, match=r"phantoms 16-31 are damaged \(digest"):
        dataset.read(path)


def read_all(path):
    with store.File(path) as file:
        file.digests()
        return {name: file.read(name) for name in file.names}


@pytest.mark.parametrize("harm", ["missing", "empty", "text", "first half", "last byte"])
def test_file_that_is_no_whole_file_is_one_line(recorded, tmp_path, harm):
    path, content = tmp_path / "own.h5", recorded.read_bytes()
    cut = {
        "empty": b"",
        "text": b"phantoms\n" * 99,
        "first half": content[: len(content) // 2],
        "last byte": content[:-1],
    }
    if harm != "missing":
        path.write_bytes(cut[harm])
    with pytest.raises(StoreError) as error:
        read_all(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_no_flipped_bit_is_read_as_data(recorded, tmp_path):
    """Wherever it is: the file is refused, or what is read of it is the same."""
    content, whole, path = recorded.read_bytes(), read_all(recorded), tmp_path / "own.h5"
    rng, refused = np.random.default_rng(0), 0
    for place in rng.choice(len(content), 300, replace=False):
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << rng.integers(8)
        path.write_bytes(spoilt)
        try:
            found = read_all(path)
        except StoreError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
        else:
            assert list(found) == list(whole)
            for name in whole:
                np.testing.assert_array_equal(found[name], whole[name], err_msg=f"byte {place}")
    assert refused > 200


def test_damaged_block_is_named(recorded, tmp_path):
    path = tmp_path / "own.h5"
    with h5py.File(recorded) as file:
        start = file["phase"].id.get_chunk_info(1).byte_offset
    content = bytearray(recorded.read_bytes())
    content[start + 100] ^= 8
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"phase: phantoms 16-31 are damaged \(checksum\)"):
        store.File(path)
    ledger.remember(hashlib.sha256(content).hexdigest())  # as one of ours that is damaged where its place does not show
    with store.File(path) as file:
        file.read("sigma")
        file.read("phase", 0, 16)
        with pytest.raises(StoreError, match=r"phase: phantoms 16-31 are damaged \(checksum\)"):
            file.read("phase", 20, 22)


def test_damaged_digests_are_one_line(recorded, tmp_path):
    path, content = tmp_path / "own.h5", bytearray(recorded.read_bytes())
    with h5py.File(recorded) as file:
        content[file["digests"].id.get_chunk_info(0).byte_offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"own\.h5: digests are damaged"):
        store.File(path)
    ledger.remember(hashlib.sha256(content).hexdigest())
    for use in (store.File.digests, store.File.content):
        with store.File(path) as file, pytest.raises(StoreError, match=r"own\.h5: digests are damaged"):
            use(file)


def test_content_that_is_not_what_was_written_is_seen(recorded, tmp_path):
    """Sound checksums over other numbers: the digest of the shard tells."""
    path = shutil.copy(recorded, tmp_path / "own.h5")
    with h5py.File(path, "r+") as file:
        file["phase"][33, 0] += 1
    with pytest.raises(StoreError, match=r"phantoms 32-35 are damaged \(digest"):
        store.File(path)
    ledger.remember(hashlib.sha256(path.read_bytes()).hexdigest())
    with store.File(path) as file, pytest.raises(StoreError, match=r"phantoms 32-35 are damaged \(digest"):
        file.digests()


def test_reading_a_range_reads_these_phantoms(recorded):
    with store.File(recorded) as file:
        whole = file.read("phase")
        for a, b in ((0, 1), (15, 17), (20, 36), (35, 99)):
            np.testing.assert_array_equal(file.read("phase", a, b), whole[a:b])


def test_quality_that_is_stored_is_that_of_the_readings(recorded, tmp_path):
    """So that a file of many phantoms is split without reading what they hold."""
    with store.File(recorded) as file:
        np.testing.assert_array_equal(file.raw("quality"), split.quality(file.raw("sigma")))
    path = shutil.copy(recorded, tmp_path / "own.h5")
    with h5py.File(path, "r+") as file:
        del file["quality"]
    for fractions in (None, (4, 1, 1)):
        a, b = (dataset.read(p, 16, fractions) for p in (recorded, path))
        assert a.labels.tolist() == b.labels.tolist() and a.digest == b.digest
