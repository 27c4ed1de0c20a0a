"""Readers on damaged files: what each makes of them, by hand: `python benchmarks/fuzz.py --inputs 10000`.

Every input is one file of `spoilt.py`, opened by a public function as a user's would be. It passes where it is read, or
refused in one line by the reader's own error; whatever else happens is printed, with the seed that makes it again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import spoilt

from dotlib import checkpoint, records
from dotlib.data import checks, dataset, foreign, snirf, split, store

HANG = 60.0  # seconds of one input; the machine may be busy
READING = 5.0  # of them, those of the process that reads first, in place of its own minute
GROWTH = 1500.0  # MB: small files, so less than SMALL of the schema for each of their columns
BLOCK = 100  # inputs of a process


def columns(path: Path) -> None:
    """All that a dataset file holds."""
    with store.File(path) as file:
        file.digests()
        for name in file.names:
            file.raw(name)
        for name in store.ATTRIBUTES:
            file.attribute(name)


def parts(path: Path) -> None:
    """A dataset, split, with the columns of each part."""
    data = dataset.read(path, fractions=(2, 1, 1))
    for name in split.NAMES:
        data.measurements(name)


READERS = {  # of which files, by what, with which error
    "store.File": ("dataset", columns, store.StoreError),
    "dataset.read": ("dataset", parts, store.StoreError),
    "checks.report": ("dataset", checks.report, store.StoreError),
    "snirf.read": ("snirf", snirf.read, snirf.SnirfError),
    "checkpoint.load": ("checkpoint", lambda path: checkpoint.load(path, spoilt.CONFIG), checkpoint.CheckpointError),
    "checkpoint.alone": ("checkpoint", checkpoint.alone, checkpoint.CheckpointError),
    "records.load": ("record", records.load, records.ResultsError),
}


def outcome(reader: str, path: Path) -> tuple[str, str]:
    """`valid`, `error`, or `other` with what was raised."""
    _, read, refusal = READERS[reader]
    try:
        read(path)
    except refusal as error:
        line = str(error)
        return ("error", line) if "\n" not in line and line.startswith(str(path)) else ("other", repr(line))
    except Exception as error:  # the finding itself
        return "other", f"{type(error).__name__}: {error}"
    return "valid", ""


def one(number: int, seed: int, folder: Path, bases: dict) -> dict:
    """What becomes of one input."""
    reader = list(READERS)[number % len(READERS)]
    how, path = spoilt.make(READERS[reader][0], (seed, number), bases, folder)
    start = time.monotonic()
    kind, line = outcome(reader, path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    seconds = time.monotonic() - start
    return {"n": number, "reader": reader, "how": how, "kind": kind, "line": line, "seconds": seconds, "peak": peak}


def block(first: int, last: int, seed: int) -> None:
    """The process: a line of JSON when an input begins, and one when it has ended."""
    with tempfile.TemporaryDirectory() as folder:
        foreign.SECONDS = READING
        os.environ["XDG_STATE_HOME"] = folder  # what is known here is not to be known later
        bases = spoilt.bases(Path(folder))
        start = {"rest": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}
        for number in range(first, last):
            print(json.dumps({"begins": number} | start), flush=True)
            print(json.dumps(one(number, seed, Path(folder), bases)), flush=True)


def watched(first: int, last: int, seed: int, script: str = __file__) -> list[dict]:
    """The outcomes of a block; a process that dies or hangs is an outcome, after which the next goes on."""
    found = []
    while first < last:
        command = [sys.executable, script, "--block", str(first), str(last), "--seed", str(seed)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for text in process.stdout:
            row = json.loads(text)
            if "begins" in row:
                first, rest = row["begins"], row["rest"]
                clock = threading.Timer(HANG, process.kill)
                clock.start()
            else:
                clock.cancel()
                found.append(row | {"peak": row["peak"] - rest})
                first += 1
        if process.wait() or first < last:
            clock.cancel()
            reader = list(READERS)[first % len(READERS)]
            kind = "hang" if process.returncode == -9 else "crash"
            found.append({"n": first, "reader": reader, "how": "", "kind": kind, "line": str(process.returncode)})
            first += 1
    return found


def main() -> int:
    """Print the score of each reader; 1 where anything but errors and valid results came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--block", type=int, nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.block:
        block(*chosen.block, chosen.seed)
        return 0
    found = []
    with ThreadPoolExecutor(chosen.workers) as threads:
        starts = range(0, chosen.inputs, BLOCK)
        work = [threads.submit(watched, i, min(i + BLOCK, chosen.inputs), chosen.seed) for i in starts]
        for done in work:
            found += done.result()
            bad = [row for row in done.result() if row["kind"] not in ("error", "valid") or row["peak"] > GROWTH]
            for row in bad:
                print(json.dumps(row), flush=True)
            if len(found) % 1000 < BLOCK:
                print(f"{len(found)} inputs", flush=True)
    print(f"{'reader':<18}{'inputs':>8}{'errors':>8}{'valid':>8}{'other':>8}{'crashes':>8}{'hangs':>8}"
          f"{'longest, s':>12}{'growth, MB':>12}")  # fmt: skip
    for reader in READERS:
        rows = [row for row in found if row["reader"] == reader]
        counts = Counter(row["kind"] for row in rows)
        most = [max((row.get(name, 0) for row in rows), default=0) for name in ("seconds", "peak")]
        kinds = "".join(f"{counts[kind]:>8}" for kind in ("error", "valid", "other", "crash", "hang"))
        print(f"{reader:<18}{len(rows):>8}{kinds}{most[0]:>12.2f}{most[1]:>12.0f}")
    lines = [row["line"] for row in found if row["line"].endswith("made to do harm")]
    harms = Counter(line.rpartition(": ")[2].partition(";")[0] for line in lines)
    print(f"of the errors, those of the process that reads first: {harms.total()} {dict(harms)}")
    return any(row["kind"] not in ("error", "valid") or row["peak"] > GROWTH for row in found)


if __name__ == "__main__":
    sys.exit(main())
