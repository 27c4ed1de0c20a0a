"""The forward model beside redbirdpy's finite elements and other solvers of its own matrix: error, seconds, memory.

    python benchmarks/forward.py [--quick] [--json benchmarks/results/FILE.jsonl] [--threads N]

One homogeneous sphere, one patch of 50 sources and 40 detectors, 1,000 pairs 10-40 mm apart; errors are against the
exact sphere. Each case runs in a process of its own. Seconds are the median of three calls after a first one, or one
call that takes more than a minute. Ours hold everything from the surface to the readings; redbirdpy's hold its
right-hand sides, matrix, solution and readings, its mesh (and what it prepares once a mesh) is in a column of its own.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import fem
import matrices
import numpy as np
import pandas as pd
import sphere
import torch

from dotlib.data import phantoms
from dotlib.data.surface import Surface
from dotlib.physics import diffusion
from dotlib.workers import cpu_cores

REPEATS, LONG = 3, 60.0  # calls; seconds after which one call is enough
LIMIT = 600.0  # seconds a case
OFFSET = np.array([0.31, -0.22, 0.43])  # mm; moves our sphere off the grid's symmetry
GRIDS = (16, 20, 24, 28, 32, 40, 48, 64, 80, 96)
GRADED, UNIFORM = (2.5, 2.0, 1.5, 1.2, 1.0, 0.8, 0.65), (3.0, 2.5, 2.0, 1.5)  # mm
MATRICES = (32, 48)
QUICK = {"grids": (16, 20, 24), "graded": (3.0,), "uniform": (), "matrices": (16,)}


def seconds(work) -> tuple[float, int, object]:
    """The median of three calls after a first one, or a single long call; their number; what it returned."""
    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
        if times[0] > LONG:
            return times[0], 1, result
    return statistics.median(times[1:]), REPEATS, result


def medium(grid: int) -> diffusion.Medium:
    row = sphere.ROW.copy()
    row[phantoms.CENTRE] = OFFSET
    mua, musp = (torch.full((grid,) * 3, v, dtype=torch.float64) for v in (sphere.MUA, sphere.MUSP))
    return diffusion.Medium(mua, musp, Surface(row), phantoms.CUBE / grid)


def ours(grid: int) -> dict:
    """`diffusion.readings`."""
    case = sphere.draw()
    optodes = (case.sources + OFFSET)[None], (case.detectors + OFFSET)[None], case.pairs[None]
    spent, n, phi = seconds(lambda: diffusion.readings([medium(grid)], *optodes, sphere.FREQUENCY, sphere.INDEX)[0])
    cells = len(diffusion.assemble(medium(grid), sphere.FREQUENCY).cells)
    return {"unknowns": cells, "seconds": spent, "n": n, **sphere.errors(phi, case.exact)}


def redbirdpy(size: float, slope: float, solver: str, threads: int) -> dict:
    """redbirdpy on a mesh whose nodes are the optodes, graded or uniform."""
    case = sphere.draw()
    start = time.perf_counter()
    nodes, tetrahedra = fem.mesh(sphere.RADIUS, size, np.concatenate([case.detectors, case.inner]), slope)
    cfg = fem.prepare(
        nodes, tetrahedra, case.inner, case.detectors, sphere.MUA, sphere.MUSP, sphere.FREQUENCY, sphere.INDEX
    )
    meshing = time.perf_counter() - start
    spent, n, table = seconds(lambda: fem.solve(cfg, solver, threads))
    phi = table[case.pairs[:, 0], case.pairs[:, 1]]
    return {
        "unknowns": len(nodes), "seconds": spent, "n": n, "mesh_seconds": meshing, **sphere.errors(phi, case.exact)
    }  # fmt: skip


def same_matrix(grid: int, method: str) -> dict:
    """The fields of the 40 detectors from our matrix: seconds from its coefficients on, and the residual reached."""
    case = sphere.draw()
    s = diffusion.assemble(medium(grid), sphere.FREQUENCY, sphere.INDEX)
    b = s.optodes(torch.as_tensor(case.detectors + OFFSET), buried=False).columns(len(s.cells))
    spent, n, x = seconds(matrices.prepared(method, s, b))
    return {"unknowns": len(s.cells), "seconds": spent, "n": n, "residual": matrices.residual(s, b, x)}


KINDS = {"ours": ours, "redbirdpy": redbirdpy, "matrix": same_matrix}


def cases(grids, graded, uniform, matrix_grids, threads: int) -> list[tuple[str, str, dict]]:
    """Name, kind and arguments of each case."""
    out = [(f"dotlib {g}^3", "ours", {"grid": g}) for g in grids]
    if importlib.util.find_spec("redbirdpy"):
        for kind, sizes, slope in (("graded", graded, fem.SLOPE), ("uniform", uniform, 0.0)):
            out += [
                (f"redbirdpy, {kind} {h:g} mm, {solver}", "redbirdpy",
                 {"size": h, "slope": slope, "solver": solver, "threads": threads})
                for h in sizes for solver in fem.solvers()
            ]  # fmt: skip
    methods = [m for m in matrices.METHODS if "pyamg" not in m or importlib.util.find_spec("pyamg")]
    return out + [(f"matrix {g}^3, {m}", "matrix", {"grid": g, "method": m}) for g in matrix_grids for m in methods]


def alone(name: str, kind: str, arguments: dict, threads: int) -> dict:
    """The row of one case, run in a process of its own; `error` in it where it fails or takes too long."""
    environment = os.environ | {k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, __file__, "--case", json.dumps([kind, arguments])]
    row = {"name": name, "kind": kind, **arguments}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return row | {"error": f"more than {LIMIT:g} s"}
    if done.returncode:
        return row | {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return row | json.loads(done.stdout.splitlines()[-1])


def run_case(kind: str, arguments: dict) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    row = KINDS[kind](**arguments)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps(row | {"peak_gb": peak * unit / 1e9}))


def no_worse(row: dict, than: dict, quantities: tuple[str, ...]) -> bool:
    return all(row[f"{q}_{p}"] <= than[f"{q}_{p}"] for q in quantities for p in ("median", "p95"))


def headline(rows: list[dict]) -> list[dict]:
    """For each mesh, redbirdpy's fastest solver beside the fastest of our grids whose errors are no worse than its.

    `ratio`: of throughput, without its mesh; `ratio_phase`: where the phase's errors are no worse either;
    `ratio_mesh`: with its mesh, as ours hold the cutting of the cells.
    """
    good = [row for row in rows if "error" not in row]
    grids = [row for row in good if row["kind"] == "ours"]
    fastest = {}
    for row in (row for row in good if row["kind"] == "redbirdpy"):
        key = row["size"], row["slope"]
        fastest[key] = min(fastest.get(key, row), row, key=lambda r: r["seconds"])
    out = []
    for row in fastest.values():
        line = {"name": row["name"], "kind": "headline"}
        for key, quantities in (("", ("ln_a",)), ("_phase", ("ln_a", "phase"))):
            equal = min((g for g in grids if no_worse(g, row, quantities)), key=lambda g: g["seconds"], default=None)
            if equal:
                line |= {f"beside{key}": equal["name"], f"ratio{key}": row["seconds"] / equal["seconds"]}
                if not key:
                    line["ratio_mesh"] = (row["seconds"] + row["mesh_seconds"]) / equal["seconds"]
        out.append(line)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="coarse grids and meshes only")
    parser.add_argument("--threads", type=int, default=cpu_cores(), help="threads a case (default: all cores)")
    parser.add_argument("--json", type=Path, help="also write the rows here, one JSON object a line")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        run_case(*arguments.case)
        return 0
    sizes = QUICK.values() if arguments.quick else (GRIDS, GRADED, UNIFORM, MATRICES)
    machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads"
    rows = []
    for case in cases(*sizes, arguments.threads):
        rows.append(alone(*case, arguments.threads) | {"machine": machine})
        print(f"{rows[-1]['name']}: {rows[-1].get('error') or format(rows[-1]['seconds'], '.3g') + ' s'}", flush=True)
    summary = [line | {"machine": machine} for line in headline(rows)]
    hidden = ["kind", "machine", "grid", "method", "size", "slope", "solver", "threads"]
    for title, table in ((machine, rows), ("at no worse error on the sphere, ratio of throughput", summary)):
        if table:
            print(f"\n{title}")
            frame = pd.DataFrame(table).drop(columns=hidden, errors="ignore")
            print(frame.to_string(index=False, float_format="%.3g", na_rep=""))
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows + summary), encoding="utf-8")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
