"""How fast the trainer is: each of its settings changed alone, as a ratio to the loop that one writes first."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import losses, machine, memory, stats, trainer
from ..config import Config, Profile, replace
from ..inference import mixed, network
from .naive import CONTIGUOUS, naive_loop
from .roofline import product_speed

NAIVE, OWN = "naive loop", "trainer"
CHANNELS_LAST = torch.channels_last_3d
GAIN = 0.2  # in speed: the least that is expected of mixed precision
HARDWARE = 0.3  # of fp32's speed: a product below it is emulated


@dataclass(frozen=True)
class Size:
    """What is timed: rounds over all ways, epochs of a run after its first, batches an epoch; epochs of a whole run.

    `product` is the side of the matrices whose product is the arithmetic ceiling.
    """

    rounds: int
    epochs: int
    batches: int
    run_epochs: int
    product: int
    tracking: str
    compiler: bool = False  # also on a CPU


SIZES = {
    "smoke": Size(rounds=1, epochs=2, batches=2, run_epochs=2, product=256, tracking="disabled"),
    "quick": Size(rounds=3, epochs=2, batches=2, run_epochs=6, product=1024, tracking="offline"),
    "full": Size(rounds=3, epochs=2, batches=4, run_epochs=3, product=2048, tracking="offline", compiler=True),
}
ON_GPU = {"batches": 64, "product": 8192}  # a GPU's epoch of few batches would be all start and end


def size_of(profile: str, on: str) -> Size:
    """What a profile times on a device."""
    return dataclasses.replace(SIZES[profile], **(ON_GPU if on == "cuda" else {}))


@dataclass(frozen=True)
class Way:
    """One way to train: `factor` is what differs from the trainer's own settings, `setting` how.

    `naive` are the options of `naive_loop`, None for the trainer; `absent` says why it is not run here.
    """

    factor: str
    setting: str
    config: Config
    naive: Mapping[str, Any] | None = None
    absent: str = ""


@dataclass(frozen=True)
class Timed:
    """Samples/s of one run and, on CUDA, the most that the allocator has held."""

    speed: float
    gpu_peak_mb: float = float("nan")


def base(profile: Profile, size: Size) -> Config:
    """The profile's own run, shortened: a few batches an epoch, one phantom to validate and one to test."""
    batch = profile.base.training.batch
    n = size.batches * batch
    return replace(
        profile.base,
        {
            "data.measurements": None,
            "data.phantoms": n + 2,
            "data.fractions": (n, 1, 1),
            "training.epochs": 1 + size.epochs,
        },
    )


def precisions(on: str) -> dict[str, torch.dtype]:
    """The precisions that the machine multiplies in hardware, found by trying, and the one that it trains in.

    On a busy machine a trial may find even that one wanting.
    """
    known, own = machine.PRECISIONS, machine.precision("auto", on)
    speeds = {name: product_speed(dtype, on, 256) for name, dtype in known.items()}
    return {n: known[n] for n, speed in speeds.items() if speed >= HARDWARE * speeds["fp32"] or known[n] == own}


