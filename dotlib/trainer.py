"""One training run: the visible loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from . import losses, machine, memory, metrics, optim, perceptual, provenance
from .config import Config, ConfigError
from .data import dataset, samples
from .data.dataset import Dataset
from .data.samples import Samples
from .evaluation import judge
from .history import History
from .inference import CHANNELS, mixed, network, predict, prepared, trained
from .journal import Journal
from .monitor import Monitor
from .workers import Ended

LOGGED = ("loss", "gradient_norm", "scale")  # what every step leaves on the device, and the terms of the loss
STREAM, DROPOUT = 3, 7  # of random numbers; phantoms have 1, splits 2, probes 4, noise 5, augmentation 6, sampling 8
SAVE_EVERY = 10.0  # seconds between checkpoints, at least
CALIBRATION = 4  # batches for new batch statistics, under averaged weights
AT_ONCE = 64  # phantoms in validation, which takes eight times their volumes in fp32


class DivergedError(FloatingPointError):
    """A loss or gradient that is not finite, as one line; `history` holds what came before."""

    def __init__(self, line: str, history: History | None = None):
        super().__init__(line)
        self.history = history


class Tracker(Protocol):
    """Whatever looks on: it is told of each epoch and changes nothing."""

    def wants_slices(self, epoch: int) -> bool: ...

    def epoch(self, row: dict, steps: pd.DataFrame, slices: Mapping[str, np.ndarray]) -> None: ...


def order(n: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits `n` phantoms: a function of (seed, epoch), the same for every arm."""
    return torch.from_numpy(np.random.default_rng([STREAM, seed, epoch]).permutation(n))


