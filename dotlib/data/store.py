"""The dataset file: written whole or not at all, every fault of a file that is read as one line."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from ..config import Data
from ..workers import uninterrupted
from . import foreign, ledger, schema
from .schema import ATTRIBUTES, BLOCK, COLUMNS, DERIVED, DRAWN, GRIDS, MEASURED, SCHEMA, StoreError, digest, sound

__all__ = ["BLOCK", "COLUMNS", "DERIVED", "DRAWN", "GRIDS", "MEASURED", "SCHEMA", "File", "StoreError", "digest"]

PHYSICS = 1  # raised by hand whenever the same configuration would give other readings
LIBVER = ("v110", "v110")  # the oldest format whose metadata have checksums too
LOST = ("log_amplitude", "phase")  # NaN in both: a pair that was lost


def identity(config: Data, every: bool = False) -> str:
    """What a dataset file holds, as JSON: its configuration without split, training share and grid of volumes.

    Fields at their defaults are left out, so that a new one renames no file, or, with `every`, written too.
    """
    held = config.model_dump(mode="json", exclude_defaults=not every, exclude={"fractions", "grid", "train"})
    held["measurements"] = {**held["measurements"], "grid": config.light_grid}
    return json.dumps({**held, "physics": PHYSICS}, sort_keys=True)


def create(file: h5py.File, columns: Mapping[str, np.ndarray], total: int, attributes: Mapping[str, str | int]) -> None:
    """Attributes, and empty datasets for `total` phantoms like those in `columns`."""
    file.attrs["schema"] = SCHEMA
    for name, value in attributes.items():
        # of fixed length: those of variable length lie where nothing checks them
        file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value
    for name, array in columns.items():
        dataset = file.create_dataset(
            name, (total, *array.shape[1:]), COLUMNS[name].dtype, track_times=False, fletcher32=True,
            chunks=(min(BLOCK, total), *array.shape[1:]),
        )  # fmt: skip
        dataset.attrs["unit"] = np.bytes_(COLUMNS[name].unit)
    shards = -(-total // BLOCK)
    file.create_dataset("digests", (shards,), "S16", track_times=False, fletcher32=True, chunks=(shards,))


class _Disk(io.FileIO):
    """A file whose failures to write are kept from HDF5, which would leave it half open; `error` is the first."""

    error: OSError | None = None

    def write(self, data) -> int:
        rest = memoryview(data).cast("B")
        try:
            while rest and not self.error:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file that takes its name when it is finished and on the disk: a name that is there is a whole file.

    Its content is known from then on (`foreign`), and so is a copy of it.
    """
    part = path.with_suffix(".tmp")
    with uninterrupted(), _Disk(part, "w+") as disk:  # HDF5 takes no exception from a file
        try:
            with h5py.File(disk, "w", libver=LIBVER) as file:
                yield file
        finally:
            if disk.error:
                raise disk.error
        os.fsync(disk.fileno())
        disk.seek(0)
        ledger.remember(hashlib.file_digest(disk, "sha256").hexdigest())
    os.replace(part, path)


def write(path: Path, columns: Mapping[str, np.ndarray], attributes: Mapping[str, str | int]) -> None:
    """Write one shard."""
    with writing(path) as file:
        create(file, columns, len(columns["checks"]), attributes)
        for name, array in columns.items():
            file[name][:] = array
        file["digests"][:] = digest(columns)


