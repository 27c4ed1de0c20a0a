"""Drawn phantoms: ranges, distributions, embedding and independence, against closed forms and scipy.stats."""

from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from scipy import stats
from test_phantoms import UNTURNED, matrix, radius, table

from dotlib import config
from dotlib.data import phantoms
from dotlib.data.phantoms import AXES, CENTRE, CUBE, EXPONENT, FAMILIES, MUA, MUSP, QUATERNION


def drawn(family, n=300, seed=0):
    """A family's tissue rows (n, 13), its inclusions (m, 13), their phantoms (m,), and the number in each phantom."""
    rows = phantoms.sample(family, n, seed).astype(np.float64)
    present = np.isfinite(rows[:, 1:, MUA])
    return rows[:, 0], rows[:, 1:][present], np.nonzero(present)[0], present.sum(1)


@pytest.mark.parametrize("family", ["default", "superellipsoid"])
def test_phantom_is_independent_of_its_company(family):
    together = phantoms.sample(family, 40, 7)
    alone = np.concatenate([phantoms.sample(family, 1, 7, first=i) for i in range(40)])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(phantoms.sample(family, 3, 7, first=38)[:2], together[38:])
    assert not np.isclose(phantoms.sample(family, 40, 8)[:, 0, AXES], together[:, 0, AXES]).any()
    assert len(np.unique(together[:, 0, MUA])) == 40


@pytest.mark.parametrize("family", FAMILIES)
def test_family_keeps_and_fills_its_ranges(family):
    f = FAMILIES[family]
    tissue, inclusion, of, number = drawn(family)
    assert set(number) == set(range(f.number[0], f.number[1] + 1))
    values = {
        "tissue_axes": tissue[:, AXES],
        "tissue_exponent": tissue[:, EXPONENT],
        "mua": tissue[:, MUA],
        "musp": tissue[:, MUSP],
    }
    if len(inclusion):
        values["semi_axes"] = inclusion[:, AXES]
        values["contrast_mua"] = inclusion[:, MUA] / tissue[of, MUA]
        values["contrast_musp"] = inclusion[:, MUSP] / tissue[of, MUSP]
        assert (inclusion[:, EXPONENT] == 2).all()
        where = np.array([radius(tissue[p], row[CENTRE]) for p, row in zip(of, inclusion, strict=True)])
        assert where.min() >= f.radius[0] - 1e-6 and where.max() <= f.radius[1] + 1e-6
    assert (tissue[:, CENTRE] == 0).all()
    for name, found in values.items():
        low, high = getattr(f, name)
        margin, spread = 1e-6 * high, 0.05 * (high - low)
        assert low - margin <= found.min() <= low + spread + margin, name
        assert high - spread - margin <= found.max() <= high + margin, name


def test_default_family_is_uniform_in_the_published_ranges():
    tissue, inclusion, of, number = drawn("default", 600)
    ranges = [
        (tissue[:, AXES].ravel(), 25, 30),  # mm
        (tissue[:, MUA], 0.003, 0.007),  # mm^-1
        (tissue[:, MUSP], 0.78, 1.18),
        (inclusion[:, AXES].ravel(), 5, 15),
        (inclusion[:, MUA] / tissue[of, MUA], 1.5, 3.5),
        (inclusion[:, MUSP] / tissue[of, MUSP], 1.5, 2.5),
    ]
    for values, low, high in ranges:
        assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 0.01, (low, high)
    assert stats.chisquare(np.bincount(number, minlength=6)[1:]).pvalue > 0.01 and number.max() == 5


def test_quantities_are_independent():
    rows = phantoms.sample("many", 800, 1).astype(np.float64)
    contrast = rows[:, 1:5, [MUA, MUSP]] / rows[:, :1, [MUA, MUSP]]
    drawn = [rows[:, 0, [MUA, MUSP]], contrast.reshape(800, 8), rows[:, :5, AXES].reshape(800, 15)]
    rank = stats.spearmanr(np.concatenate(drawn, 1)).statistic
    assert np.abs(rank - np.eye(25)).max() < 0.15  # four standard deviations of no correlation


NAMED = {
    "small": {"semi_axes": (5, 9)},
    "small-5mm": {"semi_axes": (5, 5)},
    "none": {"number": (0, 0)},
    "single": {"number": (1, 1)},
    "many": {"number": (4, 5)},
    "mua-only": {"contrast_musp": (1, 1)},
    "musp-only": {"contrast_mua": (1, 1)},
}


@pytest.mark.parametrize("family", NAMED)
def test_family_differs_from_the_default_in_what_it_is_named_for(family):
    assert FAMILIES[family] == replace(FAMILIES["default"], **NAMED[family])


