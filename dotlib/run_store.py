"""The store of runs, as a whole: what is in it, what it takes, and what can be taken over from another."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import yaml

from . import checkpoint, history
from . import config as configuration
from .config import Config, ConfigError
from .run import RESULT, VERSION, Run

LARGEST = 1 << 20  # bytes of a config.json; ours have two thousand


def runs(store: Path) -> Iterator[tuple[Path, Run | None]]:
    """The folders of a store and their runs; None for one that another version of the code made, or that is damaged."""
    for folder in sorted(store.iterdir()) if store.is_dir() else ():
        if (about := folder / "config.json").is_file():
            yield folder, _of(about, store)


def _of(about: Path, store: Path) -> Run | None:
    try:
        if about.stat().st_size > LARGEST:
            return None
        held = json.loads(about.read_text(encoding="utf-8"))
        found = Run(config=configuration.validate(Config, held["config"]), data=held["data"], store=store)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return found if held.get("version") == VERSION and found.path.name == about.parent.name else None


def table(store: Path, verify: bool = False) -> pd.DataFrame:
    """A row a run: name, state, epoch, validation nrmse of mua, MB on the disk.

    `verify` reads every checkpoint with its digest: a run with a damaged one is `damaged`, as is one whose result is.
    """
    rows = [_row(folder, run, verify) for folder, run in runs(store)]
    return pd.DataFrame(rows, columns=["run", "state", "epoch", "nrmse mua", "MB"])


def _row(folder: Path, run: Run | None, verify: bool) -> dict:
    row = {"run": folder.name, "state": "other", "epoch": "", "nrmse mua": float("nan"), "MB": size(folder) / 1e6}
    if run is None:
        return row
    found = run.kept()
    epochs = 0 if found is None else len(found.epochs)
    row |= {"state": state(run, found), "epoch": f"{epochs}/{run.config.training.epochs}"}
    if epochs:
        row["nrmse mua"] = found.epochs["nrmse_mua"].iloc[-1]
    if verify and any(_damaged(path, run) for path in _weights(folder)):
        row["state"] = "damaged"
    return row


def state(run: Run, found: history.History | None) -> str:
    """Where a run stands, as far as its folder says: done, failed, running, damaged, started, missing."""
    if found is not None:
        return "failed" if found.failed else "done"
    if run.busy():
        return "running"
    if (run.path / RESULT).exists():
        return "damaged"
    if run.failure():
        return "failed"
    return "started" if run.progress() else "missing"


def size(folder: Path) -> int:
    """Bytes of a folder's files on the disk."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                found += os.lstat(os.path.join(place, name)).st_blocks * 512
            except FileNotFoundError:  # a run that goes on replaces its files
                continue
    return found


def named(store: Path, names: list[str]) -> list[Path]:
    """The folders whose names begin, or end, with these; ConfigError for a name of none or of several."""
    found, every = [], [folder for folder, _ in runs(store)]
    for name in names:
        fits = [f for f in every if f.name.startswith(name) or f.name.endswith(name)]
        if len(fits) != 1:
            raise ConfigError(f"{store}: {len(fits)} runs are named {name!r}; `dotlib runs ls` lists them")
        found += fits
    return list(dict.fromkeys(found))


def show(folder: Path) -> str:
    """A run in YAML: configuration, where it stands, what it ended with, why it failed."""
    run = _of(folder / "config.json", folder.parent)
    if run is None:
        raise ConfigError(f"{folder}: of another version of the code, or damaged; `dotlib runs rm` removes it")
    found = run.kept()
    about = {"run": folder.name, "state": state(run, found), "data": run.data, "failure": run.failure() or None}
    about["MB"] = round(size(folder) / 1e6, 1)
    if found is not None:
        info = {key: value for key, value in found.info.items() if key != "config"}
        last = found.epochs.iloc[-1].to_dict() if len(found.epochs) else None
        about |= {"failure": found.failed or None, "last epoch": last, "info": info}
    about["config"] = run.config.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(json.loads(json.dumps(about, default=float)), sort_keys=False, allow_unicode=True)


def remove(folders: list[Path]) -> int:
    """Remove runs from the disk; the bytes that are free. Raises ConfigError for one that is being computed."""
    for folder in folders:
        run = _of(folder / "config.json", folder.parent)
        if run and run.busy():
            raise ConfigError(f"{folder}: a process is training this run; nothing is removed")
    freed = sum(map(size, folders))
    for folder in folders:
        shutil.rmtree(folder)
    return freed


def merge(other: Path, store: Path, report: Callable[[str], object] = print) -> int:
    """Take over the finished runs of another store that this one lacks; their number.

    Only results and checkpoints are taken, each after it was read with its digest and as plain data: whatever else lies
    there is not opened. A run that is damaged is reported, and left.
    """
    if not other.is_dir():
        raise ConfigError(f"{other}: no such folder")
    taken = 0
    for folder, theirs in runs(other):
        if theirs is None:
            report(f"{folder}: of another version of the code, or damaged; left")
            continue
        mine = theirs.model_copy(update={"store": store})
        if mine.done():
            continue
        if theirs.kept() is None or any(_damaged(path, theirs) for path in _weights(folder)):
            report(f"{folder}: not finished, or damaged; left")
            continue
        with mine.alone():
            for path in (*_weights(folder), folder / RESULT):  # the result last: it makes them count
                checkpoint.write(mine.path / path.name, path.read_bytes())
        taken += 1
    return taken


def _weights(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.pt")) if path.name != RESULT]


def _damaged(path: Path, run: Run) -> bool:
    try:
        checkpoint.load(path, run.config.digest())
    except checkpoint.CheckpointError:
        return True
    return False
