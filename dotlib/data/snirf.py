"""Frequency-domain recordings in SNIRF, the file format of near-infrared spectroscopy.

Source: SNIRF specification v1.1; Tucker et al. 2022, Neurophotonics 10(1) 013507. Read too, never written, are
`measurementLists` and `dataOffset` of the draft of v1.2. Indices are 1-based in a file, 0-based here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from . import foreign
from .snirf_file import AMPLITUDE, COLUMNS, FLOOR, NAMES, PHASE, UNITS, Recording, SnirfError, examine

__all__ = ["FLOOR", "Recording", "SnirfError", "read", "write"]


def read(
    path: Path, wavelength: float | None = None, frequency: float | None = None, block: int = 1,
    saturation: float | None = None, dark: float = 1e-6, units: Mapping[str, str] | None = None, entry: int = 1,
) -> Recording:  # fmt: skip
    """Read block `data{block}` of `nirs{entry}`: the pairs with amplitude and phase, each the mean over time.

    The mean is that of ln A and of the phase; sigma is its standard error, samples taken as independent, FLOOR at
    least, NaN for one sample. Left out are pairs with a sample that is not finite, above `saturation` (the file's unit)
    or not above 0, and those whose mean amplitude is below `dark` times the largest. Phase without a unit is in rad,
    SI's. The format leaves its sign open: where its rank correlation with the separation is negative, it is turned.
    Offsets and whole turns stay. `units` ("length", "frequency", "phase") replaces what the file says and is not
    doubted. SnirfError for a choice that is missing and for a file that cannot be used, by the process of `foreign`
    that reads it.
    """
    path, units = Path(path), dict(units or {})
    chosen = {"wavelength": wavelength, "frequency": frequency, "saturation": saturation}
    chosen = {name: None if value is None else float(value) for name, value in chosen.items()}
    try:
        if not path.is_file():
            raise SnirfError(f"{path}: {'a directory' if path.is_dir() else 'no such file'}")
        if unknown := sorted(set(units) - set(UNITS)):
            raise SnirfError(f"{path}: units of {unknown[0]!r}; accepted: {', '.join(UNITS)}")
        with path.open("rb") as file:
            place = {"entry": entry, "block": block, "dark": dark, "units": units}
            found = foreign.examined(file.fileno(), path, examine, **place, **chosen)
    except foreign.ForeignError as error:
        raise SnirfError(str(error)) from None
    except OSError as error:
        raise SnirfError(f"{path}: {os.strerror(error.errno)}") from None
    excluded = {why: np.array(pairs, np.int64).reshape(-1, 2) for why, pairs in found.pop("excluded").items()}
    columns = {name: np.array(found.pop(name), kind) for name, kind in COLUMNS.items()}
    return Recording(**columns, **found, excluded=excluded)


def write(path: Path, recording: Recording, subject="unknown", date="unknown", time="unknown") -> None:
    """Write a SNIRF 1.1 file of one block, whole or not at all; the same recording gives the same bytes.

    A known sigma is written as two samples, the values minus and plus sigma, whose mean and standard error they are;
    NaN in all pairs as one sample. Date and time are "unknown", or YYYY-MM-DD and hh:mm:ssZ or with another zone.
    SnirfError for another suffix than .snirf, shapes that disagree and a sigma of some pairs only.
    """
    path, sigma = Path(path), np.asarray(recording.sigma)
    if path.suffix != ".snirf":
        raise SnirfError(f"{path}: suffix {path.suffix!r}; accepted: '.snirf'")
    if not np.shape(recording.log_amplitude) == np.shape(recording.phase) == sigma.shape[:1] == (len(recording.pairs),):
        raise SnirfError(f"{path}: pairs, log_amplitude, phase and sigma differ in number")
    if (known := np.isfinite(sigma)).any() and not known.all():
        raise SnirfError(f"{path}: sigma is known in {known.sum()} of {known.size} readings; accepted: all or none")
    shifts = sigma.T * np.array([-1, 1])[:, None, None] if known.all() else np.zeros((1, 2, 1))
    series = np.hstack([np.exp(recording.log_amplitude + shifts[:, 0]), recording.phase + shifts[:, 1]])
    text = {"formatVersion": "1.1", "nirs/metaDataTags/SubjectID": subject, "nirs/metaDataTags/MeasurementDate": date}
    text |= {"nirs/metaDataTags/MeasurementTime": time, "nirs/metaDataTags/TimeUnit": "s"}
    text |= {"nirs/metaDataTags/LengthUnit": "mm", "nirs/metaDataTags/FrequencyUnit": "Hz"}
    numbers = {"probe/wavelengths": [recording.wavelength], "probe/frequencies": [recording.frequency]}
    numbers |= {"data1/dataTimeSeries": series, "data1/time": np.arange(len(series))}
    for name, optodes in (("source", recording.sources), ("detector", recording.detectors)):
        numbers[f"probe/{name}Pos3D"] = optodes
        text[f"nirs/probe/{name}Labels"] = [f"{name[0].upper()}{k + 1}" for k in range(len(optodes))]
    held, columns = io.BytesIO(), [(kind, s, d) for kind in (AMPLITUDE, PHASE) for s, d in recording.pairs.tolist()]
    with h5py.File(held, "w") as file:
        for name, values in numbers.items():
            file.create_dataset(f"nirs/{name}", data=values, dtype="f8")
        for k, (kind, s, d) in enumerate(columns):
            group = file.create_group(f"nirs/data1/measurementList{k + 1}")
            for name, value in zip(NAMES, (kind, s + 1, d + 1, 1, 1), strict=True):
                group.create_dataset(name, data=value, dtype="i4")
            if kind == PHASE:
                text[f"{group.name}/dataUnit"] = "rad"
        for name, value in text.items():
            file.create_dataset(name, data=value, dtype=h5py.string_dtype())
    part = path.with_name(path.name + ".tmp")
    part.write_bytes(held.getvalue())
    os.replace(part, path)
