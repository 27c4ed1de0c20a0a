"""Sweeps: the same trials whoever computes them, a budget that is kept, and nothing lost."""

import math
import shutil

import filelock
import histories
import numpy as np
import optuna
import pytest
import torch
from tiny import Inline, Stop, tiny

from dotlib import arms, search, study, sweep, tracking, trainer, workers
from dotlib.config import ConfigError
from dotlib.ledger import Ledger, LedgerError
from dotlib.run import Run, StudyError
from dotlib.search import Search

CANDIDATE, EPOCHS = "adamw-onecycle", 6
pytestmark = pytest.mark.usefixtures("one_thread")


def a_search(store, trials=8, sampler="sobol", pruner="none", epochs=EPOCHS):
    """A search of tiny runs, of made-up data."""
    point = arms.points(CANDIDATE)[0]
    changes = {f"optim__{name}": value for name, value in (arms.CANDIDATES[CANDIDATE] | point).items()}
    base = Run(config=tiny("stage1-onecycle", epochs=epochs, seed=arms.TUNING_SEED, **changes), data="0", store=store)
    return Search(CANDIDATE, "smoke", base, trials, sampler, pruner)


def error(optim, epoch=EPOCHS - 1):
    """A made-up error: a bowl in the logarithm of the rate, reached from above."""
    return 0.1 + abs(math.log(optim.lr / 3e-3)) / 10 + 0.5 / (1 + epoch) + optim.warmup / 100


def fit(c, folder, report=None, **options):
    """In the place of training: an epoch at a time, told of as it comes."""
    curve = [error(c.optim, epoch) for epoch in range(c.training.epochs)]
    found = histories.made_up(c, curve)
    for row in found.epochs.to_dict("records"):
        if report:
            report(row)
    return found


@pytest.fixture
def trained(monkeypatch):
    """What is trained, by made-up training in this process."""
    found = []

    def told(c, folder, **options):
        found.append(c)
        return fit(c, folder, **options)

    monkeypatch.setattr(trainer, "fit", told)
    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(sweep.samples, "prepare", lambda configs: None)
    return found


def line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def points_of(one):
    """The points that were begun, by place; each place has one."""
    found = {}
    for trial in Ledger(one).trials():
        index, point = trial.user_attrs["index"], trial.user_attrs["point"]
        assert found.setdefault(index, point) == point
        assert trial.params == point
    return found


def states(one):
    return [trial.state.name for trial in Ledger(one).trials()]


@pytest.mark.parametrize("candidate", arms.CANDIDATES)
def test_first_trials_are_the_runs_of_the_tuning_study(tmp_path, candidate):
    (one,) = sweep.planned([candidate], "smoke", tmp_path)
    wanted = study.runs(arms.TUNING[candidate], "smoke", 1, tmp_path, arms.TUNING_SEED)
    assert [one.run(one.fixed(i)) for i in range(8)] == list(wanted.values())
    assert not any(tmp_path.iterdir())


def test_finished_study_makes_a_finished_sweep(tmp_path, trained, request):
    study.compute(study.runs(arms.TUNING["muon"], "smoke", 1, tmp_path, arms.TUNING_SEED))
    request.getfixturevalue("nothing_computes")
    (one,) = sweep.planned(["muon"], "smoke", tmp_path)
    sweep.compute([one])
    best = study.tuned("muon", "smoke", tmp_path)
    (row,) = sweep.budget([Ledger(one)]).to_dict("records")
    assert (row["trials"], row["epochs"]) == (8, 8) and {n: row[n] for n in one.distributions} == best.model_dump(
        include=set(one.distributions)
    )
    assert states(one) == ["COMPLETE"] * 8


def test_finished_sweep_makes_a_finished_study(tmp_path, trained, request):
    (one,) = sweep.planned(["muon"], "smoke", tmp_path)
    sweep.compute([one])
    assert len(trained) == 8
    request.getfixturevalue("nothing_computes")
    study.compute(study.runs(arms.TUNING["muon"], "smoke", 1, tmp_path, arms.TUNING_SEED))
    rates = [point["lr"] for point in arms.points("muon")]
    assert study.tuned("muon", "smoke", tmp_path).lr == min(rates, key=lambda lr: error(tiny(optim__lr=lr).optim))


