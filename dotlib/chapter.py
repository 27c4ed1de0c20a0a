"""A chapter's page of recorded results: what is there is written under its own profile, what is not is one line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from .report import Book
from .shown import Line
from .shown import readable as readable  # for notebooks

LACKING = "not among what was judged"


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

    def where(self, there: Callable[[Any], Any]) -> "Page":
        """This page; one without a record where `there(record)` is false: what is judged of it lacks this part."""
        if self.record is None or there(self.record):
            return self
        return replace(self, record=None, missing=LACKING)

    def show(
        self,
        make: Callable[[Any], Any],
        name: str,
        caption: str,
        cites: Sequence[str] = (),
    ) -> Any:
        """Make a figure or table of the record, write it under the record's profile, and show it over its caption.

        A table is shown `readable`. Without a record, or where a table has no columns since nothing of it was judged,
        a line says so instead, and what a former run wrote under the name is removed.
        """
        if self.record is None:
            return self._without(name)
        made = make(self.record)
        if isinstance(made, pd.DataFrame) and made.columns.empty:
            return replace(self, missing=LACKING)._without(name)
        book, inputs = replace(self.book, profile=self.record.profile), self.record.provenance
        return book.show(made, name, caption, task=self.task, n=self.n(), inputs=inputs, cites=cites)

    def _without(self, name: str) -> Line:
        self.book.remove(name)
        return Line(f"*{name}*: {self.missing}.")

    def say(self, make: Callable[[Any], str]) -> Line:
        """Markdown made of the record, under its scope, or why there is none."""
        if self.record is None:
            return Line(f"Nothing to say: {self.missing}.")
        return Line(f"{self.scope()}\n\n{make(self.record)}")

    def scope(self) -> str:
        """What the numbers are of: task, the record's profile, n."""
        return replace(self.book, profile=self.record.profile).scope(self.task, self.n())

    def n(self) -> str:
        """What the numbers rest on: phantoms, seeds an arm."""
        counts = self.record.runs.groupby("arm").size()
        few, many = counts.min(), counts.max()
        seeds = f"{few}-{many} seeds" if few < many else f"{many} seeds" if many > 1 else "1 seed"
        return f"{self.record.metrics['phantom'].nunique()} phantoms, {seeds}"
