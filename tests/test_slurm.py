"""Work by Slurm jobs: the rules of submission with a made-up queue, and the work itself where there is a Slurm."""

import contextlib
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import histories
import psutil
import pytest
import tiny
from tiny import a_run, untimed

from dotlib import cluster, shards, slurm, study, trainer
from dotlib.cluster import Cluster, SlurmError
from dotlib.config import ConfigError
from dotlib.data import simulate
from dotlib.study import StudyError

pytestmark = pytest.mark.usefixtures("one_thread")
TWO = Cluster(minutes=10, warning=60, cpus=1, gpus=1, concurrency=2)


class Queue:
    """A made-up Slurm: what is submitted is PENDING until told otherwise; the most that may run are known by array."""

    def __init__(self, monkeypatch):
        self.states, self.arrays = {}, []
        monkeypatch.setattr(slurm, "queue", lambda: dict(self.states))
        monkeypatch.setattr(slurm, "executor", lambda wanted, folder, at_a_time: Sender(self, at_a_time))


class Sender:
    """In the place of submitit's executor."""

    def __init__(self, queue, at_a_time):
        self.queue, self.at_a_time, self.jobs = queue, at_a_time, []

    def batch(self):
        return self

    def __enter__(self):
        pass

    def __exit__(self, *exception):
        self.queue.arrays.append((self.at_a_time, [job.task.name for job in self.jobs]))

    def submit(self, job):
        self.jobs.append(job)
        job_id = f"{len(self.queue.arrays) + 1}_{len(self.jobs) - 1}"
        self.queue.states[job_id] = "PENDING"
        return Job(job, job_id)


class Job:
    def __init__(self, job, job_id):
        self.task, self.job_id = job.task, job_id


class Made:
    """A task whose file says that it is done."""

    def __init__(self, folder, name):
        self.folder, self.name, self.line, self.at_work = folder / name, name, "", False

    def done(self):
        return (self.folder / "done").exists()

    def busy(self):
        return self.at_work

    def failure(self):
        return self.line

    def keep_failure(self, line):
        self.line = line

    def forget_failure(self):
        self.line = ""

    def finish(self):
        self.folder.mkdir(exist_ok=True)
        (self.folder / "done").touch()


@pytest.fixture
def queue(monkeypatch):
    return Queue(monkeypatch)


@pytest.fixture
def tasks(tmp_path):
    return [Made(tmp_path, name) for name in "abcde"]


def watching(tasks, tmp_path):
    watch = slurm._Watch(tasks, TWO, tmp_path / "slurm")
    watch.look()
    return watch


def test_all_is_one_array_of_as_many_at_a_time_as_may_run(queue, tasks, tmp_path):
    tasks[1].finish()
    watch = watching(tasks, tmp_path)
    assert queue.arrays == [(2, ["a", "c", "d", "e"])] and [task.name for task in watch.left] == ["a", "c", "d", "e"]
    assert slurm.job_of(tasks[2]) == "1_1"
    for _ in range(3):
        watch.look()
    assert len(queue.arrays) == 1


def test_finished_work_is_struck_off_and_what_failed_is_a_line(queue, tasks, tmp_path):
    watch = watching(tasks, tmp_path)
    tasks[0].finish()
    tasks[1].line = "no memory"
    del queue.states["1_0"]
    queue.states["1_1"] = "FAILED"
    watch.look()
    watch.look()
    assert [task.name for task in watch.left] == ["c", "d", "e"] and watch.failures == ["b: no memory"]
    assert len(queue.arrays) == 1


