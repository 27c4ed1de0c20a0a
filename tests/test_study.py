"""Studies: every run computed once and kept, whatever fails or is started twice."""

import json
import logging
from pathlib import Path

import filelock
import pytest
import torch
from tiny import Inline, Stop, a_run, states

from dotlib import config, study, trainer
from dotlib.config import ConfigError
from dotlib.data import dataset, split
from dotlib.study import StudyError

ARMS = ("stage1-adam", "stage1-onecycle")
pytestmark = pytest.mark.usefixtures("one_thread")


def line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)


def test_lock_of_another_driver_is_one_line_and_leaves_no_trace(tmp_path, inline):
    run = a_run(tmp_path)
    with filelock.FileLock(run.folder() / "lock"), pytest.raises(StudyError) as error:
        study.compute({("a", 3): run})
    assert line(error).startswith("a, seed 3: ") and "another process is training this run" in line(error)
    assert str(run.folder()) in line(error)
    assert run.infra.status() == "not submitted"


def test_second_driver_does_not_disturb_the_first(tmp_path, inline, monkeypatch):
    refused, fit = [], trainer.fit

    def fit_while_another_tries(*arguments):
        with pytest.raises(StudyError) as error:
            study.compute({("a", 0): a_run(tmp_path)})
        refused.append(line(error))
        return fit(*arguments)

    monkeypatch.setattr(trainer, "fit", fit_while_another_tries)
    study.compute({("a", 0): a_run(tmp_path)})
    assert len(refused) == 1
    assert a_run(tmp_path).infra.status() == "completed"


def test_failing_run_is_named_and_the_others_are_kept(tmp_path, inline):
    def wanted():
        broken = a_run(tmp_path, optim__lr=1e38)
        return {("a", 0): a_run(tmp_path), ("broken", 4): broken, ("b", 0): a_run(tmp_path, "stage1-onecycle")}

    with pytest.raises(StudyError) as error:
        study.compute(wanted())
    assert line(error).startswith("broken, seed 4: ") and "epoch 0, step 1" in line(error)
    assert states(wanted()) == {("a", 0): "completed", ("broken", 4): "failed", ("b", 0): "completed"}
    with pytest.raises(StudyError, match=r"^broken, seed 4: "):  # it is tried again, and the others are not
        study.compute(wanted())


def test_failed_run_is_retried(tmp_path, inline, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "fit", lambda *arguments: 1 / 0)
        with pytest.raises(StudyError, match=r"^a, seed 0: "):
            study.compute({("a", 0): a_run(tmp_path)})
    assert a_run(tmp_path).infra.status() == "failed"
    study.compute({("a", 0): a_run(tmp_path)})
    assert len(a_run(tmp_path).result().epochs) == 2


def test_failures_are_a_line_each(tmp_path, inline, monkeypatch, caplog):
    """The library that keeps the results says nothing of its own, neither then nor when their state is read."""
    logger = logging.getLogger("exca")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, "exca")
    monkeypatch.setattr(trainer, "fit", lambda *arguments: 1 / 0)
    wanted = study.runs(ARMS, "smoke", 1, tmp_path)
    with pytest.raises(StudyError) as error:
        study.compute(wanted)
    assert {row.split(":")[0] for row in str(error.value).splitlines()} == {f"{arm}, seed 0" for arm in ARMS}
    study.status(wanted)
    assert not caplog.records


def test_damaged_checkpoint_is_one_line_and_its_removal_the_cure(tmp_path, inline):
    path = a_run(tmp_path).folder() / "last.pt"
    path.write_bytes(b"junk")
    with pytest.raises(StudyError) as error:
        study.compute({("a", 0): a_run(tmp_path)})
    assert str(path) in line(error) and "remove it to start anew" in line(error)
    path.unlink()
    study.compute({("a", 0): a_run(tmp_path)})


def resolved(arm, seed):
    """An arm's configuration with the precision that this machine has for `auto`."""
    dtype = trainer.precision("auto", trainer.device())
    precision = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    return config.replace(config.arm(arm, "smoke", seed), {"training.precision": precision})


def folders(wanted):
    return [run.infra.uid_folder() for run in wanted.values()]


def test_runs_are_arms_with_paired_seeds(tmp_path):
    wanted = study.runs(ARMS, "smoke", 3, tmp_path)
    assert list(wanted) == [(arm, seed) for arm in ARMS for seed in range(3)]
    for (arm, seed), run in wanted.items():
        assert run.config == resolved(arm, seed)
        assert run.data == dataset.key(run.config.data)
    assert len(set(folders(wanted))) == 6
    assert folders(wanted) == folders(study.runs(ARMS, "smoke", 3, tmp_path))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["data", "precision"])
def test_run_of_other_data_or_precision_is_another_run(tmp_path, monkeypatch, what):
    """The same configuration, once phantoms are drawn or split in another way, or on another machine."""
    before = folders(study.runs(ARMS, "smoke", 1, tmp_path))
    if what == "data":
        monkeypatch.setattr(dataset, "split", lambda *arguments: split.split(*arguments)[::-1])
    else:
        other = torch.float32 if resolved(ARMS[0], 0).training.precision == "bf16" else torch.bfloat16
        monkeypatch.setattr(trainer, "precision", lambda wanted, on: other)
    assert not set(before) & set(folders(study.runs(ARMS, "smoke", 1, tmp_path)))


