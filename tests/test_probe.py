"""The patch probe against areas of a fine mesh of the surface, closed forms, and the laws of its draws."""

import numpy as np
import pytest
import torch
from scipy import stats
from test_phantoms import UNTURNED, brute_labels, centres, radius, table

from dotlib.data import phantoms, probe
from dotlib.data.phantoms import AXES, FAMILIES
from dotlib.data.probe import Patch, ProbeError
from dotlib.data.surface import Surface

TURN = (0.1, -0.5, 0.7, 0.5)
QUARTER = (np.sqrt(0.5), 0, 0, np.sqrt(0.5))
BODIES = {  # strongly anisotropic: the area per solid angle varies up to fifteenfold
    "ellipsoid": ((10, 18, 30), TURN, 2),
    "disc": ((28, 28, 12), QUARTER, 2),
    "superellipsoid": ((14, 20, 24), TURN, 4),
}
ANY = (0.0, 200.0)  # mm: no pair is refused


def tissue(axes, quaternion, exponent):
    quaternion = np.array(quaternion) / np.linalg.norm(quaternion)
    return table(((0, 0, 0), axes, quaternion, exponent, 0.005, 1))[0, 0]


def top(row):
    """The surface's point on +z."""
    z = np.array([0, 0, 1.0])
    return z / radius(row, z)


def mesh(row, reach=np.inf, polar=720, azimuth=720):
    """Flat triangles of the surface: their areas, and the directions of their centres; those within reach of +z."""
    t, p = np.meshgrid(np.linspace(0, np.pi, polar + 1), np.linspace(-np.pi, np.pi, azimuth + 1), indexing="ij")
    corner = np.stack([np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)], -1)
    corner /= radius(row, corner)[..., None]
    a, b, c, d = corner[:-1, :-1], corner[1:, :-1], corner[:-1, 1:], corner[1:, 1:]
    triangles = np.concatenate([np.stack(s, -2).reshape(-1, 3, 3) for s in ((a, b, c), (b, c, d))])
    area = np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1) / 2
    middle = triangles.mean(1)
    near = np.linalg.norm(middle - top(row), axis=1) <= reach
    return area[near], middle[near]


def cells(points, polar=6, azimuth=8):
    """The cell of direction that each point lies in."""
    z = points[:, 2] / np.linalg.norm(points, axis=1)
    angle = np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) % 1
    ring = np.minimum(((1 - z) / 2 * polar).astype(int), polar - 1)
    return ring * azimuth + np.minimum((angle * azimuth).astype(int), azimuth - 1)


def uniform_in_area(points, row, reach=np.inf, size=48):
    """The p-value of chi-square for points uniform in area."""
    area, middle = mesh(row, reach)
    share = np.bincount(cells(middle), area, size) / area.sum()
    count = np.bincount(cells(points), minlength=size)
    assert count[share == 0].sum() <= 0.001 * len(points)  # the mesh's jagged edge
    many = share * len(points) > 10
    return stats.chisquare(count[many], share[many] / share[many].sum() * count[many].sum()).pvalue


def test_mesh_has_the_area_of_closed_forms():
    assert mesh(tissue((20, 20, 20), TURN, 2))[0].sum() == pytest.approx(4 * np.pi * 400, rel=1e-4)
    e = np.sqrt(1 - (12 / 28) ** 2)
    oblate = 2 * np.pi * 28**2 * (1 + (1 - e**2) / e * np.arctanh(e))
    assert mesh(tissue((28, 28, 12), TURN, 2))[0].sum() == pytest.approx(oblate, rel=1e-4)


@pytest.mark.parametrize("reach", [np.inf, 30.0, 12.0])
@pytest.mark.parametrize("body", BODIES)
def test_points_are_uniform_in_area(body, reach):
    row = tissue(*BODIES[body])
    points = probe.scatter(row, 40_000, np.random.default_rng(1), reach)
    assert points.dtype == np.float32
    assert uniform_in_area(points, row, reach) > 0.003
    far = np.linalg.norm(points - top(row), axis=1)
    assert far.max() <= reach
    assert not np.isfinite(reach) or far.max() > 0.99 * reach


def test_uniform_directions_are_not_uniform_in_area():
    row = tissue(*BODIES["ellipsoid"])
    direction = np.random.default_rng(0).standard_normal((40_000, 3))
    assert uniform_in_area(direction / radius(row, direction)[:, None], row) < 1e-9


