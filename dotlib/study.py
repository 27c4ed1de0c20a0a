"""Studies: arms x paired seeds, each run computed once and kept."""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from pathlib import Path

import exca
import filelock
import pandas as pd
import pydantic
import torch
from tqdm.auto import tqdm

from . import config as configuration
from . import trainer
from .config import Config, ConfigError
from .data import dataset
from .workers import cpu_cores, end_with_driver


class StudyError(RuntimeError):
    """A study that could not be completed, as one line."""


class Run(pydantic.BaseModel):
    """A configuration and its cached result: one folder for each configuration and version of the training code.

    The folder holds the checkpoints, so that a killed run continues. The version is raised whenever the same
    configuration would give other numbers.
    """

    model_config = pydantic.ConfigDict(extra="forbid")
    config: Config
    data: str  # what tells its phantoms, readings and split apart
    infra: exca.TaskInfra = exca.TaskInfra(version="1", mode="retry")

    @infra.apply
    def result(self) -> trainer.History:
        """Train, or continue, and judge."""
        return trainer.fit(self.config, self.folder())

    def folder(self) -> Path:
        return Path(self.infra.uid_folder(create=True))


def runs(arms: Iterable[str], profile: str, seeds: int, store: Path) -> dict[tuple[str, int], Run]:
    """The runs of a study, by (arm, seed): seeds 0, 1, ... are paired over the arms.

    A run's name holds its data's key and the precision that this machine resolves: neither is ever mixed up.
    """
    _quieten()
    keys = functools.cache(dataset.key)
    wanted = {}
    for arm in arms:
        for seed in range(seeds):
            config = configuration.arm(arm, profile, seed)
            resolved = str(trainer.precision(config.training.precision, trainer.device())).endswith("bfloat16")
            config = configuration.replace(config, {"training.precision": "bf16" if resolved else "fp32"})
            wanted[arm, seed] = Run(config=config, data=keys(config.data), infra={"folder": store})
    return wanted


def status(wanted: dict[tuple[str, int], Run]) -> pd.DataFrame:
    """Where each run stands: arm, seed, state (done, failed, started, missing), epoch, samples/s, seconds left."""
    rows = []
    for (arm, seed), run in wanted.items():
        state = {"completed": "done", "failed": "failed"}.get(run.infra.status(), "missing")
        progress = Path(run.infra.uid_folder()) / "progress.json"
        row = json.loads(progress.read_text()) if progress.exists() else {}
        if row and state == "missing":
            state = "started"
        epoch = f"{row.get('epoch', 0)}/{run.config.training.epochs}"
        rate, left = row.get("samples_per_second", float("nan")), row.get("seconds_left", float("nan"))
        rows.append({"arm": arm, "seed": seed, "state": state, "epoch": epoch, "samples/s": rate, "seconds left": left})
    return pd.DataFrame(rows)


