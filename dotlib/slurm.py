"""Work on a Slurm cluster: job arrays, through submitit, that fill the same store as work on this machine.

Jobs are submitted as pickles that lie beside their logs in the store's slurm/ folder. Each is read by its job alone,
which runs as the user who has just written it; nothing else in a store is a pickle.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import filelock
import torch
from tqdm.auto import tqdm

from . import checkpoint, workers
from .cluster import LIVE, Cluster, SlurmError, asked, executor, queue
from .config import ConfigError
from .run import FAILURE, QUEUED, Run

POLL = 5.0  # seconds between looks at the queue
PATIENCE = 600.0  # seconds without an answer from Slurm, a restart of its controller perhaps
LIVES = 3  # jobs that may be lost before their work counts as failed


class Task(Protocol):
    """Work of one job: when it is done can be seen from its files."""

    name: str

    @property
    def folder(self) -> Path: ...

    def done(self) -> bool: ...

    def busy(self) -> bool:
        """Whether some process works on it, be it of a job or not."""

    def failure(self) -> str: ...

    def keep_failure(self, line: str) -> None: ...

    def forget_failure(self) -> None: ...

    def work(self) -> None: ...


class FolderTask:
    """A task that is no run: why it failed is a line in its folder, and any number of processes may work on it."""

    folder: Path

    def busy(self) -> bool:
        return False

    def failure(self) -> str:
        path = self.folder / FAILURE
        return json.loads(path.read_text(encoding="utf-8"))["error"] if path.exists() else ""

    def forget_failure(self) -> None:
        (self.folder / FAILURE).unlink(missing_ok=True)

    def keep_failure(self, line: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write(self.folder / FAILURE, json.dumps({"error": line}).encode())


@dataclass(frozen=True)
class RunTask:
    """One run of a study."""

    name: str
    it: Run

    @property
    def folder(self) -> Path:
        return self.it.path

    def done(self) -> bool:
        return self.it.done()

    def busy(self) -> bool:
        return self.it.busy()

    def failure(self) -> str:
        return self.it.failure()

    def keep_failure(self, line: str) -> None:
        self.it.keep_failure(line)

    def forget_failure(self) -> None:
        self.it.forget_failure()

    def work(self) -> None:
        self.it.result()


def job_of(it: Run | Task) -> str:
    """The id of the last job of some work, empty where there was none."""
    folder = it.path if isinstance(it, Run) else it.folder
    try:
        return str(json.loads((folder / QUEUED).read_text(encoding="utf-8"))["job"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def run(tasks: Sequence[Task], folder: Path, wanted: Cluster | None = None) -> list[str]:
    """Have all tasks done by jobs, and watch them; a line for each that failed. `folder` is for the jobs' logs.

    Work that is queued already is only watched. Of the rest, `concurrency` jobs run at a time. A job that Slurm ends at
    its time limit, or preempts, keeps its work and is queued again; one that is lost (killed, out of memory, its node
    gone) is submitted again, until LIVES are lost; one that the user cancels counts as failed. Interrupted, this leaves
    the jobs in the queue.
    """
    watch = _Watch(tasks, wanted or asked(), folder)
    with tqdm(total=len(tasks), desc="jobs", unit="job", file=sys.stderr) as bar:
        heard = None
        while watch.left:
            try:
                watch.look()
                heard = time.monotonic()
            except SlurmError as error:
                if heard is None or time.monotonic() - heard > PATIENCE:
                    raise
                print(f"dotlib: {error}; the jobs go on", file=sys.stderr)
            bar.set_postfix(watch.counts, refresh=False)
            bar.update(len(tasks) - len(watch.left) - bar.n)
            if watch.left:
                time.sleep(POLL)
    return watch.failures


def require() -> None:
    """Raises SlurmError or ConfigError where nothing can be submitted, or jobs may compute in another precision.

    A run's precision is part of its name, and resolved where the command runs.
    """
    wanted = asked()
    queue()
    if wanted.gpus and not (torch.cuda.is_available() or os.environ.get("DOTLIB_PRECISION")):
        raise ConfigError(
            "slurm: jobs have a GPU and this machine has none; DOTLIB_PRECISION = bf16, fp32 or fp16, the same for all "
            "commands on these runs, says in what they compute"
        )


class _Watch:
    """What is left of some tasks, by what their files and Slurm say."""

    def __init__(self, tasks: Sequence[Task], wanted: Cluster, folder: Path):
        self.left, self.wanted, self.folder = list(tasks), wanted, folder
        self.failures: list[str] = []
        self.counts: dict[str, int] = {}
        self.lost: Counter[str] = Counter()
        self.gone: dict[str, str] = {}  # jobs that were seen to have ended once: their files may be on their way
        self.mine: set[str] = set()  # jobs that were submitted or live here: an earlier one's failure is tried again

    def look(self) -> None:
        """Take stock, and submit what needs it as far as may run beside what is queued."""
        states = queue()
        waiting = [task for task in list(self.left) if self._needs_job(task, states)]
        active = len(self.left) - len(waiting)
        live = [states[job] for task in self.left if (job := job_of(task)) in states]
        self.counts = {"running": live.count("RUNNING"), "queued": live.count("PENDING")}
        if waiting and active < self.wanted.concurrency:
            self._submit(waiting, self.wanted.concurrency - active)

    def _needs_job(self, task: Task, states: Mapping[str, str]) -> bool:
        """Whether it has no job; a task that has ended is struck off."""
        job = job_of(task)
        state = states.get(job, "gone")
        if state in LIVE:
            self.mine.add(job)
            return False
        if task.done():
            self._strike(task)
        elif task.busy():
            return False
        elif job not in self.mine:
            return True
        elif self.gone.get(task.name) != job:
            self.gone[task.name] = job
        elif line := task.failure():
            self._strike(task, line)
        elif state.startswith("CANCELLED"):
            self._strike(task, f"job {job} was cancelled; start again to continue")
        else:
            self.lost[task.name] += 1
            what = f"job {job} was lost ({state.lower()})"
            if self.lost[task.name] < LIVES:
                self.mine.remove(job)  # it has ended
                print(f"dotlib: {task.name}: {what}; it will be submitted again", file=sys.stderr)
                return True
            self._strike(task, f"{what}, the last of {LIVES}; {self.folder / job} may say why")
        return False

    def _strike(self, task: Task, failure: str = "") -> None:
        self.left.remove(task)
        if failure:
            self.failures.append(f"{task.name}: {failure}")
            task.keep_failure(failure)

    def _submit(self, tasks: Sequence[Task], at_a_time: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder / "submitting.lock"):
            states = queue()  # another driver may have submitted them
            tasks = [task for task in tasks if states.get(job_of(task)) not in LIVE]
            if not tasks:
                return
            sender = executor(self.wanted, self.folder, at_a_time)
            for task in tasks:
                task.forget_failure()
            with workers.uninterrupted():  # a job that nobody knows of would be submitted once more
                try:
                    with sender.batch():
                        jobs = [sender.submit(_Job(task, self.wanted)) for task in tasks]
                except RuntimeError as error:
                    raise SlurmError(f"slurm: {' '.join(str(error).split())[-300:]}") from None
                for task, job in zip(tasks, jobs, strict=True):
                    task.folder.mkdir(parents=True, exist_ok=True)
                    checkpoint.write(task.folder / QUEUED, json.dumps({"job": job.job_id}).encode())
                    self.mine.add(job.job_id)


@dataclass(frozen=True)
class _Job:
    """What is sent to Slurm: it does its task, and ends with 0, and in the queue again, where its time is up."""

    task: Task
    wanted: Cluster

    def __call__(self) -> None:
        torch.set_num_threads(self.wanted.cpus)
        workers.end_when_asked(signal.SIGTERM)  # preempted or cancelled: Slurm queues it again, or not
        workers.end_when_asked(signal.SIGUSR2, max(5.0, self.wanted.warning - 10.0), _queue_again_a_few_times)
        try:
            self.task.work()
        except workers.Ended as end:
            print(end, flush=True)
            if workers.asked_first() == signal.SIGUSR2:
                _queue_again()
            sys.exit(0)


def _queue_again() -> None:
    subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True, timeout=60)


def _queue_again_a_few_times() -> None:
    """Nothing was kept in time: after LIVES such jobs there will not be."""
    if int(os.environ.get("SLURM_RESTART_COUNT", 0)) < LIVES:
        _queue_again()
