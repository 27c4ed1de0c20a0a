"""The split's counts, balance and stability, and the dataset that is made with it."""

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import tiny

from dotlib.config import ConfigError, Data, Measurements
from dotlib.data import dataset, phantoms, split, store

FRACTIONS = (14, 3, 3)


@pytest.fixture(scope="module")
def tables():
    return phantoms.sample("default", 5000, 0)


@pytest.mark.parametrize(
    ("n", "fractions", "counts"), [(384, (4, 1, 1), (256, 64, 64)), (5000, FRACTIONS, (3500, 750, 750))]
)
def test_split_has_the_exact_counts(tables, n, fractions, counts):
    labels = split.split(split.strata(tables[:n]), fractions, 0)
    assert tuple(np.bincount(labels)) == counts and labels.shape == (n,)


def test_split_keeps_its_shares_at_every_length(tables):
    share = np.array(FRACTIONS) / sum(FRACTIONS)
    for seed in range(5):
        labels = split.split(split.strata(tables[:1000]), FRACTIONS, seed)
        counts = np.cumsum(labels[:, None] == np.arange(3), 0)
        assert np.abs(counts - share * np.arange(1, 1001)[:, None]).max() < 2


def test_split_is_stable_when_phantoms_are_appended(tables):
    stratum = split.strata(tables[:1000])
    labels = split.split(stratum, FRACTIONS, 3)
    for n in (1, 17, 384, 999):
        np.testing.assert_array_equal(split.split(stratum[:n], FRACTIONS, 3), labels[:n])
    np.testing.assert_array_equal(split.strata(phantoms.sample("default", 50, 0)), stratum[:50])


@pytest.fixture(scope="module")
def sigma():
    """Standard deviations of 25 pairs of 5,000 phantoms, median pairs about the edge of good and poor."""
    rng = np.random.default_rng(5)
    spread = rng.lognormal(0, 0.2, (5000, 1, 1)) * rng.lognormal(0, 0.8, (5000, 25, 2))
    return (split.QUALITY_EDGE * spread).astype("f4")


@pytest.mark.parametrize("measured", [False, True])
def test_split_balances_the_strata(tables, sigma, measured):
    n = 4000 if measured else 2000
    stratum = split.strata(tables[:n], split.quality(sigma[:n]) if measured else None)
    labels = split.split(stratum, FRACTIONS, 0)
    counts = np.array([np.bincount(labels[stratum == s], minlength=3) for s in np.unique(stratum)])
    assert len(counts) == (24 if measured else 12) and counts.sum(1).min() > 50
    expected = counts.sum(1, keepdims=True) * np.array(FRACTIONS) / sum(FRACTIONS)
    assert np.abs(counts - expected).max() < 2
    shuffled = np.random.default_rng(0).permutation(labels)
    drawn = np.array([np.bincount(shuffled[stratum == s], minlength=3) for s in np.unique(stratum)])
    assert stats.chi2_contingency(counts).statistic < 0.1 * stats.chi2_contingency(drawn).statistic


