"""Recorded studies: what is read back says what was recorded, or is refused; which source is taken."""

import csv
import dataclasses
import errno
import functools
import json
import os
from pathlib import Path

import histories
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as scipy_stats
from tiny import Inline, Stop

from dotlib import arms, checkpoint, comparison, config, machine, records, results, study, trainer
from dotlib.config import ConfigError
from dotlib.data import dataset
from dotlib.records import ResultsError

ERRORS = {"nrmse mua": ("nrmse", "mua"), "nrmse musp": ("nrmse", "musp"), "legacy RMSE": ("legacy_rmse", "")}
PAIRS = [("stage1-onecycle", "stage1-adam"), ("legacy-adam", "stage1-adam")]
ARMS = ("stage1-onecycle", "stage1-adam", "legacy-adam")
LINE = "epoch 1, step 3: loss nan, gradient norm inf, learning rate 0.003"
STUDY = "4.2-baseline"
FILES = ("metrics.csv", "epochs.csv", "runs.csv", "about.json")


def run_of(arm, seed, **options):
    return histories.made_up(arms.arm(arm, "smoke", seed), **options)


@pytest.fixture
def found():
    """Three arms, four seeds; one run failed in its second epoch, another in its first."""
    runs = {(arm, seed): run_of(arm, seed) for arm in ARMS for seed in range(4)}
    runs["legacy-adam", 1] = run_of("legacy-adam", 1, curve=[0.7], failed=LINE)
    runs["legacy-adam", 3] = run_of("legacy-adam", 3, failed="epoch 0, step 0: loss nan")
    return results.record(runs, "smoke")


@pytest.fixture
def folder(found, tmp_path):
    records.save(found, tmp_path / "results" / STUDY)
    return tmp_path / "results" / STUDY


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_record_says_the_same_after_the_trip(found, folder):
    loaded = records.load(folder)
    a, b = (comparison.contrasts(r.metrics, PAIRS, ERRORS) for r in (found, loaded))
    for column, tolerance in (
        ("effect, %", 1e-3),
        ("sd of log", 1e-5),
        ("Cohen dz", 1e-3),
        ("p", 1e-4),
        ("Holm p", 1e-4),
    ):
        assert b[column].tolist() == pytest.approx(a[column].tolist(), rel=0, abs=tolerance, nan_ok=True), column
    texts = ["contrast", "error", "lower in", "verdict"]
    assert b[texts].equals(a[texts])
    assert (loaded.profile, loaded.source) == ("smoke", f"results/{STUDY}")
    assert loaded.provenance == found.provenance


def test_loaded_contrast_is_that_of_the_histories(folder):
    """Paired t over seeds, of the numbers that the runs gave."""
    runs = {(arm, seed): run_of(arm, seed) for arm in ARMS[:2] for seed in range(4)}
    table = comparison.contrasts(records.load(folder).metrics, PAIRS[:1], {"nrmse mua": ("nrmse", "mua")})
    logs = {arm: [] for arm in ARMS[:2]}
    for (arm, _), h in runs.items():
        values = h.metrics.set_index(["metric", "channel", "checkpoint"]).sort_index()["value"]
        logs[arm].append(np.log(values["nrmse", "mua", "last"]).mean())
    expected = scipy_stats.ttest_rel(logs["stage1-onecycle"], logs["stage1-adam"])
    assert table["p"].item() == pytest.approx(expected.pvalue, rel=1e-4)


def test_tables_are_those_that_were_recorded(found, folder):
    loaded = records.load(folder)
    keys = ["arm", "seed", "checkpoint", "metric", "channel", "phantom"]
    kept = found.metrics.merge(loaded.metrics, on=keys, how="right", suffixes=("", " loaded"))
    columns = 2 * len(records.COLUMNS) + len(records.OF_LAST)  # of both checkpoints, or of the last
    assert len(kept) == len(loaded.metrics) == 3 * 4 * columns * histories.PHANTOMS
    assert kept["value loaded"].tolist() == pytest.approx(kept["value"].tolist(), rel=1e-5, nan_ok=True)
    pd.testing.assert_frame_equal(loaded.epochs, found.epochs[loaded.epochs.columns.tolist()], rtol=1e-5)
    pd.testing.assert_frame_equal(loaded.runs, found.runs, rtol=1e-5)


