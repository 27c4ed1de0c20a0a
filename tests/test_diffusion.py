"""The forward model against the exact sphere, a direct solver, conservation, reciprocity and symmetry."""

import dataclasses
import itertools
import math

import mpmath
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scene import FREQUENCY, SPHERES, medium, patch, phantom, pooled, sphere_error, tissue
from scipy.sparse.linalg import splu
from scipy.spatial.transform import Rotation

from dotlib.data import phantoms, probe
from dotlib.data.surface import Surface
from dotlib.physics import diffusion, geometry, green, optodes, ssor

CASES = range(len(SPHERES))


def tensor(points):
    return torch.as_tensor(points, dtype=torch.float64)


def two_layers(shell, core, radius, inner, cosine, orders=220):
    """Fluence on the surface of a sphere with a concentric core, source one 1/musp of the shell below the surface.

    Each order of the Legendre series is a_l i_l(k r) in the core and, in the shell, the source's own field plus
    b_l i_l(k r) + c_l k_l(k r); fluence and D times its slope are continuous, and Robin's condition holds outside.
    """
    with mpmath.workdps(40):
        (D1, k1), (D2, k2) = (
            (
                d := 1 / (3 * mpmath.mpf(mua + musp)),
                mpmath.sqrt((mua + 2j * mpmath.pi * FREQUENCY * 1.33 / green.C) / d),
            )
            for mua, musp in (core, shell)
        )
        robin, source = 2 * mpmath.mpf(float(green.boundary_parameter(1.33))) * D2, radius - 1 / mpmath.mpf(shell[1])

        def value(kind, order, z):
            return (kind(order + mpmath.mpf(1) / 2, z)) / mpmath.sqrt(z)

        def both(kind, order, k, r):
            """A radial function and its slope by r."""
            z, sign = k * r, 1 if kind is mpmath.besseli else -1
            here = value(kind, order, z)
            return here, k * (sign * value(kind, order + 1, z) + order / z * here)

        series = []
        for order in range(orders):
            (a, da), (i, di), (q, dq) = (
                both(kind, order, k, inner)
                for kind, k in ((mpmath.besseli, k1), (mpmath.besseli, k2), (mpmath.besselk, k2))
            )
            (up, dup), (down, ddown) = (both(kind, order, k2, radius) for kind in (mpmath.besseli, mpmath.besselk))
            iz, kz = (value(kind, order, k2 * source) for kind in (mpmath.besseli, mpmath.besselk))
            grows, falls = up + robin * dup, down + robin * ddown
            # below the source its own field is kz i_l, above it iz k_l; b and c in units of i_l and k_l at the core
            system = mpmath.matrix(
                [[1, -1, -1], [D1 * da / a, -D2 * di / i, -D2 * dq / q], [0, 1, falls / q * i / grows]]
            )
            right = mpmath.matrix([kz * i, D2 * kz * di, -iz * falls * i / grows])
            _, b, c = mpmath.lu_solve(system, right)
            series.append(complex((2 * order + 1) * (iz * down + b * up / i + c * down / q)))
    return np.polynomial.legendre.legval(cosine, series)


def read(there, seen, precise=True, frequency=FREQUENCY):
    """Readings (M,) of one medium and probe."""
    optodes = seen.sources[None], seen.detectors[None], seen.pairs[None]
    return diffusion.readings([there], *optodes, frequency, precise=precise)[0]


def few(seen, number=6):
    """The first sources and detectors of a probe, all paired."""
    pairs = np.argwhere(np.ones((number, number)))
    return dataclasses.replace(seen, sources=seen.sources[:number], detectors=seen.detectors[:number], pairs=pairs)


def matrix(system):
    """The same matrix, put together by scipy from conductances."""
    n, (row, face) = len(system.cells), np.nonzero((system.cells.neighbour < len(system.cells)).numpy())
    column, c = system.cells.neighbour.numpy()[row, face], system.coupling.numpy()[row, face]
    return (sp.coo_matrix((-c, (row, column)), (n, n)) + sp.diags(system.diag.numpy())).tocsc()


# median and 95 % quantile of |ln A|, then of the phase in degrees; asked for are 0.035, 0.09, 1.05, 1.85 at 32^3 and
# 0.008, 0.025, 0.15, 0.35 at 64^3: the bounds here are closer to what is reached
def test_sphere_at_32_is_within_the_bounds():
    assert (pooled(32, CASES) < [[0.02, 0.065], [0.42, 1.15]]).all()