def test_quality_is_above_or_below_the_edge_by_the_median_pair(tables):
    rows, edge = tables[:4], np.float32(split.QUALITY_EDGE)
    sigma = np.full((4, 5, 2), 9, dtype="f4")  # of phases, that do not count
    sigma[..., 0] = edge * np.array([[0.9] * 5, [1.1] * 5, [0.1, 0.1, 0.9, 9, 9], [0.1, 0.1, 1.1, 9, 9]])
    assert ((split.strata(rows, split.quality(sigma)) - split.strata(rows)) // 16).tolist() == [0, 1, 0, 1]
    assert split.strata(None, split.quality(sigma)).tolist() == [0, 16, 0, 16]
    sigma[0, :3] = np.nan  # most pairs were lost
    assert split.strata(None, split.quality(sigma)).tolist() == [16, 16, 0, 16]


def test_measured_split_is_stable_when_phantoms_are_appended(tables, sigma):
    excluded = np.random.default_rng(1).random(1000) < 0.1
    labels = split.split(split.strata(tables[:1000], split.quality(sigma[:1000])), FRACTIONS, 3, excluded)
    for n in (1, 17, 384, 999):
        first = split.split(split.strata(tables[:n], split.quality(sigma[:n])), FRACTIONS, 3, excluded[:n])
        np.testing.assert_array_equal(first, labels[:n])


def test_excluded_phantoms_are_in_no_set_and_count_for_none(tables):
    stratum, excluded = split.strata(tables[:500]), np.zeros(500, dtype=bool)
    excluded[[0, 7, 8, 300]] = True
    labels = split.split(stratum, FRACTIONS, 0, excluded)
    np.testing.assert_array_equal(np.flatnonzero(labels == -1), np.flatnonzero(excluded))
    assert np.abs(np.bincount(labels[~excluded]) - 496 * np.array(FRACTIONS) / 20).max() < 2
    assert (split.split(stratum, FRACTIONS, 0, np.ones(500, dtype=bool)) == -1).all()
    none = split.split(stratum, FRACTIONS, 0, np.zeros(500, dtype=bool))
    np.testing.assert_array_equal(none, split.split(stratum, FRACTIONS, 0))


def test_split_is_drawn_by_its_seed(tables):
    stratum = split.strata(tables[:500])
    one, again, other = (split.split(stratum, FRACTIONS, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert 0.2 < (one != other).mean() < 0.7  # two independent draws of 70 / 15 / 15 % differ in 46.5 %


@pytest.mark.parametrize(
    ("axes", "mua", "musp", "stratum"),
    [
        ([], 0.004, 0.9, 0),
        ([], 0.006, 1.1, 3),
        ([(9, 9, 9)], 0.004, 0.9, 4),
        ([(15, 15, 5)], 0.004, 1.1, 9),  # cube root of 1125: 10.4 mm
        ([(5, 5, 5), (14, 12, 13)], 0.006, 0.9, 14),  # the largest counts
    ],
)
def test_stratum_is_that_of_the_hand_made_phantom(axes, mua, musp, stratum):
    rows = np.full((1, phantoms.ROWS, phantoms.COLUMNS), np.nan, dtype=np.float32)
    rows[0, 0, phantoms.MUA], rows[0, 0, phantoms.MUSP] = mua, musp
    for k, a in enumerate(axes, 1):
        rows[0, k, phantoms.AXES] = a
    assert split.strata(rows) == [stratum]


def test_digest_changes_with_a_bit_of_a_table_or_a_label(tables):
    rows, labels = tables[:20], split.split(split.strata(tables[:20]), FRACTIONS, 0)
    frozen = split.digest(rows, labels)
    assert split.digest(rows.copy(order="F"), labels.copy()) == frozen
    nudged, moved = rows.copy(), labels.copy()
    nudged[7, 0, phantoms.MUA] = np.nextafter(nudged[7, 0, phantoms.MUA], np.float32(1))
    moved[7] = (moved[7] + 1) % 3
    assert (
        len({frozen, split.digest(nudged, labels), split.digest(rows, moved), split.digest(rows[:19], labels[:19])})
        == 4
    )


def test_dataset_parts_are_disjoint_and_complete():
    data = dataset.load(Data(phantoms=60, fractions=(4, 1, 1), grid=16))
    parts = {name: data.part(name) for name in split.NAMES}
    for name, n in {"train": 40, "validation": 10, "test": 10}.items():
        assert abs(len(parts[name]) - n) < 2
    keys = [row.tobytes() for rows in parts.values() for row in rows]
    assert len(set(keys)) == 60 and set(keys) == {row.tobytes() for row in data.ellipsoids}
    assert data.voxel == 4 and data.digest == split.digest(data.ellipsoids, data.labels)
    np.testing.assert_array_equal(data.volumes("test").numpy(), phantoms.rasterise(parts["test"], 16).numpy())
    assert torch.equal(data.tissue("test"), phantoms.hard(parts["test"], 16)[:, 1] > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_standard_is_the_mean_and_deviation_in_the_tissue(dtype):
    volumes = phantoms.rasterise(phantoms.sample("default", 5, 2), 32, dtype=dtype)
    mean, sd = dataset.standard(volumes)
    for channel in range(2):
        values = volumes.double().numpy()[:, channel][volumes[:, 1].numpy() > 0]
        assert mean[channel].item() == pytest.approx(values.mean(), rel=1e-6)
        assert sd[channel].item() == pytest.approx(values.std(), rel=1e-5)


@pytest.mark.parametrize("family", phantoms.FAMILIES)
def test_phantom_is_in_the_same_part_in_every_family(family):
    """Phantom i of all families rests on the same random numbers: what is judged on must be trained with in none."""
    base = Data(phantoms=120, fractions=(4, 1, 1), grid=16, seed=3)
    labels = dataset.load(base.model_copy(update={"family": family})).labels
    assert np.array_equal(labels, dataset.load(base).labels)


def test_phantoms_of_two_families_are_nearly_the_same():
    """Why they have to be in the same part."""
    default, small = (phantoms.sample(family, 50, 0) for family in ("default", "small"))
    assert np.array_equal(default[:, 0], small[:, 0], equal_nan=True)
    assert np.isfinite(default[:, 1:, phantoms.MUA]).sum() == np.isfinite(small[:, 1:, phantoms.MUA]).sum()


@pytest.mark.parametrize(
    ("test", "refused"), [({"seed": 1}, False), ({"family": "small"}, False), ({"fractions": (1, 1, 1)}, True)]
)
def test_training_on_the_draw_of_a_test_phantom_is_refused(test, refused):
    data = Data(phantoms=60, fractions=(4, 1, 1), grid=16)
    config = tiny(data=data, test=data.model_copy(update=test))
    if refused:
        with pytest.raises(
            ConfigError, match=r"test: \d+ of its phantoms are of the same draw as ones that are trained"
        ):
            dataset.judging(config, dataset.load(data))
    else:
        assert dataset.judging(config, dataset.load(data)).digest == dataset.load(config.test).digest


def test_measured_families_have_the_default_ones_split(tmp_path):
    """Whatever their readings are like; a phantom that failed its checks is in no part."""
    base = Data(phantoms=12, fractions=(4, 1, 1), grid=16, measurements=Measurements(grid=32))
    default, small = (dataset.load(base.model_copy(update={"family": f}), tmp_path) for f in ("default", "small"))
    assert default.content != small.content and np.array_equal(small.labels, default.labels)
    with store.File(default.path) as file:
        own = split.strata(file.read("ellipsoids"), split.quality(file.raw("sigma")))
    assert np.array_equal(default.labels, split.split(own, base.fractions, base.seed))
