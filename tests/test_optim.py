"""Optimisers and schedules against their closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dotlib import config, optim
from dotlib.config import ADAM, ONECYCLE
from dotlib.models import autoencoder

STEPS = 500


def network(name="stage1"):
    return autoencoder.build(name, 16, 2, 8, 0, torch.ones(2), torch.ones(2))


def optimiser_of(settings):
    return optim.optimiser(nn.Linear(2, 2), settings)


def is_weight(module, name):
    """The law's own words: weights of convolutions and linear layers, neither biases nor normalisations."""
    return name == "weight" and isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Linear)


@pytest.mark.parametrize("name", ["legacy", "stage1"])
def test_adamw_decays_weights_and_spares_norms_and_biases(name):
    """Without a gradient a step is the decay alone: w -> w (1 - lr decay)."""
    model = network(name)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    settings = ONECYCLE.model_copy(update={"lr": 0.1, "weight_decay": 0.5})
    optim.optimiser(model, settings).step()
    for module in model.modules():
        for parameter, p in module.named_parameters(recurse=False):
            expected = 0.95 if is_weight(module, parameter) else 1.0
            assert torch.equal(p, torch.full_like(p, expected)), (module, parameter)


def test_adam_decays_everything_through_the_gradient():
    """L2: without a gradient of its own, every parameter is moved by lr sign(w), however small the decay."""
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    optim.optimiser(model, ADAM.model_copy(update={"lr": 0.1, "weight_decay": 1e-3})).step()
    assert all(torch.allclose(p, torch.full_like(p, 0.9), atol=1e-4) for p in model.parameters())


@pytest.mark.parametrize("settings", [ADAM, ONECYCLE])
def test_optimiser_has_every_parameter_once(settings):
    model = network()
    held = [id(p) for group in optim.optimiser(model, settings).param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("settings", [ADAM, ONECYCLE])
def test_optimiser_starts_with_the_configured_numbers(settings):
    opt = optimiser_of(settings)
    assert {(group["lr"], tuple(group["betas"])) for group in opt.param_groups} == {(settings.lr, settings.betas)}
    assert opt.param_groups[0]["weight_decay"] == settings.weight_decay


def course(settings, steps):
    """Learning rate and beta1 of every step, for each parameter group."""
    opt = optimiser_of(settings)
    schedule, rows = optim.schedule(opt, settings, steps), []
    for _ in range(steps):
        rows.append([(group["lr"], group["betas"][0]) for group in opt.param_groups])
        opt.step()
        schedule.step()
    return np.array(rows)


def cosine(a, b, share):
    return b + (a - b) * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize(("warmup", "div", "final_div"), [(0.2, 25.0, 1e4), (0.3, 10.0, 100.0)])
def test_one_cycle_is_two_cosines(warmup, div, final_div):
    """Up from lr / div during the warm-up and down to lr / div / final_div; beta1 the opposite way (Smith 2018)."""
    changes = {"warmup": warmup, "div": div, "final_div": final_div}
    found = course(ONECYCLE.model_copy(update=changes), STEPS)
    top, end = warmup * STEPS - 1, STEPS - 1  # counted from 0: the warm-up's last step is the peak
    peak, low, high = 3e-3, 0.85, 0.95
    expected = np.empty((STEPS, 2))
    for i in range(STEPS):
        if i <= top:
            expected[i] = cosine(peak / div, peak, i / top), cosine(high, low, i / top)
        else:
            share = (i - top) / (end - top)
            expected[i] = cosine(peak, peak / div / final_div, share), cosine(low, high, share)
    assert found.shape == (STEPS, 2, 2)
    np.testing.assert_allclose(found, np.stack([expected, expected], 1), rtol=1e-9)
    assert found[:, 0, 0].argmax() == warmup * STEPS - 1
    np.testing.assert_allclose(found[[0, int(top), -1], 0, 0], [peak / div, peak, peak / div / final_div], rtol=1e-9)
    np.testing.assert_allclose(found[[0, int(top), -1], 0, 1], [high, low, high], rtol=1e-12)


def test_one_cycle_without_momentum_keeps_beta1():
    found = course(ONECYCLE.model_copy(update={"momentum": None, "betas": (0.7, 0.95)}), 50)
    assert set(found[..., 1].flat) == {0.7}
    assert found[9, 0, 0] == pytest.approx(3e-3)


def test_one_cycle_keeps_beta2_and_decay():
    opt = optimiser_of(ONECYCLE)
    schedule = optim.schedule(opt, ONECYCLE, 10)
    opt.step()
    schedule.step()
    assert [(g["betas"][1], g["weight_decay"]) for g in opt.param_groups] == [(0.95, 1e-4), (0.95, 0.0)]


def test_plateau_halves_the_rate_after_its_patience():
    """Five epochs without a new best are borne, the sixth halves; a new best starts the count anew."""
    opt = optimiser_of(ADAM)
    schedule = optim.schedule(opt, ADAM, STEPS)
    losses = [3.0, 2.0, *[2.0] * 5, 1.0, *[1.5] * 6, *[1.5] * 6]
    rates = []
    for loss in losses:
        schedule.step(loss)
        rates.append(opt.param_groups[0]["lr"] / ADAM.lr)
    assert rates == [1.0] * 13 + [0.5] * 6 + [0.25]


def test_plateau_takes_factor_and_patience():
    opt = optimiser_of(settings := ADAM.model_copy(update={"plateau": (0.1, 1)}))
    schedule = optim.schedule(opt, settings, STEPS)
    for _ in range(3):
        schedule.step(1.0)
    assert opt.param_groups[0]["lr"] == pytest.approx(0.1 * ADAM.lr)


def test_constant_rate_stays():
    constant = config.replace(config.arm("stage1-adam", "smoke"), {"optim.schedule": "constant"}).optim
    assert set(course(constant, 20)[..., 0].flat) == {ADAM.lr}