def compute(wanted: dict[tuple[str, int], Run]) -> None:
    """Compute what is missing, on this machine, in spawned workers: one for each visible GPU, else one for each core.

    A worker trains one run at a time with its share of the cores: runs beside each other use cores better than threads
    within a run. Raises StudyError, a line for each run that failed; the others are kept. An advisory lock keeps a
    second driver out of a run that is being trained.
    """
    missing = {key: run for key, run in wanted.items() if run.infra.status() != "completed"}
    if not missing:
        return
    for data in {run.config.data for run in missing.values()}:
        dataset.prepare(data)
    gpus, cores = torch.cuda.device_count(), cpu_cores()
    # as if nothing were done yet: a run's threads, and so its bits, do not depend on when it is continued
    threads = max(1, cores // min(len(wanted), gpus or cores))
    workers = min(len(missing), gpus or cores)
    failures = []
    context = get_context("spawn")
    slots = context.Queue()
    for slot in range(workers):
        slots.put(slot)
    with (
        ProcessPoolExecutor(workers, context, _start_worker, (slots, threads, bool(gpus))) as pool,
        tqdm(total=len(missing), desc="runs", unit="run", file=sys.stderr) as bar,
    ):
        pending = {pool.submit(_compute, run): key for key, run in missing.items()}
        for future in _until_interrupted(as_completed(pending), pool):
            arm, seed = pending[future]
            try:
                future.result()
            except BrokenProcessPool:
                failures.append(f"{arm}, seed {seed}: a worker died (memory?); start again to continue")
            except (RuntimeError, ValueError, ArithmeticError, OSError) as error:
                failures.append(f"{arm}, seed {seed}: {error}")
            bar.update()
    if failures:
        raise StudyError("\n".join(failures))


def _until_interrupted(futures: Iterable[Future], pool: ProcessPoolExecutor) -> Iterator[Future]:
    try:
        yield from futures
    except KeyboardInterrupt:  # end the workers too; their runs continue from their checkpoints
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in active_children():
            worker.kill()
        raise


def _start_worker(slots, threads: int, gpu: bool) -> None:
    _quieten()
    end_with_driver()
    slot = slots.get()
    if gpu:
        torch.cuda.set_device(slot)
    torch.set_num_threads(threads)


def _quieten() -> None:
    # whenever a failed run's state is read, exca logs its traceback; here its error is one line of StudyError
    logging.getLogger("exca").setLevel(logging.ERROR)


def _compute(run: Run) -> None:
    folder = run.folder()
    try:
        # outside the cache, which would keep the refusal as a result
        with filelock.FileLock(folder / "lock", timeout=0):
            run.result()
    except filelock.Timeout:
        raise StudyError(f"{folder}: another process is training this run") from None


def results(study: str, profile: str, seeds: int, store: Path) -> dict[tuple[str, int], trainer.History]:
    """The histories of a study by (arm, seed), computed where they are missing.

    The full profile is computed only where there is a GPU; without one its missing runs are one clear line.
    """
    wanted = runs(configuration.named("study", configuration.STUDIES, study), profile, seeds, store)
    missing = sum(run.infra.status() != "completed" for run in wanted.values())
    if missing and profile == "full" and not torch.cuda.is_available():
        raise ConfigError(
            f"study {study}: {missing} of {len(wanted)} full runs are missing and this machine has no GPU"
        )
    compute(wanted)
    return {key: run.result() for key, run in wanted.items()}


def metrics(histories: dict[tuple[str, int], trainer.History]) -> pd.DataFrame:
    """All test metrics in one table: arm, seed, checkpoint, metric, phantom, inclusion, channel, value."""
    return pd.concat([h.metrics.assign(arm=arm, seed=seed) for (arm, seed), h in histories.items()], ignore_index=True)


def epochs(histories: dict[tuple[str, int], trainer.History]) -> pd.DataFrame:
    """All learning curves in one table: arm, seed, and a row per epoch."""
    return pd.concat([h.epochs.assign(arm=arm, seed=seed) for (arm, seed), h in histories.items()], ignore_index=True)


def summary(histories: dict[tuple[str, int], trainer.History]) -> pd.DataFrame:
    """The arms as they ran: a row each, with the resolved optimiser state of the last step (seed 0), median speed."""
    rows = []
    for arm in arms(histories):
        infos = [history.info for (a, _), history in histories.items() if a == arm]
        info, optimiser = infos[0], infos[0]["optimiser"]
        rows.append(
            {
                "arm": arm,
                "seeds": len(infos),
                "parameters": info["parameters"],
                "samples seen": info["samples_seen"],
                "optimiser": optimiser["class"],
                "last lr": f"{optimiser['lr']:.2g}",
                "last betas": ", ".join(f"{beta:.3g}" for beta in optimiser["betas"]),
                "decay": f"{optimiser['weight_decay']:g}",
                "precision": ", ".join(sorted({i["precision"] for i in infos})),
                "samples/s": pd.Series([i["samples_per_second"] for i in infos]).median(),
            }
        )
    return pd.DataFrame(rows)


def arms(histories: dict[tuple[str, int], trainer.History]) -> list[str]:
    """The arms, in the study's order."""
    return list(dict.fromkeys(arm for arm, _ in histories))


def provenance(histories: dict[tuple[str, int], trainer.History]) -> dict[str, str]:
    """What a table of these runs rests on: digests of the data, and of each run's configuration and code."""
    data = ", ".join(sorted({history.info["data"] for history in histories.values()}))
    runs = {f"{a}, seed {s}": f"{h.info['config_digest']}, code {h.info['code']}" for (a, s), h in histories.items()}
    return {"data": data} | runs
