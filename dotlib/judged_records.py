"""The judgements of many runs as one object, and their committed form in results/."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from . import records
from .records import DIGITS

COLUMNS = ["arm", "seed", "set", "metric", "channel", "value", "n"]
KEYS = ["set", "metric", "channel", "n"]  # of a row of judged.csv, which has a column for each run
TEXT = dict.fromkeys(("failed", "config", "key", "code", "test"), str)  # digests, some of which look like numbers
TABLES = ("judged", "runs")


@dataclass(frozen=True)
class Judged:
    """Judged runs.

    `table`: rows of arm, seed, set, metric, channel, value, n, of runs and of trivial predictors (seed 0); `runs`: a
    row per run: arm, seed, failed (why it stopped, or empty), digests of its configuration, code and test phantoms;
    `source`: where they come from.
    """

    table: pd.DataFrame
    runs: pd.DataFrame
    profile: str
    source: str

    def without(self, arms: Collection[str]) -> Judged:
        """The same without the runs of some arms."""
        table, runs = (rows[~rows["arm"].isin(list(arms))] for rows in (self.table, self.runs))
        return replace(self, table=table, runs=runs)

    @property
    def provenance(self) -> dict[str, str]:
        """What a table of these runs rests on."""
        return {"test phantoms": ", ".join(sorted(set(self.runs["test"])))} | records.used(self.runs)

    @property
    def metrics(self) -> pd.DataFrame:
        """The default family's test phantoms by number, for a page that counts them."""
        chosen = self.table[(self.table["set"] == "default") & (self.table["metric"] == "nrmse")]
        return pd.DataFrame({"phantom": range(int(chosen["n"].max()))})


def save(found: Judged, folder: Path) -> None:
    """Write judged.csv (a column per run), runs.csv and about.json, replacing what was there.

    Raises ResultsError where a larger record would be lost: one of a larger profile, or of more runs.
    """
    tables = dict(zip(TABLES, (_wide(found.table), found.runs), strict=True))
    records.write(folder, tables, found.profile, len(found.runs))


def load(folder: Path) -> Judged:
    """A committed record. Raises ResultsError for one that is incomplete, changed, or of another base configuration."""
    about, texts = records.read(folder, TABLES)
    # as text: an empty cell is a run that was not judged on that set, nan one whose value does not exist
    wide = pd.read_csv(io.StringIO(texts["judged"]), dtype=str, keep_default_na=False)
    runs = pd.read_csv(io.StringIO(texts["runs"]), dtype=TEXT)
    source = f"{folder.parent.name}/{folder.name}"
    return Judged(_long(wide), runs.fillna({"failed": "", "key": ""}), about.profile, source)


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """A column for each run, and a row for each number that its values rest on."""
    named = table.assign(run=table["arm"] + " " + table["seed"].astype(str), value=[DIGITS % v for v in table["value"]])
    return named.pivot(index=KEYS, columns="run", values="value").sort_index(axis=1).reset_index()


def _long(wide: pd.DataFrame) -> pd.DataFrame:
    long = wide.melt(KEYS, var_name="run")
    long = long[long["value"] != ""].astype({"value": float, "n": int}).reset_index(drop=True)
    arm, seed = zip(*(run.rsplit(" ", 1) for run in long["run"]), strict=True)
    return long.assign(arm=arm, seed=list(map(int, seed)))[COLUMNS]
