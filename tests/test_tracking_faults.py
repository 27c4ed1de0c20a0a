"""What can befall W&B: one line on standard error, and a training process that notices nothing else."""

import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_tracking import CONFIG, FACTS, history, records, told, written
from tiny import RUNS, assert_same_run

from dotlib import tracking, trainer

QUICK = 3.0  # seconds that a call may take that has nothing to wait for
LINE = "dotlib: W&B tracking ended ({}); the run goes on without\n"
ENDED = "its process ended with code -9"
NAMED = re.escape(LINE).replace(r"\{\}", r"[\w.]*Error.*")  # whichever of wandb's threads notices first names it


def wait_for(what, seconds=30):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.02)
    return found


def logged(folder):
    return (folder / "wandb" / "logged").exists()


def started(folder, mode="offline"):
    """A tracker, and its recorder's process."""
    tracker = tracking.start(CONFIG, folder, FACTS, mode)
    return tracker, psutil.Process(tracker._recorder.pid)


def tracking_well(folder):
    """A tracker that has logged an epoch, its recorder's process, and that of wandb's service."""
    tracker, recorder = started(folder)
    tracker.epoch(*told(0))
    wait_for(lambda: logged(folder))
    (service,) = recorder.children(recursive=True)
    return tracker, recorder, service


