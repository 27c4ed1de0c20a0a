"""Tables and figures of the forward model's errors, noise and sensitivity, on cases with a known answer."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from dotlib.config import Measurements, Noise
from dotlib.data import dataset, phantoms, probe, recording
from dotlib.data.surface import Surface
from dotlib.physics import diffusion, geometry, green
from dotlib.plots import light as plots_light
from dotlib.sections import light, light_readings, light_spheres

M = Measurements()
SPHERE = np.array([0, 0, 0, 27.0, 27.0, 27.0, 0, 0, 0, 1, 2, 0.005, 1.0])


@pytest.fixture(scope="module")
def ball():
    return light_spheres.ball(np.random.default_rng(3), M, sources=6, detectors=4)


@pytest.fixture(scope="module")
def objects():
    return light.drawn(2, seed=5)


def errors_of(size, grids=(16, 32, 64)):
    """A table of errors: `size` (a function of the voxel's width) times -1, 1, 3, on each grid."""
    rows = [(g, s * size(phantoms.CUBE / g), s * size(phantoms.CUBE / g)) for g in grids for s in (-1, 1, 3)]
    return pd.DataFrame(rows, columns=["grid", "log_amplitude", "phase"])


def test_difference_has_the_signs_of_attenuation_and_delay():
    reference = np.array([2 - 1j, -0.3j])
    found = light.difference(reference * np.exp(0.1 - 0.2j), reference)
    np.testing.assert_allclose(found["log_amplitude"], 0.1)
    np.testing.assert_allclose(found["phase"], np.degrees(0.2))


def test_staircase_has_the_voxels_whose_centres_are_inside_and_half_too_much_wall():
    cells = light_spheres.staircase(geometry.cut(Surface(SPHERE), 64, 1.0))
    at = np.arange(64) - 31.5
    inside = at[:, None, None] ** 2 + at[:, None] ** 2 + at**2 < 27**2
    assert cells.volume.sum() == inside.sum()
    faces = sum(np.abs(np.diff(inside.astype(int), axis=axis)).sum() for axis in range(3))
    kept = cells.volume > 0
    assert cells.wall[kept].sum() == faces
    # a sphere's projections along the axes: six discs, against four for its surface
    assert faces / (4 * np.pi * 27**2) == pytest.approx(1.5, abs=0.02)


def test_staircase_connects_only_what_it_keeps():
    cells = light_spheres.staircase(geometry.cut(Surface(SPHERE), 32, 2.0))
    open_faces = cells.aperture > 0
    ends = cells.neighbour[open_faces]
    assert (cells.volume[ends] == 1).all() and (cells.volume[open_faces.any(1)] == 1).all()


def test_trilinear_gives_linear_fields_exactly_inside():
    system = diffusion.assemble(recording.medium(SPHERE[None], 32), M.frequency)
    cells = light_spheres.staircase(system.cells)
    points = torch.tensor([[1.3, -2.2, 5.1], [7.9, 8.4, -3.3]], dtype=torch.float64)
    some = system.optodes(torch.tensor([[0, 0, 27.0], [27.0, 0, 0]], dtype=torch.float64), False)
    some = dataclasses.replace(some, points=points, cell=diffusion.optodes.around(cells, points))
    slope = torch.tensor([[0.3], [-1.0], [0.7]], dtype=torch.float64)
    found = light_spheres.trilinear(cells, some).read(cells.centre @ slope + 2)
    torch.testing.assert_close(found, points @ slope + 2, rtol=0, atol=1e-6)


def test_trilinear_takes_the_nearest_cell_where_there_is_none_around():
    system = diffusion.assemble(recording.medium(SPHERE[None], 32), M.frequency)
    cells = light_spheres.staircase(system.cells)
    optode = system.optodes(torch.tensor([[27.0, 0.9, 0.9]], dtype=torch.float64), False)
    optode = dataclasses.replace(optode, points=optode.points + torch.tensor([2.5, 0, 0]))
    weight = light_spheres.trilinear(cells, optode).weight[0]
    distance = (cells.centre[optode.cell[0]] - optode.points).norm(dim=1)
    distance[(optode.cell[0] < 0) | (cells.volume[optode.cell[0]] == 0)] = torch.inf
    assert weight.argmax() == distance.argmin() and weight.max() == 1


def test_ball_has_the_light_of_the_centred_sphere(ball):
    centre, radius, mua, musp = ball.tissue[:3], ball.tissue[3], *ball.tissue[11:]
    source, detector = ball.sources[2].numpy() - centre, ball.detectors[1].numpy() - centre
    assert np.linalg.norm(source) == pytest.approx(radius)
    inner = source * (1 - 1 / musp / radius)
    expected = green.sphere(inner, detector[None], radius, mua, musp, M.frequency)
    np.testing.assert_allclose(ball.exact[2, 1], expected[0], rtol=1e-9)


def test_our_treatment_is_the_solver_that_makes_the_data(ball):
    pairs = np.stack(np.indices((6, 4)), -1).reshape(-1, 2)
    medium = recording.medium(ball.tissue[None], 32)
    plain = diffusion.readings([medium], ball.sources[None], ball.detectors[None], pairs[None], M.frequency, M.n)
    found = light_spheres.treated(ball.system(32, M), light_spheres.OURS, ball.sources, ball.detectors)
    np.testing.assert_allclose(found.ravel(), plain[0], rtol=1e-4)


def test_spheres_keep_to_what_is_required_and_the_others_do_not():
    errors = light_spheres.spheres((32,), 2, M)
    assert light_spheres.as_required(light_spheres.accuracy(errors))
    for other in (light_spheres.STAIRCASE, light_spheres.NO_DISTANCE):
        pretended = errors[errors["treatment"] == other].assign(treatment=light_spheres.OURS)
        assert not light_spheres.as_required(light_spheres.accuracy(pretended))
    assert errors["separation"].between(10, 40).all()


def test_accuracy_takes_off_the_gain_of_each_sphere():
    table = pd.DataFrame(
        {"treatment": "a", "grid": 32, "sphere": [0, 0, 0, 1, 1, 1], "log_amplitude": [0.4, 0.5, 0.6, -3.1, -3, -2.9]}
    )
    found = light_spheres.accuracy(table.assign(phase=[1, 2, 3, 4, 5, -6]))
    assert found["no gain"].item() == pytest.approx(0.1)
    assert found["ln A"].item() == pytest.approx(1.75) and found["phase, deg"].item() == 3.5


def test_order_is_the_power_of_the_voxel():
    assert light.order(errors_of(lambda h: 0.01 * h**2), "phase") == pytest.approx(2)
    assert light.order(errors_of(lambda h: 0.01 * h), "log_amplitude") == pytest.approx(1)


def test_extrapolation_recovers_a_second_order_error():
    differences = errors_of(lambda h: 0.01 * (h**2 - (64 / 96) ** 2))
    noise = pd.DataFrame({"name": ["all"], "log_amplitude": [0.03], "phase": [1.0]})
    table = light.beside_noise(differences, 96, noise, noise)
    np.testing.assert_allclose(table["extr., %"][:3], [1 * 4**2, 1 * 2**2, 1 * 1**2])
    assert list(table["source"][3:]) == ["noise, all", "signal of tumours"]
    assert table["ln A, %"][3] == pytest.approx(3) and table["phase, deg"][3] == 1


def test_levels_of_the_brightest_are_those_of_the_greatest_amplitudes():
    amplitude = np.stack([np.arange(1, 201.0), np.arange(200, 0, -1.0)])
    sigma = np.stack([1 / amplitude, 2 / amplitude], -1)
    found = light.levels(sigma, amplitude)
    bright = found[found["name"] == "brightest 1 %"]["log_amplitude"]
    np.testing.assert_allclose(np.sort(bright), np.sort([1 / 200, 1 / 199] * 2))
    assert (found["name"] == "all pairs").sum() == 400


def test_convergence_is_zero_on_the_finest_grid_and_falls(objects):
    found = light.convergence(objects, (16, 32), 32, M)
    sizes = found.groupby("grid")["log_amplitude"].apply(lambda e: e.abs().max())
    assert sizes[32] < 1e-9 and sizes[16] > 0.01
    assert sorted(found["phantom"].unique()) == [0, 1]


def test_signal_is_none_without_tumours(objects):
    twins = [(phantoms.without_inclusions(rows[None])[0], optodes) for rows, optodes in objects]
    np.testing.assert_allclose(light.signal(twins, 16, M)[["log_amplitude", "phase"]], 0, atol=1e-9)
    assert light.signal(objects, 16, M)["log_amplitude"].abs().median() > 0.01


def test_reciprocity_holds_and_is_limited_by_precision(objects):
    found = light.reciprocity(objects, 16, M)
    assert (found["fp64"] < 1e-6).all() and (found["fp32"] > found["fp64"]).all() and (found["fp32"] < 1e-3).all()


@pytest.fixture(scope="module")
def study():
    amplitude = np.exp(np.random.default_rng(1).uniform(-9, 0, (2, 500)))
    pairs = np.zeros((2, 500, 2), int)
    law = Noise(relative=0.02, jitter=1.0)
    return light_readings.noise_study(amplitude * np.exp(-1j), pairs, law, 300), law


def test_noise_study_finds_the_law_that_was_drawn(study):
    table, law = study
    x = table["brightness"]
    shot = law.relative * np.sqrt(x + law.floor) / x
    kept = shot < 0.1
    np.testing.assert_allclose(table["log_amplitude"][kept] / shot[kept], 1, atol=0.2)
    phase = np.hypot(np.degrees(shot), 1.0)
    assert (table["phase"][kept] / phase[kept]).mean() == pytest.approx(1, abs=0.01)
    assert (table["log_amplitude"][kept] / shot[kept]).mean() == pytest.approx(1, abs=0.01)


def test_reference_shows_a_noise_that_misses_its_target(study):
    table, law = study
    met = light_readings.at_reference(table, law)
    np.testing.assert_allclose(met["measured"] / met["target"], 1, atol=0.05)
    missed = light_readings.at_reference(table, law.model_copy(update={"relative": 0.01, "jitter": 0.3}))
    assert (missed["measured"] / missed["target"] > 1.5).all()


def test_median_depth_of_a_uniform_ball_halves_its_volume():
    grid, radius = 64, light_readings.RADIUS
    at = np.arange(grid) - 31.5
    inside = at[:, None, None] ** 2 + at[:, None] ** 2 + at**2 < radius**2
    depth = light_readings._median_depth(inside.astype(float), grid)
    assert depth == pytest.approx(radius * (1 - 0.5 ** (1 / 3)), abs=0.1)


def test_bananas_are_symmetric_and_have_the_mean_path_of_the_sphere():
    found = light_readings.bananas(32, M)
    largest = np.abs(found.maps).max((2, 3))
    # reciprocal as fluence goes, but source and detector differ in depth
    far = found.maps[..., :, :24]
    assert (np.abs(far - far[:, :, ::-1]).max((2, 3)) < 0.2 * largest).all()
    # more absorption, less light, but for far tissue, whose light arrives out of phase, and a cell at the optode
    assert (found.maps[:, 0].max((1, 2)) < 0.01 * largest[:, 0]).all()
    paths = found.table.set_index("quantity")
    for pair in paths:
        assert paths[pair]["mean path, mm"] == pytest.approx(paths[pair]["mean path, exact sphere, mm"], rel=0.1)


def test_inventory_counts_what_the_file_holds(recorded):
    data = dataset.read(recorded)
    found = light_readings.inventory(data).set_index("quantity")["value"]
    assert found["phantoms"] == "default 36"
    parts = [int(n) for n in found["train / validation / test"].split(" / ")]
    assert parts == [len(data.part(name)) for name in ("train", "validation", "test")] and sum(parts) == 36
    assert found["excluded by the checks"] == "0"
    assert found["pairs a phantom"] == "24, lost 0.0 %"


def test_limits_take_the_profiles_own_grid_and_mark_what_is_not_computed(study):
    differences = errors_of(lambda h: 0.01 * h**2)
    found = light_readings.limits(differences, 32, 96, study[0]).set_index("limit")
    assert found["size"]["inverse crime, ln A"].startswith("median 4 %")
    assert "NOT computed" in found["source"]["diffusion for transport"]


def test_showcase_is_the_centre_of_the_largest_tumour():
    rows = phantoms.sample("many", 1, 4)[0]
    volumes = np.nan_to_num(rows[1:, phantoms.AXES]).prod(1)
    np.testing.assert_array_equal(light.showcase(rows), rows[1 + volumes.argmax(), phantoms.CENTRE])
    np.testing.assert_array_equal(light.showcase(phantoms.without_inclusions(rows[None])[0]), 0)


def test_gallery_cuts_every_plane_through_the_point():
    volume = np.zeros((1, 2, 16, 16, 16))
    volume[0, :, 3, 9, 12] = 1
    point = (np.array([[3, 9, 12]]) + 0.5) * 4 - 32
    panels = [ax.images[0].get_array() for ax in plots_light.gallery(volume, point).axes if ax.images][:6]
    where = [tuple(np.argwhere(panel == 1)[0]) for panel in panels]
    assert where == [(12, 9), (12, 3), (9, 3)] * 2  # rows are the later letter, upwards


def test_scene_draws_tumours_inside_the_tissue(objects):
    rows, optodes = objects[0]
    figure = plots_light.scene(rows, optodes)
    tissue = Surface(rows[0])
    faces = [c for c in figure.axes[0].collections if hasattr(c, "_faces")]
    assert len(faces) == np.isfinite(rows[1:, phantoms.MUA]).sum()
    for face in faces:
        corners = torch.from_numpy(np.asarray(face._faces, float).reshape(-1, 3))
        assert tissue(corners)[0].max() < 1e-6
    wired = (optodes.pairs[:, 0] == 0).sum()
    assert len(figure.axes[0].lines) == wired


def test_over_separation_draws_medians_of_absolute_errors():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"separation": rng.uniform(10, 40, 900), "log_amplitude": rng.choice([-0.02, 0.02], 900)})
    table = table.assign(phase=0.5, kind="a")
    ln_a, phase = plots_light.over_separation(table, "kind").axes
    np.testing.assert_allclose(ln_a.lines[0].get_ydata(), 0.02)
    np.testing.assert_allclose(phase.lines[0].get_ydata(), 0.5)


def test_few_detectors_are_enough_for_a_probe(objects):
    for _, optodes in objects:
        assert len(optodes.pairs) == 200
        found = probe.separations(optodes.sources, optodes.detectors, optodes.pairs)
        assert found.min() >= 10 and found.max() <= 40
