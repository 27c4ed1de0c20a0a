"""What training minimises: functions of standardised volumes (B, C, D, H, W) that return one number."""

from collections.abc import Callable

import torch
from torch import Tensor


def rmse(pred: Tensor, truth: Tensor, eps: float = 1e-12) -> Tensor:
    """Root mean squared error of each phantom over its voxels and channels, averaged over the batch.

    pred, truth: (B, C, D, H, W), channels standardised (raw, musp would be all of it). eps is added under the root:
    the gradient at zero error is finite. Computed in fp32 (fp64 of fp64 volumes) under autocast too.
    """
    if pred.shape != truth.shape:
        raise ValueError(f"pred {tuple(pred.shape)}, truth {tuple(truth.shape)}: equal shapes are needed")
    dtype = torch.promote_types(torch.promote_types(pred.dtype, truth.dtype), torch.float32)
    squares = (pred.to(dtype) - truth.to(dtype)).square().flatten(1).mean(1)
    return (squares + eps).sqrt().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"rmse": rmse}


def loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of that name in `LOSSES`; raises ValueError on an unknown one."""
    if name not in LOSSES:
        raise ValueError(f"loss {name!r} is unknown: one of {', '.join(map(repr, LOSSES))} is accepted")
    return LOSSES[name]
