"""What a file of many phantoms costs: simulated in shards with constant memory, and open at once.

    python benchmarks/scale.py [--phantoms 100000] [--sample 512] [--grid 32] [--json FILE]

A sample is simulated as ever, which gives the seconds a phantom. The file itself has phantoms of its own, so that they
are checked for duplicates, but the readings of one shard over and over: shards, verification, merging and opening cost
what they would. Peak memory is that of a process of its own for each step. The last rows are what a million would take:
the sample's pace times a million, and sizes and times in proportion. Needs twice the file's size on the disk.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch

from dotlib import config
from dotlib.data import dataset, phantoms, recording, simulate, store

MILLION = 1_000_000


@dataclass(frozen=True)
class Copies:
    """Work that gives each phantom its own table, and the readings of the first shard but for one of them."""

    config: config.Data
    path: Path  # of that shard
    verb: str = "copy"

    def __len__(self) -> int:
        return self.config.phantoms

    def identity(self, every: bool = False) -> str:
        return store.identity(self.config, every)

    def make(self, first: int, count: int, device: str) -> dict:
        with store.File(self.path) as file:
            columns = {name: file.raw(name, 0, count) for name in file.names}
        columns["ellipsoids"] = phantoms.sample(self.config.family, count, self.config.seed, first=first)
        columns["log_amplitude"][:, 0] += 1e-4 * np.arange(first, first + count, dtype="f4")
        return columns


def measured(work) -> tuple[float, float]:
    """Seconds of some work in a new process, and the most memory in MB that it or one of its workers had."""
    most = 0
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        ended = pool.submit(_timed, work)
        while not ended.done():
            most = max(most, *map(_resident, psutil.Process().children(recursive=True)), 0)
            time.sleep(0.05)
    return ended.result(), most / 1e6


def _timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def opened(path: Path) -> None:
    with store.File(path) as file:
        len(file)


def rows(total: int, sample: int, grid: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as name:
        folder, measurements = Path(name), config.Measurements(grid=grid)
        data = config.Data(phantoms=sample, grid=grid, seed=1, measurements=measurements)
        recording.simulate(data, 0, 1, "cpu")  # compiles
        simulated, resident = measured(partial(simulate.simulate, data, folder / "sample.h5"))
        shard = folder / "shard.h5"
        columns = recording.simulate(data, 0, store.BLOCK, "cpu")
        store.write(shard, columns, {})
        found = [
            ("sample, simulated", simulated / sample, "s a phantom", sample),
            ("sample, peak memory of a process", resident, "MB", sample),
        ]
        for n in (total // 10, total):
            path, many = folder / f"{n}.h5", data.model_copy(update={"phantoms": n})
            seconds, resident = measured(partial(simulate.fill, Copies(many, shard), path))
            found += [
                (f"{n} phantoms: shards, verification, merging", seconds, "s", n),
                (f"{n} phantoms: peak memory of a process", resident, "MB", n),
                (f"{n} phantoms: the file", path.stat().st_size / 1e6, "MB", n),
            ]
            for what, work in (("File", partial(opened, path)), ("dataset.read", partial(dataset.read, path))):
                start = time.perf_counter()
                work()
                found.append((f"{n} phantoms: {what}", time.perf_counter() - start, "s", n))
                found.append((f"{n} phantoms: {what}, peak memory", measured(work)[1], "MB", n))
            if n != total:
                path.unlink()
        file = path.stat().st_size
    cores = simulate.cpu_cores()
    found += [
        ("a million, predicted: simulation", simulated / sample * MILLION / 3600, f"h on {cores} cores", sample),
        ("a million, predicted: the rest", seconds / total * MILLION / 3600, f"h on {cores} cores", total),
        ("a million, predicted: the file, and as much in shards before", file / total * MILLION / 1e9, "GB", total),
    ]
    return [{"name": name, "value": value, "unit": unit, "n": n} for name, value, unit, n in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=100_000)
    parser.add_argument("--sample", type=int, default=512)
    parser.add_argument("--grid", type=int, default=32)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = rows(arguments.phantoms, arguments.sample, arguments.grid)
    for row in found:
        print(f"{row['name']:75} {row['value']:10.4g} {row['unit']} (n = {row['n']})")
    if arguments.json:
        where = f"{torch.backends.cpu.get_cpu_capability()}, {simulate.cpu_cores()} cores, torch {torch.__version__}"
        lines = [json.dumps(row | {"machine": where}) for row in found]
        arguments.json.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
