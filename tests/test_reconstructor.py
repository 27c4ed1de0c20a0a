"""The networks that reconstruct: what they answer before training, their sizes, and what an arm may add to them."""

from itertools import product

import numpy as np
import pytest
import torch
from tiny import bits
from torch import nn

from dotlib.config import Attention, ConfigError, Links, Model
from dotlib.data import phantoms, samples
from dotlib.data.samples import moved
from dotlib.models import autoencoder
from dotlib.models.blocks import Block, Residual
from dotlib.models.reconstructor import FromLift, UNet, build, channels

MEAN, SD = torch.tensor([0.006, 1.1]), torch.tensor([0.003, 0.4])
GRIDS, KINDS = (16, 32, 64), ("dense", "fused", "guided")
LEVELS = torch.tensor([[0.0051, 0.83], [0.0094, 1.27]])  # mua, musp, mm^-1, of two phantoms
SEEN = {"unet": UNet, "stage1": FromLift}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(name="unet", grid=32, width=4, seed=0, **options):
    """Standardised by what is not 0 and 1."""
    c = channels(grid)
    seen = random(c, seed=7), 0.5 + random(c, seed=8).abs()
    return build(Model(name=name, width=width, code=16, **options), grid, seed, (MEAN, SD), seen)


def fractions(grid, n=2):
    """Volume fractions of the tissue of some phantoms, (n, 1, grid, grid, grid)."""
    tables = phantoms.without_inclusions(phantoms.sample("default", n, 0))
    tables[:, 0, [phantoms.MUA, phantoms.MUSP]] = 1
    return phantoms.rasterise(tables, grid)[:, :1]


def lifts(grid, seed=0):
    """Arbitrary lifts of two phantoms; tissue, mua0 and musp0 as they are stored: zero where there is no tissue."""
    found = random(2, 8, 16, 16, 16, seed=seed)
    r = grid // 16
    inside = fractions(grid).view(2, 16, r, 16, r, 16, r).amax((2, 4, 6))[:, None] > 0
    found[:, 5:6], found[:, 6:] = inside.float(), LEVELS.view(2, 2, 1, 1, 1) * inside
    return found


def seen(grid, seed=0):
    return samples.joined(lifts(grid, seed), fractions(grid))


