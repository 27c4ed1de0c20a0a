"""What a run may have beside its plain loop: averages, micro-batches, fp16, milestones, clipping; skipped steps."""

import copy
import math

import numpy as np
import pytest
import torch
from tiny import (
    EPOCHS,
    FREE,
    MORE,
    RUNS,
    TRAIN,
    Stop,
    assert_same_run,
    assert_same_weights,
    every_step,
    tiny,
    weights,
)
from torch import nn

from dotlib import checkpoint, config, evaluation, inference, losses, optim, trainer
from dotlib.data import dataset, samples

pytestmark = pytest.mark.usefixtures("one_thread")


def snapshots(monkeypatch):
    """The network of the next run, and its weights and statistics before and after each of its steps."""
    seen, plain = {"before": [], "after": []}, (optim.optimiser, optim.step)

    def optimiser(model, *arguments):
        seen["model"] = model
        return plain[0](model, *arguments)

    def step(*arguments):
        seen["before"].append(copy.deepcopy(seen["model"].state_dict()))
        plain[1](*arguments)
        seen["after"].append(copy.deepcopy(seen["model"].state_dict()))

    monkeypatch.setattr(optim, "optimiser", optimiser)
    monkeypatch.setattr(optim, "step", step)
    return seen


def test_average_is_what_is_judged(tmp_path, monkeypatch):
    """By the recurrence, over the weights after each step; metrics and validation are those of the average."""
    c, seen = tiny(training__ema=0.7, epochs=3), snapshots(monkeypatch)
    history = trainer.fit(c, tmp_path)
    found = weights(c, tmp_path)
    for name, tensor in found.items():
        steps = [state[name].double() for state in seen["after"]]
        average = steps[0]
        for value in steps[1:]:
            average = 0.7 * average + 0.3 * value
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), average, rtol=1e-4, atol=1e-6)
        else:
            assert tensor == steps[-1]
    assert_same_weights(checkpoint.load(tmp_path / "last.pt", c.digest())["model"], seen["after"][-1])
    model, data = inference.network(c), dataset.load(c.data)
    model.load_state_dict(found)
    model = model.to(memory_format=torch.channels_last_3d)
    shown, tissue = samples.of(c, data, "validation"), data.tissue("validation")
    row = trainer.validate(model, shown, tissue, losses.Criterion(config.Loss(), model.standard), torch.float32)
    assert row == {key: history.epochs[key].iloc[-1] for key in row}
    judged = evaluation.judge(model.eval(), data).assign(checkpoint="last")
    assert judged.equals(history.metrics[history.metrics.checkpoint == "last"])


def test_schedule_free_is_judged_by_its_average_and_its_statistics(tmp_path, monkeypatch):
    """x = y + (1 - 1 / beta1) (z - y); the batch statistics are those of the first batches of the training set."""
    c, seen = tiny(**FREE, epochs=2), snapshots(monkeypatch)
    trainer.fit(c, tmp_path)
    state = checkpoint.load(tmp_path / "last.pt", c.digest())
    model, y = inference.network(c), seen["after"][-1]
    numbers = [name for name, p in model.named_parameters() if p.ndim > 1]
    numbers += [name for name, p in model.named_parameters() if p.ndim <= 1]  # as the optimiser's groups have them
    for i, name in enumerate(numbers):
        z = state["optimiser"]["state"][i]["z"]
        torch.testing.assert_close(state["judged"][name], z + (y[name] - z) / 0.9, rtol=1e-4, atol=1e-6)
    model.load_state_dict(state["judged"])
    train = dataset.load(c.data).volumes("train").half().float()[: trainer.CALIBRATION * c.training.batch]
    given = []
    norm = model.network.stem[1]
    norm.register_forward_pre_hook(lambda module, x: given.append(x[0].mean((0, 2, 3, 4))))
    with torch.no_grad():
        for x in train.split(c.training.batch):
            model.train()(x)
    torch.testing.assert_close(state["judged"]["network.stem.1.running_mean"], sum(given) / len(given))


def plain_norms(*arguments):
    """A network whose samples do not see each other."""
    model = inference.network(*arguments)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm3d):
                setattr(module, name, nn.GroupNorm(1, child.num_features))
    return model


def test_gradients_of_micro_batches_add_up(tmp_path, monkeypatch):
    """Of a network without batch statistics: those of 2 x 4 and of 4 x 2 samples are those of 8."""
    gradients = {}
    for micro in (None, 4, 2):
        kept = gradients[micro] = {}

        def look(model, limit, kept=kept):
            kept.update({i: p.grad.clone() for i, p in enumerate(model)})
            raise Stop

        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(trainer, "network", plain_norms)
            patch.setattr(nn.utils, "clip_grad_norm_", lambda p, limit, look=look: look(list(p), limit))
            trainer.fit(tiny(training__micro=micro), tmp_path / str(micro))
    for micro in (4, 2):
        for i, expected in gradients[None].items():
            torch.testing.assert_close(gradients[micro][i], expected, rtol=1e-3, atol=1e-6)
    assert sum(g.norm() for g in gradients[None].values()) > 0.1