def test_failed_runs_survive_the_trip(found, folder):
    loaded = records.load(folder)
    failed = loaded.runs[loaded.runs.failed != ""]
    assert list(zip(failed.arm, failed.seed, failed.failed, strict=True)) == [
        ("legacy-adam", 1, LINE),
        ("legacy-adam", 3, "epoch 0, step 0: loss nan"),
    ]
    assert loaded.runs.steps.tolist() == [4, 4, 4, 4] * 2 + [4, 4, 4, 2]
    lengths = loaded.epochs.groupby(["arm", "seed"]).size()
    assert lengths["legacy-adam", 1] == 1 and ("legacy-adam", 3) not in lengths and lengths["legacy-adam", 0] == 2
    nrmse = loaded.metrics[(loaded.metrics.metric == "nrmse") & (loaded.metrics.checkpoint == "last")]
    worst = nrmse.groupby(["channel", "phantom"])["value"].max()
    for seed in (1, 3):
        rows = nrmse[(nrmse.arm == "legacy-adam") & (nrmse.seed == seed)].set_index(["channel", "phantom"])["value"]
        assert rows.sort_index().equals(worst.sort_index())


def test_bytes_are_the_same_when_saved_again(found, folder, tmp_path):
    records.save(found, tmp_path / "twice")
    records.save(records.load(folder), tmp_path / "loaded")
    assert contents(folder) == contents(tmp_path / "twice") == contents(tmp_path / "loaded")
    assert set(contents(folder)) == set(FILES)


@pytest.mark.parametrize("what", [*FILES, "replace"])
def test_record_that_cannot_be_written_leaves_the_former_or_is_finished(found, folder, monkeypatch, what):
    """A disk that is full at each of its files; a kill between two of them as they take their places."""
    other = dataclasses.replace(found, epochs=found.epochs.assign(train_loss=0.5))
    before, write, replaced = contents(folder), checkpoint.write, []

    def full(path, *arguments, **options):
        if path.name == what:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *arguments, **options)

    def killed(*pair, plain=os.replace):
        if Path(pair[1]).parent == folder:
            replaced.append(pair)
            if len(replaced) == 2:
                raise Stop
        plain(*pair)

    with monkeypatch.context() as patch, pytest.raises((OSError, Stop)):
        patch.setattr(checkpoint, "write", full)
        if what == "replace":
            patch.setattr(records.os, "replace", killed)
            patch.setattr(records.shutil, "rmtree", lambda *arguments, **options: None)  # a killed process does not
        records.save(other, folder)
    if what != "replace":
        assert contents(folder) == before and not records._new(folder).exists()
        return
    assert len(list(records._new(folder).iterdir())) == 3
    assert records.load(folder).epochs["train_loss"].eq(0.5).all() and not records._new(folder).exists()


def test_first_record_that_cannot_be_written_leaves_no_folder(found, tmp_path, monkeypatch):
    """One without about.json would be refused as a damaged record from then on."""
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(checkpoint, "write", lambda *_: 1 / 0)
        records.save(found, tmp_path / "results" / "first")
    assert not list(tmp_path.glob("results/*"))
    records.save(found, tmp_path / "results" / "first")
    assert set(contents(tmp_path / "results" / "first")) == set(FILES)


def test_saving_replaces_what_is_no_larger(found, folder):
    before = contents(folder)
    fewer = dataclasses.replace(found, runs=found.runs[found.runs.seed < 2])
    with pytest.raises(records.ResultsError, match=r"holds 12 runs of profile smoke; remove it to record 6 of smoke"):
        records.save(fewer, folder)
    assert contents(folder) == before
    records.save(fewer, folder.with_name("other"))
    records.save(found, folder.with_name("other"))
    assert contents(folder.with_name("other")) == before
    records.save(dataclasses.replace(fewer, profile="quick"), folder)
    assert len(records.load(folder).runs) == 6
    with pytest.raises(records.ResultsError, match=r"holds 6 runs of profile quick"):
        records.save(found, folder)


def wanted_of(keys, store, data="k"):
    configs = {(arm, seed): arms.arm(arm, "smoke", seed) for arm, seed in keys}
    return {key: study.Run(config=c, data=data, store=store) for key, c in configs.items()}


