"""Files that are damaged: every region of each once, by one byte, and files that are cut off."""

import contextlib
import io
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from dotlib import checkpoint, config, judgement, run_store, study
from dotlib.data import dataset, lifts, simulate, store

from . import compare
from .disk import ONE
from .project import Project
from .score import Row

REGIONS, CUTS = 64, 16
SMALL = config.Data(phantoms=20, grid=32, seed=3, measurements=config.Measurements(sources=4, detectors=12, pairs=24))
Check = Callable[[], str]  # "" where the damage was noticed, "harmless", or what was trusted


def harmed(path: Path, rng: random.Random, regions: int = REGIONS, cuts: int = CUTS) -> Iterator[str]:
    """The file damaged in one way after another, and whole again at the end: what was done to it."""
    whole = path.read_bytes()
    try:
        for i in range(regions):
            low, high = len(whole) * i // regions, max(len(whole) * i // regions + 1, len(whole) * (i + 1) // regions)
            at, bit = rng.randrange(low, min(high, len(whole))), 1 << rng.randrange(8)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            yield f"byte {at} of {len(whole)}, bit {bit}"
        for i in range(cuts):
            length = rng.randrange(
                len(whole) * i // cuts, max(len(whole) * i // cuts + 1, len(whole) * (i + 1) // cuts)
            )
            path.write_bytes(whole[:length])
            yield f"cut off after {length} of {len(whole)} bytes"
    finally:
        path.write_bytes(whole)


def judged(row: Row, name: str, path: Path, check: Check, rng: random.Random, **sizes) -> int:
    """Damage a file in every way; how many of them were harmless."""
    harmless = 0
    for what in harmed(path, rng, **sizes):
        found = check()
        harmless += found == "harmless"
        row.attempt([] if found in ("", "harmless") else [found], f"{name}, {what}")
    return harmless


