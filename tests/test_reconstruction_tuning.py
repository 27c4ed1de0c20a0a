"""Settings of the classical reconstructions: by validation phantoms alone, scored by numpy, taken from a record."""

import numpy as np
import pandas as pd
import pytest
import torch
from seen import BASE
from tiny import Inline

from dotlib import reconstruction_tuning as tuning
from dotlib.config import Lift
from dotlib.data import classical, dataset, lifts, phantoms, simulate, store
from dotlib.reconstruction_tuning import Setting
from dotlib.records import ResultsError

DATA = BASE.model_copy(update={"phantoms": 4, "fractions": (1, 2, 1), "grid": 32})
POINTS = {"homogeneous": (Setting(1.0, 5.0),), "tikhonov": (Setting(1.0, 5.0), Setting(8.0, 9.0))}


@pytest.fixture(scope="module")
def found(one_thread, tmp_path_factory):
    """The dataset: two validation phantoms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "ProcessPoolExecutor", Inline)
        patch.setattr(simulate, "_pace", lambda shard: 0.0)
        yield dataset.load(DATA, tmp_path_factory.mktemp("tuning"))


@pytest.fixture(scope="module")
def settings(found):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "SETTINGS", POINTS)
        return tuning.table(DATA, folder=found.path.parent)


@pytest.fixture(scope="module")
def masks(found):
    """What the probes of the validation phantoms cover, phantom by phantom."""
    where = np.flatnonzero(found.labels == 1)
    with store.File(found.path) as file:
        rows = [{name: file.raw(name)[i] for name in lifts.READ} for i in where]
    coarse = [lifts.covered(row, DATA, int(i)) for row, i in zip(rows, where, strict=True)]
    return np.kron(np.stack(coarse), np.ones((1, 2, 2, 2), bool))


def test_each_point_has_a_row(settings):
    assert settings.columns.tolist() == ["method", "regularisation", "length", "nrmse", "nrmse_covered", "n"]
    rows = settings[["method", "regularisation", "length"]].itertuples(index=False, name=None)
    assert list(rows) == [("homogeneous", 1.0, 5.0), ("tikhonov", 1.0, 5.0), ("tikhonov", 8.0, 9.0)]
    assert settings["n"].tolist() == [2, 2, 2]


def test_errors_are_those_of_mua_on_validation_phantoms(found, settings, masks):
    """By numpy, of the volumes that the file of the last point holds."""
    coarse = classical.volumes(DATA, Lift(), "tikhonov", 8.0, "validation", None, 9.0, found.path.parent)
    tables = found.ellipsoids[found.labels == 1]
    truth = phantoms.rasterise(tables, 32).numpy()[:, 0]
    tissue = phantoms.labels(tables, 32).numpy() > 0
    own = tables.copy()
    own[:, 1:] = np.nan
    own[:, 0, 11:] = 1
    pred = classical.refined(coarse, phantoms.rasterise(own, 32)[:, :1]).numpy()[:, 0]
    row = settings.iloc[-1]
    for name, where in (("nrmse", tissue), ("nrmse_covered", tissue & masks)):
        each = [
            np.sqrt(((p - t)[m] ** 2).sum() / (t[m] ** 2).sum()) for p, t, m in zip(pred, truth, where, strict=True)
        ]
        assert row[name] == pytest.approx(np.mean(each), rel=1e-3), name
    assert row["nrmse"] != pytest.approx(row["nrmse_covered"], rel=1e-3)


@pytest.mark.parametrize("most", [1, 2])
def test_coverage_is_that_of_the_first_validation_phantoms(found, masks, most):
    assert masks.any((1, 2, 3)).all() and not np.array_equal(*masks)
    assert torch.equal(tuning.coverage(DATA, found, most), torch.from_numpy(masks[:most]))


def test_no_other_part_is_asked_for(found, monkeypatch):
    """And no more phantoms than are named."""
    asked = []

    def volumes(data, lift, method, regularisation, part, most, length, folder):
        asked.append((method, regularisation, length, part, most))
        return torch.full((1, 2, 16, 16, 16), 0.005)

    monkeypatch.setattr(classical, "volumes", volumes)
    rows = tuning.table(DATA, 1, found.path.parent)
    assert [key[:3] for key in asked] == [(m, *point) for m, points in tuning.SETTINGS.items() for point in points]
    assert {key[3:] for key in asked} == {("validation", 1)} and set(rows["n"]) == {1}
    assert len(set(asked)) == len(asked) == 12 + 12 + 4


def made_up():
    """Settings whose best by all tissue is another than that by what is covered."""
    rows = [
        ("tikhonov", 0.5, 5, 0.30, 0.25), ("tikhonov", 1.0, 8, 0.29, 0.26), ("tv", 3.0, 5, 0.31, 0.28),
        ("tv", 10.0, 5, 0.31, np.nan), ("gaussian", 1.0, 10, 0.2, 0.21), ("gaussian", 3.0, 15, 0.2, 0.20),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "regularisation", "length", "nrmse", "nrmse_covered"]).assign(n=24)


BEST = {"tikhonov": Setting(0.5, 5), "tv": Setting(3.0, 5), "gaussian": Setting(3.0, 15)}


def test_best_has_the_least_error_in_what_is_covered():
    assert tuning.best(made_up()) == BEST
    assert tuning.best(made_up().iloc[::-1]) == BEST  # in any order


def test_recorded_settings_are_read_as_they_were_written(tmp_path, monkeypatch):
    folder = tmp_path / "results" / tuning.NAME
    tuning.save(made_up(), "quick", folder)
    rows, profile = tuning.load(folder)
    pd.testing.assert_frame_equal(rows, made_up(), check_dtype=False)
    assert profile == "quick"
    monkeypatch.setattr(tuning.configuration, "root", lambda: tmp_path)
    assert tuning.recorded() == BEST


def test_smaller_profile_does_not_replace_the_record(tmp_path):
    tuning.save(made_up(), "quick", tmp_path / "one")
    with pytest.raises(ResultsError, match="holds 6 runs of profile quick") as error:
        tuning.save(made_up(), "smoke", tmp_path / "one")
    assert "\n" not in str(error.value)


def test_missing_record_is_one_line(tmp_path):
    with pytest.raises(ResultsError) as error:
        tuning.load(tmp_path / "none")
    assert "\n" not in str(error.value) and "about.json" in str(error.value)
