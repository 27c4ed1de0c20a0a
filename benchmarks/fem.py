"""Finite elements for comparison: a tetrahedral mesh of a ball, and redbirdpy's forward solution on it.

redbirdpy is GPL-3 and optional: it is imported where it is used, here and in tests, never by dotlib.
"""

import contextlib
import importlib.util
import io

import numpy as np
from scipy.spatial import Delaunay, cKDTree

GOLDEN = np.pi * (3 - 5**0.5)  # angle between successive points of a spiral
LAYER = 0.82  # distance of shells in spacings: that of regular tetrahedra's layers
FREE = 0.6  # spacings round an optode without other nodes
NEAR, SLOPE = 3.0, 0.25  # mm below the patch with the finest elements; growth of the spacing beyond
SOLVERS = {"superlu": "scipy", "blqmr": "blocksolver", "pardiso": "pypardiso"}  # redbirdpy's for complex matrices
TOLERANCE = 1e-6  # of the residual, for its iterative solver


def mesh(radius: float, size: float, optodes: np.ndarray, slope: float = SLOPE, near: float = NEAR):
    """Nodes `(N, 3)`, mm, and tetrahedra `(T, 4)`, 0-based, of a ball round the origin; optodes are the first nodes.

    Delaunay's, of shells of spiral points: their spacing is `size` within `near` mm of the patch round +z that holds
    the optodes, and grows by `slope` mm a mm from there (0: uniform). Other nodes keep away from the optodes.
    """
    lowest = np.arccos((optodes[:, 2] / np.linalg.norm(optodes, axis=1)).min())
    shells, r = [], radius
    while r > FREE * size:
        shells.append(_shell(r, lowest, radius, size, slope, near))
        r -= LAYER * (size + slope * max(radius - r - near, 0))
    points = np.concatenate(shells)
    free = cKDTree(optodes).query(points)[0] > FREE * size
    nodes = np.concatenate([optodes, points[free]])
    tetrahedra = Delaunay(nodes).simplices
    corner = nodes[tetrahedra]
    volume = abs(np.linalg.det(corner[:, 1:] - corner[:, :1])) / 6
    edge = np.linalg.norm(corner - np.roll(corner, 1, 1), axis=2).max(1)
    skin = (abs(np.linalg.norm(corner, axis=2) - radius) < 1e-6 * radius).all(1)  # four nodes of the surface
    return nodes, tetrahedra[~skin | (volume > 1e-3 * edge**3)]


def _shell(r: float, lowest: float, radius: float, size: float, slope: float, near: float) -> np.ndarray:
    """Points on a sphere of radius r, along a spiral whose density follows the wanted spacing over the polar angle."""
    theta = np.linspace(0, np.pi, 2001)
    aside = np.hypot(r * np.sin(theta) - radius * np.sin(lowest), r * np.cos(theta) - radius * np.cos(lowest))
    distance = np.where(theta <= lowest, radius - r, aside)
    spacing = size + slope * np.maximum(distance - near, 0)
    density = 2 * np.pi * r**2 * np.sin(theta) / (3**0.5 / 2 * spacing**2)
    count = np.append(0, np.cumsum((density[1:] + density[:-1]) / 2 * theta[1]))
    order = np.arange(max(int(count[-1]), 1))
    polar, azimuth = np.interp(order + 0.5, count, theta), GOLDEN * order
    return r * np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], -1)


def redbirdpy():
    """The package, without what it prints on import."""
    with contextlib.redirect_stdout(io.StringIO()):
        import redbirdpy
    return redbirdpy


def solvers() -> list[str]:
    """Those of redbirdpy's solvers for complex matrices that are installed."""
    return [name for name, package in SOLVERS.items() if importlib.util.find_spec(package)]


def prepare(nodes, tetrahedra, inner, detectors, mua, musp, frequency: float, n: float = 1.33) -> dict:
    """redbirdpy's problem: sources at `inner` points (S, 3), detectors (K, 3) at the surface, properties at the nodes.

    It would sink sources and detectors by 1/(mua + musp) along their directions: these are zero here, so that both lie
    where they are said to. Its boundary is Robin's with its own effective reflection; its indices are 1-based.
    """
    rb, ones = redbirdpy(), np.ones(len(nodes))
    prop = np.stack([mua * ones, musp * ones, 0 * ones, n * ones], -1)  # mua, mus, g, n
    cfg = {
        "node": nodes, "elem": tetrahedra + 1, "prop": prop, "omega": 2 * np.pi * frequency, "reff": rb.getreff(n, 1.0),
        "srcpos": inner, "srcdir": np.zeros((1, 3)), "detpos": detectors, "detdir": np.zeros((1, 3)),
    }  # fmt: skip
    return rb.meshprep(cfg)[0]


def solve(cfg: dict, solver: str = "superlu", threads: int = 1) -> np.ndarray:
    """Fluence `(S, K)` at the detectors: right-hand sides, matrix, and the fields of the fewer optodes.

    By reciprocity, as in ours; its own runforward would solve for sources and detectors.
    """
    rb = redbirdpy()
    rhs, where, *_ = rb.femrhs(cfg)
    if np.isnan(where).any():
        raise ValueError(f"fem: {np.isnan(where).sum()} optodes lie outside the mesh")
    s = len(cfg["srcpos"])
    sources, detectors = rhs[:, :s], rhs[:, s:]
    few, many = (sources, detectors) if s < detectors.shape[1] else (detectors, sources)
    if solver == "pardiso":
        _forget()
    matrix = rb.femlhs(cfg, cfg["deldotdel"])
    fields, flag = rb.femsolve(matrix, few, method=solver, tol=TOLERANCE, nthread=threads)
    if flag:
        raise ArithmeticError(f"fem: {solver} ends with flag {flag}")
    table = many.T @ fields
    return table.T if few is sources else table


def _forget() -> None:
    """PARDISO's wrapper keeps the last factors and would use them again."""
    from pypardiso.scipy_aliases import pypardiso_solver

    if pypardiso_solver.factorized_A.shape[0]:
        pypardiso_solver.free_memory()
