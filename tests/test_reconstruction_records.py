"""Records of judged reconstructions: written, read again, joined, and kept from being lost."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from dotlib import reconstruction_records as records
from dotlib.reconstruction_judgement import LESIONS, RUN
from dotlib.reconstruction_records import COLUMNS, KEYS, TRUTH, Reconstructed
from dotlib.records import ResultsError

OURS, THEIRS = "reconstruct", "reconstruct-blind"


def lesions_of(arm, seed):
    return pd.DataFrame([[arm, seed, c, 1e-3, 0.5, 0.25, c == "mua"] for c in ("mua", "musp")], columns=LESIONS)


def made_up(runs, truth=0.25, failed=(), sets=("home", "none"), **changes):
    """A record of runs (arm, seed) and of the truth: two phantoms a set, values of their own, one that does not exist.

    Of set "none" the blind network has no row; in phantom 1 nothing has a contrast.
    """
    rows, chance, whole = [], np.random.default_rng(len(runs)), [run for run in runs if run not in failed]
    for arm, seed in [*whole, (TRUTH, 0)]:
        for name in sets:
            for metric, inclusion in (("nrmse", -1), ("crc", 0)) if arm != TRUTH else (("contrast", 0),):
                if arm == THEIRS and name == "none":
                    continue
                for phantom in (0, 1):
                    value = truth if arm == TRUTH else chance.uniform()
                    there = phantom == 0 or metric == "nrmse"
                    rows.append([arm, seed, name, metric, "mua", phantom, inclusion, value if there else np.nan])
    for arm, seed in whole:  # one without a value, beside others with one
        rows.append([arm, seed, "home", "localisation", "musp", 1, 2, np.nan if (arm, seed) == (OURS, 0) else 3.5])
    table = pd.DataFrame(
        [[arm, seed, "diverged" if (arm, seed) in failed else "", "12345e67", "0123", "00990011", "1e5", 7, 48]
         for arm, seed in runs], columns=RUN,
    )  # fmt: skip
    fields = {
        "values": pd.DataFrame(rows, columns=COLUMNS),
        "lesions": pd.concat([lesions_of(*run) for run in whole], ignore_index=True),
        "calibration": pd.DataFrame([["covered", "mua", 0, 0.001, 0.002, 0.07, 99, True, 1.5]],
                                    columns=["part", "channel", "bin", "sd", "rmse", "beyond", "n", "scaled", "scale"]),
        "times": pd.DataFrame([["fit", 0.5, 4, 1]], columns=["step", "seconds", "n", "threads"]),
        "runs": table, "profile": "quick", "source": "runs/",
    }  # fmt: skip
    return Reconstructed(**fields | changes)


def by_key(found):
    return found.values.set_index(["arm", "seed", *KEYS])["value"].sort_index()


@pytest.fixture
def record():
    return made_up([(OURS, 0), (OURS, 1), (THEIRS, 0)])


def test_record_is_read_as_it_was_written(record, tmp_path):
    """To six digits. A value that does not exist is there as NaN, a row that no run has is not."""
    records.save(record, tmp_path / "results" / "4.6-judged")
    found = records.load(tmp_path / "results" / "4.6-judged")
    before, after = by_key(record), by_key(found)
    gone = before.index.difference(after.index)
    assert not after.index.difference(before.index).size and before[gone].isna().all()
    assert set(gone.droplevel(["arm", "seed"])) == {
        (name, metric, "mua", 1, 0) for name in ("home", "none") for metric in ("contrast", "crc")
    }
    pd.testing.assert_series_equal(after, before[after.index], rtol=1e-5)
    missing = after.index[after.isna()]
    assert missing.tolist() == [(OURS, 0, "home", "localisation", "musp", 1, 2)]
    for name in ("lesions", "calibration", "times", "runs"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(record, name), check_dtype=False, obj=name)
    assert (found.profile, found.source) == ("quick", "results/4.6-judged")
    assert found.values.columns.tolist() == COLUMNS and found.values["seed"].dtype.kind == "i"


def test_cell_that_was_not_judged_is_no_value(record, tmp_path):
    """The blind network has no row in a set that it was not given."""
    records.save(record, tmp_path / "one")
    found = records.load(tmp_path / "one").values
    assert set(found[found["arm"] == THEIRS]["set"]) == {"home"} and set(found["set"]) == {"home", "none"}


def test_digests_stay_text(record, tmp_path):
    records.save(record, tmp_path / "one")
    run = records.load(tmp_path / "one").runs.iloc[0]
    assert (run.config, run.key, run.code, run.test, run.failed) == ("12345e67", "0123", "00990011", "1e5", "")


def test_second_writing_changes_no_byte(record, tmp_path):
    records.save(record, tmp_path / "one")
    records.save(records.load(tmp_path / "one"), tmp_path / "two")
    for name in records.TABLES:
        assert (tmp_path / "one" / f"{name}.csv").read_bytes() == (tmp_path / "two" / f"{name}.csv").read_bytes(), name


def test_record_without_an_ensemble_is_read(record, tmp_path):
    less = dataclasses.replace(record, calibration=record.calibration[:0], lesions=record.lesions[:0])
    records.save(less, tmp_path / "one")
    found = records.load(tmp_path / "one")
    assert found.calibration.empty and found.lesions.empty and found.lesions.columns.tolist() == LESIONS


def test_provenance_and_phantoms_are_those_of_the_runs(record):
    assert record.provenance["test phantoms"] == "1e5"
    assert record.provenance[f"{OURS}, seed 1"] == "12345e67, code 00990011" and len(record.provenance) == 4
    assert record.metrics["phantom"].tolist() == [0, 1]


def refused(call, *arguments):
    with pytest.raises(ResultsError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_larger_record_is_not_lost(record, tmp_path):
    records.save(record, tmp_path / "one")
    before = (tmp_path / "one" / "values.csv").read_bytes()
    assert "holds 3 runs of profile quick" in refused(records.save, made_up([(OURS, 0)]), tmp_path / "one")
    smoke = dataclasses.replace(record, profile="smoke")
    assert "remove it to record 3 of smoke" in refused(records.save, smoke, tmp_path / "one")
    assert (tmp_path / "one" / "values.csv").read_bytes() == before
    records.save(made_up([(OURS, seed) for seed in range(4)]), tmp_path / "one")
    assert len(records.load(tmp_path / "one").runs) == 4


def test_changed_record_is_refused(record, tmp_path):
    records.save(record, tmp_path / "one")
    path = tmp_path / "one" / "lesions.csv"
    path.write_text(path.read_text().replace("0.25", "0.20"))
    assert "lesions.csv changed" in refused(records.load, tmp_path / "one")


def test_joined_takes_over_the_runs_that_are_not_there(record, tmp_path):
    """And leaves its own as they are."""
    records.save(record, tmp_path / "one")
    earlier = records.load(tmp_path / "one")
    own = made_up([(OURS, 0), (OURS, 2)])
    found = records.joined(own, earlier)
    after, mine, theirs = by_key(found), by_key(own), by_key(earlier)
    assert after.index.is_unique
    pd.testing.assert_series_equal(after[mine.index], mine)
    more = after[after.index.difference(mine.index)]
    assert set(more.index.droplevel(KEYS)) == {(OURS, 1), (THEIRS, 0)}
    pd.testing.assert_series_equal(more, theirs[more.index])
    assert sorted(zip(found.runs["arm"], found.runs["seed"], strict=True)) == [
        (OURS, 0), (OURS, 1), (OURS, 2), (THEIRS, 0),
    ]  # fmt: skip
    assert len(found.lesions) == 8 and not found.lesions.duplicated(["arm", "seed", "channel"]).any()
    assert found.calibration is own.calibration and found.source == own.source


def test_run_that_failed_takes_over_no_values(record):
    """A run's row and its values are of one training."""
    own = made_up([(OURS, 0), (OURS, 1)], failed=[(OURS, 1)])
    found = records.joined(own, record)
    assert set(found.values["arm"] + " " + found.values["seed"].astype(str)) == {
        f"{OURS} 0", f"{THEIRS} 0", f"{TRUTH} 0",
    }  # fmt: skip
    assert found.runs.set_index(["arm", "seed"])["failed"][OURS, 1] == "diverged"


