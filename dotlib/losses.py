"""What training minimises: terms, functions of two volumes (B, C, D, H, W) that return one number, and their sum.

C = 2 channels (mua, musp), in mm^-1 ("physical") or standardised on the training split, as each term says. Every term
of a batch is the mean of its phantoms' terms, and is computed in fp32 (fp64 of fp64 volumes) under autocast too.
`weights`: a positive number for each channel; only their ratios count.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import metrics
from .config import Loss


def _wide(pred: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if pred.shape != truth.shape:
        raise ValueError(f"pred {tuple(pred.shape)}, truth {tuple(truth.shape)}: equal shapes are needed")
    dtype = torch.promote_types(torch.promote_types(pred.dtype, truth.dtype), torch.float32)
    return pred.to(dtype), truth.to(dtype)


def _mean(values: Tensor, weights: Sequence[float] | None) -> Tensor:
    """Mean of each phantom over its voxels and, with weights / mean(weights), its channels, (B,)."""
    if weights is None:
        return values.flatten(1).mean(1)
    if len(weights) != values.shape[1] or min(weights) <= 0:
        raise ValueError(f"weights {tuple(weights)}: one positive number for each of {values.shape[1]} channels")
    channels = values.flatten(2).mean(2).unbind(1)  # weights stay numbers: as a tensor the device would wait for them
    return sum(w * channel for w, channel in zip(weights, channels, strict=True)) / sum(weights)


def rmse(pred: Tensor, truth: Tensor, weights: Sequence[float] | None = None, eps: float = 1e-12) -> Tensor:
    """Root mean squared error of each phantom over its voxels and channels, averaged over the batch.

    Volumes: standardised channels (raw, musp would be all of it, whatever the weights of squared errors). eps is added
    under the root: the gradient at zero error is finite. Raises ValueError on shapes or weights that do not fit.
    """
    pred, truth = _wide(pred, truth)
    return (_mean((pred - truth).square(), weights) + eps).sqrt().mean()


def dissimilarity(pred: Tensor, truth: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """1 - SSIM (Wang 2004, eq. 13; as a loss: Zhao 2017) over the whole cube: 0 for equal volumes, 2 at most.

    Volumes: physical, mm^-1, each channel over its range in `metrics.RANGES`. The windows see zeros around the cube,
    as air is inside it. Raises ValueError on shapes or weights that do not fit.
    """
    return 1 - _mean(metrics.ssim_map(pred, truth, metrics.RANGES, "zeros"), weights).mean()


def gradient_difference(pred: Tensor, truth: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Difference of the steps' sizes between neighbours, ||p_i - p_(i-1)| - |t_i - t_(i-1)||, averaged along each axis.

    Mathieu 2016, eq. 6 with alpha = 1, in three dimensions and as a mean. Volumes: standardised channels. It sees
    neither the level nor the sign of a step, and its gradient is 0 where pred is flat: it cannot be minimised alone.
    Raises ValueError on shapes or weights that do not fit.
    """
    pred, truth = _wide(pred, truth)
    axes = [(pred.diff(dim=axis).abs() - truth.diff(dim=axis).abs()).abs() for axis in (2, 3, 4)]
    return torch.stack([_mean(values, weights) for values in axes]).mean()


def perceptual(
    features: Callable[[Tensor], Sequence[Tensor]], pred: Tensor, truth: Tensor, eps: float = 1e-12
) -> Tensor:
    """Mean squared error of features over their mean square in truth, averaged over stages and the batch.

    Feature reconstruction (Johnson 2016, eq. 2); the normalisation is ours: each stage weighs the same whatever its
    scale. Volumes: physical, mm^-1; features: one tensor (B, ...) a stage, in a precision that they choose themselves.
    eps is added to the mean square. No gradient reaches truth. Raises ValueError on unequal shapes.
    """
    pred, truth = _wide(pred, truth)
    with torch.autocast(pred.device.type, enabled=False):
        with torch.no_grad():
            wanted = features(truth)
        stages = [_wide(*pair) for pair in zip(features(pred), wanted, strict=True)]
        shares = [_mean((p - t).square(), None) / (_mean(t.square(), None) + eps) for p, t in stages]
        return torch.stack(shares).mean()


LOSSES: dict[str, Callable] = {"rmse": rmse, "ssim": dissimilarity, "gradient": gradient_difference}


class Criterion:
    """The weighted sum of terms that a configuration asks for, of physical volumes (B, 2, D, H, W), mm^-1.

    `standard` maps them to standardised channels, `features` to what the perceptual term compares. `names`: the terms
    of positive weight. Raises ValueError where a perceptual term has no features.
    """

    def __init__(
        self,
        config: Loss,
        standard: Callable[[Tensor], Tensor],
        features: Callable[[Tensor], Sequence[Tensor]] | None = None,
    ):
        if config.perceptual and features is None:
            raise ValueError(f"loss.perceptual {config.perceptual:g}: features are needed")
        self.names = tuple(name for name in ("rmse", "ssim", "perceptual", "gradient") if getattr(config, name))
        self.weights = tuple(getattr(config, name) for name in self.names)
        self.channels = () if config.channels == (1, 1) else (config.channels,)
        self.standard, self.features = standard, features

    def __call__(self, pred: Tensor, truth: Tensor) -> Tensor:
        """The terms without their weights, (T,), in the order of `names`."""
        terms, standardised = [], None
        for name in self.names:
            if name == "perceptual":
                terms.append(perceptual(self.features, pred, truth))
            elif name == "ssim":
                terms.append(LOSSES[name](pred, truth, *self.channels))
            else:
                standardised = standardised or (self.standard(pred), self.standard(truth))
                terms.append(LOSSES[name](*standardised, *self.channels))
        return torch.stack(terms)

    def total(self, terms: Tensor) -> Tensor:
        """What is minimised, one number, of the terms (T,)."""
        return sum(weight * term for weight, term in zip(self.weights, terms, strict=True))
