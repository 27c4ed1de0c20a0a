"""SIGTERM, as Slurm sends it: half a minute to live, then SIGKILL."""

import os
import random
import signal
import time
from pathlib import Path

from . import compare
from .compare import Work
from .kills import SIMULATE, SWEEP, Moment, Undisturbed, fresh, moments
from .project import Command, Project, Told
from .score import Row

GRACE = 30.0
STUDY = ("study", "tiny", "--profile", "smoke")
LINE = "dotlib: ended as asked; the same command continues from the last checkpoints"
# command, whom the signal reaches, how often: a batch script's child alone, the whole group, and once more
KINDS = {
    "study": (STUDY, "driver", 1),
    "study, group": (STUDY, "group", 1),
    "study, twice": (STUDY, "group", 2),
    "simulate": (SIMULATE, "driver", 1),
    "simulate, group": (SIMULATE, "group", 1),
    "sweep, group": (SWEEP, "group", 1),
}


def run(name: str, number: int, seed: int, folder: Path, known: Undisturbed) -> Row:
    """Ask a command to end so many times, at moments as those of kills; each store until its command has ended."""
    words, whom, times = KINDS[name]
    rng, row = random.Random(f"{seed} {name}"), Row(f"SIGTERM: {name}", f"to the {whom}")
    expected, told, total = known.of(words)
    left, store, longest, early = moments(told, total, number, rng), 0, 0.0, 0
    while left:
        store += 1
        project, before = fresh(folder / str(store)), {}
        while left:
            asked, code, seconds, problems = _once(project, words, left[-1], (whom, times))
            if not asked:
                row.notes += problems
                break
            left.pop()
            longest, early = max(longest, seconds), early + (code != 0)
            found = compare.left(project.folder) | compare.shards(project.folder)
            problems += row.gone({k: v for k, v in before.items() if ".parts/" not in k or k in found}, found)
            before = found
            row.attempt(problems, f"store {store}")
        row.survived -= bool(problems := _end(project, words, expected, row))
        row.notes += problems
    row.done += f"; at most {longest:.1f} s to the end, {early} before Python had begun with it"
    return row


def _once(project: Project, words: tuple[str, ...], moment: Moment, how: tuple[str, int]) -> tuple:
    """Whether the command was there to be asked, its code, seconds to its end, problems."""
    command = project.start(*words)
    due = [0.0]

    def now() -> bool:
        if not due[0] and command.told.count() >= moment.told:
            due[0] = time.monotonic() + moment.seconds
        return bool(due[0]) and time.monotonic() >= due[0]

    command.wait_for(now)
    if command.process.poll() is not None:
        ended = command.end()
        return False, ended.code, 0.0, [f"ended with {ended.code}: {ended.lines}"] if ended.code else []
    kinds = {words[0] for _, _, words in command.told}
    whole = len({pid for _, pid, words in command.told}) > 1 or len(kinds) > 1  # else it may not have come to itself
    asked = time.monotonic()
    for i in range(how[1]):
        time.sleep(0.3 * bool(i))
        _send(command, how[0])
    ended = command.end(time.monotonic() - command.begun + GRACE)
    seconds, problems = time.monotonic() - asked, []
    if ended.code == 124:
        problems.append(f"not ended after {GRACE:.0f} s")
    elif ended.code == -signal.SIGTERM and not whole:
        pass
    elif ended.code or (ended.lines and ended.lines != [LINE]) or ended.traceback:
        problems.append(f"ended with {ended.code}: {ended.lines[:3]} {ended.err[-400:] if ended.traceback else ''}")
    if orphans := command.orphans():
        problems.append(f"{len(orphans)} processes outlived it")
    return True, ended.code, seconds, problems


def _send(command: Command, whom: str) -> None:
    command.family()
    try:
        if whom == "group":
            os.killpg(command.process.pid, signal.SIGTERM)  # a session, and so a group, of its own
        else:
            command.process.send_signal(signal.SIGTERM)
    except ProcessLookupError:
        pass


def _end(project: Project, words: tuple[str, ...], expected: dict[str, str], row: Row) -> list[str]:
    """The same command to its end: problems. A study repeats no epoch at all."""
    ended = project.run(*words)
    problems = [f"at its end: {ended.code}, {ended.lines}"] if ended.code or ended.lines else []
    different = compare.differences(compare.left(project.folder), expected)
    problems += [f"other than undisturbed: {name}" for name in different[:3]]
    work = Work(Told(project.told))
    problems += row.work(work)
    if work.epochs_again:
        problems.append(f"{work.epochs_again} epochs were trained again")
    return problems + [f"left behind: {name}" for name in compare.stray(project.folder)[:3]]
