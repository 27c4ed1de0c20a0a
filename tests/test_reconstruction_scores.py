"""Numbers of reconstructions on made-up spheres whose errors, lesions and spread are known."""

import numpy as np
import pytest
import torch
from seen import MUA, MUSP, RADIUS, made_up, table

from dotlib import reconstruction_scores
from dotlib.evaluation import homogeneous
from dotlib.reconstruction_scores import BINS, KEPT, LEVELS, calibration, facts, inflation, lesions, scores, twins
from dotlib.reconstruction_sets import HOME

pytestmark = pytest.mark.usefixtures("one_thread")
BRIGHT = ((0, 0, 12), 8, 0.010, 1.5)  # mua twice, musp one and a half times that of the tissue
ABSORBING = ((0, 8, -8), 8, 0.0075, MUSP)
CHANNELS = ("mua", "musp")


@pytest.fixture(scope="module")
def fresh(one_thread):
    """Two phantoms, of two inclusions and of one."""
    return made_up([table(BRIGHT, ABSORBING), table(BRIGHT)])


@pytest.fixture(scope="module")
def home(one_thread):
    return made_up([table(BRIGHT, ABSORBING), table(BRIGHT)], HOME, grid=32)


def values(rows, metric, channel="mua"):
    """Of one metric, in order."""
    return rows[(rows["metric"] == metric) & (rows["channel"] == channel)]["value"].to_numpy()


def test_perfect_volumes_have_no_error_and_whole_contrast(fresh):
    rows = scores(fresh.truth, fresh, fresh.covered)
    for channel in CHANNELS:
        for name in ("nrmse", "nrmse_covered", "nrmse_union"):
            assert values(rows, name, channel).tolist() == [0, 0]
    assert np.nanmin(values(rows, "crc")) == pytest.approx(1) == np.nanmax(values(rows, "crc"))
    # of the first phantom's second inclusion, in musp, nothing is there
    assert values(rows, "crosstalk", "musp")[1] == pytest.approx(0, abs=1e-9)
    assert np.isnan(np.delete(values(rows, "crosstalk", "musp"), 1)).all()


def test_share_of_the_truth_that_is_missing_is_the_error(fresh):
    rows = scores(0.9 * fresh.truth, fresh, fresh.covered)
    for name in ("nrmse", "nrmse_covered", "nrmse_union"):
        assert values(rows, name) == pytest.approx([0.1, 0.1], rel=1e-5)


def test_errors_count_in_their_part_alone(fresh):
    """An error outside what is covered, by its root mean square over numpy's own."""
    pred = fresh.truth.clone()
    wrong = fresh.regions.tissue & ~fresh.covered
    pred[:, 0][wrong] *= 1.5
    union = fresh.covered.clone()
    union[1] = True
    rows = scores(pred, fresh, union)
    assert values(rows, "nrmse_covered").tolist() == [0, 0]
    exact = []
    for truth, tissue, off in zip(fresh.truth[:, 0].numpy(), fresh.regions.tissue, wrong, strict=True):
        exact.append(0.5 * np.sqrt((truth[off] ** 2).sum() / (truth[tissue] ** 2).sum()))
    assert values(rows, "nrmse") == pytest.approx(exact, rel=1e-5)
    assert values(rows, "nrmse_union") == pytest.approx([0, exact[1]], rel=1e-5)
    assert values(rows, "nrmse", "musp").tolist() == [0, 0]


def test_union_is_scored_where_one_is_named(fresh):
    names = {"nrmse", "nrmse_covered", "crc", "crosstalk", "contrast"}
    assert set(scores(fresh.truth, fresh)["metric"]) == names
    assert set(scores(fresh.truth, fresh, fresh.covered)["metric"]) == names | {"nrmse_union"}


def test_negative_coefficients_count_as_none(fresh):
    assert values(scores(-3 * fresh.truth, fresh), "nrmse") == pytest.approx([1, 1])


def test_home_keeps_what_it_names(home):
    rows = scores(home.truth, home)
    assert set(rows["metric"]) == set(KEPT)
    assert values(rows, "ssim") == pytest.approx([1, 1]) and values(rows, "dice")[:2] == pytest.approx([1, 1])
    assert values(rows, "nrmse_uncovered").tolist() == [0, 0]
    for name in ("skill_homogeneous", "skill_fitted", "skill_fitted_covered"):
        assert values(rows, name) == pytest.approx([1, 1])


@pytest.mark.parametrize("grid", [16, 64])
def test_reference_has_no_skill_over_itself(grid):
    """However many voxels half-precision fractions are summed over."""
    seen = made_up([table(BRIGHT)], HOME, grid=grid)
    own = seen.truth[0][:, seen.regions.tissue[0]].mean(1)  # least squares over whole voxels: their mean
    best = own.view(1, 2, 1, 1, 1) * seen.fraction.float()
    assert torch.allclose(best, homogeneous(seen.truth, seen.fraction.float()), rtol=1e-4)
    rows = scores(best, seen)
    assert values(rows, "skill_homogeneous") == pytest.approx([0], abs=1e-3)
    assert values(rows, "skill_fitted")[0] > 0.02
    assert values(scores(seen.fitted, seen), "skill_fitted") == pytest.approx([0], abs=1e-3)