def ended(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def timed(call, *arguments):
    start = time.monotonic()
    call(*arguments)
    return time.monotonic() - start


def finish_quickly(tracker, *processes):
    """Epochs and the end take no time, and leave no process."""
    assert max(timed(tracker.epoch, *told(epoch)) for epoch in range(5, 8)) < QUICK
    assert timed(tracker.finish) < QUICK
    assert timed(tracker.finish) < QUICK
    wait_for(lambda: all(map(ended, processes)))


@pytest.mark.parametrize("victim", ["service", "recorder"])
def test_killed_process_is_one_line(tmp_path, capfd, victim):
    tracker, recorder, service = tracking_well(tmp_path)
    {"service": service, "recorder": recorder}[victim].kill()
    wait_for(lambda: ended({"service": service, "recorder": recorder}[victim]))
    assert timed(tracker.epoch, *told(1)) < QUICK
    wait_for(lambda: ended(recorder))
    finish_quickly(tracker, recorder, service)
    out, err = capfd.readouterr()
    assert out == "" and re.fullmatch(NAMED if victim == "service" else re.escape(LINE.format(ENDED)), err)


def test_service_killed_before_the_end_is_one_line(tmp_path, capfd):
    tracker, recorder, service = tracking_well(tmp_path)
    service.kill()
    wait_for(lambda: ended(service))
    assert timed(tracker.finish) < tracking.PATIENCE
    finish_quickly(tracker, recorder, service)
    out, err = capfd.readouterr()
    assert out == "" and re.fullmatch(NAMED, err)


def test_service_that_stands_still_is_waited_for_no_longer(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE", 0.5)
    tracker, recorder, service = tracking_well(tmp_path)
    service.send_signal(signal.SIGSTOP)
    # more than a pipe holds
    assert max(timed(tracker.epoch, *told(epoch, per_epoch=1000)) for epoch in range(1, 20)) < QUICK
    assert timed(tracker.finish) < 0.5 + QUICK
    finish_quickly(tracker, recorder, service)
    assert capfd.readouterr().err.startswith("dotlib: W&B tracking ended (not done 0.5 s after the run's end")


def test_run_whose_recorder_is_killed_is_the_run_without(tmp_path, capfd, reference, one_thread):
    """After its second epoch; the same bits."""
    c, expected = RUNS["plateau, fp32"], reference["plateau, fp32"]
    capfd.readouterr()
    tracker, recorder = started(tmp_path)

    def kill(row):
        if row["epoch"] == 1:
            recorder.kill()
            wait_for(lambda: ended(recorder))

    history = trainer.fit(c, tmp_path, report=kill, tracker=tracker)
    assert timed(tracker.finish) < QUICK
    assert capfd.readouterr() == ("", LINE.format(ENDED))
    assert_same_run((c, tmp_path, history), expected)


def test_folder_that_cannot_be_written_is_one_line(tmp_path, capfd):
    (tmp_path / "wandb").write_text("")
    tracker, recorder = started(tmp_path)
    tracker.epoch(*told(0))
    wait_for(lambda: ended(recorder))
    finish_quickly(tracker, recorder)
    reason = f"FileExistsError: [Errno 17] File exists: '{tmp_path / 'wandb'}'"
    assert capfd.readouterr() == ("", LINE.format(reason[:200]))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are Linux's")
def test_disk_that_takes_no_more_is_one_line(tmp_path, capfd):
    tracker, recorder = started(tmp_path)
    resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (3000, 3000))
    row, steps, _ = told(0)
    tracker.epoch(row, steps, {"noise": np.random.default_rng(0).random((64, 64))})
    wait_for(lambda: ended(recorder))
    finish_quickly(tracker, recorder)
    assert capfd.readouterr() == ("", LINE.format("OSError: [Errno 27] File too large"))


def test_network_that_is_not_there_is_one_line(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE", 2.0)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    tracker, recorder = started(tmp_path, "online")
    assert timed(tracker.epoch, *told(0)) < QUICK
    assert timed(tracker.finish) < 2 + QUICK
    finish_quickly(tracker, recorder)
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_online_without_a_key_asks_nobody(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracker, recorder = started(tmp_path, "online")
    wait_for(lambda: ended(recorder))
    finish_quickly(tracker, recorder)
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "API key" in err or "api_key" in err


def test_missing_wandb_is_one_line(tmp_path, capfd, monkeypatch):
    (tmp_path / "wandb.py").write_text("raise ModuleNotFoundError(\"No module named 'wandb'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tracker, recorder = started(tmp_path / "run")
    wait_for(lambda: ended(recorder))
    finish_quickly(tracker, recorder)
    assert capfd.readouterr() == ("", LINE.format("ModuleNotFoundError: No module named 'wandb'"))


def test_recorder_that_cannot_start_is_one_line(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    finish_quickly(tracking.start(CONFIG, tmp_path, FACTS, "offline"))
    reason = f"[Errno 2] No such file or directory: '{tmp_path / 'python'}'"
    assert capfd.readouterr() == ("", LINE.format(reason[:200]))


TRAINING = """
import os, signal, sys
from pathlib import Path
from test_tracking_faults import told, tracking_well, wait_for
tracker, recorder, service = tracking_well(Path(sys.argv[1]))
print(recorder.pid, service.pid)
number = int(sys.argv[2])
service.send_signal(number)
tracker.epoch(*told(1, per_epoch=10_000))
if number == signal.SIGKILL:
    wait_for(tracker._recorder.poll)
tracker.epoch(*told(2, per_epoch=10_000))
"""


@pytest.mark.parametrize(("number", "lines"), [(signal.SIGKILL, 1), (signal.SIGSTOP, 0)])
def test_training_process_ends_cleanly(tmp_path, number, lines):
    """Even one that has not called `finish`, while the pipe to the recorder is full."""
    command = [sys.executable, "-c", TRAINING, str(tmp_path), str(int(number))]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60)
    for process in [psutil.Process(pid) for pid in map(int, found.stdout.split()) if psutil.pid_exists(pid)]:
        process.kill()
    assert (found.returncode, found.stderr.count("\n")) == (0, lines), found.stderr


def test_continued_run_logs_what_the_fault_kept_from_it(tmp_path, capfd):
    tracker, _, service = tracking_well(tmp_path)
    service.kill()
    wait_for(lambda: ended(service))
    tracker.epoch(*told(1))
    tracker.finish()
    assert capfd.readouterr().err.count("\n") == 1
    tracker = tracking.start(CONFIG, tmp_path, FACTS, "offline")
    for epoch in range(3):
        tracker.epoch(*told(epoch))
    tracker.finish()
    assert [item["step"] for item in history(records(written(tmp_path)[-1]))] == list(range(3, 9))
    assert capfd.readouterr() == ("", "")
