"""Regions, inclusions and detection against brute force, hand-computed cases and constructed lesions."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from dotlib import metrics

VOXEL = 2.0  # mm, 32^3
HEALTHY = torch.tensor([0.005, 1.0])[:, None, None, None]


def ellipsoid(centre, axes, grid=32):
    """Voxels of a cube of 64 mm whose centre lies in the ellipsoid (mm)."""
    place = (np.indices((grid,) * 3) + 0.5) * 64 / grid - 32
    centre, axes = (np.reshape(x, (3, 1, 1, 1)) for x in (centre, axes))
    return torch.from_numpy((((place - centre) / axes) ** 2).sum(0) <= 1)


def phantom(gains=((2.5, 2.0), (3.0, 1.8))):
    """Labels (1, ...) and truth of an ellipsoid of tissue with two inclusions."""
    labels = ellipsoid((0, 0, 0), (29, 27, 26)).long()
    labels[ellipsoid((9, 1, -5), (7, 6, 6))] = 2
    labels[ellipsoid((-11, 1, 5), (6, 6, 6))] = 3
    truth = HEALTHY * (labels > 0)
    for k, gain in enumerate(gains):
        truth = torch.where(labels == k + 2, truth * torch.tensor(gain)[:, None, None, None], truth)
    return labels[None], truth[None]


LABELS, TRUTH = phantom()
REGIONS = metrics.regions(LABELS, VOXEL)
OWN = HEALTHY * REGIONS.tissue[:, None]
GAIN = torch.where(REGIONS.tissue[:, None], TRUTH / HEALTHY, 1)
BLUR = OWN * torch.from_numpy(ndimage.gaussian_filter(GAIN.numpy(), (0, 0, 1, 1, 1)))


def test_regions_match_brute_force():
    rng = np.random.default_rng(0)
    labels = torch.zeros(2, 9, 9, 9, dtype=torch.uint8)
    labels[:, 1:9, :8, 2:] = 1  # touches the cube's walls
    labels[0, 3:5, 2:5, 4:6], labels[0, 6:, 6, 5:8] = 2, 3
    labels[1][torch.from_numpy(rng.random((9, 9, 9)) < 0.01) & (labels[1] > 0)] = 2
    found = metrics.regions(labels, 1.5)
    place = np.argwhere(np.ones((9, 9, 9))) * 1.5
    shifts = np.argwhere(np.ones((13, 13, 13))) - 2  # two layers of air outside the cube

    def near(mask, radius, at):
        points = at[np.asarray(mask).ravel()]
        distance = np.linalg.norm(place[:, None] - points, axis=-1).min(1, initial=np.inf)
        return torch.from_numpy(distance <= radius).view(9, 9, 9)

    for p in range(2):
        tissue, union = labels[p] > 0, labels[p] > 1
        dilated = near(union, 3, place)
        air = np.pad(~tissue.numpy(), 2, constant_values=True)
        assert found.tissue[p].equal(tissue)
        assert found.rim[p].equal(dilated & tissue & ~union)
        shell = tissue & near(air, 3, shifts * 1.5)
        assert found.shell[p].equal(shell)
        assert found.background[p].equal(tissue & ~dilated & ~shell)
        for k in range(2):
            inclusion = labels[p] == k + 2
            assert found.inclusions[p, k].equal(inclusion)
            assert found.windows[p, k].equal(near(inclusion, 8, place) & tissue & (inclusion | ~union))


def test_contrast_and_cnr_by_hand():
    labels = torch.tensor([1, 1, 1, 1, 2, 2, 3, 0]).view(1, 2, 2, 2)
    volume = torch.tensor([1.0, 3, 1, 3, 6, 10, 4, 99]).view(1, 1, 2, 2, 2).expand(1, 2, 2, 2, 2)
    masks = metrics.regions(labels, 10.0)  # 10 mm apart: the rim is empty
    contrast, cnr = metrics.contrast(volume, masks), metrics.cnr(volume, masks)
    torch.testing.assert_close(contrast[0, :, 0], torch.tensor([8 / 2 - 1, 4 / 2 - 1]).double())
    expected = [(8 - 2) / math.sqrt(2 / 6 * 4 + 4 / 6 * 1), (4 - 2) / math.sqrt(1 / 5 * 0 + 4 / 5 * 1)]
    torch.testing.assert_close(cnr[0, :, 1], torch.tensor(expected).double())


def test_absent_inclusion_is_nan_and_changes_no_other():
    both = torch.cat((LABELS, LABELS.clamp(max=2))), torch.cat((TRUTH, TRUTH))
    masks = metrics.regions(both[0], VOXEL)
    found = metrics.dice(both[1], both[1], masks)
    assert found[0].isfinite().all() and found[1, 1].isnan().all() and not found[1, 0].isnan().any()


@pytest.mark.parametrize("step", [(1, 0, 0), (0, -1, 1)])
def test_dice_and_localisation_of_a_moved_ellipsoid(step):
    labels = LABELS.clone()
    labels[labels == 3] = 1
    inclusion, masks = labels[0] == 2, metrics.regions(labels, VOXEL)
    truth = torch.where(inclusion, 2 * OWN, OWN)
    moved = inclusion.roll(step, (0, 1, 2))
    pred = torch.where(moved, 1.9 * OWN, OWN)
    expected = 2 * (moved & inclusion).sum() / (moved.sum() + inclusion.sum())
    assert metrics.dice(pred, truth, masks).flatten().tolist() == pytest.approx([expected.item()] * 2)
    distance = VOXEL * math.hypot(*step)
    assert metrics.localisation(pred, truth, masks).flatten().tolist() == pytest.approx([distance] * 2)


def test_volume_ratio_of_a_smaller_ellipsoid():
    inner = ellipsoid((9, 1, -5), (4, 4, 4))
    pred = torch.where(inner, 3 * OWN, OWN)
    ratio = metrics.volume_ratio(pred, TRUTH, REGIONS)
    expected = inner.sum() / REGIONS.inclusions[0, 0].sum()
    assert ratio[0, 0].tolist() == pytest.approx([expected.item()] * 2)
    assert ratio[0, 1].tolist() == [0, 0]


def test_localisation_sees_neither_neighbours_nor_air():
    pred = torch.where(LABELS[:, None] == 3, 10 * TRUTH, TRUTH)
    pred = torch.where(REGIONS.tissue[:, None], pred, 99.0)
    torch.testing.assert_close(metrics.localisation(pred, TRUTH, REGIONS), torch.zeros(1, 2, 2).double())


def test_localisation_chance_is_that_of_noise():
    labels, truth = torch.cat([LABELS] * 8), torch.cat([TRUTH] * 8)
    masks = metrics.regions(labels, VOXEL)
    one, two, other = (metrics.localisation_chance(truth, masks, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one.equal(two) and not one.equal(other)
    assert 4 < one.mean() < 10 and one.mean() == pytest.approx(other.mean().item(), abs=2)
    assert one.max() < 7 + 8  # the largest semi-axis and the search margin


def test_crosstalk_is_the_contrast_in_the_wrong_channel():
    labels, truth = phantom(gains=((2.5, 1.0), (1.0, 2.0)))
    pred, masks = truth.clone(), metrics.regions(labels, VOXEL)
    pred[:, 1][labels == 2] *= 1.3
    expected = torch.tensor([[[math.nan, 0.3], [0.0, math.nan]]]).double()
    torch.testing.assert_close(metrics.crosstalk(pred, truth, masks), expected, equal_nan=True, atol=1e-6, rtol=0)
    assert metrics.crc(pred, truth, masks).isnan().equal(~expected.isnan())
    assert metrics.crosstalk(BLUR, TRUTH, REGIONS).isnan().all()  # both channels have contrast


@pytest.mark.parametrize(
    ("seen", "ghost", "value"), [(0.25, 0.0, 1), (0.15, 0.0, 0), (0.25, 0.1, 0), (0.2001, 0.0499, 1)]
)
def test_contrast_is_visible_only_without_a_ghost(seen, ghost, value):
    inclusion = LABELS[:, None] == 2
    pred, twin = (torch.where(inclusion, OWN * (1 + x), OWN) for x in (seen, ghost))
    assert metrics.contrast_visible(pred, twin, REGIONS).tolist() == [[value, 0]]


def blob(centre, height):
    """Excess over the background, (1, 2, ...), of a ball of 4 mm; the first channel only."""
    return height * ellipsoid(centre, (4, 4, 4)) * torch.tensor([1.0, 0.0])[:, None, None, None]


def test_detection_counts_hits_and_false_lesions():
    pred = OWN + blob((9, 1, -5), 0.004) + blob((0, -17, 0), 0.003) + blob((0, 17, 0), 0.002)
    pred = torch.where(REGIONS.tissue[:, None], pred, 9.0)  # bright air is no lesion
    found = metrics.detection(pred, REGIONS, (0.001, 0.1))
    level = metrics.mean(pred, REGIONS.background)[0, 0].item()
    assert found.score[0, 0].tolist() == pytest.approx([0.009 - level, 0])
    assert found.score[0, 1].tolist() == [0, 0]
    assert found.false_lesions.tolist() == [[2, 0]]
    curve = metrics.froc(pred, REGIONS, [[0.001, 0.1], [0.0025, 0.2], [0.0035, 0.3], [0.005, 0.4]])
    assert curve.recall[:, 0].tolist() == [0.5, 0.5, 0.5, 0]
    assert curve.false_lesions[:, 0].tolist() == [2, 1, 0, 0]


def test_operating_point_allows_one_false_lesion_in_ten():
    tissue = LABELS.clamp(max=1).expand(20, -1, -1, -1)
    masks = metrics.regions(tissue, VOXEL)
    pred = torch.cat([OWN + blob((0, 10, 0), 0.001 * (i + 1)) for i in range(20)])
    candidates = torch.stack([torch.arange(0.5, 21, 1) * 1e-3] * 2, 1)
    point = metrics.operating_point(pred, masks, candidates)
    assert point.tolist() == pytest.approx([0.0185, 0.0005])  # 18 of the 20 peaks are below
    with pytest.raises(ValueError, match="tumour-free"):
        metrics.operating_point(TRUTH, REGIONS, candidates)
    with pytest.raises(ValueError, match=r"at most 0\.1"):
        metrics.operating_point(pred, masks, candidates[:5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.regions(LABELS.float(), VOXEL), "integers"),
        (lambda: metrics.regions(LABELS[0], VOXEL), "integers"),
        (lambda: metrics.regions(LABELS, 0), "mm > 0"),
        (lambda: metrics.detection(TRUTH, REGIONS, (0.1,)), "thresholds"),
        (lambda: metrics.froc(TRUTH, REGIONS, [[0.2, 0.2], [0.1, 0.3]]), "ascending"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
