"""Optimisers and schedules, from their configuration."""

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from .config import Optim


def optimiser(model: nn.Module, config: Optim) -> Optimizer:
    """Adam with L2 on every parameter, or AdamW whose decoupled decay spares norms and biases; fused."""
    if config.name == "adam":
        options = {"weight_decay": config.weight_decay, "lr": config.lr, "betas": config.betas}
        return torch.optim.Adam(model.parameters(), fused=True, **options)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    spared = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def schedule(opt: Optimizer, config: Optim, steps: int) -> LRScheduler:
    """The learning rate's schedule: one cycle over `steps`, or a plateau rule that is stepped once an epoch.

    One cycle (Smith 2018, Smith & Topin 2019): a cosine up to `lr` in the first `warmup` share and down to lr / div /
    final_div; with `momentum` (low, high), beta1 runs the opposite way and replaces betas[0].
    """
    if config.schedule == "constant":
        return ConstantLR(opt, factor=1.0)
    if config.schedule == "plateau":
        return ReduceLROnPlateau(opt, factor=config.plateau[0], patience=config.plateau[1])
    low, high = config.momentum or config.betas[:1] * 2
    return OneCycleLR(
        opt, config.lr, total_steps=steps, pct_start=config.warmup, div_factor=config.div,
        final_div_factor=config.final_div, cycle_momentum=config.momentum is not None, base_momentum=low,
        max_momentum=high,
    )  # fmt: skip
