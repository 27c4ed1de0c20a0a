"""Folders that may only be read: a finished study can be used from them, and what cannot be written is one line."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import compare
from .disk import ONE
from .kills import PAGE
from .project import Project
from .score import Row

REASONS = ("Read-only file system", "Permission denied")
TINY = ("tiny-one", "--profile", "smoke")


@dataclass(frozen=True)
class Use:
    """A command, the folders that may only be read meanwhile, and whether it can do without writing to them."""

    words: tuple[str, ...]
    closed: tuple[str, ...]
    works: bool = True
    says: str = ""  # on standard output, where it works


STORES = ("runs", "data")
USES = {
    "status": Use(("status", *TINY), STORES, says="done"),
    "runs ls": Use(("runs", "ls", "--verify"), STORES, says="done"),
    "study, finished": Use(ONE, STORES, says="done"),
    "study --on nowhere --record": Use((*ONE, "--on", "nowhere", "--record"), STORES, says="recorded in"),
    "workbook, runs finished": Use(PAGE, STORES, says="open "),
    "study": Use((*ONE, "--seeds", "2"), ("runs",), works=False),
    "simulate": Use(("simulate", "--profile", "smoke", "--out", "data/x.h5"), ("data",), works=False),
    "workbook": Use(PAGE, ("build",), works=False),
    "study --record": Use((*ONE, "--record"), ("results",), works=False),
}


@contextmanager
def read_only(folders: list[Path]) -> Iterator[bool]:
    """Folders that may only be read: by a mount, else by their permissions; False where neither holds."""
    mounted, kept = [], []
    try:
        for folder in folders:
            folder.mkdir(exist_ok=True)
            bind = ["mount", "--bind", str(folder), str(folder)]
            if os.geteuid() == 0 and subprocess.run(bind, capture_output=True).returncode == 0:
                mounted.append(folder)
                subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True, capture_output=True)
            else:
                for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
                    kept.append((path, path.stat().st_mode))
                    path.chmod(0o555)
        yield not any(os.access(folder, os.W_OK) for folder in folders)
    finally:
        for folder in mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        for path, mode in kept:
            path.chmod(mode)


def run(folder: Path, template: Path, names: tuple[str, ...] = tuple(USES)) -> Row:
    """Each use in a copy of a project whose study is finished and whose page is made."""
    row = Row("read-only folders", "store, data, build, results")
    shutil.copytree(template, folder / "project")
    project = Project(folder / "project")
    for name in names:
        use, before = USES[name], compare.left(project.folder)
        with read_only([project.folder / closed for closed in use.closed]) as held:
            if not held:
                row.skipped = "nothing makes a folder read-only for this user"
                return row
            command = project.start(*use.words)
            row.attempt([*_problems(use, command.end()), *(["outlived"] if command.orphans() else [])], name)
        different = [n for n, digest in before.items() if compare.left(project.folder).get(n) != digest]
        if different:
            row.attempt([f"changed: {different[0]}"], name)
    return row


def _problems(use: Use, ended) -> list[str]:
    if ended.traceback:
        return [f"a traceback: {ended.err[-300:]}"]
    if use.works:
        good = ended.code == 0 and not ended.lines and use.says in ended.out
    else:
        good = ended.code != 0 and len(ended.lines) == 1 and any(reason in ended.lines[0] for reason in REASONS)
        good = good and any(f"{closed}" in ended.lines[0] for closed in use.closed)
    return [] if good else [f"ended with {ended.code}: {ended.lines[:4]} {ended.out[-200:]}"]
