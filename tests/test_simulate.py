"""The simulation of a dataset file: the same bytes however it came about, and every fault as one line."""

import dataclasses
import errno
import functools
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from tiny import RECORDED, Inline

from dotlib import workers
from dotlib.data import checks, dataset, foreign, ledger, recording, simulate, split, store
from dotlib.data.recording import SimulationError
from dotlib.physics import diffusion

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def inline(monkeypatch, one_thread):
    """Workers are this process."""
    monkeypatch.setattr(simulate, "ProcessPoolExecutor", Inline)


@pytest.fixture
def stored(monkeypatch, recorded, inline):
    """The blocks of the small file are looked up, not simulated: with what is looked up, in order."""
    asked = []

    def look_up(config, first, count, device):
        asked.append((first, count))
        with store.File(recorded) as file:
            return {name: file.raw(name, first, first + count) for name in file.names}

    monkeypatch.setattr(recording, "simulate", look_up)
    return asked


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def workers_of(process):
    return [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]


def test_bytes_do_not_depend_on_the_number_of_workers(recorded, tmp_path):
    simulate.simulate(RECORDED, tmp_path / "one.h5", workers=1)
    assert (tmp_path / "one.h5").read_bytes() == recorded.read_bytes()


def test_killed_simulation_continues_and_ends_with_the_same_bytes(recorded, tmp_path, mortal, monkeypatch):
    """Its driver is killed, then a worker of the second attempt; the third makes the missing shards only."""
    path, parts = tmp_path / "small.h5", tmp_path / "small.h5.parts"
    driver = mortal(target=simulate.simulate, args=(RECORDED, path, 1))
    driver.start()
    try:
        wait_for(lambda: list(parts.glob("*.h5")) if parts.exists() else not driver.is_alive())
        workers = workers_of(psutil.Process(driver.pid))
        os.kill(driver.pid, signal.SIGKILL)
        driver.join(30)
        wait_for(lambda: not any(map(alive, workers)))
    finally:
        driver.kill()
    assert workers and not path.exists()
    kept = {shard: shard.stat().st_mtime_ns for shard in parts.glob("*.h5")}
    assert 0 < len(kept) < 3
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(simulate.simulate, RECORDED, path, 1)
        wait_for(lambda: workers_of(psutil.Process()))[0].kill()
        with pytest.raises(SimulationError, match=r"a worker died .*continues"):
            work.result()
    merge, seen = simulate._merge, {}
    monkeypatch.setattr(
        simulate, "_merge", lambda *a: (seen.update({p: p.stat().st_mtime_ns for p in parts.glob("*.h5")}), merge(*a))
    )
    simulate.simulate(RECORDED, path, 1)
    assert len(seen) == 3 and {shard: seen[shard] for shard in kept} == kept
    assert path.read_bytes() == recorded.read_bytes() and not parts.exists()


