"""One recording into volumes: a dataset file or SNIRF, through trained networks, to HDF5, NIfTI and a figure."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor, nn

from . import checkpoint, inference
from .config import Config, Lift, Measurements, Noise, validate
from .data import lifts, noise, phantoms, placement, samples, sampling, snirf, store
from .data.surface import Surface
from .physics import diffusion, homogeneous
from .physics.rytov import Readings

TASK = "reconstruct"


class InputError(ValueError):
    """A recording or a network that does not serve, as one line."""


@dataclass(frozen=True)
class Recording:
    """What is reconstructed: the tissue's row (13,), readings, and from voxel centres to the file's mm at a grid.

    `notes`: what was done on the way, for the summary.
    """

    tissue: np.ndarray
    readings: Readings
    place: placement.Placement | None
    notes: tuple[str, ...]

    def affine(self, grid: int) -> np.ndarray:
        """From voxel indices to millimetres of the file, (4, 4)."""
        if self.place:
            return self.place.affine(grid)
        h = phantoms.CUBE / grid
        out = np.diag([h, h, h, 1.0])
        out[:3, 3] = h / 2 - phantoms.CUBE / 2
        return out


@dataclass(frozen=True)
class Volumes:
    """mua and musp (2, G, G, G), mm^-1; `sd` over several networks, None of one; the fit; seconds without the start."""

    mean: np.ndarray
    sd: np.ndarray | None
    fit: homogeneous.Fit
    pairs: int
    seconds: float


def networks(paths: Sequence[Path]) -> tuple[Config, list[nn.Module]]:
    """Trained networks by their checkpoints, and their configuration, which differs in the seed alone.

    Raises CheckpointError, ConfigError, and InputError for a checkpoint that holds another network than it says.
    """
    found, models = [], []
    for path in paths:
        about, state = checkpoint.alone(path)
        config = validate(Config, _fields(about, f"{path}: its configuration"), str(path))
        if config.task != TASK:
            raise InputError(f"{path}: a network of task {config.task!r}; one of task {TASK!r} is accepted")
        models.append(_network(path, config, state.get("judged")))
        found.append(config.model_copy(update={"seed": 0}))
    for path, config in zip(paths, found, strict=True):
        if config != found[0]:
            raise InputError(f"{path}: another configuration than {paths[0]}; seeds of one are accepted")
    return found[0], models


def _fields(text: str, what: str) -> dict[str, Any]:
    """The fields of a JSON object that a file holds."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is no JSON: {(str(error).splitlines() or ['empty'])[0]}") from None
    if not isinstance(found, dict):
        raise InputError(f"{what} is no JSON object")
    return found


def _network(path: Path, config: Config, weights: Any) -> nn.Module:
    """The network of a configuration with these weights, whose shapes are compared before any memory is taken."""
    try:
        with torch.device("meta"):
            wanted = {name: value.shape for name, value in inference.network(config).state_dict().items()}
    except (RuntimeError, OverflowError) as error:
        raise InputError(f"{path}: no such network: {str(error).splitlines()[0]:.80}") from None
    held = weights if isinstance(weights, dict) else {}
    shapes = {name: getattr(value, "shape", None) for name, value in held.items()}
    if other := sorted(name for name in {*wanted, *shapes} if wanted.get(name) != shapes.get(name)):
        raise InputError(f"{path}: its weights are not those of its configuration: {str(other[0])[:80]!r}")
    model = inference.network(config)
    model.load_state_dict(weights)
    return model.to(memory_format=torch.channels_last_3d).eval()


def _row(path: Path, index: int) -> tuple[dict[str, np.ndarray], Measurements, tuple[str, ...]]:
    """A phantom's columns by name, its light, and what is to be said of that."""
    with store.File(path) as file:
        if not 0 <= index < len(file):
            raise InputError(f"{path}: phantom {index}; 0 to {len(file) - 1} are accepted")
        if missing := [name for name in store.MEASURED if name not in file]:
            raise InputError(f"{path}: dataset {missing[0]!r} is missing; readings are needed")
        names = [name for name in ("ellipsoids", *store.MEASURED) if name in file]
        row = {name: file.raw(name, index, index + 1)[0] for name in names}
        held = file.attribute("fields") or file.attribute("configuration")
    measured = _fields(held, f"{path}: its configuration").get("measurements") if held else None
    measured = measured if isinstance(measured, dict) else {}
    measured = {name: measured[name] for name in ("frequency", "n") if name in measured}
    light = validate(Measurements, measured, f"{path}: its configuration")
    notes = () if held else (f"{light.frequency / 1e6:g} MHz and index {light.n:g} taken, which the file does not say",)
    return row, light, notes


