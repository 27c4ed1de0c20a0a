"""Judged reconstructions as one object, and their committed form in results/."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from . import records
from .records import DIGITS

KEYS = ["set", "metric", "channel", "phantom", "inclusion"]  # of a row of values.csv, which has a column for each run
KEY = ["arm", "seed"]
COLUMNS = [*KEY, *KEYS, "value"]
TEXT = dict.fromkeys(("failed", "config", "key", "code", "test"), str)  # digests, some of which look like numbers
TRUTH = "truth"  # in the place of an arm: what is true of a set
TABLES = ("values", "lesions", "calibration", "times", "runs")


@dataclass(frozen=True)
class Reconstructed:
    """Judged reconstructions.

    `values`: rows of `COLUMNS`, of networks by (arm, seed), of other methods and of what is true (seed 0); `lesions`
    and `calibration`, of the ensemble, as in `reconstruction_scores`; `times`: step, seconds, n, threads; `runs`: a
    row per run: arm, seed, failed, digests of its configuration, data, code and test phantoms; `source`: its place.
    """

    values: pd.DataFrame
    lesions: pd.DataFrame
    calibration: pd.DataFrame
    times: pd.DataFrame
    runs: pd.DataFrame
    profile: str
    source: str

    @property
    def provenance(self) -> dict[str, str]:
        """What a table of these runs rests on."""
        return {"test phantoms": ", ".join(sorted(set(self.runs["test"])))} | records.used(self.runs)

    @cached_property
    def _places(self) -> dict[tuple[str, ...], np.ndarray]:
        return self.values.groupby(["arm", "set", "metric", "channel"]).indices

    def chosen(self, arm: str, on: str, metric: str, channel: str) -> pd.DataFrame:
        """The rows of `values` of one method, set, metric and channel: tables look up thousands of a million rows."""
        return self.values.iloc[self._places.get((arm, on, metric, channel), [])]

    @property
    def metrics(self) -> pd.DataFrame:
        """The test phantoms by number, for a page that counts them."""
        home = self.values[self.values["set"] == "home"]
        return home[["phantom"]].drop_duplicates()


def save(found: Reconstructed, folder: Path) -> None:
    """Write NAME.csv of each table and about.json, replacing what was there.

    Raises ResultsError where a larger record would be lost: one of a larger profile, or of more runs.
    """
    tables = {name: getattr(found, name) for name in TABLES} | {"values": _wide(found.values)}
    records.write(folder, tables, found.profile, len(found.runs))


def load(folder: Path) -> Reconstructed:
    """A committed record. Raises ResultsError for one that is incomplete, changed, or of another base configuration."""
    about, texts = records.read(folder, TABLES)
    # as text: an empty cell is what was not judged, nan a value that does not exist
    wide = pd.read_csv(io.StringIO(texts["values"]), dtype=str, keep_default_na=False)
    runs = pd.read_csv(io.StringIO(texts["runs"]), dtype=TEXT).fillna({"failed": "", "key": ""})
    plain = [pd.read_csv(io.StringIO(texts[name])) for name in TABLES[1:4]]
    return Reconstructed(_long(wide), *plain, runs, about.profile, f"{folder.parent.name}/{folder.name}")


def _wide(values: pd.DataFrame) -> pd.DataFrame:
    """A column for each run; a row whose values all do not exist is left out."""
    named = values.assign(run=values["arm"] + " " + values["seed"].astype(str))
    named["value"] = [DIGITS % v for v in named["value"]]
    wide = named.pivot(index=KEYS, columns="run", values="value").sort_index(axis=1)
    return wide[~wide.isin(["nan"]).where(wide.notna(), True).all(axis=1)].reset_index()


def _long(wide: pd.DataFrame) -> pd.DataFrame:
    long = wide.melt(KEYS, var_name="run")
    long = long[long["value"] != ""].astype({"value": float, "phantom": int, "inclusion": int}).reset_index(drop=True)
    arm, seed = zip(*(run.rsplit(" ", 1) for run in long["run"]), strict=True)
    return long.assign(arm=arm, seed=list(map(int, seed)))[COLUMNS]


def joined(found: Reconstructed, earlier: Reconstructed) -> Reconstructed:
    """With what an earlier record has of other networks, and of other methods and sets where `found` has no value.

    An ensemble stays that of the seeds which were judged together, and a classical method keeps its setting of then.
    Raises ResultsError where a set of both has other phantoms, or one of these runs would lose sets.
    """
    if not _same(found, earlier):
        line = f"{earlier.source}: judged on other phantoms than these runs; remove it to record anew"
        raise records.ResultsError(line)
    own = {*_keys(found.runs)}  # failed ones too
    for arm, seed in sorted(own & {*_keys(earlier.runs)} & {*_keys(found.values)}):
        if lost := _sets(earlier, arm, seed) - _sets(found, arm, seed):
            line = f"{earlier.source}: {arm}, seed {seed}, was judged on {', '.join(sorted(lost))} too"
            raise records.ResultsError(f"{line}; judge it there, or remove the record to record anew")
    values = _both(found.values, earlier.values, own, [*KEY, *KEYS])
    tables = {name: _both(getattr(found, name), getattr(earlier, name), own, KEY) for name in ("lesions", "runs")}
    if found.calibration.empty:
        tables |= {name: getattr(earlier, name) for name in ("calibration", "times")}
    return replace(found, values=values, **tables)


def _same(found: Reconstructed, earlier: Reconstructed) -> bool:
    """Whether the sets that are in both have the same phantoms: as many, and what is true of them."""
    values = [r.values[r.values["value"].notna()] for r in (found, earlier)]
    common = set.intersection(*(set(v["set"]) for v in values))
    numbers = [set(_keys(v[v["set"].isin(common)], ["set", "phantom"])) for v in values]
    true = [v[v["arm"] == TRUTH].set_index(KEYS)["value"] for v in values]
    shared = true[0].index.intersection(true[1].index)
    return numbers[0] == numbers[1] and np.allclose(*(one[shared] for one in true), rtol=1e-4, atol=1e-6)


def _sets(record: Reconstructed, arm: str, seed: int) -> set[str]:
    v = record.values
    return set(v.loc[(v["arm"] == arm) & (v["seed"] == seed), "set"])


def _keys(table: pd.DataFrame, columns: Sequence[str] = KEY) -> list[tuple]:
    return list(table[list(columns)].itertuples(index=False, name=None))


def _both(found: pd.DataFrame, earlier: pd.DataFrame, own: set[tuple], columns: Sequence[str]) -> pd.DataFrame:
    """The rows of `found`, and of `earlier` what is neither of an own run nor there already, by `columns`."""
    there, runs = {*_keys(found, columns)}, _keys(earlier)
    more = [run not in own and key not in there for run, key in zip(runs, _keys(earlier, columns), strict=True)]
    return pd.concat([found, earlier[more]], ignore_index=True)
