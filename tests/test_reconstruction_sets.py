"""Sets on which reconstructions are judged: what they have in common, by the sampler, and what is said of them."""

import numpy as np
import pytest
import torch
from seen import BASE, made_up, table

from dotlib import arms, config, reconstruction_sets, reconstructions
from dotlib.config import LIFTED, PROFILES, Data, Lift
from dotlib.data import lifts, phantoms, probe, recording, samples, split, store
from dotlib.data.phantoms import AXES, CENTRE
from dotlib.reconstruction_sets import (
    COUNTS,
    COVERAGES,
    EVERY,
    FAMILIES,
    FRESH,
    HOME,
    NOISES,
    PATTERNS,
    PROBES,
    SEED,
    THRESHOLDS,
    TUMOUR_FREE,
    distances,
    radii,
    shares,
    union,
    views,
)

QUICK = config.PROFILES["quick"].base.data
LIGHT = ("pattern", "pairs", "noise", "probe", "coverage", "readings")  # groups that change the light alone


def of_group(name, base=QUICK):
    return {view.name: view for view in views(base).values() if view.group == name}


@pytest.mark.parametrize("size", PROFILES)
def test_every_set_is_a_legal_configuration(size):
    for view in views(PROFILES[size].base.data).values():
        assert Data.model_validate(view.data.model_dump()) == view.data, view.name
        assert Lift.model_validate(view.lift.model_dump()) == view.lift, view.name


@pytest.mark.parametrize("size", PROFILES)
def test_no_two_sets_are_one(size):
    """By name, and by what they hold."""
    found = views(PROFILES[size].base.data)
    tables = (FAMILIES, PATTERNS, COUNTS, NOISES, PROBES, COVERAGES)
    assert len(found) == 4 + sum(map(len, tables))  # home, fresh, readings, thresholds
    assert all(name == view.name for name, view in found.items())
    assert len({(view.data, view.lift) for view in found.values()}) == len(found)


@pytest.mark.parametrize("size", PROFILES)
def test_sets_that_change_the_light_alone_hold_the_same_phantoms(size):
    found = views(PROFILES[size].base.data)
    fresh = found[FRESH].data
    for view in found.values():
        if view.group in LIGHT:
            changed = {name for name in Data.model_fields if getattr(view.data, name) != getattr(fresh, name)}
            assert changed <= {"measurements"}, view.name
            assert bool(changed) != (view.lift != Lift()), view.name  # either the readings or what is used of them


@pytest.mark.parametrize("size", PROFILES)
def test_no_set_but_home_has_the_seed_of_what_is_trained_with(size):
    base = PROFILES[size].base.data
    made = [arms.arm(name, size) for name in reconstructions.ARMS]
    trained = {data.seed for one in made for data in (one.data, one.test) if data}
    for view in views(base).values():
        if view.name == HOME:
            assert view.data == base
        else:
            assert view.data.seed not in trained and view.data.seed != base.seed
            assert view.data.phantoms == min(64, base.phantoms)
    assert views(base)[THRESHOLDS].data.seed != views(base)[TUMOUR_FREE].data.seed == views(base)[FRESH].data.seed


def test_sets_for_thresholds_and_twins_have_no_tumours():
    assert {views(QUICK)[name].data.family for name in (THRESHOLDS, TUMOUR_FREE)} == {"none"}


def test_every_fresh_phantom_is_a_test_phantom():
    """Whatever its stratum."""
    strata = np.random.default_rng(0).integers(32, size=64)
    for seed in (SEED, SEED + 1, 0):
        assert (split.split(strata, EVERY, seed) == split.NAMES.index("test")).all()
    for view in views(QUICK).values():
        assert (view.data.fractions == EVERY) == (view.name != HOME)


def test_home_is_lifted_as_it_is_trained_and_others_where_they_are_judged():
    assert {view.name: view.part for view in views(QUICK).values()} == {
        name: None if name == HOME else "test" for name in views(QUICK)
    }