def test_full_disk_is_one_line_and_keeps_the_finished_shards(recorded, stored, tmp_path, monkeypatch):
    path, write = tmp_path / "small.h5", store.write

    def full(shard, *arguments):
        if shard.name == "0000016.h5":
            shard.with_suffix(".tmp").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(shard, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", full)
        with pytest.raises(SimulationError, match=r"small.h5: No space left on device; finished shards are kept"):
            simulate.simulate(RECORDED, path)
    assert not path.exists()
    with store.File(tmp_path / "small.h5.parts" / "0000000.h5") as shard:
        assert len(shard) == 16 and shard.digests()
    stored.clear()
    simulate.simulate(RECORDED, path)
    assert stored[2:] == [(16, 16)]  # after the two phantoms that are timed; Inline had gone on to the third shard
    assert path.read_bytes() == recorded.read_bytes()


@pytest.mark.parametrize(("limit", "finished"), [(10_000, 0), (40_000, 3)])
def test_write_that_fails_is_one_line(recorded, stored, tmp_path, limit, finished):
    """The system refuses to let a file grow: first the shards, then the merged one."""
    path, parts = tmp_path / "small.h5", tmp_path / "small.h5.parts"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        kept = "; finished shards are kept .* the same command continues" if finished else ""
        with pytest.raises(SimulationError, match=rf"small.h5: {os.strerror(errno.EFBIG)}{kept}$"):
            simulate.simulate(RECORDED, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not path.exists() and len(list(parts.glob("0*.h5"))) == finished
    simulate.simulate(RECORDED, path)
    assert path.read_bytes() == recorded.read_bytes() and not parts.exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_folder_that_cannot_be_written_is_one_line(stored, tmp_path, monkeypatch, code):
    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(store.StoreError) as error:
        simulate.simulate(RECORDED, tmp_path / "small.h5")
    assert str(error.value) == f"{tmp_path / 'small.h5'}: {os.strerror(code)}"


@pytest.mark.parametrize("harm", ["truncated", "flipped", "empty"])
def test_damaged_shard_is_made_again(recorded, stored, tmp_path, harm):
    shard = simulate._shards(simulate.Recordings(RECORDED), tmp_path, "cpu")[1]
    shard.make()
    assert shard.finished()
    content = bytearray(shard.path.read_bytes())
    content[-100] ^= 1
    shard.path.write_bytes({"truncated": content[:-50], "flipped": content, "empty": b""}[harm])
    assert not shard.finished()


@pytest.mark.parametrize("column", ["phase", "sources", "checks"])
def test_shard_with_a_flipped_byte_is_made_again(recorded, stored, tmp_path, column):
    shards = kept(tmp_path / "small.h5")
    content = bytearray(shards[1].path.read_bytes())
    with h5py.File(shards[1].path) as file:
        content[file[column].id.get_chunk_info(0).byte_offset + 5] ^= 1
    shards[1].path.write_bytes(content)
    stored.clear()
    simulate.simulate(RECORDED, tmp_path / "small.h5")
    assert stored[2:] == [(16, 16)] and (tmp_path / "small.h5").read_bytes() == recorded.read_bytes()


@pytest.mark.parametrize("change", [{"first": 0}, {"count": 4}, {"legend": "[0]"}])
def test_shard_of_other_phantoms_or_checks_is_made_again(recorded, stored, tmp_path, monkeypatch, change):
    shards = kept(tmp_path / "small.h5")
    with monkeypatch.context() as patch:
        patch.setattr(checks, "LEGEND", change.pop("legend", checks.LEGEND))
        dataclasses.replace(shards[1], **change).make()
    stored.clear()
    simulate.simulate(RECORDED, tmp_path / "small.h5")
    assert stored[2:] == [(16, 16)] and (tmp_path / "small.h5").read_bytes() == recorded.read_bytes()


def kept(path):
    """The shards of the small file, made where its simulation keeps them."""
    parts = path.with_name(path.name + ".parts")
    parts.mkdir()
    for shard in (shards := simulate._shards(simulate.Recordings(RECORDED), parts, "cpu")):
        shard.make()
    return shards


@pytest.mark.parametrize(
    "other", [{"work": simulate.Recordings(RECORDED.model_copy(update={"seed": 4}))}, {"device": "cuda"}]
)
def test_shard_of_another_configuration_or_device_is_refused(stored, tmp_path, other):
    first = simulate._shards(simulate.Recordings(RECORDED), tmp_path, "cpu")[0]
    first.make()
    with pytest.raises(SimulationError, match=r"0000000\.h5: a shard of another configuration or device"):
        dataclasses.replace(first, **other).finished()


def test_file_of_another_configuration_keeps_its_shards(recorded, stored, tmp_path):
    path = Path(shutil.copy(recorded, tmp_path / "small.h5"))
    shards = kept(path)
    with pytest.raises(store.StoreError, match=r"small\.h5: holds"):
        simulate.simulate(RECORDED.model_copy(update={"seed": 4}), path)
    assert all(shard.finished() for shard in shards) and path.read_bytes() == recorded.read_bytes()


def test_merging_removes_its_own_files_only(stored, tmp_path):
    path = tmp_path / "small.h5"
    notes = kept(path)[0].path.with_name("notes.txt")
    notes.write_text("mine")
    notes.with_name("0000016.tmp").write_bytes(b"half")
    simulate.simulate(RECORDED, path)
    assert path.exists() and list(notes.parent.iterdir()) == [notes]


def test_finished_file_is_known_by_its_place(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "SETTLED", 0)  # as if it took long to read, as a large one does
    simulate.simulate(RECORDED, tmp_path / "x.h5")
    monkeypatch.setattr(foreign.hashlib, "file_digest", lambda *_: pytest.fail("the file was read as a whole"))
    with store.File(tmp_path / "x.h5") as file:
        assert len(file) == RECORDED.phantoms


def test_finished_file_needs_no_lock(recorded, tmp_path, monkeypatch):
    """As in a folder that is read-only."""
    path = Path(shutil.copy(recorded, tmp_path / "small.h5"))
    monkeypatch.setattr(simulate, "_alone", lambda path: pytest.fail("locked"))
    monkeypatch.setattr(Path, "mkdir", lambda *arguments, **options: pytest.fail("written"))
    simulate.simulate(RECORDED, path)
    assert list(tmp_path.iterdir()) == [path]


def test_merging_flags_duplicates_and_keeps_bad_phantoms_out_of_every_part(stored, tmp_path, monkeypatch):
    """Phantom 20 has the readings of phantom 3, in another shard; phantom 5 failed its checks."""
    looked_up = recording.simulate

    def spoilt(config, first, count, device):
        columns = looked_up(config, first, count, device)
        if (first, count) == (0, 16):
            columns["checks"][5] = 1
        if first == 16:
            columns["log_amplitude"][4] = looked_up(config, 3, 1, device)["log_amplitude"][0]
        return columns

    monkeypatch.setattr(recording, "simulate", spoilt)
    simulate.simulate(RECORDED, tmp_path / "small.h5")
    with store.File(tmp_path / "small.h5") as file:
        bits = checks.faults(file)
    assert {i: checks.reasons(bits[i]) for i in np.flatnonzero(bits)} == {
        5: [checks.REASONS[0]],
        20: [checks.DUPLICATE],
    }
    data = dataset.read(tmp_path / "small.h5", fractions=(4, 1, 1))
    assert np.flatnonzero(data.labels < 0).tolist() == [5, 20]
    assert sum(len(data.part(name)) for name in split.NAMES) == 34


def test_two_that_ask_at_once_simulate_once(recorded, stored, tmp_path, capsys):
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: simulate.simulate(RECORDED, tmp_path / "small.h5"), range(2)))
    assert sorted(stored[2:]) == [(0, 16), (16, 16), (32, 4)]
    assert (tmp_path / "small.h5").read_bytes() == recorded.read_bytes()
    assert "waiting for another process" in capsys.readouterr().err


