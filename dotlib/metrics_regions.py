"""Where a volume is judged, and what is seen of its inclusions there.

P phantoms, K inclusions, C = 2 channels (mua, musp). Masks come from the truth alone. A value that does not exist
(an absent inclusion, an empty mask) is NaN, and nothing is averaged over phantoms or inclusions.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

RIM, SHELL, SEARCH = 3.0, 3.0, 8.0  # mm
RESOLUTION = 4.0  # mm, standard deviation: a diffuse image resolves about a centimetre (full width)
LEAST_CONTRAST = 0.1  # below it partial volumes at the surface make up the contrast: the inclusion has none


class Regions(NamedTuple):
    """Masks, bool: inclusions and windows (P, K, D, H, W), the others (P, D, H, W); voxel in mm.

    windows[:, k] is where inclusion k is searched: within 8 mm of it, inside the tissue, without the other inclusions.
    """

    tissue: Tensor
    inclusions: Tensor
    windows: Tensor
    rim: Tensor
    background: Tensor
    shell: Tensor
    voxel: float

    def to(self, device: torch.device | str) -> "Regions":
        return Regions(*(mask.to(device) for mask in self[:-1]), self.voxel)


def _near(mask: np.ndarray, radius: float, voxel: float) -> np.ndarray:
    """Voxels whose centre lies within `radius` of a centre in the mask; the transform sees the mask's box only."""
    near = np.zeros_like(mask)
    if mask.any():
        reach = int(radius / voxel) + 1
        box = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in ndimage.find_objects(mask.astype("u1"))[0])
        near[box] = ndimage.distance_transform_edt(~mask[box], sampling=voxel) <= radius
    return near


def regions(labels: Tensor, voxel: float, count: int | None = None) -> Regions:
    """Tissue, inclusions, their rim, the background and the outer shell of labelled phantoms.

    The background lies apart from rim and shell: the shell's voxels mix tissue and air, and are reported separately.

    labels: integers (P, D, H, W), 0 air, 1 background, 2.. inclusions; voxel: mm. Distances run between voxel
    centres, and outside the cube lies air. count: number of inclusions K to provide for, by default the largest in
    the set, at least 1. The masks lie on the device of the labels. Raises ValueError on labels of another kind.
    """
    if labels.ndim != 4 or labels.is_floating_point() or voxel <= 0:
        raise ValueError(f"labels {labels.dtype} {tuple(labels.shape)}, voxel {voxel}: integers (P, D, H, W), mm > 0")
    array = labels.cpu().numpy()
    count = max(int(array.max()) - 1, 1) if count is None else count
    tissue, union = array > 0, array > 1
    inclusions = array[:, None] == np.arange(2, count + 2)[:, None, None, None]
    windows = np.stack([[_near(mask, SEARCH, voxel) for mask in masks] for masks in inclusions])
    near = np.stack([_near(mask, RIM, voxel) for mask in union])
    air = np.pad(~tissue, ((0, 0), (1, 1), (1, 1), (1, 1)), constant_values=True)
    edge = np.stack([_near(mask, SHELL, voxel)[1:-1, 1:-1, 1:-1] for mask in air])
    windows &= (tissue & ~union)[:, None] | inclusions
    masks = (tissue, inclusions, windows, near & tissue & ~union, tissue & ~near & ~edge, tissue & edge)
    return Regions(*(torch.from_numpy(mask).to(labels.device) for mask in masks), float(voxel))


def _values(volume: Tensor, mask: Tensor) -> list[Tensor]:
    """The voxels of each phantom in its mask, fp64 (C, n)."""
    if volume.ndim != 5 or mask.shape != volume[:, 0].shape or mask.dtype != torch.bool:
        shapes = f"volume {tuple(volume.shape)}, mask {mask.dtype} {tuple(mask.shape)}"
        raise ValueError(f"{shapes}: (P, C, D, H, W) and bool (P, D, H, W) are needed")
    return [channels[:, inside].double() for channels, inside in zip(volume, mask, strict=True)]


def _variance(values: Tensor) -> Tensor:
    return (values - values.mean(-1, keepdim=True)).square().mean(-1)


def mean(volume: Tensor, mask: Tensor) -> Tensor:
    """Mean over a mask, (P, C), fp64."""
    return torch.stack([values.mean(-1) for values in _values(volume, mask)])


