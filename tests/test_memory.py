"""What a step keeps in memory by hand count, and micro-batches that fit."""

import random

import numpy as np
import pytest
import torch
from tiny import assert_same_weights, tiny, weights
from torch import nn

from dotlib import inference, losses, machine, memory, trainer
from dotlib.config import Model
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
    chosen = Model(name=name, width=2, code=8)
    model = autoencoder.build(chosen, 16, 0, torch.ones(2), torch.ones(2)).to(memory_format=torch.channels_last_3d)

    def size(n):
        x = inference.prepared(torch.rand(n, 2, 16, 16, 16))
        return memory.kept(lambda: losses.rmse(model(x), x), model)

    assert size(8) - size(4) == 2 * (size(4) - size(2)) > 0.4 * size(8)
    assert size(2) < size(4) and size(2) / 2 == pytest.approx(size(8) / 8, rel=0.05)


@pytest.mark.parametrize("name", ["legacy", "stage1"])
def test_checkpointing_keeps_less(name):
    c = tiny(model__name=name)
    x = inference.prepared(torch.rand(4, 2, 16, 16, 16))
    plain, again = (
        inference.network(c.model_copy(update={"training": c.training.model_copy(update={"checkpointing": on})}))
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
    what = r"^out of memory with 3 samples at once \(CUDA out of memory\): .* fits$"
    with pytest.raises(memory.MemoryBudgetError, match=what):
        memory.settle(fails_above(1, []), 15, 15, automatic)


def test_memory_that_a_cpu_refuses_is_backed_off_from():
    assert memory.settle(lambda n: torch.empty(10**15 if n > 4 else 1), 8, 8, True) == 4


@pytest.mark.parametrize(
    "words",
    [
        "FIND was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
    ],
)
def test_memory_that_a_library_lacks_is_backed_off_from(words):
    def attempt(n):
        if n > 4:
            raise RuntimeError(words)

    assert memory.settle(attempt, 8, 8, True) == 4


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
        torch.rand(1)
        model(torch.ones(2, 2, 5, 5, 5).cumsum(0)).square().sum().backward()
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert_same_weights(model.state_dict(), before)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert (legacy()[1] == states[1]).all()


def out_of_memory_above(monkeypatch, most, error=torch.OutOfMemoryError):
    """A training loss that `most` samples at once can be held for."""
    plain = losses.LOSSES["rmse"]

    def limited(pred, truth):
        if pred.requires_grad and len(pred) > most:
            raise error("DefaultCPUAllocator: can't allocate memory")
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
    model = inference.network(c).to(memory_format=torch.channels_last_3d)
    x = inference.prepared(torch.rand(2, 2, 16, 16, 16))
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


def test_batch_that_a_cpu_cannot_hold_is_refused_before_the_first_step(tmp_path, monkeypatch):
    out_of_memory_above(monkeypatch, 4, RuntimeError)
    with pytest.raises(memory.MemoryBudgetError, match=r"^out of memory with 8 .*; training.micro = 4 would fit$"):
        trainer.fit(tiny(), tmp_path)


def test_compiled_pass_that_lacks_memory_is_backed_off_from(tmp_path, monkeypatch, capsys):
    """As compiled, where four samples are the most."""

    def compile(model, **options):
        def forward(x):
            if len(x) > 4:
                raise RuntimeError("InductorError: OutOfMemoryError: CUDA out of memory")
            return model(x)

        return forward

    monkeypatch.setattr(torch, "compile", compile)
    info = trainer.fit(tiny(epochs=1, training__micro="auto", training__compile="default"), tmp_path).info
    assert (info["micro"], info["compile"]) == (4, "default")
    assert capsys.readouterr().err == "dotlib: out of memory with 8 samples at once, 4 are used\n"


def counted(tried):
    """A loss that notes how many samples it is given."""

    def loss_on(forward, few):
        tried.append(len(few))
        return forward(torch.ones(len(few), 1)).sum()

    return loss_on


@pytest.mark.parametrize(
    ("peak", "given", "expected"), [(1.0, None, [8, 4]), (0.1, None, [8]), (1.0, 8, [8]), (9.0, None, [8, 4, 2])]
)
def test_peak_above_the_budget_is_backed_off_from(monkeypatch, capsys, peak, given, expected):
    """5 MB, and `peak` MB a sample on the device; the smallest is kept, and a continued run keeps its micro-batch."""
    tried = []
    monkeypatch.setattr(machine, "peak_mb", lambda on: peak * tried[-1])
    training = tiny(training__micro="auto", training__memory=5e6 / 1e9).training
    assert memory.plan(nn.Linear(1, 1), training, "cpu", counted(tried), given)[2] == expected[-1]
    assert tried[given is None :] == expected  # the first is counted, not tried
    assert capsys.readouterr().err.count("\n") == (len(expected) > 1)


@pytest.mark.parametrize(("wanted", "passes"), [("graphs", 3), ("default", 1), ("off", 1)])
def test_cuda_graphs_are_tried_until_they_are_replayed(monkeypatch, wanted, passes):
    tried = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    memory.plan(nn.Linear(1, 1), tiny(training__compile=wanted).training, "cpu", counted(tried), None)
    assert tried == [8] * passes


@pytest.mark.parametrize("wanted", ["auto", "off", "default", "graphs"])
def test_checkpointing_is_not_compiled(monkeypatch, capsys, wanted):
    """Dynamo cannot trace the pass that is repeated; who asked for it is told."""
    monkeypatch.setattr(machine, "compiled", lambda model, wanted, *rest: (model, wanted))
    training = tiny(training__compile=wanted, training__checkpointing=True).training
    assert memory.plan(nn.Linear(1, 1), training, "cpu", None, None)[1] == "off"
    assert capsys.readouterr().err.count("\n") == (wanted in ("default", "graphs"))


@pytest.mark.parametrize(("micro", "expected"), [(4, "default"), (8, "graphs"), (None, "graphs")])
def test_cuda_graphs_are_not_used_where_gradients_add_up(monkeypatch, capsys, micro, expected):
    """A graph's replay overwrites the gradients of the micro-batch before it."""
    monkeypatch.setattr(machine, "compiled", lambda model, wanted, *rest: (model, wanted))
    training = tiny(training__compile="graphs", training__micro=micro).training
    assert memory.plan(nn.Linear(1, 1), training, "cpu", None, None)[1] == expected
    assert capsys.readouterr().err.count("\n") == (expected == "default")
