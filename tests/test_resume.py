"""Runs that are killed, stopped and called again."""

import itertools
import os
import signal

import pytest
import torch
from tiny import RUNS, Stop, assert_same_run, every_step
from torch import nn

from dotlib import checkpoint, config, trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def fit_and_die(c, folder, step):
    """Train in this process until the backward pass of a step is done, then be killed."""
    torch.set_num_threads(1)
    count, clip = itertools.count(), nn.utils.clip_grad_norm_

    def clip_or_die(*arguments):
        if next(count) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return clip(*arguments)

    nn.utils.clip_grad_norm_ = clip_or_die
    trainer.fit(c, folder)


@pytest.mark.parametrize("name", RUNS)
def test_killed_run_ends_with_the_same_bits(tmp_path, reference, mortal, name):
    c = RUNS[name]
    process = mortal(target=fit_and_die, args=(c, tmp_path, 5))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(checkpoint.load(tmp_path / "last.pt", c.digest())["epochs"]) == 2  # in the middle of the third epoch
    assert_same_run((c, tmp_path, trainer.fit(c, tmp_path)), reference[name])


@pytest.mark.parametrize("name", RUNS)
def test_run_stopped_anywhere_ends_with_the_same_bits(tmp_path, reference, monkeypatch, name):
    """Stopped at its 1st, 2nd, 3rd ... step or file, and continued each time, until it comes to its end."""
    c, left = RUNS[name], 0

    def stop_or(work):
        def counted(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise Stop
            return work(*arguments)

        return counted

    monkeypatch.setattr(os, "replace", stop_or(os.replace))
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", stop_or(nn.utils.clip_grad_norm_))
    for stops in range(100):
        left = stops
        try:
            history = trainer.fit(c, tmp_path)
            break
        except Stop:
            continue
    assert stops > 6
    assert_same_run((c, tmp_path, history), reference[name])


@pytest.mark.parametrize("name", RUNS)
def test_finished_run_trains_no_further(reference, monkeypatch, name):
    c, folder, history = reference[name]
    before = (folder / "last.pt").read_bytes()
    every_step(monkeypatch, lambda *arguments: pytest.fail("a step was taken"))
    assert_same_run((c, folder, trainer.fit(c, folder)), (c, folder, history))
    assert (folder / "last.pt").read_bytes() == before


def test_stopped_early_it_stays_stopped(stalled):
    """A run that is killed after its last epoch, before its result is kept, does not train on."""
    c, folder, history, _ = stalled
    assert_same_run((c, folder, trainer.fit(c, folder)), (c, folder, history))


def test_checkpoint_of_another_configuration_is_refused(reference):
    c, folder, _ = reference["plateau, fp32"]
    with pytest.raises(checkpoint.CheckpointError, match="belongs to configuration"):
        trainer.fit(config.replace(c, {"optim.lr": 1e-3}), folder)
