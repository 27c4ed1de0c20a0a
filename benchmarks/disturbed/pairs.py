"""Two drivers at once on one study, or one dataset file."""

import random
import time
from pathlib import Path

from . import compare
from .compare import Work
from .kills import SIMULATE, Undisturbed, fresh
from .project import Told
from .requests import STUDY
from .score import Row

KINDS = {"study": STUDY, "simulate": SIMULATE}
BUSY = ("another process is training this run", "waiting for another process that simulates it")


def run(name: str, number: int, seed: int, folder: Path, known: Undisturbed) -> Row:
    """The second starts up to half an undisturbed command's time after the first."""
    rng, words = random.Random(f"{seed} {name}"), KINDS[name]
    row = Row(f"two drivers: {name}", "the second a little after the first")
    expected, _, total = known.of(words)
    for i in range(number):
        project = fresh(folder / str(i))
        first = project.start(*words)
        time.sleep(0.0 if i == 0 else rng.uniform(0, total / 2))
        second = project.start(*words)
        ended, problems = [first.end(), second.end()], []
        for which, one in zip(("first", "second"), ended, strict=True):
            if one.traceback or any(not any(words in line for words in BUSY) for line in one.lines):
                problems.append(f"the {which} ended with {one.code}: {one.lines} {one.err[-300:] * one.traceback}")
            if bool(one.code) and (name == "simulate" or not one.lines):
                problems.append(f"the {which} ended with {one.code}")
        if all(one.code for one in ended):
            problems.append("both ended with an error")
        problems += [f"orphans of {c.process.pid}" for c in (first, second) if c.orphans()]
        different = compare.differences(compare.left(project.folder), expected)
        problems += [f"other than undisturbed: {name}" for name in different[:3]]
        work = Work(Told(project.told))
        problems += row.work(work)
        if work.epochs_again or work.phantoms_again:
            problems.append(f"done twice: {work.epochs_again} epochs, {work.phantoms_again} phantoms")
        again = project.run(*words)
        problems += [f"the same command: {again.code}, {again.lines}"] if again.code or again.lines else []
        row.attempt(problems, f"pair {i}")
    return row
