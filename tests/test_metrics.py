"""The metrics of a volume against hand-computed cases, scikit-image and scipy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.metrics import structural_similarity
from test_metrics_regions import BLUR, LABELS, OWN, REGIONS, TRUTH, VOXEL

from dotlib import metrics

PER_INCLUSION = ("crc", "crosstalk", "localisation", "dice", "volume_ratio")


PREDICTORS = {
    "zeros": torch.zeros_like(TRUTH),
    "flat": 1.4 * OWN.mean((0, 2, 3, 4), keepdim=True).expand_as(OWN),
    "own": OWN,
    "gain": 1.2 * TRUTH,
    "offset": TRUTH + 0.1 * OWN,
    "moved": TRUTH.roll(1, 2),
    "blur": BLUR,
    "swapped": TRUTH.flip(1),
    "truth": TRUTH,
}


def columns(name, **more):
    return metrics.evaluate(PREDICTORS[name], TRUTH, LABELS, VOXEL, {"own": OWN}, **more)


# Known answers of both channels (for the two inclusions alike); None stands for "no such value", NaN.
ANSWERS = {
    "zeros": {"nrmse": 1, "bias": -1, "background_noise": 0, "crc": None, "dice": 0, "localisation": None},
    "own": {"skill_own": 0, "bias": 0, "background_noise": 0, "crc": 0, "dice": 0, "volume_ratio": 0, "cnr": None},
    "gain": {"nrmse": 0.2, "bias": 0.2, "background_noise": 0, "crc": 1, "localisation": 0},
    "offset": {"bias": 0.1, "background_noise": 0, "crc": 1 / 1.1, "dice": 1, "localisation": 0},
    "moved": {"localisation": VOXEL, "volume_ratio": 1},
    "truth": {"nrmse": 0, "skill_own": 1, "ssim": 1, "bias": 0, "crc": 1, "dice": 1, "volume_ratio": 1},
}


@pytest.mark.parametrize(("name", "metric", "value"), [(n, m, v) for n, row in ANSWERS.items() for m, v in row.items()])
def test_metric_knows_the_answer(name, metric, value):
    found = columns(name)[metric]
    expected = torch.full_like(found, math.nan if value is None else value)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6, equal_nan=True)


def test_honest_metrics_rank_predictors():
    rows = {name: columns(name) for name in PREDICTORS}
    for metric, sign in {"nrmse": -1, "psnr": 1, "ssim": 1, "skill_own": 1}.items():
        values = torch.stack([rows[name][metric][0] for name in ("zeros", "flat", "own", "blur", "truth")])
        assert (sign * values.diff(dim=0) > 0).all(), (metric, values)
    assert (rows["blur"]["crc"] < 0.95).all() and (rows["blur"]["crc"] > 0.5).all()
    assert (rows["blur"]["localisation"] < 0.5).all()
    assert rows["swapped"]["nrmse"][0, 0] > 100 and rows["swapped"]["nrmse"][0, 1] > 0.9


def test_legacy_numbers_are_passed_by_trivial_predictors():
    zeros, own, flat = columns("zeros"), columns("own"), columns("flat")
    assert zeros["legacy_ssim"] > 0.6 > 0.01 > zeros["ssim"].max()  # air agrees with air
    assert zeros["rmse"][0, 0] < 0.015
    assert own["legacy_ssim"] > 0.9 > 0.75 > own["ssim"].max()
    assert (flat["background_noise"] < 0.05).all() and (flat["crc"].abs() < 1e-6).all()
    share = (TRUTH - OWN).double().square().mean((0, 2, 3, 4))
    assert 1e-5 < share[0] / share.sum() < 1e-4


def test_background_noise_and_bias_by_hand():
    truth = torch.full((1, 1, 2, 2, 1), 2.0)
    pred = torch.tensor([3.0, 1, 4, 100]).view(1, 1, 2, 2, 1)
    mask = torch.tensor([True, True, True, False]).view(1, 2, 2, 1)
    error = np.array([1.0, -1, 2])
    assert metrics.background_noise(pred, truth, mask).item() == pytest.approx(error.std() / 2)
    assert metrics.bias(pred, truth, mask).item() == pytest.approx(error.mean() / 2)


def test_skill_depends_on_the_reference():
    half, tissue = (OWN + TRUTH) / 2, REGIONS.tissue
    torch.testing.assert_close(metrics.skill(half, TRUTH, OWN, tissue), torch.full((1, 2), 0.75).double())
    assert metrics.skill(OWN, TRUTH, half, tissue).allclose(torch.tensor(-3.0).double())


def test_psnr_reprints_rmse():
    rmse = metrics.rmse(BLUR, TRUTH, REGIONS.tissue)
    psnr = metrics.psnr(BLUR, TRUTH, REGIONS.tissue, metrics.RANGES)
    torch.testing.assert_close(10 ** (-psnr / 20) * torch.tensor(metrics.RANGES), rmse)
    off = torch.zeros(1, 2, 4, 4, 4)
    assert metrics.legacy_psnr(off + 0.0631, off).item() == pytest.approx(24.0, abs=2e-3)


def test_legacy_rmse_by_hand():
    truth = torch.zeros(2, 2, 1, 1, 2)
    pred = torch.tensor([[[0.0, 3], [4, 0]], [[1, 1], [1, 1]]]).view(2, 2, 1, 1, 2)
    assert metrics.legacy_rmse(pred, truth).tolist() == [pytest.approx(2.5), pytest.approx(1.0)]


@pytest.fixture(scope="module")
def textures():
    """Two related volumes in the channels' units, (1, 2, 19, 17, 16)."""
    rng = np.random.default_rng(1)
    smooth = ndimage.gaussian_filter(rng.standard_normal((2, 1, 2, 19, 17, 16)), (0, 0, 0, 1, 1, 1))
    scale = np.array(metrics.RANGES)[:, None, None, None]
    return [torch.from_numpy(scale * np.clip(0.4 + x, 0, 1)) for x in (smooth[0], smooth[0] + 0.3 * smooth[1])]


