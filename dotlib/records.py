"""The committed tables of a study in results/: read, verified, written."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from . import checkpoint
from . import config as configuration
from .config import Frozen, ProfileName

COLUMNS = (("nrmse", "mua"), ("nrmse", "musp"), ("legacy_rmse", ""))  # of the metrics, what is committed
OF_LAST = (("ssim", "mua"),)  # and of the last checkpoint only
CURVES = ("arm", "seed", "epoch", "train_loss", "validation_loss", "nrmse_mua", "update_ratio", "skipped")
KEYS = ["arm", "seed", "checkpoint", "metric", "channel"]
DIGITS = "%.6g"
TABLES = ("metrics", "epochs", "runs")
WHOLE = ("details", "beside")  # of a whole record: every metric of the last checkpoint; the same of trivial predictors
MOST, WIDEST = 2**28, 10_000  # bytes of a file, columns of a table
# digests, some of which look like numbers
TEXT = dict.fromkeys(("failed", "config", "data", "key", "test", "code", "commit"), str)
NEEDED = {"metrics": KEYS, "epochs": CURVES, "runs": ("arm", "seed", "failed", "config", "data", "code")}


class ResultsError(ValueError):
    """A record in results/ that cannot be used, as one line."""


@dataclass(frozen=True)
class Record:
    """A study's tables.

    `metrics`: arm, seed, checkpoint, metric, phantom, inclusion, channel, value; `epochs`: arm, seed and a row per
    epoch; `runs`: a row per run with what it ran as, `failed` where it diverged; `source`: where they come from;
    `beside`: rows like those of `metrics` of predictors that are no runs, where the record has them.
    """

    metrics: pd.DataFrame
    epochs: pd.DataFrame
    runs: pd.DataFrame
    profile: str
    source: str
    beside: pd.DataFrame | None = None

    @property
    def provenance(self) -> dict[str, str]:
        """What a table of these runs rests on."""
        return {"data": ", ".join(sorted(set(self.runs["data"])))} | used(self.runs)


def used(runs: pd.DataFrame) -> dict[str, str]:
    """What each run of a record ran as, by its name."""
    return {f"{r.arm}, seed {r.seed}": f"{r.config}, code {r.code}" for r in runs.itertuples()}


class About(Frozen):
    """What a committed record says of itself; `tables` holds a digest of each."""

    profile: ProfileName
    runs: int
    base: dict[str, Any]
    tables: dict[str, str]


def save(found: Record, folder: Path) -> None:
    """Write metrics.csv (a column per phantom), epochs.csv, runs.csv and about.json, replacing what was there.

    With predictors beside the runs, every metric of the last checkpoint is kept, in details.csv and beside.csv.
    Raises ResultsError where a larger record would be lost: one of a larger profile, or of more runs.
    """
    of = found.metrics.groupby(["metric", "channel"])
    kept = [of.get_group(column) for column in COLUMNS]
    kept += [rows[rows["checkpoint"] == "last"] for rows in (of.get_group(c) for c in OF_LAST if c in of.groups)]
    wide = pd.concat(kept).pivot(index=KEYS, columns="phantom", values="value").reset_index()
    tables = dict(zip(TABLES, (wide, found.epochs[list(CURVES)], found.runs), strict=True))
    if found.beside is not None:
        other = found.metrics.loc[found.metrics["checkpoint"] == "last"].set_index(["metric", "channel"])
        other = other.drop([*COLUMNS, *OF_LAST], errors="ignore").reset_index()
        tables |= dict(zip(WHOLE, (_wide(other), _wide(found.beside)), strict=True))
    write(folder, tables, found.profile, len(found.runs))


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    """A column per phantom."""
    return rows.pivot(index=[*KEYS, "inclusion"], columns="phantom", values="value").reset_index()


def write(folder: Path, tables: Mapping[str, pd.DataFrame], profile: str, runs: int) -> None:
    """Write tables as NAME.csv with about.json, which holds their digests, replacing what was there.

    Raises ResultsError where a larger record would be lost: one of a larger profile, or of more runs.
    """
    _settle(folder)
    if (folder / "about.json").exists():
        former, sizes = read(folder, tables)[0], list(configuration.PROFILES)
        if (sizes.index(former.profile), former.runs) > (sizes.index(profile), runs):
            held = f"{former.runs} runs of profile {former.profile}"
            raise ResultsError(f"{folder}: holds {held}; remove it to record {runs} of {profile}")
    texts = {name: t.to_csv(index=False, float_format=DIGITS, lineterminator="\n") for name, t in tables.items()}
    about = {"profile": profile, "runs": runs, "base": _base(profile)}
    about |= {"tables": {name: _digest(text) for name, text in texts.items()}}
    files = {f"{name}.csv": text for name, text in texts.items()} | {"about.json": json.dumps(about, indent=2) + "\n"}
    new = _new(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:  # on a full disk the former record stays, or none
        for name, text in files.items():
            checkpoint.write(new / name, text.encode())
        _settle(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _new(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def _settle(folder: Path) -> None:
    """Let a new record take the place of the former, or finish what was killed in it: `about.json` is written last."""
    if (_new(folder) / "about.json").exists():
        folder.mkdir(exist_ok=True)
        for path in sorted(_new(folder).iterdir(), key=lambda path: path.name == "about.json"):
            os.replace(path, folder / path.name)
        _new(folder).rmdir()


def read(folder: Path, names: Iterable[str]) -> tuple[About, dict[str, str]]:
    """What a record says of itself, and the texts of its tables.

    Raises ResultsError for one that is incomplete, changed, of another base configuration, or of files above MOST.
    """
    _settle(folder)
    try:
        values = json.loads(_text(folder / "about.json"))
        about = configuration.validate(About, values, "about.json")
        texts = {name: _text(folder / f"{name}.csv") for name in names}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ResultsError(f"{folder}: {str(error).splitlines()[0]}") from None
    changed = [f"{name}.csv" for name, text in texts.items() if _digest(text) != about.tables.get(name)]
    if changed:
        raise ResultsError(f"{folder}: {', '.join(changed)} changed since it was recorded")
    if about.base != _base(about.profile):
        raise ResultsError(f"{folder}: recorded with another base configuration than profile {about.profile} has")
    return about, texts


def load(folder: Path) -> Record:
    """A committed record. Raises ResultsError for one that is incomplete, changed, or of another base configuration."""
    about, texts = read(folder, TABLES)
    wide, epochs, runs = (table(texts[name], f"{folder}/{name}.csv", NEEDED[name], TEXT) for name in TABLES)
    metrics, beside = _long(wide.assign(inclusion=-1), f"{folder}/metrics.csv"), None
    if set(WHOLE) <= set(about.tables):
        texts = read(folder, WHOLE)[1]
        more, beside = (
            _long(table(texts[name], where, [*KEYS, "inclusion"]), where)
            for name, where in ((name, f"{folder}/{name}.csv") for name in WHOLE)
        )
        metrics = pd.concat([metrics, more], ignore_index=True)
    runs = runs.fillna({"failed": "", "key": ""})
    return Record(metrics, epochs, runs, about.profile, f"{folder.parent.name}/{folder.name}", beside)


def _long(wide: pd.DataFrame, where: str) -> pd.DataFrame:
    """A row per value; of inclusions, those that there are."""
    try:
        rows = wide.fillna({"channel": ""}).melt([*KEYS, "inclusion"], var_name="phantom")
        rows = rows.astype({"phantom": int, "value": float})
    except ValueError as error:
        raise ResultsError(f"{where}: {str(error).splitlines()[0]:.80}; accepted: numbers") from None
    return rows


def table(text: str, where: str, needed: Iterable[str], kinds: Mapping[str, type] | type | None = None) -> pd.DataFrame:
    """A table of a record; `kinds`: types of columns. Raises ResultsError for what is none, or lacks a column."""
    if (width := text.partition("\n")[0].count(",") + 1) > WIDEST:
        raise ResultsError(f"{where}: {width} columns; accepted: {WIDEST} at most")
    try:
        found = pd.read_csv(io.StringIO(text), dtype=kinds)
    except (ValueError, OverflowError) as error:
        raise ResultsError(f"{where}: no table: {(str(error).splitlines() or ['empty'])[0]:.80}") from None
    if missing := [name for name in needed if name not in found]:
        raise ResultsError(f"{where}: column {missing[0]!r} is missing")
    return found


def _text(path: Path) -> str:
    if (size := path.stat().st_size) > MOST:
        raise ValueError(f"{path.name} has {size} bytes; accepted: {MOST} at most")
    return path.read_text(encoding="utf-8")


def _base(profile: str) -> dict[str, Any]:
    return configuration.profile(profile).base.model_dump(mode="json", exclude_defaults=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
