"""Studies: every run computed once and kept, whatever fails or is started twice."""

import itertools
import json
import math
import re
import shutil
import signal
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from queue import Queue

import filelock
import histories
import pandas as pd
import pytest
import torch
from tiny import Inline, Stop, a_run, states

from dotlib import (
    arms,
    checkpoint,
    config,
    history,
    machine,
    outcomes,
    recipes,
    records,
    results,
    study,
    tracking,
    trainer,
    workers,
)
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
    assert states({0: run}) == {0: "missing"}


def test_second_driver_does_not_disturb_the_first(tmp_path, inline, monkeypatch):
    refused, fit = [], trainer.fit

    def fit_while_another_tries(*arguments, **options):
        with pytest.raises(StudyError) as error:
            study.compute({("a", 0): a_run(tmp_path)})
        refused.append(line(error))
        return fit(*arguments, **options)

    monkeypatch.setattr(trainer, "fit", fit_while_another_tries)
    study.compute({("a", 0): a_run(tmp_path)})
    assert len(refused) == 1
    assert a_run(tmp_path).done()


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """A study with a run that diverges in its second step, and its store: two arms of tiny runs, two seeds."""
    store = tmp_path_factory.mktemp("diverged")

    def wanted():
        broken = a_run(store, "stage1-onecycle", seed=1, optim__lr=1e38, optim__div=1)
        whole = {(arm, seed): a_run(store, arm, seed) for arm in ARMS for seed in (0, 1)}
        return whole | {("stage1-onecycle", 1): broken}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "ProcessPoolExecutor", Inline)
        study.compute(wanted())
    return wanted, store


BROKEN = ("stage1-onecycle", 1)


def test_diverged_run_is_kept_and_not_tried_again(diverged, nothing_computes):
    wanted, store = diverged
    assert set(states(wanted()).values()) == {"done"}
    study.compute(wanted())
    history = wanted()[BROKEN].result()
    assert history.failed.startswith("epoch 0, step ") and "learning rate" in history.failed
    assert str(store) not in history.failed and "\n" not in history.failed
    assert history.epochs.empty and history.metrics.empty and len(history.steps) == 2
    assert not history.steps[["loss", "gradient_norm"]].map(math.isfinite).all(axis=None)


def test_status_of_a_diverged_run_is_failed(diverged):
    table = study.status(diverged[0]()).set_index(["arm", "seed"])
    assert table.state.to_dict() == {key: "failed" if key == BROKEN else "done" for key in diverged[0]()}
    assert table.epoch[BROKEN] == "0/2"


def test_diverged_run_has_each_phantoms_worst_error_and_nothing_else(diverged):
    found = {key: run.result() for key, run in diverged[0]().items()}
    table, keys = outcomes.metrics(found), ["checkpoint", "metric", "phantom", "inclusion", "channel"]
    broken = table[(table.arm == BROKEN[0]) & (table.seed == BROKEN[1])].set_index(keys)["value"]
    others = [h.metrics.set_index(keys)["value"] for h in found.values() if not h.failed]
    assert len(others) == 3 and len(broken) == len(others[0])
    worst = pd.concat(others, axis=1).max(axis=1)
    errors = broken.index.get_level_values("metric").isin(["nrmse", "rmse", "legacy_rmse"])
    assert errors.sum() == 2 * (2 + 2 + 1) * len(set(table.phantom))  # checkpoints, channels
    assert broken[errors].to_dict() == worst[broken[errors].index].to_dict()
    assert broken[~errors].isna().all()


def test_curves_and_summary_show_a_diverged_run(diverged):
    found = {key: run.result() for key, run in diverged[0]().items()}
    curves = outcomes.epochs(found)
    assert curves.groupby(["arm", "seed"]).size().to_dict() == {key: 2 for key in found if key != BROKEN}
    assert curves.epoch.dtype.kind == curves.seed.dtype.kind == "i"
    runs = results.record(found, "smoke").runs
    assert outcomes.summary(runs).set_index("arm").failed.to_dict() == {"stage1-adam": 0, "stage1-onecycle": 1}


def test_study_whose_every_run_diverged_is_one_line(diverged):
    with pytest.raises(StudyError) as error:
        outcomes.metrics({BROKEN: diverged[0]()[BROKEN].result()})
    assert line(error).startswith("every run diverged: epoch 0, step ")


