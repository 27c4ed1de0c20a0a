"""Studies: arms x paired seeds, each run computed once and kept."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Protocol

import pandas as pd
import torch
from tqdm.auto import tqdm

from . import arms as known
from . import config as configuration
from . import factors, machine, records, slurm, tracking, workers
from .config import Config, ConfigError, Data, Optim
from .data import dataset, samples
from .run import FAILURES, Run, StudyError
from .standing import status as status
from .trainer import History
from .workers import Ended, Terminated, cpu_cores, end_with_driver

Key = tuple[str, int]  # arm, seed
PLACES = ("here", "slurm")


def runs(arms: Iterable[str], profile: str, seeds: int, store: Path, first: int = 0) -> dict[Key, Run]:
    """The runs of some arms, by (arm, seed): seeds from `first` on are paired over the arms.

    A run's name holds its data's key and the precision that this machine resolves: neither is ever mixed up. Raises
    ConfigError for an arm that rests on tuning which is not computed, whose micro-batch would depend on the machine, or
    that differs from the arm that it is compared with in more than it declares.
    """
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
            wanted[arm, seed] = Run(config=config, data=data_of(config, keys), store=store)
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
    if any(not run.done() for run in wanted.values()):
        scores = _recorded(wanted, configuration.root() / "results" / "4.3-tuning")
        if scores is None:
            return None
    else:
        histories = {key: run.result() for key, run in wanted.items()}
        scores = {key: h.epochs["nrmse_mua"].iloc[-1] for key, h in histories.items() if not h.failed}
    if not scores:
        raise StudyError(f"tuning of {candidate}: every run diverged")
    return wanted[min(scores, key=scores.get)].config.optim


def _recorded(wanted: dict[Key, Run], folder: Path) -> dict[Key, float] | None:
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


def members(study: str, profile: str, seeds: int, store: Path) -> dict[Key, Run]:
    """The runs of a study; 0 seeds: its own number, or the profile's."""
    chosen = configuration.named("study", known.STUDIES, study)
    return runs(
        chosen.arms, profile, seeds or chosen.seeds or configuration.profile(profile).seeds, store, chosen.first
    )


def compute(wanted: Mapping[Key, Run], on: str = "here", per_gpu: int = 1) -> None:
    """Compute what is missing, in the order given, and first the runs that others rest on.

    `here`: on this machine, in spawned workers: `per_gpu` for each visible GPU, else one for each core. A worker trains
    one run at a time with its share of the cores: runs beside each other use cores better than threads within a run.
    `slurm`: a job for each run, as `slurm.run` says. Raises StudyError, a line for each run that failed; the others are
    kept. A lock keeps a second driver out of a run that is being trained.
    """
    # by folder: arms that come to the same configuration are one run
    folders = {}
    for key, run in wanted.items():
        if run.done():
            run.describe()
        else:
            folders[run.path] = key
    missing = {key: wanted[key] for key in folders.values()}
    if not missing:
        return
    failures = []
    teachers = {key: teacher for key, run in missing.items() if (teacher := run.teacher())}
    try:
        first = {(f"autoencoder of {arm}", seed): teacher for (arm, seed), teacher in teachers.items()}
        compute(first, on, per_gpu)
    except StudyError as error:
        failures.append(str(error))
        lost = {key for key, teacher in teachers.items() if not teacher.done()}
        if not (missing := {key: run for key, run in missing.items() if key not in lost}):
            raise
    if on == "slurm":
        slurm.require()
    tracking.resolved()  # refused here, once, rather than in every run
    tracking.images()
    samples.prepare(run.config for run in missing.values())
    if on == "slurm":
        tasks = [slurm.RunTask(_name(key), run) for key, run in missing.items()]
        failures += slurm.run(tasks, tasks[0].it.store / "slurm")
    else:
        work = {_name(key): run for key, run in missing.items()}
        failed = here(work, len(wanted), per_gpu)
        failures += [line for name, line in failed.items() if not work[name].done()]  # another driver may have
    if failures:
        raise StudyError("\n".join(failures))


def _name(key: Key) -> str:
    return f"{key[0]}, seed {key[1]}"


class Work(Protocol):
    """What a worker is given: a run, or a trial of a sweep."""

    def result(self) -> object: ...


