"""Studies: arms x paired seeds, each run computed once and kept."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
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

from . import arms as known
from . import config as configuration
from . import factors, inference, machine, perceptual, records, tracking, trainer
from .config import Config, ConfigError, Data, Optim
from .data import dataset, samples
from .provenance import code_digest, commit
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
    infra: exca.TaskInfra = exca.TaskInfra(version="2", mode="retry")

    @infra.apply
    def result(self) -> trainer.History:
        """Train, or continue, and judge; a run that diverges is a result too. `compute` keeps two drivers apart."""
        folder = self.folder()
        facts = {"data key": self.data, "code": code_digest(), "versions": machine.versions()} | commit()
        tracker = tracking.start(self.config, folder, facts)
        try:
            return trainer.fit(self.config, folder, tracker=tracker, teacher=self._taught())
        except trainer.DivergedError as error:
            return error.history
        finally:
            tracker.finish()

    def teacher(self) -> Run | None:
        """The run that the perceptual term of this one looks through, or its decoder starts from."""
        config = perceptual.teacher_config(self.config)
        own = self.data.split("+")[0]
        return config and Run(config=config, data=own, infra={"folder": self.infra.folder})

    def _taught(self) -> torch.nn.Module | None:
        if not (teacher := self.teacher()):
            return None
        if failed := teacher.result().failed:
            raise StudyError(f"{teacher.folder()}: the autoencoder that a run rests on diverged: {failed}")
        return inference.trained(teacher.config, teacher.folder(), on=machine.device())

    def folder(self) -> Path:
        return Path(self.infra.uid_folder(create=True))


def runs(arms: Iterable[str], profile: str, seeds: int, store: Path, first: int = 0) -> dict[tuple[str, int], Run]:
    """The runs of some arms, by (arm, seed): seeds from `first` on are paired over the arms.

    A run's name holds its data's key and the precision that this machine resolves: neither is ever mixed up. Raises
    ConfigError for an arm that rests on tuning which is not computed, whose micro-batch would depend on the machine, or
    that differs from the arm that it is compared with in more than it declares.
    """
    _quieten()
    keys, best = functools.cache(dataset.key), functools.cache(functools.partial(tuned, profile=profile, store=store))
    wanted = {}
    for arm in arms:
        candidate = configuration.named("arm", known.ARMS, arm).tuned
        if arm in factors.DECLARED:
            factors.require(arm, *(known.arm(name, profile) for name in (arm, factors.DECLARED[arm][0])))
        for seed in range(first, first + seeds):
            config = known.arm(arm, profile, seed, best(candidate) if candidate else None)
            if config.training.micro == "auto":
                raise ConfigError(f"arm {arm}: training.micro = 'auto' depends on the machine; a number is accepted")
            dtype = machine.precision(config.training.precision, machine.device())
            config = configuration.replace(config, {"training.precision": machine.named(dtype)})
            wanted[arm, seed] = Run(config=config, data=data_of(config, keys), infra={"folder": store})
    tests = {keys((run.config.test or run.config.data).model_copy(update={"train": None})) for run in wanted.values()}
    if len(tests) > 1:
        raise ConfigError(f"arms {', '.join(arms)}: {len(tests)} test sets; arms are judged on one")
    return wanted


def data_of(config: Config, keys: Callable[[Data], str]) -> str:
    """What tells a run's data apart: that which it trains with, is judged on where that is other, and looks through."""
    parts = [keys(config.data), *([keys(config.test)] if config.test else [])]
    source = config.loss.features and config.loss.features.source
    if source and source not in ("trained", "random") and Path(source).is_file():
        parts.append(hashlib.sha256(Path(source).read_bytes()).hexdigest()[:12])
    if config.lift:
        from .data import lifts  # with the solver

        parts.append(lifts.key())
    return "+".join(parts)


def tuned(candidate: str, profile: str, store: Path) -> Optim | None:
    """The optimiser that tuning found best, by validation nrmse of mua at its end.

    The tuning's runs are those of the store, else those recorded in results/; None where neither has them all.
    """
    wanted = runs(known.TUNING[candidate], profile, 1, store, known.TUNING_SEED)
    if any(run.infra.status() != "completed" for run in wanted.values()):
        scores = _recorded(wanted, configuration.root() / "results" / "4.3-tuning")
        if scores is None:
            return None
    else:
        histories = {key: run.result() for key, run in wanted.items()}
        scores = {key: h.epochs["nrmse_mua"].iloc[-1] for key, h in histories.items() if not h.failed}
    if not scores:
        raise StudyError(f"tuning of {candidate}: every run diverged")
    return wanted[min(scores, key=scores.get)].config.optim