def as_snirf(path: Path, index: int, wavelength: float) -> snirf.Recording:
    """Phantom `index` of a dataset file as a recording at `wavelength` nm, which a dataset does not have."""
    row, light, _ = _row(path, index)
    usable = np.isfinite(row["phase"])
    if not usable.any():
        raise InputError(f"{path}: phantom {index}: every pair is lost")
    of_pairs = {name: row[name][usable] for name in ("pairs", "log_amplitude", "phase", "sigma")}
    probe = {name: row[name].astype(float) for name in ("sources", "detectors")}
    return snirf.Recording(**probe, **of_pairs, frequency=light.frequency, wavelength=wavelength)


def from_dataset(path: Path, index: int, config: Config, every: bool = False, radius: float | None = None) -> Recording:
    """Phantom `index` of a dataset file; pairs as the network was trained with, or `every` one.

    Its surface is the file's; of a file without phantoms, or for a network that was trained so, it is taken for a
    sphere, of `radius` mm where that is known.
    """
    row, light, notes = _row(path, index)
    if "ellipsoids" in row and radius is None and config.lift.surface == "known":
        return _recording(row, row["ellipsoids"][0], None, light, config, index, every, notes)
    place, more = _placed(path, row, radius)
    return _recording(row, place.tissue, place, light, config, index, every, (*notes, *more))


def from_snirf(
    path: Path, config: Config, every: bool = False, radius: float | None = None, n: float = 1.33, **choices
) -> Recording:
    """A recording of tissue of unknown surface, which is taken for a sphere; `choices` as in `snirf.read`."""
    found = snirf.read(path, **choices)
    row = {name: getattr(found, name) for name in store.MEASURED}
    notes = [f"{found.wavelength:g} nm, {found.frequency / 1e6:g} MHz, index {n:g} taken"]
    if np.isnan(found.sigma).any():
        nominal = noise.sd(np.exp(found.log_amplitude), Noise())
        row["sigma"] = np.where(np.isnan(found.sigma), nominal, found.sigma)
        notes.append("noise taken as nominal where the file has one sample")
    if left_out := [f"{len(pairs)} {why}" for why, pairs in found.excluded.items() if len(pairs)]:
        notes.append(f"left out: {', '.join(left_out)}")
    place, more = _placed(path, row, radius)
    light = Measurements(frequency=found.frequency, n=n)
    return _recording(row, place.tissue, place, light, config, 0, every, (*notes, *more))


def _placed(
    path: Path, row: dict[str, np.ndarray], radius: float | None
) -> tuple[placement.Placement, tuple[str, ...]]:
    """The optodes' sphere and frame, to which the columns' optodes are moved, and what is to be said of it."""
    try:
        place = placement.place(row["sources"], row["detectors"], radius)
    except placement.PlacementError as error:
        raise InputError(f"{path}: {error}") from None
    row |= {"sources": place.sources, "detectors": place.detectors}
    how = "fitted" if radius is None else "given"
    return place, (f"sphere of {place.tissue[3]:.1f} mm {how}, optodes moved by {place.moved:.1f} mm at most",)


def _recording(
    row: dict[str, np.ndarray], tissue: np.ndarray, place: placement.Placement | None, light: Measurements,
    config: Config, index: int, every: bool, notes: tuple[str, ...] = (),
) -> Recording:  # fmt: skip
    chosen, of_pairs = _chosen(row, config.lift, index, every)
    data = config.data.model_copy(update={"measurements": light})
    readings = lifts.readings(row, chosen, data, config.lift.gain, "cpu")
    return Recording(tissue, readings, place, (*of_pairs, *notes))


