"""Which files are known: written by this installation, or examined by it before; in the user's own state folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

import h5py

RULES = 1  # raised by hand whenever files are examined more strictly
SETTLED = 10**8  # ns: what a file system's clock may not tell apart from the last change
YEAR = 365 * 86400  # s, after which a file is examined anew


def folder() -> Path | None:
    """Where one empty file stands for each known content or place; None where the user has no home."""
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        return Path(state if os.path.isabs(state) else Path.home() / ".local" / "state") / "dotlib" / "known"
    except RuntimeError:
        return None


def place(file: int) -> str:
    """What changes whenever an open file is replaced or written: device, inode, size and times."""
    found = os.fstat(file)
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def settled(file: int) -> bool:
    """Whether a change of an open file from now on would show in its `place`."""
    return time.time_ns() - os.fstat(file).st_ctime_ns > SETTLED


def knows(what: str) -> bool:
    """Whether a content, by its SHA-256, or a place is known under these rules and by this version of HDF5."""
    where = folder()
    try:
        return where is not None and time.time() - (where / _entry(what)).stat().st_mtime < YEAR
    except OSError:
        return False


def remember(*what: str) -> None:
    """Note contents or places; where the folder cannot be written nothing happens, and they stay unknown."""
    if (where := folder()) is None:
        return
    with contextlib.suppress(OSError):
        os.makedirs(where, mode=0o700, exist_ok=True)
        for entry in map(_entry, what):
            (where / entry).touch(mode=0o600)
            if entry.startswith("00"):  # now and then
                _forget(where)


def _forget(where: Path) -> None:
    for entry in os.scandir(where):
        if time.time() - entry.stat().st_mtime > YEAR:
            os.unlink(entry.path)


def _entry(what: str) -> str:
    return hashlib.sha256(f"{RULES} {h5py.version.hdf5_version} {what}".encode()).hexdigest()[:40]
