"""Shards of a dataset file as jobs on a Slurm cluster."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import slurm, workers
from .cluster import Cluster
from .data.recording import SimulationError
from .data.simulate import Shard, made

JOBS_EACH = 4  # for each that may run at a time: what a lost one had in work is little


@dataclass(frozen=True)
class ShardsTask(slurm.FolderTask):
    """Some shards, made one after another by one job."""

    name: str
    shards: tuple[Shard, ...]
    folder: Path
    cores: int

    def done(self) -> bool:
        """Whether all files are in their place; who merges them verifies them."""
        return all(shard.path.exists() for shard in self.shards)

    def work(self) -> None:
        """Make what is missing; Ended, between two shards or in them, where the process is asked to end."""
        missing = [shard for shard in self.shards if not shard.path.exists()]
        if not missing:  # a job that was queued again after its last one
            return
        try:
            failures = []
            for _, failure in made(missing, min(self.cores, len(missing))):
                failures += [failure] if failure else []
                if workers.asked_to_end():
                    raise workers.Ended(f"{self.name}: finished shards are kept")
        except (SimulationError, OSError) as error:
            if workers.asked_to_end():  # its workers were, too
                raise workers.Ended(f"{self.name}: finished shards are kept") from None
            failures = [str(error)]  # of a full disk, too
        if failures:
            self.keep_failure("; ".join(failures))


class OnSlurm:
    """Has shards made by jobs; `path` is the file that they will be part of."""

    def __init__(self, path: Path, wanted: Cluster):
        self.folder, self.wanted = path.with_name(path.name + ".jobs"), wanted
        self.device = "cuda" if wanted.gpus else "cpu"

    def make(self, shards: Sequence[Shard]) -> None:
        """Have all shards of a file made that are missing or damaged; SimulationError, a line for each job that failed.

        Which of them a job makes does not depend on those that are there: a second call finds the jobs of a first.
        """
        for shard in shards:
            if shard.path.exists() and not shard.finished():
                shard.path.unlink(missing_ok=True)
        each = max(1, -(-len(shards) // (JOBS_EACH * self.wanted.concurrency)))
        parts = [tuple(shards[i : i + each]) for i in range(0, len(shards), each)]
        tasks = [
            ShardsTask(f"phantoms from {part[0].first} on", part, self.folder / f"{part[0].first}", self.wanted.cpus)
            for part in parts
        ]
        if failures := slurm.run(tasks, self.folder / "slurm", self.wanted):
            raise SimulationError("\n".join(failures))
        shutil.rmtree(self.folder, ignore_errors=True)
