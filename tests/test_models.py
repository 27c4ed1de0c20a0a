"""The networks' sizes from their equations, what they can and cannot do, and their gradients in bf16."""

from contextlib import contextmanager
from itertools import combinations, pairwise

import pytest
import torch
from tiny import tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dotlib import inference, losses
from dotlib.config import Attention, Links, Model
from dotlib.data import dataset, phantoms
from dotlib.models import blocks
from dotlib.models.autoencoder import NETWORKS, Autoencoder, build
from dotlib.models.stages import Addition, Staged

MEAN, SD = torch.tensor([0.006, 1.1]), torch.tensor([0.003, 0.4])
GRIDS = (16, 32, 64)
LAYERS = (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)
LAST = torch.channels_last_3d
STAGED = ("legacy", "stage1", "hybrid")  # a ViT's code is gathered by a token, not met at 2^3 voxels


def whole(name, kind, links):
    """A network with whatever may lie between and behind its stages."""
    attention = Attention(kind=kind, stages=(1,), side="both")
    return Model(name=name, width=4, code=32, depth=2, dropout=0.3, attention=attention, links=Links(kind=links))


ARMS = {name: Model(name=name, width=4, code=32) for name in NETWORKS}
ARMS |= {
    "legacy, all": whole("legacy", "attention-gate", "dense"),
    "stage1, all": whole("stage1", "cbam", "fused"),
    "hybrid, all": whole("hybrid", "sigmoid", "guided"),
}


def network(name, grid, width=4, code=32, seed=0):
    return build(Model(name=name, width=width, code=code), grid, seed, MEAN, SD)


def size(model):
    return sum(p.numel() for p in model.parameters())


@contextmanager
def recorded(model):
    """The layers of a model and, after a forward pass, the shapes of what goes in and comes out."""
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda m, x, y, name=name: seen.__setitem__(name, (m, x[0].shape, y.shape)))
        for name, layer in model.named_modules()
        if isinstance(layer, LAYERS)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def residual(a, b):
    projected = a * b + 2 * b if a != b else 0
    return 27 * a * b + 27 * b * b + 4 * b + projected


def test_legacy_has_the_parameters_of_its_equation():
    w, code = 16, 256
    stem = 7**3 * 2 * w + 2 * w
    encoder = sum(residual(a * w, 2 * a * w) for a in (1, 2, 4, 8))
    bottleneck = (16 * w * code + code) + (code * 128 * w + 128 * w)
    ups = [(16, 8), (8, 4), (4, 2), (2, 1), (1, 1)]
    decoder = sum(4**3 * a * b * w * w + 3 * b * w for a, b in ups)
    head = 27 * w * 2 + 2
    assert size(network("legacy", 64, w, code)) == stem + encoder + bottleneck + decoder + head == 6_977_954


@pytest.mark.parametrize("grid", GRIDS)
def test_stage1_has_the_parameters_of_its_equation(grid):
    w, code, patch = 16, 256, 4**3
    channels = {64: [32, 64, 128, 256], 32: [64, 128, 256], 16: [128, 256]}[grid]
    stages = list(pairwise(channels))
    blocks_each = [1] * (len(stages) - 1) + [2]  # the deepest stage is twice as deep
    stem = 27 * 2 * patch * channels[0] + 2 * channels[0]
    down = sum(n * residual(a, a) + 27 * a * b + 2 * b for n, (a, b) in zip(blocks_each, stages, strict=True))
    up = sum(n * residual(a, a) + 8 * a * b + 2 * a for n, (a, b) in zip(blocks_each, stages, strict=True))
    bottleneck = (128 * w * code + code) + (code * 128 * w + 128 * w)
    head = 27 * channels[0] * 3 * patch + 3 * patch
    found = size(network("stage1", grid, w, code))
    assert found == stem + down + bottleneck + up + head and 6.5e6 < found < 7.5e6
    assert found == 6_928_960 or grid != 64


def test_legacy_costs_what_it_cost():
    model = network("legacy", 64, 16, 256).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 2, 64, 64, 64))
    assert counter.get_total_flops() / 1e9 == pytest.approx(3.40, abs=0.01)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", STAGED)
