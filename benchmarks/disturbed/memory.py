"""Workers that are killed for their memory, or find none."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import compare
from .compare import Work
from .disk import ONE
from .kills import Undisturbed, fresh
from .project import Command, Told
from .requests import STUDY
from .score import Row

DIED = re.compile(r"^dotlib: a worker died \(memory\?\); \d runs go on with 1 at a time$")
LIMITED = re.compile(r"memory|allocate|failed to map segment|error return without exception set", re.IGNORECASE)
ROOM = 4 << 30  # bytes for a command and its workers, of which one takes all


@dataclass
class Group:
    """A control group whose memory is limited; the kernel kills in it what takes most."""

    folder: Path

    def killed(self) -> int:
        """How many processes the kernel killed."""
        for name in ("memory.events", "memory.oom_control"):
            if (path := self.folder / name).exists():
                return int(re.search(r"^oom_kill (\d+)", path.read_text(), re.MULTILINE)[1])
        return 0


@contextlib.contextmanager
def group_of(room: int) -> Iterator[Group | None]:
    """A group of so many bytes; None where none may be made."""
    group = next(filter(None, (_made(parent, room) for parent in _own())), None)
    try:
        yield group
    finally:
        if group:
            with contextlib.suppress(OSError):  # somebody is still in it
                group.folder.rmdir()


def _own() -> Iterator[Path]:
    """The groups that this process is in: version 1's for memory, version 2's."""
    mounts = [row.split()[1:4] for row in Path("/proc/self/mounts").read_text().splitlines()]
    for row in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = row.split(":", 2)
        for mount, kind, options in mounts:
            old = kind == "cgroup" and controllers == "memory" and "memory" in options.split(",")
            if old or (kind == "cgroup2" and not controllers):
                yield Path(mount) / path.lstrip("/")


def _made(parent: Path, room: int) -> Group | None:
    folder = parent / f"faults-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        return None
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            (folder / name).write_text(str(room))
            with contextlib.suppress(OSError):
                (folder / "memory.swap.max").write_text("0")
            return Group(folder)
        except OSError:
            continue
    folder.rmdir()
    return None


def run(folder: Path, known: Undisturbed) -> list[Row]:
    """Killed beside another; whenever it trains one run, alone too; refused memory; killed by the kernel for it."""
    expected, _, _ = known.of(STUDY)
    return [
        _beside(folder / "beside", expected),
        _alone(folder / "alone", expected),
        _limited(folder / "limited", known),
        _by_kernel(folder / "kernel", expected),
    ]


def _end(project, words, expected, row, problems: list[str], what: str = "") -> None:
    again = project.run(*words)
    problems += [f"the same command: {again.code}, {again.lines}"] if again.code or again.lines else []
    different = compare.differences(compare.left(project.folder), expected)
    problems += [f"other than undisturbed: {name}" for name in different[:3]]
    row.attempt([*problems, *row.work(Work(Told(project.told)))], what)


def _beside(folder: Path, expected: dict[str, str]) -> Row:
    """One kill: the study goes on by itself, to its end."""
    row = Row("memory: one worker of two", "SIGKILL while both train")
    project = fresh(folder)
    command = project.start(*STUDY)
    command.wait_for(lambda: len({pid for _, pid, words in command.told if words[0] == "kept"}) == 2)
    _kill_worker(command)
    ended = command.end()
    problems = [] if not ended.code and len(ended.lines) == 1 else [f"ended with {ended.code}: {ended.lines}"]
    problems += [f"said {line!r}" for line in ended.lines if not DIED.match(line)]
    problems += ["processes outlived it"] if command.orphans() else []
    _end(project, STUDY, expected, row, problems)
    return row


def _alone(folder: Path, expected: dict[str, str]) -> Row:
    """One run is the death of its worker, each time: the others are computed, and it is named."""
    row = Row("memory: a run that no worker survives", "SIGKILL whenever it trains")
    project = fresh(folder)
    command, killed = project.start(*STUDY), set()
    mark = "stage1-adamw-0"

    def next_victim() -> bool:
        found = {pid for _, pid, words in command.told if words[0] == "epoch" and mark in words[1]} - killed
        for process in command.family():
            if process.pid in found:
                process.kill()
        killed.update(found)
        return False

    command.wait_for(next_victim)
    ended = command.end()
    lines = [line for line in ended.lines if not DIED.match(line)]
    good = ended.code == 1 and len(lines) == 1 and "tiny-stage1-onecycle, seed 0: a worker died" in lines[0]
    problems = [] if good else [f"ended with {ended.code}: {ended.lines}"]
    done = {name.split("/")[0] for name in compare.left(project.folder)}
    if len(done) != 3 or any(mark in name for name in done):
        problems.append(f"{len(done)} runs are done, 3 expected")
    if len(killed) < 2:
        problems.append(f"killed {len(killed)} times only")
    _end(project, STUDY, expected, row, problems)
    return row


def _limited(folder: Path, known: Undisturbed) -> Row:
    """The system grants a worker no more memory once it trains: an error of its own, not a death."""
    row = Row("memory: a limit on a worker", "RLIMIT_AS")
    expected, _, _ = known.of(ONE)
    for megabytes in (1, 4, 16):
        project = fresh(folder / str(megabytes))
        command = project.start(*ONE, DISTURBED_MEMORY=str(megabytes))
        ended, problems = command.end(), []
        if ended.code and (ended.traceback or len(ended.lines) != 1 or not LIMITED.search(ended.lines[0])):
            problems.append(f"ended with {ended.code}: {ended.lines} {ended.err[-300:] * ended.traceback}")
        problems += ["processes outlived it"] if command.orphans() else []
        _end(project, ONE, expected, row, problems, f"{megabytes} MB more, ended with {ended.code}")
    return row


def _by_kernel(folder: Path, expected: dict[str, str]) -> Row:
    """One worker takes all that there is, once: the kernel kills it, the study goes on by itself, to its end."""
    row = Row("memory: killed by the kernel", f"a limit of {ROOM >> 30} GiB on the command's control group")
    with group_of(ROOM) as group:
        if group is None:
            row.skipped = "no control group may be made"
            return row
        project = fresh(folder)
        (token := project.folder / "token").touch()
        command = project.start(*STUDY, DISTURBED_GROUP=str(group.folder), DISTURBED_GREEDY=str(token))
        ended, problems = command.end(), []
        if ended.code or len(ended.lines) != 1 or not DIED.match(ended.lines[0]):
            problems.append(f"ended with {ended.code}: {ended.lines}")
        if (killed := group.killed()) != 1:
            problems.append(f"the kernel killed {killed} processes, 1 expected")
        problems += ["processes outlived it"] if command.orphans() else []
    _end(project, STUDY, expected, row, problems)
    return row


def _kill_worker(command: Command) -> None:
    """One that trains."""
    training = {pid for _, pid, words in command.told if words[0] == "epoch"}
    next(process for process in command.workers() if process.pid in training).kill()
