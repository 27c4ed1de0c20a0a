"""How far a predicted volume is from the truth.

Volumes are (P, C, D, H, W), C = 2 channels (mua, musp) in mm^-1; masks are bool (P, D, H, W). Metrics return one value
per (phantom, channel) or (phantom, inclusion, channel) and do not average; a value that does not exist is NaN.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dotlib.metrics_regions import (
    Detection,
    Froc,
    Regions,
    cnr,
    contrast,
    contrast_visible,
    crc,
    crosstalk,
    detection,
    deviation,
    dice,
    froc,
    localisation,
    localisation_chance,
    mean,
    operating_point,
    regions,
    volume_ratio,
)

__all__ = [
    "RANGES",
    "Detection",
    "Froc",
    "Regions",
    "background_noise",
    "bias",
    "clamp",
    "cnr",
    "contrast",
    "contrast_visible",
    "crc",
    "crosstalk",
    "detection",
    "deviation",
    "dice",
    "erode",
    "evaluate",
    "froc",
    "legacy_psnr",
    "legacy_rmse",
    "legacy_ssim",
    "localisation",
    "localisation_chance",
    "mean",
    "nrmse",
    "operating_point",
    "psnr",
    "regions",
    "rmse",
    "skill",
    "ssim",
    "ssim_map",
    "volume_ratio",
]

RANGES = (0.0245, 2.95)  # mm^-1, mua and musp: the largest values of the default family
RADIUS, SIGMA, K1, K2 = 5, 1.5, 0.01, 0.03  # window of 11^3 voxels (Wang 2004)


def clamp(volume: Tensor) -> Tensor:
    """The volume with negative coefficients set to 0."""
    return volume.clamp(min=0)


def _error(pred: Tensor, truth: Tensor) -> Tensor:
    if pred.shape != truth.shape or pred.ndim != 5:
        raise ValueError(f"pred {tuple(pred.shape)}, truth {tuple(truth.shape)}: two (P, C, D, H, W) are needed")
    return pred - truth


def _per_channel(data_range: float | Sequence[float], like: Tensor) -> Tensor:
    values = tuple(data_range) if isinstance(data_range, Sequence) else (data_range,) * like.shape[1]
    if len(values) != like.shape[1] or min(values) <= 0:
        raise ValueError(f"data_range {data_range}: one positive number, or one for each of {like.shape[1]} channels")
    return torch.cat([like.new_full((1,), value) for value in values])  # without waiting for a device


def rmse(pred: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Root mean squared error over the mask, mm^-1, (P, C)."""
    return mean(_error(pred, truth).square(), mask).sqrt()


