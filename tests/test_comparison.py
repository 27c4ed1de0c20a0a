"""Tables of arms: pooling, skill, pairing, the family's adjustment; against hand-made rows and statsmodels."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from dotlib import comparison, config, metrics, stats, trivial
from dotlib.data import dataset

ERRORS = {"nrmse mua": ("nrmse", "mua"), "legacy RMSE": ("legacy_rmse", "")}
RNG = np.random.default_rng(7)


def rows_of(metric, channel, values):
    """Rows of (arm -> (seeds, phantoms)) values."""
    frames = []
    for arm, table in values.items():
        seed, phantom = np.indices(np.shape(table)).reshape(2, -1)
        frame = {"arm": arm, "seed": seed, "phantom": phantom, "inclusion": -1, "value": np.ravel(table)}
        frames.append(pd.DataFrame(frame).assign(metric=metric, channel=channel, checkpoint="last"))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def rows():
    base = np.exp(RNG.normal(-1, 0.3, (4, 6)))
    arms = {
        "a": base * np.exp(RNG.normal(-0.3, 0.05, (4, 1))),
        "b": base,
        "c": base * np.exp(RNG.normal(0, 0.1, (4, 1))),
    }
    return pd.concat([rows_of("nrmse", "mua", arms), rows_of("legacy_rmse", "", arms)], ignore_index=True)


def test_contrast_is_the_paired_t_test_over_seeds(rows):
    table = comparison.contrasts(rows, [("a", "b"), ("c", "b"), ("a", "c")], ERRORS)
    for _, row in table[table["error"] == "nrmse mua"].iterrows():
        a, b = (
            np.log(comparison.matrix(rows, arm, ("nrmse", "mua"))).mean(1) for arm in row["contrast"].split(" against ")
        )
        assert row["p"] == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)
        assert row["effect, %"] == pytest.approx(100 * np.expm1((a - b).mean()))
        assert row["sd of log"] == pytest.approx((a - b).std(ddof=1))


def test_verdict_follows_the_adjusted_p_of_the_primary_family_alone(rows):
    table = comparison.contrasts(rows, [("a", "b"), ("c", "b"), ("a", "c")], ERRORS)
    primary = table[table["error"] == "nrmse mua"]
    np.testing.assert_allclose(primary["Holm p"].astype(float), multipletests(primary["p"], method="holm")[1])
    expected = ["better" if p < 0.05 else "not resolved" for p in primary["Holm p"]]
    assert primary["verdict"].tolist()[:2] == expected[:2] == ["better", "not resolved"]
    assert (table.loc[table["error"] != "nrmse mua", "verdict"] == "secondary").all()


def test_holm_counts_an_unknown_p_as_a_member_of_the_family():
    assert stats.holm([0.01, np.nan, 0.2])[0] == pytest.approx(0.03)
    assert np.isnan(stats.holm([0.01, np.nan, 0.2])[1])


def test_legacy_rmse_is_pooled_and_psnr_is_its_logarithm(rows):
    found = comparison.per_seed(rows, "b", ("legacy_rmse", ""))
    squares = comparison.matrix(rows, "b", ("legacy_rmse", "")) ** 2
    np.testing.assert_allclose(found, np.sqrt(squares.mean(1)))
    np.testing.assert_allclose(comparison.per_seed(rows, "b", ("legacy_psnr", "")), -20 * np.log10(found))
    interval = trivial.psnr(stats.Interval(0.0631, 0.05, 0.1, 4))
    assert interval.estimate == pytest.approx(24, abs=0.01) and interval.low == 20 and interval.high > 26


def test_skill_of_the_reference_is_zero_and_agrees_with_the_metric():
    data = dataset.load(config.PROFILES["smoke"].base.data)
    truth, mask = data.volumes("test"), data.tissue("test")
    guess = trivial.mean_tissue(data.part("test"), data.mean("train"))
    own = trivial.own_background(data.part("test"), data.mean("train"))
    rows = comparison.with_skill(comparison.trivial_rows(data))
    assert (comparison.matrix(rows, comparison.REFERENCE, ("skill", "mua")) == 0).all()
    found = comparison.matrix(rows, "ellipsoid, mean tissue", ("skill", "mua"))[0]
    np.testing.assert_allclose(found, metrics.skill(guess, truth, own, mask)[:, 0], rtol=1e-5, atol=1e-6)


def test_arm_that_diverged_is_shown_and_better_than_nothing():
    """With one seed of two failed, or both: no value of what is no error, and no claim."""
    good, bad = [[0.9, 0.9], [0.8, 0.8]], [np.nan, np.nan]
    ssim = {comparison.REFERENCE: [[0.5, 0.5]], "fine": good, "half": [good[0], bad], "gone": [bad, bad]}
    error = {name: 1 - np.nan_to_num(values) for name, values in ssim.items()}
    kinds = [("nrmse", "mua", error), ("legacy_rmse", "", error), ("legacy_ssim", "", ssim)]
    rows = pd.concat([rows_of(*kind) for kind in kinds], ignore_index=True)
    shown = comparison.arms(rows, {"nrmse": ("nrmse", "mua"), "SSIM": ("legacy_ssim", "")}).set_index("arm")
    assert shown.seeds.to_dict() == {comparison.REFERENCE: 1, "fine": 2, "half": 2, "gone": 2}
    assert shown.SSIM[["half", "gone"]].tolist() == ["--", "--"] and "0.85" in shown.SSIM["fine"]
    assert (shown.nrmse != "--").all()
    table = comparison.contrasts(rows, [("fine", "half")], {"nrmse": ("nrmse", "mua")})
    claims = comparison.answer(rows, table, ["fine", "half", "gone"]).splitlines()[1:]
    assert len(claims) == 3 and all(claim.endswith("in every seed: fine.") for claim in claims)


def test_mean_volume_is_the_mean_of_the_training_volumes():
    data = dataset.load(config.PROFILES["smoke"].base.data)
    torch.testing.assert_close(data.mean("train"), data.volumes("train").mean(0))


def test_reported_value_is_placed_by_the_interval():
    def place(level):
        frame = pd.DataFrame({"family": "f", "predictor": "ellipsoid, x", "legacy_rmse": RNG.normal(level, 1e-3, 40)})
        return trivial.beside_reported(frame, np.random.default_rng(0))["reported 0.083 lies"].item()

    assert [place(0.10), place(0.083), place(0.06)] == ["below", "inside", "above"]