def test_calibration_and_times_are_taken_over_together(record):
    own = made_up([(OURS, 0)])
    own = dataclasses.replace(own, calibration=own.calibration[:0], times=own.times.assign(seconds=9.0))
    found = records.joined(own, record)
    assert found.calibration is record.calibration and found.times is record.times


def test_other_phantoms_are_not_joined(record):
    other = made_up([(OURS, 0)], truth=0.26)
    assert refused(records.joined, other, record).startswith("runs/: judged on other phantoms")


def test_other_numbers_of_phantoms_are_not_joined(record):
    own = made_up([(OURS, 2)])
    fewer = dataclasses.replace(own, values=own.values[own.values["phantom"] == 0])
    for pair in ((fewer, record), (record, fewer)):
        assert refused(records.joined, *pair).startswith("runs/: judged on other phantoms")


def test_what_else_is_true_of_a_set_is_kept(record):
    """Facts that one judgement has and the other has not, as what readings tell of an inclusion."""
    fact = record.values[record.values["arm"] == TRUTH].assign(metric="crc_sd_noise", value=0.5)
    known = dataclasses.replace(record, values=pd.concat([record.values, fact]))
    for found in (records.joined(made_up([(OURS, 2)]), known), records.joined(known, made_up([(OURS, 2)]))):
        assert len(found.chosen(TRUTH, "home", "crc_sd_noise", "mua")) == 2
        assert by_key(found).index.is_unique


