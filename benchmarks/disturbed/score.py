"""The score: a row a fault."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from .compare import Work

LONGEST = 400  # characters of a note


@dataclass
class Row:
    """What was done, and what came of it."""

    fault: str
    done: str
    tried: int = 0
    survived: int = 0
    lost: int = 0  # finished things that were there and then were not, or others
    needless: int = 0  # finished work that was done a second time
    epochs_again: int = 0  # work that was in flight
    phantoms_again: int = 0
    seconds: float = 0.0
    skipped: str = ""  # why it could not be tried here
    notes: list[str] = field(default_factory=list)
    _begun: float = field(default_factory=time.monotonic)

    def attempt(self, problems: Iterable[str], what: str = "") -> bool:
        """Count one attempt: survived where there is no problem; each problem is a note."""
        problems = list(problems)
        self.tried += 1
        self.survived += not problems
        self.notes += [(f"{what}: {problem}" if what else problem)[:LONGEST] for problem in problems]
        self.seconds = time.monotonic() - self._begun
        return not problems

    def work(self, found: Work) -> list[str]:
        """Take in what was done twice: problems where it need not be."""
        self.epochs_again += found.epochs_again
        self.phantoms_again += found.phantoms_again
        self.needless += len(found.needless)
        return found.needless[:3]

    def gone(self, before: dict[str, str], after: dict[str, str]) -> list[str]:
        """Problems where finished things are missing, or others."""
        lost = sorted(name for name, digest in before.items() if after.get(name) != digest)
        self.lost += len(lost)
        return [f"lost: {name}" for name in lost[:3]]

    @property
    def good(self) -> bool:
        return bool(self.skipped) or (self.tried > 0 and self.survived == self.tried)

    def record(self) -> dict:
        """For a file of rows."""
        names = ("fault", "done", "tried", "survived", "lost", "needless", "epochs_again", "phantoms_again")
        found = {name: getattr(self, name) for name in names}
        return found | {"seconds": round(self.seconds, 1), "skipped": self.skipped, "notes": self.notes}


HEAD = ("fault", "tried", "survived", "lost", "done twice", "in flight again", "seconds")


def table(rows: Iterable[Row]) -> str:
    """The score, a line a fault, and below it what went wrong."""
    cells, notes = [HEAD], []
    for row in rows:
        again = [f"{n} {what}" for n, what in ((row.epochs_again, "epochs"), (row.phantoms_again, "phantoms")) if n]
        values = (row.tried, row.survived, row.lost, row.needless, ", ".join(again) or "-", f"{row.seconds:.0f}")
        cells.append((row.fault, *map(str, values)) if not row.skipped else (row.fault, f"not there: {row.skipped}"))
        notes += [f"{row.fault}: {note}" for note in row.notes]
    widths = [max(len(cell[i]) for cell in cells if len(cell) == len(HEAD)) for i in range(len(HEAD))]
    lines = ["  ".join(word.ljust(w) for word, w in zip(c, widths, strict=len(c) == len(HEAD))).rstrip() for c in cells]
    return "\n".join([*lines, *notes])