def test_set_is_what_its_name_says():
    found = views(QUICK)
    assert all(found[name].lift.pattern == name for name in PATTERNS)
    assert all(found[f"{n} pairs"].lift.count == n for n in COUNTS)
    assert all(found[name].data.family == name for name in FAMILIES)
    plain = config.Noise()
    for name, times in (("half", 0.5), ("twice", 2), ("four times", 4)):
        noise = found[f"{name} the noise"].data.measurements.noise
        assert (noise.relative, noise.jitter) == pytest.approx((times * plain.relative, times * plain.jitter))
        assert noise.model_copy(update={"relative": plain.relative, "jitter": plain.jitter}) == plain
    assert found["a fifth of the pairs lost"].data.measurements.noise == config.Noise(dropout=0.2)
    probes = {name: found[name].data.measurements for name in (*PROBES, *COVERAGES)}
    assert probes["patch of 20 mm"].radius == 20 and probes["all around"].radius is None
    assert probes["two patches"].patches == 2 and probes["one patch"].patches == 1
    few = probes["25 sources, 20 detectors"]
    assert (few.sources, few.detectors) == (25, 20)
    assert all(m.pairs > Lift().count for m in probes.values())  # 256 are left to be chosen
    assert len({m.pairs for name, m in probes.items() if name in COVERAGES}) == 1


@pytest.mark.parametrize("size", PROFILES)
def test_finer_readings_are_compared_with_the_same_model(size):
    found = views(PROFILES[size].base.data)
    (fine,) = of_group("readings", PROFILES[size].base.data).values()
    assert fine.data.measurements.precise and str(fine.data.light_grid) in fine.name
    assert fine.data.model_grid == found[FRESH].data.model_grid == found[FRESH].data.light_grid
    assert fine.data.light_grid > fine.data.model_grid or size == "smoke"


@pytest.fixture(scope="module")
def drawn():
    """`drawn(view)`: the columns of its first two phantoms as the sampler draws them, under a light that is made up."""

    def simulate(view):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recording, "medium", lambda *arguments: None)
            patch.setattr(recording, "mean_properties", lambda *arguments: (0.005, 1.0))
            patch.setattr(recording.diffusion, "readings", lambda media, *arguments: light(*arguments[:3]))
            return recording.simulate(view.data, 0, 2)

    def light(sources, detectors, pairs):
        ways = [
            np.linalg.norm(s[p[:, 0]] - d[p[:, 1]], axis=1) for s, d, p in zip(sources, detectors, pairs, strict=True)
        ]
        return np.exp(-(0.2 + 0.02j) * np.stack(ways))

    return simulate


@pytest.fixture(scope="module")
def fresh(drawn):
    return drawn(views(QUICK)[FRESH])


PLACED = ("sources", "detectors", "pairs")


@pytest.mark.parametrize("name", [view.name for view in views(QUICK).values() if view.group in LIGHT])
def test_light_is_all_that_the_sampler_changes(drawn, fresh, name):
    view = views(QUICK)[name]
    found = drawn(view)
    np.testing.assert_array_equal(found["ellipsoids"], fresh["ellipsoids"])
    same = [np.array_equal(found[column], fresh[column]) for column in PLACED]
    moved = name in (*PROBES, "two patches", "all around")
    assert not any(same) if moved else all(same[:2])
    if view.group == "noise":
        np.testing.assert_array_equal(found["phi_clean"], fresh["phi_clean"])
        assert not np.array_equal(found["log_amplitude"], fresh["log_amplitude"], equal_nan=True)
    assert not found["checks"].any()


def test_probe_of_a_set_is_where_its_name_says(drawn, fresh):
    """By the heights of its sources: the tissue reaches 25-30 mm from its centre."""
    found = {name: drawn(views(QUICK)[name]) for name in (*PROBES, *COVERAGES)}
    heights = {name: columns["sources"][..., 2] for name, columns in found.items()}
    assert (heights["patch of 20 mm"] > 15).all() and heights["patch of 20 mm"].min() > fresh["sources"][..., 2].min()
    assert (heights["two patches"][:, :25] > 0).all() and (heights["two patches"][:, 25:] < 0).all()
    assert ((heights["all around"] > 0).mean(1) > 0.2).all() and ((heights["all around"] < 0).mean(1) > 0.2).all()
    np.testing.assert_array_equal(found["one patch"]["sources"], fresh["sources"])
    assert found["25 sources, 20 detectors"]["detectors"].shape == (2, 20, 3)
    assert {columns["pairs"].shape[1] for name, columns in found.items() if name in COVERAGES} == {500}


