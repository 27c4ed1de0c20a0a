"""Work on a Slurm cluster: job arrays, through submitit, that fill the same store as work on this machine.

What a cluster grants is said by slurm.yaml in the project's folder, or by the environment: DOTLIB_SLURM_PARTITION, and
so on for each field of `Cluster`. Jobs are submitted as pickles that lie in the store's slurm/ folder; they are read by
the job alone, which runs as the user who wrote them, and nothing else in the store is one.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import filelock
import torch
import yaml
from pydantic import Field
from tqdm.auto import tqdm

from . import checkpoint, workers
from . import config as configuration
from .config import ConfigError
from .config_parts import Frozen, Positive
from .run import QUEUED, Run

if TYPE_CHECKING:
    from submitit.slurm.slurm import SlurmExecutor

PREFIX = "DOTLIB_SLURM_"
POLL = 5.0  # seconds between looks at the queue
LIVES = 3  # times that a job may be lost before its work counts as failed
LIVE = {  # states of a job that may yet run, or runs
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "STAGE_OUT", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING",
    "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD",
}  # fmt: skip


class Cluster(Frozen):
    """What is asked of Slurm for each job, and how many may run at a time."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    minutes: Positive = 240  # time limit; work that takes longer is queued again and continues
    warning: Positive = 120  # seconds before the limit at which it is kept
    gpus: int = Field(1, ge=0)
    cpus: Positive = 4
    memory: float | None = Field(None, gt=0)  # GB
    concurrency: Positive = 8
    setup: tuple[str, ...] = ()  # lines of shell before the work, such as "module load cuda"


class Task(Protocol):
    """Work of one job: when it is done can be seen from its files."""

    name: str

    @property
    def folder(self) -> Path: ...

    def done(self) -> bool: ...

    def failure(self) -> str: ...

    def forget_failure(self) -> None: ...

    def work(self) -> None: ...


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

    def failure(self) -> str:
        return self.it.failure()

    def forget_failure(self) -> None:
        self.it.forget_failure()

    def work(self) -> None:
        self.it.result()


def cluster(home: Path | None = None) -> Cluster:
    """What slurm.yaml in `home` (the project's folder) and the environment, which goes first, say."""
    path = (home or configuration.root()) / "slurm.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(found or {}, dict):
        raise ConfigError(f"{path}: a mapping of {', '.join(Cluster.model_fields)} is accepted")
    given = {key[len(PREFIX) :].lower(): value for key, value in os.environ.items() if key.startswith(PREFIX)}
    return configuration.validate(
        Cluster, (found or {}) | {key: yaml.safe_load(value) for key, value in given.items()}, "slurm"
    )


def queue() -> dict[str, str]:
    """The state of each of the user's jobs that Slurm still knows of, by id (of array jobs NUMBER_INDEX).

    Raises RuntimeError where there is no Slurm, or it does not answer.
    """
    command = ["squeue", "--user", getpass.getuser(), "--noheader", "--array", "--states", "all", "--format", "%i %T"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except FileNotFoundError:
        raise RuntimeError("slurm: no squeue on this machine; --on here computes without") from None
    except subprocess.TimeoutExpired:
        raise RuntimeError("slurm: squeue has not answered for 60 s") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"slurm: {' '.join(error.stderr.split())}") from None
    return dict(line.split() for line in text.splitlines())


