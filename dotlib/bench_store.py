"""Benchmark of the store and the engine: what they add to runs, and how soon what is finished is at hand."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from . import arms, history, study, trainer
from . import config as configuration
from .bench_rows import row
from .config import Config, Profile
from .history import History
from .run import RESULT, Run
from .workers import cpu_cores

RUNS, REPEATS = 8, 3
STUDY = 40  # runs of the largest study, with 10 seeds
TEST = 750  # its test phantoms


def bench_store(profile: Profile) -> list[dict]:
    """Small runs by the engine against the same ones in a bare pool of as many workers; then finished studies.

    The runs have two epochs of the profile's phantoms, without readings, by a network of width 4. What the engine adds
    to a run does not grow with it, but for its result, whose time at full size is a row of its own. Neither is tracked;
    what tracking adds is a row of its own too.
    """
    config = configuration.replace(
        arms.arm("stage1-adam", "smoke"),
        {"data": profile.base.data.model_copy(update={"measurements": None}), "training.epochs": 2},
    )
    configs = [configuration.replace(config, {"seed": seed, "training.precision": "fp32"}) for seed in range(RUNS)]
    bare, ours, again, tracked = [], [], [], []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            wanted, others = (
                {("a", c.seed): Run(config=c, data="0", store=Path(folder, name)) for c in configs}
                for name in ("runs", "tracked")
            )
            bare.append(_seconds(lambda f=folder: _in_a_bare_pool(configs, Path(f, "bare"))))
            with patch.dict(os.environ, WANDB_MODE="disabled"):
                ours.append(_seconds(lambda w=wanted: study.compute(w)))
                again.append(_seconds(lambda w=wanted: (study.compute(w), [run.result() for run in w.values()])))
            with patch.dict(os.environ, WANDB_MODE="offline"):
                tracked.append(_seconds(lambda w=others: study.compute(w)))
    name, n = f"{RUNS} runs, bare pool", REPEATS
    rows = [
        row(name, np.median(bare), "s", n=n),
        row(f"{RUNS} runs, engine", np.median(ours), "s", name, np.median(bare), n),
    ]
    for what, before, after in (("the engine", bare, ours), ("offline tracking", ours, tracked)):
        added = float(np.median(np.subtract(after, before))) / RUNS
        rows.append(row(f"what {what} adds to a run", added, "s", "2 s", 2.0, n))
    rows.append(row(f"{RUNS} finished runs, study again", np.median(again), "s", "1 s", 1.0, n))
    return rows + _full(configs[0])


def _full(config: Config) -> list[dict]:
    """A study of STUDY runs on TEST phantoms, made up in the size that histories of the full profile have."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {("a", seed): Run(config=configuration.replace(config, {"seed": seed}), data="0", store=Path(folder))
                for seed in range(STUDY)}  # fmt: skip
        made_up = _as_long_as_full(trainer.fit(config, Path(folder, "fit")))
        saving = [_seconds(lambda r=run: history.save(made_up, r.folder() / RESULT, r.key)) for run in runs.values()]
        reading = [
            _seconds(lambda: (study.compute(runs), [run.result() for run in runs.values()])) for _ in range(REPEATS)
        ]
        size = (runs["a", 0].path / RESULT).stat().st_size
    return [
        row(f"result of a full run, {size / 1e6:.1f} MB, saved", np.median(saving), "s", "2 s", 2.0, STUDY),
        row(f"{STUDY} finished full runs, study again", np.median(reading), "s", "1 s", 1.0, REPEATS),
    ]


def _as_long_as_full(found: History) -> History:
    """The same columns with TEST phantoms, and the epochs and steps of the full profile."""
    full = configuration.profile("full").base
    steps = configuration.train_share(full.data) // full.training.batch * full.training.epochs
    times = TEST // (found.metrics["phantom"].max() + 1)
    metrics = pd.concat([found.metrics] * times, ignore_index=True)

    def stretched(table: pd.DataFrame, length: int) -> pd.DataFrame:
        return table.iloc[np.arange(length) % len(table)].reset_index(drop=True)

    return replace(
        found, metrics=metrics, steps=stretched(found.steps, steps),
        epochs=stretched(found.epochs, full.training.epochs),
    )  # fmt: skip


def _in_a_bare_pool(configs: list[Config], folder: Path) -> None:
    workers = min(len(configs), cpu_cores())
    start = get_context("spawn")
    with ProcessPoolExecutor(workers, start, torch.set_num_threads, (max(1, cpu_cores() // workers),)) as pool:
        list(pool.map(trainer.fit, configs, [folder / str(c.seed) for c in configs]))


def _seconds(work) -> float:
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        work()
    return time.perf_counter() - start