def test_optodes_of_probes_are_uniform_in_area():
    row = tissue((25, 27, 30), TURN, 2)
    patch, rng = Patch(per_source=1, pairs=50, separation=ANY), np.random.default_rng(2)
    drawn = [probe.place(row, patch, rng) for _ in range(400)]
    for kind in ("sources", "detectors"):
        assert uniform_in_area(np.concatenate([getattr(p, kind) for p in drawn]), row, 30) > 0.003
    # in the default probe the range of separations redraws so few that it does not show
    drawn = np.concatenate([probe.place(row, Patch(), rng).sources for _ in range(400)])
    assert uniform_in_area(drawn, row, 30) > 0.003


def test_patch_centre_is_uniform_in_area():
    row = tissue(*BODIES["ellipsoid"])
    axis = np.stack([probe.frame(row, np.random.default_rng(i)).as_matrix()[2] for i in range(8000)])
    assert uniform_in_area(axis / radius(row, axis)[:, None], row) > 0.003


def test_roll_is_uniform():
    row = tissue(*BODIES["ellipsoid"])
    turns = np.stack([probe.frame(row, np.random.default_rng(i)).as_matrix() for i in range(4000)])
    for fixed in ([1, 0, 0], [0.6, -0.48, 0.64]):
        image = turns @ fixed
        angle = np.arctan2(image[:, 1], image[:, 0])
        assert stats.kstest(angle, "uniform", (-np.pi, 2 * np.pi)).pvalue > 0.003
        for axis in turns[:, 2].T:  # whatever the patch
            assert abs(stats.spearmanr(angle, axis).statistic) < 4 / np.sqrt(4000)


def test_frame_of_a_ball_is_uniform_on_the_rotations():
    row = tissue((26, 26, 26), TURN, 2)
    turns = np.stack([probe.frame(row, np.random.default_rng(i)).as_matrix() for i in range(3000)])
    np.testing.assert_allclose(np.linalg.det(turns), 1)
    for i, j in np.ndindex(3, 3):  # each element of a uniform rotation is uniform (Archimedes)
        assert stats.kstest(turns[:, i, j], "uniform", (-1, 2)).pvalue > 0.003, (i, j)


@pytest.fixture(scope="module", params=FAMILIES)
def measured(request):
    """Five phantoms of each family with their tables before and after, and their probes."""
    tables = phantoms.sample(request.param, 5, 3)
    return [(rows, *probe.draw(rows, 3, i)) for i, rows in enumerate(tables)]


def test_optodes_lie_on_the_surface_within_the_patch(measured):
    for _, rows, p in measured:
        row = rows[0].astype(np.float64)
        assert p.sources.shape == (50, 3) and p.detectors.shape == (40, 3)
        for points in (p.sources, p.detectors):
            assert points.dtype == np.float32
            # |x/a| - 1 is at least the distance over the greatest distance from the centre
            assert np.abs(radius(row, points.astype(np.float64)) - 1).max() * row[AXES].min() < 1e-5
            assert Surface(row)(torch.tensor(points).double())[0].abs().max() < 1e-4
            assert np.linalg.norm(points - top(row), axis=1).max() <= 30


def test_pairs_are_sorted_distinct_and_in_range(measured):
    for _, _, p in measured:
        assert p.pairs.shape == (1000, 2) and p.pairs.dtype == np.int16
        assert p.pairs.tolist() == sorted(p.pairs.tolist()) and len(np.unique(p.pairs, axis=0)) == 1000
        assert (np.bincount(p.pairs[:, 0]) == 20).all() and p.pairs[:, 1].max() < 40 and p.pairs.min() == 0
        separation = [np.linalg.norm(p.sources[s].astype(float) - p.detectors[d]) for s, d in p.pairs]
        assert min(separation) >= 10 and max(separation) <= 40
        np.testing.assert_allclose(probe.separations(p.sources, p.detectors, p.pairs), separation)


def test_phantom_and_probe_turn_together(measured):
    for i, (before, after, p) in enumerate(measured):
        turn = probe.frame(before[0], np.random.default_rng([probe.STREAM, 3, i]))
        back = turn.inv()
        assert after.dtype == np.float32
        np.testing.assert_array_equal(after, phantoms.rotate(before[None], turn)[0])
        for points in (p.sources, p.detectors, top(after[0].astype(np.float64))[None]):
            assert np.abs(radius(before[0].astype(np.float64), back.apply(points)) - 1).max() < 1e-6
        grid = centres(32)
        expected = brute_labels(before.astype(np.float64), back.apply(grid.reshape(-1, 3)).reshape(grid.shape))
        found = phantoms.labels(after[None], 32)[0].numpy()
        assert (found != expected).sum() <= 3  # a voxel's centre on a surface, to rounding


def test_patch_centre_is_the_drawn_point():
    row = phantoms.sample("default", 1, 0)[0, 0].astype(np.float64)
    for i in range(20):
        drawn = probe.scatter(row, 1, np.random.default_rng(i))[0].astype(np.float64)
        turned = probe.frame(row, np.random.default_rng(i)).apply(drawn)
        np.testing.assert_allclose(turned, [0, 0, np.linalg.norm(drawn)], atol=1e-12)