def here(missing: Mapping[str, Work], total: int, per_gpu: int, what: str = "run") -> dict[str, str]:
    """Do work, by name, on this machine, of a study or sweep of `total`; a line for each piece that failed.

    A worker that dies, killed for its memory perhaps, takes those beside it along: what is left is continued by half as
    many workers, down to one; one that dies alone has failed.
    """
    gpus, cores = torch.cuda.device_count(), cpu_cores()
    places = gpus * per_gpu or cores
    # as if nothing were done yet: a run's threads, and so its bits, do not depend on when it is continued
    threads = max(1, cores // min(total, places))
    failed: dict[str, str] = {}
    left, width = dict(missing), min(len(missing), places)
    with tqdm(total=len(left), desc=f"{what}s", unit=what, file=sys.stderr) as bar:
        while left:
            width = min(width, len(left))
            ended, broken = _round(left, width, (threads, gpus), bar)
            failed |= {key: line for key, line in ended.items() if line}
            left = {key: run for key, run in left.items() if key not in ended}
            if broken and width > 1:
                width //= 2
                line = f"a worker died (memory?); {len(left)} {what}s go on with {width} at a time"
                bar.write(f"dotlib: {line}", file=sys.stderr)  # not behind the bar
            elif broken:
                key = next(iter(left))
                failed[key] = f"{key}: a worker died (memory?); start again to continue"
                del left[key]
                width = min(len(missing), places)
                bar.update()
    return failed


def _round(work: dict[str, Work], width: int, share: tuple[int, int], bar: tqdm) -> tuple[dict[str, str], bool]:
    """What came of the work that ended, empty where it is a result, and whether a worker died."""
    context, ended, others, before = get_context("spawn"), {}, set(active_children()), bar.n
    slots = context.Queue()
    for slot in range(width):
        slots.put(slot)
    with ProcessPoolExecutor(width, context, _start_worker, (slots, *share)) as pool, _ended_with_driver(pool):
        pending = {}
        for key, it in work.items():
            with contextlib.suppress(BrokenProcessPool):  # a worker may die as it starts
                pending[pool.submit(_compute, it)] = key
        broken = len(pending) < len(work)
        for future in as_completed(pending):
            if broken := broken or isinstance(future.exception(), BrokenProcessPool):
                break
            bar.update()
        if broken:  # a pool that breaks while it starts a worker waits for that one forever
            left = set(active_children()) - others
            workers.end_gently(left)
            for worker in left:
                worker.kill()
    for future, key in pending.items():
        if not future.done():
            continue
        try:
            future.result()
        except BrokenProcessPool:
            continue
        except FAILURES as error:
            ended[key] = f"{key}: {str(error) or type(error).__name__}"
        else:
            ended[key] = ""
    bar.update(before + len(ended) - bar.n)
    return ended, broken


@contextlib.contextmanager
def _ended_with_driver(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Interrupted anywhere, as it starts workers too, this ends them; their runs continue from their checkpoints."""
    try:
        yield
    except KeyboardInterrupt as reason:
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(reason, Terminated):
            workers.end_gently(active_children())
        for worker in active_children():
            worker.kill()
        raise


def _start_worker(slots, threads: int, gpus: int) -> None:
    end_with_driver()
    workers.end_when_asked()
    slot = slots.get()
    if gpus:
        torch.cuda.set_device(slot % gpus)
    torch.set_num_threads(threads)


def _compute(work: Work) -> None:
    if workers.asked_to_end():
        raise Ended("not begun")
    work.result()


def elsewhere(rows: pd.DataFrame, wanted: dict[Key, Run]) -> pd.DataFrame:
    """The rows of a record's runs that are still wanted, with the same configuration and phantoms, and that are not
    completed in the store; of earlier records, which do not say what phantoms they had, none."""
    lacking = {key: run for key, run in wanted.items() if not run.done()}
    same = {key: (run.config.digest(), run.data) for key, run in lacking.items()}
    columns = rows.reindex(columns=["arm", "seed", "config", "key"]).itertuples(index=False)
    return rows[[same.get((arm, seed)) == (config, key) for arm, seed, config, key in columns]]


def results(study: str, profile: str, seeds: int, store: Path) -> dict[Key, History]:
    """The histories of a study by (arm, seed), computed where they are missing; diverged ones say so in `failed`.

    The full profile is computed only where there is a GPU; without one its missing runs are one clear line.
    """
    wanted = members(study, profile, seeds, store)
    missing = sum(not run.done() for run in wanted.values())
    if missing and profile == "full" and not torch.cuda.is_available():
        raise ConfigError(
            f"study {study}: {missing} of {len(wanted)} full runs are missing and this machine has no GPU"
        )
    compute(wanted)
    return {key: run.result() for key, run in wanted.items()}
