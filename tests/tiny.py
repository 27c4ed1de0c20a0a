"""Tiny runs, and what tests of them share."""

import itertools
from concurrent.futures import Future

import pytest
import torch

from dotlib import checkpoint, config, losses, study, trainer

EPOCHS, TRAIN, TEST = 5, 16, 4
# three blocks, the last of them not full
RECORDED = config.Data(
    phantoms=36, grid=32, seed=3, measurements=config.Measurements(sources=4, detectors=12, pairs=24)
)
MEASURED = ("samples_per_second", "gpu_peak_mb", "resident_mb")


def tiny(arm="stage1-onecycle", precision="fp32", epochs=EPOCHS, seed=0, **changes):
    """An arm in the smoke profile with a tiny network and no readings; `optim__lr` in `changes` is `optim.lr`."""
    fields = {
        "data.measurements": None,
        "model.width": 2,
        "model.code": 8,
        "training.precision": precision,
        "training.epochs": epochs,
    }
    fields |= {path.replace("__", "."): value for path, value in changes.items()}
    return config.replace(config.arm(arm, "smoke", seed), fields)


RUNS = {"plateau, fp32": tiny("stage1-adam"), "one cycle, bf16": tiny("stage1-onecycle", "bf16")}


def weights(c, folder, name="last"):
    return checkpoint.load(folder / f"{name}.pt", c.digest())["model"]


def assert_same_weights(a, b):
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def untimed(history):
    """All that a history holds but the clock's and the memory's numbers."""
    info = {key: value for key, value in history.info.items() if key not in MEASURED}
    return history.epochs.drop(columns="seconds").to_dict(), history.steps.to_dict(), history.metrics, info


def assert_same_run(found, expected):
    """Bit for bit: both checkpoints, learning curves, steps, metrics of two (configuration, folder, history)."""
    for name in ("last", "best"):
        assert_same_weights(weights(*found[:2], name), weights(*expected[:2], name))
    a, b = untimed(found[2]), untimed(expected[2])
    assert (a[:2], a[3]) == (b[:2], b[3])
    assert a[2].equals(b[2])


def every_step(monkeypatch, look):
    """Have `look(number of the step, loss, pred, truth)` replace the training loss; validation keeps the plain one."""
    count, plain = itertools.count(), losses.LOSSES["rmse"]

    def watched(pred, truth):
        value = plain(pred, truth)
        return look(next(count), value, pred, truth) if pred.requires_grad else value

    monkeypatch.setitem(losses.LOSSES, "rmse", watched)


def undisturbed(folder_of):
    """The runs of `RUNS` by name: configuration, folder, history; `folder_of` makes a folder."""
    folders = {name: folder_of("run") for name in RUNS}
    return {name: (c, folders[name], trainer.fit(c, folders[name])) for name, c in RUNS.items()}


def stalled(folder):
    """A run whose third epoch is its best, by a scripted validation loss, with a patience of two epochs.

    Configuration, folder, history, and the weights after each epoch.
    """
    script, snapshots, plain = [3.0, 2.0, 1.0, 1.5, 1.0, 0.1, 0.1, 0.1], [], trainer.validate

    def scripted(model, *arguments):
        snapshots.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return plain(model, *arguments) | {"validation_loss": script[len(snapshots) - 1]}

    c = tiny(epochs=8, training__patience=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "validate", scripted)
        return c, folder, trainer.fit(c, folder), snapshots


def a_run(store, arm="stage1-adam", seed=0, epochs=2, **changes):
    """A run of a study, of made-up data."""
    return study.Run(config=tiny(arm, seed=seed, epochs=epochs, **changes), data="0", infra={"folder": store})


def states(wanted):
    return {key: run.infra.status() for key, run in wanted.items()}


class Inline:
    """In the place of the pool: the same calls, one after another, in this process."""

    def __init__(self, *arguments):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *arguments):
        pass

    def shutdown(self, **options):
        pass

    def submit(self, work, run):
        future = Future()
        try:
            future.set_result(work(run))
        except Exception as error:
            future.set_exception(error)
        return future


class Stop(BaseException):
    """An end that no `except` of the code under test expects."""
