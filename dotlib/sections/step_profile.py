"""Where the time of a training step goes, by the profiler's operators, and that of a whole run, by its parts."""

from __future__ import annotations

import cProfile
import functools
import inspect
import os
import pstats
import re
import resource
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from .. import evaluation, optim, tracking, trainer
from ..config import Config, replace
from ..journal import Journal
from ..monitor import Monitor

FORWARD, BACKWARD, LINEAR = "convolution, forward", "convolution, backward", "linear"
PRODUCTS = (FORWARD, BACKWARD, LINEAR)
NAMES = (  # the first that matches the operator's name
    ("Python", r"^<|\(\d+\): |^nn\.module|^torch-|^pytorch"),
    (BACKWARD, r"conv\w*backward"),
    (FORWARD, r"conv(olution|_transpose|\d?d)"),
    (LINEAR, r"^(addmm|mm|bmm|linear|matmul)(backward0)?$"),
    ("normalisation", r"batch_?norm"),
    ("optimiser", r"^optimizer\.|fused_adam|foreach|vector_norm|lerp"),
    ("data", r"^(index|index_select)$"),
    ("copies", r"^(copy_|_?to_?copy(backward0)?|to|clone(backward0)?|contiguous|cat|stack|reshape)$|^(memcpy|memset)"),
    ("copies", r"^(zero_|zeros|zeros_like|new_zeros|fill_|ones_like)$"),
    ("compiled", r"triton|compiled"),
    ("element-wise", r"^(relu|threshold|add|sub|rsub|mul|div|pow|square|sqrt|sigmoid|softplus|mean|sum)"),
    ("element-wise", r"^(exp|neg|log|abs|reciprocal|slice|select|where|eq|clamp|isfinite|any|all|accumulategrad)"),
)  # fmt: skip
RANGES = (  # whatever happens in these functions is theirs
    ("loss", r"dotlib.losses\.py"),
    ("data", r"dotlib.inference\.py\(\d+\): prepared"),
    ("optimiser", r"^Optimizer\.|dotlib.optim\.py|clip_grad_norm_$"),
    ("validation", r"dotlib.trainer\.py\(\d+\): validate"),
    ("checkpoints", r"dotlib.journal\.py\(\d+\): keep"),
)
APART = ("validation", "checkpoints")  # not of a step
CLASSES = tuple(dict.fromkeys([*(name for name, _ in NAMES[1:]), "loss", "Python", "other", *APART, "unaccounted"]))

BUSY = 0.85  # of the time: the target for a GPU
TARGET = 0.03  # share of a run that checkpoints, tracking and monitoring may take,
JUDGED = 300.0  # seconds at least
OVERHEAD = ("checkpoints", "tracking", "monitoring")
PARTS = {  # of a run, by the functions in which they happen
    "validation": (trainer.validate,),
    "checkpoints": (Journal.keep,),
    "tracking": (tracking.Tracker.epoch, trainer._slices),
    "monitoring": (Monitor.row, optim.update_ratio, optim.second_moment),
    "judgement of the test set": (evaluation.judge,),
}


@functools.cache
def class_of(operator: str) -> str:
    """The class of an operator (`aten::relu`), of its backward node (`ReluBackward0`) or of a kernel, by name."""
    name = operator.removeprefix("autograd::engine::evaluate_function: ").removeprefix("torch::autograd::")
    name = name.removeprefix("aten::").lower()
    return next((label for label, pattern in NAMES if re.search(pattern, name)), "other")


@dataclass(frozen=True)
class StepProfile:
    """Seconds per step by class (columns class, seconds), with what the wall clock has beyond them as `unaccounted`.

    `total`: the profiler's own sum, over its outermost events; `wall`: seconds per step; `steps`: how many were seen.
    """

    times: pd.DataFrame
    total: float
    wall: float
    steps: int

    @property
    def unaccounted(self) -> float:
        """Share of the wall time that no event covers."""
        return 1 - self.times.loc[self.times["class"] != "unaccounted", "seconds"].sum() / self.wall

    @property
    def step(self) -> float:
        """Seconds of a step without the validation and the checkpoints that follow it."""
        return self.wall - self.times.loc[self.times["class"].isin(APART), "seconds"].sum()