def _recorded(wanted: dict[tuple[str, int], Run], folder: Path) -> dict[tuple[str, int], float] | None:
    """Validation nrmse of mua at the end of those of the runs that did not diverge; None where not all are recorded.

    A run is known by its configuration: another machine draws phantoms whose bits, and so the data's key, may differ.
    """
    if not folder.is_dir():
        return None
    found = records.load(folder)
    names = {(row.arm, row.seed): row.config for row in found.runs.itertuples()}
    if any(names.get(key) != run.config.digest() for key, run in wanted.items()):
        return None
    whole = found.runs.loc[found.runs["failed"] == "", ["arm", "seed"]]
    ends = found.epochs.merge(whole).groupby(["arm", "seed"])["nrmse_mua"].last()
    return {key: ends[key] for key in wanted if key in ends.index}


def members(study: str, profile: str, seeds: int, store: Path) -> dict[tuple[str, int], Run]:
    """The runs of a study; 0 seeds: its own number, or the profile's."""
    chosen = configuration.named("study", known.STUDIES, study)
    return runs(
        chosen.arms, profile, seeds or chosen.seeds or configuration.profile(profile).seeds, store, chosen.first
    )


def status(wanted: dict[tuple[str, int], Run]) -> pd.DataFrame:
    """Where each run stands: arm, seed, state (done, failed, started, missing), epoch, samples/s, seconds left."""
    rows = []
    for (arm, seed), run in wanted.items():
        state = {"completed": "done", "failed": "failed"}.get(run.infra.status(), "missing")
        if state == "done" and run.result().failed:
            state = "failed"
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
    # by folder: arms that come to the same configuration are one run
    folders = {run.infra.uid_folder(): key for key, run in wanted.items() if run.infra.status() != "completed"}
    missing = {key: wanted[key] for key in folders.values()}
    if not missing:
        return
    failures = []
    teachers = {key: teacher for key, run in missing.items() if (teacher := run.teacher())}
    try:
        compute({(f"autoencoder of {arm}", seed): teacher for (arm, seed), teacher in teachers.items()})
    except StudyError as error:
        failures.append(str(error))
        lost = {key for key, teacher in teachers.items() if teacher.infra.status() != "completed"}
        if not (missing := {key: run for key, run in missing.items() if key not in lost}):
            raise
    tracking.resolved()  # refused here, once, rather than in every run
    tracking.images()
    samples.prepare(run.config for run in missing.values())
    gpus, cores = torch.cuda.device_count(), cpu_cores()
    # as if nothing were done yet: a run's threads, and so its bits, do not depend on when it is continued
    threads = max(1, cores // min(len(wanted), gpus or cores))
    workers = min(len(missing), gpus or cores)
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


def elsewhere(rows: pd.DataFrame, wanted: dict[tuple[str, int], Run]) -> pd.DataFrame:
    """The rows of a record's runs that are still wanted, with the same configuration and phantoms, and that are not
    completed in the store; of earlier records, which do not say what phantoms they had, none."""
    lacking = {key: run for key, run in wanted.items() if run.infra.status() != "completed"}
    same = {key: (run.config.digest(), run.data) for key, run in lacking.items()}
    columns = rows.reindex(columns=["arm", "seed", "config", "key"]).itertuples(index=False)
    return rows[[same.get((arm, seed)) == (config, key) for arm, seed, config, key in columns]]


def _compute(run: Run) -> None:
    folder = run.folder()
    try:
        # outside the cache, which would keep the refusal as a result
        with filelock.FileLock(folder / "lock", timeout=0):
            run.result()
    except filelock.Timeout:
        raise StudyError(f"{folder}: another process is training this run") from None


def results(study: str, profile: str, seeds: int, store: Path) -> dict[tuple[str, int], trainer.History]:
    """The histories of a study by (arm, seed), computed where they are missing; diverged ones say so in `failed`.

    The full profile is computed only where there is a GPU; without one its missing runs are one clear line.
    """
    wanted = members(study, profile, seeds, store)
    missing = sum(run.infra.status() != "completed" for run in wanted.values())
    if missing and profile == "full" and not torch.cuda.is_available():
        raise ConfigError(
            f"study {study}: {missing} of {len(wanted)} full runs are missing and this machine has no GPU"
        )
    compute(wanted)
    return {key: run.result() for key, run in wanted.items()}
