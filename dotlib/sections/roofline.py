"""What a training step moves and computes, the ceilings of a machine, and the time that both allow (Williams 2009)."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .. import inference, losses, optim
from ..config import Config
from .step_profile import PRODUCTS, class_of

ALLOCATE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}  # these touch no memory
OVERWRITE = {"copy_", "fill_", "zero_"}  # they do not read what they replace


@dataclass(frozen=True)
class Gpu:
    """A vendor's data sheet: GB/s of memory, TFLOP/s of dense bf16 products, and its key in sources.bib.

    `target` is the time that is asked for an epoch of 5,000 phantoms of 64^3, in seconds.
    """

    bandwidth: float
    product: float
    source: str
    target: float


GPUS = {
    "A100 40 GB": Gpu(1555, 312, "nvidia2020", 2.5),
    "A100 80 GB": Gpu(2039, 312, "nvidia2022", 2.5),
    "H200": Gpu(4800, 989, "nvidia2024", 1.0),  # 1,979 TFLOP/s is the sheet's number for sparse matrices
}


class Traffic(TorchDispatchMode):
    """Bytes of every operator's inputs and outputs, each once, summed by class.

    That is what unfused operators move at least: nothing stays in a cache between two of them. Views, and memory that
    is only set aside, are free. `phase`, where set, names the class in place of the operator's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.phase = Counter(), ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace == "aten":
            self.bytes[self.phase or class_of(func.overloadpacket.__name__)] += moved(func, args, kwargs or {}, out)
        return out


