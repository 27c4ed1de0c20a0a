"""Tiny runs, and what tests of them share."""

import itertools
from concurrent.futures import Future

import pytest
import torch

from dotlib import arms, checkpoint, config, losses, memory, study, trainer

EPOCHS, TRAIN, TEST = 5, 16, 4
# three blocks, the last of them not full
RECORDED = config.Data(
    phantoms=36, grid=32, seed=3, measurements=config.Measurements(sources=4, detectors=12, pairs=24)
)
MEASURED = ("samples_per_second", "gpu_peak_mb", "resident_mb", "earlier")  # the code may be edited meanwhile
CLOCKED = ["seconds", "host_mb", "gpu_mb", "gpu_busy"]  # columns of the epochs that no two runs share


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
    return config.replace(arms.arm(arm, "smoke", seed), fields)


RUNS = {"plateau, fp32": tiny("stage1-adam"), "one cycle, bf16": tiny("stage1-onecycle", "bf16")}
EVERYTHING = {
    "loss": config.Loss(
        ssim=0.3, perceptual=0.1, gradient=0.2, channels=(2, 1), features=config.Features(source="random")
    ),
    "augment": config.Augmentation(),
    "model": config.Model(
        name="hybrid", width=2, code=8, depth=2, dropout=0.2, attention=config.Attention(kind="cbam"),
        links=config.Links(kind="dense"),
    ),
}  # fmt: skip
FREE = {"optim__name": "schedule-free", "optim__schedule": "constant"}
# what else a checkpoint must hold: the average, the second sequence of weights, momentum matrices, the loss scale
MORE = {
    "ema": tiny(training__ema=0.8, optim__final_decay=1e-5),
    "schedule-free": tiny(**FREE),
    "muon": tiny(optim__name="muon"),
    "fp16": tiny("stage1-onecycle", "fp16", epochs=3, training__scaler=(2.0**26, 2.0, 2)),
    "everything": tiny(epochs=3, **EVERYTHING),
    "automatic": tiny(epochs=3, training__micro="auto", training__memory=1e-4, training__checkpointing=True),
}


def weights(c, folder, name="last"):
    """The weights that a checkpoint is judged by."""
    return checkpoint.load(folder / f"{name}.pt", c.digest())["judged"]


def whole(c, folder):
    """All that `last.pt` holds, but the clock's and the memory's numbers, and the code that made it."""
    state = checkpoint.load(folder / "last.pt", c.digest())
    del state["makers"]
    epochs = [{key: value for key, value in row.items() if key not in CLOCKED} for row in state["epochs"]]
    return state | {"epochs": epochs}


def same(a, b):
    """Equal containers, types, shapes and bits; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and bits(a) == bits(b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def bits(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_same_weights(a, b):
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def untimed(history):
    """All that a history holds but the clock's and the memory's numbers."""
    info = {key: value for key, value in history.info.items() if key not in MEASURED}
    return history.epochs.drop(columns=CLOCKED).to_dict(), history.steps.to_dict(), info


def assert_same_run(found, expected):
    """Bit for bit: both checkpoints, learning curves, steps, metrics of two (configuration, folder, history)."""
    for name in ("last", "best"):
        assert_same_weights(weights(*found[:2], name), weights(*expected[:2], name))
    a, b = whole(*found[:2]), whole(*expected[:2])
    for key in b:
        assert same(a[key], b[key]), key
    assert list(a) == list(b) and same(untimed(found[2]), untimed(expected[2]))
    assert found[2].metrics.equals(expected[2].metrics)


def every_step(monkeypatch, look):
    """Have `look(number of the step, loss, pred, truth)` replace the training loss; trial and validation keep it."""
    count, plain, plan, trying = itertools.count(), losses.LOSSES["rmse"], memory.plan, []

    def watched(pred, truth):
        value = plain(pred, truth)
        return look(next(count), value, pred, truth) if pred.requires_grad and not trying else value

    def planned(*arguments):
        trying.append(True)
        found = plan(*arguments)
        trying.clear()
        return found

    monkeypatch.setitem(losses.LOSSES, "rmse", watched)
    monkeypatch.setattr(memory, "plan", planned)


class Undisturbed(dict):
    """Runs of `RUNS` and `MORE` by name: configuration, folder, history; trained when first asked for."""

    def __init__(self, folder_of):
        super().__init__()
        self.folder_of = folder_of

    def __missing__(self, name):
        c, folder = (RUNS | MORE)[name], self.folder_of("run")
        self[name] = c, folder, trainer.fit(c, folder)
        return self[name]


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
    return study.Run(config=tiny(arm, seed=seed, epochs=epochs, **changes), data="0", store=store)


def states(wanted):
    return {key: "done" if run.done() else "failed" if run.failure() else "missing" for key, run in wanted.items()}


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
