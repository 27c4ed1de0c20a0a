"""One training run: the loop against a plain one, failures, and what it leaves."""

import json
import math

import numpy as np
import pytest
import torch
from tiny import CLOCKED, EPOCHS, RUNS, TRAIN, assert_same_run, assert_same_weights, every_step, tiny, weights

from dotlib import checkpoint, config, inference, machine, provenance, trainer
from dotlib.data import dataset

pytestmark = pytest.mark.usefixtures("one_thread")


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
    model = inference.network(c, mean, sd).to(memory_format=torch.channels_last_3d)
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
            rows.append((loss.item(), norm, 1.0, rate, beta1, 1e-4))
    return model, start, np.array(rows)


@pytest.mark.parametrize("arm", ["stage1-adam", "stage1-onecycle"])
def test_fit_equals_a_plain_loop(tmp_path, arm):
    """Batches of 3 leave one phantom out; the clipping acts in every step."""
    c = tiny(arm, epochs=2, training__batch=3, optim__clip=0.1)
    history = trainer.fit(c, tmp_path)
    model, start, rows = plain_loop(c)
    assert list(history.steps) == ["loss", "gradient_norm", "scale", "lr", "beta1", "weight_decay"]
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


def nan_loss(loss, pred):
    return loss * math.nan


def nan_gradient(loss, pred):
    return loss + (pred * 0).sqrt().sum() * 0  # finite, of slope 0 * infinity


@pytest.mark.parametrize("spoil", [nan_loss, nan_gradient])
def test_nan_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path, reference, monkeypatch, spoil):
    c = RUNS["plateau, fp32"]
    expected = reference["plateau, fp32"]
    with monkeypatch.context() as patch:
        every_step(patch, lambda i, loss, pred, truth: spoil(loss, pred) if i == 5 else loss)
        what = r"epoch 2, step 1 \(5 of the run\): loss .*, gradient norm nan, learning rate 5e-05"
        with pytest.raises(trainer.DivergedError, match=f"{what}; last good checkpoint: epoch 1$") as error:
            trainer.fit(c, tmp_path, save_every=0)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path))
    left, before = error.value.history, expected[2]
    assert left.failed in str(error.value) and left.failed.startswith("epoch 2, step 1 ")
    assert left.epochs.drop(columns=CLOCKED).equals(before.epochs[:2].drop(columns=CLOCKED))
    assert left.steps[:5].equals(before.steps[:5]) and len(left.steps) == 6
    assert math.isnan(left.steps.gradient_norm[5]) and left.metrics.empty
    assert left.info["samples_seen"] == 6 * c.training.batch
    state = checkpoint.load(tmp_path / "last.pt", c.digest())
    assert len(state["epochs"]) == 2
    for name in ("last", "best"):
        assert all(tensor.isfinite().all() for tensor in weights(c, tmp_path, name).values())
    assert_same_run((c, tmp_path, trainer.fit(c, tmp_path)), expected)  # the fault removed, it goes on from there


def test_nan_in_validation_stops_the_run_too(tmp_path, monkeypatch):
    """It would be neither the best nor worse than it, and hide every later best."""
    validate, c = trainer.validate, tiny("stage1-adam")
    monkeypatch.setattr(trainer, "validate", lambda *arguments: validate(*arguments) | {"validation_loss": math.nan})
    what = (
        r"epoch 0, validation loss nan after step 1 \(1 of the run\): loss 1\..*, gradient norm .*, learning rate 5e-05"
    )
    with pytest.raises(trainer.DivergedError, match=f"{what}; no checkpoint"):
        trainer.fit(c, tmp_path, save_every=0)
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
            trainer.fit(tiny(arm, epochs=2, training__batch=5), tmp_path / arm)
    first, second = torch.cat(visits["stage1-onecycle"]).view(2, 15).tolist()
    assert len(set(first)) == len(set(second)) == 15
    assert first != second and len(set(first + second)) <= TRAIN
    assert torch.equal(torch.cat(visits["legacy-adam"]), torch.cat(visits["stage1-onecycle"]))


