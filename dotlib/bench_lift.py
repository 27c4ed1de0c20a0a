"""Benchmark of the lift: its parts and the whole for 256 readings, beside plainer ways to the same numbers."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from . import machine
from .bench_forward import FREQUENCY, subject
from .bench_forward import readings as forward
from .bench_rows import rate, row
from .config import LIFTED, Noise, Profile
from .data import noise, phantoms
from .physics import closed_form, diffusion, gauss_newton, homogeneous, jacobian, lift
from .physics.homogeneous import Scene
from .physics.lift import Linear
from .physics.rytov import Readings

PAIRS = 256
REPEATS = 3


def bench_lift(profile: Profile) -> list[dict]:
    """Phantoms a second, of one phantom after another, of the forward model, of a lift's parts, and of the whole."""
    grid, device = max(profile.base.data.grid, 32), machine.device()
    scene, every = recorded(grid, device)
    fit = homogeneous.fit([scene])[0]
    problem, prior = lift.linearise(scene, fit, LIFTED), lift.Prior()
    unit, name = "phantoms/s", f"{PAIRS} pairs, {grid}^3"

    def whole() -> Tensor:
        return lift.solve(lift.linearise(scene, homogeneous.fit([scene])[0], LIFTED), prior)

    def cheap() -> Tensor:
        return lift.solve(closed_form.linearise(scene.surface, scene.readings, phantoms.CUBE, LIFTED), prior)

    of = {
        "readings of 1,000 pairs": forward(grid, device),
        f"sensitivity of 1,000 pairs on {LIFTED}^3, cells gathered pair by pair": partial(by_pairs, fit, every),
        f"sensitivity of 1,000 pairs on {LIFTED}^3": partial(
            jacobian.jacobian, fit.system, fit.light, every, LIFTED, dtype=torch.complex64
        ),
        "solution among the voxels": partial(among_voxels, problem, prior),
        "solution among the readings": partial(lift.solve, problem, prior, (1.0,)),
        f"homogeneous fit, {name}": lambda: homogeneous.fit([scene]),
        f"Gauss-Newton, {name}": lambda: gauss_newton.reconstruct(scene, fit),
        f"lift, {name}": whole,
        f"closed-form lift, {PAIRS} pairs": cheap,
    }
    speed = {name: rate(work, 1, REPEATS) for name, work in of.items()}
    names = list(speed)
    beside = {names[2]: names[1], names[4]: names[3], names[5]: names[0], names[7]: names[6], names[8]: names[7]}
    return [row(name, speed[name], unit, b := beside.get(name, ""), speed.get(b), REPEATS) for name in names]


def recorded(grid: int, device: str) -> tuple[Scene, Tensor]:
    """The forward benchmark's phantom with 256 of its noisy readings, and all 1,000 pairs."""
    medium, p = subject(grid, device)
    phi, rng = forward(grid, device)()[0], np.random.default_rng(0)
    values = noise.measure(phi, -np.angle(phi), p.pairs, Noise(), rng)
    chosen = np.sort(rng.permutation(len(p.pairs))[:PAIRS])
    optodes = [torch.as_tensor(v, dtype=torch.float64, device=device) for v in (p.sources, p.detectors)]
    every = torch.as_tensor(p.pairs.astype(np.int64), device=device)
    taken = [torch.as_tensor(v[chosen], device=device) for v in values]
    one = Readings(*optodes, every[chosen], *taken, FREQUENCY)
    return Scene.of(medium.surface, one, grid, phantoms.CUBE, device), every


def by_pairs(fit: homogeneous.Fit, pairs: Tensor, at_once: int = 64) -> Tensor:
    """-psi^T dA phi by mua and D, (M, 2, 16^3), from each pair's own products in every cell: the plain way."""
    light, cells, D = fit.light, fit.system.cells, fit.system.D[0]
    voxel, out = lift.coarse(cells, LIFTED), []
    for few in pairs.split(at_once):
        s, d = few.T
        zero = light.phi.new_zeros(1, len(few))
        a, b = torch.cat([light.phi[:, s], zero]), torch.cat([light.psi[:, d], zero])
        product = a[:-1] * b[:-1]
        # by D a face's conductance changes by half from either side, the wall's by what is in series with it
        depth = cells.depth / D
        slope = cells.wall * cells.h**2 * depth / (D * (2 * fit.system.A + depth) ** 2)
        by_D = torch.where(depth > -diffusion.OUTSIDE * fit.system.A, slope, 0.0)[:, None] * product
        for face in range(6):
            other = cells.neighbour[:, face]
            by_D += (cells.aperture[:, face, None] * cells.h / 2) * (a[:-1] - a[other]) * (b[:-1] - b[other])
        parts = ((cells.volume * cells.h**3)[:, None] * product, by_D)
        out.append(-torch.stack([zero.new_zeros(LIFTED**3, len(few)).index_add_(0, voxel, part) for part in parts]))
    return torch.cat(out, 2).permute(2, 0, 1)


def among_voxels(problem: Linear, prior: lift.Prior) -> Tensor:
    """(J^T J + C^-1)^-1 J^T y: a dense system of the unknowns, twice the voxels, fp64."""
    size = problem.J.shape[-1]
    unit = torch.eye(2 * size, dtype=torch.float64).unflatten(1, (2, -1))
    covariance = prior.apply(unit, problem.tissue, problem.voxel).flatten(1)
    covariance.diagonal().add_(1e-6)
    J, y = problem.flat.double(), problem.left.double()
    return torch.linalg.solve(J.T @ J + torch.linalg.inv(covariance), J.T @ y)