def test_fitted_volumes_are_the_fit_inside_the_tissue(home):
    tissue = home.regions.tissue[:, None]
    exact = torch.tensor([MUA, MUSP]).half().float().view(1, 2, 1, 1, 1) * tissue
    assert torch.equal(home.fitted, exact)


def test_facts_hold_the_true_contrast(fresh):
    rows = facts(fresh)
    assert set(rows["metric"]) == {"contrast"}
    assert values(rows, "contrast")[[0, 1, 5]] == pytest.approx([1, 0.5, 1], rel=1e-5)
    assert values(rows, "contrast", "musp")[[0, 1, 5]] == pytest.approx([0.5, 0, 0.5], abs=1e-5)
    assert np.isnan(np.delete(values(rows, "contrast"), [0, 1, 5])).all()


def test_facts_at_home_say_where_inclusions_are(home):
    rows = facts(home)
    assert set(rows["metric"]) == {"contrast", "localisation", "distance", "radius", "covered"}
    there = np.isin(np.arange(10), [0, 1, 5])
    for name, exact in (("distance", [7, 7, 7]), ("radius", [8, 8, 8]), ("covered", [1, 0, 1])):
        found = values(rows, name)
        assert found[there] == pytest.approx(exact, abs=0.15), name
        assert np.isnan(found[~there]).all() and not len(values(rows, name, "musp"))
    chance = values(rows, "localisation")
    assert (chance[there] < 16).all() and (chance[there] > 0).all()
    assert rows.equals(facts(home))  # nothing is drawn anew


def shown(seen, contrast):
    """A flat background in which every inclusion has a contrast of mua."""
    inside = seen.regions.inclusions.any(1)[:, None].expand_as(seen.truth)
    return torch.where(inside, MUA * (1 + contrast), MUA) * (seen.truth > 0)


@pytest.mark.parametrize(("contrast", "twin", "met"), [(0.25, 0.04, 1), (0.25, 0.06, 0), (0.15, 0.0, 0)])
def test_criterion_is_met_by_what_is_seen_with_a_tumour_alone(fresh, contrast, twin, met):
    rows = twins(shown(fresh, contrast), shown(fresh, twin), fresh)
    assert set(rows["metric"]) == {"contrast_visible"} and len(rows) == 10
    found = values(rows, "contrast_visible")
    assert found[[0, 1, 5]].tolist() == [met] * 3 and np.isnan(np.delete(found, [0, 1, 5])).all()


def test_criterion_is_judged_without_negative_coefficients(fresh):
    """A twin that dips below 0 in the background is no darker there than air."""
    seen, twin = shown(fresh, 0.25), shown(fresh, 0.0)
    assert values(twins(seen, twin, fresh), "contrast_visible")[0] == 1
    twin[:, :, :, :, :8] = -1e3 * twin[:, :, :, :, :8]
    assert values(twins(seen, twin, fresh), "contrast_visible")[0] == 0


def test_thresholds_of_musp_are_a_hundred_times_those_of_mua():
    found = reconstruction_scores.thresholds()
    assert found.shape == (48, 2) and (found.diff(dim=0) > 0).all()
    assert found[[0, -1], 0].tolist() == pytest.approx([2e-4, 2e-2])
    torch.testing.assert_close(found[:, 1], 100 * found[:, 0])


def empty(peaks):
    """Ten tumour-free phantoms, and volumes in which a voxel of some of them stands out: (phantom, channel) -> mm^-1"""
    seen = made_up([table()] * 10)
    volume = seen.truth.clone()
    for (p, channel), peak in peaks.items():
        volume[p, channel, 8, 8, 8] += peak
    return volume, seen


def of(rows, channel):
    return rows[rows["channel"] == channel].set_index("threshold")


@pytest.mark.parametrize(("channel", "scale"), [(0, 1), (1, 100)])
def test_lesion_is_found_below_its_height_alone(channel, scale):
    """Of two inclusions one stands out by 0.003 mm^-1, and so does a place without a tumour by 0.001; musp: 100 x."""
    seen = made_up([table(((0, 0, 12), 6, 0.010, 1.5), ((0, 0, -12), 6, 0.010, 1.5))])
    volume = torch.tensor([MUA, MUSP]).view(1, 2, 1, 1, 1) * (seen.truth > 0)
    volume[0, channel][seen.regions.inclusions[0, 0]] += 0.003 * scale
    volume[0, channel, 3, 8, 8] += 0.001 * scale
    rows = lesions(volume, seen, *empty({}))
    found = of(rows, CHANNELS[channel])
    clear = (np.abs(found.index / scale - 0.003) > 1e-4) & (np.abs(found.index / scale - 0.001) > 1e-4)
    level = found.index[clear] / scale
    assert found["recall"][clear].tolist() == np.where(level < 0.003, 0.5, 0).tolist()
    assert found["false_lesions"][clear].tolist() == np.where(level < 0.001, 1, 0).tolist()
    assert not of(rows, CHANNELS[1 - channel])[["recall", "false_lesions"]].any(axis=None)