def test_run_does_not_lose_a_set(record):
    line = refused(records.joined, made_up([(OURS, 0), (OURS, 2)], sets=("home",)), record)
    assert line.startswith(f"runs/: {OURS}, seed 0, was judged on none too")


def test_other_runs_may_have_other_sets(record):
    """A set that one of both has is taken with all that was judged on it, and what both have from the new one."""
    more, other = "reconstruct-more", "Tikhonov"
    own = made_up([(more, 0), (more, 1), (other, 0)], sets=("home", "deep"))
    own = dataclasses.replace(own, runs=own.runs[:2])
    earlier = made_up([(OURS, 0), (OURS, 1), (THEIRS, 0), (other, 0)])
    earlier = dataclasses.replace(earlier, runs=earlier.runs[:3])
    found = records.joined(own, earlier)
    sets = found.values.groupby(["arm", "seed"])["set"].agg(lambda names: sorted(set(names))).to_dict()
    assert sets == {
        (OURS, 0): ["home", "none"], (OURS, 1): ["home", "none"], (THEIRS, 0): ["home"],
        (more, 0): ["deep", "home"], (more, 1): ["deep", "home"],
        (other, 0): ["deep", "home", "none"], (TRUTH, 0): ["deep", "home", "none"],
    }  # fmt: skip
    after, mine, theirs = by_key(found), by_key(own), by_key(earlier)
    assert after.index.is_unique
    pd.testing.assert_series_equal(after[mine.index], mine)
    rest = theirs.index.difference(mine.index)
    pd.testing.assert_series_equal(after[rest], theirs[rest])
    assert len(after) == len(mine) + len(rest)
    assert len(found.runs) == 5 and len(found.lesions) == 12


def test_chosen_are_the_rows_of_one_method_set_metric_and_channel(record):
    rows = record.chosen(OURS, "home", "nrmse", "mua")
    assert set(rows["seed"]) == {0, 1} and len(rows) == 4
    assert all(rows[name].eq(value).all() for name, value in [("arm", OURS), ("set", "home"), ("metric", "nrmse")])
    parts = record.values.groupby(["arm", "set", "metric", "channel"]).groups
    assert sum(len(record.chosen(*key)) for key in parts) == len(record.values)


def test_chosen_of_what_was_not_judged_is_empty_with_its_columns(record):
    rows = record.chosen(THEIRS, "none", "nrmse", "mua")
    assert rows.empty and rows.columns.tolist() == COLUMNS
    other = dataclasses.replace(record, values=record.values[record.values["arm"] == TRUTH])
    assert other.chosen(OURS, "home", "nrmse", "mua").empty and len(record.chosen(OURS, "home", "nrmse", "mua")) == 4