def deviation(volume: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation over a mask (divided by n), (P, C), fp64."""
    return torch.stack([_variance(values).sqrt() for values in _values(volume, mask)])


def _each(rule: Callable[[int, int], Tensor], regions: Regions) -> Tensor:
    """A rule of (phantom, inclusion) that gives (C,), for all of them: (P, K, C)."""
    phantoms, count = regions.inclusions.shape[:2]
    return torch.stack([torch.stack([rule(p, k) for k in range(count)]) for p in range(phantoms)])


def _inside(volume: Tensor, regions: Regions) -> Tensor:
    """Mean of each inclusion, (P, K, C)."""
    return _each(lambda p, k: volume[p][:, regions.inclusions[p, k]].double().mean(-1), regions)


def contrast(volume: Tensor, regions: Regions) -> Tensor:
    """Contrast of each inclusion, mean_T / mean_B - 1, (P, K, C)."""
    return _inside(volume, regions) / mean(volume, regions.background)[:, None] - 1


def crc(pred: Tensor, truth: Tensor, regions: Regions) -> Tensor:
    """Contrast recovery coefficient C_pred / C_true, (P, K, C); NaN where the inclusion has no true contrast."""
    true = contrast(truth, regions)
    return torch.where(true.abs() >= LEAST_CONTRAST, contrast(pred, regions) / true, torch.nan)


def crosstalk(pred: Tensor, truth: Tensor, regions: Regions) -> Tensor:
    """Contrast that appears in the wrong channel, C_pred - C_true, (P, K, C).

    Defined in a channel without true contrast while the other channel has it; NaN elsewhere.
    """
    true = contrast(truth, regions)
    present = true.abs() >= LEAST_CONTRAST
    wrong = ~present & present.any(-1, keepdim=True)
    return torch.where(wrong, contrast(pred, regions) - true, torch.nan)


def contrast_visible(pred: Tensor, twin: Tensor, regions: Regions) -> Tensor:
    """The clinical criterion on mua, (P, K): 1 where C >= 0.20 and, in the twin, C <= 0.05; else 0.

    twin: the prediction for the same phantom without tumours, judged in the same regions. NaN where a contrast is.
    """
    seen, ghost = contrast(pred, regions)[..., 0], contrast(twin, regions)[..., 0]
    return torch.where(seen.isnan() | ghost.isnan(), torch.nan, ((seen >= 0.20) & (ghost <= 0.05)).double())


def cnr(volume: Tensor, regions: Regions) -> Tensor:
    """Contrast-to-noise ratio (mean_T - mean_B) / sqrt(w_T var_T + w_B var_B), (P, K, C).

    w: the volume fractions |T| / (|T| + |B|) and |B| / (|T| + |B|) (Song, Pogue 2004); variances divided by n. An
    image without noise has no CNR: infinite, or NaN without contrast.
    """
    backgrounds = _values(volume, regions.background)

    def rule(p: int, k: int) -> Tensor:
        inside, outside = volume[p][:, regions.inclusions[p, k]].double(), backgrounds[p]
        weight = inside.shape[1] / max(inside.shape[1] + outside.shape[1], 1)
        variance = weight * _variance(inside) + (1 - weight) * _variance(outside)
        return (inside.mean(-1) - outside.mean(-1)) / variance.sqrt()

    return _each(rule, regions)


def _bright(value: Tensor, truth: Tensor, regions: Regions) -> Tensor:
    return torch.where(contrast(truth, regions) >= LEAST_CONTRAST, value, torch.nan)


def localisation(pred: Tensor, truth: Tensor, regions: Regions) -> Tensor:
    """Distance between the centroid above half maximum and the true centroid, mm, (P, K, C) (White, Culver 2010).

    Half of the largest pred - mean_B(pred) in the inclusion's search window, voxels counted equally. NaN where the
    inclusion is not brighter than its background in truth, or the prediction nowhere in the window.
    """
    level = mean(pred, regions.background)

    def rule(p: int, k: int) -> Tensor:
        window = regions.windows[p, k]
        true = regions.inclusions[p, k].nonzero().double().mean(0)
        excess = pred[p][:, window] - level[p, :, None]
        half = torch.cat((excess, excess.new_zeros(len(excess), 1)), 1).amax(1) / 2
        above = ((excess > 0) & (excess >= half[:, None])).double()
        return torch.linalg.vector_norm(above @ (window.nonzero() - true) / above.sum(1, keepdim=True), dim=1)

    return _bright(_each(rule, regions) * regions.voxel, truth, regions)


def localisation_chance(truth: Tensor, regions: Regions, generator: torch.Generator) -> Tensor:
    """`localisation` of an image that knows nothing, mm, (P, K, C): white noise smoothed to diffuse resolution.

    It belongs to the set and its windows, not to a prediction. generator: of the CPU.
    """
    noise = torch.randn(truth.shape, generator=generator).numpy()
    width = RESOLUTION / regions.voxel
    image = torch.from_numpy(ndimage.gaussian_filter(noise, width, axes=(2, 3, 4)))
    return localisation(image.to(truth.device), truth, regions)


def _overlap(pred: Tensor, truth: Tensor, regions: Regions, ratio: Callable[..., Tensor]) -> Tensor:
    thresholds = (mean(truth, regions.background)[:, None] + _inside(truth, regions)) / 2

    def rule(p: int, k: int) -> Tensor:
        window = regions.windows[p, k]
        true = regions.inclusions[p, k][window]
        found = pred[p][:, window] > thresholds[p, k, :, None]
        return ratio((found & true).sum(1).double(), found.sum(1).double(), true.sum().double())

    return _bright(_each(rule, regions), truth, regions)


def dice(pred: Tensor, truth: Tensor, regions: Regions) -> Tensor:
    """Dice coefficient 2 |F T| / (|F| + |T|), (P, K, C), F = search window above the half-way threshold.

    The threshold lies half way between the true background and the true inclusion. Nothing found is 0; NaN where
    the inclusion is absent or not brighter than its background in truth.
    """
    return _overlap(pred, truth, regions, lambda both, found, true: 2 * both / (found + true))


def volume_ratio(pred: Tensor, truth: Tensor, regions: Regions) -> Tensor:
    """Volume found over true volume, |F| / |T|, (P, K, C); F and the conventions are those of `dice`."""
    return _overlap(pred, truth, regions, lambda both, found, true: found / true)


class Detection(NamedTuple):
    """score (P, K, C): peak of the component that hits, 0 missed, NaN absent; false_lesions (P, C): components."""

    score: Tensor
    false_lesions: Tensor


class Froc(NamedTuple):
    """thresholds, recall over all inclusions and false lesions a phantom, each (N, C)."""

    thresholds: Tensor
    recall: Tensor
    false_lesions: Tensor


def _components(excess: np.ndarray, threshold: float) -> Iterator[tuple[tuple[int, ...], float]]:
    """Voxel of the centroid, and peak, of every 6-connected component above the threshold."""
    labels, _ = ndimage.label(excess > threshold)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        mask = labels[box] == number
        centre = np.argwhere(mask).mean(0) + [side.start for side in box]
        yield tuple((centre + 0.5).astype(int)), float(excess[box][mask].max())


def _thresholds(thresholds, channels: int) -> Tensor:
    table = torch.as_tensor(thresholds, dtype=torch.float64)
    if table.ndim != 2 or table.shape[1] != channels or not (table > 0).all() or not (table.diff(dim=0) > 0).all():
        raise ValueError(f"thresholds {table.tolist()}: positive and ascending (N, C = {channels}), mm^-1, are needed")
    return table


def detection(pred: Tensor, regions: Regions, threshold) -> Detection:
    """Inclusions found among the components of pred - mean_B(pred) above a threshold, and false lesions.

    threshold: one positive value a channel, mm^-1. Components lie in the tissue and are 6-connected; one whose
    centroid lies in T_k hits inclusion k, every other one is a false lesion.
    """
    threshold = _thresholds(torch.as_tensor(threshold)[None], pred.shape[1])[0].tolist()
    excess = pred - mean(pred, regions.background)[..., None, None, None]
    excess = torch.where(regions.tissue.unsqueeze(1), excess, 0).cpu().numpy()
    numbers = torch.arange(1, regions.inclusions.shape[1] + 1, device=regions.inclusions.device)
    which = (regions.inclusions * numbers[:, None, None, None]).sum(1).cpu().numpy()
    present = regions.inclusions.flatten(2).any(-1).cpu()
    score = torch.where(present, 0.0, torch.nan).double().unsqueeze(-1).repeat(1, 1, len(threshold))
    false = torch.zeros(excess.shape[:2], dtype=torch.float64)
    for phantom, channel in np.ndindex(excess.shape[:2]):
        for centre, peak in _components(excess[phantom, channel], threshold[channel]):
            k = which[phantom][centre] - 1
            if k < 0:
                false[phantom, channel] += 1
            else:
                score[phantom, k, channel] = max(score[phantom, k, channel].item(), peak)
    return Detection(score, false)


def froc(pred: Tensor, regions: Regions, thresholds) -> Froc:
    """Free-response curve of `detection` over ascending thresholds (N, C), mm^-1; recall is NaN without inclusions."""
    table = _thresholds(thresholds, pred.shape[1])
    found = [detection(pred, regions, row) for row in table]
    hits = [torch.where(f.score.isnan(), torch.nan, (f.score > 0).double()).nanmean((0, 1)) for f in found]
    return Froc(table, torch.stack(hits), torch.stack([f.false_lesions.mean(0) for f in found]))


def operating_point(pred: Tensor, regions: Regions, thresholds, rate: float = 0.1) -> Tensor:
    """Smallest threshold, (C,), from which upwards tumour-free phantoms show at most `rate` false lesions each.

    thresholds: candidates (N, C), mm^-1, ascending. Raises ValueError on inclusions in the set, or if the last
    candidate still exceeds the rate.
    """
    curve = froc(pred, regions, thresholds)
    if regions.inclusions.any() or (curve.false_lesions[-1] > rate).any():
        raise ValueError(
            f"false lesions {curve.false_lesions[-1].tolist()} a phantom at the highest threshold: "
            f"tumour-free phantoms and a candidate with at most {rate} are needed"
        )
    above = (curve.false_lesions > rate).double()
    first = (above * torch.arange(1, len(above) + 1)[:, None]).amax(0).long()
    return curve.thresholds.gather(0, first[None])[0]
