"""What a SNIRF file holds: its groups, numbers and units, and the recording that they make.

Source: SNIRF specification v1.1; `measurementLists` and `dataOffset` of the draft of v1.2. Indices are 1-based in a
file, 0-based here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import h5py
import numpy as np

from .schema import elsewhere

AMPLITUDE, PHASE = 101, 102  # data types of frequency-domain channels
NAMES = ("dataType", "sourceIndex", "detectorIndex", "wavelengthIndex", "dataTypeIndex")
KINDS = {1: "continuous wave", 2: "frequency domain", 3: "time domain", 4: "time domain", 5: "correlation"}
KINDS[1000] = "processed"  # by hundreds of data types
_RAD, _DEG = ("rad", "radian", "radians"), ("deg", "degree", "degrees", "°", "o")  # o: degrees in CMIXF-12
UNITS = {  # where a file names its units, and those accepted, in mm, Hz, rad
    "length": ("LengthUnit", {"mm": 1.0, "cm": 10.0, "m": 1000.0}),
    "frequency": ("FrequencyUnit", {"Hz": 1.0, "MHz": 1e6, "GHz": 1e9}),
    "phase": ("dataUnit", dict.fromkeys(_RAD, 1.0) | dict.fromkeys(_DEG, np.pi / 180)),
}
NEAREST, FARTHEST = 5.0, 100.0  # mm: some pair of a probe is at least, and some at most, so far apart
SLOWEST, FASTEST = 1e6, 1e10  # Hz
TURNS = 4 * np.pi  # rad: more than the phase of light that can still be read
FLOOR = 1e-4  # of sigma, in ln and rad: samples that do not change would weigh without bound
COLUMNS = dict.fromkeys(("sources", "detectors", "log_amplitude", "phase", "sigma"), np.float64) | {"pairs": np.int64}
ALONE, FAULTS = "without a partner", ("not finite", "saturated", "dark")


class SnirfError(ValueError):
    """A SNIRF file that cannot be read or written, as one line that names it."""


@dataclass(frozen=True)
class Recording:
    """What a probe read at one wavelength (nm) and one modulation frequency (Hz).

    Sources `(S, 3)` and detectors `(K, 3)` in mm; pairs `(M, 2)`, 0-based (source, detector), sorted; log-amplitude
    `(M,)`, phase `(M,)` in rad, growing with the separation, and the sd of both `(M, 2)`, NaN where unknown. Where it
    was read, `length_unit` is the file's, `excluded` holds by reason the pairs `(N, 2)` left out, and `flipped` says
    that the file's phase falls with the separation.
    """

    sources: np.ndarray
    detectors: np.ndarray
    pairs: np.ndarray
    log_amplitude: np.ndarray
    phase: np.ndarray
    sigma: np.ndarray
    frequency: float
    wavelength: float
    length_unit: str = "mm"
    excluded: Mapping[str, np.ndarray] = field(default_factory=dict)
    flipped: bool = False


def examine(source: str, path: str, entry: int, block: int, saturation: float | None, **choices: Any) -> dict[str, Any]:
    """The fields of the Recording that a file holds, as lists and numbers, by the choices of `snirf.read`.

    For the process that reads files from elsewhere. Raises SnirfError, which calls the file `path`.
    """
    try:
        with h5py.File(source, "r", locking=False) as file:
            limit = np.inf if saturation is None else saturation
            found = asdict(_read(_group(file, "nirs", entry), block, saturation=limit, **choices))
    except SnirfError as error:
        raise SnirfError(f"{path}: {error}") from None
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, OverflowError) as error:  # HDF5's, of many types
        reason = os.strerror(error.errno) if getattr(error, "errno", None) else "truncated, damaged, or no HDF5 file"
        raise SnirfError(f"{path}: {reason}") from None
    found["excluded"] = {why: pairs.tolist() for why, pairs in found["excluded"].items()}
    return found | {name: found[name].tolist() for name in COLUMNS}


def _read(nirs, block, wavelength, frequency, saturation, dark, units) -> Recording:
    named = units
    tags, probe, data = _group(nirs, "metaDataTags"), _group(nirs, "probe"), _group(nirs, "data", block)
    series = _numbers(data, "dataTimeSeries", 2)
    if "dataOffset" in data:
        series = series + _numbers(data, "dataOffset", 1, series.shape[1])
    table, phase_units = _measured(data, series.shape[1])
    units = {what: "".join(_texts(tags, UNITS[what][0])) for what in ("length", "frequency")} | named
    sources, detectors = (_factor("length", units) * _positions(probe, kind) for kind in ("source", "detector"))
    wavelengths = _numbers(probe, "wavelengths", 1)
    frequencies = _factor("frequency", units) * _numbers(probe, "frequencies", 1)
    table = _indices(table, probe, (len(sources), len(detectors), len(wavelengths), len(frequencies)))
    table, wavelength = _chosen(table, "wavelength", "nm", wavelengths[table[:, 4]], wavelength)
    table, frequency = _chosen(table, "modulation frequency", "Hz", frequencies[table[:, 5]], frequency)
    if "frequency" not in named and not SLOWEST <= frequency <= FASTEST:
        raise SnirfError(f"modulated at {frequency:.9g} Hz: in another unit? {_ask('frequency')}")
    bright, late = (_by_pair(table[table[:, 1] == kind]) for kind in (AMPLITUDE, PHASE))
    sets = bright.keys() & late.keys(), bright.keys() ^ late.keys()
    pairs, alone = (np.array(sorted(of), dtype=np.int64).reshape(-1, 2) for of in sets)
    columns = np.array([[bright[s, d], late[s, d]] for s, d in pairs], dtype=int).reshape(-1, 2).T
    fault = _faults(series[:, columns[0]], series[:, columns[1]], saturation, dark)
    excluded = {ALONE: alone, **{why: pairs[fault == why] for why in FAULTS}}
    pairs, columns = pairs[fault == ""], columns[:, fault == ""]
    if not len(pairs):
        counts = ", ".join(f"{len(lost)} {why}" for why, lost in excluded.items() if len(lost))
        raise SnirfError(f"no usable pair at {wavelength:g} nm and {frequency:.9g} Hz: {counts}")
    apart = np.linalg.norm(sources[pairs[:, 0]] - detectors[pairs[:, 1]], axis=1)
    if "length" not in named and (apart.max() < NEAREST or apart.min() > FARTHEST):
        raise SnirfError(f"all pairs are {apart.min():.3g}-{apart.max():.3g} mm apart: another unit? {_ask('length')}")
    phase = _together(_radians(series[:, columns[1]], [phase_units[k] for k in columns[1]], named))
    samples, sigma = np.stack([np.log(series[:, columns[0]]), phase], -1), np.full((len(pairs), 2), np.nan)
    if len(samples) > 1:
        sigma = np.maximum(samples.std(0, ddof=1) / np.sqrt(len(samples)), FLOOR)
    log_amplitude, phase = samples.mean(0).T
    flipped = _falls(apart, phase)
    readings = log_amplitude, -phase if flipped else phase, sigma, frequency, wavelength
    return Recording(sources, detectors, pairs, *readings, units["length"], excluded, flipped)


def _measured(data: h5py.Group, count: int) -> tuple[np.ndarray, list[str]]:
    """The frequency-domain columns, `(C, 6)`: column, data type, 1-based indices; and the unit of every column."""
    if "measurementLists" in data:
        lists = _group(data, "measurementLists")
        table = np.stack([_numbers(lists, name, 1, count) for name in NAMES], -1)
        units = _texts(lists, "dataUnit") or [""] * count
    else:
        groups = [_group(data, "measurementList", k + 1) for k in range(count)]
        table = np.array([[_numbers(group, name, 0) for name in NAMES] for group in groups])
        units = ["".join(_texts(group, "dataUnit")) for group in groups]
    if len(units) != count or f"measurementList{count + 1}" in data:
        raise SnirfError(f"{data.name}: the measurement list is not that of {count} columns of dataTimeSeries")
    if not {AMPLITUDE, PHASE} <= (kinds := set(table[:, 0])):
        held = ", ".join(f"{kind:g} ({KINDS.get(-(-kind // 100), 'other')})" for kind in sorted(kinds))
        raise SnirfError(f"no frequency-domain data: data types {held}; accepted: 101 with 102")
    table = np.insert(table, 0, np.arange(count), axis=1)
    return table[np.isin(table[:, 1], (AMPLITUDE, PHASE))], units


def _indices(table: np.ndarray, probe: h5py.Group, limits: tuple[int, ...]) -> np.ndarray:
    """The table with 0-based indices, int; SnirfError for one that is out of range."""
    if "useLocalIndex" in probe and _numbers(probe, "useLocalIndex", 0):
        raise SnirfError(f"{probe.name}/useLocalIndex is set; accepted: indices into the whole probe")
    index = table[:, 2:]
    for row, k in np.argwhere((index < 1) | (index > limits) | (index % 1 != 0))[:1]:
        wrong = f"{NAMES[1 + k]} is {index[row, k]:g}"
        raise SnirfError(f"channel {table[row, 0] + 1:g}: {wrong}; accepted: 1 to {limits[k]}")
    return (table - [0, 0, 1, 1, 1, 1]).astype(int)


def _chosen(table: np.ndarray, what: str, unit: str, of: np.ndarray, wanted: float | None) -> tuple[np.ndarray, float]:
    """The rows that have the wanted value of what each has, `of`, and the value; the only one where none is wanted."""
    values = np.unique(of)
    close = values if wanted is None else values[np.isclose(values, wanted, rtol=1e-6)]
    if len(close) != 1:
        wrong = f"which {what}?" if wanted is None else f"no {what} {wanted:.9g} {unit};"
        raise SnirfError(f"{wrong} accepted: {', '.join(f'{value:.9g}' for value in values)} {unit}")
    return table[of == close[0]], float(close[0])


def _by_pair(table: np.ndarray) -> dict[tuple[int, int], int]:
    columns = {(s, d): column for column, _, s, d, *_ in table.tolist()}
    if len(columns) < len(table):
        raise SnirfError(f"{len(table)} channels of type {table[0, 1]} for {len(columns)} pairs; accepted: one each")
    return columns


def _faults(amplitude: np.ndarray, phase: np.ndarray, saturation: float, dark: float) -> np.ndarray:
    """Why each pair `(M,)` cannot be used, empty where it can; amplitude and phase `(T, M)`."""
    finite = np.isfinite(amplitude).all(0) & np.isfinite(phase).all(0)
    saturated = (amplitude > saturation).any(0)
    mean = np.where(finite, amplitude, 0).mean(0)
    faint = mean < dark * mean[~saturated].max(initial=0)
    return np.select([~finite, saturated, (amplitude <= 0).any(0) | faint], FAULTS, "")


def _radians(phase: np.ndarray, held: list[str], named: Mapping[str, str]) -> np.ndarray:
    """Phase `(T, M)` from the units that the file holds, or where it holds none, from rad."""
    phase = phase * [_factor("phase", {"phase": unit or "rad", **named}) for unit in held]
    most = abs(phase[:, [not unit for unit in held]]).max(initial=0)
    if "phase" not in named and most > TURNS:
        raise SnirfError(f"phase without dataUnit reaches {most:.3g}: in rad? {_ask('phase')}")
    return phase


def _together(phase: np.ndarray) -> np.ndarray:
    """Phase `(T, ...)` with whole turns added that bring it within half a turn of its circular mean over T."""
    centre = np.angle(np.exp(1j * phase).mean(0))
    centre += 2 * np.pi * np.round((np.median(phase, 0) - centre) / (2 * np.pi))
    return phase - 2 * np.pi * np.round((phase - centre) / (2 * np.pi))


def _falls(separation: np.ndarray, phase: np.ndarray) -> bool:
    """Whether the rank correlation of phase and separation `(M,)` is negative."""
    ranks = []
    for values in (separation, _together(phase)):
        _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - counts / 2)[which])  # of equal ones, the mean
    return bool(np.cov(*ranks, bias=True)[0, 1] < 0)


def _factor(what: str, units: Mapping[str, str]) -> float:
    where, known = UNITS[what]
    if units[what] not in known:
        raise SnirfError(f"{where} is {repr(units[what]) if units[what] else 'missing'}; {_ask(what)}")
    return known[units[what]]


def _ask(what: str) -> str:
    return f"accepted: {', '.join(UNITS[what][1])}; units={{{what!r}: ...}} replaces the file's"


def _item(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """What a group holds itself under a name."""
    if group.get(name, getlink=True) is None:
        return None
    if why := elsewhere(group, name):
        raise SnirfError(f"{group.name}/{name} {why}; accepted: items of the file itself")
    return group[name]


def _group(parent: h5py.Group, name: str, index: int | None = None) -> h5py.Group:
    """A group, or one of an indexed group, whose first may have no index."""
    if index is not None and (index > 1 or f"{name}1" in parent):
        name = f"{name}{index}"
    if not isinstance(group := _item(parent, name), h5py.Group):
        raise SnirfError(f"no group {name} in {parent.name}, which holds {', '.join(list(parent)[:8]) or 'nothing'}")
    return group


def _numbers(group: h5py.Group, name: str, rank: int, size: int | None = None) -> np.ndarray:
    """Numbers of a dataset, float64; of rank 0 the first, which some writers put into an array."""
    if not isinstance(dataset := _item(group, name), h5py.Dataset):
        raise SnirfError(f"{group.name}/{name} is missing")
    shape, kind = dataset.shape or (), dataset.dtype
    if kind.kind not in "iuf" or not dataset.size or rank not in (0, len(shape)) or size not in (None, *shape[:1]):
        wanted = f"{size or 'some'} numbers in {rank} dimensions"
        raise SnirfError(f"{group.name}/{name} has shape {shape}, type {kind}; accepted: {wanted}")
    return dataset[()].astype(np.float64) if rank else np.ravel(dataset[()])[0]


def _positions(probe: h5py.Group, kind: str) -> np.ndarray:
    if f"{kind}Pos3D" not in probe and f"{kind}Pos2D" in probe:
        raise SnirfError(f"{probe.name}/{kind}Pos3D is missing; {kind}Pos2D, a flattened layout, does not suffice")
    if (values := _numbers(probe, f"{kind}Pos3D", 2)).shape[1] != 3 or not np.isfinite(values).all():
        raise SnirfError(f"{probe.name}/{kind}Pos3D has shape {values.shape}; accepted: (optodes, 3), finite")
    return values


def _texts(group: h5py.Group, name: str) -> list[str]:
    """The strings of a dataset, of variable or fixed length; none where it holds no strings or is missing."""
    dataset = _item(group, name)
    held = isinstance(dataset, h5py.Dataset) and h5py.check_string_dtype(dataset.dtype)
    return [text.strip("\0 ") for text in np.ravel(dataset.asstr(errors="replace")[()])] if held else []
