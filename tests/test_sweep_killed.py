"""A sweep whose worker and driver are killed in the middle of a trial."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from test_study_killed import START, alive, wait_for
from test_sweep import a_search
from tiny import CLOCKED

from dotlib import study, sweep, trainer
from dotlib.ledger import Ledger

TRIALS, EPOCHS, PATIENCE = 3, 20, 240
ENDS = {"killed": signal.SIGKILL, "asked": signal.SIGTERM}
pytestmark = pytest.mark.usefixtures("one_thread")


def the_search(store):
    return a_search(store, TRIALS, epochs=EPOCHS)


def slowly(*arguments, report=None, **options):
    """Training that saves each epoch, and takes its time after it: a kill comes after a checkpoint, before the end."""

    def told(row):
        if report:
            report(row)
        time.sleep(0.2)

    return FIT(*arguments, report=told, save_every=0.0, **options)


FIT = trainer.fit


def start_slowly(*arguments):
    START(*arguments)
    trainer.fit = slowly


def compute_on_two_cores(store):
    study.cpu_cores, study._start_worker = lambda: 2, start_slowly
    sweep.compute([the_search(store)])


def epochs(store):
    """How many are kept of the trials that have not ended."""
    one, found = the_search(store), 0
    for index in range(TRIALS):
        run = one.run(one.fixed(index))
        if (progress := run.path / "progress.json").exists() and not run.done():
            found += json.loads(progress.read_text())["epoch"]
    return found


def workers_of(pid):
    found = psutil.Process(pid).children()
    return [child for child in found if alive(child) and "spawn_main" in " ".join(child.cmdline())]


def end_driver(mortal, store, number):
    """Start a driver in a process of its own, and send it a signal as soon as its trials have come further."""
    before = epochs(store)
    driver = mortal(target=terminable, args=(store,))
    driver.start()
    try:
        wait_for(lambda: (epochs(store) > before and workers_of(driver.pid)) or not driver.is_alive(), PATIENCE)
        workers = workers_of(driver.pid)
        os.kill(driver.pid, number)
        driver.join(PATIENCE)
        wait_for(lambda: not any(map(alive, workers)), PATIENCE)
    finally:
        driver.kill()
    return states(store)


def states(store):
    return [trial.state.name for trial in Ledger(the_search(store)).trials()]


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory, mortal):
    """A sweep whose driver is killed, then one that is asked to end; of the next a worker is killed, and it goes on."""
    store = tmp_path_factory.mktemp("disturbed")
    seen = {name: end_driver(mortal, store, number) for name, number in ENDS.items()}
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as thread:
        patch.setattr(study, "cpu_cores", lambda: 2)
        patch.setattr(study, "_start_worker", start_slowly)
        before = epochs(store)
        work = thread.submit(sweep.compute, [the_search(store)])
        wait_for(lambda: (epochs(store) > before and "RUNNING" in states(store)) or work.done(), PATIENCE)
        assert not work.done(), work.exception()
        workers_of(os.getpid())[0].kill()
        seen["worker's death"] = work.exception()
    return the_search(store), seen


def terminable(store):
    from dotlib.workers import end_when_terminated

    end_when_terminated()
    compute_on_two_cores(store)


@pytest.mark.parametrize("how", ENDS)
def test_trials_of_a_driver_that_ended_are_in_work_until_they_are_found(disturbed, how):
    assert "RUNNING" in disturbed[1][how]


def test_sweep_goes_on_after_a_workers_death(disturbed):
    one, seen = disturbed
    assert seen["worker's death"] is None
    assert sweep.budget([Ledger(one)])[["trials", "epochs"]].values.tolist() == [[TRIALS, TRIALS * EPOCHS]]


def test_lost_trials_are_recovered_and_counted_once(disturbed):
    one, _ = disturbed
    trials = Ledger(one).trials()
    states = [trial.state.name for trial in trials]
    assert (
        states.count("COMPLETE") == TRIALS
        and states.count("FAIL") >= 3
        and len(states) == TRIALS + states.count("FAIL")
    )
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert sorted(trial.user_attrs["index"] for trial in finished) == list(range(TRIALS))
    for trial in trials:
        assert trial.params == one.fixed(trial.user_attrs["index"])


def test_recovered_trials_end_as_undisturbed_ones(disturbed, tmp_path):
    """Each continued from its checkpoint: bits, and what was told of each epoch."""
    one, _ = disturbed
    for trial in Ledger(one).trials():
        if trial.state.name == "COMPLETE":
            run = one.run(one.fixed(trial.user_attrs["index"]))
            found, expected = run.result(), trainer.fit(run.config, tmp_path / run.path.name)
            assert found.epochs.drop(columns=CLOCKED).equals(expected.epochs.drop(columns=CLOCKED))
            assert found.steps.equals(expected.steps) and found.metrics.equals(expected.metrics)
            errors = expected.epochs["nrmse_mua"].tolist()
            assert list(trial.intermediate_values.values())[: EPOCHS - 1] == errors[: EPOCHS - 1]
            assert trial.value == errors[-1]


def test_second_call_computes_nothing(disturbed, nothing_computes):
    one, _ = disturbed
    before = (one.folder / "journal.log").read_bytes()
    sweep.compute([one])
    assert (one.folder / "journal.log").read_bytes() == before
