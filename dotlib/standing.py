"""Where the runs of a study stand."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import pandas as pd

from . import cluster, run_store, slurm
from .run import Run

Key = tuple[str, int]  # arm, seed


def status(wanted: Mapping[Key, Run]) -> pd.DataFrame:
    """Where each run stands: arm, seed, state, epoch, samples/s, seconds left.

    States: done, failed, running, queued (at Slurm), started (not running, continues when computed), damaged (computed
    anew), missing.
    """
    queue, rows = _queue(wanted), []
    for (arm, seed), run in wanted.items():
        row = run.progress()
        epoch = f"{row.get('epoch', 0)}/{run.config.training.epochs}"
        rate, left = row.get("samples_per_second", float("nan")), row.get("seconds_left", float("nan"))
        state = _state(run, queue)
        rows.append({"arm": arm, "seed": seed, "state": state, "epoch": epoch, "samples/s": rate, "seconds left": left})
    return pd.DataFrame(rows)


def _queue(wanted: Mapping[Key, Run]) -> dict[str, str]:
    """Slurm's, where a run that is not finished was submitted there; empty, and said, where it cannot be asked."""
    try:
        return cluster.queue() if any(slurm.job_of(run) and not run.done() for run in wanted.values()) else {}
    except cluster.SlurmError as error:
        print(f"dotlib: {error}", file=sys.stderr)
        return {}


def _state(run: Run, queue: Mapping[str, str]) -> str:
    found, queued = run_store.state(run, run.kept()), queue.get(slurm.job_of(run))
    if found in ("done", "running") or queued not in cluster.LIVE:
        return found
    return "running" if queued == "RUNNING" else "queued"