def test_probe_depends_on_seed_and_index_alone():
    tables = phantoms.sample("default", 4, 0)
    np.random.seed(1)  # noqa: NPY002 the global generator is not used
    forward = [probe.draw(tables[i], 0, i) for i in range(4)]
    np.random.seed(2)  # noqa: NPY002
    backward = [probe.draw(tables[i], 0, i) for i in (3, 2, 1, 0)][::-1]
    for (rows, p), (other, q) in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(rows, other)
        for kind in ("sources", "detectors", "pairs"):
            np.testing.assert_array_equal(getattr(p, kind), getattr(q, kind))
    for seed, index in ((1, 0), (0, 1)):
        other = probe.draw(tables[0], seed, index)[1]
        assert not np.isin(other.sources, forward[0][1].sources).any()
        assert (other.pairs != forward[0][1].pairs).any()


def test_partners_are_drawn_uniformly():
    p = probe.place(tissue((25, 27, 30), TURN, 2), Patch(), np.random.default_rng(0))
    distance = np.linalg.norm(p.sources[:, None].astype(float) - p.detectors, axis=-1)
    near = (distance >= 10) & (distance <= 40)
    n, rng, count = 4000, np.random.default_rng(1), np.zeros(near.shape)
    for _ in range(n):
        np.add.at(count, tuple(probe.connect(near, 20, rng).T), 1)
    assert (count[~near] == 0).all() and (count.sum(1) == 20 * n).all()
    size = near.sum(1, keepdims=True)
    f = 20 / size
    # counts drawn without replacement: chi-square of size - 1 degrees once scaled by their variance
    square = (((count - n * f) ** 2) / (n * f * (1 - f)) * (size - 1) / size)[near].sum()
    assert 0.003 < stats.chi2((size - 1).sum()).cdf(square) < 0.997


def test_all_near_detectors_are_taken_where_there_are_just_enough():
    near = np.zeros((3, 7), dtype=bool)
    near[[0, 0, 1, 1, 2, 2], [1, 6, 0, 3, 4, 5]] = True
    expected = [[0, 1], [0, 6], [1, 0], [1, 3], [2, 4], [2, 5]]
    assert probe.connect(near, 2, np.random.default_rng(0)).tolist() == expected


def test_optodes_are_redrawn_until_every_source_has_its_pairs(monkeypatch):
    row, hard = tissue((26, 26, 26), UNTURNED, 2), Patch(separation=(10.0, 34.0))
    monkeypatch.setattr(probe, "MAX_DRAWS", 1)
    refused = [i for i in range(40) if not _placed(row, hard, i)]
    assert refused
    monkeypatch.setattr(probe, "MAX_DRAWS", 100)
    p = probe.place(row, hard, np.random.default_rng(refused[0]))
    assert (np.bincount(p.pairs[:, 0]) == 20).all()
    assert probe.separations(p.sources, p.detectors, p.pairs).max() <= 34


def _placed(row, patch, seed):
    try:
        return probe.place(row, patch, np.random.default_rng(seed))
    except ProbeError:
        return None


@pytest.mark.parametrize(
    ("axes", "separation", "found"), [((3, 3, 4), (10.0, 40.0), "10-40"), ((26, 27, 28), (70.0, 80.0), "70-80")]
)
def test_impossible_probe_is_one_line_that_names_the_phantom(axes, separation, found):
    rows = table(((0, 0, 0), axes, UNTURNED, 2, 0.005, 1))[0]
    message = (
        rf"^probe: phantom 17: no probe with 20 of 40 detectors {found} mm from each of 50 sources in 100 draws of its "
        r"patch$"
    )
    with pytest.raises(ProbeError, match=message):
        probe.draw(rows, 0, 17, Patch(separation=separation))


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"per_source": 10}, "50 sources with 10 detectors each are not 1000 pairs"),
        ({"detectors": 19}, "20 detectors a source; accepted: at most 19"),
    ],
)
def test_patch_that_contradicts_itself_is_one_line(patch, message):
    with pytest.raises(ValueError, match=f"^probe: {message}$"):
        Patch(**patch)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (phantoms.CENTRE, 1.0, r"tissue centred at \[1.0, 1.0, 1.0\] mm; accepted: the cube's centre"),
        (phantoms.EXPONENT, 1.5, "tissue of exponent 1.5; accepted: at least 2"),
    ],
)
def test_tissue_without_a_probe_is_one_line(column, value, message):
    row = tissue((26, 27, 28), TURN, 2)
    row[column] = value
    with pytest.raises(ValueError, match=f"^probe: {message}$"):
        probe.scatter(row, 1, np.random.default_rng(0))


