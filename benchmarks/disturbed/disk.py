"""A disk that is full as one kind of file is written, and then is not."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import compare
from .compare import Work
from .kills import PAGE, SIMULATE, SWEEP, Undisturbed, fresh
from .project import Project, Told
from .score import Row

ONE = ("study", "tiny-one", "--profile", "smoke")
LIFT = """
import sys
from dotlib import arms
from dotlib.config import Lift
from dotlib.data import lifts
try:
    lifts.prepare(arms.arm("stage1-adam", "smoke").data, Lift(draws=1))
except (RuntimeError, ValueError, OSError) as error:  # as `dotlib` does
    sys.exit(f"dotlib: {error}")
"""
LIFTS = ("-c", LIFT)
REASONS = ("No space left on device", "File too large")  # of a full disk, of a limit on files where none can be mounted
MEGABYTES = 160


@dataclass(frozen=True)
class Write:
    """One kind of file: the command that writes it, the pattern of its path and which of them finds the disk full."""

    words: tuple[str, ...]
    pattern: str
    number: int = 1
    template: str = ""  # what is there before
    named: tuple[str, ...] = ()  # what the command's line may name, if not that file: the disk is full for others too
    mode: str = "disabled"  # of W&B


WRITES = {
    "shard": Write(SIMULATE, "x.h5.parts/0*.tmp", 3),
    "merged dataset": Write(SIMULATE, "x.h5.parts/merged.tmp"),
    "lift file": Write(LIFTS, "data/*.lift-*.parts/0*.tmp", 2, "data"),
    "config.json": Write(ONE, "runs/*/.config.json.*"),
    "last.pt": Write(ONE, "runs/*/.last.pt.*", 3),
    "best.pt": Write(ONE, "runs/*/.best.pt.*", 2),
    "progress.json": Write(ONE, "runs/*/.progress.json.*", 2),
    "history.pt": Write(ONE, "runs/*/.history.pt.*"),
    "journal of a sweep": Write((*SWEEP[:-1], "1"), "runs/sweeps/*/journal.log", 3, named=("journal.log", "last.pt")),
    "W&B": Write(ONE, "runs/*/wandb/logged.part", 2, named=("last.pt",), mode="offline"),
    "results, table": Write((*ONE, "--record"), "results/*/.metrics.csv.*", template="done"),
    "results, about.json": Write((*ONE, "--record"), "results/*/.about.json.*", template="done"),
    "figure": Write(PAGE, "build/*/figures/.*.png.*", template="book", named=("4.2-baseline.ipynb",)),
    "executed notebook": Write(PAGE, "build/*/4.2*.ipynb", 3, template="book"),
    "page": Write(PAGE, "build/*/.4.2*.html.*", template="book"),
}


@contextmanager
def mounted(folder: Path, megabytes: int = MEGABYTES) -> Iterator[bool]:
    """A disk of its own, where one may be mounted: whether it was."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        done = False
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def run(name: str, folder: Path, known: Undisturbed, template: Path | None = None) -> Row:
    """The disk is full at one kind of write; then there is room, and the same command is called again."""
    write, row = WRITES[name], Row(f"full disk: {name}", "no room as it is written")
    expected, _, _ = known.of(write.words, template, write.mode)
    place = folder / "small"
    with mounted(place) as real:
        row.done += "" if real else " (a limit on the size of files)"
        row.attempt(_full_and_again(fresh(place, template), write, expected, row))
    return row


def _full_and_again(project: Project, write: Write, expected: dict[str, str], row: Row) -> list[str]:
    before = compare.left(project.folder)
    command = project.start(*write.words, DISTURBED_FULL=f"{write.pattern} {write.number}", WANDB_MODE=write.mode)
    ended = command.end()
    full = Told(project.told).words("full")
    if not full:
        return [f"nothing was written that fits {write.pattern}"]
    problems = message(ended, full[0][0], write.named)
    if orphans := command.orphans():
        problems.append(f"{len(orphans)} processes outlived it")
    for balloon in project.folder.glob("balloon"):
        os.remove(balloon)
    found = compare.left(project.folder)
    problems += row.gone(before, found | compare.shards(project.folder))
    before = found
    again = project.run(*write.words, WANDB_MODE=write.mode)
    problems += [f"the same command: {again.code}, {again.lines}"] if again.code or again.lines else []
    found = compare.left(project.folder)
    problems += [f"other than undisturbed: {name}" for name in compare.differences(found, expected)[:3]]
    problems += row.gone(before, found) + row.work(Work(Told(project.told)))
    return problems + [f"left behind: {name}" for name in compare.stray(project.folder)[:3]]


def message(ended, path: str, named: tuple[str, ...] = ()) -> list[str]:
    """Problems of what a command said whose disk was full: one line, with the file and the reason.

    A tracker that ended for the same reason is a warning before it.
    """
    problems = [] if ended.code else [f"ended with {ended.code}"]
    lines = [line for line in ended.lines if not line.startswith("dotlib: W&B tracking ended (OSError")]
    if ended.traceback or len(lines) != 1:
        return [*problems, f"{len(ended.lines)} lines: {ended.lines[:4]} {ended.err[-200:] if ended.traceback else ''}"]
    line = lines[0]
    if not any(reason in line for reason in REASONS):
        problems.append(f"no reason in {line!r}")
    name, folder = Path(path).name.lstrip("."), Path(path).parent.name
    known = folder.removesuffix(".parts") if folder.endswith(".parts") else ".".join(name.split(".")[:-1]) or name
    if not any(one in line for one in named or (known,)):
        problems.append(f"no file in {line!r}; it was {path}")
    return problems