@pytest.mark.parametrize("state", ["FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "COMPLETED", "gone"])
def test_lost_job_alone_is_submitted_again_when_there_is_room(queue, tasks, tmp_path, capfd, state):
    """As many as may run are queued already: it waits for its turn; it is named once, when it is noticed."""
    watch = watching(tasks, tmp_path)
    queue.states["1_0"] = state
    if state == "gone":
        del queue.states["1_0"]
    for _ in range(4):
        watch.look()
    assert capfd.readouterr().err == f"dotlib: a: job 1_0 was lost ({state.lower()}); it will be submitted again\n"
    assert len(queue.arrays) == 1
    for name, task in zip(("1_1", "1_2", "1_3"), tasks[1:4], strict=True):
        task.finish()
        queue.states[name] = "COMPLETED"
    watch.look()
    assert queue.arrays[1:] == [(1, ["a"])]  # beside e


def test_job_that_is_lost_too_often_fails(queue, tmp_path, capfd):
    watch = watching([Made(tmp_path, "a")], tmp_path)
    for _ in range(10):
        queue.states = dict.fromkeys(queue.states, "FAILED")
        watch.look()
    assert not watch.left and len(queue.arrays) == slurm.LIVES
    assert watch.failures[0].startswith("a: job 3_0 was lost (failed), the last of 3; ")


def test_cancelled_job_is_the_users_wish(queue, tasks, tmp_path):
    watch = watching(tasks, tmp_path)
    queue.states["1_0"] = "CANCELLED"
    watch.look()
    watch.look()
    assert watch.failures == ["a: job 1_0 was cancelled; start again to continue"] and len(queue.arrays) == 1


def test_what_is_queued_or_worked_on_already_is_only_watched(queue, tasks, tmp_path):
    watching(tasks[:3], tmp_path)
    tasks[3].at_work = True
    queue.states["1_0"] = "RUNNING"
    watch = watching(tasks, tmp_path)  # another driver
    assert len(queue.arrays) == 1 and len(watch.left) == 5
    tasks[3].at_work = False
    queue.states = {}
    watch.look()
    assert len(queue.arrays) == 1  # what they wrote may be on its way
    watch.look()
    assert queue.arrays[1:] == [(2, ["a", "b", "c", "d", "e"])]


def test_cancelled_job_of_an_earlier_command_is_the_users_wish(queue, tasks, tmp_path):
    watching(tasks[:1], tmp_path)
    watch = watching(tasks[:1], tmp_path)
    queue.states["1_0"] = "CANCELLED"
    watch.look()
    watch.look()
    assert watch.failures and len(queue.arrays) == 1 and tasks[0].failure() == watch.failures[0].removeprefix("a: ")


def test_signal_between_submission_and_its_note_waits(queue, tasks, tmp_path, monkeypatch):
    """A job that nobody knows of would be submitted once more."""
    write = slurm.checkpoint.write

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        write(*arguments)

    monkeypatch.setattr(slurm.checkpoint, "write", interrupted)
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
    try:
        with pytest.raises(KeyboardInterrupt):
            watching(tasks, tmp_path)
    finally:
        signal.signal(signal.SIGINT, former)
    monkeypatch.undo()
    assert [slurm.job_of(task) for task in tasks] == [f"1_{i}" for i in range(5)]


def test_jobs_of_shards_are_the_same_whatever_is_there(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(slurm, "run", lambda tasks, *_: found.append({task.folder: task.shards for task in tasks}))
    data = tiny.RECORDED.model_copy(update={"phantoms": 16 * 50})
    made = [simulate.Shard(simulate.Recordings(data), tmp_path / f"{i}.h5", 16 * i, 16, "cpu") for i in range(50)]
    monkeypatch.setattr(simulate.Shard, "finished", lambda shard: shard.path.read_bytes() == b"whole")
    shards.OnSlurm(tmp_path / "x.h5", TWO).make(made)
    for shard in made[:7]:
        shard.path.write_bytes(b"whole")
    made[7].path.write_bytes(b"damaged")
    shards.OnSlurm(tmp_path / "x.h5", TWO).make(made)
    assert found[0] == found[1] and len(found[0]) == 8 and sum(map(len, found[0].values())) == 50
    assert made[6].path.exists() and not made[7].path.exists()


@pytest.mark.parametrize(("precision", "gpus", "refused"), [("", 1, True), ("bf16", 1, False), ("", 0, False)])
def test_jobs_on_gpus_compute_in_a_precision_that_was_chosen(monkeypatch, precision, gpus, refused):
    monkeypatch.setattr(slurm, "queue", dict)
    monkeypatch.setattr(slurm.torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DOTLIB_PRECISION", precision)
    monkeypatch.setenv("DOTLIB_SLURM_GPUS", str(gpus))
    with pytest.raises(ConfigError, match="DOTLIB_PRECISION = bf16") if refused else contextlib.nullcontext():
        slurm.require()


def test_slurm_that_does_not_answer_for_a_while_ends_nothing(queue, tasks, tmp_path, monkeypatch, capfd):
    calls = []

    def falter():
        calls.append(len(calls))
        if len(calls) in (4, 5):
            raise SlurmError("slurm: no answer")
        if len(calls) > 5:
            for task in tasks:
                task.finish()
            return {}
        return dict(queue.states)

    monkeypatch.setattr(slurm, "queue", falter)
    monkeypatch.setattr(slurm, "POLL", 0.0)
    assert slurm.run(tasks, tmp_path / "slurm", TWO) == []
    assert capfd.readouterr().err.count("slurm: no answer; the jobs go on") == 2
    monkeypatch.setattr(slurm, "PATIENCE", 0.0)
    monkeypatch.setattr(slurm, "queue", lambda: (_ for _ in ()).throw(SlurmError("slurm: no answer")))
    with pytest.raises(SlurmError, match="no answer"):
        slurm.run([Made(tmp_path, "f")], tmp_path / "slurm", TWO)


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        (None, {}, Cluster()),
        ("partition: gpu\nminutes: 30\nsetup: [module load cuda]\n", {},
         Cluster(partition="gpu", minutes=30, setup=("module load cuda",))),
        ("minutes: 30\n", {"DOTLIB_SLURM_MINUTES": "60", "DOTLIB_SLURM_ACCOUNT": "0123"},
         Cluster(minutes=60, account="0123")),
        (None, {"DOTLIB_SLURM_CONSTRAINT": "[a|b]", "DOTLIB_SLURM_SETUP": "[module load cuda]"},
         Cluster(constraint="[a|b]", setup=("module load cuda",))),
    ],
)  # fmt: skip
def test_cluster_is_asked_for_in_a_file_or_the_environment(tmp_path, monkeypatch, text, environment, expected):
    if text:
        (tmp_path / "slurm.yaml").write_text(text)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cluster.asked(tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("partitoin: gpu\n", "slurm: unknown field partitoin; accepted: partition, account"),
        ("gpus: -1\n", "slurm: gpus = -1: "),
        ("- a\n", "slurm.yaml: a mapping of partition, account"),
        ("a: [\n", "slurm.yaml: "),
        ("minutes: 1\nwarning: 60\n", "slurm: Value error, warning 60 s before a limit of 1 min: less is accepted"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, text, line):
    (tmp_path / "slurm.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        cluster.asked(tmp_path)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_wrong_setup_in_the_environment_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("DOTLIB_SLURM_SETUP", "[module load")
    with pytest.raises(ConfigError, match=r"^DOTLIB_SLURM_SETUP: "):
        cluster.asked(tmp_path)


def test_without_slurm_nothing_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(study.samples, "prepare", lambda configs: pytest.fail("prepared"))
    with pytest.raises(SlurmError, match="no squeue on this machine; --on here computes without"):
        study.compute({("a", 0): a_run(tmp_path)}, "slurm")


def test_status_of_runs_that_were_submitted_elsewhere_needs_no_slurm(tmp_path, monkeypatch, capfd):
    """The store was copied, or the cluster is down; what is done does not ask for it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    run = a_run(tmp_path)
    (run.folder() / "queued.json").write_text('{"job": "1_0"}')
    assert study.status({("a", 0): run})["state"].tolist() == ["missing"]
    assert capfd.readouterr().err.startswith("dotlib: slurm: no squeue on this machine")
    monkeypatch.setattr(trainer, "fit", histories.fit)
    run.result()
    assert study.status({("a", 0): run})["state"].tolist() == ["done"] and not capfd.readouterr().err


# On a real Slurm, `benchmarks/slurm/up.sh`: jobs of one core.

on_slurm = pytest.mark.slurm
LONG = 40


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(tiny.__file__).parents[1])]))
    for name, value in {"MINUTES": "10", "WARNING": "60", "CPUS": "1", "GPUS": "1", "CONCURRENCY": "2"}.items():
        monkeypatch.setenv(f"DOTLIB_SLURM_{name}", value)
    monkeypatch.setenv("DOTLIB_PRECISION", "fp32")
    monkeypatch.setattr(slurm, "POLL", 1.0)
    return monkeypatch


def written(run):
    return {path.name: path.stat().st_mtime_ns for path in run.path.iterdir() if path.name != "lock"}


def process_of(run):
    """The process of a run's job."""
    job = slurm.job_of(run)
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        number = f"{environment.get('SLURM_ARRAY_JOB_ID')}_{environment.get('SLURM_ARRAY_TASK_ID')}"
        if job in (number, environment.get("SLURM_JOB_ID")) and "submitit" in " ".join(process.cmdline()):
            return process
    return None


def wait_for(what, seconds=180):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return found


def epoch(run):
    path = run.path / "progress.json"
    return json.loads(path.read_text())["epoch"] if path.exists() else 0


def same(found, expected):
    return untimed(found) == untimed(expected) and found.metrics.equals(expected.metrics)


@on_slurm
def test_study_by_jobs_is_that_of_this_machine_and_a_killed_job_alone_is_done_again(asked, tmp_path, capfd):
    wanted = {("short", seed): a_run(tmp_path, seed=seed) for seed in (0, 1)} | {
        ("long", 0): a_run(tmp_path, epochs=LONG)
    }
    long = wanted["long", 0]
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(study.compute, wanted, "slurm")
        wait_for(lambda: slurm.job_of(long))
        assert set(study.status(wanted)["state"]) & {"queued", "running"}
        wait_for(lambda: epoch(long) > 1 and all(wanted["short", s].done() for s in (0, 1)))
        before = {seed: written(wanted["short", seed]) for seed in (0, 1)}
        process_of(long).send_signal(signal.SIGKILL)
        killed, first = time.monotonic(), slurm.job_of(long)
        wait_for(lambda: slurm.job_of(long) != first)
        assert time.monotonic() - killed < 30
        work.result(timeout=300)
    assert "long, seed 0: job" in capfd.readouterr().err
    assert {seed: written(wanted["short", seed]) for seed in (0, 1)} == before
    for key, run in wanted.items():
        assert same(run.result(), trainer.fit(run.config, tmp_path / "alone" / key[0] / str(key[1]))), key
    study.compute(wanted, "slurm")
    assert slurm.job_of(long) != first and set(study.status(wanted)["state"]) == {"done"}


@on_slurm
def test_job_whose_time_is_up_is_queued_again_and_continues(asked, tmp_path):
    asked.setenv("DOTLIB_SLURM_MINUTES", "2")
    asked.setenv("DOTLIB_SLURM_WARNING", "119")  # at once, or in a minute
    run = a_run(tmp_path, epochs=LONG)
    run.folder()
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(study.compute, {("long", 0): run}, "slurm")
        process = wait_for(lambda: epoch(run) > 0 and process_of(run))
        process.send_signal(signal.SIGUSR2)  # what Slurm sends
        process.wait(60)
        job, reached = slurm.job_of(run), epoch(run)
        assert not run.done() and (run.path / "last.pt").exists()
        work.result(timeout=400)
    assert slurm.job_of(run) == job and reached < LONG  # Slurm's doing, not the driver's
    assert same(run.result(), trainer.fit(run.config, tmp_path / "alone"))


@on_slurm
def test_diverging_and_failing_runs_are_told_apart(asked, tmp_path):
    diverging = a_run(tmp_path, "stage1-onecycle", optim__lr=1e38, optim__div=1)
    failing = a_run(tmp_path)
    (failing.folder() / "best.pt").mkdir()
    with pytest.raises(StudyError) as error:
        study.compute({("diverging", 0): diverging, ("failing", 0): failing}, "slurm")
    assert str(error.value).startswith("failing, seed 0: ") and "Is a directory" in str(error.value)
    assert diverging.result().failed and failing.failure()


@on_slurm
def test_file_whose_shards_are_made_by_jobs_has_the_same_bytes(asked, tmp_path, recorded):
    path = tmp_path / "small.h5"
    simulate.simulate(tiny.RECORDED, path, elsewhere=shards.OnSlurm(path, TWO.model_copy(update={"gpus": 0})))
    assert path.read_bytes() == recorded.read_bytes()
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == ["small.h5"]