def scikit_image(pred, truth, data_range):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(pred.numpy(), truth.numpy(), data_range=data_range, full=True, **options)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_ssim_agrees_with_scikit_image_on_a_box(textures, dtype, accuracy):
    pred, truth = (x.to(dtype) for x in textures)
    box = torch.ones_like(pred[:, 0], dtype=torch.bool)
    found = metrics.ssim(pred, truth, box, metrics.RANGES)
    whole = metrics.ssim_map(pred, truth, metrics.RANGES, "valid")
    for c, data_range in enumerate(metrics.RANGES):
        mean, full = scikit_image(*(x[0, c].double() for x in (pred, truth)), data_range)
        assert found[0, c].item() == pytest.approx(mean, abs=accuracy)
        inner = torch.from_numpy(full[5:-5, 5:-5, 5:-5])
        torch.testing.assert_close(whole[0, c].double(), inner, atol=20 * accuracy, rtol=0)


def test_legacy_ssim_is_the_zero_padded_convention(textures):
    pred, truth = (x[0].numpy() for x in textures)

    def smooth(x):
        return ndimage.gaussian_filter(x, (0, 1.5, 1.5, 1.5), mode="constant", truncate=5 / 1.5)

    p, t = smooth(pred), smooth(truth)
    variance = smooth(pred**2) - p**2 + smooth(truth**2) - t**2
    covariance = smooth(pred * truth) - p * t
    maps = (2 * p * t + 1e-4) * (2 * covariance + 9e-4) / ((p**2 + t**2 + 1e-4) * (variance + 9e-4))
    assert metrics.legacy_ssim(*textures).item() == pytest.approx(maps.mean(), abs=1e-12)
    assert metrics.legacy_ssim(*(x.float() for x in textures)).item() == pytest.approx(maps.mean(), abs=1e-6)


@pytest.mark.parametrize("padding", ["valid", "zeros"])
def test_separable_window_equals_the_dense_one(textures, padding):
    line = torch.exp(-(torch.arange(-5, 6).double() ** 2) / (2 * 1.5**2))
    dense = torch.einsum("i,j,k->ijk", line, line, line)
    dense = (dense / dense.sum())[None, None]
    found = metrics._smooth(textures[0], padding)
    expected = F.conv3d(textures[0][0][:, None], dense, padding=0 if padding == "valid" else 5)[:, 0]
    torch.testing.assert_close(found[0], expected, atol=1e-12, rtol=1e-12)


def test_ssim_ignores_autocast(textures):
    pred, truth = (x.float() for x in textures)
    plain = metrics.ssim_map(pred, truth, metrics.RANGES, "valid")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = metrics.ssim_map(pred, truth, metrics.RANGES, "valid")
        half = metrics.ssim_map(pred.bfloat16(), truth, metrics.RANGES, "valid")
    assert mixed.dtype == half.dtype == torch.float32
    assert mixed.equal(plain)
    assert half.equal(metrics.ssim_map(pred.bfloat16().float(), truth, metrics.RANGES, "valid"))


def test_ssim_gradient_agrees_with_differences(textures):
    pred, truth = (x[..., :11, :11, :12] / torch.tensor(metrics.RANGES)[:, None, None, None] for x in textures)
    assert torch.autograd.gradcheck(
        lambda p: metrics.ssim_map(p, truth, 1.0, "zeros").mean(), pred.clone().requires_grad_(), fast_mode=True
    )


def test_ssim_sees_no_air():
    air = torch.where(REGIONS.tissue[:, None], BLUR, 7.0)
    once, again = (metrics.ssim(p, TRUTH, REGIONS.tissue, metrics.RANGES) for p in (BLUR, air))
    torch.testing.assert_close(once, again, atol=1e-6, rtol=0)
    eroded = ndimage.binary_erosion(REGIONS.tissue[0].numpy(), np.ones((11, 11, 11)))
    assert np.array_equal(metrics.erode(REGIONS.tissue)[0].numpy(), eroded[5:-5, 5:-5, 5:-5])


