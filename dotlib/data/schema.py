"""The schema of a dataset file: which datasets it may hold, and how much a file may ask of who reads it.

Letters in a shape stand for sizes that its datasets share: P phantoms, S sources, K detectors, M pairs, voxels L^3.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import h5py
import numpy as np

SCHEMA = 1
BLOCK = 16  # phantoms of a shard, and of a chunk of the file
GRIDS = (16, 32, 64)  # of volumes; those of a configuration
COLUMN = 2**34  # bytes of one dataset in memory
SPAN = 2**28  # bytes of the phantoms that one chunk holds a part of: what is in memory at a time
SMALL, RATIO = 2**24, 200  # bytes in memory, beyond SMALL at most so many times those in the file
TEXT = 2**20  # bytes of an attribute
FILTERS = {
    h5py.h5z.FILTER_DEFLATE: "gzip",
    h5py.h5z.FILTER_SHUFFLE: "shuffle",
    h5py.h5z.FILTER_FLETCHER32: "fletcher32",
}


class StoreError(ValueError):
    """A dataset file that cannot be used, as one line: file, dataset, phantom."""


class Column(NamedTuple):
    """Shape, type and unit of one dataset."""

    shape: tuple[str | int, ...]
    dtype: str
    unit: str


COLUMNS = {
    "ellipsoids": Column(("P", 6, 13), "f4", "mm, mm^-1"),
    "volumes": Column(("P", 2, "D", "D", "D"), "f4", "mm^-1"),
    "mask": Column(("P", "D", "D", "D"), "?", ""),
    "sources": Column(("P", "S", 3), "f4", "mm"),
    "detectors": Column(("P", "K", 3), "f4", "mm"),
    "pairs": Column(("P", "M", 2), "i2", "0-based"),
    "log_amplitude": Column(("P", "M"), "f4", "ln"),
    "phase": Column(("P", "M"), "f4", "rad"),
    "sigma": Column(("P", "M", 2), "f4", "ln, rad"),
    "phi_clean": Column(("P", "M"), "c8", "mm^-2"),
    "lift": Column(("P", "R", "C", "L", "L", "L"), "f2", ""),
    "tokens": Column(("P", "R", "F", "T", 1, 1), "f4", ""),
    "covered": Column(("P", "L", "L", "L"), "?", ""),
    "estimate": Column(("P", 2, "L", "L", "L"), "f4", "mm^-1"),
    "family": Column(("P",), "S16", ""),
    "split": Column(("P",), "i1", ""),
    "checks": Column(("P",), "i4", ""),
    "quality": Column(("P",), "f4", "ln"),
}
DERIVED = ("split", "checks", "quality")  # not part of a shard's digest
MEASURED = ("sources", "detectors", "pairs", "log_amplitude", "phase", "sigma")
DRAWN = ("lift", "tokens", "covered", "estimate")  # what is made of a file's readings, in a file beside it
ATTRIBUTES = ("configuration", "fields", "device", "legend", "commit", "first")  # of a file, beside `schema`


def digest(columns: Mapping[str, np.ndarray]) -> bytes:
    """Hash of a shard's arrays."""
    held = hashlib.sha256()
    for name in (n for n in COLUMNS if n in columns and n not in DERIVED):
        held.update(np.ascontiguousarray(columns[name]).tobytes())
    return held.hexdigest()[:16].encode()


def opened(path: str, source: str) -> h5py.File:
    """The file at `source`, called `path` in the StoreError of one that is missing, unreadable or no HDF5 file."""
    try:
        return h5py.File(source, "r", locking=False)  # a file in its place is never changed
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "truncated, damaged, or no HDF5 file"
    except RuntimeError:
        reason = "truncated, damaged, or no HDF5 file"
    raise StoreError(f"{path}: {reason}")


UNSOUND = (OSError, RuntimeError, LookupError, TypeError, ValueError)  # by which HDF5 tells of damaged data


@contextlib.contextmanager
def sound(otherwise: str) -> Iterator[None]:
    """HDF5's errors on damaged data, of many types, as one line."""
    try:
        yield
    except StoreError:
        raise
    except UNSOUND:
        raise StoreError(otherwise) from None