BOTH = Patch(patches=2, per_source=8, pairs=400)


@pytest.fixture(scope="module", params=["default", "superellipsoid"])
def doubled(request):
    """Probes of two patches: tissue rows in float64 and the probes."""
    tables = phantoms.sample(request.param, 5, 3)
    drawn = [probe.draw(rows, 3, i, BOTH) for i, rows in enumerate(tables)]
    return [(rows[0].astype(np.float64), p) for rows, p in drawn]


def test_second_half_of_the_optodes_lies_on_the_opposite_patch(doubled):
    """On the surface, within the radius of where it meets -z."""
    for row, p in doubled:
        for points, half in ((p.sources, 25), (p.detectors, 20)):
            assert len(points) == 2 * half and points.dtype == np.float32
            assert np.abs(radius(row, points.astype(np.float64)) - 1).max() * row[AXES].min() < 1e-5
            for side, sign in ((points[:half], 1), (points[half:], -1)):
                assert np.linalg.norm(side - sign * top(row), axis=1).max() <= 30
                assert (np.linalg.norm(side + sign * top(row), axis=1) > 30).mean() > 0.9
            assert len(np.unique(np.abs(points), axis=0)) == 2 * half  # none is the image of another


def test_pairs_of_two_patches_are_in_range(doubled):
    for _, p in doubled:
        assert p.pairs.shape == (400, 2) and (np.bincount(p.pairs[:, 0]) == 8).all()
        separation = [np.linalg.norm(p.sources[s].astype(float) - p.detectors[d]) for s, d in p.pairs]
        assert min(separation) >= 10 and max(separation) <= 40
        same = (p.pairs[:, 0] < 25) == (p.pairs[:, 1] < 20)
        assert (
            0.5 < same.mean() < 1
        )  # half of all pairs are of one patch, and more of the near ones; some cross the body


def test_odd_optode_is_on_the_first_patch():
    patch = Patch(sources=5, detectors=7, pairs=5, per_source=1, radius=12.0, patches=2, separation=(1.0, 24.0))
    p = probe.place(tissue((26, 26, 26), UNTURNED, 2), patch, np.random.default_rng(0))
    assert (p.sources[:, 2] > 0).tolist() == [True] * 3 + [False] * 2
    assert (p.detectors[:, 2] > 0).tolist() == [True] * 4 + [False] * 3
    assert all((s < 3) == (d < 4) for s, d in p.pairs)  # no way through the body is that short


def test_optodes_of_both_patches_are_uniform_in_area():
    row, rng = tissue((25, 27, 30), TURN, 2), np.random.default_rng(2)
    patch = Patch(per_source=1, pairs=50, separation=ANY, patches=2)
    drawn = [probe.place(row, patch, rng) for _ in range(400)]
    for name, half in (("sources", 25), ("detectors", 20)):
        points = np.stack([getattr(p, name) for p in drawn])
        for side in (points[:, :half], -points[:, half:]):
            assert uniform_in_area(side.reshape(-1, 3), row, 30) > 0.003


def test_probe_without_a_radius_is_all_around():
    """Uniform in area over the whole surface, and still in pairs of 10-40 mm."""
    row, rng = tissue(*BODIES["ellipsoid"]), np.random.default_rng(4)
    patch = Patch(radius=np.inf, per_source=1, pairs=50, separation=ANY)
    drawn = [probe.place(row, patch, rng) for _ in range(200)]
    for name in ("sources", "detectors"):
        assert uniform_in_area(np.concatenate([getattr(p, name) for p in drawn]), row) > 0.003
    rows = phantoms.sample("default", 1, 3)[0]
    p = probe.draw(rows, 3, 0, Patch(radius=np.inf, per_source=10, pairs=500))[1]
    for points in (p.sources, p.detectors):
        assert 0.2 < (points[:, 2] > 0).mean() < 0.8
    separation = probe.separations(p.sources, p.detectors, p.pairs)
    assert len(separation) == 500 and separation.min() >= 10 and separation.max() <= 40


def test_one_patch_is_drawn_as_before_there_were_two():
    """Numbers of the code that knew one."""
    rows = phantoms.sample("default", 1, 0)[0]
    p = probe.draw(rows, 0, 0)[1]
    np.testing.assert_allclose(p.sources[0], [5.4734855, -3.2343557, 28.0020409], rtol=1e-5)
    np.testing.assert_allclose(p.detectors[-1], [21.4379292, -3.5254006, 16.9179535], rtol=1e-5)
    assert p.pairs[:3].tolist() == [[0, 1], [0, 3], [0, 4]] and p.pairs[:, 1].astype(int).sum() == 20063