def ways(own: Config, size: Size, on: str, able: Mapping[str, torch.dtype]) -> list[Way]:
    """The naive loop first, then its variants, the trainer, and the trainer with one setting changed."""
    batch, used = own.training.batch, machine.precision(own.training.precision, on)
    legacy = replace(own, {"model.name": "legacy"})
    low = used if used != torch.float32 else torch.bfloat16
    name = machine.named(low)
    found = [Way(NAIVE, "fp32, contiguous", own, {})]
    found += [Way("memory format", "naive loop, channels-last", own, {"layout": CHANNELS_LAST})]
    found += [Way("naive precision", f"naive loop, {name}", own, {"dtype": low})]
    found += [Way("memory format", f"naive loop, {name}, channels-last", own, {"dtype": low, "layout": CHANNELS_LAST})]
    found += [Way("network", "legacy, naive loop", legacy, {}), Way("network", "legacy", legacy)]
    found += [Way(OWN, f"as it is, batch {batch}", own)]
    for key, dtype in machine.PRECISIONS.items():
        if dtype != used:
            absent = "" if key in able else "not in this machine's hardware"
            found += [Way("precision", key, replace(own, {"training.precision": key}), None, absent)]
    found += [_compiled(own, mode, size, on) for mode in ("off", "default", "graphs")]
    found += [Way("batch", f"{n}", replace(own, {"training.batch": n})) for n in (batch // 2, 2 * batch)]
    found += [Way("accumulation", f"{n} x {batch // n}", replace(own, {"training.micro": batch // n})) for n in (2, 4)]
    found += [Way("gradient checkpointing", "on", replace(own, {"training.checkpointing": True}))]
    return [way for way in found if way.absent != OWN]


def _compiled(own: Config, mode: str, size: Size, on: str) -> Way:
    absent = ""
    if mode == ("default" if on == "cuda" else "off"):
        absent = OWN
    elif on != "cuda" and mode == "graphs":
        absent = "CUDA only"
    elif on != "cuda" and not (size.compiler and shutil.which("c++")):
        absent = "not in this profile on a CPU" if shutil.which("c++") else "no compiler"
    return Way("compile", mode, replace(own, {"training.compile": mode}), None, absent)


def timed(way: Way, on: str, steps: int) -> Timed:
    """Samples/s of the median epoch of a run after the first, or of the median step of the naive loop."""
    if way.naive is not None:
        return Timed(naive_loop(way.config, dense_ssim=False, steps=1 + steps, on=on, **way.naive))
    with tempfile.TemporaryDirectory() as folder:
        history = trainer.fit(way.config, Path(folder), on, save_every=float("inf"))
    samples = history.info["samples_seen"] / len(history.epochs)
    return Timed(samples / history.epochs["seconds"][1:].median(), history.info["gpu_peak_mb"] or float("nan"))


def measure(chosen: Sequence[Way], size: Size, on: str) -> pd.DataFrame:
    """Every way once a round, each round beginning with another one: round, factor, setting, speed, gpu_peak_mb.

    The ratio of a round is taken to the first way of that round: on a shared machine the load changes between rounds.
    """
    rows, present = [], [way for way in chosen if not way.absent]
    for number in range(size.rounds):
        first = number % len(present)
        for way in present[first:] + present[:first]:
            rows.append({"round": number, "factor": way.factor, "setting": way.setting})
            rows[-1] |= vars(timed(way, on, size.batches * size.epochs))
    return pd.DataFrame(rows)


def table(times: pd.DataFrame, chosen: Sequence[Way], on: str) -> pd.DataFrame:
    """A row per way: median speed, median ratio to the naive loop with its range over rounds, memory for backward."""
    speed = times.pivot_table(index=["factor", "setting"], columns="round", values="speed", sort=False)
    ratio = speed / speed.loc[NAIVE].iloc[0]
    rows = []
    for way in chosen:
        key, row = (way.factor, way.setting), {"factor": way.factor, "setting": way.setting}
        if not way.absent:
            row |= {"samples/s": speed.loc[key].median(), "ratio": ratio.loc[key].median()}
            row |= {"lowest": ratio.loc[key].min(), "highest": ratio.loc[key].max()}
            row |= {"kept, MB": kept_bytes(way, on) / 1e6}
            if on == "cuda":
                row["allocator's peak, MB"] = times.set_index(["factor", "setting"]).loc[key, "gpu_peak_mb"].max()
        rows.append(row | {"note": way.absent})
    return pd.DataFrame(rows)


def kept_bytes(way: Way, on: str) -> float:
    """Bytes that autograd keeps for the backward pass of one (micro-)batch; NaN for what a compiler arranges.

    Counted, not measured: the same on every machine that runs the same operators. It is what is left after the
    forward pass; with checkpointing, the backward pass holds one block's activations beside it.
    """
    options, training, grid = way.naive, way.config.training, way.config.data.grid
    automatic = training.compile == "auto" and on == "cuda" and not training.checkpointing
    if options is None and (automatic or training.compile in ("default", "graphs")):
        return float("nan")
    own = {"dtype": machine.precision(training.precision, on), "layout": CHANNELS_LAST}
    options = own if options is None else {"dtype": torch.float32, "layout": CONTIGUOUS} | options
    model = network(way.config).to(on, memory_format=options["layout"]).train()
    n = training.micro if isinstance(training.micro, int) else training.batch
    x = torch.zeros(n, 2, grid, grid, grid, device=on).contiguous(memory_format=options["layout"])

    def work() -> Tensor:
        with mixed(on, options["dtype"]):
            y = model(x)
        criterion = losses.Criterion(way.config.loss, model.standard)
        return criterion.total(criterion(y, x))

    return memory.kept(work, model)


def gradients(config: Config, checkpointing: bool) -> dict[str, Tensor]:
    """The gradients of one batch of made-up volumes in fp32, and the running statistics that it leaves, by name."""
    changed = replace(config, {"training.checkpointing": checkpointing})
    model, grid = network(changed).train(), config.data.grid
    volumes = torch.rand(4, 2, grid, grid, grid, generator=torch.Generator().manual_seed(0))
    losses.rmse(model(volumes), volumes).backward()
    return {name: p.grad for name, p in model.named_parameters()} | dict(model.named_buffers())


def checkpointed(own: Config) -> list[Way]:
    """The trainer without and with gradient checkpointing, not compiled."""
    factor, fields = "gradient checkpointing", ("training.checkpointing", "training.compile")
    return [
        Way(factor, name, replace(own, dict(zip(fields, (on, "off"), strict=True))))
        for name, on in (("off", False), ("on", True))
    ]


def answer(table: pd.DataFrame, times: pd.DataFrame) -> str:
    """The trainer beside the naive loop, and what each changed setting does to it, in words."""
    run = table[table["note"] == ""].set_index(["factor", "setting"])
    own = run.loc[OWN].iloc[0]
    same = run.drop(index="network", level=0, errors="ignore")  # the same network
    lines = [
        f"* **Faster than the trainer as it is: {factor}, {setting}** ({row['ratio'] / own['ratio']:.2f} times)."
        for (factor, setting), row in same.iterrows()
        if _apart(row, own) and row["lowest"] > own["highest"]
    ]
    lines += [
        f"* The trainer as it is takes {own['samples/s']:.0f} samples/s, {own['ratio']:.2f} times the naive loop "
        f"({own['lowest']:.2f} to {own['highest']:.2f} over the rounds). Beside it, where the ranges of the ratios "
        "do not overlap:"
    ]
    for (factor, setting), row in run.drop(index=[OWN, NAIVE], level=0).iterrows():
        ratio = row["ratio"] / own["ratio"]
        speed = f"{ratio:.2f} times the trainer's speed" if _apart(row, own) else "speed not resolved"
        kept = row["kept, MB"] / own["kept, MB"]
        room = f", {kept:.2f} times the memory kept" if kept == kept else ""
        lines.append(f"* {factor}, {setting}: {speed}{room}.")
    if ("precision", "fp32") in run.index:
        lines.append(_mixed_precision(times))
    return "\n".join([*lines, *(f"* {r.factor}, {r.setting}: {r.note}." for r in table.itertuples() if r.note)])


def _apart(row: pd.Series, own: pd.Series) -> bool:
    """Whether the ranges of two ratios leave a gap; of one round there is no range."""
    return own["lowest"] < own["highest"] and (row["lowest"] > own["highest"] or row["highest"] < own["lowest"])


def _mixed_precision(times: pd.DataFrame) -> str:
    """H13's speed: the trainer over itself in fp32, round by round, with Student's interval of the mean logarithm."""
    of = {key: rows.set_index("round")["speed"] for key, rows in times.groupby(["factor", "setting"])}
    [own] = [speed for (factor, _), speed in of.items() if factor == OWN]
    found = stats.per_cent(stats.seeds_interval(np.log(own / of["precision", "fp32"])))
    verdict = stats.judge(found, 100 * GAIN).verdict
    return (
        f"* **H13, speed: {verdict}** at this size. Expected of mixed precision: {GAIN:.0%} or more. Here: "
        f"{found.estimate:+.0f} % [{found.low:+.0f}, {found.high:+.0f}] over {found.n} round{'s' * (found.n > 1)}."
    )


def checkpointing_answer(table: pd.DataFrame, kept: Sequence[float]) -> str:
    """What gradient checkpointing saves and costs, in words; `kept` without and with it, bytes."""
    run = table.set_index(["factor", "setting"])["samples/s"].dropna()
    plain = run.get(("compile", "off"), run.loc[OWN].iloc[0])  # the trainer does not compile what it computes twice
    time_ratio = plain / run.loc["gradient checkpointing", "on"]
    return (
        f"Checkpointing keeps {kept[1] / 1e6:.1f} MB instead of {kept[0] / 1e6:.1f} MB for the backward pass "
        f"({1 - kept[1] / kept[0]:.0%} less), and a step takes {time_ratio:.2f} times as long (medians)."
    )
