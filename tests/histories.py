"""Made-up histories, in the columns of real ones, for what is done with many runs."""

import math

import numpy as np
import pandas as pd

from dotlib import optim, trainer

PHANTOMS = 4
METRICS = (("nrmse", "mua"), ("nrmse", "musp"), ("rmse", "mua"), ("ssim", "mua"), ("legacy_rmse", ""))
CLOCKED = {"host_mb": 300.0, "gpu_mb": math.nan, "gpu_busy": math.nan, "samples": 16, "seconds": 0.1}


def made_up(config, curve=(), failed="", phantoms=PHANTOMS):
    """A run of a configuration; `curve`: its validation nrmse of mua, an epoch each; `failed`: why it stopped after."""
    rng = np.random.default_rng(int(config.digest(), 16))
    ended = len(curve) if curve or failed else config.training.epochs
    curve = curve or np.linspace(0.5, rng.uniform(0.2, 0.3), ended)
    settings = {"lr": config.optim.lr, "beta1": config.optim.betas[0], "weight_decay": config.optim.weight_decay}
    rows = [
        {"epoch": epoch, "train_loss": 2 * value} | settings
        | {"skipped": 0, "update_ratio": 1e-3, "second_moment": 1e-6}
        | {"validation_loss": 3 * value, "nrmse_mua": float(value), "nrmse_musp": rng.uniform(0, 1)}
        | {"gpu_peak_mb": 0.0} | CLOCKED
        for epoch, value in enumerate(curve)
    ]  # fmt: skip
    steps = [(0.5, 1.0, 1.0, *optim.Settings(**settings))] * 2 * (ended + bool(failed))
    info = {
        "config": config.model_dump(mode="json"), "config_digest": config.digest(), "data": "000012345678",
        "test": "0000feedbeef",
        "commit": "c0", "dirty": False,
        "parameters": 1234, "optimiser": {"name": config.optim.name, "beta2": config.optim.betas[1]} | settings,
        "precision": "float32", "device": "x86_64", "code": "12345e678901", "threads": 1,
        "versions": {"torch": "2.9.0", "numpy": "2.0", "python": "3.11.4"}, "compile": "off", "earlier": [],
        "micro": config.training.batch, "samples_seen": len(steps) * config.training.batch, "resident_mb": 300.0,
        "samples_per_second": rng.uniform(90, 110), "gpu_peak_mb": 0.0,
    }  # fmt: skip
    steps = pd.DataFrame(steps, columns=["loss", "gradient_norm", "scale", *optim.Settings._fields])
    table = pd.DataFrame() if failed else metrics(rng, phantoms)
    return trainer.History(pd.DataFrame(rows), steps, table, info, failed)


def metrics(rng, phantoms):
    frames = [
        pd.DataFrame({"metric": metric, "phantom": range(phantoms), "inclusion": -1, "channel": channel})
        .assign(value=np.exp(rng.normal(-1, 0.2, phantoms)), checkpoint=checkpoint)
        for checkpoint in ("last", "best")
        for metric, channel in METRICS
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def fit(config, folder, **options):
    """In the place of `trainer.fit`."""
    return made_up(config)
