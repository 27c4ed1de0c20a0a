"""When checkpoints are written, and that they belong together, whenever a run is killed."""

import os

import pytest
import torch
from tiny import Stop, assert_same_run, every_step, same, tiny, weights
from torch import nn

from dotlib import checkpoint, journal, provenance, trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def stop_after(epoch):
    def report(row):
        if row["epoch"] == epoch:
            raise Stop

    return report


@pytest.mark.parametrize(("save_every", "cost", "wait"), [(10, 0.01, 10), (10, 1, 100), (10, 5, 300), (500, 5, 500)])
def test_slow_saving_is_put_off(tmp_path, monkeypatch, save_every, cost, wait):
    """To a hundredth of the time, by 300 s at most; by a clock that only saving and the test move."""
    now, saved = [0.0], []

    def save(path, state, digest, about):
        if path.name == "last.pt":
            saved.append(now[0])
            now[0] += cost

    monkeypatch.setattr(journal.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(checkpoint, "save", save)
    kept = journal.Journal(tiny(epochs=9), tmp_path, {}, save_every, "cpu")
    row = {"epoch": 0, "validation_loss": 1.0, "samples": 1, "seconds": 1.0}
    for seconds in (save_every, wait - 0.01, 0.02):
        now[0] += seconds
        kept.keep(row, nn.Linear(1, 1))
    assert saved == pytest.approx([save_every, save_every + cost + wait + 0.01])


@pytest.mark.parametrize("saves", [1, 2, 3, 4])
def test_best_is_of_the_losses_that_are_recorded(tmp_path, monkeypatch, saves):
    """Killed before any of its files: once it continues, best.pt is the best epoch of last.pt, which holds it too."""
    c, plain, left = tiny(epochs=3), os.replace, [saves]

    def replace(part, path):
        left[0] -= path.suffix == ".pt"
        if left[0] < 0:
            raise Stop
        plain(part, path)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(os, "replace", replace)
        trainer.fit(c, tmp_path, save_every=0)
    with monkeypatch.context() as patch, pytest.raises(Stop):  # it continues, and is killed in its next step
        patch.setattr(os, "replace", plain)
        every_step(patch, lambda *arguments: stop_after(0)({"epoch": 0}))
        trainer.fit(c, tmp_path)
    state = checkpoint.load(tmp_path / "last.pt", c.digest())
    assert min(row["validation_loss"] for row in state["epochs"]) == state["epochs"][-1]["validation_loss"]
    assert same(dict(state["judged"]), state["best"]) and same(weights(c, tmp_path, "best"), state["best"])


def test_code_that_worked_on_a_run_is_remembered(tmp_path, reference, monkeypatch):
    """The last process is in `code`, those before it in `earlier` where they ran something else."""
    c, _, expected = reference["plateau, fp32"]
    for epoch, code in enumerate(("aaa", "bbb", "aaa")):
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(provenance, "code_digest", lambda code=code: code)
            trainer.fit(c, tmp_path, report=stop_after(epoch), save_every=0)
    history = trainer.fit(c, tmp_path)
    assert history.info["code"] == provenance.code_digest()
    assert [maker["code"] for maker in history.info["earlier"]] == ["bbb", "aaa"]
    own = {"torch": torch.__version__} | provenance.commit()
    assert all(maker == own | {"code": maker["code"]} for maker in history.info["earlier"])
    assert expected.info["earlier"] == [] and history.steps.equals(expected.steps)


def test_checkpoint_of_earlier_code_is_continued(tmp_path, reference):
    """It has neither the best weights nor the code."""
    c, folder, history = reference["plateau, fp32"]
    with pytest.raises(Stop):
        trainer.fit(c, tmp_path, report=stop_after(2), save_every=0)
    state = checkpoint.load(tmp_path / "last.pt", c.digest())
    checkpoint.save(tmp_path / "last.pt", {k: v for k, v in state.items() if k not in ("best", "makers")}, c.digest())
    assert_same_run((c, tmp_path, trainer.fit(c, tmp_path)), (c, folder, history))