def test_finished_sweep_computes_nothing_and_writes_nothing(tmp_path, trained, request):
    one = a_search(tmp_path)
    sweep.compute([one])
    before = (one.folder / "journal.log").read_bytes()
    request.getfixturevalue("nothing_computes")
    sweep.compute([one])
    assert (one.folder / "journal.log").read_bytes() == before


def test_damaged_configuration_of_a_finished_trial_is_written_again(tmp_path, trained, request):
    one = a_search(tmp_path, 1)
    sweep.compute([one])
    path = one.run(one.fixed(0)).path / "config.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    request.getfixturevalue("nothing_computes")
    sweep.compute([one])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("sampler", search.SAMPLERS)
def test_sweep_goes_on_where_a_shorter_one_ended(tmp_path, trained, sampler):
    sweep.compute([a_search(tmp_path / "a", 9, sampler)])
    sweep.compute([a_search(tmp_path / "a", 13, sampler)])
    sweep.compute([a_search(tmp_path / "b", 13, sampler)])
    assert len(trained) == 26
    a, b = (points_of(a_search(tmp_path / store, 13, sampler)) for store in "ab")
    assert a == b and list(a) == list(range(13))
    assert list(a.values())[:8] == arms.points(CANDIDATE)
    assert (list(a.values()) == arms.points(CANDIDATE, 13)) == (sampler == "sobol")


def test_tpe_seeks_where_the_error_is_low(tmp_path, trained):
    """Of two bowls' sides it takes the lower: the errors are made up, and this is a check of the sign."""
    one = a_search(tmp_path, 24, "tpe")
    sweep.compute([one])
    found = [error(one.run(point).config.optim) for point in points_of(one).values()]
    assert np.median(found[8:]) < np.median(found[:8])
    assert all(one.accepts(point) for point in points_of(one).values())


def hurry(store, trials, sampler):
    """In a process of its own."""
    torch.set_num_threads(1)
    trainer.fit = fit
    while sweep.advance(a_search(store, trials, sampler)):
        pass


