"""A study's numbers, from its runs or from the committed results/, as the same tables."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import comparison, outcomes, study
from . import config as configuration
from .arms import STUDIES
from .config import ConfigError
from .data import dataset
from .records import Record, ResultsError, load, save
from .trainer import History

Key = tuple[str, int]  # arm, seed


def record(histories: dict[Key, History], profile: str, keys: Mapping[Key, str] | None = None) -> Record:
    """The tables of the runs of a study; `keys`: what tells each run's phantoms and readings apart, `Run.data`.

    Raises ResultsError where they were judged on different phantoms.
    """
    runs = pd.DataFrame([_row(arm, seed, history) for (arm, seed), history in histories.items()])
    runs.insert(5, "key", [(keys or {}).get(key, "") for key in histories])
    if len(tests := set(runs["test"]) - {""}) > 1:
        raise ResultsError(f"{len(runs)} runs were judged on {len(tests)} test sets: one is accepted")
    return Record(outcomes.metrics(histories), outcomes.epochs(histories), runs, profile, "runs/")


def elsewhere(folder: Path, profile: str, wanted: dict[Key, study.Run]) -> Record | None:
    """The runs of a committed record that `study.elsewhere` finds in it; None where there are none."""
    if not folder.is_dir() or (found := load(folder)).profile != profile:
        return None
    runs = study.elsewhere(found.runs, wanted)
    if runs.empty:
        return None
    of = runs[["arm", "seed"]]
    return replace(found, metrics=found.metrics.merge(of), epochs=found.epochs.merge(of), runs=runs)


def joined(found: Record, other: Record, order: Iterable[Key]) -> Record:
    """Two records' runs as one, by (arm, seed) in this order. Raises ResultsError where their test phantoms differ."""
    tests = [set(r.runs["test"]) - {""} for r in (found, other)]
    if len(set.union(*tests)) > 1:
        raise ResultsError(f"{other.source}: judged on other phantoms than these runs; remove it to record them alone")
    place = {key: i for i, key in enumerate(order)}

    def both(name: str) -> pd.DataFrame:
        table = pd.concat([getattr(found, name), getattr(other, name)], ignore_index=True)
        return table.iloc[
            np.argsort([place[key] for key in zip(table["arm"], table["seed"], strict=True)], stable=True)
        ]

    return replace(found, **{name: both(name).reset_index(drop=True) for name in ("metrics", "epochs", "runs")})


def recorded(
    folder: Path, profile: str, wanted: Mapping[Key, study.Run], found: dict[Key, History], earlier: Record | None
) -> str:
    """Write the record of a study's finished runs, and of those that only the `earlier` one has; a line about it."""
    mine = record(found, profile, {key: wanted[key].data for key in found})
    whole = mine if earlier is None else joined(mine, earlier, wanted)
    if configuration.named("study", STUDIES, folder.name).whole:
        data = dataset.load(next(iter(wanted.values())).config.data)
        whole = replace(whole, beside=comparison.trivial_rows(data))
    save(whole, folder)
    there = 0 if earlier is None else len(earlier.runs)
    return f"recorded in {folder}: {len(found)} runs from here, {there} that were there"


def _row(arm: str, seed: int, history: History) -> dict:
    info, optim = history.info, history.info["config"]["optim"]
    row = {"arm": arm, "seed": seed, "failed": history.failed, "config": info["config_digest"], "data": info["data"]}
    row["test"] = info.get("test", "")  # earlier runs do not say
    row |= {name: info[name] for name in ("code", "parameters", "samples_seen", "samples_per_second")}
    row["commit"] = str(info.get("commit", "unknown")) + "-dirty" * bool(info.get("dirty"))
    row |= {"steps": len(history.steps), "optimiser": optim["name"], "schedule": optim["schedule"], "lr": optim["lr"]}
    row |= {"beta2": optim["betas"][1], "weight_decay": optim["weight_decay"], "warmup": optim["warmup"]}
    last = info["optimiser"]
    row |= {f"last_{name}": last.get(name, np.nan) for name in ("lr", "beta1", "beta2", "weight_decay")}
    row |= {name: info[name] for name in ("precision", "micro", "compile", "device", "threads")}
    return row | {"torch": info["versions"]["torch"], "python": info["versions"]["python"]}


def evidence(name: str, profile: str, seeds: int, store: Path | None, folder: Path) -> Record | None:
    """A study's tables: from the run store, if any; else computed, full on a GPU; else from `folder`; else None.

    0 seeds: the study's own number, which a study of one run an arm always has. Without a store, from `folder` alone.
    """
    found = None if store is None else _here(name, profile, seeds, store)
    return load(folder / name) if found is None and (folder / name).is_dir() else found


def _here(name: str, profile: str, seeds: int, store: Path) -> Record | None:
    """The tables of a study whose runs are finished, or can be computed here."""
    seeds = 0 if configuration.named("study", STUDIES, name).seeds == 1 else seeds
    try:
        wanted = study.members(name, profile, seeds, store)
    except ConfigError:
        wanted = {}  # tuning is not computed here, or an arm does not fit this profile
    if profile == "full" and torch.cuda.is_available():
        if not wanted:
            study.results("4.3-tuning", profile, 0, store)
        return record(study.results(name, profile, seeds, store), profile)
    if wanted and all(run.done() for run in wanted.values()):
        return record({key: run.result() for key, run in wanted.items()}, profile)
    return None
