"""One training run: the visible loop."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn

from . import checkpoint, losses, metrics, optim
from .config import Config
from .data import dataset
from .evaluation import judge, network, predict, trained

STEP = ("loss", "gradient_norm")  # what every step leaves on the device
STREAM = 3  # of random numbers, for the order; phantoms have 1, splits 2


@dataclass(frozen=True)
class History:
    """What a run leaves.

    `epochs`: a row per epoch; `steps`: a row per optimiser step (loss, gradient norm before clipping, learning rate,
    beta1); `metrics`: a row per (checkpoint, metric, phantom, channel[, inclusion]) of the frozen test set; `info`:
    parameters, resolved optimiser state, precision, timing, memory, device, versions, data digest.
    """

    epochs: pd.DataFrame
    steps: pd.DataFrame
    metrics: pd.DataFrame
    info: dict


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision(wanted: str, on: str) -> torch.dtype:
    """bf16 where the machine multiplies it in hardware (`auto`), else fp32."""
    if wanted != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]
    if on == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def order(n: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits `n` phantoms: a function of (seed, epoch), the same for every arm."""
    return torch.from_numpy(np.random.default_rng([STREAM, seed, epoch]).permutation(n))


def fit(config: Config, folder: Path, on: str | None = None, report: Callable[[dict], None] | None = None) -> History:
    """Train one configuration, or continue it from `folder`, and judge it on its frozen test set.

    Every epoch ends with a checkpoint `last.pt` (and `best.pt` by validation loss); a run that was killed continues
    from there and ends with the same bits, on one CPU machine. An epoch visits whole batches only. `report` is called
    with each epoch's row. Raises FloatingPointError, naming the step, when a loss or gradient is not finite: the
    checkpoints are then those of the last good epoch.
    """
    on = on or device()
    folder.mkdir(parents=True, exist_ok=True)
    data, dtype = dataset.load(config.data), precision(config.training.precision, on)
    if on == "cuda":
        torch.cuda.reset_peak_memory_stats()
    train = data.volumes("train", on, torch.float16)
    validation, tissue = data.volumes("validation", on, torch.float16), data.tissue("validation", on)
    model = network(config, *dataset.standard(train)).to(on, memory_format=torch.channels_last_3d)
    standard, loss_of = model.standard, losses.loss(config.loss)
    batch = config.training.batch
    per_epoch = len(train) // batch
    opt = optim.optimiser(model, config.optim)
    schedule = optim.schedule(opt, config.optim, per_epoch * config.training.epochs)
    run = {"model": model, "optimiser": opt, "schedule": schedule}
    past = _resume(folder / "last.pt", run, config, on)
    epochs, steps = past["epochs"], past["steps"]

    for epoch in range(len(epochs), config.training.epochs):
        if config.training.patience and epoch - 1 - _best(epochs) >= config.training.patience:
            break
        start = time.perf_counter()
        model.train()
        log = torch.empty(per_epoch, len(STEP), device=on)
        rates = []
        for i, chosen in enumerate(order(len(train), config.seed, epoch).to(on).split(batch)[:per_epoch]):
            x = train[chosen].float().contiguous(memory_format=torch.channels_last_3d)
            with torch.autocast(on, dtype=dtype, enabled=dtype != torch.float32):
                y = model(x)
            loss = loss_of(standard(y), standard(x))
            opt.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip or math.inf)
            rates.append((opt.param_groups[0]["lr"], opt.param_groups[0]["betas"][0]))
            opt.step()
            if config.optim.schedule == "onecycle":
                schedule.step()
            log[i, 0], log[i, 1] = loss.detach(), norm
        log = log.cpu()  # the steps themselves wait for nothing
        if not log.isfinite().all():
            bad = int((~log.isfinite().all(1)).nonzero()[0])
            raise _not_finite(folder, epoch, f"step {bad}: loss {log[bad, 0]:g}, gradient norm {log[bad, 1]:g}")
        row = {"epoch": epoch, "train_loss": log[:, 0].mean().item(), "lr": rates[-1][0], "beta1": rates[-1][1]}
        row |= validate(model, validation, tissue, loss_of, dtype)
        if not math.isfinite(row["validation_loss"]):
            raise _not_finite(folder, epoch, f"validation loss {row['validation_loss']:g}")
        if config.optim.schedule == "plateau":
            schedule.step(row["validation_loss"])
        row["seconds"] = time.perf_counter() - start
        epochs.append(row)
        steps += [(*logged, *rate) for logged, rate in zip(log.tolist(), rates, strict=True)]
        state = {name: part.state_dict() for name, part in run.items()} | {"epochs": epochs, "steps": steps}
        if _best(epochs) == epoch:
            checkpoint.save(folder / "best.pt", {"model": state["model"]}, config.digest())
        checkpoint.save(folder / "last.pt", state, config.digest())
        _progress(folder, row, config, per_epoch * batch)
        if report:
            report(row)

    tables = [
        judge(trained(config, folder, name, on), data, dtype).assign(checkpoint=name) for name in ("last", "best")
    ]
    table = pd.concat(tables, ignore_index=True)
    columns = [*STEP, "lr", "beta1"]
    info = _info(config, data, model, opt, epochs[-1], on, dtype) | {"samples_seen": per_epoch * batch * len(epochs)}
    info["samples_per_second"] = info["samples_seen"] / sum(row["seconds"] for row in epochs)
    return History(pd.DataFrame(epochs), pd.DataFrame(steps, columns=columns), table, info)


