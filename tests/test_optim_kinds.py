"""Muon, schedule-free weights and moving averages against their sources' formulas; steps that are skipped."""

import copy

import numpy as np
import pytest
import torch
from test_optim import OFF, YES, changed, network
from torch import nn

from dotlib import optim
from dotlib.arms import ADAM
from dotlib.config import ONECYCLE

MUON = changed(ONECYCLE, name="muon", lr=0.01, weight_decay=0.1)
FREE = changed(ONECYCLE, name="schedule-free", schedule="constant", lr=0.05, betas=(0.9, 0.95), weight_decay=0.0)


def with_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
    return model


def flat(weight):
    """A convolution's weights as a matrix in the order of indices: (O, I D H W)."""
    return weight.detach().reshape(len(weight), -1).clone()


def in_order(p):
    """The columns of `flat(p)` in the order in which channels-last storage holds them."""
    index = torch.arange(p[0].numel()).view(p.shape[1:])
    return (index.movedim(0, -1) if p.ndim > 2 else index).flatten()


@pytest.mark.parametrize("name", ["legacy", "stage1"])
def test_muon_has_every_parameter_once_and_the_hidden_weights(name):
    """By storage: its matrices are views of the network's weights. First and last layers are AdamW's."""
    model = network(name)
    opt = optim.optimiser(model, MUON)
    places = {p.data_ptr(): key for key, p in model.named_parameters()}
    held = {
        part: [places[p.data_ptr()] for group in opt.parts[part].param_groups for p in group["params"]]
        for part in ("muon", "adamw")
    }
    assert sorted(held["muon"] + held["adamw"]) == sorted(dict(model.named_parameters()))
    for key, p in model.named_parameters():
        outer = key.startswith(("network.stem", "network.head"))
        assert (key in held["muon"]) == (p.ndim > 1 and not outer), key
    assert any("to_code" in key for key in held["muon"]) and any("encoder" in key for key in held["muon"])