def test_runs_of_here_and_of_the_record_are_a_whole(tmp_path):
    """Every other run was recorded before: the same bytes as all at once."""
    runs = {(arm, seed): run_of(arm, seed) for arm in ARMS for seed in range(4)}
    keys, wanted = dict.fromkeys(runs, "k"), wanted_of(runs, tmp_path)
    records.save(results.record(runs, "smoke", keys), tmp_path / "whole")
    there = dict(list(runs.items())[::2])
    records.save(results.record(there, "smoke", keys), tmp_path / "half")
    earlier = results.elsewhere(tmp_path / "half", "smoke", wanted)
    assert set(zip(earlier.runs["arm"], earlier.runs["seed"], strict=True)) == set(there)
    here = results.record({key: run for key, run in runs.items() if key not in there}, "smoke", keys)
    records.save(results.joined(here, earlier, wanted), tmp_path / "half")
    assert contents(tmp_path / "half") == contents(tmp_path / "whole")


def test_runs_of_other_phantoms_or_configurations_are_not_taken_over(tmp_path):
    runs = {(arm, seed): run_of(arm, seed) for arm in ARMS for seed in range(2)}
    folder, take = tmp_path / "r", functools.partial(results.elsewhere, tmp_path / "r")
    assert take("smoke", wanted_of(runs, tmp_path)) is None
    records.save(results.record(runs, "smoke"), folder)  # as earlier ones were: which phantoms, is not said
    assert take("smoke", wanted_of(runs, tmp_path)) is None
    records.save(results.record(runs, "smoke", dict.fromkeys(runs, "k")), folder)
    assert len(take("smoke", wanted_of(runs, tmp_path)).runs) == len(runs)
    assert take("smoke", wanted_of(runs, tmp_path, "other")) is None
    assert take("quick", wanted_of(runs, tmp_path)) is None
    other = {key: (key[0], 7) for key in runs}  # of another seed, so of another configuration
    moved = {key: wanted_of([to], tmp_path)[to] for key, to in other.items()}
    assert take("smoke", moved) is None


def test_runs_of_other_test_phantoms_are_not_joined(tmp_path):
    a, b = ({("stage1-adam", seed): run_of("stage1-adam", seed)} for seed in (0, 1))
    made = [results.record(runs, "smoke") for runs in (a, b)]
    made = [dataclasses.replace(r, runs=r.runs.assign(test=t)) for r, t in zip(made, ("x", "y"), strict=True)]
    with pytest.raises(records.ResultsError, match="judged on other phantoms than these runs; remove it"):
        results.joined(*made, [*a, *b])


def test_files_are_plain_tables_without_a_path_of_this_machine(folder, tmp_path):
    for name, content in contents(folder).items():
        text = content.decode("utf-8")
        assert not any(str(path) in text for path in (tmp_path, Path.home(), Path(__file__).parents[1]))
        assert "\r" not in text and text.endswith("\n")
        if name.endswith(".csv"):
            head, *rows = csv.reader(text.splitlines())
            assert rows and {len(row) for row in rows} == {len(head)} and len(set(head)) == len(head)


def test_size_is_a_few_kilobytes_a_run(tmp_path):
    """At the recorded size: 64 test phantoms, 32 epochs."""
    made = {
        ("stage1-adam", seed): histories.made_up(arms.arm("stage1-adam", "quick", seed), phantoms=64)
        for seed in range(5)
    }
    records.save(results.record(made, "quick"), tmp_path / "five")
    size = sum(map(len, contents(tmp_path / "five").values())) / 5
    assert 1000 < size < 8000


def cut(folder, name, length):
    path = folder / name
    path.write_bytes(path.read_bytes()[:length])


def about(folder, **changes):
    path = folder / "about.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def digit(folder, name):
    text = (folder / name).read_text()
    last = max(i for i, letter in enumerate(text) if letter.isdigit())
    (folder / name).write_text(text[:last] + str((int(text[last]) + 1) % 10) + text[last + 1 :])


