"""Checkpoints: written whole or not at all, and read without executing anything."""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, as one line."""


def write(path: Path, payload: bytes) -> None:
    """Replace `path` by `payload` in one step, on the disk when this returns."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def save(path: Path, state: Mapping[str, Any], config: str) -> None:
    """Save tensors, numbers, strings, lists and dicts, with a digest of all of them and the configuration's."""
    record = {"schema": SCHEMA, "config": config, "state": dict(state)}
    part = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(record | {"digest": _digest(record)}, part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def load(path: Path, config: str, device="cpu") -> dict[str, Any]:
    """The saved state.

    Raises CheckpointError for a file that is damaged, holds anything but plain data (it is refused, not executed), or
    belongs to another schema or configuration.
    """
    try:
        record = torch.load(path, map_location=device, weights_only=True)
        intact = isinstance(record, dict) and record.pop("digest", None) == _digest(record)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({reason[0][:80]}); remove it to start anew"
        ) from None
    if not intact or record.get("schema") != SCHEMA:
        raise CheckpointError(f"{path}: damaged, or not of schema {SCHEMA}; remove it to start anew")
    if record["config"] != config:
        raise CheckpointError(f"{path}: belongs to configuration {record['config']}, not to {config}")
    return record["state"]


def _digest(value: Any) -> str:
    """SHA-256 over a tree of plain data, tensors by dtype, shape and bytes."""
    sha = hashlib.sha256()

    def feed(node: Any) -> None:
        if isinstance(node, torch.Tensor):
            flat = node.detach().cpu().contiguous().flatten()
            sha.update(f"{node.dtype}{tuple(node.shape)}".encode())
            sha.update(flat.view(torch.uint8).numpy())
        elif isinstance(node, Mapping):
            for key in node:
                sha.update(repr(key).encode())
                feed(node[key])
        elif isinstance(node, list | tuple):
            sha.update(f"[{len(node)}".encode())
            for item in node:
                feed(item)
        else:
            sha.update(repr(node).encode())

    feed(value)
    return sha.hexdigest()