def test_muon_shares_the_storage_of_channels_last_weights_through_a_resume():
    model, other = network(), with_gradients(network())
    opt, kept = optim.optimiser(model, MUON), optim.optimiser(other, MUON)
    optim.step(kept, OFF, YES)
    model.load_state_dict(other.state_dict())
    opt.load_state_dict(copy.deepcopy(kept.state_dict()))
    kernels = 0
    for p, matrix in opt.pairs:
        assert matrix.untyped_storage().data_ptr() == p.untyped_storage().data_ptr()
        assert torch.equal(flat(p)[:, in_order(p)], matrix.detach())
        kernels += p.ndim == 5 and p[0, 0].numel() > 1
    assert kernels > 3
    optim.step(with_gradients(model, 1) and opt, OFF, YES)
    optim.step(with_gradients(other, 1) and kept, OFF, YES)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_muon_takes_torchs_step_on_plain_matrices():
    """On independent copies, in the order of indices; the order of columns is no matter but for bf16's rounding."""
    model = network()
    opt = optim.optimiser(model, MUON)
    start = [flat(p) for p, _ in opt.pairs]
    plain = [nn.Parameter(w.clone()) for w in start]
    theirs = torch.optim.Muon(plain, lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    optim.apply(opt, optim.Settings(0.01, 0.9, 0.1))
    for seed in range(3):
        with_gradients(model, seed)
        for (p, _), matrix in zip(opt.pairs, plain, strict=True):
            matrix.grad = flat(p.grad)
        optim.step(opt, OFF, YES)
        theirs.step()
    for (p, _), matrix, first in zip(opt.pairs, plain, start, strict=True):
        error, way = (flat(p) - matrix.detach()).norm(), (matrix.detach() - first).norm()
        assert error < 0.02 * way  # two gradients in another order of columns differ by 140 %


def test_muon_clears_all_gradients():
    model = with_gradients(network())
    opt = optim.optimiser(model, MUON)
    opt.collect()
    opt.zero_grad()
    assert all(p.grad is None for p in (*model.parameters(), *(flat for _, flat in opt.pairs)))


@pytest.mark.parametrize("settings", [MUON, ADAM, ONECYCLE, FREE])
def test_fp16_scale_leaves_every_gradient(settings):
    """Scaled by 2^10, unscaled and stepped, the weights are those of a step without scaling."""
    plain, scaled = with_gradients(network()), with_gradients(network())
    a, b = (optim.optimiser(model, settings) for model in (plain, scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.zeros(()))
    for p in scaled.parameters():
        p.grad *= 2.0**10
    optim.train(a, plain)
    optim.train(b, scaled)
    optim.unscale(b, scaler)
    norms = [nn.utils.clip_grad_norm_(model.parameters(), 1.0) for model in (plain, scaled)]
    assert norms[0] == norms[1]
    optim.step(a, OFF, YES)
    optim.step(b, scaler, YES)
    start = list(network().parameters())
    for p, q, first in zip(plain.parameters(), scaled.parameters(), start, strict=True):
        assert torch.equal(p, q) and not torch.equal(p, first)


def defazio(gradient, x, steps, warmup, lr, beta1, beta2, decay):
    """Schedule-free AdamW as in Algorithm 1 of Defazio 2024, in numpy: x after each step."""
    z, v, total, out = x.copy(), np.zeros_like(x), 0.0, []
    for t in range(1, steps + 1):
        y = (1 - beta1) * z + beta1 * x
        g = gradient(y)
        v = beta2 * v + (1 - beta2) * g**2
        rate = lr * min(1, t / warmup)
        z = z - rate * (g / (np.sqrt(v / (1 - beta2**t)) + 1e-8) + decay * y)
        total += rate**2
        x = (1 - rate**2 / total) * x + rate**2 / total * z
        out.append(x)
    return out


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_schedule_free_follows_its_formulas(decay):
    """On a quadratic, judged after every third step; the rate is warmed up over 4 of 20 steps."""
    curvature, start = np.array([[1.0, 3.0], [10.0, 0.2]]), np.array([[1.0, -2.0], [0.5, 4.0]])
    settings = changed(FREE, weight_decay=decay)
    model = nn.Module().double()
    model.w = nn.Parameter(torch.tensor(start))
    opt = optim.optimiser(model, settings)
    expected = defazio(lambda y: curvature * y, start, 12, 4, 0.05, 0.9, 0.95, decay)
    for i in range(12):
        optim.train(opt, model)
        optim.apply(opt, optim.settings(settings, i, 20))
        opt.zero_grad()
        (torch.tensor(curvature) * model.w.square() / 2).sum().backward()
        optim.step(opt, OFF, YES)
        if i % 3 == 2:
            optim.evaluate(opt, model)
            np.testing.assert_allclose(model.w.detach(), expected[i], rtol=1e-9)
            assert not model.training
    assert np.abs(expected[-1] - expected[2]).min() > 0.01


def test_average_is_its_recurrence():
    """Of weights and statistics; whole numbers are copied."""
    model = nn.BatchNorm1d(3)
    kept, values, expected = copy.deepcopy(model), [], {}
    rng = np.random.default_rng(0)
    for step, decay in enumerate((0.0, 0.9, 0.9, 0.5)):
        values = {key: rng.normal(size=3) for key in ("weight", "bias", "running_mean", "running_var")}
        for key, value in values.items():
            getattr(model, key).data.copy_(torch.tensor(value))
            expected[key] = decay * expected.get(key, 0) + (1 - decay) * value
        model.num_batches_tracked.fill_(7 * step)
        optim.average(kept, model, decay)
        assert kept.num_batches_tracked == 7 * step
        for key, value in expected.items():
            np.testing.assert_allclose(getattr(kept, key).detach(), value, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(getattr(model, key).detach(), torch.tensor(values[key]).float()) for key in values)


@pytest.mark.parametrize("settings", [ADAM, ONECYCLE, MUON])
def test_step_that_is_not_finite_leaves_weights_and_moments(settings):
    """Also its count: the next step is the one that would have come without it."""
    models = [network(), network()]
    opts = [optim.optimiser(model, settings) for model in models]
    for seed in range(3):
        for model, opt in zip(models, opts, strict=True):
            optim.step(with_gradients(model, seed) and opt, OFF, YES)
        for p in models[1].parameters():
            p.grad.fill_(torch.nan)
        optim.step(opts[1], OFF, ~YES)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
def test_step_that_is_not_finite_leaves_both_sequences_of_schedule_free(spoilt):
    """Weights, their other sequence and moments; only the count of steps goes on. Also where it is the first step."""
    model = network()
    opt = optim.optimiser(model, changed(FREE, weight_decay=0.1))
    optim.train(opt, model)
    for step in range(2):
        before = copy.deepcopy((list(model.parameters()), opt.state_dict()["state"]))
        with_gradients(model, step)
        for p in model.parameters():
            p.grad.fill_(spoilt)
        optim.step(opt, OFF, ~YES)
        after = list(model.parameters()), opt.state_dict()["state"]
        assert all(map(torch.equal, after[0], before[0]))
        for key, state in before[1].items():
            assert all(torch.equal(after[1][key][name], value) for name, value in state.items())
        assert all(value.isfinite().all() for state in after[1].values() for value in state.values())
        optim.step(with_gradients(model, step) and opt, OFF, YES)
