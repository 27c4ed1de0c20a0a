"""A sweep by jobs on a Slurm cluster: several on one journal, some of which are lost."""

import subprocess
import threading

import pytest
from test_sweep import a_search

from dotlib import arms, cluster, slurm, sweep, trainer
from dotlib.ledger import Ledger

TRIALS, EPOCHS = 6, 4
CLUSTER = {"GPUS": "0", "CPUS": "1", "CONCURRENCY": "2", "MINUTES": "10"}
pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two jobs, of which the first that works is killed: the search, all jobs, that one."""
    store = tmp_path_factory.mktemp("swept")
    one, jobs, killed = a_search(store, TRIALS, epochs=EPOCHS), set(), []

    def kill_one():
        for _ in range(600):
            found = [slurm.job_of(task) for task in sweep._tasks((one,), TRIALS)]
            jobs.update(job for job in found if job)
            states = [trial.state.name for trial in Ledger(one).trials()]
            if "RUNNING" in states and jobs:
                running = [job for job in jobs if cluster.queue().get(job) == "RUNNING"]
                if running:
                    killed.append(running[0])
                    subprocess.run(["scancel", "--signal=KILL", "--full", running[0]], check=True)
                    return
            stop.wait(0.2)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in CLUSTER.items():
            patch.setenv(cluster.PREFIX + name, value)
        patch.setattr(slurm, "POLL", 1.0)
        stop = threading.Event()
        killer = threading.Thread(target=kill_one)
        killer.start()
        try:
            sweep.compute([one], "slurm")
        finally:
            stop.set()
            killer.join()
    return one, jobs, killed


def test_jobs_keep_the_budget_and_take_up_what_a_killed_one_had(swept):
    one, jobs, killed = swept
    states = [trial.state.name for trial in Ledger(one).trials()]
    assert states.count("COMPLETE") == TRIALS and set(states) <= {"COMPLETE", "FAIL"}
    assert sweep.budget([Ledger(one)])[["trials", "epochs"]].values.tolist() == [[TRIALS, TRIALS * EPOCHS]]
    assert len(killed) == 1 and killed[0] in jobs


def test_jobs_compute_what_is_computed_here(swept, tmp_path):
    one, *_ = swept
    run = one.run(arms.points(one.candidate)[TRIALS - 1])
    alone = trainer.fit(run.config, tmp_path)
    assert run.result().metrics.equals(alone.metrics) and run.result().steps.equals(alone.steps)


def test_finished_sweep_submits_nothing(swept, monkeypatch):
    monkeypatch.setattr(slurm, "run", lambda *arguments, **options: pytest.fail("jobs were submitted"))
    sweep.compute([swept[0]], "slurm")
