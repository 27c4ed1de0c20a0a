"""Benchmarks: each part's speed as a ratio to a named baseline of the same call."""

import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from . import config as configuration
from . import trainer
from .bench_forward import bench_forward
from .bench_rows import rate, row
from .config import Profile
from .data import dataset, phantoms
from .evaluation import network


def run(part: str, profile: Profile, as_json: bool = False) -> None:
    """Print one part's rows: name, value, unit, baseline, ratio (value / baseline's), n, machine."""
    rows = configuration.named("benchmark", PARTS, part)(profile)
    kind = torch.cuda.get_device_name() if trainer.device() == "cuda" else torch.backends.cpu.get_cpu_capability()
    machine = f"{platform.machine()} {kind}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    if as_json:
        for line in rows:
            print(json.dumps(line | {"machine": machine}))
    else:
        print(f"{part}: {machine}")
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
    """Whole epochs of `fit`, validation included, against the naive loop; then the share of a bf16 product's speed."""
    changes = {"data.measurements": None, "model.width": 16, "training.epochs": 3, "model.name": "legacy"}
    base = configuration.replace(profile.base, changes)
    names = ("legacy, naive loop: fp32, contiguous, dense SSIM, .item()", "legacy, the same without SSIM")
    naive, plain = naive_loop(base), naive_loop(base, dense_ssim=False)
    rows = [row(names[0], naive, "samples/s", n=3), row(names[1], plain, "samples/s", names[0], naive, 3)]
    for name in ("legacy", "stage1"):
        config = configuration.replace(base, {"model.name": name})
        with tempfile.TemporaryDirectory() as folder:
            history = trainer.fit(config, Path(folder))
        seen = history.info["samples_seen"] / len(history.epochs)
        speed = seen / history.epochs["seconds"].median()
        rows += [
            row(f"{name}, fit ({history.info['precision']})", speed, "samples/s", baseline, base_rate, 3)
            for baseline, base_rate in zip(names, (naive, plain), strict=True)
        ]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(config)(torch.zeros(2, 2, *[config.data.grid] * 3))
        arithmetic = 3 * counter.get_total_flops() / 2 * speed / 1e9  # backward costs twice the forward pass
        peak = product_speed(trainer.precision("auto", trainer.device()))
        rows.append(row(f"{name}, arithmetic", arithmetic, "GFLOP/s", "a 2048^3 matrix product", peak, 3))
    return rows


def product_speed(dtype: torch.dtype) -> float:
    """GFLOP/s of a large matrix product: the ceiling."""
    a = torch.randn(2048, 2048, device=trainer.device()).to(dtype)

    def work() -> None:
        a @ a
        if a.is_cuda:
            torch.cuda.synchronize()

    return rate(work, 1) * 2 * 2048**3 / 1e9


def naive_loop(config: configuration.Config, dense_ssim: bool = True, steps: int = 4) -> float:
    """Samples/s of the loop that one writes first: fp32, contiguous, RMSE + dense 11^3 SSIM, `.item()` each step."""
    data = dataset.load(config.data)
    train = data.volumes("train")
    model = network(config, *dataset.standard(train)).to(trainer.device())
    opt = torch.optim.Adam(model.parameters(), lr=5e-5)
    window = torch.ones(1, 1, 11, 11, 11, device=trainer.device()) / 11**3  # its cost does not depend on the weights
    times, batch = [], config.training.batch
    for i in range(steps):
        start = time.perf_counter()
        x = train[torch.arange(i * batch, (i + 1) * batch) % len(train)].to(trainer.device())
        y = model(x)
        loss = (y - x).square().mean().sqrt()
        if dense_ssim:
            p, t = y.flatten(0, 1)[:, None], x.flatten(0, 1)[:, None]
            mp, mt, pp, tt, pt = (F.conv3d(v, window, padding=5) for v in (p, t, p * p, t * t, p * t))
            ssim = (2 * mp * mt + 1e-4) * (2 * (pt - mp * mt) + 9e-4)
            ssim = ssim / ((mp**2 + mt**2 + 1e-4) * (pp - mp**2 + tt - mt**2 + 9e-4))
            loss = 0.7 * loss + 0.3 * (1 - ssim.mean())
        opt.zero_grad()
        loss.backward()
        opt.step()
        loss.item()
        times.append(time.perf_counter() - start)
    return batch / statistics.median(times[1:])


PARTS = {"phantoms": bench_phantoms, "training": bench_training, "forward": bench_forward}
