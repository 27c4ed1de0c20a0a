"""Who is judged on which phantoms: training, validation and test, against their definitions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TEST, tiny, weights
from torch import nn

from dotlib import config, evaluation, inference, losses, metrics, trainer
from dotlib.data import dataset
from dotlib.data.phantoms import MUA, MUSP
from dotlib.data.samples import Samples
from dotlib.data.split import NAMES

pytestmark = pytest.mark.usefixtures("one_thread")


def changed(part):
    """`dataset.load` with the phantoms of one part made five times as absorbing, half as scattering."""
    plain = dataset.load

    def load(settings):
        data = plain(settings)
        ellipsoids, chosen = data.ellipsoids.copy(), data.labels == NAMES.index(part)
        ellipsoids[chosen, :, MUA] *= 5
        ellipsoids[chosen, :, MUSP] /= 2
        return replace(data, ellipsoids=ellipsoids)

    return load


@pytest.mark.parametrize("part", NAMES)
def test_training_sees_the_training_set_only(tmp_path, reference, monkeypatch, part):
    """Nor do validation and test phantoms enter the standardisation, whose numbers are part of the weights."""
    c, folder, history = reference["one cycle, bf16"]
    monkeypatch.setattr(dataset, "load", changed(part))
    other = trainer.fit(c, tmp_path)
    same = all(
        torch.equal(a, b) for a, b in zip(weights(c, tmp_path).values(), weights(c, folder).values(), strict=True)
    )
    assert same == (part != "train")
    assert (other.epochs.validation_loss.tolist() == history.epochs.validation_loss.tolist()) == (part == "test")
    assert not other.metrics.value.equals(history.metrics.value) or part == "validation"


def test_standardisation_is_that_of_the_training_tissue(reference):
    c, folder, _ = reference["plateau, fp32"]
    data = dataset.load(c.data)
    values = data.volumes("train").half().double().numpy().swapaxes(0, 1)
    state = weights(c, folder)
    for key, f in (("standard.mean", np.mean), ("standard.sd", np.std)):
        expected = [f(v[values[1] > 0]) for v in values]
        np.testing.assert_allclose(state[key].flatten(), expected, rtol=1e-6)


def nrmse(predicted, truth, tissue):
    """Per phantom and channel, by the definition: sqrt(mean (p - t)^2) / sqrt(mean t^2) in the tissue, p >= 0."""
    out = np.empty(truth.shape[:2])
    for p, c in np.ndindex(out.shape):
        a, b = np.maximum(predicted[p, c][tissue[p]], 0), truth[p, c][tissue[p]]
        out[p, c] = np.sqrt(np.mean((a - b) ** 2)) / np.sqrt(np.mean(b**2))
    return out


@pytest.mark.parametrize(("batch", "at_once"), [(32, 64), (3, 64), (32, 3)])
def test_validation_agrees_with_its_definition(monkeypatch, batch, at_once):
    """With a network that predicts negative values, all at once or three at a time, the last part a smaller one."""
    c = tiny("legacy-adam")
    data = dataset.load(c.data)
    model = inference.network(c, torch.tensor([0.004, 0.7]), torch.tensor([0.003, 0.2])).train()
    volumes = data.volumes("validation").half()
    model(data.volumes("train"))  # running statistics that are no longer 0 and 1
    nn.init.constant_(model.network.head.bias, -1.4)
    monkeypatch.setattr(inference, "BATCH", batch)
    monkeypatch.setattr(trainer, "AT_ONCE", at_once)
    given, plain = [], trainer.predict
    monkeypatch.setattr(
        trainer, "predict", lambda model, few, *rest: (given.append(len(few)), plain(model, few, *rest))[1]
    )
    criterion = losses.Criterion(config.Loss(), model.standard)
    row = trainer.validate(model, Samples(c, volumes), data.tissue("validation"), criterion, torch.float32)
    with torch.no_grad():
        predicted, truth = model.eval()(volumes.float()).numpy(), volumes.double().numpy()
    assert (predicted < 0).any() and given == ([len(volumes)] if at_once == 64 else [3, len(volumes) - 3])
    mua, musp = nrmse(predicted, truth, data.tissue("validation").numpy()).mean(0)
    error = (predicted - truth) / np.array([0.003, 0.2]).reshape(2, 1, 1, 1)
    loss = np.sqrt((error**2).mean((1, 2, 3, 4))).mean()
    expected = {"validation_loss": loss, "nrmse_mua": mua, "nrmse_musp": musp}
    assert row == {key: pytest.approx(value, rel=1e-4) for key, value in expected.items()}


def test_metrics_judge_both_checkpoints_on_the_test_set(stalled):
    c, _, history, snapshots = stalled
    table, data = history.metrics, dataset.load(c.data)
    assert set(table.checkpoint) == {"last", "best"}
    truth, tissue = data.volumes("test"), data.tissue("test").numpy()
    assert len(truth) == TEST
    for name, snapshot in (("best", snapshots[2]), ("last", snapshots[4])):
        rows = table[(table.checkpoint == name) & (table.metric == "nrmse")]
        assert (rows.inclusion == -1).all()
        model = inference.network(c)
        model.load_state_dict(snapshot)
        with torch.no_grad():
            expected = nrmse(model.eval()(truth).numpy(), truth.double().numpy(), tissue)
        found = rows.pivot(index="phantom", columns="channel", values="value")[["mua", "musp"]]
        assert found.index.tolist() == list(range(TEST))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_metrics_have_a_row_for_each_phantom_and_channel(reference):
    history = reference["plateau, fp32"][2]
    c, inclusions = reference["plateau, fp32"][0], 5
    sizes = history.metrics.groupby(["checkpoint", "metric"]).size()
    values = metrics.evaluate(*[dataset.load(c.data).volumes("test")] * 2, torch.ones(TEST, 16, 16, 16).long(), 4.0)
    assert set(sizes.index) == {(name, metric) for name in ("last", "best") for metric in values}
    for metric in ("rmse", "nrmse", "ssim", "psnr", "background_noise", "bias"):
        assert (sizes[:, metric] == TEST * 2).all()
    assert (sizes[:, "legacy_rmse"] == TEST).all()
    crc = history.metrics[history.metrics.metric == "crc"]
    assert set(crc.inclusion) <= set(range(inclusions)) and set(crc.channel) == {"mua", "musp"}
    assert not history.metrics.duplicated(["checkpoint", "metric", "phantom", "channel", "inclusion"]).any()


def test_table_puts_each_value_in_its_row():
    values = {"a": torch.arange(2.0), "b": torch.arange(4.0).view(2, 2), "c": torch.arange(12.0).view(2, 3, 2)}
    rows = evaluation.table(values).set_index(["metric", "phantom", "inclusion", "channel"]).value
    assert len(rows) == 18
    assert rows["a", 1, -1, ""] == 1
    assert rows["b", 1, -1, "mua"] == 2 and rows["b", 0, -1, "musp"] == 1
    assert rows["c", 1, 2, "mua"] == 10 and rows["c", 0, 1, "musp"] == 3
