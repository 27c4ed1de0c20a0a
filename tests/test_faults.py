"""What benchmarks/faults.py does to commands, a few of each kind; and that its checkers notice what they look for."""

import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
from tiny import a_run

from dotlib import checkpoint
from dotlib.__main__ import main
from dotlib.data import simulate

ROOT = Path(__file__).resolve().parents[1]
FEW = {"regions": 6, "cuts": 3}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def faults():
    """The benchmark, with what it does in `disturbed`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import faults

        yield faults


@pytest.fixture(scope="module")
def known(faults, tmp_path_factory):
    return faults.kills.Undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def done(one_thread, tmp_path_factory):
    """A project with one finished run. Not to be changed."""
    folder = tmp_path_factory.mktemp("done")
    a_run(folder / "runs").result()
    return folder


def ended(code=0, err="", out=""):
    from disturbed.project import Ended

    return Ended(code, out, err, 1.0)


def told(*words):
    return [(float(i), 1, tuple(one.split())) for i, one in enumerate(words)]


# the checkers, each with a violation that is planted


@pytest.mark.parametrize(
    ("events", "needless", "epochs", "phantoms"),
    [
        (("epoch r 0", "epoch r 0", "kept r 1", "epoch r 1"), 0, 1, 0),  # killed in its first epoch
        (("epoch r 0", "kept r 1", "epoch r 0"), 1, 1, 0),
        (("epoch r 0", "kept r 1", "result r", "epoch r 1"), 1, 0, 0),
        (("epoch r 0", "kept r 1", "epoch s 0"), 0, 0, 0),  # another run
        (("shard x 0 4", "shard x 0 4", "made x 0", "shard x 4 2"), 0, 0, 4),
        (("shard x 0 4", "made x 0", "shard x 0 4"), 1, 0, 4),
    ],
)
def test_work_that_is_done_twice_is_counted_and_needless_where_it_was_kept(faults, events, needless, epochs, phantoms):
    from disturbed.compare import Work

    found = Work(told(*events))
    assert (len(found.needless), found.epochs_again, found.phantoms_again) == (needless, epochs, phantoms)
    row = faults.Row("", "")
    assert row.attempt(row.work(found)) == (not needless) == row.good
    assert (row.needless, row.tried, row.survived) == (needless, 1, 1 - needless)


def test_finished_things_that_are_gone_or_others_are_lost(faults):
    row = faults.Row("", "")
    assert row.gone({"a": "1"}, {"a": "1", "b": "2"}) == [] and row.lost == 0
    assert row.gone({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "x"}) == ["lost: b", "lost: c"] and row.lost == 2


def test_score_fails_where_nothing_was_tried_or_one_was_not_survived(faults):
    rows = [faults.Row("a", "", skipped="no such command"), faults.Row("b", ""), faults.Row("c", "")]
    rows[2].attempt([]), rows[2].attempt(["lost it"], "store 1")
    assert [row.good for row in rows] == [True, False, False]
    text = faults.score.table(rows)
    assert "not there: no such command" in text and text.endswith("c: store 1: lost it")
    assert rows[2].record()["notes"] == ["store 1: lost it"]


@pytest.mark.parametrize("change", ["", "weights", "result", "table", "dataset"])
def test_comparison_notices_what_is_not_the_same(faults, done, tmp_path, change):
    from disturbed import compare

    shutil.copytree(done / "runs", tmp_path / "runs")
    (book := tmp_path / "build" / "smoke" / "figures").mkdir(parents=True)
    run = a_run(tmp_path / "runs")
    (book / "a.csv").write_text("n,samples/s\n3,9.5\n")
    (tmp_path / "x.h5").write_bytes(b"1")
    before, path = compare.left(tmp_path), run.path / "best.pt"
    assert len(before) == 5
    (book / "a.csv").write_text("n,samples/s\n3,7.25\n")  # the clock's
    if change == "weights":
        state = checkpoint.load(path, run.config.digest())
        name = next(name for name, tensor in state["judged"].items() if tensor.is_floating_point())
        state["judged"][name] = state["judged"][name] * (1 + 1e-6)
        checkpoint.save(path, state, run.config.digest(), run.config.model_dump_json())
    elif change == "result":
        (run.path / "history.pt").unlink()
    elif change == "table":
        (book / "a.csv").write_text("n,samples/s\n4,9.5\n")
    elif change == "dataset":
        (tmp_path / "x.h5").write_bytes(b"2")
    found = compare.differences(compare.left(tmp_path), before)
    assert len(found) == {"": 0, "weights": 1, "result": 3, "table": 1, "dataset": 1}[change]


LINE = "dotlib: a, seed 0: [Errno 28] No space left on device: 'runs/r/last.pt'\n"


@pytest.mark.parametrize(
    ("end", "good"),
    [
        ((1, LINE), True),
        ((0, LINE), False),  # it says that it went well
        ((1, LINE * 2), False),
        ((1, ""), False),
        ((1, "dotlib: [Errno 28] No space left on device\n"), False),  # of which file?
        ((1, "dotlib: runs/r/last.pt could not be written\n"), False),  # why?
        ((1, "Traceback (most recent call last):\n" + LINE), False),
    ],
)
def test_message_of_a_full_disk_is_one_line_with_file_and_reason(faults, end, good):
    assert (faults.disk.message(ended(*end), "runs/left-1/.last.pt.123") == []) == good


@pytest.mark.parametrize(("named", "good"), [((), False), (("no.log",), False), (("no.log", "last.pt"), True)])
def test_message_of_a_full_disk_names_one_of_the_files_that_were_to_be_written(faults, named, good):
    assert (faults.disk.message(ended(1, LINE), "runs/sweeps/a/journal.log", named) == []) == good


def test_progress_is_no_message(faults):
    bar = "runs:   0%|   | 0/4 [00:00<?, ?run/s]\rruns: 100%|██| 4/4 [00:01<00:00,  2.00run/s]\n"
    assert ended(err=f"{bar}\nx.h5: 24 of 24 phantoms to simulate, about 00:03 on 2 core(s)\n").lines == []
    assert ended(err=f"{bar}dotlib: no\n").lines == ["dotlib: no"]
    assert ended(err=f"{bar.strip()}dotlib: no\n").lines == ["dotlib: no"]  # of a worker, beside its driver's bar


def test_damage_that_is_trusted_is_noticed(faults, tmp_path):
    """A reader that looks at nothing passes neither bytes nor cuts; one that verifies passes all."""
    damage, path, row = faults.damage, tmp_path / "file", faults.Row("", "")
    path.write_bytes(bytes(range(200)))
    whole = damage.compare.digest(path.read_bytes())
    damage.judged(row, "file", path, lambda: damage.noticed(path.read_bytes, (ValueError,), whole), random.Random(0))
    assert (row.tried, row.survived) == (80, 0) and "other values were trusted" in row.notes[0]

    def refuse():
        raise ValueError("a\nb")

    assert damage.noticed(refuse, (ValueError,), whole) == "2 lines"
    assert damage.noticed(lambda: bytes(range(200)), (ValueError,), whole) == "harmless"
    assert path.read_bytes() == bytes(range(200))


def test_every_region_is_damaged_once(faults, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(640))
    regions = [path.read_bytes() for _ in faults.damage.harmed(path, random.Random(1))]
    places = [next(i for i, byte in enumerate(raw) if byte) // 10 for raw in regions[:64]]
    assert places == list(range(64)) and all(sum(map(bool, raw)) == 1 for raw in regions[:64])
    assert [len(raw) // 40 for raw in regions[64:]] == list(range(16)) and path.read_bytes() == bytes(640)


def test_use_of_a_closed_folder_that_is_silent_or_a_traceback_is_noticed(faults):
    places = faults.places
    closed = places.USES["simulate"]
    assert places._problems(closed, ended(2, "dotlib: data/x.h5: Read-only file system\n")) == []
    for one in (ended(), ended(2, "dotlib: data/x.h5: no\n"), ended(1, "Traceback (most recent call last):\n")):
        assert places._problems(closed, one)
    assert places._problems(places.USES["status"], ended(out="tiny 0 done")) == []
    assert places._problems(places.USES["status"], ended(out="tiny 0 missing"))


def test_moments_cover_the_command_by_its_clock_and_by_what_it_told(faults):
    times = [0.0, 1.0, 9.9, 9.91, 9.92, 9.93]
    found = faults.kills.moments(times, 10.0, 40, random.Random(0))
    assert len(found) == 40 and found != faults.kills.moments(times, 10.0, 40, random.Random(1))
    assert sum(moment.told > 2 for moment in found) > 8 and sum(moment.seconds > 1 for moment in found) > 8
    assert found == faults.kills.moments(times, 10.0, 40, random.Random(0))


def test_command_that_ends_otherwise_is_not_called_undisturbed(faults, tmp_path, monkeypatch):
    monkeypatch.setattr(faults.kills.Project, "start", lambda *a, **o: SimpleNamespace(
        told=SimpleNamespace(since=0), end=lambda: ended(1, "dotlib: no such study\n")))  # fmt: skip
    with pytest.raises(RuntimeError, match="without any fault it ended with 1"):
        faults.kills.Undisturbed(tmp_path).of(("study", "no"))


# what dotlib does about them


def test_damaged_files_of_a_run_are_noticed(faults, done, tmp_path):
    row = faults.damage.of_runs(tmp_path, done, random.Random(0), **FEW)
    assert row.good and row.tried == 6 * 9, row.notes


def test_damaged_dataset_is_not_called_simulated(recorded, tmp_path, monkeypatch, capsys):
    """By the command that finds it in its place."""
    path = Path(shutil.copy(recorded, tmp_path / "x.h5"))
    monkeypatch.setattr(simulate, "simulate", lambda *arguments: None)
    assert main(["simulate", "--profile", "smoke", "--out", str(path)]) == 0
    with h5py.File(path) as file:
        at = file["phase"].id.get_chunk_info(0).byte_offset + 5
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    assert main(["simulate", "--profile", "smoke", "--out", str(path)]) == 2
    assert "x.h5: phase: phantoms 0-15 are damaged (checksum)" in capsys.readouterr().err


LATE = """
import time
from dotlib import workers
class Late:
    def __del__(self):
        print("late", flush=True)
        time.sleep(1)