def job_of(it: Run | Task) -> str:
    """The id of the last job of some work, empty where there was none."""
    folder = it.path if isinstance(it, Run) else it.folder
    try:
        return str(json.loads((folder / QUEUED).read_text(encoding="utf-8"))["job"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def run(tasks: Sequence[Task], wanted: Cluster | None = None, folder: Path | None = None) -> list[str]:
    """Have all tasks done by jobs, and watch them; a line for each that failed. `folder` is for Slurm's logs.

    Work that is queued already is only watched. Of the rest, `concurrency` jobs run at a time. A job that Slurm ends at
    its time limit, or preempts, keeps its work and is queued again; one that is lost (killed, out of memory, its node
    gone) is submitted again, LIVES times at most; one that the user cancels counts as failed. Interrupted, this leaves
    the jobs in the queue.
    """
    wanted = wanted or cluster()
    folder = folder or configuration.root() / "runs" / "slurm"
    watch = _Watch(tasks, wanted, folder)
    with tqdm(total=len(tasks), desc="jobs", unit="job", file=sys.stderr) as bar:
        while watch.left:
            watch.look()
            bar.set_postfix(watch.counts, refresh=False)
            bar.update(len(tasks) - len(watch.left) - bar.n)
            if watch.left:
                time.sleep(POLL)
    return watch.failures


class _Watch:
    """What is left of some tasks, by what their files and Slurm say."""

    def __init__(self, tasks: Sequence[Task], wanted: Cluster, folder: Path):
        self.left, self.wanted, self.folder = list(tasks), wanted, folder
        self.failures: list[str] = []
        self.counts: dict[str, int] = {}
        self.lost: Counter[str] = Counter()
        self.gone: dict[str, str] = {}  # jobs that were seen to have ended once: their files may be on their way
        self.mine: set[str] = set()  # jobs submitted here: an earlier one's failure is tried again

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
            return False
        if task.done():
            self._strike(task)
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
                print(f"dotlib: {task.name}: {what}; it is submitted again", file=sys.stderr)
                return True
            self._strike(task, f"{what}, the {LIVES}rd time; {self.folder / job} may say why")
        return False

    def _strike(self, task: Task, failure: str = "") -> None:
        self.left.remove(task)
        if failure:
            self.failures.append(f"{task.name}: {failure}")

    def _submit(self, tasks: Sequence[Task], at_a_time: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder / "submitting.lock"):
            states = queue()  # another driver may have submitted them
            tasks = [task for task in tasks if states.get(job_of(task)) not in LIVE]
            if not tasks:
                return
            executor = _executor(self.wanted, self.folder, at_a_time)
            for task in tasks:
                task.forget_failure()
            with executor.batch():
                jobs = [executor.submit(_Job(task, self.wanted)) for task in tasks]
            for task, job in zip(tasks, jobs, strict=True):
                task.folder.mkdir(parents=True, exist_ok=True)
                checkpoint.write(task.folder / QUEUED, json.dumps({"job": job.job_id}).encode())
                self.mine.add(job.job_id)


def _executor(wanted: Cluster, folder: Path, at_a_time: int) -> SlurmExecutor:
    """Raises RuntimeError where there is no Slurm on this machine."""
    from submitit.slurm.slurm import SlurmExecutor  # only where something is submitted

    if not shutil.which("sbatch"):
        raise RuntimeError("slurm: no sbatch on this machine; --on here computes without")
    # the job is Python itself, which then gets the signals that Slurm sends to the shell of a job, and its grace
    executor = SlurmExecutor(folder=folder / "%j", python=f"exec {shlex.quote(sys.executable)}")
    asked = {"partition": wanted.partition, "account": wanted.account, "qos": wanted.qos}
    asked |= {"constraint": wanted.constraint, "mem": wanted.memory and f"{wanted.memory:g}GB"}
    asked |= {"gpus_per_node": wanted.gpus or None, "setup": list(wanted.setup) or None}
    executor.update_parameters(
        job_name="dotlib", time=wanted.minutes, nodes=1, ntasks_per_node=1, cpus_per_task=wanted.cpus,
        additional_parameters={"signal": f"B:USR2@{wanted.warning}"}, use_srun=False,
        array_parallelism=at_a_time, stderr_to_stdout=True,
        **{key: value for key, value in asked.items() if value is not None},
    )  # fmt: skip
    return executor


@dataclass(frozen=True)
class _Job:
    """What is sent to Slurm: it does its task, and ends with 0, and in the queue again, where its time is up."""

    task: Task
    wanted: Cluster

    def __call__(self) -> None:
        torch.set_num_threads(self.wanted.cpus)
        workers.end_when_asked(signal.SIGTERM)  # preempted or cancelled: Slurm queues it again, or not
        workers.end_when_asked(signal.SIGUSR2, max(5.0, self.wanted.warning - 10.0), _queue_again)
        try:
            self.task.work()
        except workers.Ended as end:
            print(end, flush=True)
            if workers.asked_first() == signal.SIGUSR2:
                _queue_again()
            sys.exit(0)


def _queue_again() -> None:
    subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True, timeout=60)