def check(file: h5py.File, path: str) -> tuple[list[str], dict[str, int]]:
    """The columns that a file has, in the schema's order, and the sizes that its letters stand for.

    Raises StoreError for another schema, and for datasets of other shapes, types or units.
    """
    with sound(f"{path}: damaged"):
        found = {name: file[name] for name in file}
        schema = file.attrs.get("schema")
        if schema is None or np.ndim(schema) or schema != SCHEMA:
            held = schema.tolist() if isinstance(schema, np.generic | np.ndarray) else schema
            raise StoreError(f"{path}: schema {repr(held)[:80]}; accepted: {SCHEMA}")
        if unknown := sorted(set(found) - {*COLUMNS, "digests"}):
            raise StoreError(f"{path}: unknown dataset {unknown[0]!r:.80}; accepted: {', '.join(COLUMNS)}")
        names, sizes = [name for name in COLUMNS if name in found], {}
        _complete(names, path)
        for name in names:
            _column(name, found[name], sizes, path)
        if sizes.get("D", GRIDS[0]) not in GRIDS:
            raise StoreError(f"{path}: volumes of {sizes['D']}^3; accepted: {', '.join(map(str, GRIDS))}")
        kept, shards = found.get("digests"), (-(-sizes["P"] // BLOCK),)
        if kept is not None and (getattr(kept, "shape", None), getattr(kept, "dtype", None)) != (shards, "S16"):
            raise StoreError(f"{path}: digests are no dataset of shape {shards} and type S16")
    return names, sizes


def _complete(names: list[str], path: str) -> None:
    wanted = [("volumes", "mask")] if {"volumes", "mask"} & set(names) else []
    if set(MEASURED) & set(names) or not {"ellipsoids", "volumes", "mask", *DRAWN} & set(names):
        wanted.append(MEASURED)
    for group in wanted:
        if missing := [name for name in group if name not in names]:
            raise StoreError(f"{path}: dataset {missing[0]!r} is missing; wanted: {', '.join(group)}")


def _column(name: str, dataset: h5py.Dataset, sizes: dict[str, int], path: str) -> None:
    want = COLUMNS[name]
    if not isinstance(dataset, h5py.Dataset):
        raise StoreError(f"{path}: {name} is no dataset")
    free = len(dataset.shape or ()) == len(want.shape)
    if free:
        for letter, size in zip(want.shape, dataset.shape, strict=True):
            if isinstance(letter, str):
                sizes.setdefault(letter, size)
    shape = tuple(sizes.get(letter, letter) for letter in want.shape)
    if not free or dataset.shape != shape or 0 in shape:
        raise StoreError(f"{path}: {name} has shape {dataset.shape}; accepted: {shape}, none of them 0")
    if dataset.dtype != np.dtype(want.dtype):
        raise StoreError(f"{path}: {name} has type {str(dataset.dtype)[:80]}; accepted: {np.dtype(want.dtype)}")
    unit = dataset.attrs.get("unit", b"" if not want.unit else None)
    unit = unit.decode() if isinstance(unit, bytes) else unit
    if isinstance(unit, np.ndarray) or unit != want.unit:
        raise StoreError(f"{path}: {name} has unit {repr(unit)[:80]}; accepted: {want.unit!r}")


def examine(source: str, path: str) -> None:
    """Read once all that can be read of a file from elsewhere; StoreError where it cannot be used or asks too much.

    For a process with limits, since malformed HDF5 files may crash, hang or exhaust the library that reads them.
    """
    with opened(path, source) as file:
        with sound(f"{path}: damaged"):
            _attribute(file, "schema", path)
            for name in file:
                _inside(file, name, path)
        names, sizes = check(file, path)
        with sound(f"{path}: damaged"):
            for name in ATTRIBUTES:
                _attribute(file, name, path)
            for name in (*names, *(["digests"] if "digests" in file else [])):
                _bounded(file[name], name, path)
        for name in names:
            _readable(file[name], f"{path}: {name}", sizes["P"])
        if "digests" in file:
            with sound(f"{path}: digests are damaged (checksum)"):
                kept = file["digests"][:]
            held = [name for name in names if name not in DERIVED]
            for first, one in zip(range(0, sizes["P"], BLOCK), kept, strict=True):
                if digest({name: file[name][first : first + BLOCK] for name in held}) != one:
                    last = min(first + BLOCK, sizes["P"]) - 1
                    raise StoreError(f"{path}: phantoms {first}-{last} are damaged (digest of the shard)")


def elsewhere(group: h5py.Group, name: str) -> str:
    """Why an item of a group lies elsewhere, empty where it does not: what names another file would have it read."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        return "is a link"
    if isinstance(item := group[name], h5py.Dataset):
        layout = item.id.get_create_plist()
        if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
            return "lies in other files"
    return ""


def _inside(file: h5py.File, name: str, path: str) -> None:
    if why := elsewhere(file, name):
        raise StoreError(f"{path}: {name:.80} {why}; accepted: datasets of the file itself")
    if isinstance(item := file[name], h5py.Dataset):
        _attribute(item, "unit", f"{path}: {name:.80}")


def _attribute(item: h5py.File | h5py.Dataset, name: str, path: str) -> Any:
    """An attribute that is there; StoreError for one that is no text or number, or larger than TEXT."""
    if name not in item.attrs:
        return None
    held = item.attrs.get_id(name)
    none = held.get_space().get_simple_extent_type() == h5py.h5s.NULL
    if none or (held.dtype.kind not in "iufS" and not h5py.check_string_dtype(held.dtype)):
        raise StoreError(f"{path}: attribute {name} has type {str(held.dtype)[:80]}; accepted: text or a number")
    if (size := math.prod(held.shape) * held.dtype.itemsize) > TEXT:
        raise StoreError(f"{path}: attribute {name} has {size} bytes; accepted: {TEXT} at most")
    return item.attrs[name]


def _bounded(dataset: h5py.Dataset, name: str, path: str) -> None:
    """StoreError for a dataset that would need more memory than the bounds of this module, or another filter."""
    layout, held = dataset.id.get_create_plist(), dataset.id.get_storage_size()
    codes = {layout.get_filter(i)[0] for i in range(layout.get_nfilters())}
    if other := codes - set(FILTERS):
        raise StoreError(f"{path}: {name} has filter {min(other)}; accepted: {', '.join(FILTERS.values())}")
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    least = size if h5py.h5z.FILTER_DEFLATE not in codes else (size / RATIO if size > SMALL else 0)
    if held < least:
        raise StoreError(f"{path}: {name} needs {size} bytes, of which the file holds {held}; accepted: all of them, "
                         f"and of gzip 1 in {RATIO}")  # fmt: skip
    if size > COLUMN:
        raise StoreError(f"{path}: {name} needs {size} bytes of memory; accepted: {COLUMN} at most")
    chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
    if (span := max(chunk, _rows(dataset) * (size // len(dataset)))) > SPAN:
        raise StoreError(f"{path}: {name} needs {span} bytes at a time, a chunk's phantoms; accepted: {SPAN} at most")
    if codes:
        _unpacked(dataset, f"{path}: {name}", [layout.get_filter(i)[0] for i in range(layout.get_nfilters())], chunk)


def _unpacked(dataset: h5py.Dataset, where: str, codes: list[int], size: int) -> None:
    """StoreError for a chunk that unpacks to another `size` than that of chunks: HDF5 itself would unpack it all."""
    chunks: list[h5py.h5d.StoreInfo] = []
    dataset.id.chunk_iter(chunks.append)
    for chunk in chunks:
        raw, held = b"", chunk.size
        if held <= 2 * size + 1024:
            raw = dataset.id.read_direct_chunk(chunk.chunk_offset)[1]
            for i in reversed(range(len(codes))):
                if chunk.filter_mask >> i & 1:
                    continue
                if codes[i] == h5py.h5z.FILTER_FLETCHER32:
                    raw = raw[:-4]
                elif codes[i] == h5py.h5z.FILTER_DEFLATE:
                    with contextlib.suppress(zlib.error):
                        raw = zlib.decompressobj().decompress(raw, size + 5)
        if len(raw) != size:
            raise StoreError(f"{where}: a chunk of {held} bytes does not unpack to {size}; damaged")


def _rows(dataset: h5py.Dataset) -> int:
    """Phantoms that are read at a time."""
    return min(dataset.chunks[0], len(dataset)) if dataset.chunks else 1


def _readable(dataset: h5py.Dataset, where: str, total: int) -> None:
    """StoreError unless every phantom can be read, without a damaged checksum or a chunk that is missing."""
    row = max(1, dataset.nbytes // total)
    step = max(1, 2**24 // (row * _rows(dataset))) * _rows(dataset)
    for low in range(0, total, step):
        try:
            dataset[low : low + step]
        except (OSError, RuntimeError, LookupError, TypeError, ValueError):
            break
    else:
        return
    for first in range(low, min(low + step, total), _rows(dataset)):
        last = min(first + _rows(dataset), total) - 1
        with sound(f"{where}: phantoms {first}-{last} are damaged (checksum)"):
            dataset[first : last + 1]
    raise StoreError(f"{where}: damaged")