@pytest.fixture(scope="module", params=search.SAMPLERS)
def crowded(request, mortal, tmp_path_factory):
    """Eleven trials by three processes at once."""
    store = tmp_path_factory.mktemp("crowded")
    crowd = [mortal(target=hurry, args=(store, 11, request.param)) for _ in range(3)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(120)
    assert [process.exitcode for process in crowd] == [0] * 3
    return a_search(store, 11, request.param)


def test_budget_is_kept_whoever_works_on_it(crowded):
    assert states(crowded) == ["COMPLETE"] * 11
    assert sorted(points_of(crowded)) == list(range(11))
    assert len(list(crowded.base.store.glob("autoencode-*"))) == 11
    assert sweep.budget([Ledger(crowded)])[["trials", "epochs"]].values.tolist() == [[11, 11 * EPOCHS]]


def test_points_do_not_depend_on_the_number_of_workers(crowded):
    places = 11 if crowded.sampler == "sobol" else 8  # what TPE draws depends on what is known by then
    assert [points_of(crowded)[i] for i in range(places)] == arms.points(CANDIDATE, 11)[:places]


def test_diverged_trial_counts_and_never_wins(tmp_path, trained, monkeypatch):
    def some(c, folder, **options):
        broken = c.optim.lr > 2e-3
        return histories.made_up(c, [0.01] if broken else [0.5, 0.4], "epoch 1, step 0: loss nan" if broken else "")

    monkeypatch.setattr(trainer, "fit", some)
    one = a_search(tmp_path)
    sweep.compute([one])
    (row,) = sweep.budget([Ledger(one)]).to_dict("records")
    rates = [point["lr"] for point in arms.points(CANDIDATE)]
    assert row["failed"] == sum(lr > 2e-3 for lr in rates) and row["trials"] == 8
    assert row["lr"] < 2e-3 and row["error"] == 0.4
    values = [trial.value for trial in Ledger(one).trials()]
    assert [math.isinf(value) for value in values] == [lr > 2e-3 for lr in rates]


def test_sweep_of_diverged_trials_alone_has_no_best(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(trainer, "fit", lambda c, folder, **options: histories.made_up(c, failed="epoch 0: loss nan"))
    one = a_search(tmp_path)
    sweep.compute([one])
    (row,) = sweep.budget([Ledger(one)]).to_dict("records")
    assert row["failed"] == 8 and row["epochs"] == 0 and math.isnan(row["error"]) and math.isnan(row["lr"])


def test_trial_that_cannot_be_computed_is_one_line_and_tried_again(tmp_path, trained, monkeypatch):
    worst = arms.points(CANDIDATE)[2]["lr"]

    def full_disk(c, folder, **options):
        if c.optim.lr == worst:
            raise OSError("disk full")
        return fit(c, folder, **options)

    one = a_search(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(StudyError) as failure:
        patch.setattr(trainer, "fit", full_disk)
        sweep.compute([one])
    assert line(failure) == f"{one.name}, trial 2: disk full"
    assert sweep.budget([Ledger(one)])["trials"].tolist() == [7]
    sweep.compute([one])
    assert len(trained) == 1 and sweep.budget([Ledger(one)])["trials"].tolist() == [8]
    assert sorted(states(one)) == ["COMPLETE"] * 8 + ["FAIL"]


def test_full_disk_at_the_journal_is_one_line_that_names_it(tmp_path, trained, monkeypatch):
    """However many trials meet it; with room, the same command goes on."""
    one = a_search(tmp_path, 4)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(StudyError) as failure:
        patch.setattr(optuna.Study, "enqueue_trial", full)
        sweep.compute([one])
    assert line(failure) == f"[Errno 28] No space left on device: '{one.folder / 'journal.log'}'"
    assert sweep.compute([one])["trials"].tolist() == [4] and len(trained) == 4


def test_full_disk_that_takes_the_reason_of_a_failure_along_is_told_by_the_journal(tmp_path, trained, monkeypatch):
    one = a_search(tmp_path, 1)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device", "last.pt")

    with monkeypatch.context() as patch, pytest.raises(StudyError) as failure:
        patch.setattr(trainer, "fit", full)
        patch.setattr(Run, "keep_failure", full)
        sweep.compute([one])
    assert line(failure) == f"{one.name}, trial 0: [Errno 28] No space left on device: 'last.pt'"
    assert sweep.compute([one])["trials"].tolist() == [1]


def test_trial_that_another_process_trains_is_left_to_it(tmp_path, trained):
    one = a_search(tmp_path)
    held = one.run(one.fixed(3))
    with filelock.FileLock(held.folder() / "lock"), pytest.raises(StudyError) as failure:
        sweep.compute([one])
    assert line(failure) == f"{one.name}, trial 3: another process is training it"
    assert len(trained) == 7 and 3 not in points_of(one)


def test_sweep_that_another_driver_finishes_is_not_called_finished(tmp_path, trained):
    """All that is left is in work elsewhere."""
    one = a_search(tmp_path, 2)
    assert sweep.advance(one)
    with Ledger(one).turn() as turn, pytest.raises(StudyError) as failure:
        assert turn.index == 1 and Ledger(one).left() == 0
        sweep.compute([one])
    assert line(failure) == f"{one.name}, trial 1: another process is training it"


def test_run_that_is_gone_from_the_store_is_computed_again_and_counted_once(tmp_path, trained):
    one = a_search(tmp_path)
    sweep.compute([one])
    shutil.rmtree(one.run(one.fixed(5)).path)
    assert sweep.budget([Ledger(one)])["trials"].tolist() == [7]
    sweep.compute([one])
    assert len(trained) == 9 and sweep.budget([Ledger(one)])["trials"].tolist() == [8]


def pruned(store, order=1):
    """A search with median pruning, by one worker; each trial's curve has its own level and reach."""
    one = a_search(store, 16, pruner="median")
    sweep.compute([one])
    return one, Ledger(one).trials()


def test_pruned_trial_is_worse_than_the_median_where_it_ends_and_no_more_is_claimed(tmp_path, trained):
    one, trials = pruned(tmp_path)
    cut = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert cut
    for trial in cut:
        last = max(trial.intermediate_values)
        before = [t for t in trials[: trial.number] if t.state.name == "COMPLETE"]
        assert len(before) >= 4 and last >= EPOCHS // 2
        there = np.median([t.intermediate_values[last] for t in before])
        assert min(trial.intermediate_values.values()) > there
    (row,) = sweep.budget([Ledger(one)]).to_dict("records")
    assert row["pruned"] == len(cut) and row["trials"] == 16
    assert row["spared"] == sum(EPOCHS - 1 - max(t.intermediate_values) for t in cut) > 0
    assert row["epochs"] == 16 * EPOCHS - row["spared"]
    assert row["error"] == min(t.value for t in trials if t.state.name == "COMPLETE")


def test_pruned_run_is_started_in_the_store_and_has_another_journal(tmp_path, monkeypatch):
    """Real training: it leaves what it came to."""
    monkeypatch.setattr(
        optuna.pruners.MedianPruner, "prune", lambda self, study, trial: len(trial.intermediate_values) > 1
    )
    one = a_search(tmp_path, 1, pruner="median")
    assert sweep.advance(one) and not sweep.advance(one)
    run = one.run(one.fixed(0))
    table = study.status({("a", 0): run})
    assert table["state"].tolist() == ["started"] and table["epoch"].tolist() == [f"2/{EPOCHS}"]
    assert not run.done() and not run.failure() and not run.busy()
    assert sweep.budget([Ledger(one)])[["pruned", "epochs", "spared"]].values.tolist() == [[1, 2, EPOCHS - 2]]
    assert a_search(tmp_path).folder != one.folder


def test_epochs_from_which_a_run_continues_are_told_to_the_pruner(tmp_path):
    one = a_search(tmp_path, 1)
    run = one.run(one.fixed(0))

    def stop(row):
        if row["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        trainer.fit(run.config, run.folder(), report=stop, save_every=0.0)
    assert sweep.advance(one)
    (trial,) = Ledger(one).trials()
    errors = run.result().epochs["nrmse_mua"].tolist()
    assert list(trial.intermediate_values.values()) == errors[: EPOCHS - 1] and trial.value == errors[-1]


def test_worker_that_is_asked_to_end_leaves_its_trial_to_be_continued(tmp_path, monkeypatch):
    one = a_search(tmp_path, 2)
    with monkeypatch.context() as patch, pytest.raises(workers.Ended):
        patch.setattr(workers, "asked_to_end", iter([False, False, False, True]).__next__)
        sweep.advance(one)
    run = one.run(one.fixed(0))
    assert len(run.so_far()) == 3 and not run.failure()
    assert states(one) == ["RUNNING"]
    assert Ledger(one).left() == 2 and states(one) == ["FAIL"]
    while sweep.advance(one):
        pass
    assert states(one) == ["FAIL", "COMPLETE", "COMPLETE"] and sorted(points_of(one)) == [0, 1]
    alone = trainer.fit(run.config, tmp_path / "alone")
    assert run.result().steps.equals(alone.steps) and run.result().metrics.equals(alone.metrics)


def test_runs_are_grouped_by_their_sweep_and_keep_their_names(tmp_path, trained, monkeypatch):
    asked = []

    def start(config, folder, facts, group):
        asked.append((folder, group))
        return tracking.Tracker()

    monkeypatch.setattr(tracking, "start", start)
    one = a_search(tmp_path)
    sweep.compute([one])
    assert asked == [(one.run(one.fixed(i)).path, f"sweep {one.name}") for i in range(8)]


JUNK = {
    "no JSON": b"junk\n",
    "not UTF-8": b"\xff\xfe\n",
    "another object": b"[1, 2]\n",
    "half of an operation": b'{"op_code":6,"worker_id":"x"}\n',
    "an unknown operation": b'{"op_code":99,"worker_id":"x"}\n',
    "a point out of range": b'{"op_code":4,"worker_id":"x","study_id":0,"datetime_start":null,"datetime_complete":null,'
    b'"state":4,"user_attrs":{"index":1,"point":{"lr":1.0,"weight_decay":0.01,"warmup":0.1}}}\n',
}


@pytest.mark.parametrize("what", JUNK)
def test_damaged_journal_is_one_line_and_nothing_is_lost(tmp_path, trained, what, request):
    one = a_search(tmp_path)
    sweep.compute([one])
    path = one.folder / "journal.log"
    whole = path.read_bytes()
    cut = whole.index(b"\n", len(whole) // 2) + 1
    path.write_bytes(whole[:cut] + JUNK[what] + whole[cut:])
    with pytest.raises(LedgerError) as failure:
        sweep.compute([one])
    assert line(failure).startswith(f"{path}: damaged (")
    assert line(failure).endswith("; remove it to go on: finished runs are in the store and stay")
    path.unlink()
    request.getfixturevalue("nothing_computes")
    sweep.compute([one])
    assert sweep.budget([Ledger(one)])["trials"].tolist() == [8]


@pytest.mark.parametrize("sampler", search.SAMPLERS)
def test_journal_that_is_lost_costs_nothing(tmp_path, trained, sampler):
    one = a_search(tmp_path, 12, sampler)
    sweep.compute([one])
    before = sweep.budget([Ledger(one)])
    shutil.rmtree(one.folder)
    sweep.compute([one])
    assert len(trained) == 12 and sweep.budget([Ledger(one)]).equals(before)


def test_line_that_was_cut_off_is_removed(tmp_path, trained):
    one = a_search(tmp_path)
    sweep.compute([one])
    path = one.folder / "journal.log"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    sweep.compute([one])
    assert len(trained) == 8 and sweep.budget([Ledger(one)])["trials"].tolist() == [8]


def test_error_in_the_journal_does_not_choose_the_winner(tmp_path, trained):
    one = a_search(tmp_path)
    sweep.compute([one])
    before, path = sweep.budget([Ledger(one)]), one.folder / "journal.log"
    for trial in Ledger(one).trials():
        path.write_text(path.read_text().replace(f'"values":[{trial.value}]', f'"values":[{-trial.value}]'))
    assert all(trial.value < 0 for trial in Ledger(one).trials())
    assert sweep.budget([Ledger(one)]).equals(before)


def test_journal_lock_of_a_killed_process_holds_nobody(tmp_path, trained):
    """Optuna's own is a file that stays."""
    one = a_search(tmp_path)
    one.folder.mkdir(parents=True)
    for name in ("lock", "journal.lock", "journal.log.lock"):
        (one.folder / name).touch()
    sweep.compute([one])
    assert len(trained) == 8


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"candidates": ["adamm"]}, "unknown candidate 'adamm'; accepted: adam-constant, "),
        ({"profile": "large"}, "unknown profile 'large'"),
        ({"trials": 0}, "trials = 0: a positive number is accepted"),
        ({"sampler": "grid"}, "unknown sampler 'grid'; accepted: sobol, tpe"),
        ({"pruner": "worst"}, "unknown pruner 'worst'; accepted: none, median"),
    ],
)
def test_bad_input_is_one_line(tmp_path, given, words):
    with pytest.raises(ConfigError) as failure:
        sweep.planned(**({"candidates": ["muon"], "profile": "smoke", "store": tmp_path} | given))
    assert line(failure).startswith(words) and not any(tmp_path.iterdir())