CANDIDATE = "adamw-constant"
# validation nrmse of mua, an epoch each; the last counts
CURVES = ([0.1, 0.4], [0.9, 0.3], [0.2, 0.35])


@pytest.fixture
def tuning(monkeypatch, inline):
    """Three points of one candidate; a `failed` one has the lowest curve."""
    names = arms.TUNING[CANDIDATE][:4]
    monkeypatch.setattr(arms, "TUNING", {CANDIDATE: names})
    rates = [point["lr"] for point in arms.points(CANDIDATE)]
    state = {"failed": (3,), "trained": []}

    def fit(c, folder, **options):
        i = rates.index(c.optim.lr)
        state["trained"].append(c.seed)
        failed = "epoch 2, step 0: loss nan" if i in state["failed"] else ""
        return histories.made_up(c, curve=[*CURVES, [0.01, 0.01]][i], failed=failed)

    monkeypatch.setattr(trainer, "fit", fit)
    return names, state


def test_tuning_takes_the_lowest_error_at_the_end(tmp_path, tuning):
    names, state = tuning
    study.compute(study.runs(names, "smoke", 1, tmp_path, arms.TUNING_SEED))
    assert state["trained"] == [1000] * 4
    best = study.tuned(CANDIDATE, "smoke", tmp_path)
    point = arms.points(CANDIDATE)[1]
    assert {name: getattr(best, name) for name in point} == point
    for arm, more in ((CANDIDATE, {}), ("plateau", {"optim.schedule": "plateau"})):
        (run,) = study.runs([arm], "smoke", 1, tmp_path).values()
        assert run.config.optim == config.replace(arms.arm(names[1], "smoke"), more).optim
        assert run.config.training.epochs == 2  # the whole horizon
        assert run.config.seed == 0


def test_tuning_of_diverged_runs_alone_is_one_line(tmp_path, tuning):
    names, state = tuning
    state["failed"] = range(4)
    study.compute(study.runs(names, "smoke", 1, tmp_path, arms.TUNING_SEED))
    with pytest.raises(StudyError) as error:
        study.tuned(CANDIDATE, "smoke", tmp_path)
    assert line(error) == f"tuning of {CANDIDATE}: every run diverged"


def test_tuned_arm_waits_for_its_whole_tuning(tmp_path, tuning):
    names, _ = tuning
    study.compute(study.runs(names[:3], "smoke", 1, tmp_path, arms.TUNING_SEED))
    assert study.tuned(CANDIDATE, "smoke", tmp_path) is None
    with pytest.raises(ConfigError) as error:
        study.runs(["stage1-adam", CANDIDATE], "smoke", 1, tmp_path)
    assert line(error) == f"arm {CANDIDATE}: its tuning is not computed in this profile; study 4.3-tuning does it"


def test_recorded_tuning_serves_where_it_is_not_computed(tmp_path, tuning, monkeypatch):
    names, _ = tuning
    wanted = study.runs(names, "smoke", 1, tmp_path / "there", arms.TUNING_SEED)
    study.compute(wanted)
    best, folder = study.tuned(CANDIDATE, "smoke", tmp_path / "there"), tmp_path / "results" / "4.3-tuning"
    monkeypatch.setattr(config, "root", lambda: tmp_path)
    assert study.tuned(CANDIDATE, "smoke", tmp_path / "here") is None
    found = {key: run.result() for key, run in wanted.items()}
    records.save(results.record(found, "smoke"), folder)
    assert study.tuned(CANDIDATE, "smoke", tmp_path / "here") == best
    assert study.tuned(CANDIDATE, "quick", tmp_path / "here") is None  # recorded at another size
    shutil.rmtree(folder)
    records.save(results.record(dict(list(found.items())[1:]), "smoke"), folder)
    assert study.tuned(CANDIDATE, "smoke", tmp_path / "here") is None  # one run is not recorded


def test_micro_batch_that_depends_on_the_machine_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(arms.ARMS, "automatic", arms.Arm({"training.micro": "auto"}, "made up"))
    with pytest.raises(ConfigError) as error:
        study.runs([ARMS[0], "automatic"], "smoke", 1, tmp_path)
    assert line(error).startswith("arm automatic: training.micro = 'auto' depends on the machine")