def test_sphere_at_64_is_within_the_bounds():
    assert (pooled(64, (1, 3)) < [[0.006, 0.014], [0.1, 0.3]]).all()


@pytest.mark.slow
def test_every_sphere_at_64_is_within_the_bounds():
    assert (pooled(64, CASES) < [[0.006, 0.014], [0.1, 0.3]]).all()


def test_sphere_with_a_core_is_that_of_the_two_layer_series():
    """A core of three times the absorption and scattering: what it changes in the readings, against a closed form."""
    shell, core, radius, inner = (0.004, 0.5), (0.012, 1.5), 27.0, 15.0
    rows = np.full((6, 13), np.nan)
    rows[0] = tissue(radius, mua=shell[0], musp=shell[1])
    rows[1] = tissue(inner, mua=core[0], musp=core[1])
    points = patch(rows[0], 24, 0)
    pairs = np.argwhere(np.ones((12, 12)))
    optodes = points[None, :12], points[None, 12:], pairs[None]
    plain = np.full_like(rows, np.nan)
    plain[0] = rows[0]
    with_core, without = (diffusion.readings([medium(r, 48)], *optodes, FREQUENCY)[0] for r in (rows, plain))
    cosine = (points[pairs[:, 0]] * points[12 + pairs[:, 1]]).sum(1) / radius**2
    kept = np.linalg.norm(points[pairs[:, 0]] - points[12 + pairs[:, 1]], axis=1) > 15
    exact = two_layers(shell, core, radius, inner, cosine[kept]) / two_layers(shell, shell, radius, inner, cosine[kept])
    error = (with_core / without)[kept] / exact
    assert np.abs(np.log(np.abs(exact))).max() > 1  # there is something to find
    amplitude, phase = np.abs(np.log(np.abs(error))), np.abs(np.degrees(np.angle(error)))
    assert np.median(amplitude) < 0.01 and amplitude.max() < 0.05
    assert np.median(phase) < 0.2 and phase.max() < 1


def test_error_on_the_sphere_falls_with_the_square_of_the_voxel():
    coarse, middle, fine = (pooled(grid, (1, 3)) for grid in (16, 32, 64))
    assert (np.log2(coarse[:, 0] / fine[:, 0]) / 2 > 1.5).all()
    assert (coarse > middle).all() and (middle > fine).all()


def test_fluence_far_from_the_wall_is_that_of_an_infinite_medium():
    mua, musp, grid = 0.03, 1.0, 64
    constant = torch.ones(grid, grid, grid, dtype=torch.float64)
    there = diffusion.Medium(mua * constant, musp * constant, Surface(tissue(29.0, (0.2, 0.3, -0.1))), 1.0)
    system = diffusion.assemble(there, FREQUENCY)
    source = tensor([[0.31, -0.22, 0.13]])
    direction = torch.nn.functional.normalize(
        torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).double(), dim=1
    )
    distance = torch.linspace(5, 14, 60, dtype=torch.float64)[:, None]
    points = torch.cat([source, source + distance * direction])
    cell = optodes.around(system.cells, points)
    weight = optodes.weights(system.cells, cell, points, torch.full((61,), system.D[0].item()).double(), system.A)
    column = torch.zeros(len(system.cells), 1, dtype=torch.float64)
    column[cell[0], 0] = weight[0]
    phi = diffusion.solve([system], [column])[0]
    found = (weight[1:] * phi[cell[1:], 0]).sum(1).numpy()
    ratio = found / green.infinite(distance[:, 0].numpy(), mua, musp, FREQUENCY)
    assert np.abs(np.log(np.abs(ratio))).max() < 0.03 and np.abs(np.degrees(np.angle(ratio))).max() < 0.3


@pytest.mark.parametrize("frequency", [0.0, FREQUENCY, 500e6])
@pytest.mark.parametrize("method", ["ssor", "multigrid"])
def test_fields_are_those_of_a_direct_solver(frequency, method):
    there, seen, _ = phantom(16)
    system = diffusion.assemble(there, frequency)
    source, detector = system.optodes(tensor(seen.sources), True), system.optodes(tensor(seen.detectors), False)
    columns = source.columns(len(system.cells))
    direct = torch.from_numpy(splu(matrix(system)).solve(columns.numpy().astype(complex)))
    found = diffusion.solve([system], [columns], precise=True, method=method)[0]
    assert ((found - direct).norm(dim=0) < 1e-10 * direct.norm(dim=0)).all()
    s, d = seen.pairs.T.astype(int)
    np.testing.assert_allclose(detector.read(found)[d, s], detector.read(direct)[d, s], rtol=1e-8)
    if not frequency:
        assert (found.imag == 0).all()