def fit(
    config: Config,
    folder: Path,
    on: str | None = None,
    report: Callable[[dict], None] | None = None,
    tracker: Tracker | None = None,
    save_every: float = SAVE_EVERY,
    teacher: nn.Module | None = None,
    ending: Callable[[], bool] = lambda: False,
) -> History:
    """Train one configuration, or continue it from `folder`, and judge it on its frozen test set.

    An epoch visits whole batches only, and is followed by a checkpoint `last.pt` (and `best.pt` by validation loss)
    where `save_every` seconds have passed, or more where saving is slow; a run that was killed continues from there and
    ends with the same bits, on one CPU machine. `report` and `tracker` are told of each epoch. Raises DivergedError,
    naming the step, when a loss or a gradient is not finite: no step is taken with it, and the checkpoints are those of
    good epochs. In fp16 a gradient may overflow: its step is skipped, and the loss scale halved. Raises ConfigError
    where fewer phantoms are left to train with than a batch holds. `teacher`: what a perceptual term looks through,
    or a decoder starts from. Once `ending` says so, the epoch in work is the last: it is kept, and Ended is raised.
    """
    on = on or machine.device()
    folder.mkdir(parents=True, exist_ok=True)
    data, dtype = dataset.load(config.data), machine.precision(config.training.precision, on)
    test = dataset.judging(config, data)
    machine.prepare(on, dtype)
    train, validation = (samples.of(config, data, part, on) for part in ("train", "validation"))
    tissue = data.tissue("validation", on)
    model = network(config, *dataset.standard(train.truth), samples.standard(train))
    model = model.to(on, memory_format=torch.channels_last_3d)
    perceptual.start(config, model, teacher)
    batch = config.training.batch
    seen_through = perceptual.features(config, model.standard, teacher, on, dtype)
    criterion = losses.Criterion(config.loss, model.standard, seen_through)
    columns = (*LOGGED, *(criterion.names if len(criterion.names) > 1 else ()))
    per_epoch = len(train) // batch
    if not per_epoch:
        raise ConfigError(f"training.batch {batch} exceeds the {len(train)} training phantoms that are left")
    total = per_epoch * config.training.epochs
    opt = optim.optimiser(model, config.optim)
    scaler = _scaler(config, on, dtype)
    average = copy.deepcopy(model) if config.training.ema else None
    judged = average or model
    parts = {"model": model, "optimiser": opt, "scaler": scaler} | ({"average": average} if average else {})
    journal = Journal(config, folder, parts, save_every, on)

    def terms_of(forward: Callable, seen: Tensor, truth: Tensor) -> Tensor:
        with mixed(on, dtype):
            y = forward(seen)
        return criterion(y, truth)

    def trial(forward: Callable, few: Tensor) -> Tensor:
        return criterion.total(terms_of(forward, prepared(train.frozen(few)), prepared(train.truth[few])))

    forward, how, micro = memory.plan(model, config.training, on, trial, journal.micro)
    journal.micro = micro
    info = _info(config, data, test, model, on, dtype) | {"compile": how, "micro": micro, "earlier": journal.earlier}

    with Monitor(on) as monitor:
        while not journal.ended():
            epoch, start = len(journal.epochs), time.perf_counter()
            machine.reset_peak(on)
            optim.train(opt, model)
            log, used = torch.zeros(per_epoch, len(columns), device=on), []
            for i, chosen in enumerate(order(len(train), config.seed, epoch).to(on).split(batch)[:per_epoch]):
                count = epoch * per_epoch + i
                now = optim.settings(config.optim, count, total, journal.losses)
                optim.apply(opt, now)
                opt.zero_grad()
                seen, truth = _drawn(config, train, chosen, count)
                for few, true in zip(seen.split(micro), truth.split(micro), strict=True):
                    terms, share = terms_of(forward, few, true), len(few) / batch
                    loss = criterion.total(terms) * share
                    scaler.scale(loss).backward()
                    log[i, 0] += loss.detach()
                    log[i, len(LOGGED) :] += terms.detach()[: len(columns) - len(LOGGED)] * share
                log[i, 2] = scaler.get_scale()
                if scaler.is_enabled():
                    optim.unscale(opt, scaler)
                log[i, 1] = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip or math.inf)
                before = [p.detach().clone() for p in model.parameters()] if i == per_epoch - 1 else None
                optim.step(opt, scaler, log[i].isfinite().all())
                if average:
                    optim.average(average, model, config.training.ema if epoch + i else 0.0)
                used.append(now)
            moved = optim.update_ratio(before, model)
            log = log.cpu()  # the steps themselves wait for nothing, but for the scaler's
            journal.steps += [(*logged, *now) for logged, now in zip(log.tolist(), used, strict=True)]
            loss, norm, scale, *terms = log.T
            bad = ~loss.isfinite() | (~norm.isfinite() & (scale <= 1))  # only a gradient that is scaled up may overflow
            i = int(bad.nonzero()[0]) if bad.any() else per_epoch - 1
            what = f"step {i} ({epoch * per_epoch + i} of the run): loss {loss[i]:g}, gradient norm {norm[i]:g}"
            what += f", learning rate {used[i].lr:g}"
            if bad.any():
                raise _diverged(journal, columns, epoch, what, info)
            optim.evaluate(opt, model)
            if config.optim.name == "schedule-free":
                _recalibrate(model, prepared(train.frozen(slice(CALIBRATION * batch))).split(batch), mixed(on, dtype))
            row = {"epoch": epoch, "train_loss": loss.mean().item()} | used[-1]._asdict()
            row |= {"skipped": int((~norm.isfinite()).sum()), "update_ratio": float(moved)}
            row |= {"second_moment": float(optim.second_moment(opt))}
            row |= {
                f"train_{name}": value.mean().item() for name, value in zip(columns[len(LOGGED) :], terms, strict=True)
            }
            row |= validate(judged, validation, tissue, criterion, dtype) | {"gpu_peak_mb": machine.peak_mb(on)}
            if not math.isfinite(row["validation_loss"]):
                raise _diverged(
                    journal, columns, epoch, f"validation loss {row['validation_loss']:g} after {what}", info
                )
            row |= monitor.row() | {"samples": per_epoch * batch, "seconds": time.perf_counter() - start}
            if tracker:  # before the checkpoint: what a kill in between repeats, the tracker knows already
                first = epoch * per_epoch
                slices = _slices(judged, validation, dtype) if tracker.wants_slices(epoch) else {}
                tracker.epoch(row, _steps(journal.steps[first:], columns, first), slices)
            last = ending()
            journal.keep(row, judged, now=last)
            if report:
                report(row)
            if last:
                raise Ended(f"{folder}: ended after epoch {epoch}, which is kept")

    tables = {"last": judge(trained(config, folder, "last", on), test, dtype, config)}
    same = journal.best_epoch() == len(journal.epochs) - 1
    tables["best"] = tables["last"] if same else judge(trained(config, folder, "best", on), test, dtype, config)
    table = pd.concat([frame.assign(checkpoint=name) for name, frame in tables.items()], ignore_index=True)
    return _history(journal, columns, table, info)