def test_patience_stops_and_best_is_the_best(stalled):
    c, folder, history, snapshots = stalled
    assert history.epochs.epoch.tolist() == [0, 1, 2, 3, 4]
    assert len(history.steps) == 5 * TRAIN // 8
    assert_same_weights(weights(c, folder, "best"), snapshots[2])
    assert_same_weights(weights(c, folder, "last"), snapshots[4])


def test_plateau_watches_the_validation_loss(tmp_path, monkeypatch):
    """The training loss falls all the while."""
    plain, script = trainer.validate, iter([1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(trainer, "validate", lambda *a: plain(*a) | {"validation_loss": next(script)})
    history = trainer.fit(tiny("stage1-adam", epochs=4, optim__lr=1e-3, optim__plateau=(0.5, 1)), tmp_path)
    assert history.epochs.train_loss.is_monotonic_decreasing
    assert history.epochs.lr.tolist() == [1e-3, 1e-3, 1e-3, 5e-4]


def test_report_and_progress_follow_the_run(tmp_path, reference):
    c, _, history = reference["plateau, fp32"]
    rows, lines = [], []

    def report(row):
        rows.append(row)
        lines.append(json.loads((tmp_path / "progress.json").read_text()))

    trainer.fit(c, tmp_path, report=report)
    plain = [{key: value for key, value in row.items() if key not in CLOCKED} for row in rows]
    assert plain == history.epochs.drop(columns=CLOCKED).to_dict("records")
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
    assert info["parameters"] == sum(p.numel() for p in inference.network(c).parameters())
    assert info["precision"] == {"fp32": "float32", "bf16": "bfloat16"}[c.training.precision]
    assert info["samples_seen"] == EPOCHS * TRAIN
    assert info["samples_per_second"] == pytest.approx(EPOCHS * TRAIN / history.epochs.seconds.sum())
    last = history.steps.iloc[-1]
    assert info["optimiser"] == {
        "name": c.optim.name,
        "lr": last.lr,
        "beta1": last.beta1,
        "beta2": c.optim.betas[1],
        "weight_decay": c.optim.weight_decay,
    }
    assert (info["compile"], info["micro"], info["threads"]) == ("off", c.training.batch, 1)
    assert info["versions"]["torch"] == torch.__version__
    assert history.failed == "" and (info["gpu_peak_mb"], history.epochs.gpu_mb.notna().any()) == (0.0, False)
    assert (info["config_digest"], info["code"], info["earlier"]) == (c.digest(), provenance.code_digest(), [])
    json.dumps(info)


def test_epoch_rows_summarise_their_steps(reference):
    for c, _, history in map(reference.__getitem__, RUNS):
        steps = history.steps.groupby(history.steps.index // (TRAIN // c.training.batch))
        np.testing.assert_allclose(history.epochs.train_loss, steps.loss.mean(), rtol=1e-6)
        assert history.epochs.lr.tolist() == steps.lr.last().tolist()
        assert history.epochs.beta1.tolist() == steps.beta1.last().tolist()
        assert history.epochs.weight_decay.tolist() == steps.weight_decay.last().tolist()
        assert np.isfinite(history.epochs.drop(columns=["gpu_mb", "gpu_busy"])).all(axis=None)
        assert set(history.epochs.skipped) == {0} and set(history.steps.scale) == {1.0}
        assert history.steps.index.tolist() == list(range(len(history.steps)))


def test_batch_that_the_dataset_cannot_fill_is_one_line(tmp_path, monkeypatch):
    """Records that failed their checks are in no part: the configuration cannot know."""
    plain = dataset.Dataset.volumes
    monkeypatch.setattr(dataset.Dataset, "volumes", lambda *arguments: plain(*arguments)[:7])
    with pytest.raises(config.ConfigError, match=r"^training.batch 8 exceeds the 7 training phantoms that are left$"):
        trainer.fit(tiny(), tmp_path)


def test_peak_of_an_epoch_includes_its_validation(tmp_path, monkeypatch):
    validated, plain = [], trainer.validate
    monkeypatch.setattr(trainer, "validate", lambda *arguments: (validated.append(1), plain(*arguments))[1])
    monkeypatch.setattr(machine, "peak_mb", lambda on: float(len(validated)))
    assert trainer.fit(tiny(epochs=2), tmp_path).epochs.gpu_peak_mb.tolist() == [1.0, 2.0]