def _chosen(row: dict[str, np.ndarray], chosen: Lift, index: int, every: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """The pairs that are used, and what is to be said of them."""
    usable = np.isfinite(row["phase"])
    if not usable.any():
        raise InputError(f"phantom {index}: every pair is lost")
    if every or usable.sum() <= chosen.count:
        fewer = usable.sum() < chosen.count
        note = f", fewer than the {chosen.count} that the network was trained with" if fewer else ""
        return np.flatnonzero(usable), (f"{usable.sum()} pairs{note}",)
    probe = [row[name][None] for name in ("sources", "detectors", "pairs", "sigma")]
    where = np.array([index])
    found = sampling.subsets(chosen.pattern, *probe, ~usable[None], chosen.count, (chosen.seed, 0), where)[0]
    return found[found >= 0], (f"{(found >= 0).sum()} of {usable.sum()} pairs ({chosen.pattern}, as in training)",)


@torch.no_grad()
def reconstruct(recording: Recording, config: Config, models: Sequence[nn.Module]) -> Volumes:
    """Fit, lift, predict. Raises InputError where no homogeneous tissue comes near the readings."""
    start, grid = time.perf_counter(), config.data.grid
    try:
        surface = Surface(recording.tissue)
        scene = homogeneous.Scene.of(surface, recording.readings, config.data.model_grid, phantoms.CUBE)
        fit = homogeneous.fit([scene])[0]
        kind = config.lift.kind
        lifted = (
            lifts.closed(surface, scene.readings) if kind == "closed-form" else lifts.channels(config.lift, scene, fit)
        )
    except (homogeneous.FitError, diffusion.ConvergenceError, ValueError) as error:
        raise InputError(str(error).replace("object 0", "the readings")) from None
    seen = samples.joined(lifted[None], fraction(recording.tissue, grid)).float()
    found = torch.cat([inference.predict(model, seen) for model in models]).clamp_min(0)
    sd = found.std(0).numpy() if len(models) > 1 else None
    return Volumes(found.mean(0).numpy(), sd, fit, len(recording.readings.pairs), time.perf_counter() - start)


def fraction(tissue: np.ndarray, grid: int) -> Tensor:
    """Volume fractions (1, 1, grid, grid, grid) of one tissue row (13,)."""
    table = np.full((1, phantoms.ROWS, phantoms.COLUMNS), np.nan)
    table[0, 0] = tissue
    table[0, 0, [phantoms.MUA, phantoms.MUSP]] = 1
    return phantoms.rasterise(table, grid)[:, :1]


def save(found: Volumes, recording: Recording, source: Path, stem: Path) -> list[Path]:
    """`stem`.h5 with all, and `stem`.mua.nii.gz and .musp.nii.gz, in mm of the file. Returns what was written."""
    affine, paths = recording.affine(found.mean.shape[-1]), [Path(f"{stem}.h5")]
    with store.writing(paths[0]) as file:
        for i, name in enumerate(inference.CHANNELS):
            file.create_dataset(name, data=found.mean[i], track_times=False)
            if found.sd is not None:
                file.create_dataset(f"{name}_sd", data=found.sd[i], track_times=False)
        file.create_dataset("affine", data=affine, track_times=False)
        file.attrs["unit"], file.attrs["source"] = np.bytes_("mm^-1"), np.bytes_(source.name)
        file.attrs["fitted"], file.attrs["misfit"] = found.fit.values.numpy(), found.fit.misfit
    for i, name in enumerate(inference.CHANNELS):
        paths.append(Path(f"{stem}.{name}.nii.gz"))
        image = nibabel.Nifti1Image(found.mean[i].astype(np.float32), affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, paths[-1])
    return paths


def summary(found: Volumes, recording: Recording, source: Path) -> str:
    """One line: the fitted background, the range that was found, and where the strongest absorption lies."""
    mua, musp = found.mean
    top = np.unravel_index(mua.argmax(), mua.shape)
    place = recording.affine(len(mua)) @ [*top, 1]
    fitted = found.fit.values.tolist()
    return (
        f"{source}: {'; '.join(recording.notes)}; fitted mua {fitted[0]:.4f}, musp {fitted[1]:.2f} mm^-1; largest mua "
        f"{mua.max():.4f} at ({place[0]:.0f}, {place[1]:.0f}, {place[2]:.0f}) mm, largest musp {musp.max():.2f}; "
        f"{found.seconds:.1f} s"
    )
