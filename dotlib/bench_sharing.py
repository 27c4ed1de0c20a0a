"""Benchmark of runs beside each other: how many samples a second a GPU, or the cores, train in all."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import torch

from . import config as configuration
from . import study
from .bench_rows import row
from .config import Profile
from .run import Run
from .workers import cpu_cores

SHARING = (1, 2, 4)  # runs on each GPU
EPOCHS = 6  # of which the first, which compiles, is left out


def bench_sharing(profile: Profile) -> list[dict]:
    """The profile's network on its phantoms, without readings: samples/s of all runs that share a GPU, or the cores.

    By `study.compute`, as a study would: on a GPU by its `per_gpu`, on a CPU with the threads divided.
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
        wanted = {
            ("a", seed): Run(config=configuration.replace(base, {"seed": seed}), data="0", store=Path(folder))
            for seed in range(runs)
        }
        with contextlib.redirect_stderr(io.StringIO()):
            study.compute(wanted, per_gpu=per_gpu)
        tables = [run.result().epochs.iloc[1:] for run in wanted.values()]
    return sum(table["samples"].sum() / table["seconds"].sum() for table in tables)