def test_estimate_is_printed_before_the_progress(stored, tmp_path, capsys):
    simulate.simulate(RECORDED, tmp_path / "small.h5", workers=2)
    estimate, *progress = capsys.readouterr().err.splitlines()
    assert "36 of 36 phantoms to simulate, about 00:00 on 2 core(s)" in estimate
    assert "36/36" in progress[-1] and "phantom/s" in progress[-1]


def test_gpu_is_used_by_this_process(recorded, stored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulate.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(simulate, "ProcessPoolExecutor", lambda *arguments: pytest.fail("workers were started"))
    simulate.simulate(RECORDED, tmp_path / "small.h5", workers=2)
    assert stored == [(0, 1), (0, 16), (0, 16), (16, 16), (32, 4)]  # the first two are timed
    with store.File(tmp_path / "small.h5") as file, store.File(recorded) as expected:
        assert file.digests() == expected.digests()
        assert (file.attribute("device"), expected.attribute("device")) == ("cuda", "cpu")
    assert "on 1 GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (diffusion.ConvergenceError(3, 0.1, 40), "phantom 19 has not converged: residual 0.1, iteration 40"),
        (ValueError("object 2: the tissue touches the wall"), "phantom 18: the tissue touches the wall"),
    ],
)
def test_failure_names_the_phantom_and_the_other_shards_are_made(inline, tmp_path, monkeypatch, error, line):
    simulated = recording.simulate

    def fail(*arguments):
        raise error

    def blocks(config, first, count, device):
        with monkeypatch.context() as patch:
            if first == 16:
                patch.setattr(diffusion, "readings", fail)
            else:
                count = min(count, 1)
            return simulated(config, first, count, device)

    monkeypatch.setattr(recording, "simulate", blocks)
    with pytest.raises(SimulationError, match=line):
        simulate.simulate(RECORDED, tmp_path / "small.h5")
    assert sorted(p.name for p in (tmp_path / "small.h5.parts").iterdir()) == ["0000000.h5", "0000032.h5"]