def test_network_keeps_the_grid_and_meets_the_code_at_two_voxels(name, grid):
    model = network(name, grid).eval()
    x = torch.rand(2, 2, grid, grid, grid)
    with torch.no_grad(), recorded(model) as seen:
        y = model(x)
    assert y.shape == x.shape and model.encode(x).shape == (2, 32)
    order = list(seen)
    before = order[order.index("network.to_code") - 1]
    assert max(seen[n][2][-1] for n in order if n.startswith("network.encoder")) > 2
    assert seen[before][2][2:] == (2, 2, 2) == tuple(seen["network.decoder.0"][1][2:])
    assert seen["network.head"][2][1] in (2, 3 * 4**3)


@pytest.mark.parametrize("grid", [16, 32])
@pytest.mark.parametrize("training", [True, False])
def test_stage1_is_never_negative(grid, training):
    generator = torch.Generator().manual_seed(0)
    for seed in range(3):
        model = network("stage1", grid, seed=seed).train(training)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(100)
            y = model(torch.randn(4, 2, grid, grid, grid, generator=generator))
        assert y.isfinite().all() and y.min() >= 0 and y.max() > 10 * MEAN.max()


def test_stage1_starts_at_half_the_mean():
    model = network("stage1", 16)
    nn.init.zeros_(model.network.head.weight)
    nn.init.zeros_(model.network.head.bias)
    y = model(torch.rand(2, 2, 16, 16, 16))  # gate sigmoid(0) = 1/2, level 1
    torch.testing.assert_close(y, (MEAN / 2).view(1, 2, 1, 1, 1).expand_as(y), rtol=1e-4, atol=0)


def test_space_to_depth_of_the_hand_made_case():
    x = torch.arange(16.0).view(1, 1, 4, 2, 2)  # two blocks of 2^3 along x
    y = blocks.space_to_depth(x, 2)
    assert y.shape == (1, 8, 2, 1, 1)
    assert y[0, :, 0, 0, 0].tolist() == list(range(8)) and y[0, :, 1, 0, 0].tolist() == list(range(8, 16))


