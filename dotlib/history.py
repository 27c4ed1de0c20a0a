"""What a run leaves: its learning curve, steps, metrics and circumstances; as one file of plain data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import checkpoint

TABLES = ("epochs", "steps", "metrics")
FOREIGN = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)  # by plain data that is no history


@dataclass(frozen=True)
class History:
    """What a run leaves.

    `epochs`: a row per epoch, whose `seconds` end before tracking and checkpoints; `steps`: a row per optimiser step
    (loss, gradient norm before clipping, loss scale, terms of a loss that has several, learning rate, beta1, weight
    decay); `metrics`: a row per (checkpoint, metric, phantom, channel[, inclusion]) of the frozen test set; `info`:
    parameters, resolved optimiser state, precision, compilation, micro-batch, timing, memory, device, versions, data
    digest, that of the test phantoms, the code that worked on the run and, where another did so before it was
    continued, that as `earlier`; `failed`: why the run stopped, empty where it came to its end.
    """

    epochs: pd.DataFrame
    steps: pd.DataFrame
    metrics: pd.DataFrame
    info: dict
    failed: str = ""


def save(history: History, path: Path, key: str) -> None:
    """Write a history under the key of its run, whole or not at all, with a digest of the file.

    It holds the sizes of the run's checkpoints, which lie beside it.
    """
    state: dict[str, Any] = {name: _columns(getattr(history, name)) for name in TABLES}
    state |= {"info": json.dumps(history.info), "failed": history.failed, "beside": _beside(path)}
    checkpoint.save(path, state, key)


def load(path: Path, key: str) -> History:
    """A saved history, bit for bit.

    Raises CheckpointError for a file that is missing, damaged, or of another run, or whose checkpoints are missing or
    have another size; their digests are verified by those who read them.
    """
    state = whole(path, key)
    try:
        tables = {name: _table(state[name]) for name in TABLES}
        return History(**tables, info=dict(json.loads(state["info"])), failed=str(state["failed"]))
    except FOREIGN:
        raise checkpoint.CheckpointError(f"{path}: holds no result") from None


def whole(path: Path, key: str) -> dict[str, Any]:
    """What a file of a history holds, after its digest and the sizes of its checkpoints; raises what `load` does."""
    state, found = checkpoint.load(path, key), _beside(path)
    try:
        lost = [name for name, size in state["beside"].items() if found.get(name) != size]
    except FOREIGN:
        raise checkpoint.CheckpointError(f"{path}: holds no result") from None
    if lost:
        raise checkpoint.CheckpointError(f"{path.with_name(lost[0])}: missing, or not as long as it was")
    return state


def _beside(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(path.parent.glob("*.pt")) if file.name != path.name}


def _columns(table: pd.DataFrame) -> dict[str, Any]:
    """Numbers as tensors, whole ones of as few bytes as they need; texts, of which there are few, as numbers too."""
    found: dict[str, Any] = {}
    for name, column in table.items():
        if column.dtype.kind in "bf":
            found[name] = torch.from_numpy(column.to_numpy(copy=True))
        elif column.dtype.kind == "i":
            found[name] = {"whole": _small(column.to_numpy()), "dtype": column.dtype.name}
        else:
            codes, texts = pd.factorize(column)
            found[name] = {"codes": _small(codes), "texts": list(map(str, texts))}
    return found


def _small(numbers: np.ndarray) -> torch.Tensor:
    fits = (t for t in (np.int8, np.int16, np.int32) if not len(numbers) or _within(numbers, np.iinfo(t)))
    return torch.from_numpy(numbers.astype(next(fits, np.int64)))


def _within(numbers: np.ndarray, limits: np.iinfo) -> bool:
    return limits.min <= numbers.min() and numbers.max() <= limits.max


def _table(columns: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({name: _column(held) for name, held in columns.items()})


def _column(held: Any) -> np.ndarray | pd.api.extensions.ExtensionArray:
    if not isinstance(held, dict):
        return held.numpy()
    if "whole" in held:
        return held["whole"].numpy().astype(held["dtype"])
    return pd.Series(np.array(held["texts"], dtype=object)).array.take(held["codes"].numpy())
