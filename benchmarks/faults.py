"""Faults, done to the commands: killed, out of disk, two at once, damaged; what was lost, and what was done twice.

    python benchmarks/faults.py [--kills N] [--only NAME ...] [--seed S] [--json FILE]

Every fault is done to the real commands, in a project of its own, and what they end with is compared with what an
undisturbed command left in the same call. A fault is survived where the bytes, or all but the clock's numbers of the
runs, are the same, nothing finished is lost or done a second time, the message is one line, and the same command
continues. The exit code is 1 unless every fault was survived. The runs are tiny and slowed down (`disturbed/hook/`).
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from disturbed import damage, disk, kills, memory, network, pairs, places, requests, score
from disturbed.project import ROOT, Project
from disturbed.score import Row

from dotlib import provenance

WORKS = ("kills", "requests", "disk", "places", "pairs", "memory", "damage", "network")


class Templates:
    """Projects that others start from, each made when first asked for: by `name`, its folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __getitem__(self, name: str) -> Path:
        path = self.folder / "templates" / name
        if not path.exists():
            getattr(self, f"_{name}")(path)
            shutil.rmtree(path / "notebooks", ignore_errors=True)
        return path

    def get(self, name: str) -> Path | None:
        return self[name] if name else None

    def _data(self, path: Path) -> None:
        """The readings of the smoke profile."""
        _well(Project(path), "-c", "from dotlib import arms; from dotlib.data import dataset as d; "
                                   "d.prepare(arms.arm('stage1-adam', 'smoke').data)")  # fmt: skip

    def _done(self, path: Path) -> None:
        """A study of one run, finished."""
        _well(Project(path), *disk.ONE)

    def _half(self, path: Path) -> None:
        """The same, killed in the middle."""
        project = Project(path)
        command = project.start(*disk.ONE)
        command.wait_for(lambda: len(command.told.words("kept")) >= 5)
        command.kill()
        command.end()
        command.orphans()

    def _book(self, path: Path) -> None:
        """Readings, and the runs of a page."""
        shutil.copytree(self["data"], path)
        _well(Project(path), *kills.PAGE)
        shutil.rmtree(path / "build")

    def _finished(self, path: Path) -> None:
        """All of it: a page, its runs, and the study of one."""
        shutil.copytree(self["book"], path)
        shutil.copytree(self["done"] / "runs", path / "runs", dirs_exist_ok=True)


def _well(project: Project, *words: str) -> None:
    ended = project.run(*words)
    if ended.code:
        raise RuntimeError(f"{words}: {ended.err[-500:]}")


def faults(number: int, seed: int, folder: Path) -> dict[str, Callable[[], Iterable[Row]]]:
    """What can be done, by name: each gives one row or more."""
    made, known = Templates(folder), kills.Undisturbed(folder / "undisturbed")

    def place(name: str) -> Path:
        return folder / name.replace(" ", "-").replace(",", "").replace("&", "")

    def killed(name: str) -> Iterable[Row]:
        return [
            kills.run(name, number, seed, place(f"kill {name}"), known, made["data"] if name == "workbook" else None)
        ]

    few = max(1, number // 2)
    found: dict[str, Callable[[], Iterable[Row]]] = {f"kills: {n}": (lambda n=n: killed(n)) for n in kills.KINDS}
    found |= {
        f"requests: {n}": (lambda n=n: [requests.run(n, few, seed, place(f"term {n}"), known)]) for n in requests.KINDS
    }
    found |= {
        f"disk: {n}": (lambda n=n: [disk.run(n, place(f"disk {n}"), known, made.get(disk.WRITES[n].template))])
        for n in disk.WRITES
    }
    found["places"] = lambda: [places.run(place("places"), made["finished"])]
    found |= {
        f"pairs: {n}": (lambda n=n: [pairs.run(n, max(1, number // 6), seed, place(f"pair {n}"), known)])
        for n in pairs.KINDS
    }
    found["memory"] = lambda: memory.run(place("memory"), known)
    found["damage"] = lambda: damage.rows(place("damage"), made["done"], made["half"], seed)
    found["network"] = lambda: [network.run(place("network"), known)]
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="kills of each command; 20 by default")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(WORKS)}, or one of them")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows are appended, one JSON object a line")
    arguments = parser.parse_args(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        every = faults(arguments.kills, arguments.seed, Path(folder))
        chosen = [n for n in every if not arguments.only or n in arguments.only or n.split(":")[0] in arguments.only]
        if not chosen:
            parser.error(f"--only: {', '.join(every)} are accepted")
        for name in chosen:
            for row in every[name]():
                rows.append(row)
                print(score.table([row]).split("\n", 1)[1], flush=True)
                if arguments.json:
                    made = {"kills": arguments.kills, "seed": arguments.seed} | provenance.commit(ROOT)
                    with arguments.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row.record() | made, ensure_ascii=False) + "\n")
    print(f"\n{score.table(rows)}")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