class File:
    """A dataset file whose schema has been checked, for use in a `with`; its length is the number of phantoms.

    The phantoms that the reader marks in `excluded` `(P,)` may hold anything. Raises StoreError for a file that is
    missing, truncated or damaged, of another schema, or whose datasets have other shapes, types or units; and for one
    from elsewhere that asks for more than the bounds of `schema`, or harms the process that reads it first.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            if not self.path.is_file():
                raise StoreError(f"{path}: {'a directory' if self.path.is_dir() else 'no such file'}")
            with foreign.known(self.path, schema.examine) as source:
                self._file = schema.opened(str(path), source)
        except OSError as error:
            raise StoreError(f"{path}: {os.strerror(error.errno)}") from None
        except foreign.ForeignError as error:
            raise StoreError(str(error)) from None
        try:
            self.names, self.sizes = schema.check(self._file, str(path))
            self.excluded = np.zeros(len(self), dtype=bool)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> File:
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self.sizes["P"]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def attribute(self, name: str) -> str:
        """A text attribute of the file, one of ATTRIBUTES, empty where it is missing."""
        if name not in ATTRIBUTES:
            raise KeyError(name)
        value = self._file.attrs.get(name, b"")
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def require(self, identity: str) -> None:
        """StoreError unless the file holds this configuration."""
        if (held := self.attribute("configuration")) != identity:
            raise StoreError(f"{self.path}: holds {held!r}, not {identity!r}")

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The values of phantoms `start` ... `stop - 1`, as they are; a bad checksum is an error."""
        stop, dataset = len(self) if stop is None else min(stop, len(self)), self._file[name]
        out = np.empty((stop - start, *dataset.shape[1:]), dataset.dtype)
        with contextlib.suppress(*schema.UNSOUND):  # then in pieces, to say which
            if out.size:
                dataset.read_direct(out, np.s_[start:stop])
            return out
        step = dataset.chunks[0] if dataset.chunks else len(self)
        for low in range(start - start % step, stop, step):
            a, b = max(low, start), min(low + step, stop)
            with sound(f"{self.path}: {name}: phantoms {low}-{min(low + step, len(self)) - 1} are damaged (checksum)"):
                out[a - start : b - start] = dataset[a:b]
        return out

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """`raw`, and an error where a phantom that is not excluded has a NaN or infinity that the schema forbids."""
        if name not in self:
            raise StoreError(f"{self.path}: dataset {name!r} is missing; the file has {', '.join(self.names)}")
        out = self.raw(name, start, stop)
        columns = {name: out}
        if name == "sigma" and np.isnan(out).any():
            columns["phase"] = self.raw("phase", start, stop)
        if (bad := ~finite(name, columns) & ~self.excluded[start : start + len(out)]).any():
            raise StoreError(f"{self.path}: {name}: phantom {start + bad.argmax()} is not finite")
        return out

    def digests(self) -> list[bytes]:
        """The digest of each shard, recomputed; StoreError where it is not the stored one."""
        kept, found = self._kept(), []
        for i in range(0, len(self), BLOCK):
            found.append(digest({name: self.raw(name, i, i + BLOCK) for name in self.names if name not in DERIVED}))
            if kept and found[-1] != kept[i // BLOCK]:
                last = min(i + BLOCK, len(self)) - 1
                raise StoreError(f"{self.path}: phantoms {i}-{last} are damaged (digest of the shard)")
        return found

    def content(self) -> str:
        """Hash of the file's arrays: of the digests that it holds, since a file from elsewhere was found to match them.

        Without them, what `digests` returns, and raises.
        """
        return hashlib.sha256(b"".join(self._kept() or self.digests())).hexdigest()[:16]

    def _kept(self) -> list[bytes]:
        with sound(f"{self.path}: digests are damaged (checksum)"):
            return list(self._file["digests"][:]) if "digests" in self._file else []


def finite(name: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which phantoms `(P,)` hold finite numbers in a column, where the schema asks for numbers.

    Unused rows of a table are NaN, and so are the readings of a lost pair, whose sd may be.
    """
    if (values := columns[name]).dtype.kind not in "fc":
        return np.ones(len(values), dtype=bool)
    good = np.isfinite(values)
    if name == "ellipsoids":
        good[:, 1:] |= np.isnan(values[:, 1:]).all(-1, keepdims=True)
    if name in LOST:
        good |= np.isnan(values)
    if name == "sigma" and "phase" in columns:
        good |= np.isnan(values) & np.isnan(columns["phase"])[..., None]
    return good.reshape(len(values), -1).all(1)
