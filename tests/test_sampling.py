"""Patterns of pairs: sizes, replays, exact inclusion probabilities, and geometry measured anew from the optodes."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from dotlib.config import Noise
from dotlib.data import augment, noise, phantoms, probe, sampling, split
from dotlib.data.sampling import PATTERNS, subsets
from dotlib.physics import green

COUNT, NEAREST = 256, 320  # pairs, and those of a band


@pytest.fixture(scope="module")
def probes():
    """Twelve probes, the sd of their readings in a half-space, and lost pairs."""
    drawn = [probe.draw(rows, 3, i)[1] for i, rows in enumerate(phantoms.sample("default", 12, 3))]
    sigma, lost = zip(*(readings(p, i) for i, p in enumerate(drawn)), strict=True)
    columns = {name: np.stack([getattr(p, name) for p in drawn]) for name in ("sources", "detectors", "pairs")}
    return columns | {"sigma": np.stack(sigma), "lost": np.stack(lost)}


def readings(p, index):
    phi = green.semi_infinite(probe.separations(p.sources, p.detectors, p.pairs), 0.005, 1.0, 140e6)
    found, _, sigma = noise.measure(phi, 0 * np.abs(phi), p.pairs, Noise(dropout=0.1), np.random.default_rng(index))
    return sigma, np.isnan(found)


def chosen(pattern, probes, count=COUNT, seed=(0,), indices=None, **changes):
    probes = probes | changes
    return subsets(pattern, **probes, count=count, seed=seed, indices=indices or range(len(probes["pairs"])))


def repeated(probes, n, which=0):
    """One probe as `n` phantoms."""
    return {name: np.repeat(column[which : which + 1], n, axis=0) for name, column in probes.items()}


def lateral(probes, i):
    """Lateral places of the ends of each pair of a phantom `(M, 2, 2)`."""
    s, d = (probes[kind][i].astype(float) for kind in ("sources", "detectors"))
    return np.array([[s[a, :2], d[b, :2]] for a, b in probes["pairs"][i]])


def apart(probes, i):
    s, d = (probes[kind][i].astype(float) for kind in ("sources", "detectors"))
    return np.array([np.sqrt(((s[a] - d[b]) ** 2).sum()) for a, b in probes["pairs"][i]])


def reach(probes, i):
    optodes = np.concatenate([probes["sources"][i], probes["detectors"][i]])
    return np.hypot(optodes[:, 0], optodes[:, 1]).max()


@pytest.mark.parametrize("count", [1, 2, 256, 1000, 1200])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_subsets_are_ascending_distinct_usable_and_as_many_as_asked(pattern, count, probes):
    found = chosen(pattern, probes, count)
    assert found.shape == (12, count) and found.dtype == np.int16
    for row, lost in zip(found.astype(int), probes["lost"], strict=True):
        used = row[row >= 0]
        assert (np.diff(used) > 0).all() and used.max() < 1000
        assert (row[len(used) :] == -1).all()
        assert lost.any() and not lost[used].any()
        most = min(count, (~lost).sum())
        assert len(used) == most or (pattern == "clinical" and count > COUNT and len(used) < most)


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p != "clinical"])
def test_all_usable_pairs_are_taken_where_they_are_too_few(pattern, probes):
    lost = np.ones((12, 1000), dtype=bool)
    for i in range(12):
        lost[i, i::10] = False
    lost[11] = True
    found = chosen(pattern, probes, lost=lost, sigma=np.where(lost[..., None], np.nan, probes["sigma"]))
    for i in range(11):
        assert found[i].tolist() == [*range(i, 1000, 10)] + [-1] * (COUNT - len(range(i, 1000, 10)))
    assert (found[11] == -1).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_subset_is_the_same_in_any_company(pattern, probes, monkeypatch):
    together = chosen(pattern, probes)
    order = [7, 3, 11]
    few = {name: column[order] for name, column in probes.items()}
    np.testing.assert_array_equal(chosen(pattern, few, indices=order), together[order])
    monkeypatch.setattr(sampling, "BLOCK", 5)
    np.testing.assert_array_equal(chosen(pattern, probes), together)
    for i in (0, 5):
        alone = {name: column[i : i + 1] for name, column in probes.items()}
        np.testing.assert_array_equal(chosen(pattern, alone, indices=[i])[0], together[i])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_seed_and_index_are_all_that_is_random(pattern, probes):
    same = repeated(probes, 6)
    np.random.seed(1)  # noqa: NPY002 the global generator is not used
    first = chosen(pattern, same, seed=(4, 1))
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(first, chosen(pattern, same, seed=(4, 1)))
    others = [chosen(pattern, same, seed=s) for s in ((4, 2), (5, 1), (1, 4))]
    rows = np.concatenate([first, *others])
    assert len(np.unique(rows, axis=0)) == len(rows)
    common = np.mean([np.isin(a, b).mean() for a, b in zip(first, others[0], strict=True)])
    assert common < 0.75  # most of 256 would be common where only ties were drawn


def test_stream_of_random_numbers_is_its_own():
    assert sampling.STREAM not in {module.STREAM for module in (phantoms, split, probe, noise, augment)}


def uneven(count, n, share):
    """P-value of chi-square for inclusions of each pair in `n` samples without replacement of a share of them."""
    m = len(count)
    square = ((count - n * share) ** 2).sum() / (n * share * (1 - share)) * (m - 1) / m
    return 2 * min(stats.chi2(m - 1).cdf(square), stats.chi2(m - 1).sf(square))


def inclusions(found):
    return np.bincount(found[found >= 0], minlength=1000)


def test_random_is_uniform_over_subsets(probes):
    n = 3000
    same = repeated(probes, n)
    found, usable = chosen("random", same), np.flatnonzero(~same["lost"][0])
    m = len(usable)
    assert uneven(inclusions(found)[usable], n, COUNT / m) > 0.003
    # a subset is no run of neighbours: two pairs are together as often as drawing without replacement has it
    together = (np.diff(np.searchsorted(usable, found), axis=1) == 1).sum(1)
    expected = COUNT * (COUNT - 1) / m
    assert abs(together.mean() - expected) < 4 * together.std() / np.sqrt(n)


def small(n, lost=(3, 9)):
    """`n` phantoms with one probe of 12 pairs, whose sd of ln A and of the phase differ."""
    rng = np.random.default_rng(0)
    out = {"sources": rng.normal(size=(1, 4, 3)), "detectors": rng.normal(size=(1, 3, 3))}
    out["pairs"] = np.argwhere(np.ones((4, 3)))[None]
    out["sigma"] = np.stack([np.geomspace(0.005, 0.2, 12), np.geomspace(0.3, 0.1, 12)], -1)[None]
    out["lost"] = np.isin(np.arange(12), lost)[None]
    return repeated(out, n)


def test_first_pair_of_snr_has_the_share_of_its_weight():
    n = 20_000
    same = small(n)
    weight = np.where(same["lost"][0], 0, 1 / same["sigma"][0, :, 0])
    count = np.bincount(chosen("snr", same, 1)[:, 0], minlength=12)
    usable = weight > 0
    assert count[~usable].sum() == 0
    assert stats.chisquare(count[usable], n * weight[usable] / weight.sum()).pvalue > 0.003


def test_snr_draws_pair_after_pair_in_proportion_to_the_weights_left():
    n, k = 20_000, 4
    same = small(n)
    usable = np.flatnonzero(~same["lost"][0])
    weight, expected = 1 / same["sigma"][0, :, 0], np.zeros(12)
    for order in permutations(usable, k):  # the exact law, over all ordered draws
        left, p = weight[usable].sum(), 1.0
        for pair in order:
            p, left = p * weight[pair] / left, left - weight[pair]
        expected[list(order)] += p
    assert expected.sum() == pytest.approx(k)
    count = np.bincount(chosen("snr", same, k).ravel(), minlength=12)
    error = (count - n * expected)[usable] / np.sqrt(n * expected * (1 - expected))[usable]
    assert np.abs(error).max() < 4


def test_snr_favours_short_pairs_and_stratified_does_not(probes):
    short = {p: [] for p in ("random", "snr", "stratified")}
    for pattern, shares in short.items():
        for i, row in enumerate(chosen(pattern, probes)):
            shares.append((apart(probes, i)[row] < 20).mean())
    assert np.mean(short["snr"]) > 1.5 * np.mean(short["random"])
    assert np.mean(short["stratified"]) == pytest.approx(1 / 3, abs=0.01)


def nearer(distances, row, lost):
    """How many usable pairs are nearer than the farthest chosen one, for the candidate `(N, M)` that fits best."""
    farthest = distances[:, row].max(1, keepdims=True)
    return (distances < farthest)[:, ~lost].sum(1).min()


def test_circular_is_a_ring_about_the_axis(probes):
    found, plain = chosen("circular", probes), chosen("random", probes)
    middles = []
    for i, (row, other) in enumerate(zip(found, plain, strict=True)):
        place = lateral(probes, i)
        radius = np.hypot(place[..., 0], place[..., 1])
        middles.append(np.ptp(radius[row]) / 2 + radius[row].min())
        assert np.ptp(radius[row]) < 0.7 * np.ptp(radius[other])
        assert radius[row].std() < 0.6 * radius[other].std() and radius[row].mean() > radius[other].mean()
        # all around: an octant's even share is an eighth
        octant = (np.arctan2(place[..., 1], place[..., 0]) // (np.pi / 4)).astype(int) % 8
        assert np.bincount(octant[row].ravel(), minlength=8).min() > 0.03 * 2 * COUNT
        rings = np.linspace(0.7, 0.9, 2001)[:, None] * reach(probes, i)
        distances = np.abs(radius[None] - rings[..., None]).max(-1)
        assert COUNT <= nearer(distances, row, probes["lost"][i]) < NEAREST
    assert np.std(middles) > 0.5  # mm: rings of different radii


def test_linear_is_a_band_through_the_axis(probes):
    found, plain = chosen("linear", probes), chosen("random", probes)
    angle = np.linspace(0, np.pi, 3000, endpoint=False)
    normal = np.stack([-np.sin(angle), np.cos(angle)])
    ratios = []
    for i, (row, other) in enumerate(zip(found, plain, strict=True)):
        place = lateral(probes, i)
        spread = (np.sqrt(np.linalg.eigvalsh(moment(place[r]))) for r in (row, other))
        ratios.append([across / along for across, along in spread])
        distances = np.abs(place @ normal).max(1).T
        assert COUNT <= nearer(distances, row, probes["lost"][i]) < NEAREST
    narrow, wide = np.mean(ratios, axis=0)
    assert narrow < 0.6 and wide > 0.85 and max(r[0] for r in ratios) < 0.8


def moment(place):
    """Second moments of optodes about the axis."""
    points = place.reshape(-1, 2)
    return points.T @ points / len(points)


def test_line_has_any_direction(probes):
    same = repeated(probes, 300)
    place = lateral(probes, 0)
    axes = np.array([np.linalg.eigh(moment(place[row]))[1][:, 1] for row in chosen("linear", same, 64)])
    sector = (np.arctan2(axes[:, 1], axes[:, 0]) // (np.pi / 6)).astype(int) % 6
    assert np.bincount(sector, minlength=6).min() > 25


def test_clustered_midpoints_lie_together(probes):
    for i, (row, other) in enumerate(zip(chosen("clustered", probes), chosen("random", probes), strict=True)):
        middle = lateral(probes, i).mean(1)
        assert nearest(middle[row]) < 0.9 * nearest(middle[other])
    groups = {p: [] for p in ("clustered", "random")}
    for pattern, sizes in groups.items():
        for i, row in enumerate(chosen(pattern, probes, 40)):
            middle = lateral(probes, i).mean(1)[row]
            sizes.append(connected_components(cdist(middle, middle) < 4)[0])
    assert max(groups["clustered"]) <= 4 and np.mean(groups["clustered"]) > 1.5
    assert min(groups["random"]) > 6


def nearest(points):
    return np.sort(cdist(points, points), axis=1)[:, 1].mean()


def regions(probes, i):
    """The region of each pair: lateral cell of 10 mm and layer between mean depths of 6 and 7.5 mm."""
    layer = np.searchsorted([4 * 6**2 / 8.2, 4 * 7.5**2 / 8.2], apart(probes, i))  # their separations: 17.6, 27.4 mm
    cell = np.round(lateral(probes, i).mean(1) / 10)
    return np.unique(np.column_stack([cell, layer]), axis=0, return_inverse=True)[1].ravel()


def bins(probes, i):
    edges = [0, 15, 20, 25, 30, 35, np.inf]
    assert np.histogram(apart(probes, i), edges)[0].sum() == 1000
    return np.digitize(apart(probes, i), edges) - 1


@pytest.mark.parametrize(("pattern", "groups"), [("adaptive", regions), ("stratified", bins)])
@pytest.mark.parametrize("count", [20, 100, COUNT, 700])
def test_groups_share_equally_as_far_as_they_can_supply(pattern, groups, count, probes):
    for i, row in enumerate(chosen(pattern, probes, count)):
        group = groups(probes, i)
        supply = np.bincount(group[~probes["lost"][i]], minlength=group.max() + 1)
        share = np.bincount(group[row], minlength=group.max() + 1)
        assert share.sum() == count and (share <= supply).all()
        assert (share >= np.minimum(supply, share.max() - 1)).all()  # who has less gives all


def test_regions_are_balanced_beside_random(probes):
    for i in range(12):
        group = regions(probes, i)
        supply = np.bincount(group[~probes["lost"][i]])
        rich = supply >= 10
        equal, plain = (
            np.bincount(group[chosen(p, probes)[i]], minlength=len(supply))[rich] for p in ("adaptive", "random")
        )
        assert rich.sum() > 15 and equal.max() - equal.min() <= 1 < 4 < plain.max() - plain.min()


def test_separations_beyond_the_range_belong_to_the_end_bins(probes):
    wide = probes | {kind: 2 * probes[kind] for kind in ("sources", "detectors")}
    for i, row in enumerate(chosen("stratified", wide, 60)):
        assert apart(wide, i)[row].max() > 40
        assert np.histogram(apart(wide, i)[row], [20, 25, 30, 35, np.inf])[0].tolist() == [15] * 4


@pytest.mark.parametrize("count", [3, 120])  # the last round alone, and whole rounds
@pytest.mark.parametrize(("pattern", "groups"), [("adaptive", regions), ("stratified", bins)])
def test_pairs_of_a_group_are_drawn_uniformly(pattern, groups, count, probes):
    n = 2000
    same = repeated(probes, n)
    found, group = chosen(pattern, same, count), groups(probes, 0)
    times, least = inclusions(found), []
    for g in np.unique(group):
        members = np.flatnonzero((group == g) & ~same["lost"][0])
        share = times[members].sum() / n / max(len(members), 1)
        if 0 < share < 1:
            least.append(uneven(times[members], n, share))
    assert len(least) > 5 and min(least) > 0.003 / len(least)


def test_last_round_goes_to_random_groups(probes):
    n, group = 2000, bins(probes, 0)
    share = np.array([np.bincount(group[row], minlength=6) for row in chosen("stratified", repeated(probes, n), 20)])
    assert (share.min(1) == 3).all() and (share.sum(1) == 20).all()
    assert uneven((share - 3).sum(0), n, 2 / 6) > 0.003


@pytest.mark.parametrize("separation", [10.0, 20.0, 30.0, 40.0])
def test_depth_is_that_of_the_absorption_sensitivity(separation):
    mua, musp = 0.005, 0.98
    h, extrapolated = 0.5, 2 * green.boundary_parameter(1.33) / (3 * (mua + musp))
    x, y, z = np.meshgrid(
        *(np.arange(low, high, h) + h / 2 for low, high in ((-45, 45), (0, 40), (0, 45))), indexing="ij"
    )

    def fluence(end):
        """Of an isotropic source 1 / musp below the surface, and its negative image."""
        lateral = (x - end) ** 2 + y**2 + 0.1  # mm^2: blunts the pole
        real, image = (np.sqrt(lateral + (z + shift) ** 2) for shift in (-1 / musp, 1 / musp + 2 * extrapolated))
        return (green.infinite(real, mua, musp, 0) - green.infinite(image, mua, musp, 0)).real

    sensitivity = fluence(-separation / 2) * fluence(separation / 2)
    assert sampling.depth(separation) == pytest.approx((z * sensitivity).sum() / sensitivity.sum(), rel=0.1)


def test_clinical_patch_ends_on_one_side_and_loses_optodes_and_pairs(probes):
    angle = np.linspace(-np.pi, np.pi, 1440, endpoint=False)
    direction, cuts, sides = np.stack([np.cos(angle), np.sin(angle)]), [], []
    optodes, pairs = np.zeros(2, int), np.zeros(2, int)  # lost, of all that could be there
    for seed in range(12):
        for i, row in enumerate(chosen("clinical", probes, 1000, (seed,))):
            row, number = row[row >= 0], probes["pairs"][i].astype(int) + np.array([0, 50])
            points = np.concatenate([probes["sources"][i], probes["detectors"][i]])[:, :2] @ direction
            used = np.zeros(90, bool)
            used[number[row]] = True
            farthest = points[used].max(0) / reach(probes, i)
            side = farthest.argmin()
            cuts.append(farthest[side])
            sides.append(angle[side])
            held = points[:, side] <= cuts[-1] * reach(probes, i)
            optodes += (held & ~used).sum(), held.sum()
            possible = used[number].all(1) & ~probes["lost"][i]
            pairs += possible.sum() - len(row), possible.sum()
    # the outermost optode of a whole patch is 0.8 reach away or farther on every side
    assert min(cuts) > 0.2 and max(cuts) < 0.71 and np.std(cuts) > 0.08
    assert np.bincount((np.array(sides) // (np.pi / 2)).astype(int) % 4, minlength=4).min() > 20
    for lost, every in (optodes, pairs):
        assert lost / every == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / every))


def test_clinical_is_uniform_among_what_remains(probes):
    place = []
    for seed in range(40):
        every, few = (chosen("clinical", probes, count, (seed,)) for count in (1000, 64))
        for remaining, row in zip(every, few, strict=True):
            remaining = remaining[remaining >= 0]
            assert np.isin(row, remaining).all()
            place.append(np.searchsorted(remaining, row) / len(remaining))
    assert stats.kstest(np.concatenate(place), "uniform").pvalue > 0.003


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "spiral"}, "pattern 'spiral'; accepted: random, snr, circular, linear, clustered, adaptive, .*"),
        ({"count": 0}, "count = 0; accepted: at least 1"),
        ({"indices": [0, 1]}, r"2 indices, arrays of shapes \(3, 4, 3\), .*; accepted: P, \(P, S, 3\), .*"),
        ({"sources": np.zeros((3, 4, 2))}, r"3 indices, arrays of shapes \(3, 4, 2\), .*"),
        ({"detectors": np.zeros((2, 3, 3))}, r".* \(3, 4, 3\), \(2, 3, 3\), .*"),
        ({"pairs": np.zeros((3, 12), int)}, r".* \(3, 12\), \(3, 12, 2\), \(3, 12\); accepted: .*"),
        ({"sigma": np.ones((3, 12))}, r".* \(3, 12, 2\), \(3, 12\), \(3, 12\); accepted: .*"),
        ({"lost": np.zeros((3, 11), bool)}, r".* \(3, 11\); accepted: .*"),
        ({"pairs": np.full((3, 12, 2), 3)}, r"phantom 0: pair 0 is \[3, 3\]; accepted: from 0 to below 4, 3"),
        ({"pairs": np.full((3, 12, 2), -1)}, r"phantom 0: pair 0 is \[-1, -1\]; .*"),
        ({"pattern": "snr", "sigma": np.zeros((3, 12, 2))}, "snr: phantom 0: pair 0 has sigma 0 of ln A; accepted: .*"),
        ({"pattern": "snr", "sigma": np.full((3, 12, 2), np.nan)}, "snr: .* sigma nan of ln A; .* positive numbers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(changes, message):
    arguments = {"pattern": "random", "count": 4, "seed": (0,), "indices": range(3)} | small(3) | changes
    with pytest.raises(ValueError, match=f"^sampling: {message}$"):
        subsets(**arguments)


def test_more_pairs_than_the_type_can_number_are_refused():
    many = {"sources": np.zeros((1, 1, 3)), "detectors": np.zeros((1, 1, 3)), "pairs": np.zeros((1, 32768, 2), int)}
    with pytest.raises(ValueError, match=r"^sampling: 32768 pairs; accepted: at most 32767$"):
        chosen("random", many | {"sigma": np.ones((1, 32768, 2)), "lost": np.zeros((1, 32768), bool)})
