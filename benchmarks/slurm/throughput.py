"""How much of two Slurm "GPUs" a study uses, and what becomes of a job that is killed.

    eval "$(benchmarks/slurm/up.sh)"
    python benchmarks/slurm/throughput.py [--runs 24] [--seconds 90] [--json FILE]

Runs of equal cost, of one thread and about `--seconds` each, two at a time, beside two baselines: the seconds that
they trained by their own clocks, over two, which leaves out whatever else a run and its process do; and what a pair of
them takes `--on here` in the same call, times their number over two. The process of one running job is killed after a
quarter of the time: what it had in work is in neither.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch

from dotlib import arms, cluster, config, slurm, study
from dotlib.run import Run

AT_A_TIME = 2
ASKED = {"MINUTES": "60", "CPUS": "1", "GPUS": "1", "CONCURRENCY": str(AT_A_TIME)}


def pair(base: config.Config, epochs: int, store: Path) -> tuple[dict, float]:
    """Two runs beside each other without Slurm, and the seconds that they took together."""
    changed = [config.replace(base, {"training.epochs": epochs, "seed": 900 + i}) for i in range(AT_A_TIME)]
    wanted = {("pair", i): Run(config=one, data="0", store=store) for i, one in enumerate(changed)}
    start = time.monotonic()
    study.compute(wanted)
    return wanted, time.monotonic() - start


def process_of(job: str) -> psutil.Process | None:
    for process in psutil.process_iter():
        try:
            given, line = process.environ(), " ".join(process.cmdline())
        except psutil.Error:
            continue
        if f"{given.get('SLURM_ARRAY_JOB_ID')}_{given.get('SLURM_ARRAY_TASK_ID')}" == job and "submitit" in line:
            return process
    return None


class Heard(io.TextIOBase):
    """What the study says, and when."""

    def __init__(self):
        self.said: list[tuple[float, str]] = []

    def write(self, text: str) -> int:
        self.said.append((time.monotonic(), text))
        return sys.__stderr__.write(text)


def watched(wanted: dict, quarter: float) -> dict:
    """Compute the runs, kill a job on the way; what was seen of it."""
    seen = {"most at a time": 0, "killed": None, "seconds until noticed": None, "seconds until submitted again": None}
    done, heard = threading.Event(), Heard()

    def look() -> None:
        start = time.monotonic()
        killed, every = None, set()
        while not done.wait(1.0):
            states = cluster.queue()
            mine = {slurm.job_of(run): run for run in wanted.values()}
            every.update(mine)
            running = [job for job in every if states.get(job) == "RUNNING"]
            seen["most at a time"] = max(seen["most at a time"], len(running))
            if killed is None and time.monotonic() - start > quarter:
                job = next((job for job in running if job in mine and (mine[job].path / "last.pt").exists()), None)
                if job and (process := process_of(job)):
                    before = {run.path: _written(run) for run in wanted.values() if run.done()}
                    process.send_signal(signal.SIGKILL)
                    killed = mine[job], job, time.monotonic(), before
                    seen["killed"] = job
            elif killed and seen["seconds until submitted again"] is None and slurm.job_of(killed[0]) != killed[1]:
                seen["seconds until submitted again"] = time.monotonic() - killed[2]
        if killed:
            said = [moment for moment, text in heard.said if f"job {killed[1]} was lost" in text]
            seen["seconds until noticed"] = said[0] - killed[2] if said else None
            seen["finished runs touched"] = sum(
                _written(r) != killed[3][r.path] for r in wanted.values() if r.path in killed[3]
            )

    thread = threading.Thread(target=look)
    thread.start()
    start = time.monotonic()
    try:
        with contextlib.redirect_stderr(heard):
            study.compute(wanted, "slurm")
    finally:
        seen["seconds"] = time.monotonic() - start
        done.set()
        thread.join()
    return seen


def _written(run: Run) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in run.path.iterdir() if path.name != "lock"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ |= {f"DOTLIB_SLURM_{name}": value for name, value in ASKED.items()}
    os.environ |= {"WANDB_MODE": "disabled", "DOTLIB_PRECISION": "fp32"}
    torch.set_num_threads(1)
    plain = config.profile("quick").base.data.model_copy(update={"measurements": None})
    base = config.replace(arms.arm("stage1-adam", "quick"), {"data": plain, "training.precision": "fp32"})
    with tempfile.TemporaryDirectory() as folder:
        tried, _ = pair(base, 4, Path(folder))
        pace = max(run.result().epochs["seconds"].iloc[1:].mean() for run in tried.values())
        epochs = max(2, round(arguments.seconds / pace))
        _, here = pair(base, epochs, Path(folder))
        wanted = {}
        for seed in range(arguments.runs):
            changed = config.replace(base, {"training.epochs": epochs, "seed": seed})
            wanted["a", seed] = Run(config=changed, data="0", store=Path(folder))
        seen = watched(wanted, arguments.runs * arguments.seconds / AT_A_TIME / 4)
        trained = [run.result().epochs["seconds"].sum() for run in wanted.values()]
    found = {"runs": arguments.runs, "seconds of training, median": statistics.median(trained), "a pair here, s": here}
    found["share of training"] = sum(trained) / AT_A_TIME / seen["seconds"]
    found["beside --on here"] = here * arguments.runs / AT_A_TIME / seen["seconds"]
    found |= seen
    for name, value in found.items():
        print(f"{name:28} {value if not isinstance(value, float) else round(value, 3)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
