"""Checkpoints: written whole or not at all, and read without executing anything."""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from . import archive

SCHEMA = 2
DIGEST = 64  # bytes at the end of the file: SHA-256 of all before them, in hexadecimal; torch does not mind them


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, as one line."""


def write(path: Path, payload: bytes, durable: bool = True) -> None:
    """Replace `path` by `payload` in one step; where `durable`, it is on the disk when this returns."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(payload)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        error.filename = str(path)  # a full disk names no file
        raise
    finally:
        part.unlink(missing_ok=True)  # half of it, on a full disk


def save(path: Path, state: Mapping[str, Any], config: str, about: str = "") -> None:
    """Save tensors, numbers, strings, lists and dicts under a configuration's digest, with a digest of the file.

    `about`: the configuration itself, as JSON, for those who have the file alone.
    """
    record = {"schema": SCHEMA, "config": config, "about": about, "state": dict(state)}
    torch.save(record, buffer := io.BytesIO())
    content = buffer.getvalue()
    write(path, content + hashlib.sha256(content).hexdigest().encode())


def load(path: Path, config: str, device="cpu") -> dict[str, Any]:
    """The saved state.

    Raises CheckpointError for a file that is damaged, holds anything but plain data (it is refused, not executed), or
    belongs to another schema or configuration.
    """
    record = _record(path, device)
    if record["config"] != config:
        raise CheckpointError(f"{path}: belongs to configuration {record['config'][:80]}, not to {config}")
    return record["state"]


def alone(path: Path, device="cpu") -> tuple[str, dict[str, Any]]:
    """The configuration, as JSON, and the saved state, of a file whose configuration nobody knows.

    Raises what `load` does, and CheckpointError for a file of earlier code, which does not hold it.
    """
    record = _record(path, device)
    if not record.get("about"):
        raise CheckpointError(f"{path}: holds no configuration, being of earlier code; one trained anew is accepted")
    return record["about"], record["state"]


def _record(path: Path, device) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        raw = path.read_bytes()
        content, digest = raw[:-DIGEST], raw[-DIGEST:]
        if hashlib.sha256(content).hexdigest().encode() != digest:
            raise CheckpointError(f"{path}: damaged, or no checkpoint of dotlib; remove it to start anew")
        record = archive.read(content, device)
    except OSError as error:
        raise CheckpointError(f"{path}: {os.strerror(error.errno)}") from None
    except archive.ArchiveError as error:
        raise CheckpointError(f"{path}: refused ({error}); remove it to start anew") from None
    kinds = {"schema": int, "config": str, "state": dict, "about": str}
    if isinstance(record, dict):
        record.setdefault("about", "")  # earlier code had no place for it
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in kinds.items()):
        raise CheckpointError(f"{path}: no checkpoint of dotlib; remove it to start anew")
    if record["schema"] != SCHEMA:
        raise CheckpointError(f"{path}: schema {record['schema']}, accepted: {SCHEMA}; remove it to start anew")
    return record