def nrmse(pred: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """`rmse` over the root mean square of the truth in the mask, (P, C)."""
    return rmse(pred, truth, mask) / mean(truth.square(), mask).sqrt()


def skill(pred: Tensor, truth: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """1 - MSE / MSE(reference) over the mask, (P, C): 1 is perfect, 0 as good as the reference volume."""
    return 1 - (rmse(pred, truth, mask) / rmse(reference, truth, mask)).square()


def psnr(pred: Tensor, truth: Tensor, mask: Tensor, data_range: float | Sequence[float]) -> Tensor:
    """20 log10(data_range / rmse), dB, (P, C): `rmse` in other words, never separate evidence."""
    error = rmse(pred, truth, mask)
    return 20 * torch.log10(_per_channel(data_range, error) / error)


def background_noise(pred: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation of pred - truth over mean(truth), both over a mask of background, (P, C).

    A flat image has none but for the mask's partial voxels at the surface: read it beside `crc`.
    """
    return deviation(_error(pred, truth), mask) / mean(truth, mask)


def bias(pred: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean of pred - truth over mean(truth), both over a mask of background, (P, C)."""
    return mean(_error(pred, truth), mask) / mean(truth, mask)


def _window(size: int, padding: str, like: Tensor) -> Tensor:
    """The 1-D Gaussian window as a banded matrix, (size, size) or (size, size - 10)."""
    place = torch.arange(size, device=like.device)
    centres = place[RADIUS : size - RADIUS] if padding == "valid" else place
    offset = (place[:, None] - centres).to(like.dtype)
    total = sum(math.exp(-0.5 * (k / SIGMA) ** 2) for k in range(-RADIUS, RADIUS + 1))
    return torch.exp(-0.5 * (offset / SIGMA).square()) * (offset.abs() <= RADIUS) / total


def _smooth(maps: Tensor, padding: str) -> Tensor:
    """Gaussian mean along the last three axes, as three products with banded matrices.

    Faster than three 1-D convolutions on a CPU; and on a GPU convolutions default to TF32, which the differences of
    `ssim_map` do not bear, while products are fp32 unless `torch.set_float32_matmul_precision` lowers them.
    """
    x, y, z = (_window(size, padding, maps) for size in maps.shape[-3:])
    maps = y.T @ (maps @ z)
    return (x.T @ maps.flatten(-2)).unflatten(-1, maps.shape[-2:])


def ssim_map(pred: Tensor, truth: Tensor, data_range: float | Sequence[float], padding: str) -> Tensor:
    """Structural similarity at each voxel, 3-D Gaussian window 11^3, sigma 1.5, K = (.01, .03) (Wang 2004, eq. 13).

    padding: "valid" keeps the voxels whose window lies in the cube, (P, C, D - 10, H - 10, W - 10); "zeros" keeps
    all, with zeros around the cube. data_range: one value, or one a channel. Differentiable; computed in fp32 (fp64
    of fp64 volumes) under autocast too. Raises ValueError on another padding and on a grid below the window.
    """
    if padding not in ("valid", "zeros") or (padding == "valid" and min(pred.shape[-3:]) <= 2 * RADIUS):
        raise ValueError(f"padding {padding!r} on a grid {tuple(pred.shape[-3:])}: 'zeros', or 'valid' from 11 voxels")
    with torch.autocast(pred.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(pred.dtype, truth.dtype), torch.float32)
        p, t = pred.to(dtype), truth.to(dtype)
        _error(p, t)
        scale = _per_channel(data_range, p)[:, None, None, None]
        p, t = p / scale, t / scale
        mean_p, mean_t, squares, product = _smooth(torch.stack((p, t, p * p + t * t, p * t)), padding)
        squared_means = mean_p.square() + mean_t.square()
        luminance = (2 * mean_p * mean_t + K1**2) / (squared_means + K1**2)
        return luminance * (2 * (product - mean_p * mean_t) + K2**2) / (squares - squared_means + K2**2)


def erode(mask: Tensor) -> Tensor:
    """Voxels whose 11^3 window lies in the mask, on the grid of the "valid" `ssim_map`."""
    outside = (~mask).float().unsqueeze(1)
    for axis in range(3):
        kernel = [1, 1, 1]
        kernel[axis] = 2 * RADIUS + 1
        outside = F.max_pool3d(outside, kernel, stride=1)
    return outside.squeeze(1) == 0


def ssim(pred: Tensor, truth: Tensor, mask: Tensor, data_range: float | Sequence[float]) -> Tensor:
    """Mean of `ssim_map` over the voxels whose window lies in the mask, (P, C).

    The window is 11 voxels, so values compare within one grid only. NaN where no window fits.
    """
    return mean(ssim_map(pred, truth, data_range, "valid"), erode(mask))


def legacy_rmse(pred: Tensor, truth: Tensor) -> Tensor:
    """RMSE pooled over both channels in raw mm^-1 and the whole cube with its air, (P,).

    A set is pooled as sqrt(mean(legacy_rmse^2)). A musp metric: mua carries about 1/20,000 of the squared error.
    """
    return _error(pred, truth).double().square().mean((1, 2, 3, 4)).sqrt()


def legacy_psnr(pred: Tensor, truth: Tensor) -> Tensor:
    """-20 log10(`legacy_rmse`), dB, (P,): data range 1. A set: the same of its pooled RMSE."""
    return -20 * torch.log10(legacy_rmse(pred, truth))


def legacy_ssim(pred: Tensor, truth: Tensor) -> Tensor:
    """SSIM over the whole cube with zero-padded window and data range 1, channels averaged, (P,).

    Air agrees with air: predicting zero scores about 0.7 at 64^3.
    """
    return ssim_map(pred, truth, 1.0, "zeros").double().mean((1, 2, 3, 4))


def _fidelity(raw: Tensor, truth: Tensor, masks: Regions, covered: Tensor | None) -> dict[str, Tensor]:
    pred, tissue = clamp(raw), masks.tissue
    columns = {
        "rmse": rmse(pred, truth, tissue),
        "nrmse": nrmse(pred, truth, tissue),
        "nrmse_unclamped": nrmse(raw, truth, tissue),
        "psnr": psnr(pred, truth, tissue, RANGES),
        "ssim": ssim(pred, truth, tissue, RANGES),
    }
    parts = {"": masks.background, "_shell": masks.shell & ~masks.rim & ~masks.inclusions.any(1)}
    if covered is not None:
        columns["nrmse_covered"] = nrmse(pred, truth, covered & tissue)
        columns["nrmse_uncovered"] = nrmse(pred, truth, ~covered & tissue)
        parts["_covered"] = covered & masks.background
    for part, mask in parts.items():
        columns["background_noise" + part] = background_noise(pred, truth, mask)
        columns["bias" + part] = bias(pred, truth, mask)
    return columns | {metric.__name__: metric(raw, truth) for metric in (legacy_rmse, legacy_psnr, legacy_ssim)}


def _recovery(pred: Tensor, truth: Tensor, masks: Regions) -> dict[str, Tensor]:
    columns = {"contrast": contrast(pred, masks), "contrast_true": contrast(truth, masks), "cnr": cnr(pred, masks)}
    metrics = (crc, crosstalk, localisation, dice, volume_ratio)
    return columns | {metric.__name__: metric(pred, truth, masks) for metric in metrics}


def evaluate(
    pred: Tensor,
    truth: Tensor,
    labels: Tensor,
    voxel: float,
    references: Mapping[str, Tensor] | None = None,
    covered: Tensor | None = None,
    generator: torch.Generator | None = None,
    chunk: int = 16,
) -> dict[str, Tensor]:
    """All metrics of a set of volumes, by name; (P, C), (P, K, C) or, of the legacy ones, (P,), on the CPU.

    pred is clamped to >= 0 except for `nrmse_unclamped` and the legacy columns. references: volumes, (P, ...) or
    (1, ...), for the columns `skill_<name>`. covered: bool (P, D, H, W), the part that a probe sees, for the columns
    `*_covered`. generator: of the CPU, for `localisation_chance`. chunk: phantoms at a time; it changes no value.
    Raises ValueError on shapes that do not fit.
    """
    _error(pred, truth)
    references = references or {}
    shapes = {name: tuple(x.shape) for name, x in references.items() if x.shape[1:] != truth.shape[1:]}
    if labels.shape != truth[:, 0].shape or shapes:
        raise ValueError(f"labels {tuple(labels.shape)}, references {shapes} do not fit volumes {tuple(truth.shape)}")
    count = max(int(labels.max()) - 1, 1)
    rows = []
    for start in range(0, len(pred), chunk):
        part = slice(start, start + chunk)
        masks = regions(labels[part], voxel, count).to(pred.device)
        p, t = pred[part].float(), truth[part].to(pred.device).float()
        row = _fidelity(p, t, masks, None if covered is None else covered[part].to(pred.device))
        for name, reference in references.items():
            near = reference.expand_as(truth)[part].to(pred.device)
            row["skill_" + name] = skill(clamp(p), t, near, masks.tissue)
            if covered is not None:
                row[f"skill_{name}_covered"] = skill(clamp(p), t, near, masks.tissue & covered[part].to(pred.device))
        row |= _recovery(clamp(p), t, masks)
        if generator is not None:
            row["localisation_chance"] = localisation_chance(t, masks, generator)
        rows.append(row)
    return {name: torch.cat([row[name] for row in rows]).cpu() for name in rows[0]}