def test_operating_point_is_where_one_phantom_in_ten_is_left():
    """Peaks of 0.002 and 0.004 in mua: the first threshold above the lower; of musp one peak, so the first of all."""
    volume, none = empty({(2, 0): 0.004, (7, 0): 0.002, (5, 1): 0.3})
    seen = made_up([table(BRIGHT)])
    rows = lesions(seen.truth, seen, volume, none)
    assert rows.columns.tolist() == ["threshold", "recall", "false_lesions", "channel", "operating"]
    mua, musp = (of(rows, channel) for channel in CHANNELS)
    assert mua.index[mua["operating"]].tolist() == [LEVELS[LEVELS > 0.002][0]]
    assert musp.index[musp["operating"]].tolist() == pytest.approx([100 * LEVELS[0]])


def test_no_operating_point_where_every_threshold_is_exceeded():
    volume, none = empty({(2, 0): 0.05, (7, 0): 0.03})
    seen = made_up([table(BRIGHT)])
    rows = lesions(seen.truth, seen, volume, none)
    assert not of(rows, "mua")["operating"].any() and of(rows, "musp")["operating"].sum() == 1


R = 200  # networks of a made-up ensemble


def ensemble(factors=(1.0, 1.0)):
    """Volumes of an ensemble about the truth, whose sd differs from voxel to voxel; the error is `factors` times it."""
    seen, chance = made_up([table(), table()]), torch.Generator().manual_seed(0)
    sd = 1e-3 * (0.5 + 2 * torch.rand(seen.truth.shape, generator=chance))
    centre = seen.truth + torch.tensor(factors).view(2, 1, 1, 1) * sd * torch.randn(sd.shape, generator=chance)
    return centre + sd * torch.randn(R, *sd.shape, generator=chance), seen


def test_normal_errors_are_beyond_their_limits_in_one_of_twenty():
    rows = calibration(*ensemble())
    assert len(rows) == 2 * 2 * BINS and set(rows["part"]) == {"covered", "uncovered"}
    for (part, channel), found in rows.groupby(["part", "channel"]):
        assert found["bin"].tolist() == list(range(BINS)), (part, channel)
        assert (found["sd"].diff()[1:] > 0).all()
        assert np.average(found["beyond"], weights=found["n"]) == pytest.approx(0.05, abs=0.012)
        assert found["rmse"].to_numpy() == pytest.approx(found["sd"].to_numpy(), rel=0.2)


def test_bins_hold_every_voxel_of_the_tissue_once():
    volumes, seen = ensemble()
    rows = calibration(volumes, seen)
    tissue = seen.regions.tissue
    for part, mask in (("covered", tissue & seen.covered), ("uncovered", tissue & ~seen.covered)):
        count = rows[(rows["part"] == part) & (rows["channel"] == "mua")]["n"]
        assert count.sum() == mask.sum() and count.max() - count.min() <= 1


def test_scale_multiplies_the_sd_alone():
    volumes, seen = ensemble((2.0, 2.0))
    plain = calibration(volumes, seen).set_index(["part", "channel", "bin"])
    scaled = calibration(volumes, seen, torch.tensor([2.0, 1.0])).set_index(["part", "channel", "bin"])
    for channel, factor in (("mua", 2), ("musp", 1)):
        before, after = (rows.xs(channel, level="channel") for rows in (plain, scaled))
        assert after["sd"].to_numpy() == pytest.approx(factor * before["sd"].to_numpy())
        assert after["rmse"].to_numpy() == pytest.approx(before["rmse"].to_numpy())
    share = {name: rows.groupby("channel")["beyond"].mean() for name, rows in (("plain", plain), ("scaled", scaled))}
    # of errors twice the sd, |z| > 0.98 in 33 of a hundred
    assert share["plain"].to_numpy() == pytest.approx([0.327, 0.327], abs=0.03)
    assert share["scaled"].to_numpy() == pytest.approx([0.05, 0.327], abs=0.03)


def test_inflation_recovers_the_factor_of_each_channel():
    volumes, seen = ensemble((3.0, 0.5))
    assert inflation(volumes, seen.truth, seen.regions.tissue).tolist() == pytest.approx([3.0, 0.5], rel=0.04)


def test_inflation_is_that_of_the_tissue_alone():
    volumes, seen = ensemble((3.0, 0.5))
    before = inflation(volumes, seen.truth, seen.regions.tissue)
    volumes[:, ~seen.regions.tissue[:, None].expand_as(seen.truth)] += 1e3
    assert torch.equal(inflation(volumes, seen.truth, seen.regions.tissue), before)
    assert RADIUS < 32 and not seen.regions.tissue.all()