def test_file_says_where_it_comes_from(recorded):
    with store.File(recorded) as file:
        held = json.loads(file.attribute("configuration"))
        assert held["phantoms"] == 36 and held["measurements"]["grid"] == 32 and held["physics"] == store.PHYSICS
        fields = json.loads(file.attribute("fields"))["measurements"]
        assert fields == RECORDED.measurements.model_dump() | {"grid": 32} and fields["frequency"] == 140e6
        assert file.attribute("legend") == checks.LEGEND and not {"split", "strata"} & set(file.names)
        assert file.attribute("commit") == simulate.code()
        np.testing.assert_array_equal(file.raw("family"), np.full(36, b"default"))
        assert len(file.digests()) == 3 and not file.raw("checks").any()


def test_commit_is_that_of_the_code_and_says_whether_it_differs(tmp_path, monkeypatch):
    def git(*arguments):
        line = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()

    asked_anew = simulate.provenance.commit.__wrapped__
    monkeypatch.setattr(simulate.provenance, "commit", functools.partial(asked_anew, tmp_path))
    assert simulate.code() == "unknown"
    (tmp_path / "dotlib" / "data").mkdir(parents=True)
    assert simulate.code() == "unknown"
    git("init"), git("config", "core.abbrev", "5"), git("config", "log.showSignature", "true")
    (tmp_path / "dotlib" / "a.py").write_text("1")
    git("add", "."), git("commit", "-m", "one")
    package = git("rev-parse", "HEAD")
    (tmp_path / "readme").write_text("1")
    git("add", "."), git("commit", "-m", "two")
    assert simulate.code() == package and len(package) == 40
    (tmp_path / "readme").write_text("2")
    assert simulate.code() == package
    (tmp_path / "dotlib" / "a.py").write_text("2")
    assert simulate.code() == package + "-dirty"


def test_import_of_the_dataset_leaves_the_solver_alone():
    script = "import sys, dotlib.study; print('numba' in sys.modules or 'dotlib.physics.diffusion' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("call", [1, 5])
def test_signal_as_a_file_is_written_waits_until_it_is_closed(tmp_path, monkeypatch, number, call):
    """HDF5 calls back for every write, and takes no exception from there."""
    calls, write = itertools.count(1), store._Disk.write

    def signalled(self, data):
        if next(calls) == call:
            signal.raise_signal(number)
        return write(self, data)

    former = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(store._Disk, "write", signalled)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        workers.end_when_terminated()
        expected = workers.Terminated if number == signal.SIGTERM else KeyboardInterrupt
        with pytest.raises(expected), store.writing(tmp_path / "a.h5") as file:
            file["n"] = np.arange(1000)
            file["m"] = np.arange(10)
    finally:
        for n, handler in former.items():
            signal.signal(n, handler)
    with h5py.File(tmp_path / "a.tmp") as file:
        assert file["n"][999] == 999 and next(calls) > call