def test_arms_of_two_test_sets_are_refused_and_a_named_one_is_the_cure(tmp_path, monkeypatch):
    base = config.profile("smoke").base.data
    changes = {"data": base.model_copy(update={"family": "small"})}
    for name, more in (("elsewhere", {}), ("at-home", {"test": base})):
        made_up = recipes.Arm(arms.ARMS["stage1-adam"].changes | changes | more, "made up")
        monkeypatch.setitem(arms.ARMS, name, made_up)
    with pytest.raises(ConfigError, match="arms stage1-adam, elsewhere: 2 test sets; arms are judged on one"):
        study.runs(("stage1-adam", "elsewhere"), "smoke", 1, tmp_path)
    assert len(study.runs(("stage1-adam", "at-home"), "smoke", 1, tmp_path)) == 2


def test_arms_of_one_configuration_are_one_run(tmp_path, inline, monkeypatch):
    """Not two workers in one folder."""
    submitted, submit = [], Inline.submit
    monkeypatch.setattr(Inline, "submit", lambda self, *work: submitted.append(work) or submit(self, *work))
    wanted = {("a", 0): a_run(tmp_path), ("b", 0): a_run(tmp_path, seed=1), ("same", 0): a_run(tmp_path)}
    study.compute(wanted)
    assert len(submitted) == 2 and set(states(wanted).values()) == {"done"}


@pytest.mark.parametrize(
    ("name", "seeds", "expected"),
    [("4.2-baseline", 0, [0, 1]), ("4.2-baseline", 3, [0, 1, 2]), ("4.3-tuning", 0, [1000]), ("two", 0, [5, 6, 7])],
)
def test_members_have_the_studys_seeds_unless_told(tmp_path, monkeypatch, name, seeds, expected):
    monkeypatch.setitem(arms.STUDIES, "two", arms.Study(ARMS, 3, 5))
    wanted = study.members(name, "smoke", seeds, tmp_path)
    assert list(wanted) == [(arm, seed) for arm in arms.STUDIES[name].arms for seed in expected]
    assert all(run.config.seed == seed for (_, seed), run in wanted.items())


def test_failed_run_is_retried(tmp_path, inline, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "fit", lambda *arguments, **options: 1 / 0)
        with pytest.raises(StudyError, match=r"^a, seed 0: "):
            study.compute({("a", 0): a_run(tmp_path)})
    assert states({0: a_run(tmp_path)}) == {0: "failed"}
    study.compute({("a", 0): a_run(tmp_path)})
    assert len(a_run(tmp_path).result().epochs) == 2


def test_failures_are_a_line_each(tmp_path, inline, monkeypatch):
    monkeypatch.setattr(trainer, "fit", lambda *arguments, **options: 1 / 0)
    wanted = study.runs(ARMS, "smoke", 1, tmp_path)
    with pytest.raises(StudyError) as error:
        study.compute(wanted)
    assert {row.split(":")[0] for row in str(error.value).splitlines()} == {f"{arm}, seed 0" for arm in ARMS}
    assert [run.failure() for run in wanted.values()] == ["division by zero"] * 2


def test_run_with_a_damaged_checkpoint_starts_anew_and_says_so(tmp_path, inline, capfd):
    path = a_run(tmp_path / "a").folder() / "last.pt"
    path.write_bytes(b"junk")
    for store in "ab":
        study.compute({("a", 0): a_run(tmp_path / store)})
    assert f"{path}: damaged, or no checkpoint of dotlib; set aside as last.damaged" in capfd.readouterr().err
    assert path.with_suffix(".damaged").read_bytes() == b"junk"
    (a, b) = (a_run(tmp_path / store).result() for store in "ab")
    assert a.metrics.equals(b.metrics) and a.steps.equals(b.steps)


@pytest.mark.parametrize("name", ["history.pt", "last.pt", "best.pt"])
@pytest.mark.parametrize("how", ["gone", "short"])
def test_result_whose_files_are_not_whole_is_computed_again(tmp_path, inline, name, how):
    run = a_run(tmp_path)
    before = run.result()
    path = run.path / name
    whole = path.read_bytes()
    path.unlink() if how == "gone" else path.write_bytes(whole[:-100])
    assert not run.done()
    study.compute({("a", 0): run})
    assert run.done() and run.result().metrics.equals(before.metrics)