@pytest.mark.parametrize(
    ("gpus", "cores", "seeds", "done", "workers", "threads"),
    [
        (0, 1, 3, 0, 1, 1),
        (0, 2, 3, 0, 2, 1),
        (0, 8, 3, 0, 3, 2),
        (0, 2, 1, 0, 1, 2),
        (2, 8, 3, 0, 2, 4),
        (2, 1, 3, 0, 2, 1),
        (4, 8, 3, 0, 3, 2),
        (0, 8, 4, 3, 1, 2),  # threads, and so bits, as if it were done at one go
    ],
)
def test_workers_share_the_cores_or_have_a_gpu_each(tmp_path, monkeypatch, gpus, cores, seeds, done, workers, threads):
    asked = []

    class Pool(Inline):
        def __init__(self, number, context, start, arguments):
            asked.append((number, arguments[1], arguments[2]))

    monkeypatch.setattr(trainer, "fit", lambda *arguments: None)
    wanted = study.runs(ARMS[:1], "smoke", seeds, tmp_path)
    for run in list(wanted.values())[:done]:
        run.result()
    monkeypatch.setattr(study, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(study, "cpu_cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    study.compute(wanted)
    assert asked == [(workers, threads, gpus > 0)]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """The histories of the baseline's study in the smoke profile, and their store."""
    store = tmp_path_factory.mktemp("baseline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "ProcessPoolExecutor", Inline)
        return study.results("4.2-baseline", "smoke", 2, store), store


def test_results_are_those_of_every_arm_and_seed(baseline):
    histories = baseline[0]
    assert set(histories) == {(arm, seed) for arm in config.STUDIES["4.2-baseline"] for seed in (0, 1)}
    for (arm, seed), history in histories.items():
        assert history.info["config"] == resolved(arm, seed).model_dump(mode="json")
    assert len({history.info["data"] for history in histories.values()}) == 1  # one test set for all


def test_results_are_kept(baseline, nothing_computes):
    histories, store = baseline
    again = study.results("4.2-baseline", "smoke", 2, store)
    assert all(again[key].metrics.equals(history.metrics) for key, history in histories.items())
    assert set(study.results("4.2-baseline", "smoke", 1, store)) == {key for key in histories if key[1] == 0}


def test_tables_join_all_runs(baseline):
    histories = baseline[0]
    metrics, epochs = study.metrics(histories), study.epochs(histories)
    assert len(metrics) == sum(len(history.metrics) for history in histories.values())
    for (arm, seed), history in histories.items():
        rows = metrics[(metrics.arm == arm) & (metrics.seed == seed)].reset_index(drop=True)
        assert rows[list(history.metrics)].equals(history.metrics)
        rows = epochs[(epochs.arm == arm) & (epochs.seed == seed)]
        assert rows.validation_loss.tolist() == history.epochs.validation_loss.tolist()


def test_full_profile_without_a_gpu_is_one_line(tmp_path, monkeypatch, nothing_computes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as error:
        study.results("4.2-baseline", "full", 10, tmp_path)
    assert "4.2-baseline: 40 of 40 full runs are missing" in line(error) and "no GPU" in line(error)
    assert not any(tmp_path.iterdir())


def test_full_profile_with_a_gpu_is_computed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(trainer, "precision", lambda wanted, on: torch.float32)
    monkeypatch.setattr(study, "compute", asked.append)
    monkeypatch.setattr(trainer, "fit", lambda c, folder: c.digest())
    found = study.results("4.2-baseline", "full", 1, tmp_path)
    assert [list(wanted) for wanted in asked] == [list(found)]
    fp32 = {"training.precision": "fp32"}
    assert found["stage1-adam", 0] == config.replace(config.arm("stage1-adam", "full"), fp32).digest()


def test_unknown_study_is_one_line(tmp_path):
    with pytest.raises(ConfigError) as error:
        study.results("4.9", "smoke", 1, tmp_path)
    assert "'4.9'" in line(error) and "4.2-baseline" in line(error)


def test_status_says_where_each_run_stands(tmp_path, inline, monkeypatch):
    wanted = study.runs(ARMS, "smoke", 2, tmp_path)
    (done, failed, started, missing) = wanted.values()
    study.compute({("a", 0): done})
    with monkeypatch.context() as patch, pytest.raises(StudyError):
        patch.setattr(trainer, "fit", lambda *arguments: 1 / 0)
        study.compute({("a", 1): failed})

    def stop(row):
        raise Stop

    with pytest.raises(Stop):
        trainer.fit(started.config, started.folder(), report=stop)
    table = study.status(wanted)
    assert table.arm.tolist() == [ARMS[0]] * 2 + [ARMS[1]] * 2 and table.seed.tolist() == [0, 1] * 2
    assert table.state.tolist() == ["done", "failed", "started", "missing"]
    assert table.epoch.tolist() == ["2/2", "0/2", "1/2", "0/2"]
    assert table["seconds left"].isna().tolist() == [False, True, False, True]
    progress = json.loads((started.folder() / "progress.json").read_text())
    assert table["samples/s"][2] == progress["samples_per_second"] and table["seconds left"][0] == 0
    assert not Path(missing.infra.uid_folder()).exists()