late = Late()
workers.end_when_terminated()
"""


def test_command_that_is_asked_to_end_as_python_ends_is_done():
    """By then the handlers of signals are gone: it would end as a killed one."""
    process = subprocess.Popen([sys.executable, "-c", LATE], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "late\n"
    process.terminate()
    assert process.wait(60) == 0
    process.stdout.close()


def test_killed_run_ends_as_an_undisturbed_one(faults, known, tmp_path):
    row = faults.kills.run("fit", 2, 0, tmp_path, known)
    assert row.good and row.tried == 2 and row.lost == row.needless == 0, row.notes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simulate", "simulate, a worker", "study", "study, a worker"])
def test_killed_command_ends_as_an_undisturbed_one(faults, known, tmp_path, name):
    row = faults.kills.run(name, 4, 0, tmp_path, known)
    assert row.good and row.lost == row.needless == 0, row.notes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["study", "study, group", "study, twice", "simulate", "simulate, group"])
def test_command_that_is_asked_to_end_does_and_continues(faults, known, tmp_path, name):
    row = faults.requests.run(name, 2, 0, tmp_path, known)
    assert row.good and row.epochs_again == 0, row.notes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shard", "merged dataset", "config.json", "last.pt", "history.pt", "W&B"])
def test_full_disk_is_one_line_and_the_command_continues(faults, known, tmp_path, name):
    row = faults.disk.run(name, tmp_path, known)
    assert row.good, row.notes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["study", "simulate"])
def test_two_drivers_compute_everything_once(faults, known, tmp_path, name):
    row = faults.pairs.run(name, 1, 0, tmp_path, known)
    assert row.good, row.notes


@pytest.mark.slow
def test_worker_without_memory_takes_nobody_along(faults, known, tmp_path):
    for row in faults.memory.run(tmp_path, known):
        assert row.good, row.notes


@pytest.mark.slow
def test_network_that_hangs_delays_a_run_by_no_more_than_patience(faults, known, tmp_path):
    row = faults.network.run(tmp_path, known)
    assert row.good, row.notes


@pytest.mark.slow
def test_damaged_data_are_noticed(faults, tmp_path):
    row = faults.damage.of_data(tmp_path / "data", random.Random(0), regions=16, cuts=8)
    assert row.good, row.notes


@pytest.mark.slow
def test_closed_folders(faults, tmp_path):
    template = faults.Templates(tmp_path / "made")["done"]
    (template / "data").mkdir()
    uses = ("status", "runs ls", "study, finished", "study --on nowhere --record", "study", "simulate")
    row = faults.places.run(tmp_path / "places", template, uses)
    assert row.good, row.notes
    shutil.rmtree(template)
