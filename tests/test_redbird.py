"""The forward model beside other people's solvers: redbirdpy's finite elements, scipy's and pyamg's on our matrix."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dotlib.data.surface import Surface
from dotlib.physics import diffusion

ROOT = Path(__file__).resolve().parents[1]
AXES = np.array([29.0, 26.0, 27.5])
FREQUENCY = 140e6
CENTRE, WIDTH = np.array([4.0, -3.0, 12.0]), 5.0  # of a smooth inclusion, which any mesh samples alike


@pytest.fixture(scope="module")
def script():
    """Imports a module of benchmarks/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module


def properties(points, contrast):
    """mua and musp at points (..., 3): the inclusion is `contrast` times as strong as a tumour."""
    bump = contrast * np.exp(-((points - CENTRE) ** 2).sum(-1) / (2 * WIDTH**2))
    return 0.005 * (1 + 1.5 * bump), 1.0 * (1 + 0.8 * bump)


@pytest.fixture(scope="module")
def ellipsoid():
    """Its surface, sources, detectors, pairs 10-40 mm apart."""
    surface = Surface(np.array([0, 0, 0, *AXES, 0, 0, 0, 1, 2, 0.005, 1.0]))
    rng = np.random.default_rng(7)
    directions = rng.uniform(-0.7, 0.7, size=(14, 3)) + np.array([0, 0, 1])
    points = surface.along(directions)
    sources, detectors = points[:6], points[6:]
    separation = np.linalg.norm(sources[:, None] - detectors, axis=2)
    return surface, sources, detectors, np.argwhere((separation >= 10) & (separation <= 40))


def ours(case, contrast, grid=48):
    surface, sources, detectors, pairs = case
    x = (np.arange(grid) + 0.5) * 64 / grid - 32
    mua, musp = properties(np.stack(np.meshgrid(x, x, x, indexing="ij"), -1), contrast)
    medium = diffusion.Medium(torch.from_numpy(mua), torch.from_numpy(musp), surface, 64 / grid)
    return diffusion.readings([medium], sources[None], detectors[None], pairs[None], FREQUENCY)[0]


def finite_elements(fem, case, contrast, size=1.5):
    """A ball's mesh, stretched."""
    surface, sources, detectors, pairs = case
    normal = surface(torch.from_numpy(sources))[1].numpy()
    inner = sources - normal / properties(sources, contrast)[1][:, None]
    scale = AXES / AXES.mean()
    nodes, tetrahedra = fem.mesh(AXES.mean(), size, np.concatenate([detectors, inner]) / scale)
    nodes = nodes * scale
    cfg = fem.prepare(nodes, tetrahedra, inner, detectors, *properties(nodes, contrast), FREQUENCY)
    return fem.solve(cfg)[pairs[:, 0], pairs[:, 1]]


def test_readings_agree_with_finite_elements(script, ellipsoid):
    """An ellipsoid with a smooth inclusion: fluence within both errors on a sphere, its change by the inclusion closer.

    The change is ln(phi / phi0), which grid and mesh disturb less than the fluence.
    """
    pytest.importorskip("redbirdpy")
    fem = script("fem")
    model = [ours(ellipsoid, contrast) for contrast in (0, 1)]
    elements = [finite_elements(fem, ellipsoid, contrast) for contrast in (0, 1)]
    assert len(model[0]) > 20
    for a, b in zip(model, elements, strict=True):
        apart = np.log(a / b)
        assert np.median(abs(apart.real)) < 0.025 and np.percentile(abs(apart.real), 95) < 0.07
        assert np.degrees(np.median(abs(apart.imag))) < 1 and np.degrees(np.percentile(abs(apart.imag), 95)) < 2.5
    change, expected = (np.log(phi[1] / phi[0]) for phi in (model, elements))
    assert np.linalg.norm(change - expected) < 0.06 * np.linalg.norm(expected)
    assert np.max(abs(expected)) > 0.4


def test_finite_elements_converge_to_the_sphere(script):
    """That redbirdpy is driven right: source, detector, boundary and sign of the phase."""
    pytest.importorskip("redbirdpy")
    fem, sphere = script("fem"), script("sphere")
    case, found = sphere.draw(), []
    for size in (3.0, 1.5):
        optodes = np.concatenate([case.detectors, case.inner])
        nodes, tetrahedra = fem.mesh(sphere.RADIUS, size, optodes)
        cfg = fem.prepare(
            nodes, tetrahedra, case.inner, case.detectors, sphere.MUA, sphere.MUSP, sphere.FREQUENCY, sphere.INDEX
        )
        phi = fem.solve(cfg)[case.pairs[:, 0], case.pairs[:, 1]]
        found.append(sphere.errors(phi, case.exact))
    coarse, fine = found
    assert fine["ln_a_median"] < 0.025 and fine["phase_median"] < 1
    assert all(fine[name] < coarse[name] / 2 for name in fine)


def test_other_solvers_of_the_matrix_agree(script):
    """scipy's direct solve and pyamg's preconditioners give the fields of the fused sweeps."""
    pytest.importorskip("pyamg")
    matrices, forward = script("matrices"), script("forward")
    case = script("sphere").draw()
    s = diffusion.assemble(forward.medium(16), FREQUENCY)
    b = s.optodes(torch.as_tensor(case.detectors[:4] + forward.OFFSET), buried=False).columns(len(s.cells))
    exact = matrices.prepared("scipy splu", s, b)()
    assert matrices.residual(s, b, exact) < 1e-12
    for method in matrices.METHODS:
        x = matrices.prepared(method, s, b)()
        assert matrices.residual(s, b, x) < matrices.TOLERANCE
        assert np.linalg.norm(x - exact) < 1e-4 * np.linalg.norm(exact)


def test_headline_takes_the_fastest_grid_no_worse(script):
    """By hand: two solvers on one mesh, three grids, of which the fastest is too coarse."""
    names = ("ln_a_median", "ln_a_p95", "phase_median", "phase_p95")
    grid = [
        {"name": name, "kind": "ours", "seconds": t, **dict(zip(names, e, strict=True))}
        for name, t, e in (("a", 1.0, (3, 3, 3, 3)), ("b", 2.0, (1, 2, 3, 3)), ("c", 8.0, (1, 1, 1, 1)))
    ]
    mesh = {"kind": "redbirdpy", "size": 1.0, "slope": 0.0, "mesh_seconds": 20.0}
    rows = [
        {"name": name, "seconds": t, **mesh, **dict(zip(names, (2, 2, 2, 2), strict=True))}
        for name, t in (("slow", 90.0), ("fast", 40.0))
    ]
    (line,) = script("forward").headline([*grid, *rows, {"name": "d", "kind": "redbirdpy", "error": "more than 600 s"}])
    assert (line["name"], line["beside"], line["ratio"], line["ratio_mesh"]) == ("fast", "b", 20.0, 30.0)
    assert (line["beside_phase"], line["ratio_phase"]) == ("c", 5.0)


@pytest.mark.slow
def test_script_prints_and_writes_its_rows(tmp_path):
    pytest.importorskip("redbirdpy")
    pytest.importorskip("pyamg")
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, "benchmarks/forward.py", "--quick", "--threads", "1", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {row["kind"] for row in rows} == {"ours", "redbirdpy", "matrix", "headline"}
    assert all(row["name"] in done.stdout for row in rows)
    assert all(row["peak_gb"] > 0 and row["n"] == 3 for row in rows if row["kind"] != "headline")
