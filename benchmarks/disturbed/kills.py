"""Commands killed at random moments, again and again, until they come to an end."""

import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from . import compare
from .compare import Work
from .project import Project, Told
from .score import Row

FIT = """
from pathlib import Path
import torch
from dotlib import study
torch.set_num_threads(1)
(run,) = study.members("tiny-one", "smoke", 1, Path("runs")).values()
run.result()
"""
PAGE = ("workbook", "--profile", "smoke", "-p", "seeds", "1")


@dataclass(frozen=True)
class Kind:
    """A command and which of its processes is killed."""

    words: tuple[str, ...]
    victim: str = "driver"
    share: float = 1.0  # of the kills that are asked for: some commands take long


SIMULATE = ("simulate", "--profile", "smoke", "--out", "x.h5")
SWEEP = ("sweep", "tiny", "--profile", "smoke", "--trials", "4")
# a line a command: whatever leaves its work in the project's folder can be killed
KINDS = {
    "simulate": Kind(SIMULATE),
    "simulate, a worker": Kind(SIMULATE, "worker", 0.5),
    "fit": Kind(("-c", FIT)),
    "study": Kind(("study", "tiny", "--profile", "smoke")),
    "study, a worker": Kind(("study", "tiny", "--profile", "smoke"), "worker", 0.5),
    "workbook": Kind(PAGE),
    "sweep": Kind(SWEEP),
    "sweep, a worker": Kind(SWEEP, "worker", 0.5),
}


@dataclass(frozen=True)
class Moment:
    """After the command has told of so many things, and so many seconds."""

    told: int
    seconds: float


def moments(times: list[float], total: float, number: int, rng: random.Random) -> list[Moment]:
    """Half of them spread over the seconds of an undisturbed command, half over what it told: short work counts too."""
    found = []
    for i in range(number):
        if i % 2:
            at = rng.randrange(len(times))
            found.append(Moment(at, rng.uniform(0, 0.05)))
        else:
            t = (i + rng.random()) / number * total
            at = sum(1 for time in times if time <= t)
            found.append(Moment(at, t - (times[at - 1] if at else 0.0)))
    rng.shuffle(found)
    return found


class Undisturbed(dict):
    """What commands leave that nothing disturbs, each run when first asked for: by words, folder it starts from, mode
    of W&B. The digests of what is left, when it told of what, its seconds."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def __missing__(self, asked: tuple) -> tuple[dict[str, str], list[float], float]:
        words, template, mode = asked
        project = fresh(self.folder / str(len(self)), template)
        command = project.start(*words, WANDB_MODE=mode)
        told, ended = Told(project.told), command.end()
        if ended.code or ended.lines or ended.traceback:
            raise RuntimeError(f"{' '.join(words)}: without any fault it ended with {ended.code}: {ended.err[-500:]}")
        times = [moment for moment, _, _ in told]
        self[asked] = compare.left(project.folder), [t - times[0] for t in times], ended.seconds
        return self[asked]

    def of(self, words: tuple[str, ...], template: Path | None = None, mode: str = "disabled"):
        return self[words, template, mode]


def fresh(folder: Path, template: Path | None = None) -> Project:
    """A project, new or like another."""
    if template:
        shutil.copytree(template, folder, dirs_exist_ok=True)
    return Project(folder)


def run(name: str, number: int, seed: int, folder: Path, known: Undisturbed, template: Path | None = None) -> Row:
    """Kill one command so many times; each store is used until its command has come to an end."""
    kind, rng = KINDS[name], random.Random(f"{seed} {name}")
    number = max(1, round(number * kind.share))
    row = Row(name, f"kill -9 of the {kind.victim}")
    expected, times, total = known.of(kind.words, template)
    left = moments(times, total, number, rng)
    store = 0
    while left:
        store += 1
        project, before = fresh(folder / str(store), template), {}
        killed = 0
        while left:
            problems, killed_now = _once(project, kind, left[-1], rng, row, before)
            if killed_now:
                left.pop()
                killed += 1
                row.attempt(problems, f"store {store}, kill {killed}")
            if not killed_now or (kind.victim == "worker" and not problems and _complete(project, expected)):
                break
        _finish(project, kind, expected, row, before, f"store {store}")
    return row


def _complete(project: Project, expected: dict[str, str]) -> bool:
    return not compare.differences(compare.left(project.folder), expected)


def _once(project: Project, kind: Kind, moment: Moment, rng: random.Random, row: Row, before: dict) -> tuple:
    """Start the command and kill it, if it has not ended before: problems, and whether it was killed."""
    command = project.start(*kind.words)
    due = {"at": None}

    def now() -> bool:
        if due["at"] is None and command.told.count() >= moment.told:
            due["at"] = time.monotonic() + moment.seconds
        return due["at"] is not None and time.monotonic() >= due["at"]

    reached, problems = command.wait_for(now), []
    if kind.victim == "worker":
        reached = reached and command.wait_for(command.workers)
        if workers := command.workers():
            rng.choice(workers).kill()
        else:
            reached = False
    elif reached := reached and command.process.poll() is None:
        command.kill()
    ended = command.end()
    if orphans := command.orphans():
        problems.append(
            f"{len(orphans)} processes outlived it: {[' '.join(p.cmdline()[-4:]) for p in orphans if p.is_running()]}"
        )
    if ended.traceback:
        problems.append(f"a traceback: {ended.err[-300:]}")
    if kind.victim == "driver":
        reached = reached and ended.code == -9
        if ended.lines:
            problems.append(f"said {ended.lines}")
    elif reached and (len(ended.lines) > 1 or (ended.code and not ended.lines)):
        problems.append(f"ended with {ended.code}, and said {ended.lines}")
    if not reached and ended.code:
        problems.append(f"ended with {ended.code}: {ended.lines}")
    found = compare.left(project.folder)
    both = found | compare.shards(project.folder)
    problems += row.gone({k: v for k, v in before.items() if ".parts/" not in k or not _merged(k, found)}, both)
    before.clear()
    before.update(both)
    return problems, reached


def _merged(shard: str, found: dict[str, str]) -> bool:
    return shard.partition(".parts/")[0] in found


def _finish(project: Project, kind: Kind, expected: dict[str, str], row: Row, before: dict, what: str) -> None:
    """Let the command come to its end and compare."""
    ended = project.run(*kind.words)
    problems = [f"ended with {ended.code}: {ended.lines}"] if ended.code or ended.lines or ended.traceback else []
    found = compare.left(project.folder)
    problems += [f"other than undisturbed: {name}" for name in compare.differences(found, expected)[:3]]
    problems += row.gone({k: v for k, v in before.items() if ".parts/" not in k}, found)
    problems += [f"left behind: {name}" for name in compare.stray(project.folder)[:3]]
    problems += row.work(Work(Told(project.told)))
    if problems:  # an attempt of the store counts as its kills
        row.survived = max(0, row.survived - 1)
        row.notes += [f"{what}, at its end: {problem}" for problem in problems]
    shutil.rmtree(project.folder)