def trained(model, seed=1):
    """Weights, running statistics and gates as training might leave them."""
    with torch.no_grad():
        for i, (name, value) in enumerate([*model.network.named_parameters(), *model.network.named_buffers()]):
            if value.is_floating_point():
                noise = random(*value.shape, seed=1000 * seed + i)
                value.copy_(0.5 + noise.abs() if name.endswith("running_var") else value + 0.1 * noise)
    return model.eval()


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("grid", GRIDS)
def test_untrained_unet_answers_with_the_homogeneous_fit(grid, training):
    """Level x tissue fraction, bit for bit, whatever else the lift says."""
    expected = LEVELS.view(2, 2, 1, 1, 1) * fractions(grid)
    model = network(grid=grid).train(training)
    for seed in (0, 1):
        with torch.no_grad():
            assert torch.equal(model(seen(grid, seed)), expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_untrained_stage1_answers_near_the_mean(grid):
    """A gate of about a half times a level of about the tissue's mean, as the autoencoder's decoder does."""
    with torch.no_grad():
        found = network("stage1", grid).eval()(seen(grid)) / MEAN.view(2, 1, 1, 1)
    assert found.shape == (2, 2, grid, grid, grid) and found.min() > 0.3 and found.max() < 0.8


@pytest.mark.parametrize(("name", "grid"), [*product(SEEN, GRIDS)])
def test_output_is_never_negative(name, grid):
    """Of weights ten times those that training might leave."""
    model = trained(network(name, grid))
    with torch.no_grad():
        for p in model.network.head.parameters():
            p *= 10
        found = model(seen(grid))
    assert found.shape == (2, 2, grid, grid, grid) and found.isfinite().all() and found.min() >= 0
    assert found.std() > 0.1 * found.mean()


@pytest.mark.parametrize("grid", GRIDS)
def test_unet_answers_nothing_in_air(grid):
    inside = (fractions(grid) > 0).expand(2, 2, -1, -1, -1)
    with torch.no_grad():
        found = trained(network(grid=grid))(seen(grid))
    assert torch.equal(found > 0, inside) and 0 < inside.float().mean() < 1


@pytest.mark.parametrize("sign", [1, -1])
def test_unet_stays_within_twenty_times_the_fit(sign):
    model = network().eval()
    nn.init.constant_(model.network.head.bias, 100.0 * sign)
    with torch.no_grad():
        expected = LEVELS.view(2, 2, 1, 1, 1) * fractions(32) * np.exp(3.0 * sign)
        torch.testing.assert_close(model(seen(32)), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_output_voxels_lie_where_their_lift_voxel_does(grid):
    """A bias for one of the finer voxels in each of the lift's raises those voxels of one channel alone."""
    model, r = network(grid=grid).eval(), grid // 16
    with torch.no_grad():
        whole = samples.joined(lifts(grid), torch.ones(2, 1, grid, grid, grid))
        for channel, place in ((0, (0, 0, 0)), (1, (r - 1, 0, r // 2))):
            model.network.head.bias.zero_()
            model.network.head.bias[channel * r**3 + (place[0] * r + place[1]) * r + place[2]] = 1.0
            ratio = model(whole) / LEVELS.view(2, 2, 1, 1, 1)
            expected = torch.ones(2, 2, grid, grid, grid)
            expected[:, channel, place[0] :: r, place[1] :: r, place[2] :: r] = np.e
            torch.testing.assert_close(ratio, expected, rtol=1e-5, atol=0)


def residual(c):
    return 2 * 27 * c * c + 4 * c


@pytest.mark.parametrize(("grid", "width"), [(64, 16), (32, 16), (16, 4)])
def test_unet_has_the_parameters_of_its_equation(grid, width):
    a, b, c, r = 4 * width, 8 * width, 16 * width, grid // 16
    stem = 27 * (8 + r**3) * a + 2 * a + residual(a)
    down = sum(27 * low * high + 2 * high + residual(high) for low, high in ((a, b), (b, c)))
    up = sum(8 * high * low + 2 * low + residual(low) for high, low in ((c, b), (b, a)))
    head = 27 * a * 2 * r**3 + 2 * r**3
    found = size(network(grid=grid, width=width))
    assert found == stem + down + up + head
    assert found == 7_533_952 or (grid, width) != (64, 16)


@pytest.mark.parametrize(("grid", "code"), [(64, 256), (32, 16), (16, 16)])
def test_stage1_differs_from_the_autoencoder_by_its_stem(grid, code):
    """At full width: a 3^3 convolution of the input's channels, folded onto the autoencoder's finest grid."""
    model = Model(name="stage1", width=16, code=code)
    c = channels(grid)
    found = build(model, grid, 0, (MEAN, SD), (torch.zeros(c), torch.ones(c)))
    plain = autoencoder.build(model, grid, 0, MEAN, SD)
    fold = {64: 1, 32: 2, 16: 4}[grid]
    first = {64: 32, 32: 64, 16: 128}[grid]
    assert size(found) - size(plain) == 27 * first * (c * fold**3 - 128)
    assert size(found) == 6_880_576 or grid != 64


@pytest.mark.parametrize("grid", GRIDS)
def test_stage1_shares_its_weights_with_the_autoencoder_of_its_seed(grid):
    """By name and bit for bit, all but the stem's first convolution; of another seed, none that is drawn.

    At 32^3 that convolution has the shape of the autoencoder's, 128 channels: 8 of 16^3 voxels with 8 fractions each.
    """
    plain = autoencoder.build(Model(name="stage1", width=4, code=16), grid, 3, MEAN, SD).network.state_dict()
    found = network("stage1", grid, seed=3).network.state_dict()
    assert list(found) == list(plain)
    same = {name for name in plain if bits(found[name]) == bits(plain[name])}
    assert set(plain) - same == (set() if grid == 32 else {"stem.0.weight"})
    other = network("stage1", grid, seed=4).network.state_dict()
    drawn = {name for name in plain if plain[name].is_floating_point() and plain[name].unique().numel() > 1}
    assert {name.split(".")[0] for name in drawn} == {"stem", "encoder", "decoder", "to_code", "from_code", "head"}
    assert not [name for name in drawn if bits(other[name]) == bits(found[name])]


def test_seeds_draw_the_unets_weights():
    """The same twice; another seed draws another, but the head's, which start at zero."""
    one, again, other = (dict(network(seed=seed).network.named_parameters()) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], again[name]) for name in one)
    equal = {name for name in one if torch.equal(one[name], other[name])}
    norms = {name for name, p in one.items() if p.ndim == 1}
    assert equal == norms | {"head.weight"} and not one["head.weight"].any()


# kind and side of a link or a gate; those of links start as nothing bit for bit
ADDITIONS = [(kind, "across") for kind in KINDS]
ADDITIONS += [(kind, side) for kind in ("identity", "conv") for side in ("encoder", "decoder")]


def added(kind, side):
    """On every stage of a side, at a grid of 32, that can have it."""
    if side == "across":
        return {"links": Links(kind=kind, side=side)}
    return {"attention": Attention(kind=kind, side=side)}


def awake(model):
    """A head that listens, as it does after the first step."""
    nn.init.normal_(model.network.head.weight, std=0.05, generator=torch.Generator().manual_seed(5))
    return model.train()


def reached(model):
    """The parameters that a step's gradient reaches."""
    model(seen(32)).div(MEAN.view(2, 1, 1, 1)).square().sum().backward()
    return {key for key, p in model.network.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize(("kind", "side"), ADDITIONS)
def test_additions_start_as_nothing_and_wake(name, kind, side):
    """In training: the output is the plain network's, and a first step's gradient reaches each of its stages."""
    model, plain = (awake(network(name, **options)) for options in (added(kind, side), {}))
    with torch.no_grad():
        assert torch.equal(model(seen(32)), plain(seen(32)))
    half = "decoder" if side == "across" else side
    woken = {key.split(".")[1] for key in reached(model) if key.startswith("added.")}
    assert woken == set(model.network.added) == {f"{half}1", f"{half}2"}
    with torch.no_grad():
        for key, p in model.network.named_parameters():
            if key.startswith("added."):
                p += 0.3 * random(*p.shape)
        assert not torch.equal(model(seen(32)), plain(seen(32)))


@pytest.mark.parametrize("kind", ["sigmoid", "cbam", "se", "attention-gate"])
def test_gradients_reach_every_gate(kind):
    model = awake(network(attention=Attention(kind=kind, stages=(1, 2), side="both")))
    woken = {key.split(".")[1] for key in reached(model) if ".gate." in key}
    assert woken == set(model.network.added) == {"encoder1", "encoder2", "decoder1", "decoder2"}


@pytest.mark.parametrize("name", SEEN)
def test_gradients_reach_every_parameter(name):
    """Once the head and the residual blocks, which start as identity, are awake; before, a UNet's head alone learns."""
    model = network(name).train()
    if name == "unet":
        assert reached(model) == {"head.weight", "head.bias"}
    for block in awake(model).modules():
        if isinstance(block, Residual):
            nn.init.constant_(block.second[1].weight, 0.5)
    assert reached(model) == {key for key, _ in model.network.named_parameters()}


@pytest.mark.parametrize(("kind", "targets"), [("dense", 3), ("fused", 3), ("guided", 1)])
def test_links_across_show_the_unets_encoder_to_its_decoder(kind, targets):
    """What goes into each link: the stage's own features, then the encoder's, all or those of its grid."""
    model, given = trained(network(links=Links(kind=kind, side="across"))), {}
    for stage, addition in model.network.added.items():
        addition.link.register_forward_pre_hook(lambda m, x, stage=stage: given.update({stage: x}))
    with torch.no_grad():
        model(seen(32))
        features = model.network.features(model.seen(seen(32)))
    assert list(features) == ["encoder3", "encoder2", "encoder1"]
    for k, sources in ((1, ["encoder2"]), (2, ["encoder3"])):
        own, *others = given[f"decoder{k}"]
        wanted = sources if targets == 1 else list(features)
        assert own.shape == features[sources[0]].shape and len(others) == targets
        assert all(torch.equal(x, features[stage]) for x, stage in zip(others, wanted, strict=True))


@pytest.mark.parametrize("name", SEEN)
def test_missing_stage_is_one_line(name):
    with pytest.raises(ConfigError, match=r"model.attention: no stage encoder5 here; accepted: encoder3, ") as error:
        network(name, attention=Attention(kind="se", stages=(5,)))
    assert "\n" not in str(error.value)


def test_map_is_what_a_gate_multiplies_by():
    model, passed = trained(network(attention=Attention(kind="sigmoid", stages=(1, 3)))), {}
    for stage, addition in model.network.added.items():
        addition.gate.register_forward_hook(lambda m, x, y, stage=stage: passed.update({stage: (x[0], y)}))
    with torch.no_grad():
        model(seen(32))
        maps = model.maps(seen(32))
    assert maps.keys() == passed.keys() == {"encoder1", "encoder3"}
    for stage, (x, y) in passed.items():
        assert maps[stage].shape == (2, 1, *x.shape[2:]) and maps[stage].std() > 0
        torch.testing.assert_close(x * maps[stage], y)


@pytest.mark.parametrize("name", SEEN)
def test_one_voxel_of_the_lift_is_seen_far_away(name):
    """By trained weights, also three quarters of the cube away. An untrained UNet does not look."""
    x = seen(32)
    changed = x.clone()
    changed[:, 0, 1, 2, 14] += 3
    model = network(name).eval()
    with torch.no_grad():
        assert torch.equal(model(changed), model(x)) == (name == "unet")
        moved_by = trained(model)(changed) - model(x)
    assert moved_by[..., :6].any() and moved_by[..., 28:].any()


@pytest.mark.parametrize("name", SEEN)
def test_phantoms_do_not_see_each_other(name):
    """In evaluation mode."""
    model, x = trained(network(name)), seen(32)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:], model(x[1:]), rtol=1e-4, atol=1e-6)
        assert not torch.allclose(model(x)[:1], model(x[1:]))


@pytest.mark.parametrize("name", SEEN)
def test_recomputed_activations_give_the_same_gradients(name):
    """Bit for bit, running statistics too; the blocks' activations are computed twice."""
    found, count = [], 0

    def counted(*arguments):
        nonlocal count
        count += 1

    for recompute in (False, True):
        model = awake(network(name, depth=2, links=Links(kind="dense", side="across"), dropout=0.2))
        blocks = [block for block in model.modules() if isinstance(block, Block)]
        for block in blocks:
            block.recompute = recompute
        for block in blocks:
            if isinstance(block, Residual):
                block.second.register_forward_hook(counted)
        torch.manual_seed(0)
        count = 0
        reached(model)
        residuals = sum(isinstance(block, Residual) for block in blocks)
        assert count == residuals * (2 if recompute else 1) and residuals > 4
        gradients = {key: bits(p.grad) for key, p in model.named_parameters() if p.grad is not None}
        found.append((gradients, {key: bits(buffer) for key, buffer in model.named_buffers()}))
    assert found[0] == found[1]


def symmetrised(kernel, stride):
    """The mean of a kernel over the eight motions; of stride 2 on the two taps that a voxel's halves have.

    A window of three voxels and stride 2 begins one before its own two, which no mirror maps onto itself.
    """
    if stride == 2 and kernel.shape[-1] == 3:
        kernel = kernel.clone()
        kernel[:, :, 0], kernel[:, :, :, 0] = 0, 0
        kernel[:, :, 1:, 1:] = symmetrised(kernel[:, :, 1:, 1:], 1)
        return kernel
    return torch.stack([moved(kernel, motion) for motion in range(8)]).mean(0)


@pytest.mark.parametrize("motion", range(1, 8))
def test_unet_of_symmetric_kernels_moves_with_its_input(motion):
    """Medium and optodes moved together, the answer moves; with kernels as they are drawn, it does not."""
    model, x = trained(network(grid=16)), seen(16)
    with torch.no_grad():
        expected = moved(model(x), motion)
        assert (model(moved(x, motion)) - expected).abs().max() > 1e-2 * expected.max()
        for layer in model.network.modules():
            if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
                layer.weight.copy_(symmetrised(layer.weight, layer.stride[0]))
        expected = moved(model(x), motion)
        torch.testing.assert_close(model(moved(x, motion)), expected, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(expected, model(x))
