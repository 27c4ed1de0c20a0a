"""Schedules and optimisers against those of torch, their closed forms and their sources' formulas."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from dotlib import config, optim
from dotlib.arms import ADAM
from dotlib.config import ONECYCLE, Model
from dotlib.models import autoencoder

OFF = torch.amp.GradScaler("cpu", enabled=False)
YES = torch.tensor(True)


def network(name="stage1"):
    model = autoencoder.build(Model(name=name, width=2, code=8), 16, 0, torch.ones(2), torch.ones(2))
    return model.to(memory_format=torch.channels_last_3d)


def changed(base, **changes):
    return config.Optim.model_validate(base.model_dump() | changes)


def course(settings, steps):
    """Learning rate, beta1 and weight decay of every step."""
    return np.array([optim.settings(settings, i, steps) for i in range(steps)])


def torchs(steps, make):
    """Learning rate and beta1 of every step by a scheduler of torch, `make(optimiser)`."""
    opt = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=3e-3, betas=(0.9, 0.95))
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR calls its parts in a way that they warn of
        schedule = make(opt)
        for i in range(steps):
            rows.append((opt.param_groups[0]["lr"], opt.param_groups[0]["betas"][0]))
            opt.step()
            if i < steps - 1:
                schedule.step()
    return np.array(rows)


@pytest.mark.parametrize("steps", [4, 6, 10, 32, 97, 500])
@pytest.mark.parametrize("momentum", [(0.85, 0.95), (0.5, 0.6), None])
@pytest.mark.parametrize(("warmup", "div", "final_div"), [(0.2, 25.0, 1e4), (0.35, 10.0, 100.0)])
def test_one_cycle_is_that_of_torch(steps, momentum, warmup, div, final_div):
    settings = changed(ONECYCLE, warmup=warmup, div=div, final_div=final_div, momentum=momentum)
    low, high = momentum or (0.0, 0.0)
    cycle = {"max_lr": 3e-3, "total_steps": steps, "pct_start": warmup, "div_factor": div}
    cycle |= {"final_div_factor": final_div, "cycle_momentum": bool(momentum)}
    cycle |= {"base_momentum": low, "max_momentum": high}
    expected = torchs(steps, lambda opt: lr_scheduler.OneCycleLR(opt, **cycle))
    np.testing.assert_allclose(course(settings, steps)[:, :2], expected, rtol=1e-9)


def test_one_cycle_with_a_warm_up_of_one_step_starts_at_its_peak():
    """A fifth of five steps: torch's own divides by zero there."""
    expected = torchs(5, lambda opt: lr_scheduler.CosineAnnealingLR(opt, 4, eta_min=3e-3 / 25 / 1e4))[:, 0]
    found = course(ONECYCLE, 5)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-7)
    np.testing.assert_allclose(found[:, 1], 0.9 - 0.05 * np.cos(np.pi * np.arange(5) / 4), rtol=1e-12)


def test_one_cycle_peaks_at_the_end_of_its_warm_up():
    found = course(ONECYCLE, 500)
    assert found[:, 0].argmax() == 99 == found[:, 1].argmin()
    np.testing.assert_allclose(found[[0, 99, 499], 0], [3e-3 / 25, 3e-3, 3e-3 / 25 / 1e4], rtol=1e-9)
    np.testing.assert_allclose(found[[0, 99, 499], 1], [0.95, 0.85, 0.95], rtol=1e-12)


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.3), (64, 0.25), (500, 0.1)])
def test_cosine_is_a_line_up_and_a_cosine_down(steps, warmup):
    top = round(warmup * steps) - 1
    settings = changed(ONECYCLE, schedule="cosine", warmup=warmup, momentum=None)

    def both(opt):
        up = lr_scheduler.LinearLR(opt, 1 / 25, total_iters=top)
        down = lr_scheduler.CosineAnnealingLR(opt, steps - 1 - top, eta_min=3e-3 / 25 / 1e4)
        return lr_scheduler.SequentialLR(opt, [up, down], [top])

    np.testing.assert_allclose(course(settings, steps)[:, :2], torchs(steps, both), rtol=1e-7)