def validate(
    model, validation: Samples, tissue: Tensor, criterion: losses.Criterion, dtype: torch.dtype
) -> dict[str, float]:
    """Loss, its terms where it has several, and mean tissue nrmse of each channel, AT_ONCE phantoms at a time."""
    names = [f"validation_{name}" for name in criterion.names] if len(criterion.names) > 1 else []
    row = dict.fromkeys(("validation_loss", "nrmse_mua", "nrmse_musp", *names), 0.0)
    for start in range(0, len(validation), AT_ONCE):
        few = slice(start, start + AT_ONCE)
        truth, inside = validation.truth[few].float(), tissue[few]
        predicted = predict(model, validation.frozen(few), dtype)
        nrmse = metrics.nrmse(metrics.clamp(predicted), truth, inside).mean(0)
        terms = criterion(predicted, truth)
        for name, value in zip(row, (criterion.total(terms), *nrmse, *terms[: len(names)]), strict=True):
            row[name] += value.item() * (len(truth) / len(validation))
    return row


def _drawn(config: Config, train: Samples, chosen: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """What the network sees of a batch and what it should make of it; random numbers are those of (seed, step)."""
    if config.model.dropout:  # whose layers draw from torch's own generator
        torch.manual_seed(int(np.random.default_rng([DROPOUT, config.seed, step]).integers(2**63)))
    seen, truth = train.drawn(chosen, step)
    return prepared(seen), prepared(truth)


def _scaler(config: Config, on: str, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Of the loss, for gradients that fp16 would round to zero; for other types it does nothing."""
    scale, growth, interval = config.training.scaler
    half = dtype == torch.float16
    return torch.amp.GradScaler(on, init_scale=scale, growth_factor=growth, growth_interval=interval, enabled=half)


@torch.no_grad()
def _recalibrate(model: nn.Module, volumes: Sequence[Tensor], arithmetic: torch.autocast) -> None:
    """Take batch statistics anew under the weights that are judged: the steps saw others."""
    with arithmetic:
        update_bn(volumes, model)
    model.eval()


def _slices(model: nn.Module, validation: Samples, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """The middle plane of one phantom, each channel: truth and prediction, over the truth's largest value."""
    volume, seen = validation.truth[:1], validation.frozen(slice(1))
    both = {"truth": volume.float(), "prediction": predict(model, seen, dtype)}
    largest, middle = both["truth"].amax((0, 2, 3, 4)), volume.shape[-1] // 2
    return {
        f"{name} {channel}": (values[0, c, :, :, middle] / largest[c]).cpu().numpy()
        for name, values in both.items()
        for c, channel in enumerate(CHANNELS)
    }


def _diverged(journal: Journal, columns: Sequence[str], epoch: int, what: str, info: dict) -> DivergedError:
    line = f"{journal.folder}: epoch {epoch}, {what}; {journal.good()}"
    return DivergedError(line, _history(journal, columns, pd.DataFrame(), info, f"epoch {epoch}, {what}"))


def _history(journal: Journal, columns: Sequence[str], table: pd.DataFrame, info: dict, failed: str = "") -> History:
    epochs, steps = pd.DataFrame(journal.epochs), _steps(journal.steps, columns)
    info |= {"samples_seen": len(steps) * journal.config.training.batch}
    info["samples_per_second"] = journal.samples_per_second()
    info["resident_mb"] = psutil.Process().memory_info().rss / 2**20
    info["gpu_peak_mb"] = max((row["gpu_peak_mb"] for row in journal.epochs), default=0.0)
    if len(steps):  # those of the last step that was taken
        info["optimiser"] |= optim.Settings(*journal.steps[-1][len(columns) :])._asdict()
    return History(epochs, steps, table, info, failed)


def _steps(rows: list[tuple], columns: Sequence[str], first: int = 0) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=[*columns, *optim.Settings._fields])
    return frame.set_axis(range(first, first + len(rows)))


def _info(config: Config, data: Dataset, test: Dataset, model: nn.Module, on: str, dtype: torch.dtype) -> dict:
    return {
        "config": config.model_dump(mode="json"),
        "config_digest": config.digest(),
        "data": data.digest,
        "test": test.part_digest("test"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "optimiser": {"name": config.optim.name, "beta2": config.optim.betas[1]},
        "precision": str(dtype).removeprefix("torch."),
        "device": machine.name(on),
        "code": provenance.code_digest(),
        "threads": torch.get_num_threads(),
        "versions": machine.versions(),
    } | provenance.commit()