@pytest.mark.parametrize(("grid", "index", "family"), [
    (32, 1, "default"), (32, 2, "out-of-range"), (32, 7, "out-of-range"), (32, 0, "high-contrast"), (64, 0, "default"),
])  # fmt: skip
def test_fields_in_fp32_give_the_readings_of_fp64(grid, index, family):
    there, seen, _ = phantom(grid, index, family)
    error = np.abs(read(there, seen, precise=False) / read(there, seen) - 1)
    assert error.max() < 1e-4 and np.median(error) < 2e-5


@pytest.mark.parametrize("family", phantoms.FAMILIES)
def test_steady_fluence_is_positive(family):
    for index in range(2):
        there, seen, _ = phantom(32, index, family)
        assert (read(there, seen, precise=False, frequency=0.0).real > 0).all()


@pytest.mark.parametrize(("method", "most"), [("ssor", 32), ("multigrid", 20)])
def test_iterations_are_few_and_reported(method, most):
    there, seen, _ = phantom(32)
    system = diffusion.assemble(there, FREQUENCY)
    columns = system.optodes(tensor(seen.detectors), False).columns(len(system.cells))
    told = []
    diffusion.solve([system], [columns], method=method, report=lambda *values: told.append(values))
    [(index, residual, iterations)] = told
    assert index == 0 and 0 < residual <= diffusion.TOLERANCE and 5 < iterations <= most


@pytest.mark.parametrize("method", ["ssor", "multigrid"])
def test_objects_solved_together_are_those_solved_alone(method):
    systems = [diffusion.assemble(phantom(16, i)[0], FREQUENCY) for i in range(3)]
    columns = [s.optodes(tensor(phantom(16, i)[1].sources), True).columns(len(s.cells)) for i, s in enumerate(systems)]
    together = diffusion.solve(systems, columns, method=method)
    for system, column, field in zip(systems, columns, together, strict=True):
        alone = diffusion.solve([system], [column], method=method)[0]
        np.testing.assert_allclose(field, alone, rtol=0, atol=0 if method == "ssor" else 1e-6 * alone.abs().max())


def test_threads_do_not_change_a_bit():
    before, (there, seen, _) = torch.get_num_threads(), phantom(16)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(read(there, seen, precise=False))
    torch.set_num_threads(before)
    assert (results[0] == results[1]).all()


def test_sources_and_detectors_may_be_exchanged():
    there, seen, _ = phantom(16, 2)
    system = diffusion.assemble(there, FREQUENCY)
    s, d = system.optodes(tensor(seen.sources), True), system.optodes(tensor(seen.detectors), False)
    n = len(system.cells)
    from_sources = diffusion.solve([system], [s.columns(n)], True)[0]
    from_detectors = diffusion.solve([system], [d.columns(n)], True)[0]
    np.testing.assert_allclose(d.read(from_sources), s.read(from_detectors).T, rtol=1e-8)


def test_readings_do_not_depend_on_the_side_that_is_solved():
    there, seen, _ = phantom(16, 1)
    whole = read(there, seen)
    kept = seen.pairs[seen.pairs[:, 0] < 8]
    fewer = dataclasses.replace(seen, sources=seen.sources[:8], pairs=kept)  # now the sources are the fewer
    np.testing.assert_allclose(read(there, fewer), whole[seen.pairs[:, 0] < 8], rtol=1e-9)


def test_emitted_light_is_absorbed_or_leaves():
    there, seen, _ = phantom(32)
    system = diffusion.assemble(there, 0.0)
    columns = system.optodes(tensor(seen.sources), True).columns(len(system.cells))
    phi = diffusion.solve([system], [columns], precise=True)[0].real
    absorbed = (system.cells.volume * system.cells.h**3 * system.mua) @ phi
    leaving = system.wall @ phi
    np.testing.assert_allclose(absorbed + leaving, columns.sum(0), rtol=1e-9)
    np.testing.assert_allclose(columns.sum(0), 1, atol=0.15)
    assert (absorbed > 0).all() and (leaving > absorbed / 3).all()


def test_source_far_from_the_wall_has_unit_strength():
    there, *_ = phantom(32)
    system = diffusion.assemble(there, 0.0)
    points = tensor([[0.3, 0.2, -0.4], [5.1, -3.3, 7.7]])
    weight = optodes.weights(system.cells, optodes.around(system.cells, points), points, torch.ones(2).double(), 2.5)
    np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-12)


def turned(rotation, rows, seen):
    optodes = {name: rotation.apply(getattr(seen, name)) for name in ("sources", "detectors")}
    return phantoms.rotate(rows[None], rotation)[0], dataclasses.replace(seen, **optodes)


def test_the_rotations_of_the_grid_leave_the_readings():
    _, seen, rows = phantom(16, 1, "many")
    rows, seen = rows.astype(float), few(seen)
    exact = Surface(rows[0]).along  # in float64
    seen = dataclasses.replace(seen, sources=exact(seen.sources), detectors=exact(seen.detectors))
    reference = read(medium(rows, 16), seen)
    for rotation in Rotation.create_group("O"):
        rotated, moved = turned(rotation, rows, seen)
        np.testing.assert_allclose(read(medium(rotated, 16), moved), reference, rtol=1e-8)


def test_other_rotations_leave_the_readings_within_the_error_on_the_sphere():
    _, seen, rows = phantom(32, 0, "none")
    reference, errors = read(medium(rows, 32), seen), []
    for rotation in Rotation.random(4, rng=np.random.default_rng(0)):
        rotated, moved = turned(rotation, rows, seen)
        ratio = read(medium(rotated, 32), moved) / reference
        errors.append([np.abs(np.log(np.abs(ratio))), np.abs(np.degrees(np.angle(ratio)))])
    amplitude, phase = np.quantile(errors, (0.5, 0.95), axis=(0, 2)).T
    # two such errors are compared
    assert amplitude[0] < math.sqrt(2) * 0.035 and amplitude[1] < math.sqrt(2) * 0.09
    assert phase[0] < math.sqrt(2) * 1.05 and phase[1] < math.sqrt(2) * 1.85


def test_phase_lags_more_and_amplitude_falls_with_separation():
    _, phase_error, separation = sphere_error(32, 2)
    assert np.abs(phase_error).max() < 10  # so that the sign convention cannot be the other one
    _, seen, rows = phantom(32, 0, "none")
    found = read(medium(rows, 32), seen, precise=False)
    separation = probe.separations(seen.sources, seen.detectors, seen.pairs)
    near, far = found[separation < 14], found[(separation > 24) & (separation < 26)]
    assert np.abs(near).min() > np.abs(far).max()
    assert (-np.angle(near)).max() < (-np.angle(far)).min()


# bad input: one line each
def bad(match, error=ValueError):
    return pytest.raises(error, match=rf"^{match}$")


@pytest.mark.parametrize(
    ("name", "value"), [*itertools.product(("mua", "musp"), (0.0, -0.01, float("nan"), float("inf")))]
)
def test_property_that_is_not_positive_is_one_line(name, value):
    there, seen, _ = phantom(16)
    values = getattr(there, name).clone()
    values[8, 8, 7:9] = value
    with bad(rf"object 0: diffusion: {name} is not positive in 2 voxels, first \(8, 8, 7\); mm\^-1 > 0 is accepted"):
        read(dataclasses.replace(there, **{name: values}), seen)


@pytest.mark.parametrize("frequency", [-1.0, math.inf, math.nan])
def test_frequency_that_is_none_is_one_line(frequency):
    there, seen, _ = phantom(16)
    with bad(rf"object 0: diffusion: frequency {frequency} Hz; 0 or more is accepted"):
        read(there, seen, frequency=frequency)


@pytest.mark.parametrize("away", [0.5, -0.5, float("nan")])
def test_optode_off_the_surface_is_one_line(away):
    there, seen, _ = phantom(16)
    detectors = seen.detectors.astype(float)
    detectors[3] *= 1 + away / np.linalg.norm(detectors[3])
    with bad(
        r"object 0: diffusion: detector 3 lies (\+|-)?(0\.[45]\d*|nan) mm off the surface; 0\.1 mm at most is accepted"
    ):
        read(there, dataclasses.replace(seen, detectors=detectors))


def test_pair_of_separation_zero_is_one_line():
    there, seen, _ = phantom(16)
    detectors = seen.detectors.copy()
    detectors[seen.pairs[5, 1]] = seen.sources[seen.pairs[5, 0]]
    with bad(rf"object 0: pair 5: source {seen.pairs[5, 0]} and detector {seen.pairs[5, 1]} coincide"):
        read(there, dataclasses.replace(seen, detectors=detectors))