@pytest.mark.parametrize("size", PROFILES)
@pytest.mark.parametrize("name", [view.name for view in views(QUICK).values() if view.group in ("probe", "coverage")])
def test_every_phantom_has_room_for_its_probe(size, name):
    m = views(PROFILES[size].base.data)[name].data.measurements
    reach, each = np.inf if m.radius is None else m.radius, m.pairs // m.sources
    patch = probe.Patch(reach, m.sources, m.detectors, m.pairs, each, patches=m.patches)
    found = [probe.draw(rows, SEED, i, patch)[1] for i, rows in enumerate(phantoms.sample("default", 64, SEED))]
    assert {len(one.pairs) for one in found} == {m.pairs}


def test_tumour_free_set_is_the_fresh_one_without_tumours(drawn, fresh):
    """Under the same optodes."""
    twin = drawn(views(QUICK)[TUMOUR_FREE])
    np.testing.assert_array_equal(twin["ellipsoids"][:, 0], fresh["ellipsoids"][:, 0])
    for name in PLACED:
        np.testing.assert_array_equal(twin[name], fresh[name])
    assert np.isfinite(fresh["ellipsoids"][:, 1]).all() and np.isnan(twin["ellipsoids"][:, 1:]).all()
    other = drawn(views(QUICK)[THRESHOLDS])
    assert not np.isin(other["ellipsoids"][:, 0, AXES], twin["ellipsoids"][:, 0, AXES]).any()


def test_twins_are_so_in_their_files(lit):
    with_tumours, without = lit[FRESH], lit[TUMOUR_FREE]
    np.testing.assert_array_equal(
        with_tumours.data.ellipsoids[:, 0].astype("f4"), without.data.ellipsoids[:, 0].astype("f4")
    )
    files = []
    for seen in (with_tumours, without):
        assert (seen.data.labels == 2).all() and len(seen) == 3
        with store.File(seen.data.path) as file:
            files.append({name: file.raw(name) for name in (*PLACED, "phi_clean")})
    for name in PLACED:
        np.testing.assert_array_equal(files[0][name], files[1][name])
    assert not np.array_equal(files[0]["phi_clean"], files[1]["phi_clean"])
    assert torch.equal(with_tumours.covered, without.covered) and torch.equal(with_tumours.fraction, without.fraction)
    assert not without.regions.inclusions.any() and with_tumours.regions.inclusions.any()


@pytest.mark.parametrize("name", [HOME, FRESH])
def test_set_is_what_its_files_hold_of_the_test_part(lit, name):
    seen, view = lit[name], views(BASE)[name]
    chosen = seen.data.labels == 2
    assert len(seen) == chosen.sum() == (1 if name == HOME else 3)
    paths = lifts.prepare(view.data, view.lift, lit.folder, view.part)
    with store.File(paths[0]) as one, store.File(paths[1]) as two:
        stored, mask = one.raw("lift"), two.raw("covered")
    np.testing.assert_array_equal(seen.lifted, stored[chosen, 0])
    np.testing.assert_array_equal(seen.covered, mask[chosen])  # 16 voxels a side in both
    assert stored.any((1, 2, 3, 4, 5)).tolist() == [True] * 3
    assert torch.equal(seen.truth, phantoms.rasterise(seen.data.ellipsoids[chosen], 16))
    assert torch.equal(seen.labels, phantoms.labels(seen.data.ellipsoids[chosen], 16))
    assert torch.equal(seen.fraction, samples.fractions(seen.data, "test"))
    level = stored[chosen][:, 0, -2:].astype("f4").max((2, 3, 4))
    exact = torch.from_numpy(level).view(-1, 2, 1, 1, 1) * seen.fraction
    assert torch.equal(seen.fitted, exact) and 1e-3 < level[:, 0].min() <= level[:, 0].max() < 2e-2
    with store.File(seen.data.path) as file:
        optodes = np.concatenate([file.raw("sources"), file.raw("detectors")], 1)[chosen]
    centre = seen.data.ellipsoids[chosen][0, 1, CENTRE]
    assert seen.distance[0, 0] == pytest.approx(np.linalg.norm(optodes[0] - centre, axis=1).min(), rel=1e-5)


