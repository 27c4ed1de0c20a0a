"""COCG with symmetric successive over-relaxation, fused for a CPU: blocks of columns side by side fill its vectors.

The system is A = diag + L + L^T, complex symmetric, with real couplings L. It is scaled to M^-1 A with
M = (I + L)(I + L^T), and Eisenstat's trick (SIAM J. Sci. Stat. Comput. 2, 1981) turns one product with it into one
backward and one forward sweep. The iteration is COCG (van der Vorst & Melissen 1990): dot products are unconjugated.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

LANES = 20  # columns solved together: loops long enough to be vectorised, and 40 detectors keep two cores busy
ROW = 2 * LANES
CHUNK = 512  # cells that are summed in fp32 before the sum moves to fp64
REST = 1e-3  # of the tolerance, below which a column is left as it is: its residual would go on into underflow
DECAY = 0.125  # mm^-1, about that of the light: with it the relaxation nears 2 as voxels shrink


@njit(nogil=True, cache=True, fastmath={"contract"})
def _cocg(lower, low, upper, up, extra, b, tol, most):
    """Solve in place: `b` (N + 1, 2 LANES) becomes the solution; returns (iterations, largest relative residual).

    `lower`, `upper` (N, 3) are neighbours, `low`, `up` (N, 3) their scaled couplings; a missing neighbour is the zero
    row N. `extra` (N, 2) is the scaled diagonal less 2.
    """
    n = low.shape[0]
    r, p, t = np.zeros_like(b), np.zeros_like(b), np.zeros_like(b)
    u = np.zeros_like(b)
    x = np.zeros_like(b)
    part = np.zeros(ROW, np.float32)
    size = np.zeros(LANES, np.float64)
    rho, old = np.zeros((2, LANES)), np.zeros((2, LANES))
    scale, live = np.zeros(LANES), np.ones(LANES)
    beta = np.zeros(ROW, np.float32)
    alpha = np.zeros(ROW, np.float32)
    # the right-hand side of the scaled system: one forward sweep
    for i in range(n):
        i0, i1, i2 = lower[i, 0], lower[i, 1], lower[i, 2]
        c0, c1, c2 = low[i, 0], low[i, 1], low[i, 2]
        for k in range(ROW):
            r[i, k] = b[i, k] - c0 * r[i0, k] - c1 * r[i1, k] - c2 * r[i2, k]
    for k in range(LANES):
        for i in range(n):
            a, c = np.float64(r[i, k]), np.float64(r[i, LANES + k])
            rho[0, k] += a * a - c * c
            rho[1, k] += 2 * a * c
            scale[k] += a * a + c * c
    worst, done = 1.0, 0
    for step in range(most):
        # p = r + beta p, and t = (I + L^T)^-1 p on the way back
        for i in range(n - 1, -1, -1):
            i0, i1, i2 = upper[i, 0], upper[i, 1], upper[i, 2]
            c0, c1, c2 = up[i, 0], up[i, 1], up[i, 2]
            for k in range(LANES):
                a, c = p[i, k], p[i, LANES + k]
                p[i, k] = r[i, k] + beta[k] * a - beta[LANES + k] * c
                p[i, LANES + k] = r[i, LANES + k] + beta[k] * c + beta[LANES + k] * a
            for k in range(ROW):
                t[i, k] = p[i, k] - c0 * t[i0, k] - c1 * t[i1, k] - c2 * t[i2, k]
        # u = (I + L)^-1 (p + extra t); the product is t + u
        sums = np.zeros(ROW)
        for start in range(0, n, CHUNK):
            part[:] = 0
            for i in range(start, min(start + CHUNK, n)):
                i0, i1, i2 = lower[i, 0], lower[i, 1], lower[i, 2]
                c0, c1, c2 = low[i, 0], low[i, 1], low[i, 2]
                er, ei = extra[i, 0], extra[i, 1]
                for k in range(LANES):
                    u[i, k] = p[i, k] + er * t[i, k] - ei * t[i, LANES + k]
                    u[i, LANES + k] = p[i, LANES + k] + er * t[i, LANES + k] + ei * t[i, k]
                for k in range(ROW):
                    u[i, k] = u[i, k] - c0 * u[i0, k] - c1 * u[i1, k] - c2 * u[i2, k]
                for k in range(LANES):
                    qr, qi = t[i, k] + u[i, k], t[i, LANES + k] + u[i, LANES + k]
                    part[k] += p[i, k] * qr - p[i, LANES + k] * qi
                    part[LANES + k] += p[i, k] * qi + p[i, LANES + k] * qr
            for k in range(ROW):
                sums[k] += part[k]
        for k in range(LANES):
            square = sums[k] ** 2 + sums[LANES + k] ** 2
            if square > 0 and live[k]:
                alpha[k] = (rho[0, k] * sums[k] + rho[1, k] * sums[LANES + k]) / square
                alpha[LANES + k] = (rho[1, k] * sums[k] - rho[0, k] * sums[LANES + k]) / square
            else:
                alpha[k] = 0
                alpha[LANES + k] = 0
            old[0, k], old[1, k] = rho[0, k], rho[1, k]
        # x += alpha p, r -= alpha (t + u)
        rho[:] = 0
        size[:] = 0
        for start in range(0, n, CHUNK):
            part[:] = 0
            norm = np.zeros(LANES, np.float32)
            for i in range(start, min(start + CHUNK, n)):
                for k in range(LANES):
                    ar, ai = alpha[k], alpha[LANES + k]
                    pr, pi = p[i, k], p[i, LANES + k]
                    qr, qi = t[i, k] + u[i, k], t[i, LANES + k] + u[i, LANES + k]
                    x[i, k] += ar * pr - ai * pi
                    x[i, LANES + k] += ar * pi + ai * pr
                    rr = r[i, k] - ar * qr + ai * qi
                    ri = r[i, LANES + k] - ar * qi - ai * qr
                    r[i, k] = rr
                    r[i, LANES + k] = ri
                    part[k] += rr * rr - ri * ri
                    part[LANES + k] += 2 * rr * ri
                    norm[k] += rr * rr + ri * ri
            for k in range(LANES):
                rho[0, k] += part[k]
                rho[1, k] += part[LANES + k]
                size[k] += norm[k]
        worst, done = 0.0, step + 1
        for k in range(LANES):
            if scale[k] != 0:  # also NaN
                ratio = np.sqrt(size[k] / scale[k])
                if not (ratio <= worst or worst != worst):  # NaN stays
                    worst = ratio
                if ratio < REST * tol:
                    live[k] = 0
            square = old[0, k] ** 2 + old[1, k] ** 2
            if square > 0:
                beta[k] = (rho[0, k] * old[0, k] + rho[1, k] * old[1, k]) / square
                beta[LANES + k] = (rho[1, k] * old[0, k] - rho[0, k] * old[1, k]) / square
        if worst <= tol or not worst < 1e30:
            break
    for i in range(n - 1, -1, -1):
        i0, i1, i2 = upper[i, 0], upper[i, 1], upper[i, 2]
        c0, c1, c2 = up[i, 0], up[i, 1], up[i, 2]
        for k in range(ROW):
            b[i, k] = x[i, k] - c0 * b[i0, k] - c1 * b[i1, k] - c2 * b[i2, k]
    return done, worst


class Ssor:
    """The scaled matrix of one `diffusion.System`."""

    def __init__(self, system):
        neighbour, coupling, diag = (v.numpy() for v in (system.cells.neighbour, system.coupling, system.diag))
        relaxation = 2 / (1 + DECAY * system.cells.h)
        self.scale = np.sqrt(relaxation / diag.real)
        around = np.append(self.scale, 0.0)[neighbour]
        scaled = (-coupling * self.scale[:, None] * around).astype(np.float32)
        self.lower, self.upper = (np.ascontiguousarray(part, np.int32) for part in np.split(neighbour, 2, 1))
        self.low, self.up = (np.ascontiguousarray(part) for part in np.split(scaled, 2, 1))
        off = relaxation * diag.imag / diag.real
        self.extra = np.stack([np.full(len(diag), relaxation - 2), off], -1).astype(np.float32)

    def solve(self, columns: list[Tensor], tolerance: float, most: int) -> tuple[list[Tensor], list[float], int]:
        """Solve in fp32 for one block (N, R) of right-hand sides.

        Returns the solution, complex128, its worst residual (preconditioned, as the iteration updates it), iterations.
        """
        b = columns[0].numpy()
        blocks = [b[:, i : i + LANES] for i in range(0, b.shape[1], LANES)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            solved = list(pool.map(lambda block: self._block(block, tolerance, most), blocks))
        x = torch.from_numpy(np.concatenate([x for x, *_ in solved], 1))
        return [x], [float(np.max([worst for *_, worst in solved]))], max(done for _, done, _ in solved)

    @np.errstate(invalid="ignore")  # what is not finite becomes NaN, and is not accepted
    def _block(self, b: np.ndarray, tolerance: float, most: int) -> tuple[np.ndarray, int, float]:
        n, columns = b.shape
        size = np.abs(b).max(0)  # keeps small columns, such as residuals, away from underflow
        size[size == 0] = 1
        rows = np.zeros((n + 1, ROW), np.float32)
        rows[:n, :columns] = b.real * self.scale[:, None] / size
        if np.iscomplexobj(b):
            rows[:n, LANES : LANES + columns] = b.imag * self.scale[:, None] / size
        done, worst = _cocg(self.lower, self.low, self.upper, self.up, self.extra, rows, tolerance, most)
        x = rows[:n, :columns] + 1j * rows[:n, LANES : LANES + columns]
        return x * (self.scale[:, None] * size), done, worst
