"""The simulation of a dataset file: in shards that are renamed into place, by workers, to be continued at any time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Protocol

import filelock
import numpy as np
import torch
from tqdm.auto import tqdm

from .. import provenance
from ..config import Data
from ..workers import cpu_cores, end_with_driver
from . import checks, recording, store
from .recording import SimulationError
from .split import quality


class Work(Protocol):
    """What fills a file of the schema, phantom by phantom, the same in any block."""

    verb: str  # of the progress line

    def __len__(self) -> int: ...

    def identity(self, every: bool = False) -> str: ...

    def make(self, first: int, count: int, device: str) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Recordings:
    """Phantoms, probes and readings of a configuration."""

    config: Data
    verb: str = "simulate"

    def __len__(self) -> int:
        return self.config.phantoms

    def identity(self, every: bool = False) -> str:
        return store.identity(self.config, every)

    def make(self, first: int, count: int, device: str) -> dict[str, np.ndarray]:
        return recording.simulate(self.config, first, count, device)


@dataclass(frozen=True)
class Shard:
    """Phantoms `first` ... `first + count - 1` of some work, and their file."""

    work: Work
    path: Path
    first: int
    count: int
    device: str

    def make(self) -> None:
        store.write(self.path, self.work.make(self.first, self.count, self.device), self.attributes)

    @property
    def attributes(self) -> dict[str, str | int]:
        return _origin(self.work, self.device) | {"first": self.first}

    def finished(self) -> bool:
        """Whether the file is there, whole and undamaged; SimulationError if it is another simulation's."""
        try:
            with store.File(self.path) as file:
                file.digests()
                file.raw("checks")  # no part of the digest
                other = {name for name, value in self.attributes.items() if file.attribute(name) != str(value)}
                if not other & {"configuration", "device"}:
                    return len(file) == self.count and not other
        except store.StoreError:
            return False
        raise SimulationError(
            f"{self.path}: a shard of another configuration or device; remove it, or name another file"
        )


class Elsewhere(Protocol):
    """Where shards are made that this process only merges; what cannot be made is a SimulationError."""

    device: str

    def make(self, shards: Sequence[Shard]) -> None:
        """See to it that all of them are there; some may be."""


def _origin(work: Work, device: str) -> dict[str, str | int]:
    return {"configuration": work.identity(), "device": device, "legend": checks.LEGEND}


def simulate(config: Data, path: Path, workers: int | None = None, elsewhere: Elsewhere | None = None) -> None:
    """Write the dataset file of a configuration with measurements, or continue it: `fill`."""
    fill(Recordings(config), path, workers, elsewhere)