def test_other_schedules_keep_beta1():
    """Whatever `momentum` says: it is the cycle's."""
    for schedule in ("cosine", "constant", "progressive", "plateau"):
        assert set(course(changed(ONECYCLE, schedule=schedule, betas=(0.7, 0.95)), 50)[:, 1]) == {0.7}


@pytest.mark.parametrize("seed", range(8))
def test_reductions_are_those_of_torchs_plateau_rule(seed):
    """Replayed on random losses: walks, flat stretches, and improvements on either side of the threshold."""
    rng = np.random.default_rng(seed)
    patience, factor = int(rng.integers(1, 7)), float(rng.uniform(0.1, 0.9))
    steps = rng.choice([0.0, -0.9e-4, -1.1e-4, 0.05, -0.05, -0.01], size=120, p=[0.3, 0.2, 0.1, 0.2, 0.1, 0.1])
    losses = np.cumprod(1 + steps).tolist()
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rule = lr_scheduler.ReduceLROnPlateau(opt, factor=factor, patience=patience, eps=0.0)
    settings, rates = changed(ADAM, lr=1.0, plateau=(factor, patience)), []
    for i, loss in enumerate(losses):
        rule.step(loss)
        rates.append(opt.param_groups[0]["lr"])
        assert optim.settings(settings, 7 * i, 10_000, losses[: i + 1]).lr == pytest.approx(rates[-1], rel=1e-9)
    assert len(set(rates)) > 3


def test_plateau_halves_the_rate_after_its_patience():
    """Five epochs without a new best are borne, the sixth halves; a new best starts the count anew."""
    losses = [3.0, 2.0, *[2.0] * 5, 1.0, *[1.5] * 6, *[1.5] * 6]
    rates = [optim.settings(ADAM, 0, 1, losses[: i + 1]).lr / ADAM.lr for i in range(len(losses))]
    assert rates == [1.0] * 13 + [0.5] * 6 + [0.25]


def test_progressive_phases_are_those_of_the_earlier_work():
    """Phases 1a, 1b, 1c: 30, 50, 20 of 100 epochs at 1e-4, 5e-5, 1e-5, here of 7 steps each."""
    found = course(changed(ADAM, lr=1e-4, schedule="progressive"), 700)[:, 0]
    np.testing.assert_allclose(found, np.repeat([1e-4, 5e-5, 1e-5], [210, 350, 140]), rtol=1e-12)


@pytest.mark.parametrize("steps", [10, 30, 64, 1000])
def test_progressive_phases_have_their_share_of_any_number_of_steps(steps):
    found = course(changed(ADAM, lr=1.0, schedule="progressive"), steps)[:, 0]
    shares = [np.isclose(found, factor).sum() for factor in (1, 0.5, 0.1)]
    np.testing.assert_allclose(shares, np.array([0.3, 0.5, 0.2]) * steps, atol=1)
    assert sum(shares) == steps and (np.diff(found) <= 0).all()


@pytest.mark.parametrize("schedule", ["constant", "onecycle"])
def test_weight_decay_falls_geometrically(schedule):
    found = course(changed(ONECYCLE, schedule=schedule, weight_decay=5e-4, final_decay=1e-5), 60)[:, 2]
    np.testing.assert_allclose(found, np.geomspace(5e-4, 1e-5, 60), rtol=1e-9)
    assert set(course(ONECYCLE, 60)[:, 2]) == {1e-4}


def test_constant_rate_stays():
    assert set(course(changed(ADAM, schedule="constant"), 20)[:, 0]) == {ADAM.lr}


def is_weight(module, name):
    """The law's own words: weights of convolutions and linear layers, neither biases nor normalisations."""
    return name == "weight" and isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Linear)


def ones_without_gradient(name="stage1"):
    model = network(name)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    return model


