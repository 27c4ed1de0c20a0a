"""One training run: the loop against a plain one, interruptions, failures, and what it leaves."""

import itertools
import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dotlib import checkpoint, config, evaluation, losses, metrics, trainer
from dotlib.data import dataset
from dotlib.data.phantoms import MUA, MUSP
from dotlib.data.split import NAMES

EPOCHS, TRAIN, TEST = 5, 16, 4
MEASURED = ("samples_per_second", "gpu_peak_mb", "resident_mb")


def smoke(arm="stage1-onecycle", precision="fp32", epochs=EPOCHS, **changes):
    """A tiny network at the smoke profile's size."""
    fields = {"training.precision": precision, "training.epochs": epochs, "model.width": 2, "model.code": 8}
    return config.replace(
        config.arm(arm, "smoke"), fields | {path.replace("__", "."): value for path, value in changes.items()}
    )


RUNS = {"plateau, fp32": smoke("stage1-adam"), "one cycle, bf16": smoke("stage1-onecycle", "bf16")}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums are taken in an order that depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Undisturbed runs by name: configuration, folder, history."""
    folders = {name: tmp_path_factory.mktemp("run") for name in RUNS}
    return {name: (c, folders[name], trainer.fit(c, folders[name])) for name, c in RUNS.items()}


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


def cosine(a, b, share):
    return b + (a - b) * (1 + math.cos(math.pi * share)) / 2


def one_cycle(i, steps):
    """Learning rate and beta1 of step i by the published numbers."""
    top, end = 0.2 * steps - 1, steps - 1
    if i <= top:
        return cosine(3e-3 / 25, 3e-3, i / top), cosine(0.95, 0.85, i / top)
    share = (i - top) / (end - top)
    return cosine(3e-3, 3e-3 / 25 / 1e4, share), cosine(0.85, 0.95, share)


def plain_loop(c):
    """The run written down once more, without the project's loss, optimiser, schedule and clipping."""
    train = dataset.load(c.data).volumes("train").half().float()
    values = train.double().numpy().swapaxes(0, 1)
    tissue = values[1] > 0
    mean, sd = (torch.tensor([f(v[tissue]) for v in values], dtype=torch.float32) for f in (np.mean, np.std))
    model = evaluation.network(c, mean, sd).to(memory_format=torch.channels_last_3d)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    adam, batch = c.optim.name == "adam", c.training.batch
    if adam:
        opt = torch.optim.Adam(model.parameters(), lr=5e-5, weight_decay=1e-4, foreach=False)
    else:
        weight = [p for p in model.parameters() if p.ndim > 1]
        bias = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": weight, "weight_decay": 1e-4}, {"params": bias, "weight_decay": 0}]
        opt = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False)
    steps, rows = len(train) // batch * c.training.epochs, []
    for epoch in range(c.training.epochs):
        model.train()
        visited = trainer.order(len(train), c.seed, epoch)
        for first in range(0, len(train) - batch + 1, batch):
            x = train[visited[first : first + batch]].contiguous(memory_format=torch.channels_last_3d)
            error = (model(x) - x) / sd.view(2, 1, 1, 1)
            loss = sum(e.square().mean().sqrt() for e in error) / batch
            rate, beta1 = (5e-5, 0.9) if adam else one_cycle(len(rows), steps)
            for group in opt.param_groups:
                group["lr"], group["betas"] = rate, (beta1, group["betas"][1])
            opt.zero_grad()
            loss.backward()
            norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
            for p in model.parameters():
                p.grad *= min(1.0, c.optim.clip / norm)
            opt.step()
            rows.append((loss.item(), norm, rate, beta1))
    return model, start, np.array(rows)


@pytest.mark.parametrize("arm", ["stage1-adam", "stage1-onecycle"])
def test_fit_equals_a_plain_loop(tmp_path, arm):
    """Batches of 3 leave one phantom out; the clipping acts in every step."""
    c = smoke(arm, epochs=2, training__batch=3, optim__clip=0.1)
    history = trainer.fit(c, tmp_path)
    model, start, rows = plain_loop(c)
    assert list(history.steps) == ["loss", "gradient_norm", "lr", "beta1"]
    np.testing.assert_allclose(history.steps, rows, rtol=2e-5)
    assert rows[:, 1].min() > 0.1
    found = weights(c, tmp_path)
    # Adam divides by the gradient's size and so magnifies rounding: compared with the way that the weights went
    error = [(found[name] - p.detach()).norm() for name, p in model.named_parameters()]
    way = [(p.detach() - start[name]).norm() for name, p in model.named_parameters()]
    assert torch.stack(error).norm() < 1e-4 * torch.stack(way).norm()
    for name, buffer in model.named_buffers():
        assert (found[name] - buffer).double().norm() <= 1e-4 * buffer.double().norm(), name