def moved(func, args: tuple, kwargs: dict, out) -> int:
    """Bytes that one operator reads and writes: storages of its inputs, of its outputs and of what it changes."""
    name = func.overloadpacket.__name__
    given = list(zip(func._schema.arguments, args, strict=False))
    given += [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
    # a fused optimiser may rescale gradients, and does not without a scaler
    changed = _sizes([v for a, v in given if a.alias_info and a.alias_info.is_write and a.name != "grads"])
    read, results = _sizes([v for _, v in given]), _sizes(out)
    if name in ALLOCATE or (not changed and results.keys() <= read.keys()):
        return 0
    if name in OVERWRITE:
        read = {key: size for key, size in read.items() if key not in changed}
    return sum(read.values()) + sum((results | changed).values())


def _sizes(tree) -> dict[int, int]:
    """Bytes by storage; an expanded tensor has those that it stores."""
    tensors = [t for t in tree_leaves(tree) if isinstance(t, Tensor)]
    storages = [(t, t.untyped_storage()) for t in tensors]
    return {s._cdata: min(t.numel() * t.element_size(), s.nbytes()) for t, s in storages}


def step_cost(config: Config, dtype: torch.dtype, batch: int | None = None) -> pd.DataFrame:
    """Bytes and floating-point operations of one training step by class, without computing anything.

    Operators are those of a CPU: there the convolutions of 2^3 volumes stay in fp32 (models/blocks.py).
    """
    size, grid = batch or config.training.batch, config.data.grid
    with FakeTensorMode():
        model = inference.network(config).train()
        for p in model.parameters():  # `to` cannot swap these
            p.data = p.data.contiguous(memory_format=torch.channels_last_3d) if p.ndim == 5 else p.data
        opt = optim.optimiser(model, config.optim)
        volumes = torch.zeros(size, 2, grid, grid, grid, dtype=torch.float16)
        for _ in range(2):  # the first leaves the optimiser's state behind
            with FlopCounterMode(display=False) as flops, Traffic() as traffic:
                _step(config, model, opt, volumes, dtype, traffic)
    operations = Counter()
    for operator, n in flops.get_flop_counts()["Global"].items():
        operations[class_of(operator.__name__)] += n
    rows = [{"class": c, "bytes": traffic.bytes[c], "flop": operations[c]} for c in traffic.bytes if traffic.bytes[c]]
    return pd.DataFrame(rows)


def _step(config: Config, model: nn.Module, opt, volumes: Tensor, dtype: torch.dtype, traffic: Traffic) -> None:
    traffic.phase = "data"
    x = inference.prepared(volumes[torch.arange(len(volumes))])
    traffic.phase = ""
    with inference.mixed("cpu", dtype):
        y = model(x)
    standardised = model.standard(y), model.standard(x)
    traffic.phase = "loss"
    loss = losses.rmse(*standardised)
    traffic.phase = ""
    loss.backward()
    traffic.phase = "optimiser"
    if config.optim.clip:
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
    opt.step()
    opt.zero_grad()


def totals(cost: pd.DataFrame) -> dict[str, float]:
    """Bytes unfused, bytes if all but products and the optimiser were free, and floating-point operations."""
    kept = cost["class"].isin((*PRODUCTS, "data", "optimiser"))
    sums = cost["bytes"].sum(), cost.loc[kept, "bytes"].sum(), cost["flop"].sum()
    return dict(zip(("unfused", "fused", "flop"), map(float, sums), strict=True))


def median_seconds(work: Callable[[], object], on: str, repeats: int = 5) -> float:
    """Seconds of the median repeat, after one warm-up; a GPU's work is waited for."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if on == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def product_speed(dtype: torch.dtype, on: str, n: int = 2048) -> float:
    """GFLOP/s of a product of two n x n matrices: the arithmetic ceiling."""
    a = torch.randn(n, n, device=on).to(dtype)
    return 2 * n**3 / median_seconds(lambda: a @ a, on) / 1e9


def copy_speed(on: str, megabytes: int = 128) -> float:
    """GB/s of a copy of that size, which no cache holds: the ceiling of memory, reads and writes together."""
    source = torch.zeros(megabytes << 18, device=on)
    target = torch.ones_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), on) / 1e9


def ceilings(on: str, precisions: Mapping[str, torch.dtype], n: int) -> pd.DataFrame:
    """This machine's measured ceilings, products of n x n matrices among them: ceiling, value, unit."""
    rows = [{"ceiling": f"{name} products", "value": product_speed(d, on, n), "unit": "GFLOP/s"}
            for name, d in precisions.items()]  # fmt: skip
    return pd.DataFrame([{"ceiling": "copy", "value": copy_speed(on), "unit": "GB/s"}, *rows])


def points(cost: pd.DataFrame, times: pd.DataFrame, wall: float) -> pd.DataFrame:
    """Where the classes and the whole step stand: class, flop/byte, GFLOP/s, GB/s; `times` has class and seconds."""
    both = cost.merge(times, on="class")
    whole = {"class": "whole step", "bytes": cost["bytes"].sum(), "flop": cost["flop"].sum(), "seconds": wall}
    both = pd.concat([pd.DataFrame([whole]), both], ignore_index=True)
    both = both[both["seconds"] > 0]
    rates = {"flop/byte": both["flop"] / both["bytes"], "GFLOP/s": both["flop"] / both["seconds"] / 1e9}
    return both[["class"]].assign(**rates, **{"GB/s": both["bytes"] / both["seconds"] / 1e9})


def bound(moved_bytes: float, bandwidth: float, share: float = 1.0) -> float:
    """Seconds that `moved_bytes` take at a share of a bandwidth in GB/s."""
    return moved_bytes / (share * bandwidth * 1e9)


def prediction(step: dict[str, float], batch: int, phantoms: int = 5000) -> pd.DataFrame:
    """An epoch of `phantoms` on the GPUs of the data sheets, in seconds: predicted from counts, measured on none."""
    steps, rows = phantoms / batch, []
    for name, gpu in GPUS.items():
        full = bound(steps * step["unfused"], gpu.bandwidth)
        products = steps * step["flop"] / (gpu.product * 1e12)
        rows.append(
            {
                "PREDICTION for": name,
                "GB/s": gpu.bandwidth,
                "unfused 100 %, s": full,
                "unfused 50 %, s": bound(steps * step["unfused"], gpu.bandwidth, 0.5),
                "fused 100 %, s": max(bound(steps * step["fused"], gpu.bandwidth), products),
                "fused 50 %, s": max(bound(steps * step["fused"], gpu.bandwidth, 0.5), products),
                "arithmetic, s": products,
                "target, s": gpu.target,
                "share needed": full / gpu.target,
            }
        )
    return pd.DataFrame(rows)


def reached(step: dict[str, float], ceilings: pd.DataFrame, precision: str, seconds: float) -> float:
    """The share of this machine's roofline that a step of `seconds` reaches, by the unfused count."""
    at = ceilings.set_index("ceiling")["value"]
    arithmetic = step["flop"] / (at[f"{precision} products"] * 1e9)
    return max(bound(step["unfused"], at["copy"]), arithmetic) / seconds


def answer(predicted: pd.DataFrame, share: float) -> str:
    """Where a step stands below this machine's roofline, and what the predictions would need, in words."""
    lines = [f"* Measured: a step here reaches {share:.0%} of this machine's roofline (unfused count)."]
    for row in predicted.to_dict("records"):
        met = "would meet" if row["unfused 50 %, s"] <= row["target, s"] else "would not meet"
        lines.append(
            f"* PREDICTION, {row['PREDICTION for']}: half of the bandwidth bound {met} the target of "
            f"{row['target, s']:g} s"
            + (f"; {row['share needed']:.0%} of the bound would be enough." if row["share needed"] <= 1 else ".")
        )
    return "\n".join(lines)
