"""A study's numbers, from its runs or from the committed results/, as the same tables."""

from pathlib import Path

import pandas as pd
import torch

from . import config as configuration
from . import outcomes, study
from .arms import STUDIES
from .config import ConfigError
from .records import Record, ResultsError, load
from .trainer import History


def record(histories: dict[tuple[str, int], History], profile: str) -> Record:
    """The tables of the runs of a study. Raises ResultsError where they were judged on different phantoms."""
    runs = pd.DataFrame([_row(arm, seed, history) for (arm, seed), history in histories.items()])
    if len(tests := set(runs["test"]) - {""}) > 1:
        raise ResultsError(f"{len(runs)} runs were judged on {len(tests)} test sets: one is accepted")
    return Record(outcomes.metrics(histories), outcomes.epochs(histories), runs, profile, "runs/")


def _row(arm: str, seed: int, history: History) -> dict:
    info, optim = history.info, history.info["config"]["optim"]
    row = {"arm": arm, "seed": seed, "failed": history.failed, "config": info["config_digest"], "data": info["data"]}
    row["test"] = info.get("test", "")  # earlier runs do not say
    row |= {name: info[name] for name in ("code", "parameters", "samples_seen", "samples_per_second")}
    row["commit"] = str(info.get("commit", "unknown")) + "-dirty" * bool(info.get("dirty"))
    row |= {"steps": len(history.steps), "optimiser": optim["name"], "schedule": optim["schedule"], "lr": optim["lr"]}
    row |= {"beta2": optim["betas"][1], "weight_decay": optim["weight_decay"], "warmup": optim["warmup"]}
    row |= {name: info[name] for name in ("precision", "micro", "compile", "device", "threads")}
    return row | {"torch": info["versions"]["torch"], "python": info["versions"]["python"]}


def evidence(name: str, profile: str, seeds: int, store: Path, folder: Path) -> Record | None:
    """A study's tables: from the run store; else computed, full on a GPU; else from `folder`; else None.

    0 seeds: the study's own number.
    """
    configuration.named("study", STUDIES, name)
    try:
        wanted = study.members(name, profile, seeds, store)
    except ConfigError:
        wanted = {}  # tuning is not computed here, or an arm does not fit this profile
    missing = [run for run in wanted.values() if run.infra.status() != "completed"]
    if profile == "full" and torch.cuda.is_available():
        if not wanted:
            study.results("4.3-tuning", profile, 0, store)
        return record(study.results(name, profile, seeds, store), profile)
    if wanted and not missing:
        return record({key: run.result() for key, run in wanted.items()}, profile)
    return load(folder / name) if (folder / name).is_dir() else None
