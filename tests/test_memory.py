"""What a step keeps in memory by hand count, and micro-batches that fit."""

import random

import numpy as np
import pytest
import torch
from tiny import assert_same_weights, tiny, weights
from torch import nn

from dotlib import evaluation, losses, machine, memory, trainer
from dotlib.models import autoencoder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("batch", "budget", "expected"),
    [(12, 100, 2), (12, 159, 4), (12, 160, 6), (12, 219, 6), (12, 220, 12), (16, 180, 8), (16, 179, 4), (7, 1, 7)],
)
def test_largest_micro_batch_fits_the_budget(batch, budget, expected):
    """100 bytes and 10 a sample, of which a divisor of the batch may be taken."""
    assert memory.largest(batch, 100, 10, budget) == expected


def test_largest_micro_batch_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(200):
        batch, fixed, each, budget = int(rng.integers(2, 65)), *rng.uniform(1, 100, 2), rng.uniform(1, 5000)
        fits = [n for n in range(2, batch + 1) if batch % n == 0 and fixed + n * each <= budget]
        smallest = next(n for n in range(2, batch + 1) if batch % n == 0)
        assert memory.largest(batch, fixed, each, budget) == (fits[-1] if fits else smallest)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_kept_bytes_are_those_of_a_hand_count(n):
    """Of two linear layers: the first one's input, and the rectified values, which two operations share."""
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    assert memory.kept(lambda: model(torch.rand(n, 3)).sum(), model) == 4 * (3 * n + 5 * n)


@pytest.mark.parametrize("name", ["legacy", "stage1"])
def test_kept_bytes_are_linear_in_the_batch(name):
    """But for the batch statistics, which do not grow."""
    model = autoencoder.build(name, 16, 2, 8, 0, torch.ones(2), torch.ones(2)).to(memory_format=torch.channels_last_3d)

    def size(n):
        x = evaluation.prepared(torch.rand(n, 2, 16, 16, 16))
        return memory.kept(lambda: losses.rmse(model(x), x), model)

    assert size(8) - size(4) == 2 * (size(4) - size(2)) > 0.4 * size(8)
    assert size(2) < size(4) and size(2) / 2 == pytest.approx(size(8) / 8, rel=0.05)


@pytest.mark.parametrize("name", ["legacy", "stage1"])
def test_checkpointing_keeps_less(name):
    c = tiny(model__name=name)
    x = evaluation.prepared(torch.rand(4, 2, 16, 16, 16))
    plain, again = (
        evaluation.network(c.model_copy(update={"training": c.training.model_copy(update={"checkpointing": on})}))
        for on in (False, True)
    )
    assert memory.kept(lambda: again(x).sum(), again) < 0.8 * memory.kept(lambda: plain(x).sum(), plain)


def fails_above(most, tried):
    def attempt(n):
        tried.append(n)
        if n > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return attempt


@pytest.mark.parametrize(("most", "tried"), [(99, [24]), (24, [24]), (23, [24, 12]), (5, [24, 12, 8, 6, 4])])
def test_micro_batch_settles_where_it_fits(capsys, most, tried):
    found = []
    assert memory.settle(fails_above(most, found), 24, 24, True) == tried[-1]
    assert found == tried
    said = capsys.readouterr().err
    assert said == ("" if most >= 24 else f"dotlib: out of memory with 24 samples at once, {tried[-1]} are used\n")


def test_micro_batch_that_the_user_chose_is_not_replaced():
    with pytest.raises(memory.MemoryBudgetError, match=r"out of memory with 12 .*; training.micro = 6 would fit$"):
        memory.settle(fails_above(7, []), 24, 12, False)


@pytest.mark.parametrize("automatic", [True, False])
def test_nothing_that_fits_is_one_line(automatic):
    with pytest.raises(memory.MemoryBudgetError, match=r"^out of memory with 3 samples at once: .* fits$"):
        memory.settle(fails_above(1, []), 15, 15, automatic)


