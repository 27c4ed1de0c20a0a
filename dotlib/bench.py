"""Benchmarks: each part's speed as a ratio to a named baseline of the same call."""

import json
import math
import platform
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from . import config as configuration
from . import machine, trainer
from .bench_forward import bench_forward
from .bench_lift import bench_lift
from .bench_rows import rate, row
from .bench_sharing import bench_sharing
from .bench_store import bench_store
from .config import Profile
from .data import phantoms
from .inference import network
from .sections import step_profile
from .sections.naive import naive_loop
from .sections.roofline import product_speed


def run(part: str, profile: Profile, as_json: bool = False) -> None:
    """Print one part's rows: name, value, unit, baseline, ratio (value / baseline's), n, machine."""
    rows = configuration.named("benchmark", PARTS, part)(profile)
    kind = torch.cuda.get_device_name() if machine.device() == "cuda" else torch.backends.cpu.get_cpu_capability()
    where = f"{platform.machine()} {kind}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    if as_json:
        for line in rows:
            print(json.dumps(line | {"machine": where}))
    else:
        print(f"{part}: {where}")
        print(pd.DataFrame(rows).to_string(index=False, float_format="%.3g", na_rep=""))


def bench_phantoms(profile: Profile) -> list[dict]:
    """Sampling against one call a phantom; rasterising against every ellipsoid on every voxel."""
    n, grid = 32, profile.base.data.grid
    tables = phantoms.sample("default", n, 0)
    many = rate(lambda: phantoms.sample("default", 500, 0), 500)
    single = rate(lambda: [phantoms.sample("default", 1, 0, first=i) for i in range(50)], 50)
    rows = [row("sample, one call a phantom", single, "phantoms/s")]
    rows.append(row("sample", many, "phantoms/s", rows[0]["name"], single))
    for g in sorted({grid, 64}):
        whole = rate(lambda g=g: [rasterise_everywhere(t, g) for t in tables[:4]], 4, 3)
        fast = rate(lambda g=g: phantoms.rasterise(tables, g), n)
        rows.append(row(f"rasterise {g}^3, every voxel", whole, "phantoms/s", n=3))
        rows.append(row(f"rasterise {g}^3", fast, "phantoms/s", rows[-1]["name"], whole))
    return rows


def rasterise_everywhere(rows: np.ndarray, grid: int) -> Tensor:
    """A phantom's volume with every ellipsoid's fraction computed on the whole cube: the plain way."""
    voxel = phantoms.CUBE / grid
    x = (torch.arange(grid) + 0.5) * voxel - phantoms.CUBE / 2
    points = torch.stack(torch.meshgrid(x, x, x, indexing="ij"), -1)
    volume, tissue = torch.zeros(2, grid, grid, grid), None
    for part in rows[np.isfinite(rows[:, phantoms.MUA])].astype(np.float64):
        matrix = phantoms.Rotation.from_quat(part[phantoms.QUATERNION]).as_matrix()
        axes = torch.tensor(part[phantoms.AXES], dtype=torch.float32)
        body = (points - torch.tensor(part[phantoms.CENTRE]).float()) @ torch.tensor(matrix).float() / axes
        f = body.square().sum(-1).clamp_min(1e-12).sqrt()
        slope = (body / axes).square().sum(-1).sqrt() / f
        fraction = (0.5 - (f**3 - 1) / (3 * voxel * slope)).clamp(0, 1)
        value = torch.tensor(part[phantoms.MUA :]).float().view(2, 1, 1, 1)
        if tissue is None:
            tissue, volume = fraction, volume + value
        else:
            volume += fraction * (value - volume)
    return tissue * volume


def bench_training(profile: Profile) -> list[dict]:
    """Whole epochs of `fit`, validation included, against the naive loop; then the share of a bf16 product's speed.

    A CPU is spared the dense SSIM on 64^3, which costs more than the network.
    """
    on, base = machine.device(), _few(profile)
    legacy = configuration.replace(base, {"model.name": "legacy"})
    loops = {"legacy, naive loop: fp32, contiguous, .item()": naive_loop(legacy, dense_ssim=False)}
    if on == "cuda" or base.data.grid < 64:
        loops["legacy, the same with dense SSIM"] = naive_loop(legacy)
    rows = [row(name, speed, "samples/s", n=3) for name, speed in loops.items()]
    peak = product_speed(machine.precision("auto", on), on)
    for name in ("legacy", "stage1"):
        config = configuration.replace(base, {"model.name": name})
        speed, precision = _fitted(config)
        rows += [
            row(f"{name}, fit ({precision})", speed, "samples/s", baseline, base_rate, 3)
            for baseline, base_rate in loops.items()
        ]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(config)(torch.zeros(2, 2, *[config.data.grid] * 3))
        arithmetic = 3 * counter.get_total_flops() / 2 * speed / 1e9  # backward costs twice the forward pass
        rows.append(row(f"{name}, arithmetic", arithmetic, "GFLOP/s", "a 2048^3 matrix product", peak, 3))
    if on == "cuda" and base.data.grid == 64:
        epoch = configuration.replace(base, {"data.phantoms": 5002, "data.fractions": (5000, 1, 1)})
        rows.append(row("stage1, one epoch of 5,000 phantoms, 64^3", 5000 / _fitted(epoch)[0], "s", n=3))
    return rows


def bench_overhead(profile: Profile, seconds: float = step_profile.JUDGED) -> list[dict]:
    """What checkpoints, tracking and monitoring take of the epochs of a run of `seconds` or more, start-up apart."""
    epochs, spent = 2, 0.0
    while spent < seconds:
        epochs = max(epochs, math.ceil(1.1 * seconds / spent * epochs)) if spent else epochs
        history, run = step_profile.of_run(profile.base, epochs, "offline")
        spent = history.epochs["seconds"].sum()
    total = run.loc[run["share"].notna(), "seconds"].sum()
    name = f"{epochs} epochs"
    parts = run[run["share"].notna()].itertuples()
    rows = [row(name, total, "s", n=1)] + [row(p.part, p.seconds, "s", name, total, 1) for p in parts]
    rows.append(row(", ".join(step_profile.OVERHEAD), step_profile.overhead(run) * total, "s", name, total, 1))
    if machine.device() == "cuda":
        busy = history.epochs["gpu_busy"][1:].median()
        rows.append(row("GPU busy (NVML), median epoch", busy, "1", n=epochs - 1))
    return rows


def _few(profile: Profile) -> configuration.Config:
    """The profile's data at full width for three epochs; where a CPU would take hours, two batches of 16 an epoch."""
    changes = {"data.measurements": None, "model.width": 16, "model.name": "stage1", "training.epochs": 3}
    if machine.device() == "cpu" and profile.base.data.grid == 64:
        changes |= {"training.batch": 16, "data.phantoms": 46, "data.fractions": (14, 3, 3)}
    return configuration.replace(profile.base, changes)


def _fitted(config: configuration.Config) -> tuple[float, str]:
    """Samples/s of the median epoch of `fit`, and its precision."""
    with tempfile.TemporaryDirectory() as folder:
        history = trainer.fit(config, Path(folder))
    seen = history.info["samples_seen"] / len(history.epochs)
    return seen / history.epochs["seconds"].median(), history.info["precision"]


PARTS = {
    "phantoms": bench_phantoms,
    "training": bench_training,
    "forward": bench_forward,
    "lift": bench_lift,
    "overhead": bench_overhead,
    "store": bench_store,
    "sharing": bench_sharing,
}
