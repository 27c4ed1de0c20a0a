"""Sensitivities against central differences and against a tangent solve that knows nothing of adjoints."""

import dataclasses

import numpy as np
import pytest
import torch
from scene import FREQUENCY, phantom
from torch.func import jvp

from dotlib.physics import diffusion, jacobian


@pytest.fixture(scope="module")
def scene():
    """A phantom with tumours at 16^3, its system, fields, and pairs of every separation."""
    there, seen, _ = phantom(16, 1, "many")
    sources, detectors = (torch.as_tensor(v, dtype=torch.float64) for v in (seen.sources[::5], seen.detectors[::5]))
    pairs = torch.cartesian_prod(torch.arange(10), torch.arange(8))
    system = diffusion.assemble(there, FREQUENCY)
    return there, system, sources, detectors, pairs, jacobian.fields(system, sources, detectors, True)


def refined(change, grid):
    for axis in range(3):
        change = change.repeat_interleave(grid // change.shape[axis], axis)
    return change


def changed(there, name, step):
    """A medium with mua, musp or D (at constant mua) moved by `step` (16, 16, 16)."""
    if name != "D":
        return dataclasses.replace(there, **{name: getattr(there, name) + step})
    D = 1 / (3 * (there.mua + there.musp)) + step
    return dataclasses.replace(there, musp=1 / (3 * D) - there.mua)


@pytest.mark.parametrize("grid", [16, 8, 4])
@pytest.mark.parametrize(("parameters", "channel", "name"), [
    ("mua D", 0, "mua at constant D"), ("mua D", 1, "D"), ("mua musp", 0, "mua"), ("mua musp", 1, "musp"),
])  # fmt: skip
def test_jacobian_agrees_with_central_differences(scene, grid, parameters, channel, name):
    there, system, sources, detectors, pairs, light = scene
    _, J = jacobian.jacobian(system, light, pairs, grid, parameters)
    x = torch.randn(grid, grid, grid, generator=torch.Generator().manual_seed(grid)).double()
    size = {"mua": there.mua, "D": 1 / (3 * there.musp), "musp": there.musp}[name.split()[0]].mean()
    step = 1e-4 * size * refined(x, 16)

    def readings(sign):
        moved = changed(there, name.split()[0], sign * step)
        if "constant" in name:
            moved = dataclasses.replace(moved, musp=there.musp - sign * step)
        at = diffusion.assemble(moved, FREQUENCY)
        lit = jacobian.fields(at, sources, detectors, True)
        return lit.detectors.read(lit.phi)[pairs[:, 1], pairs[:, 0]]

    differences = (readings(1) - readings(-1)) / (2e-4 * size)
    found = (J[:, channel] * x).flatten(1).sum(1)
    assert (found - differences).norm() < 1e-3 * differences.norm()  # the bound
    assert ((found - differences) / differences.abs().max()).abs().max() < 1e-5  # what is reached


def test_jacobian_and_tangent_solve_are_adjoint(scene):
    """<J x, y> = <x, J^T y>, with J x by differentiating the system along x and one more solve for each source."""
    there, system, sources, detectors, pairs, light = scene
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 16, 16, generator=rng).double() * torch.stack([there.mua, there.musp])
    y = torch.complex(*torch.randn(2, len(pairs), generator=rng).double())
    in_cells = x.flatten(1)[:, system.cells.index]
    musp = 1 / (3 * system.D) - system.mua
    n = len(system.cells)

    def parts(mua, musp):
        at = diffusion.System(system.cells, system.surface, mua, 1 / (3 * (mua + musp)), system.A, system.modulation)
        s, d = at.optodes(sources, True), at.optodes(detectors, False)
        product = at.apply(light.phi)
        return product.real, product.imag, s.columns(n), d.columns(n)

    _, (real, imag, ds, dd) = jvp(parts, (system.mua, musp), (in_cells[0], in_cells[1]))
    moved = diffusion.solve([system], [ds - torch.complex(real, imag)], precise=True)[0]
    table = light.detectors.read(moved) + dd.T.to(moved.dtype) @ light.phi  # (K, S)
    _, J = jacobian.jacobian(system, light, pairs, 16)
    forward = (table[pairs[:, 1], pairs[:, 0]] * y).sum()
    backward = (x * torch.einsum("m,mcxyz->cxyz", y, J)).sum()
    assert abs(forward - backward) < 1e-8 * abs(forward)


def test_jacobian_on_a_coarser_grid_is_the_sum(scene):
    _, system, _, _, pairs, light = scene
    fine, coarse = (jacobian.jacobian(system, light, pairs[:9], grid)[1] for grid in (16, 4))
    summed = fine.unflatten(2, (4, 4)).unflatten(4, (4, 4)).unflatten(6, (4, 4)).sum((3, 5, 7))
    np.testing.assert_allclose(coarse, summed, rtol=1e-9, atol=1e-12 * summed.abs().max())


def test_more_absorption_means_less_light(scene):
    _, system, sources, detectors, pairs, light = scene
    readings, J = jacobian.jacobian(system, light, pairs, 4)
    by_log = (J[:, 0].flatten(1).sum(1) / readings).real
    assert (by_log[(sources[pairs[:, 0]] - detectors[pairs[:, 1]]).norm(dim=1) > 10] < 0).all()


def test_bad_request_is_one_line(scene):
    _, system, _, _, pairs, light = scene
    with pytest.raises(ValueError, match=r"^jacobian: grid 5 does not divide the system's 16$"):
        jacobian.jacobian(system, light, pairs, 5)
    with pytest.raises(ValueError, match=r"^jacobian: parameters 'D mua'; 'mua D' or 'mua musp' is accepted$"):
        jacobian.jacobian(system, light, pairs, 4, "D mua")