def test_history_is_kept_to_the_bit(tmp_path):
    found = histories.made_up(config.replace(arms.arm("stage1-adam", "smoke"), {"training.precision": "fp32"}))
    history.save(found, tmp_path / "history.pt", "key")
    again = history.load(tmp_path / "history.pt", "key")
    for name in history.TABLES:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name), check_exact=True)
    assert (again.info, again.failed) == (found.info, found.failed)
    with pytest.raises(checkpoint.CheckpointError, match="belongs to configuration key, not to other"):
        history.load(tmp_path / "history.pt", "other")


def resolved(arm, seed):
    """An arm's configuration with the precision that this machine has for `auto`."""
    dtype = machine.precision("auto", machine.device())
    precision = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    return config.replace(arms.arm(arm, "smoke", seed), {"training.precision": precision})


def folders(wanted):
    return [run.path for run in wanted.values()]


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
        monkeypatch.setattr(machine, "precision", lambda wanted, on: other)
    assert not set(before) & set(folders(study.runs(ARMS, "smoke", 1, tmp_path)))


@pytest.mark.parametrize(
    ("gpus", "each", "cores", "seeds", "done", "workers", "threads"),
    [
        (0, 1, 1, 3, 0, 1, 1),
        (0, 1, 2, 3, 0, 2, 1),
        (0, 1, 8, 3, 0, 3, 2),
        (0, 1, 2, 1, 0, 1, 2),
        (0, 4, 2, 3, 0, 2, 1),
        (2, 1, 8, 3, 0, 2, 4),
        (2, 1, 1, 3, 0, 2, 1),
        (4, 1, 8, 3, 0, 3, 2),
        (1, 3, 8, 4, 0, 3, 2),
        (2, 2, 8, 3, 0, 3, 2),
        (0, 1, 8, 4, 3, 1, 2),  # threads, and so bits, as if it were done at one go
    ],
)
def test_workers_share_the_cores_or_gpus(tmp_path, monkeypatch, gpus, each, cores, seeds, done, workers, threads):
    asked = []

    class Pool(Inline):
        def __init__(self, number, context, start, arguments):
            asked.append((number, arguments[1], arguments[2]))

    monkeypatch.setattr(trainer, "fit", lambda c, *arguments, **options: histories.made_up(c))
    wanted = study.runs(ARMS[:1], "smoke", seeds, tmp_path)
    for run in list(wanted.values())[:done]:
        run.result()
    monkeypatch.setattr(study, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(study, "cpu_cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    study.compute(wanted, per_gpu=each)
    assert asked == [(workers, threads, gpus)]


def test_runs_that_share_gpus_are_spread_over_them(monkeypatch):
    slots, on = Queue(), []
    for slot in range(6):
        slots.put(slot)
    monkeypatch.setattr(torch.cuda, "set_device", on.append)
    monkeypatch.setattr(study, "end_with_driver", lambda: None)
    monkeypatch.setattr(study.workers, "end_when_asked", lambda: None)
    for _ in range(6):
        study._start_worker(slots, torch.get_num_threads(), 2)
    assert on == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("deadly", "lives_beside", "widths", "dead"),
    [
        ((), 4, [4], []),
        ((), 2, [4, 2], []),  # memory for two
        ((2,), 4, [4, 2, 1, 1], [2]),  # it dies alone too
        ((0, 3), 4, [4, 2, 1, 3, 1], [0, 3]),
    ],
)
def test_study_goes_on_where_a_worker_dies(tmp_path, monkeypatch, capfd, deadly, lives_beside, widths, dead):
    """By half as many at a time, until the run that dies alone is known; the others are computed."""
    asked = []

    class Pool(Inline):
        def __init__(self, number, *arguments):
            asked.append(number)
            self.width, self.broken = number, False

        def submit(self, work, run):
            self.broken |= self.width > lives_beside or run.config.seed in deadly
            if self.broken:
                (future := Future()).set_exception(BrokenProcessPool())
                return future
            return super().submit(work, run)

    monkeypatch.setattr(trainer, "fit", lambda c, *arguments, **options: histories.made_up(c))
    monkeypatch.setattr(study, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(study, "cpu_cores", lambda: 4)
    wanted = study.runs(ARMS[:1], "smoke", 4, tmp_path)
    if dead:
        with pytest.raises(StudyError) as error:
            study.compute(wanted)
        lines = [f"stage1-adam, seed {i}: a worker died (memory?); start again to continue" for i in dead]
        assert str(error.value).splitlines() == lines
    else:
        study.compute(wanted)
    assert asked == widths and [i for (_, i), run in wanted.items() if not run.done()] == dead
    said = [int(line) for line in re.findall(r"go on with (\d) at a time", capfd.readouterr().err)]
    assert said == [b for a, b in itertools.pairwise(widths) if a > b]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """The histories of the baseline's study in the smoke profile, and their store."""
    store = tmp_path_factory.mktemp("baseline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "ProcessPoolExecutor", Inline)
        return study.results("4.2-baseline", "smoke", 2, store), store


def test_results_are_those_of_every_arm_and_seed(baseline):
    histories = baseline[0]
    assert set(histories) == {(arm, seed) for arm in arms.STUDIES["4.2-baseline"].arms for seed in (0, 1)}
    for (arm, seed), one in histories.items():
        assert one.info["config"] == resolved(arm, seed).model_dump(mode="json")
    assert len({one.info["data"] for one in histories.values()}) == 1  # one test set for all


def test_results_are_kept(baseline, nothing_computes):
    histories, store = baseline
    again = study.results("4.2-baseline", "smoke", 2, store)
    assert all(again[key].metrics.equals(history.metrics) for key, history in histories.items())
    assert set(study.results("4.2-baseline", "smoke", 1, store)) == {key for key in histories if key[1] == 0}


def test_tables_join_all_runs(baseline):
    histories = baseline[0]
    metrics, epochs = outcomes.metrics(histories), outcomes.epochs(histories)
    assert len(metrics) == sum(len(one.metrics) for one in histories.values())
    for (arm, seed), one in histories.items():
        rows = metrics[(metrics.arm == arm) & (metrics.seed == seed)].reset_index(drop=True)
        assert rows[list(one.metrics)].equals(one.metrics)
        rows = epochs[(epochs.arm == arm) & (epochs.seed == seed)]
        assert rows.validation_loss.tolist() == one.epochs.validation_loss.tolist()


def test_made_up_histories_are_like_real_ones(baseline):
    """What other tests make many of."""
    real = baseline[0]["stage1-adam", 1]
    made = histories.made_up(resolved("stage1-adam", 1))
    for name in ("epochs", "steps", "metrics"):
        assert list(getattr(made, name)) == list(getattr(real, name))
        assert getattr(made, name).dtypes.equals(getattr(real, name).dtypes)
    assert set(made.info) == set(real.info) and set(made.info["optimiser"]) == set(real.info["optimiser"])
    assert set(histories.METRICS) <= set(zip(real.metrics.metric, real.metrics.channel, strict=True))
    assert set(real.metrics.phantom) == set(range(histories.PHANTOMS))


def test_run_is_tracked_in_its_folder(tmp_path, monkeypatch):
    """The tracker is told of each epoch, and finished whatever comes."""
    told = []

    class Told:
        def wants_slices(self, epoch):
            return True

        def epoch(self, row, steps, slices):
            told.append((row["epoch"], len(steps), sorted(slices)))

        def finish(self):
            told.append("finished")

    def start(config, folder, facts, group):
        assert group == ""
        told.append((config, folder, facts["data key"]))
        return Told()

    monkeypatch.setattr(tracking, "start", start)
    run = a_run(tmp_path)
    run.result()
    slices = ["prediction mua", "prediction musp", "truth mua", "truth musp"]
    assert told == [(run.config, run.folder(), "0"), (0, 2, slices), (1, 2, slices), "finished"]
    told.clear()
    monkeypatch.setattr(trainer, "fit", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        a_run(tmp_path, seed=1).result()
    assert told[-1] == "finished"


def test_full_profile_without_a_gpu_is_one_line(tmp_path, monkeypatch, nothing_computes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as error:
        study.results("4.2-baseline", "full", 10, tmp_path)
    assert "4.2-baseline: 40 of 40 full runs are missing" in line(error) and "no GPU" in line(error)
    assert not any(tmp_path.iterdir())


def test_full_profile_with_a_gpu_is_computed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "precision", lambda wanted, on: torch.float32)
    monkeypatch.setattr(study, "compute", asked.append)
    monkeypatch.setattr(trainer, "fit", lambda c, folder, **options: histories.made_up(c))
    found = study.results("4.2-baseline", "full", 1, tmp_path)
    assert [list(wanted) for wanted in asked] == [list(found)]
    fp32 = {"training.precision": "fp32"}
    expected = config.replace(arms.arm("stage1-adam", "full"), fp32).digest()
    assert found["stage1-adam", 0].info["config_digest"] == expected


def test_unknown_study_is_one_line(tmp_path):
    with pytest.raises(ConfigError) as error:
        study.results("4.9", "smoke", 1, tmp_path)
    assert "'4.9'" in line(error) and "4.2-baseline" in line(error)


def test_status_says_where_each_run_stands(tmp_path, inline, monkeypatch):
    wanted = study.runs(ARMS, "smoke", 2, tmp_path)
    (done, failed, started, missing) = wanted.values()
    study.compute({("a", 0): done})
    with monkeypatch.context() as patch, pytest.raises(StudyError):
        patch.setattr(trainer, "fit", lambda *arguments, **options: 1 / 0)
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
    assert not missing.path.exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00" * 40])
def test_status_survives_a_damaged_progress(tmp_path, text):
    run = a_run(tmp_path)
    (run.folder() / "progress.json").write_text(text)
    assert study.status({("a", 0): run})["state"].tolist() == ["missing"]


def test_damaged_configuration_is_written_again_as_a_run_is_computed(tmp_path):
    run = a_run(tmp_path)
    path = run.folder() / "config.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    run.result()
    assert path.read_bytes() == whole


def test_damaged_configuration_of_a_finished_run_is_written_again_by_its_study(tmp_path, request):
    run = a_run(tmp_path)
    run.result()
    path = run.path / "config.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    request.getfixturevalue("nothing_computes")
    study.compute({("a", 0): run})
    assert path.read_bytes() == whole


def test_run_that_finds_no_memory_is_one_line(tmp_path, inline, monkeypatch):
    def refuse(*arguments, **options):
        raise MemoryError("Unable to allocate 8.00 GiB for an array")

    monkeypatch.setattr(trainer, "fit", refuse)
    run = a_run(tmp_path)
    with pytest.raises(StudyError, match=r"^a, seed 0: Unable to allocate 8.00 GiB for an array$"):
        study.compute({("a", 0): run})
    assert run.failure() == "Unable to allocate 8.00 GiB for an array"


def test_run_that_was_asked_to_end_has_not_failed(tmp_path, monkeypatch):
    run = a_run(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(workers.Ended):
        patch.setattr(workers, "_requests", [signal.SIGTERM])
        run.result()
    assert run.failure() == "" and study.status({("a", 0): run})["state"].tolist() == ["started"]
    assert len(run.result().epochs) == 2


def test_interruption_as_workers_are_started_ends_them(tmp_path, monkeypatch):
    """And does not wait for what was submitted before."""
    told = []

    class Pool(Inline):
        def submit(self, work, run):
            raise KeyboardInterrupt

        def shutdown(self, **options):
            told.append(options)

    monkeypatch.setattr(study, "ProcessPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt):
        study.compute({("a", 0): a_run(tmp_path)})
    assert told == [{"wait": False, "cancel_futures": True}]


def test_run_that_another_driver_finishes_meanwhile_is_no_failure(tmp_path, inline, monkeypatch):
    """Of two drivers at once, the one that ends last has every run."""
    theirs, mine, fit = a_run(tmp_path), a_run(tmp_path, seed=1), trainer.fit
    lock = filelock.FileLock(theirs.folder() / "lock")

    def fit_while_the_other_ends(*arguments, **options):
        if lock.is_locked:
            lock.release()
            theirs.result()
        return fit(*arguments, **options)

    monkeypatch.setattr(trainer, "fit", fit_while_the_other_ends)
    lock.acquire()
    study.compute({("a", 0): theirs, ("a", 1): mine})
    assert theirs.done() and mine.done()
