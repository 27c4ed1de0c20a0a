"""A Slurm cluster: what is asked of it, its queue, and how work is submitted.

What a job may have is said by slurm.yaml in the project's folder, or by the environment, which goes first:
DOTLIB_SLURM_PARTITION, and so on for each field of `Cluster`.
"""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, model_validator

from . import config as configuration
from .config import ConfigError
from .config_parts import Frozen, Positive

if TYPE_CHECKING:
    from submitit.slurm.slurm import SlurmExecutor

PREFIX = "DOTLIB_SLURM_"
TEXTS = ("partition", "account", "qos", "constraint")  # as Slurm takes them, 0123 and [a|b] too
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

    @model_validator(mode="after")
    def _in_time(self) -> Cluster:
        if self.warning >= 60 * self.minutes:
            raise ValueError(f"warning {self.warning} s before a limit of {self.minutes} min: less is accepted")
        return self


class SlurmError(RuntimeError):
    """Slurm is not there, refuses, or does not answer, as one line."""


def asked(home: Path | None = None) -> Cluster:
    """What slurm.yaml in `home` (the project's folder) and the environment, which goes first, say."""
    path = (home or configuration.root()) / "slurm.yaml"
    found = _parsed(path.read_text(encoding="utf-8"), str(path)) if path.exists() else {}
    if not isinstance(found or {}, dict):
        raise ConfigError(f"{path}: a mapping of {', '.join(Cluster.model_fields)} is accepted")
    given = {key[len(PREFIX) :].lower(): value for key, value in os.environ.items() if key.startswith(PREFIX)}
    given = {
        name: text or None if name in TEXTS else _parsed(text, PREFIX + name.upper()) for name, text in given.items()
    }
    return configuration.validate(Cluster, (found or {}) | given, "slurm")


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from None


def queue() -> dict[str, str]:
    """The state of each of the user's jobs that Slurm still knows of, by id (of array jobs NUMBER_INDEX).

    Raises SlurmError where there is no Slurm, or it does not answer.
    """
    command = ["squeue", "--user", getpass.getuser(), "--noheader", "--array", "--states", "all", "--format", "%i %T"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except FileNotFoundError:
        raise SlurmError("slurm: no squeue on this machine; --on here computes without") from None
    except subprocess.TimeoutExpired:
        raise SlurmError("slurm: squeue has not answered for 60 s") from None
    except subprocess.CalledProcessError as error:
        raise SlurmError(f"slurm: {' '.join(error.stderr.split())}") from None
    return dict(line.split() for line in text.splitlines())


def executor(wanted: Cluster, folder: Path, at_a_time: int) -> SlurmExecutor:
    """Raises SlurmError where there is no Slurm on this machine."""
    from submitit.slurm.slurm import SlurmExecutor  # only where something is submitted

    if not shutil.which("sbatch"):
        raise SlurmError("slurm: no sbatch on this machine; --on here computes without")
    # the job is Python itself, which then gets the signals that Slurm sends to the shell of a job, and its grace
    sender = SlurmExecutor(folder=folder / "%j", python=f"exec {shlex.quote(sys.executable)}")
    given = {"partition": wanted.partition, "account": wanted.account, "qos": wanted.qos}
    given |= {"constraint": wanted.constraint, "mem": wanted.memory and f"{round(1024 * wanted.memory)}M"}
    given |= {"gpus_per_node": wanted.gpus or None, "setup": list(wanted.setup) or None}
    sender.update_parameters(
        job_name="dotlib", time=wanted.minutes, nodes=1, ntasks_per_node=1, cpus_per_task=wanted.cpus,
        additional_parameters={"signal": f"B:USR2@{wanted.warning}", "requeue": True}, use_srun=False,
        array_parallelism=at_a_time, stderr_to_stdout=True,
        **{key: value for key, value in given.items() if value is not None},
    )  # fmt: skip
    return sender