@pytest.mark.parametrize("r", [2, 4])
def test_depth_to_space_inverts_space_to_depth(r):
    x = torch.randn(2, 3, 8, 4, 12)
    y = blocks.space_to_depth(x, r)
    assert torch.equal(blocks.depth_to_space(y, r), x)
    b, c, place = 1, 2, (5, 3, 10)  # the voxel's block, and its place there
    inner = ((place[0] % r) * r + place[1] % r) * r + place[2] % r
    assert y[b, c * r**3 + inner, *(p // r for p in place)] == x[b, c, *place]


def test_standardised_and_back_is_the_identity():
    standard = blocks.Standard(MEAN, SD)
    x = torch.rand(3, 2, 4, 4, 4) * MEAN.view(1, 2, 1, 1, 1) * 2
    torch.testing.assert_close(standard.back(standard(x)), x, rtol=1e-6, atol=1e-7)
    z = standard(MEAN.view(1, 2, 1, 1, 1) + 2 * SD.view(1, 2, 1, 1, 1))
    torch.testing.assert_close(z, torch.full_like(z, 2.0))
    assert set(standard.state_dict()) == {"mean", "sd"} and not list(standard.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_network_sees_and_answers_through_its_standard(name):
    x = phantoms.rasterise(phantoms.sample("default", 2, 0), 16)
    mean, sd = (t.view(1, 2, 1, 1, 1) for t in (MEAN, SD))
    physical, standard = (
        network(name, 16).eval(),
        build(Model(name=name, width=4, code=32), 16, 0, torch.zeros(2), torch.ones(2)).eval(),
    )
    with torch.no_grad():
        torch.testing.assert_close(physical.encode(x), standard.encode((x - mean) / sd))
        if name == "legacy":
            torch.testing.assert_close(physical(x), standard((x - mean) / sd) * sd + mean)


@pytest.mark.parametrize("name", NETWORKS)
def test_initial_weights_are_a_function_of_the_seed(name):
    torch.manual_seed(1)
    one = network(name, 16).state_dict()
    torch.manual_seed(2)
    again, other = network(name, 16).state_dict(), network(name, 16, seed=1).state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)
    drawn = [k for k, v in one.items() if v.ndim > 1 and not k.startswith("standard")]
    assert drawn and not any(torch.isclose(one[key], other[key]).float().mean() > 0.01 for key in drawn)
    assert not any(torch.equal(one[a], one[b]) for a, b in combinations(drawn, 2))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_share_the_weights_they_share_by_name(name):
    parameters = (network(name, grid).named_parameters() for grid in (32, 64))
    small, large = ({key: p for key, p in drawn if p.ndim > 1} for drawn in parameters)  # normalisations are not drawn
    common = [key for key in small if key in large and small[key].shape == large[key].shape]
    assert all(torch.equal(small[key], large[key]) for key in common)
    assert {"network.to_code.weight", "network.from_code.weight"} <= set(common)


@pytest.mark.parametrize("name", NETWORKS)
def test_initial_weights_are_drawn_like_those_of_torch(name):
    torch.manual_seed(0)
    ours, plain = network(name, 32, 16), NETWORKS[name](32, Model(name=name, width=16, code=32))
    theirs = dict(Autoencoder(plain, blocks.Standard(MEAN, SD)).named_modules())
    for key, layer in ours.named_modules():
        if isinstance(layer, LAYERS):
            fan_in = layer.weight[0].numel()  # of a transposed convolution: output channels x kernel, as torch counts
            for p, q in zip(layer.parameters(), theirs[key].parameters(), strict=True):
                assert 0.95 * fan_in**-0.5 < p.abs().max() <= fan_in**-0.5 or p.numel() < 100, key
                if p.numel() > 1000:
                    assert p.std().item() == pytest.approx(q.std().item(), rel=0.05), key
                    assert abs(p.mean()) < 4 * p.std() / p.numel() ** 0.5, key
        elif isinstance(
            layer, nn.BatchNorm3d | nn.LayerNorm
        ):  # what the block gave it: 1, or 0 where it starts as the identity
            assert torch.equal(layer.weight, theirs[key].weight) and not layer.bias.any()


def test_residual_block_starts_at_the_identity():
    block = blocks.initialise(blocks.Residual(6, 6, start_identity=True), 0)
    x = torch.rand(2, 6, 4, 4, 4)
    torch.testing.assert_close(block(x), x)
    assert not torch.allclose(blocks.initialise(blocks.Residual(6, 6), 0)(x), x, atol=0.1)


def poison():
    """Leave NaN in memory that is free to be handed out again."""
    for n in (2**10, 2**14, 2**17, 2**20):
        held = [torch.full((n,), torch.nan) for _ in range(4)]
        del held


def bf16_error(layer, x, g, repeats):
    """The largest relative error of a layer's gradients under bf16 autocast, beside fp32; infinite where not finite."""
    wanted = [x, *layer.parameters()]
    exact = torch.autograd.grad(layer(x), wanted, g)
    worst = torch.zeros(())
    for _ in range(repeats):
        poison()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        for found, true in zip(torch.autograd.grad(y, wanted, g.to(y.dtype)), exact, strict=True):
            error = ((found.float() - true).norm() / true.norm()).nan_to_num(torch.inf)
            worst = torch.maximum(worst, error)
    return worst


def random_like(shape, generator):
    x = torch.randn(shape, generator=generator)
    return x.contiguous(memory_format=LAST) if x.ndim == 5 else x


@pytest.mark.parametrize(("channels", "kernel", "grid"), [(16, 3, 2), (64, 3, 2), (128, 3, 2), (2, 7, 2), (2, 7, 4)])
def test_kernel_larger_than_its_volume_has_its_bf16_gradient(channels, kernel, grid):
    generator = torch.Generator().manual_seed(0)
    layer = blocks.Conv3d(channels, channels, kernel, padding=kernel // 2, bias=False)
    layer = blocks.initialise(layer, 0).to(memory_format=LAST)
    x, g = (random_like((8, channels, grid, grid, grid), generator) for _ in range(2))
    assert bf16_error(layer, x.requires_grad_(), g, 20) < 0.02


@pytest.mark.parametrize("grid", [16, 32])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_has_its_bf16_gradient(name, grid):
    model = network(name, grid, 8).to(memory_format=LAST)
    with torch.no_grad(), recorded(model) as seen:
        model(torch.rand(4, 2, grid, grid, grid))
    generator = torch.Generator().manual_seed(0)
    for key, (layer, given, returned) in seen.items():
        x, g = random_like(given, generator).requires_grad_(), random_like(returned, generator)
        assert bf16_error(layer, x, g, 3) < 0.02, key


@pytest.mark.parametrize("name", NETWORKS)
def test_network_has_finite_bf16_gradients_every_time(name):
    model = network(name, 16, 8).to(memory_format=LAST)
    x = phantoms.rasterise(phantoms.sample("default", 4, 0), 16).contiguous(memory_format=LAST)
    for repeat in range(20):
        poison()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x)
        gradient = torch.autograd.grad(losses.rmse(model.standard(y), model.standard(x)), list(model.parameters()))
        bad = [key for (key, _), g in zip(model.named_parameters(), gradient, strict=True) if not g.isfinite().all()]
        assert not bad, (repeat, bad)


def test_stage1_keeps_position():
    axes, turn = (7, 7, 7), (0, 0, 0, 1)
    tables = torch.tensor([[(x, 0, 0, *axes, *turn, 2, 1, 1)] for x in (-16, 16)]).double().numpy()
    left, right = phantoms.rasterise(tables, 32)  # mirror images, and shifted by half the cube
    assert torch.equal(left.flip(1), right)
    for seed in range(3):
        model = build(Model(name="stage1", width=4, code=32), 32, seed, torch.zeros(2), torch.ones(2)).eval()
        with torch.no_grad():
            empty, here, there = model.encode(torch.stack([torch.zeros_like(left), left, right]))
        assert (here - there).norm() > 0.75 * (here - empty).norm()  # sqrt(2) if nothing is shared; a half when pooled


def test_stage1_overfits_a_batch():
    x = phantoms.rasterise(phantoms.sample("default", 8, 0), 16)
    model = build(Model(name="stage1", width=2, code=64), 16, 0, *dataset.standard(x))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(150):
        loss = losses.rmse(model.standard(model(x)), model.standard(x))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < 0.15 * history[0]


def gradients_of(arm, checkpointing, steps=2):
    """Gradients of the last of some passes, the statistics that they leave, and the state of torch's random numbers."""
    c = tiny(model=ARMS[arm], seed=1, training__checkpointing=checkpointing)
    model = inference.network(c, MEAN, SD).to(memory_format=LAST).train()
    assert {block.recompute for block in model.modules() if isinstance(block, blocks.Block)} == {checkpointing}
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm3d):
            nn.init.ones_(norm.weight)  # not the identity, else half of the gradients are zero
    torch.manual_seed(0)
    for i in range(steps):
        generator = torch.Generator().manual_seed(i)
        x = torch.rand(3, 2, 16, 16, 16, generator=generator).contiguous(memory_format=LAST)
        model.zero_grad()
        losses.rmse(model(x), x).backward()
    return [p.grad for p in model.parameters()], list(model.named_buffers()), torch.get_rng_state()


@pytest.mark.parametrize("arm", ARMS)
def test_checkpointing_changes_no_bit(arm):
    """Of gradients, random numbers and running statistics, which the repeated pass must not count twice."""
    plain, again = (gradients_of(arm, on) for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain[0], again[0], strict=True))
    for (key, a), (_, b) in zip(plain[1], again[1], strict=True):
        assert torch.equal(a, b), key
    assert all(value == 2 for key, value in again[1] if key.endswith("num_batches_tracked"))
    assert all(g.abs().sum() > 0 for g in again[0]) and torch.equal(plain[2], again[2])


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointing_is_for_training_only(name):
    model = network(name, 16).eval()
    x = torch.rand(2, 2, 16, 16, 16)
    expected = model(x)
    for block in model.modules():
        block.recompute = True
    assert torch.equal(model(x), expected)
    with torch.no_grad():
        assert torch.equal(model.train()(x), network(name, 16).train()(x))


def test_behind_a_stage_come_link_blocks_gate_and_dropout_in_this_order():
    """Affine maps, no two of which commute, in their places: what a gate multiplies by is of the deepened features."""

    class Part(nn.Module):
        def __init__(self, factor, shift):
            super().__init__()
            self.factor, self.shift = factor, shift

        def forward(self, x, *sources):
            return self.factor * x + self.shift + sum(sources)

    network, x = Staged(), torch.tensor(1.0)
    network.stages = nn.Sequential(Part(1, 2), Part(1, 4))
    network.halves = {"encoder": {"encoder2": ("stages", slice(0, 1)), "encoder1": ("stages", slice(1, 2))}}
    assert network.walk("encoder", x) == {"encoder2": 3, "encoder1": 7}
    network.sources = {"encoder1": ["encoder2"]}
    network.added["encoder1"] = added = Addition()
    assert network.walk("encoder", x) == {"encoder2": 3, "encoder1": 7}  # nothing is added
    added.link, added.blocks, added.gate, added.dropout = Part(2, 1), Part(3, 5), Part(7, 11), Part(13, 17)
    linked = 2 * 7 + 1 + 3
    assert network.walk("encoder", x)["encoder1"] == 13 * (7 * (3 * linked + 5) + 11) + 17