def validate(model, volumes: Tensor, tissue: Tensor, loss_of: Callable, dtype: torch.dtype) -> dict[str, float]:
    """Loss on standardised channels and mean tissue nrmse of each channel."""
    predicted, truth = predict(model, volumes, dtype), volumes.float()
    nrmse = metrics.nrmse(metrics.clamp(predicted), truth, tissue).mean(0)
    loss = loss_of(model.standard(predicted), model.standard(truth))
    return {"validation_loss": loss.item(), "nrmse_mua": nrmse[0].item(), "nrmse_musp": nrmse[1].item()}


def _best(epochs: list[dict]) -> int:
    return min(range(len(epochs)), key=lambda e: epochs[e]["validation_loss"], default=0)


def _not_finite(folder: Path, epoch: int, what: str) -> FloatingPointError:
    good = f"last good checkpoint: epoch {epoch - 1}" if epoch else "no checkpoint yet"
    return FloatingPointError(f"{folder}: epoch {epoch}, {what}; {good}")


def _resume(path: Path, run: dict, config: Config, on: str) -> dict[str, list]:
    if not path.exists():
        return {"epochs": [], "steps": []}
    state = checkpoint.load(path, config.digest(), on)
    for name, part in run.items():
        part.load_state_dict(state[name])
    return {"epochs": state["epochs"], "steps": state["steps"]}


def code_digest() -> str:
    """Hash of the package's sources, recorded with each run."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def _progress(folder: Path, row: dict, config: Config, samples: int) -> None:
    rate = samples / row["seconds"]
    left = (config.training.epochs - row["epoch"] - 1) * row["seconds"]
    line = {
        "epoch": row["epoch"] + 1,
        "epochs": config.training.epochs,
        "samples_per_second": rate,
        "seconds_left": left,
    }
    checkpoint.write(folder / "progress.json", json.dumps(line).encode())


def _info(
    config: Config, data: dataset.Dataset, model: nn.Module, opt, last: dict, on: str, dtype: torch.dtype
) -> dict:
    group = opt.param_groups[0]
    # those of the last step that was taken: the schedule has already moved on
    resolved = {"lr": last["lr"], "betas": (last["beta1"], group["betas"][1]), "weight_decay": group["weight_decay"]}
    return {
        "config": config.model_dump(mode="json"),
        "config_digest": config.digest(),
        "data": data.digest,
        "parameters": sum(p.numel() for p in model.parameters()),
        "optimiser": resolved | {"class": type(opt).__name__},
        "precision": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if on == "cuda" else platform.processor() or platform.machine(),
        "code": code_digest(),
        "gpu_peak_mb": torch.cuda.max_memory_allocated() / 2**20 if on == "cuda" else 0.0,
        "resident_mb": psutil.Process().memory_info().rss / 2**20,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }
