"""Other solvers of the forward model's own matrix: scipy's direct one, pyamg's hierarchies with a Krylov method."""

import numpy as np
import scipy.sparse as sparse
import torch
from scipy.sparse.linalg import LinearOperator, bicgstab

from dotlib import bench_forward
from dotlib.physics import diffusion

TOLERANCE = 1e-6  # relative residual; ours, in fp32, reach 3e-7 (the residual is printed)
SOURCE = "pyamg Ruge-Stueben of the real part + bicgstab"
METHODS = (
    "dotlib fused sweeps",
    "dotlib multigrid",
    "scipy splu",
    SOURCE,
    "pyamg smoothed aggregation + bicgstab",
)


def prepared(method: str, s: diffusion.System, b: torch.Tensor):
    """What solves the columns (N, R) with this method, ready to be timed; returns them (N, R), complex."""
    if method.startswith("dotlib"):
        own = "ssor" if "sweeps" in method else "multigrid"
        return lambda: diffusion.solve([s], [b], method=own)[0].numpy()
    matrix, columns = bench_forward.matrix(s), b.numpy().astype(complex)
    if method == "scipy splu":
        return lambda: bench_forward.direct(matrix, columns)
    return lambda: krylov(matrix, columns, of_real_part(matrix) if method == SOURCE else of_whole(matrix))


def of_real_part(matrix: sparse.csr_matrix) -> LinearOperator:
    """One V-cycle of classical multigrid for the real part, on real and imaginary parts: ours is of this kind."""
    import pyamg

    real = sparse.csr_matrix((matrix.data.real.copy(), matrix.indices, matrix.indptr), shape=matrix.shape)
    cycle = pyamg.ruge_stuben_solver(real).aspreconditioner()
    both = lambda x: cycle @ x.real.copy() + 1j * (cycle @ x.imag.copy())  # noqa: E731
    return LinearOperator(matrix.shape, matvec=both, dtype=complex)


def of_whole(matrix: sparse.csr_matrix) -> LinearOperator:
    """One V-cycle of smoothed aggregation for the complex symmetric matrix."""
    import pyamg

    return pyamg.smoothed_aggregation_solver(matrix, symmetry="symmetric").aspreconditioner()


def krylov(matrix: sparse.csr_matrix, columns: np.ndarray, preconditioner: LinearOperator) -> np.ndarray:
    """BiCGSTAB, one column after the other: fewer seconds than GMRES here."""
    return np.stack([bicgstab(matrix, c, rtol=TOLERANCE, M=preconditioner)[0] for c in columns.T], 1)


def residual(s: diffusion.System, b: torch.Tensor, x: np.ndarray) -> float:
    """The worst relative residual of the columns, in fp64."""
    left = b - s.apply(torch.from_numpy(np.ascontiguousarray(x)))
    return (left.norm(dim=0) / b.norm(dim=0)).max().item()