def of_steps(config: Config, on: str) -> StepProfile:
    """Profile whole epochs of `fit`, the first and the last left out.

    On a GPU seconds are those of its kernels, and `unaccounted` is when it waits. Python is traced as well, which tells
    the loss from other arithmetic, and slows the steps by some per cent.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler prints its own start and end
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (on == "cuda")
    recorder, clock = profile(activities=activities, with_stack=True, acc_events=True), []

    def mark(row: dict) -> None:
        if row["epoch"] == 0:
            recorder.start()
            clock.append(time.perf_counter())
        elif row["epoch"] == config.training.epochs - 2:
            clock.append(time.perf_counter())
            recorder.stop()

    with tempfile.TemporaryDirectory() as folder:
        history = trainer.fit(config, Path(folder), on, mark, save_every=float("inf"))
    epochs = config.training.epochs - 2
    steps = epochs * len(history.steps) // config.training.epochs
    return _profiled(recorder.events(), clock[1] - clock[0], steps, on == "cuda")


def _profiled(events: list[FunctionEvent], wall: float, steps: int, gpu: bool) -> StepProfile:
    spent: Counter = Counter()
    own = [event for event in events if event.device_type == DeviceType.CPU]
    if not gpu:  # the monitor's thread runs beside the steps
        [(thread, _)] = Counter(event.thread for event in own).most_common(1)
        own = [event for event in own if event.thread == thread]
    for event in own:
        spent[place(event)] += (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e6 / steps
    outermost = [event for event in own if event.cpu_parent is None]
    total = sum(event.device_time_total if gpu else event.cpu_time_total for event in outermost) / 1e6 / steps
    spent["unaccounted"] = wall / steps - sum(spent.values())
    rows = [{"class": name, "seconds": spent[name]} for name in CLASSES if spent[name]]
    return StepProfile(pd.DataFrame(rows), total, wall / steps, steps)


def place(event: FunctionEvent) -> str:
    """An event's class: that of the outermost function of RANGES around it, else the one of its own name."""
    found, outer = "", event
    while outer is not None:
        found = range_of(outer.name) or found
        outer = outer.cpu_parent
    return found or class_of(event.name)


@functools.cache
def range_of(name: str) -> str:
    return next((label for label, pattern in RANGES if re.search(pattern, name)), "")


def of_run(config: Config, epochs: int, mode: str) -> tuple[trainer.History, pd.DataFrame]:
    """A run of `epochs` with checkpoints, monitor and tracker: its history, and where its wall time went.

    Columns part, seconds, share: the shares are of its epochs (steps, validation and OVERHEAD). The tracker's recorder
    is a process of its own: its CPU time passes beside the run.
    """
    config = replace(config, {"data.measurements": None, "training.epochs": epochs})
    clock, before = cProfile.Profile(builtins=False), resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        tracker = tracking.start(config, Path(folder), {"study": "4.7"}, mode)
        start = time.perf_counter()
        history = clock.runcall(trainer.fit, config, Path(folder), tracker=tracker)
        wall, start = time.perf_counter() - start, time.perf_counter()
        tracker.finish()
        ending = time.perf_counter() - start
    spent = seconds_in(clock)
    spent["steps"] = history.epochs["seconds"].sum() - spent["validation"] - spent["monitoring"]
    spent["start-up"] = wall - sum(spent.values())
    spent["end of tracking"] = ending
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent["recorder, CPU time beside the run"] = sum(after[:2]) - sum(before[:2])
    return history, shares(spent)


def seconds_in(clock: cProfile.Profile) -> dict[str, float]:
    """Seconds in the functions of each of PARTS, with what they call."""
    codes = {part: [inspect.unwrap(function).__code__ for function in functions] for part, functions in PARTS.items()}
    cumulative = {key: seconds for key, (*_, seconds, _) in pstats.Stats(clock).stats.items()}
    return {
        part: sum(cumulative.get((c.co_filename, c.co_firstlineno, c.co_name), 0.0) for c in found)
        for part, found in codes.items()
    }


def shares(spent: dict[str, float]) -> pd.DataFrame:
    """Parts of a run with their share of its epochs; NaN for what happens once, before or after them."""
    of_epochs = ("steps", "validation", *OVERHEAD)
    total = sum(spent[part] for part in of_epochs)
    order = [*of_epochs, *(part for part in spent if part not in of_epochs)]
    rows = [{"part": p, "seconds": spent[p], "share": spent[p] / total if p in of_epochs else np.nan} for p in order]
    return pd.DataFrame(rows)


def overhead(run: pd.DataFrame) -> float:
    """The share of a run's epochs that checkpoints, tracking and monitoring take."""
    return run.set_index("part").loc[list(OVERHEAD), "share"].sum()


def answer(run: pd.DataFrame, history: trainer.History) -> str:
    """The overhead beside its target, and how busy the GPU was, in words."""
    share, busy = overhead(run), history.epochs["gpu_busy"][1:].dropna().median()
    seconds = history.epochs["seconds"].sum()
    verdict = "within" if share <= TARGET else "not within"
    judged = f"{verdict} the target of {TARGET:.0%}" if seconds >= JUDGED else "too short to judge"
    lines = [
        f"* Checkpoints, tracking and monitoring took {share:.1%} of {seconds:.1f} s: {judged} (target: {TARGET:.0%}, "
        f"for {JUDGED:g} s or more). A long run writes checkpoints at least {trainer.SAVE_EVERY:g} s apart, and so "
        "rarely that they take a hundredth of the time.",
        f"* An epoch with its validation took {history.epochs['seconds'][1:].median():.2f} s (median after the first).",
        f"* GPU utilisation (NVML busy time): {busy:.0%}, target above {BUSY:.0%}."
        if busy == busy
        else "* GPU utilisation: unmeasured, no GPU.",
    ]
    return "\n".join(lines)
