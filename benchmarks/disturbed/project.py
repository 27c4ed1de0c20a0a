"""A project in a folder of its own, the commands that run in it, and what they tell of their work."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import IO

import psutil

ROOT = Path(__file__).resolve().parents[2]
HOOK = Path(__file__).with_name("hook")
LIMIT = 400.0  # seconds that a command may take
BAR = re.compile(r"^(runs|trials|phantoms|judged|jobs|Executing)\b[^|]*\|[^|]*\|[^\[]*\[[^\]]*\]")
# what Python says of semaphores whose owner was killed, what IPython says of its kernel, and where notebooks go to
OTHERS = ("resource_tracker:", "warnings.warn(", "[IPKernelApp] WARNING", "to python, or use IPC", " -> ")


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """What it said on standard error, but for progress and the estimate before it."""
        rows = [BAR.sub("", row.split("\r")[-1].strip()) for row in re.split(r"\n", self.err)]
        kept = [row for row in rows if row and not any(word in row for word in OTHERS)]
        return [row for row in kept if not re.search(r"phantoms to .+, about ", row)]

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.err


@dataclass
class Told:
    """Lines of `hook/sitecustomize.py`: time, process, words."""

    path: Path
    since: int = 0

    def __iter__(self) -> Iterator[tuple[float, int, tuple[str, ...]]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.since)
            for row in file.read().decode().splitlines():
                moment, pid, *words = row.split("\t")
                yield float(moment), int(pid), tuple(words)

    def count(self) -> int:
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            file.seek(self.since)
            return file.read().count(b"\n")

    def words(self, kind: str) -> list[tuple[str, ...]]:
        return [words[1:] for _, _, words in self if words[0] == kind]


class Command:
    """A command that runs; what it told since its start is in `told`."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str], told: Path):
        self.told = Told(told, told.stat().st_size if told.exists() else 0)
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            arguments, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._said: list[list[bytes]] = [[], []]
        pipes = (self.process.stdout, self.process.stderr)
        self._readers = [Thread(target=_read, args=pair, daemon=True) for pair in zip(pipes, self._said, strict=True)]
        for reader in self._readers:
            reader.start()
        self._seen: dict[int, psutil.Process] = {}
        self._looked = 0.0

    def family(self, fresh: bool = True) -> list[psutil.Process]:
        """All processes that it has started, as far as they were seen, and itself; not `fresh`: of a moment ago."""
        if not fresh and time.monotonic() - self._looked < 0.7:
            return list(self._seen.values())
        self._looked = time.monotonic()
        try:
            own = psutil.Process(self.process.pid)
            self._seen |= {process.pid: process for process in (own, *own.children(recursive=True))}
        except psutil.NoSuchProcess:
            pass
        return list(self._seen.values())

    def workers(self) -> list[psutil.Process]:
        """The spawned ones among its children."""
        found = []
        for process in self.family():
            try:
                if "spawn_main" in " ".join(process.cmdline()) and process.pid != self.process.pid and alive(process):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def wait_for(self, what: Callable[[], object], seconds: float = LIMIT) -> bool:
        """Until it is so, or the command has ended: whether it was so."""
        until = time.monotonic() + seconds
        while not what():
            if self.process.poll() is not None or time.monotonic() > until:
                return bool(what())
            self.family(fresh=False)
            time.sleep(0.02)
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        """To the command's own process alone."""
        self.family()
        if self.process.poll() is None:
            self.process.send_signal(number)

    def end(self, limit: float = LIMIT) -> Ended:
        """Wait for its end; a command that takes longer than `limit` is killed, with code 124."""
        late = False
        try:
            while True:
                self.family(fresh=False)
                try:
                    self.process.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    if late := time.monotonic() - self.begun > limit:
                        break
            seconds = time.monotonic() - self.begun
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        for reader in self._readers:
            reader.join(2.0)  # what outlives the command may hold its pipes
        out, err = (b"".join(said).decode(errors="replace") for said in self._said)
        return Ended(124 if late else self.process.returncode, out, err, seconds)

    def orphans(self, seconds: float = 40.0) -> list[psutil.Process]:
        """What outlives the command by so many seconds, which is then killed; a worker may be at its imports."""
        until = time.monotonic() + seconds
        while (left := [process for process in self._seen.values() if alive(process)]) and time.monotonic() < until:
            time.sleep(0.02)
        for process in left:
            process.kill()
        return left


def _read(pipe: IO[bytes], into: list[bytes]) -> None:
    while chunk := os.read(pipe.fileno(), 1 << 16):
        into.append(chunk)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class Project:
    """Notebooks and pyproject.toml in a folder, with which `dotlib` finds its root; `more`: of its environment."""

    folder: Path
    more: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.folder = self.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "notebooks").mkdir(exist_ok=True)
        for path in (ROOT / "notebooks").glob("4.2*.ipynb"):
            shutil.copy(path, self.folder / "notebooks")
        shutil.copy(ROOT / "pyproject.toml", self.folder)

    @property
    def told(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.told"

    def environment(self) -> dict[str, str]:
        base = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "DISTURBED_"))}
        own = {"PYTHONPATH": f"{HOOK}{os.pathsep}{ROOT}", "DISTURBED_FOLDER": str(self.folder)}
        own |= {"DISTURBED_TOLD": str(self.told), "WANDB_MODE": "disabled", "PYTHONDONTWRITEBYTECODE": ""}
        return base | own | self.more

    def start(self, *arguments: str, **more: str) -> Command:
        """`dotlib` with these arguments, or Python with "-c" and a text; `more`: of its environment."""
        words = [sys.executable, *(arguments if arguments[0] == "-c" else ("-m", "dotlib", *arguments))]
        return Command(words, self.folder, self.environment() | more, self.told)

    def run(self, *arguments: str, limit: float = LIMIT, **more: str) -> Ended:
        return self.start(*arguments, **more).end(limit)
