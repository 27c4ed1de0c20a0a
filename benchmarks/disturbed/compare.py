"""What a project's commands have left, as digests, and what they did twice."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dotlib import checkpoint, run_store

from .project import Told

CLOCKED = ("seconds", "host_mb", "gpu_mb", "gpu_busy", "gpu_peak_mb")  # columns of the epochs that no two runs share
SPEEDS = ("samples/s", "samples_per_second", "seconds")  # columns of tables
MEASURED = ("samples_per_second", "gpu_peak_mb", "resident_mb", "earlier")  # of a history's circumstances


def digest(value) -> str:
    """Of tables, tensors, containers of them: equal where types, shapes and bits are."""
    held = hashlib.sha256()
    _feed(value, held.update)
    return held.hexdigest()[:16]


def _feed(value, into) -> None:
    if isinstance(value, pd.DataFrame):
        value = {name: column.tolist() for name, column in value.items()}
    if isinstance(value, dict):
        into(b"{")
        for key, held in value.items():
            into(repr(key).encode())
            _feed(held, into)
    elif isinstance(value, list | tuple):
        into(b"[")
        for held in value:
            _feed(held, into)
    elif isinstance(value, torch.Tensor):
        into(repr((value.dtype, tuple(value.shape))).encode())
        into(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        into(repr((value.dtype, value.shape)).encode() + value.tobytes())
    else:
        into(repr(value).encode())


def runs(store: Path) -> dict[str, str]:
    """Both checkpoints and the result of each finished run, without the clock's and the memory's numbers."""
    found = {}
    for folder, run in run_store.runs(store):
        history = run and run.kept()
        if history is None:
            continue
        for name in ("last", "best"):
            state = checkpoint.load(folder / f"{name}.pt", run.config.digest())
            state.pop("makers", None)
            if "epochs" in state:
                state["epochs"] = [{k: v for k, v in row.items() if k not in CLOCKED} for row in state["epochs"]]
            found[f"{folder.name}/{name}.pt"] = digest(state)
        info = {key: value for key, value in history.info.items() if key not in MEASURED}
        epochs = history.epochs.drop(columns=[name for name in CLOCKED if name in history.epochs])
        found[f"{folder.name}/history"] = digest([epochs, history.steps, history.metrics, info, history.failed])
    return found


def files(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    """Digests of files' bytes, by their path in the folder."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}


def tables(folder: Path, pattern: str = "*/*/*/*.csv") -> dict[str, str]:
    """Digests of tables, but for their columns of speed."""
    found = {}
    for path in folder.glob(pattern):
        try:
            table = pd.read_csv(path, dtype=str)
        except (ValueError, pd.errors.ParserError):  # cut off
            table = pd.DataFrame({"damaged": [path.read_bytes()]})
        found[str(path.relative_to(folder))] = digest(table.drop(columns=[name for name in SPEEDS if name in table]))
    return found


def left(folder: Path) -> dict[str, str]:
    """All that counts of what lies in a project: runs, datasets and lifts, tables of pages and of results."""
    found = runs(folder / "runs") | files(folder, ("data/*.h5", "*.h5"))
    return found | tables(folder, "build/*/figures/*.csv") | tables(folder, "results/*/*.csv")


def shards(folder: Path) -> dict[str, str]:
    """Those that wait to be merged."""
    return files(folder, ("*.parts/0*.h5", "data/*.parts/0*.h5"))


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """What is missing, more or other."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def stray(folder: Path) -> list[str]:
    """Files that nobody needs: halves of others, and shards of a file that is there."""
    rest = [
        path for pattern in ("*.tmp", ".*.pt.*", ".*.json.*", "*.part", "*.parts") for path in folder.rglob(pattern)
    ]
    return sorted(str(path.relative_to(folder)) for path in rest)


class Work:
    """Epochs and shards that were begun, by what was told: how much of it a second time, and whether it need be."""

    def __init__(self, told: Told | Iterable):
        self.epochs: Counter = Counter()
        self.shards: Counter = Counter()
        self.sizes: dict[tuple, int] = {}
        self.needless: list[str] = []
        kept, results, made = {}, set(), set()
        for _, _, (kind, *words) in told:
            if kind == "epoch":
                run, epoch = words[0], int(words[1])
                self.epochs[run, epoch] += 1
                if run in results or epoch < kept.get(run, 0):
                    self.needless.append(f"{run}: epoch {epoch} was kept")
            elif kind == "kept":
                kept[words[0]] = max(kept.get(words[0], 0), int(words[1]))
            elif kind == "result":
                results.add(words[0])
            elif kind == "shard":
                self.shards[words[0], words[1]] += 1
                self.sizes[words[0], words[1]] = int(words[2])
                if (words[0], words[1]) in made:
                    self.needless.append(f"{words[0]}: phantoms from {words[1]} on were kept")
            elif kind == "made":
                made.add((words[0], words[1]))

    @property
    def epochs_again(self) -> int:
        return sum(count - 1 for count in self.epochs.values())

    @property
    def phantoms_again(self) -> int:
        return sum((count - 1) * self.sizes[key] for key, count in self.shards.items())