def test_memory_that_a_cpu_refuses_is_backed_off_from():
    assert memory.settle(lambda n: torch.empty(10**15 if n > 4 else 1), 8, 8, True) == 4


@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError])
def test_other_errors_of_an_attempt_are_not_hidden(error):
    def attempt(n):
        raise error("shapes do not match")

    with pytest.raises(error, match="shapes do not match"):
        memory.settle(attempt, 8, 8, True)


def test_trial_leaves_no_trace():
    """Buffers, gradients and every generator of random numbers."""
    model = nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    legacy = np.random.get_state
    states = torch.get_rng_state(), legacy()[1].copy(), random.getstate()
    with memory.trial(model):
        model(torch.ones(2, 2, 5, 5, 5).cumsum(0)).square().sum().backward()
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert_same_weights(model.state_dict(), before)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert (legacy()[1] == states[1]).all()


def out_of_memory_above(monkeypatch, most):
    """A training loss that `most` samples at once can be held for."""
    plain = losses.LOSSES["rmse"]

    def limited(pred, truth):
        if pred.requires_grad and len(pred) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(pred, truth)

    monkeypatch.setitem(losses.LOSSES, "rmse", limited)


@pytest.mark.parametrize(("most", "micro"), [(8, 8), (7, 4), (2, 2)])
def test_automatic_run_is_the_run_with_its_number(tmp_path, monkeypatch, capsys, most, micro):
    """It backs off once, before the first step, and leaves nothing behind."""
    automatic, chosen = (tiny(epochs=2, training__micro=m) for m in ("auto", micro))
    with monkeypatch.context() as patch:
        out_of_memory_above(patch, most)
        found = trainer.fit(automatic, tmp_path / "auto")
    assert capsys.readouterr().err.count("\n") == (micro < 8)
    expected = trainer.fit(chosen, tmp_path / "chosen")
    assert found.info["micro"] == expected.info["micro"] == micro
    assert found.steps.equals(expected.steps) and found.metrics.equals(expected.metrics)
    assert_same_weights(weights(automatic, tmp_path / "auto"), weights(chosen, tmp_path / "chosen"))


def test_automatic_micro_batch_keeps_to_its_budget(tmp_path, monkeypatch):
    """Of a linear count by this test: what four samples need, and a byte less."""
    c = tiny(epochs=1)
    model = evaluation.network(c).to(memory_format=torch.channels_last_3d)
    x = evaluation.prepared(torch.rand(2, 2, 16, 16, 16))
    each = memory.kept(lambda: losses.rmse(model.standard(model(x)), model.standard(x)), model) / 2
    needed = 16 * sum(p.numel() for p in model.parameters()) + 4 * each
    for budget, micro in ((needed + 1, 4), (needed - 1, 2)):
        changed = tiny(epochs=1, training__micro="auto", training__memory=budget / 1e9)
        assert trainer.fit(changed, tmp_path / str(micro)).info["micro"] == micro


def test_continued_run_keeps_its_micro_batch(tmp_path, monkeypatch):
    """Though the machine has more memory now: its numbers are those of the micro-batch."""
    c = tiny(epochs=2, training__micro="auto")

    def stop(row):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        out_of_memory_above(patch, 4)
        trainer.fit(c, tmp_path, report=stop, save_every=0)
    assert trainer.fit(c, tmp_path).info["micro"] == 4


@pytest.mark.parametrize(("micro", "expected"), [(4, "default"), (8, "graphs"), (None, "graphs")])
def test_cuda_graphs_are_not_used_where_gradients_add_up(monkeypatch, capsys, micro, expected):
    """A graph's replay overwrites the gradients of the micro-batch before it."""
    monkeypatch.setattr(machine, "compiled", lambda model, wanted, *rest: (model, wanted))
    training = tiny(training__compile="graphs", training__micro=micro).training
    assert memory.plan(nn.Linear(1, 1), training, "cpu", None, None)[1] == expected
    assert capsys.readouterr().err.count("\n") == (expected == "default")