@pytest.mark.parametrize("pair", [(50, 0), (0, 40), (-1, 0)])
def test_pair_of_no_optodes_is_one_line(pair):
    there, seen, _ = phantom(16)
    pairs = seen.pairs.copy()
    pairs[7] = pair
    with bad(rf"object 0: pair 7 is \({pair[0]}, {pair[1]}\); indices below \(50, 40\) are accepted"):
        read(there, dataclasses.replace(seen, pairs=pairs))


def test_object_in_a_batch_that_is_bad_is_named():
    there, seen, _ = phantom(16)
    touching = dataclasses.replace(there, surface=Surface(tissue(33.0)))
    with bad(r"object 1: geometry: the tissue touches the wall of the cube of 64 mm"):
        diffusion.readings(
            [there, touching], *[np.stack([v] * 2) for v in (seen.sources, seen.detectors, seen.pairs)], 0.0
        )


@pytest.mark.parametrize("method", ["ssor", "multigrid"])
@pytest.mark.parametrize("precise", [False, True])
def test_field_that_has_not_converged_is_an_error(monkeypatch, method, precise):
    monkeypatch.setattr(diffusion, "MOST", 3)
    systems = [diffusion.assemble(phantom(16, i)[0], FREQUENCY) for i in range(2)]
    columns = [torch.zeros(len(s.cells), 1, dtype=torch.float64) for s in systems]
    columns[1][500] = 1.0  # no light in the first, which is therefore solved
    message = rf"diffusion: object 1 has not converged: residual \S+, iteration {3 * (1 + diffusion.RESTARTS)}"
    with bad(message, diffusion.ConvergenceError) as caught:
        diffusion.solve(systems, columns, precise, method)
    assert caught.value.index == 1 and caught.value.residual > 1e-4


@pytest.mark.parametrize("method", ["ssor", "multigrid"])
def test_columns_that_stall_are_started_anew(monkeypatch, method):
    """One source of this phantom stalls at 1e-6, as relaxed on a CPU; the others wait for it, unharmed."""
    row, seen = probe.draw(phantoms.sample("default", 1269, 0)[1268], 0, 1268)
    cells = geometry.cut(Surface(row[0]), 32, 2.0)
    n, done = len(cells), []
    system = diffusion.system(
        cells, Surface(row[0]), torch.full((n,), 0.0068).double(), torch.full((n,), 1.1).double(), FREQUENCY, 1.33
    )
    sources = torch.as_tensor(seen.sources, dtype=torch.float64)
    columns = system.optodes(sources, True).columns(n)
    monkeypatch.setattr(diffusion, "MOST", 60)
    found = diffusion.solve([system], [columns], method=method, report=lambda *row: done.append(row[2]))[0]
    assert done[0] > 60 if method == "ssor" else done[0] < 60
    left = (columns - system.apply(found)).norm(dim=0) / columns.norm(dim=0)
    assert left.max() < 1e-6
    if method == "ssor":
        _, (worst,), done = ssor.Ssor(system).solve([columns[:, : ssor.LANES]], diffusion.TOLERANCE, 300)
        assert done == 300 and diffusion.TOLERANCE < worst < 1e-5


@pytest.mark.parametrize("method", ["ssor", "multigrid"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("precise", [False, True])
def test_source_that_is_no_number_is_an_error(method, value, precise):
    system = diffusion.assemble(phantom(16)[0], FREQUENCY)
    columns = torch.ones(len(system.cells), 3, dtype=torch.float64)
    columns[5, 1] = value
    with bad(r"diffusion: object 0 has not converged: residual nan, iteration \d+", diffusion.ConvergenceError):
        diffusion.solve([system], [columns], precise, method)


def test_bad_request_is_one_line():
    there, seen, _ = phantom(16)
    probe_of = [np.stack([v] * 2) for v in (seen.sources, seen.detectors, seen.pairs)]
    with bad(r"diffusion: 1 media for 2 probes; one probe each is accepted"):
        diffusion.readings([there], *probe_of, FREQUENCY)
    with bad(
        r"object 0: diffusion: mua and musp have shapes \(16, 16, 16\) and \(8, 16, 16\); equal cubes are accepted"
    ):
        read(dataclasses.replace(there, musp=there.musp[:8]), seen)
    with bad(r"diffusion: method 'cg'; 'ssor' or 'multigrid' is accepted"):
        diffusion.solve([], [torch.zeros(1, 1)], method="cg")


def test_no_light_gives_no_fluence():
    system = diffusion.assemble(phantom(16)[0], FREQUENCY)
    for method in ("ssor", "multigrid"):
        for precise in (False, True):
            field = diffusion.solve([system], [torch.zeros(len(system.cells), 2).double()], precise, method)[0]
            assert (field == 0).all()
