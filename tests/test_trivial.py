"""What predictors that know nothing score, and the arithmetic of the targets."""

import numpy as np
import pandas as pd
import pytest
import torch

from dotlib import trivial
from dotlib.data import phantoms


@pytest.fixture(scope="module")
def scored():
    """Mean scores on fresh default phantoms at 64^3, and their spread, by predictor."""
    mean = phantoms.rasterise(phantoms.sample("default", 24, 11, first=100), 64).mean(0)
    return trivial.score(phantoms.sample("default", 12, 11), 64, mean).groupby("predictor")


def test_all_zeros_score_a_legacy_ssim_of_seven_tenths(scored):
    means = scored["legacy_ssim"].mean()
    assert means["all zeros"] == pytest.approx(0.70, abs=0.03)
    assert means["mean volume"] == pytest.approx(0.82, abs=0.04)
    assert means["ellipsoid, own background"] > 0.9


def test_all_zeros_are_wrong_by_all_of_the_truth(scored):
    zeros = scored.get_group("all zeros")
    np.testing.assert_allclose(zeros[["nrmse_mua", "nrmse_musp"]], 1, rtol=1e-6)


def test_own_background_has_no_background_noise(scored):
    own = scored.get_group("ellipsoid, own background")
    np.testing.assert_allclose(own[["background_noise_mua", "background_noise_musp"]], 0, atol=1e-6)


def test_absorption_is_less_than_a_five_thousandth_of_the_pooled_error(scored):
    squares = scored[["legacy_rmse", "legacy_mua_rmse", "legacy_musp_rmse"]].apply(lambda f: (f**2).mean())
    share = squares["legacy_mua_rmse"] / (squares["legacy_mua_rmse"] + squares["legacy_musp_rmse"])
    assert (share < 1 / 5000).all() and (share > 0).all()
    pooled = (squares["legacy_mua_rmse"] + squares["legacy_musp_rmse"]) / 2
    np.testing.assert_allclose(squares["legacy_rmse"], pooled, rtol=1e-5)


def test_score_is_independent_of_the_chunk(monkeypatch):
    tables, mean = phantoms.sample("default", 5, 3), torch.zeros(2, 16, 16, 16)
    whole = trivial.score(tables, 16, mean).set_index(["predictor", "phantom"])
    monkeypatch.setattr(trivial, "CHUNK", 2)
    chunked = trivial.score(tables, 16, mean).set_index(["predictor", "phantom"])
    assert whole.index.is_unique and len(whole) == 4 * 5
    pd.testing.assert_frame_equal(chunked.loc[whole.index], whole)


def test_family_is_scored_against_the_mean_of_others():
    found = trivial.family("small", 3, 16, 5)
    mean = phantoms.rasterise(phantoms.sample("small", 6, 5)[3:], 16).mean(0)
    truth = phantoms.rasterise(phantoms.sample("small", 3, 5), 16)
    expected = (mean - truth).square().mean((1, 2, 3, 4)).sqrt()
    rows = found[found["predictor"] == "mean volume"]
    np.testing.assert_allclose(rows["legacy_rmse"], expected, rtol=1e-5)
    assert set(found["family"]) == {"small"}


def test_ellipsoid_predictors_are_the_truth_of_phantoms_without_inclusions():
    tables, mean = phantoms.sample("none", 2, 1), torch.zeros(2, 16, 16, 16)
    truth = phantoms.rasterise(tables, 16)
    assert torch.equal(trivial.own_background(tables, mean), truth)
    factor = trivial.mean_tissue(tables, mean) / truth
    middle = factor.nan_to_num(1)[:, :, 8, 8, 8]  # of the healthy ranges 0.003-0.007 and 0.78-1.18 mm^-1
    expected = [[0.005, 0.98]] / tables[:, 0, [phantoms.MUA, phantoms.MUSP]]
    np.testing.assert_allclose(middle, expected, rtol=1e-5)


def test_targets_contradict_themselves():
    targets = trivial.targets().set_index("phase")
    for phase, (rmse, _, _) in trivial.ROADMAP.items():
        implied = targets.loc[phase, "PSNR it implies, dB"].split(" to ")
        for value, decibel in zip(sorted(set(rmse), reverse=True), implied, strict=True):
            assert 10 ** (-float(decibel) / 20) == pytest.approx(value, rel=0.006)  # to a tenth of a decibel
    assert pytest.approx(0.0631, abs=5e-5) == 10 ** (-24 / 20)  # below phase 1's own range, 0.065-0.075
    assert min(trivial.ROADMAP["phase 1"][0]) > 0.0631 and trivial.ROADMAP["phase 1"][2][0] == 24
    assert targets["any value satisfies both"].tolist() == ["yes", "no", "no", "no"]
    assert targets["whole range consistent"].tolist() == ["yes", "no", "no", "no"]


def test_aliasing_shrinks_with_the_voxel():
    tables = phantoms.sample("default", 12, 0)
    found = trivial.aliasing(tables, (16, 32, 64))
    for column in ("hard against fractions", "hard against hard, moved"):
        ratio = found[column].to_numpy()[:-1] / found[column].to_numpy()[1:]
        # the error is O(1) in the voxels on a surface, a share ~ voxel: its root goes as the root of the voxel
        assert (np.abs(ratio - 2**0.5) < 0.15).all(), column
    assert found["voxel, mm"].tolist() == [4, 2, 1]
    assert found["hard against fractions"].iloc[-1] == pytest.approx(0.045, abs=0.005)


def test_summary_is_the_mean_of_the_phantoms():
    values = np.linspace(1, 2, 9)
    scores = pd.DataFrame({"family": "default", "predictor": "all zeros", "x": values})
    row = trivial.summary(scores, {"x": "X"}, np.random.default_rng(0)).iloc[0]
    estimate, low, high = (float(v.strip("[],")) for v in row["X"].split())
    assert estimate == 1.5 and low < 1.5 < high and row["n"] == 9
    assert 1 < low < 1.4 and 1.6 < high < 2
