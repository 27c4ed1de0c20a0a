"""What a tracker is told of a run, which it does not change."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import CLOCKED, EPOCHS, TRAIN, Stop, assert_same_run, tiny

from dotlib import inference, trainer
from dotlib.data import dataset

pytestmark = pytest.mark.usefixtures("one_thread")


class Recorder:
    """A tracker that remembers what it is told; `limit` epochs, then it stops the run."""

    def __init__(self, limit=99, images_every=1):
        self.rows, self.steps, self.slices, self.limit, self.images_every = [], [], [], limit, images_every

    def wants_slices(self, epoch):
        return epoch % self.images_every == 0

    def epoch(self, row, steps, slices):
        self.rows.append(row)
        self.steps.append(steps)
        self.slices.append(slices)
        if len(self.rows) == self.limit:
            raise Stop


@pytest.mark.parametrize("name", ["one cycle, bf16", "ema"])
def test_tracker_is_told_and_changes_nothing(tmp_path, reference, name):
    """Of all epochs, also of a run that was stopped and continued: steps by their number in the whole run."""
    c, folder, history = reference[name]
    first, second = Recorder(2), Recorder()
    with pytest.raises(Stop):
        trainer.fit(c, tmp_path, tracker=first, save_every=0)
    assert_same_run((c, tmp_path, trainer.fit(c, tmp_path, tracker=second)), (c, folder, history))
    # the epoch in which it stopped, before its checkpoint, comes twice; the tracker knows by the steps' numbers
    pairs = zip(first.rows + second.rows, first.steps + second.steps, strict=True)
    told = {row["epoch"]: (row, steps) for row, steps in pairs}
    assert len(told) == len(first.rows + second.rows) - 1 == EPOCHS
    rows = pd.DataFrame([row for row, _ in told.values()])
    assert rows.drop(columns=CLOCKED).equals(history.epochs.drop(columns=CLOCKED))
    assert pd.concat([steps for _, steps in told.values()]).equals(history.steps)
    assert {len(steps) for _, steps in told.values()} == {TRAIN // c.training.batch}
    volume = dataset.load(c.data).volumes("validation")[:1].half()
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[c.training.precision]
    predicted = inference.predict(inference.trained(c, folder), volume, dtype)
    for name, values in (("truth", volume.float()), ("prediction", predicted)):
        for i, channel in enumerate(("mua", "musp")):
            expected = values[0, i, :, :, 8].numpy() / volume[0, i].float().numpy().max()
            np.testing.assert_allclose(second.slices[-1][f"{name} {channel}"], expected, rtol=1e-6)
    assert set(second.slices[-1]) == {f"{a} {b}" for a in ("truth", "prediction") for b in ("mua", "musp")}


def test_slices_are_computed_only_where_they_are_wanted(tmp_path, monkeypatch):
    seen, plain, tracker = [], trainer._slices, Recorder(images_every=2)
    monkeypatch.setattr(trainer, "_slices", lambda *arguments: (seen.append(1), plain(*arguments))[1])
    trainer.fit(tiny(epochs=4), tmp_path, tracker=tracker)
    assert len(seen) == 2 and list(map(bool, tracker.slices)) == [True, False, True, False]


def test_tracker_of_a_run_that_stops_early(tmp_path, monkeypatch):
    plain, script, tracker = trainer.validate, iter([1.0, 2.0, 3.0, 4.0]), Recorder()
    monkeypatch.setattr(trainer, "validate", lambda *a: plain(*a) | {"validation_loss": next(script)})
    history = trainer.fit(tiny(epochs=8, training__patience=2), tmp_path, tracker=tracker)
    assert [row["epoch"] for row in tracker.rows] == [0, 1, 2] == history.epochs.epoch.tolist()
