"""W&B runs, read back with wandb's own reader."""

import importlib.util
import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from dotlib import tracking
from dotlib.config import PROFILES, ConfigError

CONFIG = PROFILES["smoke"].base
FACTS = {"data key": "d1", "commit": "c1", "versions": {"torch": "2.9"}}
COLUMNS = ("loss", "gradient_norm", "scale", "lr", "beta1", "weight_decay")


def told(epoch, salt=0, per_epoch=3):
    """What the training loop tells of an epoch: row, steps by global number, pictures of numbers on a grid of 1/255."""
    rng = np.random.default_rng([epoch, salt])
    row = {"epoch": epoch, "train_loss": rng.random(), "skipped": 2, "gpu_mb": math.nan}
    index = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    steps = pd.DataFrame(rng.random((per_epoch, len(COLUMNS))), index, COLUMNS)
    slices = {name: rng.integers(0, 256, (5, 6)) / 255 for name in ("truth mua", "predicted/mua")}
    return row, steps, slices


def written(folder):
    """The files of W&B's runs in a folder, oldest first."""
    return sorted((folder / "wandb").glob("*run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def records(path):
    """All records of a W&B run's file, as dictionaries {"type": kind, kind: content}, by wandb's own reader."""
    reader = Path(importlib.util.find_spec("wandb").origin).parent / "bin" / "wandb-core"  # of `wandb leet inspect`
    command = [reader, "leet", "inspect", "-json", "-no-observability", "-run-file", path]
    found = subprocess.run(command, env=os.environ | {"HOME": str(path.parent)}, capture_output=True, text=True)
    return [json.loads(line) for line in found.stdout.splitlines()]


def of_kind(kind, found):
    return [record[kind] for record in found if record["type"] == kind]


def history(found):
    return [record["item"] for record in of_kind("history", found)]


def track(folder, epochs, salt=0, mode="offline", **options):
    """Track epochs; the records that this leaves, and the file that holds them."""
    tracker = tracking.start(CONFIG, folder, FACTS, mode, **options)
    for epoch in epochs:
        tracker.epoch(*told(epoch, salt))
    tracker.finish()
    path = written(folder)[-1]
    return records(path), path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two epochs, continued from the end of the first with other numbers: its folder, both times' records."""
    folder = tmp_path_factory.mktemp("run") / "new"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_PROJECT", "WANDB_ENTITY"):
            patch.delenv(name, raising=False)
        return folder, track(folder, (0, 1)), track(folder, (1, 2), salt=1)


def same(found, expected):
    """Equal numbers; W&B's files hold NaN as a word."""
    return math.isnan(float(found)) if isinstance(expected, float) and math.isnan(expected) else found == expected


def test_tracking_gives_back_every_number(run):
    found = history(run[1][0] + run[2][0])
    rows = {item["step"]: item for item in found}
    assert len(rows) == len(found) == 9
    for epoch, salt in ((0, 0), (1, 0), (2, 1)):
        row, steps, _ = told(epoch, salt)
        for number, values in steps.iterrows():
            assert {name: rows[number][f"step/{name}"] for name in COLUMNS} == dict(values)
        end = rows[steps.index[-1]]
        assert end["epoch"] == epoch
        assert all(same(end[f"epoch/{name}"], value) for name, value in row.items() if name != "epoch")
    ends = [number for number, item in rows.items() if "epoch" in item]
    assert ends == [2, 5, 8]


def test_tracking_continues_one_run(run):
    folder, (first, one), (second, other) = run
    assert one != other
    assert [head["run_id"] for head in of_kind("run", first + second)] == [tracking.run_id(CONFIG, folder)] * 2
    steps = [item["_step"] for item in history(first + second)]
    assert steps == list(range(9)), "W&B takes a step only if it is higher than those before"


def test_run_id_tells_configurations_and_folders_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = [tracking.run_id(c, Path(f)) for c in (CONFIG, PROFILES["quick"].base) for f in ("a", "b")]
    assert len(set(ids)) == 4
    assert tracking.run_id(CONFIG, tmp_path / "a") == ids[0]


def test_tracking_records_configuration_and_facts(run):
    head = of_kind("run", run[1][0])[0]
    config = head["config"]["update"]
    assert {name: config[name] for name in CONFIG.model_dump()} == CONFIG.model_dump(mode="json")
    assert config["facts"] == FACTS
    named = head["project"], head["run_group"], head["display_name"]
    assert named == ("dotlib", "autoencode stage1", "adamw onecycle 0")


def test_run_is_in_the_group_that_is_asked_for_and_keeps_its_name(tmp_path):
    head = of_kind("run", track(tmp_path / "new", (0,), group="sweep quick-muon-sobol")[0])[0]
    assert (head["run_group"], head["display_name"]) == ("sweep quick-muon-sobol", "adamw onecycle 0")
    assert head["run_id"] == tracking.run_id(CONFIG, tmp_path / "new")


def test_tracking_draws_steps_over_steps_and_epochs_over_epochs(run):
    metrics = of_kind("metric", run[1][0])
    assert {m["glob_name"]: m["step_metric"] for m in metrics if "glob_name" in m} == {
        "step/*": "step",
        "epoch/*": "epoch",
    }


def pictures(found, path):
    """Name and pixels of each picture that records name, by epoch."""
    kept = {}
    for item in history(found):
        for name in [name for name in item if name.startswith("slices/") and name.endswith("path")]:
            with Image.open(path.parent / "files" / item[name]) as picture:
                kept.setdefault(item["epoch"], {})[name.removesuffix(".path")] = np.asarray(picture)
    return kept


def test_tracking_keeps_pictures(run):
    kept = pictures(*run[1]) | pictures(*run[2])
    assert list(kept) == [0, 1, 2]
    for epoch, salt in ((0, 0), (1, 0), (2, 1)):
        for name, picture in told(epoch, salt)[2].items():
            np.testing.assert_array_equal(kept[epoch].pop(f"slices/{name}"), np.rint(255 * picture))
        assert not kept[epoch]


def test_tracking_keeps_nothing_of_the_machine_or_the_code(run):
    for found, path in run[1:]:
        assert not of_kind("stats", found) + of_kind("output_raw", found) + of_kind("environment", found)
        assert {file.name for file in (path.parent / "files").iterdir()} == {"media"}


def test_grey_is_bounded():
    grey = tracking._grey(np.array([[-1, 0, 0.5], [1, 7, np.nan]], np.float16))
    assert grey.tolist() == [[0, 0, 128], [255, 255, 0]]


def test_tracking_keeps_pictures_of_chosen_epochs(tmp_path):
    assert list(pictures(*track(tmp_path, range(3), images_every=2))) == [0, 2]


@pytest.mark.parametrize(("every", "kept"), [("", [0, 1, 2, 3]), ("3", [0, 3]), ("0", [])])
def test_user_chooses_how_often_pictures_are_kept(tmp_path, monkeypatch, every, kept):
    monkeypatch.setenv("DOTLIB_IMAGES_EVERY", every)
    assert list(pictures(*track(tmp_path, range(4)))) == kept
    assert [epoch for epoch in range(4) if tracking.Tracker(images_every=tracking.images()).wants_slices(epoch)] == kept


@pytest.mark.parametrize("every", ["-1", "1.5", "often"])
def test_number_of_epochs_that_is_none_is_one_line(tmp_path, monkeypatch, every):
    monkeypatch.setenv("DOTLIB_IMAGES_EVERY", every)
    with pytest.raises(
        ConfigError, match=f"^DOTLIB_IMAGES_EVERY '{every}'; accepted: a whole number, 0 for no pictures$"
    ):
        tracking.start(CONFIG, tmp_path, FACTS, "offline")


def test_tracking_writes_into_the_run_folder_only(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_"))]:
        monkeypatch.delenv(name)
    folders = {name: tmp_path / name for name in ("HOME", "TMPDIR", "run")}
    for name, folder in folders.items():
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    monkeypatch.chdir(folders["TMPDIR"])
    tracker = tracking.start(CONFIG, folders["run"], FACTS)
    tracker.epoch(*told(0))
    tracker.finish()
    assert [path.parent.name.split("-")[0] for path in written(folders["run"])] == ["offline"], "nobody chose"
    assert [list(folders[name].iterdir()) for name in ("HOME", "TMPDIR")] == [[], []]
    assert [path.name for path in folders["run"].iterdir()] == ["wandb"]


def test_user_chooses_project_entity_and_no_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_ENTITY", "me")
    monkeypatch.setenv("WANDB_SERVICE", "of another run in this process")
    found, path = track(tmp_path, range(1), images_every=0)
    head = of_kind("run", found)[0]
    assert (head["project"], head["entity"], pictures(found, path)) == ("mine", "me", {})


def state_of_process():
    import torch  # kept out of the start of the processes that tests kill

    legacy = str(np.random.get_state())  # noqa: NPY002  (the one that a library may draw from)
    generators = random.getstate(), legacy, torch.get_rng_state().tolist()
    return *generators, sys.excepthook, sys.exit, dict(os.environ), "wandb" in sys.modules


def test_tracking_leaves_the_training_process_as_it_is(tmp_path):
    before = state_of_process()
    tracker = tracking.start(CONFIG, tmp_path, FACTS, "offline")
    tracker.epoch(*told(0))
    during = state_of_process()
    tracker.finish()
    assert before == during == state_of_process()
    assert "dotlib.tracking" not in [word for child in psutil.Process().children() for word in child.cmdline()]


def forbid_processes(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail("a process was started"))


@pytest.mark.parametrize(("mode", "environment"), [("disabled", "offline"), (None, "disabled")])
def test_disabled_tracking_does_nothing(tmp_path, monkeypatch, mode, environment):
    monkeypatch.setenv("WANDB_MODE", environment)
    forbid_processes(monkeypatch)
    tracker = tracking.start(CONFIG, tmp_path, FACTS, mode)
    tracker.epoch(*told(0))
    tracker.finish()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("chosen", [{"mode": "of line"}, {"environment": "of line"}])
def test_unknown_mode_is_refused(tmp_path, monkeypatch, chosen):
    monkeypatch.setenv("WANDB_MODE", chosen.get("environment", "offline"))
    forbid_processes(monkeypatch)
    with pytest.raises(ConfigError, match="'of line'; accepted: offline, online, disabled"):
        tracking.start(CONFIG, tmp_path, FACTS, chosen.get("mode"))


KILLED = """
import os, signal, sys
from pathlib import Path
from test_tracking import CONFIG, FACTS, told
from dotlib import tracking
folder = Path(sys.argv[1])
tracker = tracking.start(CONFIG, folder, FACTS, "offline")
tracker.epoch(*told(0))
while not (folder / "wandb" / "logged").exists():
    pass
tracker.epoch(*told(1))
print(tracker._recorder.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_training_leaves_a_whole_file(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    found = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE)
    end = time.monotonic() + 20
    while psutil.pid_exists(int(found.stdout)):
        assert time.monotonic() < end, "the recorder goes on without its training process"
        time.sleep(0.05)
    kinds = [record["type"] for record in records(written(tmp_path)[0])]
    assert (kinds[0], kinds[-1]) == ("header", "exit")
    assert kinds.count("history") in (3, 6), "all of an epoch or nothing"