def test_one_micro_batch_is_the_batch(tmp_path, reference):
    c, folder, history = reference["one cycle, bf16"]
    same = config.replace(c, {"training.micro": c.training.batch})
    found = trainer.fit(same, tmp_path)
    assert found.steps.equals(history.steps) and found.metrics.equals(history.metrics)
    assert_same_weights(weights(same, tmp_path), weights(c, folder))


def test_checkpointed_run_is_the_plain_run(tmp_path):
    """Bit for bit in fp32: weights, moments' effects, statistics."""
    runs = {on: tiny(epochs=2, training__checkpointing=on) for on in (False, True)}
    histories = [trainer.fit(c, tmp_path / str(on)) for on, c in runs.items()]
    assert histories[0].steps.equals(histories[1].steps) and histories[0].metrics.equals(histories[1].metrics)
    assert_same_weights(*(weights(c, tmp_path / str(on)) for on, c in runs.items()))


KINDS = {"adam": tiny("stage1-adam"), "adamw": tiny(), "muon": tiny(optim__name="muon"), "schedule-free": tiny(**FREE)}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_step_that_is_not_finite_is_skipped(tmp_path, monkeypatch, name, bad):
    """Steps 2 and 3 of four: the weights at the flush are those before them."""
    c = config.replace(KINDS[name], {"training.batch": 4})
    seen = snapshots(monkeypatch)
    every_step(monkeypatch, lambda i, loss, pred, truth: loss * bad if i >= 2 else loss)
    with pytest.raises(
        trainer.DivergedError, match=rf"epoch 0, step 2 \(2 of the run\): loss {bad}, gradient norm nan"
    ) as error:
        trainer.fit(c, tmp_path)
    assert len(error.value.history.steps) == 4 and error.value.history.epochs.empty
    left = seen["model"].state_dict()
    for key, p in seen["model"].named_parameters():
        assert p.isfinite().all() and torch.equal(left[key], seen["before"][2][key]), key
    assert not torch.equal(seen["before"][2]["network.head.weight"], seen["before"][0]["network.head.weight"])


@pytest.mark.parametrize(("arm", "lr"), [("stage1-onecycle", 1e3), ("stage1-adam", 1e10), ("legacy-adam", 1e38)])
def test_diverging_run_is_named(tmp_path, arm, lr):
    """With its step, loss, norm, rate and last good checkpoint."""
    c = tiny(arm, optim__lr=lr, optim__schedule="constant")
    what = rf"epoch \d, .*step \d \(\d of the run\): loss .*, gradient norm .*, learning rate {lr:g}".replace(
        "+", r"\+"
    )
    with pytest.raises(trainer.DivergedError, match=f"{what}; no checkpoint yet$") as error:
        trainer.fit(c, tmp_path)
    history = error.value.history
    assert history.failed and history.failed in str(error.value) and str(error.value).startswith(str(tmp_path))
    assert len(history.steps) >= 2 and history.steps.lr.iloc[-1] == lr == history.info["optimiser"]["lr"]
    assert not (tmp_path / "last.pt").exists()