def assert_parameters(model, weight, other):
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            expected = torch.full_like(p, weight if is_weight(module, name) else other)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("network_name", ["legacy", "stage1"])
@pytest.mark.parametrize(("spare", "other"), [(None, 1.0), (True, 1.0), (False, 0.95)])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decoupled_decay_spares_norms_and_biases(network_name, name, spare, other):
    """Without a gradient a step is the decay alone: w -> w (1 - lr decay)."""
    model = ones_without_gradient(network_name)
    settings = changed(ONECYCLE, name=name, lr=0.1, weight_decay=0.5, spare=spare)
    optim.step(optim.optimiser(model, settings), OFF, YES)
    assert_parameters(model, 0.95, other)


@pytest.mark.parametrize(("spare", "other"), [(None, 0.9), (True, 1.0), (False, 0.9)])
def test_adam_decays_through_the_gradient(spare, other):
    """L2: without a gradient of its own, a parameter is moved by lr sign(w), however small the decay."""
    model = ones_without_gradient()
    optim.step(optim.optimiser(model, changed(ADAM, lr=0.1, weight_decay=1e-2, spare=spare)), OFF, YES)
    assert_parameters(model, 0.9, other)


@pytest.mark.parametrize("name", ["adam", "adamw", "muon", "schedule-free"])
def test_settings_reach_every_group_of_their_step(name):
    """What has no decay gets none from the decay's schedule; beta2 stays."""
    free = {"schedule": "constant"} if name == "schedule-free" else {}
    settings = changed(ONECYCLE, name=name, spare=True, weight_decay=5e-4, final_decay=1e-5, **free)
    opt = optim.optimiser(network(), settings)
    for step in (0, 4, 9):
        now = optim.settings(settings, step, 10)
        optim.apply(opt, now)
        groups = opt.param_groups
        assert {group["lr"] for group in groups} == {now.lr}
        assert {group.get("betas", (group.get("momentum"), 0.95)) for group in groups} == {(now.beta1, 0.95)}
        for group in groups:
            assert group["weight_decay"] == (now.weight_decay if group["params"][0].ndim > 1 else 0.0)


@pytest.mark.parametrize("settings", [ADAM, ONECYCLE, changed(ADAM, spare=True)])
def test_optimiser_has_every_parameter_once(settings):
    model = network()
    held = [id(p) for group in optim.optimiser(model, settings).param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("settings", [ADAM, ONECYCLE])
def test_optimiser_starts_with_the_configured_numbers(settings):
    opt = optim.optimiser(nn.Linear(2, 2), settings)
    assert {(group["lr"], tuple(group["betas"])) for group in opt.param_groups} == {(settings.lr, settings.betas)}
    assert opt.param_groups[0]["weight_decay"] == settings.weight_decay


def test_update_ratio_is_the_median_over_weights():
    before = [torch.ones(2, 2), torch.ones(2), torch.full((3, 1), 2.0), torch.full((1, 4), 4.0)]
    model = nn.Module()
    after = [p * factor for p, factor in zip(before, (2.0, 100.0, 0.5, 1.25), strict=True)]
    model.p = nn.ParameterList(after)
    # |change| / |weight|: 1/2, (not counted), 1, 1/5
    assert optim.update_ratio(before, model).item() == pytest.approx(0.5)


def test_second_moment_is_the_mean_square_of_the_gradients():
    """After one step it is (1 - beta2) g^2."""
    model = nn.Linear(3, 2)
    opt = optim.optimiser(model, ONECYCLE)
    for p in model.parameters():
        p.grad = torch.arange(1.0, p.numel() + 1).view_as(p)
    squares = sum(p.grad.square().sum().item() for p in model.parameters())
    assert np.isnan(optim.second_moment(opt))
    optim.step(opt, OFF, YES)
    assert optim.second_moment(opt).item() == pytest.approx(np.sqrt(0.05 * squares / 8), rel=1e-6)
