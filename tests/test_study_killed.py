"""A study whose driver and workers are killed in the middle of a run."""

import dataclasses
import functools
import inspect
import json
import os
import signal
import time
import types
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import active_children
from multiprocessing.context import SpawnProcess

import pandas as pd
import psutil
import pytest
from tiny import CLOCKED, a_run, states

from dotlib import checkpoint, study, trainer
from dotlib.data import simulate
from dotlib.data.recording import SimulationError
from dotlib.study import StudyError

LONG = 30
START = study._start_worker
pytestmark = pytest.mark.usefixtures("one_thread")


def three(store):
    """Two short runs and a long one."""
    long = a_run(store, epochs=LONG)
    return {("short", 0): a_run(store), ("short", 1): a_run(store, seed=1), ("long", 0): long}


def save_each_epoch(*arguments):
    """In a worker: a kill comes after a checkpoint, and before the run's end, however slow the one who kills is."""
    START(*arguments)
    trainer.fit = functools.partial(trainer.fit, save_every=0.0, report=lambda row: time.sleep(0.5))


def compute_on_one_core(store):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    study.cpu_cores, study._start_worker = lambda: 1, save_each_epoch
    study.compute(three(store))


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"waited {seconds} s in vain: {inspect.getsource(what).strip()}"
        time.sleep(0.01)


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def contents(wanted):
    """When each finished run's files were written."""
    return {
        (key, path.name): path.stat().st_mtime_ns
        for key, run in wanted.items()
        if run.done()
        for path in run.folder().iterdir()
        if path.name != "lock"
    }


@dataclasses.dataclass
class End:
    """How a driver ended: its exit code, its workers, the seconds until the last of them was gone, the runs' states."""

    code: int
    workers: int
    outlived: float
    states: dict


def end_driver(mortal, store, number, progressed):
    """Start a driver in a process of its own, and send it a signal as soon as the long run has progressed."""
    driver = mortal(target=compute_on_one_core, args=(store,))
    driver.start()
    try:
        wait_for(lambda: progressed() or not driver.is_alive())
        workers = psutil.Process(driver.pid).children(recursive=True)
        os.kill(driver.pid, number)
        ended = time.monotonic()
        driver.join(30)
        wait_for(lambda: not any(map(alive, workers)))
        return End(driver.exitcode, len(workers), time.monotonic() - ended, states(three(store)))
    finally:
        driver.kill()


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory, mortal):
    """A study that ends three times in its long run (driver killed, interrupted; worker killed), then computed."""
    store, seen = tmp_path_factory.mktemp("disturbed"), {}
    long = three(store)["long", 0]
    progress = long.folder() / "progress.json"

    def epoch():
        return json.loads(progress.read_text())["epoch"] if progress.exists() else 0

    seen["killed"] = end_driver(mortal, store, signal.SIGKILL, lambda: epoch() > 0)
    seen["finished"] = contents(three(store))
    seen["first epoch"] = checkpoint.load(long.folder() / "last.pt", long.config.digest())["epochs"][0]
    reached = epoch()
    seen["interrupted"] = end_driver(mortal, store, signal.SIGINT, lambda: epoch() > reached)
    again = epoch()
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as thread:
        patch.setattr(study, "cpu_cores", lambda: 1)
        patch.setattr(study, "_start_worker", save_each_epoch)
        work = thread.submit(study.compute, three(store))
        wait_for(lambda: epoch() > again or work.done())
        assert not work.done(), work.exception()
        for child in psutil.Process().children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        seen["worker's death"] = work.exception()
        seen["states"] = states(three(store))
        study.compute(three(store))
    return three(store), seen


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    wanted = three(tmp_path_factory.mktemp("undisturbed"))
    return {key: trainer.fit(run.config, run.folder()) for key, run in wanted.items()}


UNFINISHED = {("short", 0): "done", ("short", 1): "done", ("long", 0): "missing"}


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_workers_do_not_outlive_their_driver(disturbed, how):
    end = disturbed[1][how]
    assert end.code == {"killed": -signal.SIGKILL, "interrupted": 1}[how] and end.workers > 0
    assert end.outlived < 5
    assert end.states == UNFINISHED


def test_killed_worker_is_named_and_the_others_are_kept(disturbed):
    error, after = disturbed[1]["worker's death"], disturbed[1]["states"]
    assert isinstance(error, StudyError)
    assert str(error).startswith("long, seed 0: a worker died")
    assert after == UNFINISHED


def test_killed_study_recomputes_no_finished_run(disturbed):
    wanted, seen = disturbed
    assert {key for key, _ in seen["finished"]} == {("short", 0), ("short", 1)}
    after = contents(wanted)
    assert {key: after[key] for key in seen["finished"]} == seen["finished"]


def test_killed_study_continues_its_unfinished_run(disturbed):
    wanted, seen = disturbed
    first = wanted["long", 0].result().epochs.iloc[:1]
    assert first.equals(pd.DataFrame([seen["first epoch"]]))  # its clock's readings included


def test_killed_study_ends_as_an_undisturbed_one(disturbed, undisturbed):
    for key, run in disturbed[0].items():
        found, expected = run.result(), undisturbed[key]
        assert found.epochs.drop(columns=CLOCKED).equals(expected.epochs.drop(columns=CLOCKED))
        assert found.steps.equals(expected.steps)
        assert found.metrics.equals(expected.metrics)
    assert len(expected.epochs) == LONG


def test_second_call_computes_nothing(disturbed, nothing_computes):
    wanted = three(disturbed[0]["long", 0].store)
    before = contents(wanted)
    study.compute(wanted)
    assert contents(wanted) == before and len(before) > 9


class Nothing:
    """Work, or the work of shards, that is done at once."""

    def result(self):
        pass

    def make(self):
        pass


def through_study():
    assert study.here({"a": Nothing(), "b": Nothing(), "c": Nothing()}, 3, 1) == {}


def through_simulation():
    with pytest.raises(SimulationError, match="a worker died"):
        list(simulate.made([types.SimpleNamespace(device="cpu", make=Nothing().make)] * 3, 2))


@pytest.mark.parametrize("work", [through_study, through_simulation])
def test_worker_killed_while_the_next_one_starts_does_not_hang_the_pool(monkeypatch, work):
    """The pool has ended all workers that it knows of, and then waits for the one that it did not know yet."""
    start, started, others = SpawnProcess.start, [], set(active_children())

    def killed_meanwhile(process):
        start(process)
        started.append(process)
        if len(started) == 2:
            started[0].kill()
            time.sleep(1.0)

    monkeypatch.setattr(SpawnProcess, "start", killed_meanwhile)
    monkeypatch.setattr(study, "cpu_cores", lambda: 2)
    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(work)
        try:
            ended.result(timeout=90)
        finally:
            for process in set(active_children()) - others:
                process.kill()
    assert len(started) >= 2