def noticed(read: Callable[[], object], errors: tuple[type[Exception], ...], whole: str) -> str:
    """What `read` makes of a damaged file: refused by one line, the same values, or others."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            found = compare.digest(read())
    except errors as error:
        return "" if "\n" not in str(error) else f"{len(str(error).splitlines())} lines"
    return "harmless" if found == whole else "other values were trusted"


def of_data(folder: Path, rng: random.Random, **sizes) -> Row:
    """A shard, a dataset file and a lift file."""
    row, folder = Row("damage: data", "a byte in each region, and cuts"), folder.resolve()
    folder.mkdir(parents=True)
    path = folder / "small.h5"
    work = simulate.Recordings(SMALL)
    parts = folder / "parts"
    parts.mkdir()
    shard = simulate._shards(work, parts, "cpu")[0]
    shard.make()
    shutil.copytree(parts, folder / "small.h5.parts")
    simulate.simulate(SMALL, path, workers=1)

    def columns(of: Path) -> dict[str, np.ndarray]:
        with store.File(of) as file:
            return {name: file.raw(name) for name in file.names}

    whole_shard = compare.digest(columns(shard.path))

    def of_shard() -> str:
        try:
            if not shard.finished():
                return ""
        except simulate.SimulationError as error:
            return "" if "remove it" in str(error) else str(error)
        return "harmless" if compare.digest(columns(shard.path)) == whole_shard else "other values were trusted"

    def of_file():
        found = dataset.read(path, 32, (4, 1, 1), SMALL.seed, store.identity(SMALL))
        return [found.ellipsoids, found.labels, found.content, *found.measurements("test").values()]

    counts = {"shard": judged(row, "shard", shard.path, of_shard, rng, **sizes)}
    whole = compare.digest(of_file())
    check = lambda: noticed(of_file, (store.StoreError,), whole)  # noqa: E731
    counts["dataset"] = judged(row, "dataset", path, check, rng, **sizes)
    small = config.Lift(kind="closed-form", count=12, draws=1)
    data = dataset.read(path, 32, (4, 1, 1), SMALL.seed)
    lifted = lifts.Lifts(SMALL, small, path, data.labels)
    made = folder / "small.lift.h5"
    simulate.fill(lifted, made, workers=1)

    def of_lift():
        with store.File(made) as file:
            file.require(lifted.identity())
        return lifts.column(made, "lift", data.labels >= 0)

    whole_lift = compare.digest(of_lift())
    check = lambda: noticed(of_lift, (store.StoreError,), whole_lift)  # noqa: E731
    counts["lift"] = judged(row, "lift", made, check, rng, **sizes)
    row.done += f"; harmless: {', '.join(f'{n} of {name}' for name, n in counts.items())}"
    return row


def of_runs(folder: Path, template: Path, rng: random.Random, **sizes) -> Row:
    """What a finished run has left, as those see it who read it; `runs ls --verify` finds each damaged checkpoint."""
    row = Row("damage: runs", "a byte in each region, and cuts")
    shutil.copytree(template / "runs", folder / "runs")
    (place, run), *_ = list(run_store.runs(folder / "runs"))

    def listed() -> str:
        return run_store.table(folder / "runs", verify=True)["state"].iloc[0]

    def of_checkpoint(path: Path) -> Check:
        def check() -> str:
            found = noticed(lambda: checkpoint.load(path, run.config.digest()), (checkpoint.CheckpointError,), "")
            return found or ("" if listed() == "damaged" else f"runs ls --verify says {listed()}")

        return check

    for name in ("last.pt", "best.pt"):
        judged(row, name, place / name, of_checkpoint(place / name), rng, **sizes)

    def of_history() -> str:
        return f"done: {run.done()}, {listed()}" if run.done() or listed() != "damaged" else ""

    judged(row, "history.pt", place / "history.pt", of_history, rng, **sizes)

    def of_config() -> str:
        (_, found), *_ = list(run_store.runs(folder / "runs"))
        return "" if found is None else "harmless" if found == run else "another run was trusted"

    judged(row, "config.json", place / "config.json", of_config, rng, **sizes)

    def of_progress() -> str:
        states = study.status({("a", 0): run})["state"].tolist()
        return "" if states == ["done"] else f"status says {states}"

    judged(row, "progress.json", place / "progress.json", of_progress, rng, **sizes)
    table = pd.DataFrame({"metric": ["nrmse", "ssim"], "channel": "mua", "value": [0.25, 0.5], "n": 4})
    judgement._write(kept := folder / "judged.csv", table)
    whole = judgement._read(kept)

    def of_judged() -> str:
        if judgement._whole(kept) is None:
            return ""
        return "harmless" if judgement._read(kept).equals(whole) else "other values were trusted"

    judged(row, "judged cache", kept, of_judged, rng, **sizes)
    return row


# by file: the line that it should lead to
REDONE = {
    "history.pt": "",
    "last.pt, cut off": "set aside as last.damaged, and the run starts anew",
    "best.pt, cut off": "",
    "config.json": "",
}
HALF = {"last.pt": "set aside as last.damaged, and the run starts anew", "best.pt": ""}


def redone(folder: Path, done: Path, half: Path, rng: random.Random) -> Row:
    """The same command computes anew what is damaged, and nothing else: a finished run's, and a begun one's."""
    row = Row("damage: redone", "then the same command")
    expected = compare.left(done)
    cases = [(done, "finished", *case) for case in REDONE.items()] + [(half, "begun", *case) for case in HALF.items()]
    for i, (template, what, name, line) in enumerate(cases):
        shutil.copytree(template, folder / str(i))
        project = Project(folder / str(i))
        (place,) = (folder / str(i) / "runs").glob("*-*")
        path = place / name.split(",")[0]
        raw = bytearray(path.read_bytes())
        raw[rng.randrange(len(raw))] ^= 1
        path.write_bytes(raw[: len(raw) // 2] if "cut off" in name else raw)
        command = project.start(*ONE)
        ended, problems = command.end(), []
        if ended.code or len(ended.lines) != bool(line) or (line and line not in ended.lines[0]):
            problems.append(f"ended with {ended.code}: {ended.lines}")
        different = compare.differences(compare.left(project.folder), expected)
        problems += [f"other than undisturbed: {name}" for name in different[:3]]
        if not line and (epochs := [w for w in command.told.words("epoch") if what == "finished"]):
            problems.append(f"{len(epochs)} epochs were trained again")
        row.attempt(problems, f"{name} of a {what} run")
    return row


def rows(folder: Path, done: Path, half: Path, seed: int, **sizes) -> Iterable[Row]:
    yield of_data(folder / "data", random.Random(f"{seed} data"), **sizes)
    yield of_runs(folder / "of-runs", done, random.Random(f"{seed} runs"), **sizes)
    yield redone(folder / "redone", done, half, random.Random(f"{seed} redone"))