def test_fp16_scale_is_halved_where_gradients_overflow(reference):
    """And doubled after two steps in a row without; such steps are counted, and training goes on."""
    c, _, history = reference["fp16"]
    steps, (initial, growth, interval) = history.steps, c.training.scaler
    overflown = ~np.isfinite(steps.gradient_norm)
    assert overflown[0] and not overflown.iloc[-1] and np.isfinite(steps.loss).all()
    scale, quiet = initial, 0
    for recorded, over in zip(steps.scale, overflown, strict=True):
        assert recorded == scale
        quiet = 0 if over else quiet + 1
        scale *= 0.5 if over else growth if quiet == interval else 1
        quiet %= interval
    per_epoch = TRAIN // c.training.batch
    assert history.epochs.skipped.tolist() == overflown.groupby(overflown.index // per_epoch).sum().tolist()
    assert history.info["precision"] == "float16"


def test_fp16_step_that_overflows_is_not_taken(tmp_path, monkeypatch):
    seen = snapshots(monkeypatch)
    history = trainer.fit(MORE["fp16"], tmp_path)
    names = [name for name, _ in seen["model"].named_parameters()]
    for before, after, norm in zip(seen["before"], seen["after"], history.steps.gradient_norm, strict=True):
        assert all(torch.equal(before[name], after[name]) for name in names) == (not math.isfinite(norm))


def test_fp16_gradient_that_overflows_unscaled_ends_the_run(tmp_path, monkeypatch):
    """Else every step would be skipped, and the run end untrained."""
    every_step(monkeypatch, lambda i, loss, pred, truth: loss + (pred * 0).sqrt().sum() * 0)
    c = tiny(precision="fp16", epochs=9, training__scaler=(4.0, 2.0, 2))
    with pytest.raises(trainer.DivergedError, match=r"epoch 1, step 0 \(2 of the run\): .*gradient norm nan"):
        trainer.fit(c, tmp_path)


def test_fp16_run_follows_fp32(tmp_path):
    """With a scale that fits, by the rounding of 11 bits."""
    losses_of = {}
    for precision in ("fp16", "fp32"):
        c = tiny(precision=precision, epochs=1, training__scaler=(256.0, 2.0, 2000))
        losses_of[precision] = trainer.fit(c, tmp_path / precision).steps.loss
    error = np.abs(losses_of["fp16"] / losses_of["fp32"] - 1)
    assert 1e-7 < error[0] < 2**-9 and error.max() < 0.01


def test_milestones_are_kept(tmp_path):
    """With the weights after their epoch, whether other checkpoints are written or not."""
    seen, c = {}, tiny(epochs=4, training__milestones=(2, 3), training__ema=0.5)
    trainer.fit(c, tmp_path, report=lambda row: seen.update({row["epoch"] + 1: weights(c, tmp_path)}), save_every=0)
    other = tmp_path / "other"
    trainer.fit(c, other, save_every=math.inf)
    for folder in (tmp_path, other):
        assert sorted(path.name for path in folder.glob("epoch-*")) == ["epoch-2.pt", "epoch-3.pt"]
        for epoch in (2, 3):
            model = inference.trained(c, folder, f"epoch-{epoch}")
            assert_same_weights(model.state_dict(), seen[epoch])
            assert not model.training
    assert not torch.equal(seen[2]["network.head.weight"], seen[3]["network.head.weight"])


@pytest.mark.parametrize(("save_every", "expected"), [(0, EPOCHS), (math.inf, 1)])
def test_checkpoints_are_written_when_they_are_due(tmp_path, reference, monkeypatch, save_every, expected):
    """Always after the last epoch; what they hold does not depend on how many there were."""
    whole, written, save = reference["plateau, fp32"], [], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, *rest: (written.append(path.name), save(path, *rest)))
    c = RUNS["plateau, fp32"]
    assert_same_run((c, tmp_path, trainer.fit(c, tmp_path, save_every=save_every)), whole)
    assert written.count("last.pt") == expected


def test_epochs_hold_the_change_of_the_weights_and_the_second_moments(tmp_path, monkeypatch):
    """Of their last step, by hand: the median of |change| / |weight|, and the moments that last.pt holds."""
    c, seen = tiny(epochs=3), snapshots(monkeypatch)
    epochs = trainer.fit(c, tmp_path).epochs
    weight = [name for name, p in seen["model"].named_parameters() if p.ndim > 1]
    for ratio, before, after in zip(epochs.update_ratio, seen["before"][1::2], seen["after"][1::2], strict=True):
        expected = [((after[name] - before[name]).norm() / after[name].norm()).item() for name in weight]
        assert ratio == pytest.approx(sorted(expected)[(len(expected) - 1) // 2], rel=1e-6)
    moments = checkpoint.load(tmp_path / "last.pt", c.digest())["optimiser"]["state"].values()
    squares = torch.cat([state["exp_avg_sq"].flatten() for state in moments]).double()
    assert epochs.second_moment.iloc[-1] == pytest.approx(squares.mean().sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("clip", [None, 0.01])
def test_gradients_are_clipped_only_where_a_norm_is_given(tmp_path, monkeypatch, clip):
    norms, plain = [], optim.step
    every_step(monkeypatch, lambda i, loss, pred, truth: 100 * loss)

    def step(opt, *arguments):
        norms.append(math.hypot(*(p.grad.norm().item() for group in opt.param_groups for p in group["params"])))
        plain(opt, *arguments)

    monkeypatch.setattr(optim, "step", step)
    history = trainer.fit(tiny(epochs=2, optim__clip=clip), tmp_path)
    assert history.steps.gradient_norm.min() > 10
    np.testing.assert_allclose(norms, history.steps.gradient_norm if clip is None else clip, rtol=1e-4)


def test_schedules_reach_the_steps_and_are_recorded(tmp_path, monkeypatch):
    """Read off the optimiser at each step."""
    used, plain = [], optim.step

    def step(opt, *arguments):
        group = opt.param_groups[0]
        used.append((group["lr"], group["betas"][0], group["weight_decay"]))
        plain(opt, *arguments)

    monkeypatch.setattr(optim, "step", step)
    history = trainer.fit(tiny(epochs=4, optim__weight_decay=5e-4, optim__final_decay=1e-5), tmp_path)
    assert history.steps[["lr", "beta1", "weight_decay"]].to_records(index=False).tolist() == used
    np.testing.assert_allclose([decay for *_, decay in used], np.geomspace(5e-4, 1e-5, 8))