def test_ssim_lives_on_small_grids():
    pred = torch.rand(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    box = torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    box[:, 2:13, 2:13, 2:13] = True
    value = metrics.ssim(pred, pred / 2, box, 1.0)
    centre = metrics.ssim_map(pred, pred / 2, 1.0, "valid")[..., 2, 2, 2]
    torch.testing.assert_close(value, centre.double())
    box[:, 7, 7, 7] = False
    assert metrics.ssim(pred, pred / 2, box, 1.0).isnan().all()


def test_values_without_a_mask_are_nan():
    none = torch.zeros_like(REGIONS.tissue)
    for metric in (metrics.rmse, metrics.nrmse, metrics.background_noise, metrics.bias):
        assert metric(BLUR, TRUTH, none).isnan().all()
    assert metrics.psnr(BLUR, TRUTH, none, 1.0).isnan().all()
    free = metrics.evaluate(OWN, OWN, LABELS.clamp(max=1), VOXEL)
    assert all(free[name].shape == (1, 1, 2) and free[name].isnan().all() for name in (*PER_INCLUSION, "cnr"))


def test_evaluate_does_not_depend_on_the_chunk():
    labels = torch.cat((LABELS, LABELS.clamp(max=2), LABELS.flip(1)))
    truth = torch.cat((TRUTH, TRUTH, TRUTH.flip(2)))
    pred = torch.cat((BLUR, OWN, TRUTH)) - 0.01
    covered = torch.zeros_like(labels, dtype=torch.bool)
    covered[:, :16] = True

    def table(chunk):
        more = {"covered": covered, "generator": torch.Generator().manual_seed(0), "chunk": chunk}
        return metrics.evaluate(pred, truth, labels, VOXEL, {"mean": truth.mean(0, keepdim=True)}, **more)

    whole, parts = table(16), table(1)
    assert set(whole) == set(parts) >= {"skill_mean", "nrmse_covered", "bias_covered", "localisation_chance"}
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, equal_nan=True, msg=name)
    clamped, masks = metrics.clamp(pred), metrics.regions(labels, VOXEL)
    assert whole["nrmse"].equal(metrics.nrmse(clamped, truth, masks.tissue))
    assert whole["nrmse_unclamped"].equal(metrics.nrmse(pred, truth, masks.tissue))
    assert whole["legacy_rmse"].equal(metrics.legacy_rmse(pred, truth))
    mean = truth.mean(0, keepdim=True).expand_as(truth)
    for name, inside in (("covered", covered), ("uncovered", ~covered)):
        assert whole[f"nrmse_{name}"].equal(metrics.nrmse(clamped, truth, masks.tissue & inside))
    assert whole["skill_mean_covered"].equal(metrics.skill(clamped, truth, mean, masks.tissue & covered))
    noise = metrics.background_noise(clamped, truth, masks.background & covered)
    assert whole["background_noise_covered"].equal(noise)


def test_covered_columns_are_those_of_their_voxels():
    """In numpy, over the tissue that a probe sees and the rest of it; without coverage there are no such columns."""
    covered = torch.zeros_like(LABELS, dtype=torch.bool)
    covered[:, :, :, 20:] = True
    found, tissue = columns("blur", covered=covered), LABELS[0].numpy() > 0
    pred, truth, own = (v[0].double().numpy() for v in (BLUR, TRUTH, OWN))
    for part, seen in (("covered", covered[0].numpy()), ("uncovered", ~covered[0].numpy())):
        p, t, o = (v[:, tissue & seen] for v in (pred, truth, own))
        error = np.sqrt(((p - t) ** 2).mean(1) / (t**2).mean(1))
        np.testing.assert_allclose(found[f"nrmse_{part}"][0], error, rtol=1e-5)
        if part == "covered":
            skill = 1 - ((p - t) ** 2).sum(1) / ((o - t) ** 2).sum(1)
            np.testing.assert_allclose(found["skill_own_covered"][0], skill, rtol=1e-4)
    assert (found["nrmse_covered"] != found["nrmse_uncovered"]).all()
    assert not [name for name in columns("blur") if "covered" in name]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.rmse(TRUTH, TRUTH[:, :1], REGIONS.tissue), "truth"),
        (lambda: metrics.rmse(TRUTH, TRUTH, REGIONS.tissue[:, :5]), "mask"),
        (lambda: metrics.rmse(TRUTH, TRUTH, REGIONS.tissue.float()), "mask"),
        (lambda: metrics.psnr(TRUTH, TRUTH, REGIONS.tissue, (1.0,)), "data_range"),
        (lambda: metrics.ssim_map(TRUTH, TRUTH, 0.0, "valid"), "data_range"),
        (lambda: metrics.ssim_map(TRUTH, TRUTH, 1.0, "same"), "padding"),
        (lambda: metrics.ssim_map(TRUTH[..., :8], TRUTH[..., :8], 1.0, "valid"), "from 11 voxels"),
        (lambda: metrics.evaluate(TRUTH, TRUTH, LABELS[0], VOXEL), "labels"),
        (lambda: metrics.evaluate(TRUTH, TRUTH, LABELS, VOXEL, {"mean": TRUTH[0]}), "mean"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