FAULTS = {
    **{f"{name} missing": (lambda folder, name=name: (folder / name).unlink(), name) for name in FILES},
    **{f"{name} cut": (lambda folder, name=name: cut(folder, name, 100), name) for name in FILES[:3]},
    **{f"{name} empty": (lambda folder, name=name: cut(folder, name, 0), name) for name in FILES[:3]},
    **{f"a digit of {name}": (lambda folder, name=name: digit(folder, name), name) for name in FILES[:3]},
    "csv no text": (lambda folder: (folder / "runs.csv").write_bytes(b"\xff\xfe"), "decode"),
    "about cut": (lambda folder: cut(folder, "about.json", 20), "line 2"),
    "about empty": (lambda folder: cut(folder, "about.json", 0), "Expecting value"),
    "about a list": (lambda folder: (folder / "about.json").write_text("[]"), "is missing"),
    "about a number": (lambda folder: (folder / "about.json").write_text("3"), ""),
    "about without tables": (lambda folder: (folder / "about.json").write_text('{"profile": "smoke"}'), "is missing"),
    "unknown profile": (lambda folder: about(folder, profile="large"), "'smoke', 'quick' or 'full'"),
    "another profile": (lambda folder: about(folder, profile="quick"), "another base configuration than profile quick"),
    "a table unknown": (lambda folder: about(folder, tables={}), "metrics.csv, epochs.csv, runs.csv"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_record_is_one_line(folder, fault):
    damage, part = FAULTS[fault]
    damage(folder)
    with pytest.raises(ResultsError) as error:
        records.load(folder)
    line = str(error.value)
    assert "\n" not in line and line.startswith(f"{folder}: ") and part in line
    assert isinstance(error.value, ValueError)


def test_record_of_another_base_configuration_is_one_line(folder, monkeypatch):
    size = config.PROFILES["smoke"]
    other = dataclasses.replace(size, base=config.replace(size.base, {"model.width": 6}))
    monkeypatch.setitem(config.PROFILES, "smoke", other)
    with pytest.raises(ResultsError, match=r"recorded with another base configuration than profile smoke has$"):
        records.load(folder)


def test_digests_that_look_like_numbers_stay_text(folder):
    assert set(records.load(folder).runs["data"]) == {"000012345678"}
    assert set(records.load(folder).runs["code"]) == {"12345e678901"}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of made-up runs; `store.fill(seeds)` computes those of the study."""
    monkeypatch.setattr(trainer, "fit", histories.fit)
    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    path = tmp_path / "runs"
    path.mkdir()
    return path


def fill(store, seeds, but=0):
    for run in list(study.members(STUDY, "smoke", seeds, store).values())[but:]:
        run.result()


def taken(store, folder, seeds=2, name=STUDY, profile="smoke"):
    return results.evidence(name, profile, seeds, store, folder.parent)


def test_complete_store_comes_first(store, folder):
    fill(store, 2)
    found = taken(store, folder)
    assert found.source == "runs/"
    assert set(found.runs.seed) == {0, 1} and set(found.runs.arm) == set(arms.STUDIES[STUDY].arms)


def test_results_stand_in_for_missing_runs(store, folder, nothing_computes):
    assert taken(store, folder).source == f"results/{STUDY}"


def test_results_stand_in_for_one_missing_run(store, folder):
    fill(store, 2, but=1)
    assert taken(store, folder).source == f"results/{STUDY}"


def test_without_either_there_is_none(store, tmp_path, nothing_computes):
    assert taken(store, tmp_path / "empty" / STUDY) is None
    assert taken(store, tmp_path / "empty" / STUDY, name="4.3-factorial") is None  # its tuning is not computed
    assert taken(store, tmp_path / "empty" / STUDY, name="4.3-additions") is None  # nor does it fit


def test_study_that_is_not_tuned_here_comes_from_results(store, found, tmp_path, nothing_computes):
    records.save(found, tmp_path / "results" / "4.3-factorial")
    there = tmp_path / "results" / "4.3-factorial"
    assert taken(store, there, name="4.3-factorial").source == "results/4.3-factorial"


def test_damaged_results_are_no_missing_ones(store, folder, nothing_computes):
    (folder / "runs.csv").unlink()
    with pytest.raises(ResultsError):
        taken(store, folder)


def test_evidence_of_an_unknown_study_is_one_line(store, folder):
    with pytest.raises(ConfigError, match=r"^unknown study '4\.9'; accepted: 4\.2-baseline"):
        taken(store, folder, name="4.9")


@pytest.mark.parametrize(
    ("name", "tuned", "expected"),
    [(STUDY, False, [STUDY]), ("4.3-ends", False, ["4.3-tuning", "4.3-ends"]), ("4.3-ends", True, ["4.3-ends"])],
)
def test_full_profile_is_computed_on_a_gpu_after_its_tuning(store, folder, monkeypatch, name, tuned, expected):
    asked = []

    def computed(name, profile, seeds, store):
        asked.append(name)
        return {(arm, 0): run_of(arm, 0) for arm in ARMS}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "precision", lambda wanted, on: torch.float32)
    monkeypatch.setattr(study, "results", computed)
    if tuned:
        monkeypatch.setattr(study, "tuned", lambda candidate, profile, store: arms.ADAM)
    assert taken(store, folder, 1, name, "full").source == "runs/"
    assert asked == expected


@pytest.mark.parametrize(("name", "expected"), [("4.3-tuning", 0), ("4.5-best", 0), ("4.4-gates", 4)])
def test_study_of_one_run_an_arm_keeps_to_it_whatever_seeds_are_asked_for(store, folder, monkeypatch, name, expected):
    asked = []
    monkeypatch.setattr(study, "members", lambda name, profile, seeds, store: asked.append(seeds) or {})
    taken(store, folder, 4, name)
    assert asked == [expected]


def test_runs_judged_on_different_phantoms_are_no_record():
    """Runs of earlier code do not name theirs."""
    runs = {(arm, seed): run_of(arm, seed) for arm in ARMS[:2] for seed in range(2)}
    first = next(iter(runs.values()))
    del first.info["test"]
    assert len(results.record(runs, "smoke").runs) == 4
    first.info["test"] = "another"
    with pytest.raises(ResultsError, match="4 runs were judged on 2 test sets: one is accepted"):
        results.record(runs, "smoke")


RECORDED = [path.name for path in sorted((config.root() / "results").iterdir()) if path.name in arms.STUDIES]


@pytest.mark.parametrize("name", RECORDED)
def test_record_is_of_the_arms_and_phantoms_that_the_code_has(name):
    """Not of arms that were changed since; tuned ones depend on their tuning, and are left out."""
    found, keys = records.load(config.root() / "results" / name), functools.cache(dataset.key)
    assert set(found.runs["arm"]) <= set(arms.STUDIES[name].arms)
    rows = [row for row in found.runs.to_dict("records") if not arms.ARMS[row["arm"]].tuned]
    for row in rows:
        precision = machine.named(getattr(torch, row["precision"]))
        made = config.replace(arms.arm(row["arm"], found.profile, row["seed"]), {"training.precision": precision})
        assert made.digest() == row["config"], row["arm"]
        assert row.get("key", "") in ("", study.data_of(made, keys)), row["arm"]  # earlier records have none
    assert rows or name == "4.3-factorial"  # all of which are tuned


CSV = {
    "no text": b"\xff\xfe\x00",
    "nothing": b"",
    "no table": b'arm,seed\n"a,1\n',
    "more fields than names": b"arm,seed\na,1,2,3\n",
    "a phantom without a number": b"arm,seed,checkpoint,metric,channel,x\na,0,last,nrmse,mua,1\n",
    "a value without a number": b"arm,seed,checkpoint,metric,channel,0\na,0,last,nrmse,mua,high\n",
    "more columns than a table may have": b"a," * 10**5 + b"a\n",
    "no columns": b"\n\n\n",
}


@pytest.mark.parametrize("name", records.TABLES)
@pytest.mark.parametrize("harm", CSV)
def test_table_that_is_none_beside_its_digest_is_one_line(folder, name, harm):
    path = folder / f"{name}.csv"
    path.write_bytes(CSV[harm])
    about = json.loads((folder / "about.json").read_text())
    about["tables"][name] = records._digest(CSV[harm].decode(errors="replace"))
    (folder / "about.json").write_text(json.dumps(about))
    with pytest.raises(records.ResultsError) as error:
        records.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize("about", ["", "[]", "7", "[" * 10**5, '{"profile": "quick"}', '{"runs": ' + "9" * 5000 + "}"])
def test_about_that_is_none_is_one_line(folder, about):
    (folder / "about.json").write_text(about)
    with pytest.raises(records.ResultsError) as error:
        records.load(folder)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{folder}: ")


def test_record_of_huge_files_is_refused_unread(folder):
    with (folder / "runs.csv").open("ab") as file:
        file.truncate(records.MOST + 1)
    with pytest.raises(records.ResultsError, match=rf"runs\.csv has {records.MOST + 1} bytes"):
        records.load(folder)
