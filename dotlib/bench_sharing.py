"""Benchmark of runs beside each other: how many samples a second a GPU, or the cores, train in all."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from . import config as configuration
from . import study
from .bench_rows import row
from .config import Profile
from .run import Run, StudyError
from .workers import cpu_cores

SHARING = (1, 2, 4)  # runs on each GPU
EPOCHS = 8


@dataclass(frozen=True)
class Clocked:
    """A run that notes, in its folder, when each of its epochs ended."""

    run: Run

    def result(self) -> None:
        ends: list[float] = []  # by a clock that all processes of a machine share
        self.run.result(lambda row: ends.append(time.monotonic()))
        (self.run.path / "ends.json").write_text(json.dumps(ends))

    def ends(self) -> list[float]:
        return json.loads((self.run.path / "ends.json").read_text())


def bench_sharing(profile: Profile) -> list[dict]:
    """The profile's network on its phantoms, without readings: samples/s of all runs that share a GPU, or the cores.

    By the engine of studies, with its `per_gpu` on a GPU, on a CPU with the threads divided.
    """
    gpus = torch.cuda.device_count()
    base = configuration.replace(
        profile.base,
        {"data": profile.base.data.model_copy(update={"measurements": None}), "training.epochs": EPOCHS},
    )
    rows: list[dict] = []
    for at_once in SHARING if gpus else sorted({1, cpu_cores()}):
        runs = at_once * max(gpus, 1)
        name = f"{at_once} on each GPU" if gpus else f"{at_once} of {cpu_cores() // at_once} threads"
        first = rows[0] if rows else {"name": "", "value": None}
        rows.append(row(name, _throughput(base, runs, at_once), "samples/s", first["name"], first["value"], runs))
    return rows


def _throughput(base: configuration.Config, runs: int, per_gpu: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        work = {
            f"seed {seed}": Clocked(
                Run(config=configuration.replace(base, {"seed": seed}), data="0", store=Path(folder))
            )
            for seed in range(runs)
        }
        with contextlib.redirect_stderr(io.StringIO()):
            failed = study.here(work, runs, per_gpu)
        if failed:
            raise StudyError("\n".join(failed.values()))
        samples = [one.run.result().epochs["samples"].cumsum() for one in work.values()]
        return together([one.ends() for one in work.values()], samples)


def together(ends: Sequence[Sequence[float]], samples: Sequence[Sequence[float]]) -> float:
    """Samples a second of several runs in all, from where the last of them has ended its first epoch, which compiles,
    to where the first of them ends: NaN where they were never all at work.

    `ends`: when each epoch of each run ended; `samples`: how many the run had trained by then.
    """
    start, end = max(run[0] for run in ends), min(run[-1] for run in ends)
    if end <= start:
        return float("nan")
    done = [np.interp(end, *run) - np.interp(start, *run) for run in zip(ends, samples, strict=True)]
    return float(sum(done)) / (end - start)