def test_families_beyond_the_training_range_do_not_overlap_it():
    default, beyond = FAMILIES["default"], FAMILIES["out-of-range"]
    assert beyond.mua[0] >= default.mua[1] and beyond.musp[0] >= default.musp[1]
    assert FAMILIES["deep"].radius[1] < FAMILIES["superficial"].radius[0]
    assert FAMILIES["low-contrast"].contrast_mua[1] <= default.contrast_mua[0]
    assert FAMILIES["high-contrast"].contrast_mua[1] == default.contrast_mua[1]


def test_families_are_those_of_the_configuration():
    assert get_args(config.FamilyName) == tuple(FAMILIES)


def test_orientation_is_uniform():
    for rows in drawn("default", 1000, 3)[:2]:
        turn = np.array([matrix(q) for q in rows[:, QUATERNION]])
        np.testing.assert_allclose(turn @ np.swapaxes(turn, 1, 2), np.broadcast_to(np.eye(3), turn.shape), atol=1e-6)
        for i, j in np.ndindex(3, 3):  # each element of a uniform rotation is uniform (Archimedes)
            assert stats.kstest(turn[:, i, j], "uniform", (-1, 2)).pvalue > 0.003, (i, j)


def test_position_is_uniform_where_nothing_is_rejected():
    tissue, inclusion, of, _ = drawn("deep", 500, 4)  # the deep family's inclusions are always embedded
    local = [
        matrix(tissue[p, QUATERNION]).T @ row[CENTRE] / tissue[p, AXES] for p, row in zip(of, inclusion, strict=True)
    ]
    distance = np.linalg.norm(local, axis=1)
    assert stats.kstest((distance / 0.35) ** 3, "uniform").pvalue > 0.01
    for component in (local / distance[:, None]).T:
        assert stats.kstest(component, "uniform", (-1, 2)).pvalue > 0.01


def test_embedded_share_of_spheres_is_that_of_the_lens():
    big, small = 26.0, 9.0
    for distance in (10, 18, 22, 26, 30, 36):
        d = np.clip(distance, big - small, big + small)
        lens = np.pi * (big + small - d) ** 2 * (d**2 + 2 * d * (big + small) - 3 * (big - small) ** 2) / (12 * d)
        rows = table(
            ((0, 0, 0), big, UNTURNED, 2, 1, 1), ((0, distance * 0.6, distance * 0.8), small, UNTURNED, 2, 1, 1)
        )
        found = phantoms.embedded(rows[:, 0], rows[:, 1])
        assert found == pytest.approx(lens / (4 / 3 * np.pi * small**3), abs=0.01), distance


@pytest.mark.parametrize("family", ["default", "superficial", "superellipsoid"])
def test_inclusions_are_embedded_by_eighty_percent(family):
    tissue, inclusion, of, _ = drawn(family, 40, 6)
    rng = np.random.default_rng(0)
    ball = rng.standard_normal((20_000, 3))
    ball *= (rng.random(20_000) ** (1 / 3) / np.linalg.norm(ball, axis=1))[:, None]
    share = []
    for p, row in zip(of, inclusion, strict=True):
        share.append((radius(tissue[p], row[CENTRE] + (ball * row[AXES]) @ matrix(row[QUATERNION]).T) <= 1).mean())
    assert min(share) > 0.785
    assert min(share) < 0.85  # the rule is met with, not kept away from


def test_impossible_family_is_an_error_that_names_the_phantom(monkeypatch):
    monkeypatch.setitem(FAMILIES, "huge", phantoms.Family(semi_axes=(40, 40), number=(1, 1)))
    monkeypatch.setattr(phantoms, "MAX_DRAWS", 5)
    with pytest.raises(ValueError, match=r"^phantoms: phantom 3: no place for an inclusion found in 5 draws$"):
        phantoms.sample("huge", 2, 0, first=3)


def test_unknown_family_is_one_line_that_lists_the_families():
    with pytest.raises(ValueError, match=r"^phantoms: unknown family 'smal'; accepted: default, small, .*$"):
        phantoms.sample("smal", 1, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_tissue_lies_in_the_cube(family):
    direction = np.random.default_rng(0).standard_normal((2000, 3))
    for row in drawn(family, 100)[0]:
        surface = direction / radius(row, direction)[:, None]
        assert np.abs(surface).max() < CUBE / 2


def test_tables_of_five_thousand_phantoms_are_small():
    tables = phantoms.sample("default", 5000, 0)
    assert tables.nbytes < 2e6 and tables.dtype == np.float32
    unused = np.isnan(tables).all(-1)
    assert not np.isnan(tables[~unused]).any() and not unused[:, 0].any()
    for before, after in pairwise(unused.T):  # unused rows come last
        assert (after | ~before).all()
