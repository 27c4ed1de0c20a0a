"""The simulation of a dataset file: in shards that are renamed into place, by workers, to be continued at any time."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path

import filelock
import torch
from tqdm.auto import tqdm

from ..config import Data
from ..workers import cpu_cores, end_with_driver
from . import checks, recording, store
from .recording import SimulationError
from .split import split

FRACTIONS = Data.model_fields["fractions"].default  # of the split that is stored


@dataclass(frozen=True)
class Shard:
    """Phantoms `first` ... `first + count - 1` of a configuration, and their file."""

    config: Data
    path: Path
    first: int
    count: int
    device: str

    def make(self) -> None:
        store.write(self.path, recording.simulate(self.config, self.first, self.count, self.device), self.attributes)

    @property
    def attributes(self) -> dict[str, str | int]:
        return {"configuration": store.identity(self.config), "first": self.first}

    def finished(self) -> bool:
        """Whether the file is there, whole and undamaged; SimulationError if it is another configuration's."""
        try:
            with store.File(self.path) as file:
                file.digests()
                if file.attribute("configuration") == self.attributes["configuration"]:
                    return (len(file), file.attribute("first")) == (self.count, str(self.first))
        except store.StoreError:
            return False
        raise SimulationError(f"{self.path}: a shard of another configuration; remove it, or choose another file")


def simulate(config: Data, path: Path, workers: int | None = None) -> None:
    """Write the dataset file of a configuration, or continue it; nothing is done where the file is.

    Fixed blocks of 16 phantoms are simulated by `workers` processes of one thread each (one for each core by default;
    where there is a GPU, by this process on it), so the bytes do not depend on their number. Finished blocks lie in
    `<path>.parts` until all are merged. A second process that asks for the file waits. Raises SimulationError, naming
    the phantom where there is one, and ValueError for a configuration without measurements.
    """
    if config.measurements is None:
        raise ValueError("simulate: data.measurements is None; a configuration of measurements is accepted")
    parts = path.with_name(path.name + ".parts")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not path.exists():
                parts.mkdir(exist_ok=True)
                shards = _shards(config, parts)
                _finish(shards, workers or cpu_cores(), path)
                _merge(config, shards, path)
            shutil.rmtree(parts, ignore_errors=True)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise SimulationError(
            f"{path}: {reason}; finished shards are kept in {parts}, the same command continues"
        ) from None


def _shards(config: Data, parts: Path) -> list[Shard]:
    on, total = "cuda" if torch.cuda.is_available() else "cpu", config.phantoms
    return [
        Shard(config, parts / f"{first:07d}.h5", first, min(store.BLOCK, total - first), on)
        for first in range(0, total, store.BLOCK)
    ]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"{path}: waiting for another process that simulates it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _finish(shards: list[Shard], workers: int, path: Path) -> None:
    """Make the missing shards; the failures of all, a line each."""
    missing = [shard for shard in shards if not shard.finished()]
    if not missing:
        return
    total, left = (sum(shard.count for shard in some) for some in (shards, missing))
    workers = 1 if missing[0].device == "cuda" else min(workers, len(missing))
    seconds = _pace(missing[0]) * left / workers
    print(
        f"{path}: {left} of {total} phantoms to simulate, about {tqdm.format_interval(seconds)} on {workers} "
        f"{'GPU' if missing[0].device == 'cuda' else 'core(s)'}",
        file=sys.stderr,
    )
    failures = []
    with tqdm(total=total, initial=total - left, desc="phantoms", unit="phantom", file=sys.stderr) as bar:
        for shard, failure in _made(missing, workers):
            failures += [failure] if failure else []
            bar.update(shard.count)
    if failures:
        raise SimulationError("\n".join(failures))


def _pace(shard: Shard) -> float:
    """Seconds a phantom, from the first one; on a GPU from a whole shard, whose phantoms share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recording.simulate(shard.config, shard.first, 1, shard.device)  # compiles
        count = shard.count if shard.device == "cuda" else 1
        start = time.perf_counter()
        recording.simulate(shard.config, shard.first, count, shard.device)
        return (time.perf_counter() - start) / count
    finally:
        torch.set_num_threads(threads)


def _made(shards: list[Shard], workers: int) -> Iterator[tuple[Shard, str]]:
    """Each shard when it is made, with its failure, or an empty string."""
    if shards[0].device == "cuda":
        for shard in shards:
            yield shard, _make(shard)
        return
    others = set(active_children())
    with _environment(), ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) as pool:
        pending = {pool.submit(_make, shard): shard for shard in shards}
        try:
            for future in as_completed(pending):
                yield pending[future], future.result()
        except BrokenProcessPool:
            raise SimulationError("a worker died (memory?); the same command continues") from None
        except BaseException:  # a full disk, an interruption: the shards in work are given up
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(active_children()) - others:
                worker.kill()
            raise


def _make(shard: Shard) -> str:
    try:
        shard.make()
    except SimulationError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """What spawned processes inherit: one thread for numpy's algebra too."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends its workers
    end_with_driver()
    torch.set_num_threads(1)


def _merge(config: Data, shards: list[Shard], path: Path) -> None:
    """All shards in one file, with what depends on all phantoms: duplicates, the split."""
    duplicates, merged = checks.Duplicates(), shards[0].path.with_name("merged.h5")
    with store.writing(merged) as file:
        for i, shard in enumerate(shards):
            with store.File(shard.path) as source:
                columns = {name: source.raw(name) for name in source.names}
            if i == 0:
                store.create(file, columns | {"split": columns["strata"]}, config.phantoms, _attributes(config))
            columns["checks"] |= duplicates(columns)
            for name, values in columns.items():
                file[name][shard.first : shard.first + shard.count] = values
            file["digests"][i] = store.digest(columns)
        file["split"][:] = split(file["strata"][:], FRACTIONS, config.seed, file["checks"][:] != 0)
        file["split"].attrs["fractions"] = FRACTIONS
    os.replace(merged, path)


def _attributes(config: Data) -> dict[str, str | int]:
    return {
        "configuration": store.identity(config),
        "commit": commit(),
        "seed_phantoms": config.seed,
        "seed_noise": config.measurements.noise.seed,
    }


def commit() -> str:
    """The last commit of the code, short."""
    command = ["git", "-C", str(Path(__file__).parents[1]), "log", "-1", "--format=%h", "--", "."]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or "unknown"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