def fill(work: Work, path: Path, workers: int | None = None, elsewhere: Elsewhere | None = None) -> None:
    """Write the file of some work, or continue it; nothing is done where the file is.

    Fixed blocks of 16 phantoms are made by `workers` processes of one thread each (one for each core by default;
    where there is a GPU, by this process on it), so the bytes do not depend on their number. Finished blocks lie in
    `<path>.parts` until all are merged. A second process that asks for the file waits. `elsewhere` makes shards in the
    place of these processes, on the device that it names. Raises SimulationError, naming the phantom where there is
    one, and StoreError for a file of another configuration or a place that is none.
    """
    if _there(work, path):
        return
    parts = path.with_name(path.name + ".parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not _there(work, path):
                parts.mkdir(exist_ok=True)  # whoever had the lock has removed it
                on = elsewhere.device if elsewhere else "cuda" if torch.cuda.is_available() else "cpu"
                shards = _shards(work, parts, on)
                if elsewhere:
                    elsewhere.make(shards)
                    if lost := sum(not shard.finished() for shard in shards):
                        raise SimulationError(f"{path}: {lost} shards are missing or damaged; start again to continue")
                _merge(work, _finished(shards, workers or cpu_cores(), path), path)
            with contextlib.suppress(OSError):  # what is not ours stays in it
                parts.rmdir()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        if not parts.is_dir():
            raise store.StoreError(f"{path}: {reason}") from None
        kept = f"; finished shards are kept in {parts}, the same command continues" if any(parts.glob("*.h5")) else ""
        raise SimulationError(f"{path}: {reason}{kept}") from None


def _there(work: Work, path: Path) -> bool:
    """Whether the file is; StoreError if it is another configuration's, or none."""
    if not os.path.lexists(path):
        return False
    with store.File(path) as file:
        file.require(work.identity())
    return True


def _shards(work: Work, parts: Path, on: str) -> list[Shard]:
    total = len(work)
    return [
        Shard(work, parts / f"{first:07d}.h5", first, min(store.BLOCK, total - first), on)
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


def _finished(shards: list[Shard], workers: int, path: Path) -> list[Shard]:
    """The shards, after the missing ones are made; the failures of all, a line each."""
    missing = [shard for shard in shards if not shard.finished()]
    if not missing:
        return shards
    total, left = (sum(shard.count for shard in some) for some in (shards, missing))
    workers = 1 if missing[0].device == "cuda" else min(workers, len(missing))
    seconds = _pace(missing[0]) * left / workers
    print(
        f"{path}: {left} of {total} phantoms to {missing[0].work.verb}, "
        f"about {tqdm.format_interval(seconds)} on {workers} "
        f"{'GPU' if missing[0].device == 'cuda' else 'core(s)'}",
        file=sys.stderr,
    )
    failures = []
    with tqdm(total=total, initial=total - left, desc="phantoms", unit="phantom", file=sys.stderr) as bar:
        for shard, failure in made(missing, workers):
            failures += [failure] if failure else []
            bar.update(shard.count)
    if failures:
        raise SimulationError("\n".join(failures))
    return shards


def _pace(shard: Shard) -> float:
    """Seconds a phantom: of the first one, once it is compiled; on a GPU of a whole shard, whose phantoms share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for count in (1, shard.count if shard.device == "cuda" else 1):
            start = time.perf_counter()
            shard.work.make(shard.first, count, shard.device)
        return (time.perf_counter() - start) / count
    finally:
        torch.set_num_threads(threads)


def made(shards: list[Shard], workers: int) -> Iterator[tuple[Shard, str]]:
    """Each shard when it is made, with its failure, or an empty string."""
    if shards[0].device == "cuda":
        for shard in shards:
            yield shard, _make(shard)
        return
    others = set(active_children())
    with _environment(), ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) as pool:
        try:
            pending = {pool.submit(_make, shard): shard for shard in shards}
            for future in as_completed(pending):
                yield pending[future], future.result()
        except BaseException as error:  # a full disk, an interruption: the shards in work are given up
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(active_children()) - others:
                worker.kill()  # a pool that broke while it started one would wait for it forever
            if isinstance(error, BrokenProcessPool):
                raise SimulationError("a worker died (memory?); the same command continues") from None
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


def _merge(work: Work, shards: list[Shard], path: Path) -> None:
    """All shards in one file, in their place, with the check that needs all phantoms: duplicates."""
    duplicates, merged = checks.Duplicates(), shards[0].path.with_name("merged.h5")
    attributes = _origin(work, shards[0].device) | {"fields": work.identity(every=True), "commit": code()}
    with store.writing(merged) as file:
        for i, shard in enumerate(shards):
            with store.File(shard.path) as source:
                columns = {name: source.raw(name) for name in source.names}
            if "sigma" in columns:
                columns["quality"] = quality(columns["sigma"])
            if i == 0:
                store.create(file, columns, len(work), attributes)
            if "ellipsoids" in columns:
                columns["checks"] |= duplicates(columns)
            for name, values in columns.items():
                file[name][shard.first : shard.first + shard.count] = values
            file["digests"][i] = store.digest(columns)
    os.replace(merged, path)
    for file in (*(shard.path for shard in shards), *merged.parent.glob("*.tmp")):
        file.unlink(missing_ok=True)
    with store.File(path):  # a large file takes long to be known, once
        pass


def code() -> str:
    """The last commit of the code, in full, and whether it differs from it."""
    found = provenance.commit()
    return found["commit"] + "-dirty" * bool(found["dirty"])
