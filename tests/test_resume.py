"""Runs that are killed, stopped and called again."""

import itertools
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from tiny import MORE, RUNS, Stop, assert_same_run, every_step
from torch import nn

from dotlib import checkpoint, config, optim, trainer

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
    trainer.fit(c, folder, save_every=0)


@pytest.mark.parametrize("name", MORE)
def test_stopped_run_of_any_kind_ends_with_the_same_bits(tmp_path, reference, monkeypatch, name):
    """In the middle of its third epoch, once averages, scales and second sequences of weights have gone apart."""
    expected, plain, count = reference[name], optim.step, itertools.count()

    def step_or_stop(*arguments):
        if next(count) == 5:
            raise Stop
        plain(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(optim, "step", step_or_stop)
        trainer.fit(MORE[name], tmp_path, save_every=0)
    assert len(checkpoint.load(tmp_path / "last.pt", MORE[name].digest())["epochs"]) == 2
    assert_same_run((MORE[name], tmp_path, trainer.fit(MORE[name], tmp_path)), expected)


@pytest.mark.parametrize("name", RUNS)
def test_killed_run_ends_with_the_same_bits(tmp_path, reference, mortal, name):
    """In the middle of its third epoch."""
    c = RUNS[name]
    process = mortal(target=fit_and_die, args=(c, tmp_path, 5))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(checkpoint.load(tmp_path / "last.pt", c.digest())["epochs"]) == 2
    assert_same_run((c, tmp_path, trainer.fit(c, tmp_path)), reference[name])


@pytest.mark.parametrize("name", RUNS)
def test_run_stopped_anywhere_ends_with_the_same_bits(tmp_path, reference, monkeypatch, name):
    """Stopped at its 1st, 2nd, 3rd ... step or file, and continued each time, until it comes to its end."""
    c, expected, left = RUNS[name], reference[name], 0

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
            history = trainer.fit(c, tmp_path, save_every=0)
            break
        except Stop:
            continue
    assert stops > 6
    assert_same_run((c, tmp_path, history), expected)


@pytest.mark.parametrize("name", [*RUNS, "ema", "schedule-free"])
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


def fit_and_tell(c, folder, done):
    """Train; `done` says how many epochs are over, -1 before the start."""
    torch.set_num_threads(1)
    done.value = 0

    def report(row):
        done.value = row["epoch"] + 1

    trainer.fit(c, folder, report=report, save_every=0)


def fit_and_be_killed(c, folder, mortal, moment, seconds):
    """Kill the run in the middle of an epoch, by `moment` in epochs; how many it had done."""
    done = multiprocessing.get_context("forkserver").Value("i", -1)
    process = mortal(target=fit_and_tell, args=(c, folder, done))
    process.start()
    end = time.monotonic() + 60
    while done.value < int(moment):
        assert time.monotonic() < end, "the run did not come so far in a minute"
        time.sleep(1e-4)
    time.sleep(moment % 1 * seconds)
    process.kill()
    process.join(60)
    return done.value


def check_kills(kills, c, tmp_path_factory, mortal, seed):
    """Killed at moments that are spread over the run, then continued: bit-identical to the undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    expected = c, folder, trainer.fit(c, folder, save_every=0)
    seconds, reached = expected[2].epochs.seconds.median(), []
    for moment in np.random.default_rng(seed).uniform(0, c.training.epochs, kills):
        folder = tmp_path_factory.mktemp("killed")
        reached.append(fit_and_be_killed(c, folder, mortal, moment, seconds))
        assert_same_run((c, folder, trainer.fit(c, folder)), expected)
    print(f"killed after epochs {reached} of {c.training.epochs}")
    assert max(reached) > min(reached)


def test_run_killed_at_two_random_moments_ends_with_the_same_bits(tmp_path_factory, mortal):
    check_kills(2, RUNS["one cycle, bf16"], tmp_path_factory, mortal, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one cycle, bf16", "schedule-free", "ema"])
def test_run_killed_at_twenty_random_moments_ends_with_the_same_bits(tmp_path_factory, mortal, name):
    c = config.replace((RUNS | MORE)[name], {"training.epochs": 20})
    check_kills(20, c, tmp_path_factory, mortal, 1)


def test_checkpoint_of_another_configuration_is_refused(reference):
    c, folder, _ = reference["plateau, fp32"]
    with pytest.raises(checkpoint.CheckpointError, match="belongs to configuration"):
        trainer.fit(config.replace(c, {"optim.lr": 1e-3}), folder)