def test_finer_volumes_are_covered_where_the_coarse_ones_are(lit, monkeypatch):
    """On 32^3 voxels each one of 16^3 is eight."""
    view = views(BASE.model_copy(update={"grid": 32}))[FRESH]
    paths = lifts.prepare(views(BASE)[FRESH].data, Lift(), lit[FRESH].data.path.parent, "test")
    monkeypatch.setattr(reconstruction_sets.lifts, "prepare", lambda *arguments: paths)
    fine = reconstruction_sets.load(view, lit.folder)
    np.testing.assert_array_equal(fine.covered, np.kron(lit[FRESH].covered.numpy(), np.ones((1, 2, 2, 2), bool)))
    assert fine.truth.shape[-1] == 2 * LIFTED and torch.equal(fine.lifted, lit[FRESH].lifted)


@pytest.mark.parametrize("name", [HOME, FRESH])
def test_part_that_is_lifted_is_that_of_the_view(lit, monkeypatch, name):
    asked, plain = [], lifts.prepare
    monkeypatch.setattr(lifts, "prepare", lambda *arguments: (asked.append(arguments[3]), plain(*arguments))[1])
    lit[name]  # the files are there
    reconstruction_sets.load(views(BASE)[name], lit.folder)
    assert asked == [None if name == HOME else "test"]


def test_distance_is_that_of_the_nearest_optode():
    tables = np.stack([table(((0, 0, 10), 5, 0.01, 1), ((3, 0, 0), 5, 0.01, 1)), table(((0, 4, 0), 5, 0.01, 1))])
    optodes = np.array([[(0, 0, 26), (26, 0, 0), (0, 0, -26)], [(0, 0, 26), (0, 26, 0), (3, 0, 0)]], "f4")
    found = distances(tables, optodes)
    np.testing.assert_allclose(found[:, :2], [[16, 23], [5, np.nan]])
    assert found.shape == (2, 5) and found[:, 2:].isnan().all()


def test_radius_is_that_of_the_sphere_of_one_volume():
    one = table(((0, 0, 10), 5, 0.01, 1), ((3, 0, 0), 5, 0.01, 1))
    one[2, AXES] = 4, 6, 9  # 216 = 6^3
    found = radii(one[None])
    np.testing.assert_allclose(found[0, :2], [5, 6], rtol=1e-6)
    assert found.shape == (1, 5) and found[:, 2:].isnan().all()


def test_share_is_that_of_the_voxels_that_are_covered():
    """Of spheres above, across and below the plane; none of one that another hides."""
    spheres = [((0, 0, z), 8, 0.01, 1.5) for z in (14, 0, -14)]
    seen = made_up([table(*spheres), table(((0, 0, 8), 5, 0.01, 1.5), ((0, 0, 8), 8, 0.02, 1.5))])
    np.testing.assert_allclose(seen.share[0], [1, 0.5, 0, np.nan, np.nan])
    np.testing.assert_allclose(seen.share[1], [np.nan, 1, np.nan, np.nan, np.nan])
    few = torch.zeros_like(seen.covered)
    few[0][seen.regions.inclusions[0, 0]] = True
    where = few[0].nonzero()[::2]
    few[0][tuple(where.T)] = False
    n = int(seen.regions.inclusions[0, 0].sum())
    assert shares(seen.regions, few)[0, 0] == pytest.approx((n // 2) / n)


def test_union_is_what_any_set_covers():
    masks = [torch.zeros(2, 4, 4, 4, dtype=torch.bool) for _ in range(3)]
    masks[0][0, 0, 0, 0] = masks[1][0, 0, 0, 0] = masks[2][1, 3, 2, 1] = True
    found = union(masks)
    assert found.nonzero().tolist() == [[0, 0, 0, 0], [1, 3, 2, 1]]
    assert masks[0].sum() == 1  # which is left as it was