@pytest.mark.parametrize("name", RUNS)
def test_same_seed_gives_the_same_bits(tmp_path, reference, name):
    c = RUNS[name]
    assert_same_run((c, tmp_path, trainer.fit(c, tmp_path)), reference[name])


def test_other_seed_gives_other_weights(tmp_path, reference):
    c = config.replace(RUNS["plateau, fp32"], {"seed": 1, "training.epochs": 1})
    history = trainer.fit(c, tmp_path)
    assert history.steps.loss[0] != reference["plateau, fp32"][2].steps.loss[0]


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


class Stop(BaseException):
    """An end that no `except` of the code under test expects."""


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


def test_checkpoint_of_another_configuration_is_refused(reference):
    c, folder, _ = reference["plateau, fp32"]
    with pytest.raises(checkpoint.CheckpointError, match="belongs to configuration"):
        trainer.fit(config.replace(c, {"optim.lr": 1e-3}), folder)


def nan_loss(loss, pred):
    return loss * math.nan


def nan_gradient(loss, pred):
    return loss + (pred * 0).sqrt().sum() * 0  # finite, of slope 0 * infinity


@pytest.mark.parametrize("spoil", [nan_loss, nan_gradient])
def test_nan_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path, reference, monkeypatch, spoil):
    c, _, _ = expected = reference["plateau, fp32"]
    with monkeypatch.context() as patch:
        every_step(patch, lambda i, loss, pred, truth: spoil(loss, pred) if i == 5 else loss)
        with pytest.raises(FloatingPointError, match=r"epoch 2, step 1: .*nan") as error:
            trainer.fit(c, tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    state = checkpoint.load(tmp_path / "last.pt", c.digest())
    assert len(state["epochs"]) == 2
    for name in ("last", "best"):
        assert all(tensor.isfinite().all() for tensor in weights(c, tmp_path, name).values())
    assert_same_run((c, tmp_path, trainer.fit(c, tmp_path)), expected)  # the fault removed, it goes on from there


def test_nan_in_validation_stops_the_run_too(tmp_path, monkeypatch):
    """It would be neither the best nor worse than it, and hide every later best."""
    validate, c = trainer.validate, smoke("stage1-adam")
    monkeypatch.setattr(trainer, "validate", lambda *arguments: validate(*arguments) | {"validation_loss": math.nan})
    with pytest.raises(FloatingPointError, match=r"epoch 0, validation loss nan; no checkpoint yet"):
        trainer.fit(c, tmp_path)
    assert not (tmp_path / "last.pt").exists()


def test_order_is_a_new_permutation_each_epoch_and_seed():
    orders = [tuple(trainer.order(50, seed, epoch).tolist()) for seed in range(3) for epoch in range(4)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == 12
    assert orders[0] == tuple(trainer.order(50, 0, 0).tolist())


def test_arms_visit_the_same_phantoms_in_the_same_order(tmp_path, monkeypatch):
    """Whole batches, no phantom twice in an epoch, another order in the next one."""
    visits = {}
    for arm in ("legacy-adam", "stage1-onecycle"):
        seen = visits.setdefault(arm, [])
        with monkeypatch.context() as patch:
            every_step(patch, lambda i, loss, pred, truth, seen=seen: (seen.append(truth.mean((1, 2, 3, 4))), loss)[1])
            trainer.fit(smoke(arm, epochs=2, training__batch=5), tmp_path / arm)
    first, second = torch.cat(visits["stage1-onecycle"]).view(2, 15).tolist()
    assert len(set(first)) == len(set(second)) == 15
    assert first != second and len(set(first + second)) <= TRAIN
    assert torch.equal(torch.cat(visits["legacy-adam"]), torch.cat(visits["stage1-onecycle"]))


@pytest.fixture(scope="module")
def stalled(tmp_path_factory):
    """A run whose third epoch is its best, by a scripted validation loss, with a patience of two epochs."""
    folder, script, snapshots = tmp_path_factory.mktemp("stalled"), [3.0, 2.0, 1.0, 1.5, 1.0, 0.1, 0.1, 0.1], []
    plain = trainer.validate

    def scripted(model, *arguments):
        snapshots.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return plain(model, *arguments) | {"validation_loss": script[len(snapshots) - 1]}

    c = smoke(epochs=8, training__patience=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "validate", scripted)
        return c, folder, trainer.fit(c, folder), snapshots


def test_patience_stops_and_best_is_the_best(stalled):
    c, folder, history, snapshots = stalled
    assert history.epochs.epoch.tolist() == [0, 1, 2, 3, 4]
    assert len(history.steps) == 5 * TRAIN // 8
    assert_same_weights(weights(c, folder, "best"), snapshots[2])
    assert_same_weights(weights(c, folder, "last"), snapshots[4])


def test_stopped_early_it_stays_stopped(stalled):
    """A run that is killed after its last epoch, before its result is kept, does not train on."""
    c, folder, history, _ = stalled
    assert_same_run((c, folder, trainer.fit(c, folder)), (c, folder, history))


def test_plateau_watches_the_validation_loss(tmp_path, monkeypatch):
    """The training loss falls all the while."""
    plain, script = trainer.validate, iter([1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(trainer, "validate", lambda *a: plain(*a) | {"validation_loss": next(script)})
    history = trainer.fit(smoke("stage1-adam", epochs=4, optim__lr=1e-3, optim__plateau=(0.5, 1)), tmp_path)
    assert history.epochs.train_loss.is_monotonic_decreasing
    assert history.epochs.lr.tolist() == [1e-3, 1e-3, 1e-3, 5e-4]


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


@pytest.mark.parametrize("batch", [32, 3])
def test_validation_agrees_with_its_definition(monkeypatch, batch):
    """With a network that predicts negative values, all at once or three at a time."""
    c = smoke("legacy-adam")
    data = dataset.load(c.data)
    model = evaluation.network(c, torch.tensor([0.004, 0.7]), torch.tensor([0.003, 0.2])).train()
    volumes = data.volumes("validation").half()
    model(data.volumes("train"))  # running statistics that are no longer 0 and 1
    nn.init.constant_(model.network.head.bias, -1.4)
    monkeypatch.setattr(evaluation, "BATCH", batch)
    row = trainer.validate(model, volumes, data.tissue("validation"), losses.loss("rmse"), torch.float32)
    with torch.no_grad():
        predicted, truth = model.eval()(volumes.float()).numpy(), volumes.double().numpy()
    assert (predicted < 0).any()
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
        model = evaluation.network(c)
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


def test_report_and_progress_follow_the_run(tmp_path, reference):
    c, _, history = reference["plateau, fp32"]
    rows, lines = [], []

    def report(row):
        rows.append(row)
        lines.append(json.loads((tmp_path / "progress.json").read_text()))

    trainer.fit(c, tmp_path, report=report)
    assert [{**row, "seconds": 0} for row in rows] == history.epochs.assign(seconds=0).to_dict("records")
    assert [(line["epoch"], line["epochs"]) for line in lines] == [(i + 1, EPOCHS) for i in range(EPOCHS)]
    left = [line["seconds_left"] for line in lines]
    assert left == [pytest.approx((EPOCHS - 1 - i) * row["seconds"]) for i, row in enumerate(rows)]
    rates = [line["samples_per_second"] for line in lines]
    assert rates == [pytest.approx(TRAIN / row["seconds"]) for row in rows]


@pytest.mark.parametrize("name", RUNS)
def test_info_says_what_the_run_was(reference, name):
    c, _, history = reference[name]
    info = history.info
    assert config.Config.model_validate(info["config"]) == c
    assert info["data"] == dataset.load(c.data).digest
    assert info["parameters"] == sum(p.numel() for p in evaluation.network(c).parameters())
    assert info["precision"] == {"fp32": "float32", "bf16": "bfloat16"}[c.training.precision]
    assert info["samples_seen"] == EPOCHS * TRAIN
    assert info["samples_per_second"] == pytest.approx(EPOCHS * TRAIN / history.epochs.seconds.sum())
    last = history.steps.iloc[-1]
    assert info["optimiser"] == {
        "class": {"adam": "Adam", "adamw": "AdamW"}[c.optim.name],
        "lr": last.lr,
        "betas": (last.beta1, c.optim.betas[1]),
        "weight_decay": c.optim.weight_decay,
    }
    assert (info["config_digest"], info["code"]) == (c.digest(), trainer.code_digest())
    json.dumps(info)


def test_epoch_rows_summarise_their_steps(reference):
    for c, _, history in reference.values():
        steps = history.steps.groupby(history.steps.index // (TRAIN // c.training.batch))
        np.testing.assert_allclose(history.epochs.train_loss, steps.loss.mean(), rtol=1e-6)
        assert history.epochs.lr.tolist() == steps.lr.last().tolist()
        assert history.epochs.beta1.tolist() == steps.beta1.last().tolist()
        assert np.isfinite(history.epochs).all(axis=None)


def test_bf16_run_multiplies_in_bf16(tmp_path, reference):
    """From the same weights the first loss is another one, by the rounding of 8 bits."""
    c, _, history = reference["one cycle, bf16"]
    plain = trainer.fit(config.replace(c, {"training.precision": "fp32", "training.epochs": 1}), tmp_path)
    error = abs(history.steps.loss[0] / plain.steps.loss[0] - 1)
    assert 1e-6 < error < 2**-6


@pytest.mark.parametrize(("wanted", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_the_wanted_one(wanted, dtype):
    assert trainer.precision(wanted, "cpu") == dtype


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_is_bf16_where_the_processor_has_it(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert trainer.precision("auto", "cpu") == (torch.bfloat16 if native else torch.float32)
