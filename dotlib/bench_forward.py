"""Benchmark of the forward model: throughput, cost over phantoms, columns and voxels, memory traffic, memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sparse
import torch
from scipy.sparse.linalg import splu
from torch import Tensor

from . import machine
from .bench_rows import rate, row
from .config import Profile
from .data import phantoms, probe, recording
from .physics import diffusion, geometry
from .physics.diffusion import Medium, System
from .physics.ssor import LANES, ROW, Ssor
from .sections.roofline import copy_speed

SEED = 0
FREQUENCY = 140e6  # Hz
REPEATS = 3
DIRECT = 32  # the largest grid for a direct solve: its fill takes gigabytes and minutes beyond
# One iteration of ssor._cocg, a cell and a block of columns, if neighbouring rows stay in the cache: backwards r and p
# are read, p and t written; forwards p and t are read, u written; the update reads p, t, u, x, r and writes x, r.
# Beside these 14 rows the neighbours' indices and couplings, 3 and 3 a sweep, and `extra`.
TRAFFIC = 14 * 4 * ROW + 2 * 6 * 4 + 2 * 4  # bytes; a written row that is not in the cache is also read, not counted
FEW, MANY = 2, 22  # iterations: their difference leaves out what is done once
COPIED = 256  # MiB of the copy whose speed is the ceiling


def bench_forward(profile: Profile) -> list[dict]:
    """Throughput against other solvers of the same matrix, exponents of the cost, and bytes moved.

    A phantom is a tissue with tumours and a probe of 50 sources, 40 detectors and 1,000 pairs. Peak memory is taken
    before any other solver has run.
    """
    grid, device = profile.base.data.grid, machine.device()
    rows = over_phantoms(grid, device) + over_columns(grid, device) + over_voxels(grid, device) + [memory()]
    for g in sorted({min(grid, DIRECT), grid}):
        rows += throughput(g, device)
    return rows + (traffic(max(grid, DIRECT)) if device == "cpu" else [])


def subject(grid: int, device: str) -> tuple[Medium, probe.Probe]:
    """The phantom that is solved, on any grid, and its probe."""
    table, optodes = probe.draw(phantoms.sample("default", 1, SEED)[0], SEED, 0)
    return recording.medium(table, grid, device), optodes


def readings(grid: int, device: str, count: int = 1) -> Callable[[], np.ndarray]:
    """The readings of `count` copies of the phantom, ready to run."""
    medium, p = subject(grid, device)
    optodes = [np.stack([x] * count) for x in (p.sources, p.detectors, p.pairs)]
    return lambda: diffusion.readings([medium] * count, *optodes, FREQUENCY, device=device)


def system(grid: int, device: str, columns: int = 0) -> tuple[System, Tensor]:
    """The discretised phantom, and the right-hand sides (N, R) of its detectors, or of `columns` surface points."""
    medium, p = subject(grid, device)
    points = p.detectors
    if columns:
        points = medium.surface.along(np.random.default_rng(SEED).normal(size=(columns, 3)))
    assembled = diffusion.assemble(medium, FREQUENCY, device=device)
    optodes = assembled.optodes(torch.as_tensor(points, dtype=torch.float64, device=device), buried=False)
    return assembled, optodes.columns(len(assembled.cells))


def matrix(s: System) -> sparse.csr_matrix:
    """The matrix of one object for other solvers: complex128, 32-bit indices."""
    n, neighbour = len(s.cells), s.cells.neighbour.numpy()
    r, face = np.nonzero(neighbour < n)
    entries = (-s.coupling.numpy()[r, face], (r, neighbour[r, face]))
    return sparse.csr_matrix(sparse.coo_matrix(entries, shape=(n, n)) + sparse.diags(s.diag.numpy()))


def direct(a: sparse.csr_matrix, b: np.ndarray) -> np.ndarray:
    """Columns (N, R) solved by SuperLU, in the mode for symmetric patterns: fewer seconds than its default here."""
    lu = splu(a.tocsc(), "MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return lu.solve(b.astype(complex))


def direct_readings(grid: int) -> Callable[[], Tensor]:
    """The same readings with the fields from a sparse direct solve, ready to run."""
    medium, p = subject(grid, "cpu")

    def work() -> Tensor:
        s = diffusion.assemble(medium, FREQUENCY)
        sources, detectors = (
            s.optodes(torch.as_tensor(x, dtype=torch.float64), buried)
            for x, buried in ((p.sources, True), (p.detectors, False))
        )
        phi = direct(matrix(s), detectors.columns(len(s.cells)).numpy())
        return sources.read(torch.from_numpy(phi))[p.pairs[:, 0], p.pairs[:, 1]]

    return work


def throughput(grid: int, device: str) -> list[dict]:
    """Readings of a phantom against a direct solve, up to 32^3; on a CPU the fused sweeps against multigrid."""
    rows, name = [], f"readings {grid}^3"
    if grid <= DIRECT:
        base = rate(direct_readings(grid), 1, REPEATS)
        rows.append(row(f"{name}, direct solve (splu)", base, "phantoms/s", n=REPEATS))
    elif device != "cpu":
        base = rate(readings(grid, "cpu"), 1, REPEATS)
        rows.append(row(f"{name}, CPU", base, "phantoms/s", n=REPEATS))
    ours = rate(readings(grid, device), 1)
    rows.append(row(name, ours, "phantoms/s", rows[0]["name"], base) if rows else row(name, ours, "phantoms/s"))
    if device == "cpu":
        s, b = system(grid, device)
        work = {m: rate(lambda m=m: diffusion.solve([s], [b], method=m), 1, REPEATS) for m in ("multigrid", "ssor")}
        slow = f"fields {grid}^3, multigrid"
        rows.append(row(slow, work["multigrid"], "phantoms/s", n=REPEATS))
        rows.append(row(f"fields {grid}^3, fused sweeps", work["ssor"], "phantoms/s", slow, work["multigrid"], REPEATS))
    return rows


def exponent(name: str, sizes: Sequence[float], seconds: Sequence[float]) -> dict:
    """The slope of ln seconds over ln size, by least squares: 1 is linear."""
    slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    return row(f"exponent of the cost over {name}", float(slope), "1", n=REPEATS)


def over_phantoms(grid: int, device: str, counts: Sequence[int] = (1, 2, 4, 8)) -> list[dict]:
    """One phantom several times in a call: a ratio of 1 is linear."""
    rates = [rate(readings(grid, device, p), p, REPEATS) for p in counts]
    names = [f"{p} phantom{'s' * (p > 1)} a call, {grid}^3" for p in counts]
    rows = [row(names[0], rates[0], "phantoms/s", n=REPEATS)]
    rows += [row(n, r, "phantoms/s", names[0], rates[0], REPEATS) for n, r in zip(names[1:], rates[1:], strict=True)]
    return [*rows, exponent("phantoms", counts, [p / r for p, r in zip(counts, rates, strict=True)])]


def over_columns(grid: int, device: str, counts: Sequence[int] = (10, 20, 40, 80)) -> list[dict]:
    """Fields of more and more optodes, assembly left out: blocks of columns are solved together."""
    s, b = system(grid, device, max(counts))
    rates = [rate(lambda k=k: diffusion.solve([s], [b[:, :k]]), k, REPEATS) for k in counts]
    names = [f"{k} optodes, fields {grid}^3" for k in counts]
    rows = [row(names[0], rates[0], "optodes/s", n=REPEATS)]
    rows += [row(n, r, "optodes/s", names[0], rates[0], REPEATS) for n, r in zip(names[1:], rates[1:], strict=True)]
    return [*rows, exponent("optodes", counts, [k / r for k, r in zip(counts, rates, strict=True)])]


def over_voxels(grid: int, device: str) -> list[dict]:
    """Readings on grids up to 64^3 (for the smallest profile, up to 32^3)."""
    grids = [g for g in (m * min(grid, DIRECT) // 2 for m in (1, 2, 3, 4)) if g in geometry.GRIDS]
    rates = [rate(readings(g, device), g**3, REPEATS) for g in grids]
    names = [f"voxels, {g}^3" for g in grids]
    rows = [row(names[0], rates[0], "voxels/s", n=REPEATS)]
    rows += [row(n, r, "voxels/s", names[0], rates[0], REPEATS) for n, r in zip(names[1:], rates[1:], strict=True)]
    return [*rows, exponent("voxels", [g**3 for g in grids], [g**3 / r for g, r in zip(grids, rates, strict=True)])]


def memory() -> dict:
    """Peak resident memory of this process so far, libraries included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return row("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, "GB", n=1)


def traffic(grid: int) -> list[dict]:
    """Iterations to convergence, and bytes that the fused sweeps move, a block of columns on each thread."""
    s, b = system(grid, "cpu", LANES * torch.get_num_threads())
    sweeps = Ssor(s)
    iterations = sweeps.solve([b[:, :LANES]], diffusion.TOLERANCE, diffusion.MOST)[2]
    n = 2 * REPEATS
    few, many = (1 / rate(lambda k=k: sweeps.solve([b], 0.0, k), 1, n) for k in (FEW, MANY))
    moved = TRAFFIC * len(s.cells) * torch.get_num_threads() * (MANY - FEW)
    speed, name = copy_speed("cpu", COPIED), f"copy of {COPIED} MiB"
    return [
        row(f"iterations, fused sweeps {grid}^3", iterations, "iterations", n=1),
        row(name, speed, "GB/s"),
        row(
            f"fused sweeps {grid}^3, {TRAFFIC} bytes a cell",
            moved / (many - few) / 1e9,
            "GB/s",
            name,
            speed,
            2 * REPEATS,
        ),
    ]
