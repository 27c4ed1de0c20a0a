"""A chapter's page of recorded results: what is there is written under its own profile, what is not is one line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from .report import Book


class Line(str):
    """A line of Markdown, rendered where a notebook names it."""

    def _repr_markdown_(self) -> str:
        return str(self)


def found(evidence: Mapping[str, Any]) -> pd.DataFrame:
    """What each study's numbers come from: profile, arms, runs, failed runs, source; dashes where there is nothing."""
    rows = []
    for study, record in evidence.items():
        row = {"study": study, "profile": "--", "arms": 0, "runs": 0, "failed": 0, "from": "not computed"}
        if record is not None:
            runs, row["profile"], row["from"] = record.runs, record.profile, record.source
            row |= {"arms": runs["arm"].nunique(), "runs": len(runs), "failed": int((runs["failed"] != "").sum())}
        rows.append(row)
    return pd.DataFrame(rows)


def failures(evidence: Mapping[str, Any]) -> pd.DataFrame:
    """Every run that failed, by name: study, arm, seed, and why."""
    columns = ["study", "arm", "seed", "failed"]
    parts = [record.runs.assign(study=study)[columns] for study, record in evidence.items() if record is not None]
    every = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return every[every["failed"] != ""].reset_index(drop=True)


@dataclass(frozen=True)
class Page:
    """Where figures and tables of one record go; `record` is None where there is nothing, and `missing` says why."""

    book: Book
    record: Any
    missing: str = "not computed in this profile, and results/ holds no runs of it"
    task: str = "autoencode"

    def show(
        self,
        make: Callable[[Any], Any],
        name: str,
        caption: str,
        needs: Sequence[str] = (),
        cites: Sequence[str] = (),
    ) -> Any:
        """Make a figure or table of the record, write it under the record's profile, and return it.

        Without a record, or without a run of any arm in `needs` (all arms where it is empty), a line says so instead.
        """
        if self.record is None or self.runs(needs).empty:
            return Line(f"*{name}*: {self.missing}.")
        made = make(self.record)
        book, inputs = replace(self.book, profile=self.record.profile), self.record.provenance
        book.save(made, name, caption, task=self.task, n=self.n(needs), inputs=inputs, cites=cites)
        return made

    def say(self, make: Callable[[Any], str]) -> Line:
        """Markdown made of the record, or why there is none."""
        return Line(f"Nothing to say: {self.missing}." if self.record is None else make(self.record))

    def runs(self, needs: Sequence[str] = ()) -> pd.DataFrame:
        """The record's runs of these arms, or of all."""
        runs = self.record.runs
        return runs[runs["arm"].isin(list(needs))] if needs else runs

    def n(self, needs: Sequence[str] = ()) -> str:
        """What the numbers of these arms rest on: phantoms, seeds an arm."""
        counts = self.runs(needs).groupby("arm").size()
        few, many = counts.min(), counts.max()
        seeds = f"{few}-{many} seeds" if few < many else f"{many} seeds" if many > 1 else "1 seed"
        return f"{self.record.metrics['phantom'].nunique()} phantoms, {seeds}"
