"""Runs whose disk is full while a checkpoint is written: the one before stays, and the run can go on from it."""

import errno
import io
import os
import pathlib
import resource
import signal
import sys

import pytest
import torch
from tiny import RUNS, assert_same_run

from dotlib import checkpoint, trainer

pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "one cycle, bf16"


class FullDisk(io.BytesIO):
    """A file that takes its first bytes, then none."""

    def write(self, payload):
        super().write(payload[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_room(monkeypatch, where):
    if where == "write":
        plain = pathlib.Path.open
        monkeypatch.setattr(
            pathlib.Path, "open", lambda path, mode="r", **o: FullDisk() if mode == "wb" else plain(path, mode, **o)
        )
    else:
        monkeypatch.setattr(os, where, full)


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_full_disk_leaves_the_checkpoint_before(tmp_path, reference, monkeypatch, where):
    c, expected = RUNS[NAME], reference[NAME]
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space left on device: .*last\.pt"):
        trainer.fit(c, tmp_path, save_every=0, report=lambda row: row["epoch"] == 1 and no_room(patch, where))
    assert len(checkpoint.load(tmp_path / "last.pt", c.digest())["epochs"]) == 2
    assert_same_run((c, tmp_path, trainer.fit(c, tmp_path)), expected)


def fit_on_a_small_disk(c, folder):
    """Files may grow to half a checkpoint from the second epoch on; exit code 3 says that the run met that limit."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(row):
        if row["epoch"] == 1:
            half = (folder / "last.pt").stat().st_size // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))

    try:
        trainer.fit(c, folder, report=limit, save_every=0)
    except OSError as error:
        sys.exit(3 if error.errno == errno.EFBIG else 4)


def test_file_size_limit_leaves_the_checkpoint_before(tmp_path, reference, mortal):
    """Of the kernel, in a process of its own; what was written of the new one is in nobody's way."""
    c, expected = RUNS[NAME], reference[NAME]
    process = mortal(target=fit_on_a_small_disk, args=(c, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == 3
    assert len(checkpoint.load(tmp_path / "last.pt", c.digest())["epochs"]) == 2
    assert_same_run((c, tmp_path, trainer.fit(c, tmp_path)), expected)


def die_while_saving(c, folder):
    torch.set_num_threads(1)
    os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
    trainer.fit(c, folder)


def test_killed_saves_leave_nothing_once_the_run_has_ended(tmp_path, mortal):
    """Else each kill costs the disk a checkpoint."""
    c = RUNS[NAME]
    process = mortal(target=die_while_saving, args=(c, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and list(tmp_path.glob(".last.pt.*"))
    (tmp_path / ".progress.json.1").touch()
    trainer.fit(c, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt", "progress.json"]
