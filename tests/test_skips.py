"""What an arm adds between stages and behind them: links, more residual blocks, dropout; each starts as nothing."""

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import bits, tiny
from torch import nn

from dotlib import config, inference
from dotlib.config import ConfigError, Links, Model
from dotlib.data import phantoms
from dotlib.models import skips
from dotlib.models.autoencoder import NETWORKS, build

MEAN, SD = torch.tensor([0.006, 1.1]), torch.tensor([0.003, 0.4])
GRIDS = {"legacy": 16, "stage1": 32, "hybrid": 32}  # with three stages before the code and two behind it at least
DEEP, BACK = ["encoder4", "encoder3", "encoder2", "encoder1"], ["decoder1", "decoder2", "decoder3"]
# stages of the legacy network at 16^3, and what they are linked from
LINKED = {
    ("dense", "encoder"): {"encoder3": DEEP[:1], "encoder2": DEEP[:2], "encoder1": DEEP[:3]},
    ("dense", "decoder"): {"decoder2": BACK[:1], "decoder3": BACK[:2]},
    ("dense", "across"): dict.fromkeys(BACK, DEEP),
    ("fused", "encoder"): {"encoder1": DEEP[:3]},
    ("fused", "decoder"): {"decoder3": BACK[:2]},
    ("fused", "across"): dict.fromkeys(BACK, DEEP),
    ("guided", "encoder"): {"encoder3": ["encoder4"], "encoder2": ["encoder3"], "encoder1": ["encoder2"]},
    ("guided", "decoder"): {"decoder2": ["decoder1"], "decoder3": ["decoder2"]},
    ("guided", "across"): {"decoder1": ["encoder2"], "decoder2": ["encoder3"], "decoder3": ["encoder4"]},
}
LINKED |= {(kind, "both"): LINKED[kind, "encoder"] | LINKED[kind, "decoder"] for kind in skips.KINDS}


def network(name="legacy", width=4, grid=None, seed=0, **options):
    return build(Model(name=name, width=width, code=16, **options), grid or GRIDS[name], seed, MEAN, SD)


def volumes(grid, n=2):
    return phantoms.rasterise(phantoms.sample("default", n, 0), grid)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def size(module):
    return sum(p.numel() for p in module.parameters())


def full(name, **options):
    """Parameters at 64^3 of the full width, of a network that is only described."""
    with torch.device("meta"):
        return size(NETWORKS[name](64, Model(name=name, width=16, **options)))


def woken(module):
    """Links that are no longer nothing; a gate's inner channels are live."""
    with torch.no_grad():
        for link in module.modules():
            if isinstance(link, skips.Link):
                link.norm.weight.copy_(0.5 + random(len(link.norm.weight)).abs())
                if isinstance(link, skips.Guided):
                    link.gate.phi.bias += 1.0
    return module


def passed(model, x):
    """Output, code and the running statistics that a pass leaves, as bits; links across see the encoder's features."""
    with torch.no_grad():
        z = model.standard(x)
        features = model.network.features(z)
        code = model.network.code(features)
        found = {"y": model.network.decode(code, model.standard, features), "code": code, **dict(model.named_buffers())}
    return {key: bits(tensor) for key, tensor in found.items()}


def assert_same_pass(model, plain, x):
    """In what both of them have."""
    found, expected = passed(model, x), passed(plain, x)
    assert found.keys() > expected.keys() and not [key for key in expected if found[key] != expected[key]]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("kind", "side"), LINKED)
@pytest.mark.parametrize("name", GRIDS)
def test_links_start_as_nothing(name, kind, side, training):
    """Bit for bit, and no longer once they are woken."""
    linked, plain, x = network(name, links=Links(kind=kind, side=side)), network(name), volumes(GRIDS[name])
    assert_same_pass(linked.train(training), plain.train(training), x)
    assert passed(woken(linked), x)["y"] != passed(plain, x)["y"]


@pytest.mark.parametrize(("kind", "side"), LINKED)
@pytest.mark.parametrize("name", GRIDS)
def test_gradients_reach_every_parameter_of_a_link(name, kind, side):
    """Those of a normalisation from the first step on, so that the link wakes by itself."""
    model, x = network(name, links=Links(kind=kind, side=side)).train(), volumes(GRIDS[name], 4)
    for wake in (False, True):
        features = (woken(model) if wake else model).network.features(model.standard(x))
        model.network.decode(model.network.code(features), model.standard, features).square().sum().backward()
        links = {key: p for key, p in model.named_parameters() if ".link." in key}
        reached = {key for key, p in links.items() if p.grad.any()}
        assert reached == (set(links) if wake else {key for key in links if ".link.norm." in key}) != set()
        model.zero_grad()


@pytest.mark.parametrize(("kind", "side"), LINKED)
def test_stage_is_linked_from_the_stages_of_its_kind(kind, side):
    """By the very tensors that reach each link, and by those of them that its output depends on."""
    model, x, reached = woken(network(links=Links(kind=kind, side=side))).network, random(2, 2, 16, 16, 16), {}
    for name, addition in model.added.items():
        addition.link.register_forward_pre_hook(lambda m, given, name=name: reached.update({name: given}))
    with torch.no_grad():
        features = model.walk("encoder", model.first(x))
        code = model.code(features)
        stages = features | model.walk("decoder", model.from_code(code).view(2, -1, 2, 2, 2), features)
    assert list(stages) == DEEP + BACK
    found = {}
    for name, given in reached.items():
        leaves = [tensor.detach().requires_grad_() for tensor in given]
        model.added[name].link(*leaves).square().sum().backward()
        used = [source for source, leaf in zip(given[1:], leaves[1:], strict=True) if leaf.grad is not None]
        found[name] = [stage for source in used for stage, tensor in stages.items() if tensor is source]
    assert found == LINKED[kind, side]


def cost(kind, c_from, c):
    """Parameters of a link, all channels multiples of 8: its weights, and a normalisation."""
    if kind == "dense":
        return sum(c_from) * c + 2 * c
    if kind == "fused":
        return (sum(c_from) + c + len(c_from) + 1) * c // 4 + 27 * c * c // 4 + 2 * c
    inner = c_from[-1] // 8  # a gate: theta without bias, phi and the score with one
    return (c_from[-1] + c + 1) * inner + inner + 1 + c_from[-1] * c + 2 * c


@pytest.mark.parametrize(
    ("name", "kind", "side", "extra"),
    [
        ("legacy", "dense", "encoder", 72_576), ("stage1", "fused", "encoder", 473_856),
        ("hybrid", "guided", "encoder", 52_027), ("stage1", "dense", "decoder", 14_528),
        ("stage1", "guided", "across", 27_387), ("hybrid", "fused", "across", 178_136),
    ],
)  # fmt: skip
def test_links_have_the_parameters_of_their_equations(name, kind, side, extra):
    """At full size; channels by stage, of the networks' description."""
    deep, back = [32, 64, 128, 256], [128, 64, 32]
    half = {"encoder": deep, "decoder": back}.get(side)
    if side == "across":
        sources = {c: [c] if kind == "guided" else deep for c in back}
    elif kind == "fused":
        sources = {half[-1]: half[:-1]}
    else:
        sources = {c: half[:i] for i, c in enumerate(half) if i}
    found = full(name, links=Links(kind=kind, side=side)) - full(name)
    assert found == sum(cost(kind, c_from, c) for c, c_from in sources.items()) == extra


def test_resample_of_the_hand_made_case():
    x = torch.arange(8.0).view(1, 1, 2, 2, 2)
    assert skips.resample(x, 1).flatten().tolist() == [3.5]
    assert skips.resample(x, 4)[0, 0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert skips.resample(x, 4)[0, 0, 3, 3].tolist() == [6, 6, 7, 7] and skips.resample(x, 2) is x


@pytest.mark.parametrize(("fine", "coarse"), [(8, 2), (16, 8), (4, 1)])
def test_resample_is_means_of_blocks_and_repetition(fine, coarse):
    r = fine // coarse
    x, y = random(2, 3, fine, fine, fine), random(2, 3, coarse, coarse, coarse)
    means = x.double().view(2, 3, coarse, r, coarse, r, coarse, r).mean((3, 5, 7))
    torch.testing.assert_close(skips.resample(x, coarse).double(), means, rtol=1e-5, atol=1e-6)
    repeated = np.kron(y.numpy(), np.ones((1, 1, r, r, r), np.float32))
    assert np.array_equal(skips.resample(y, fine).numpy(), repeated)
    torch.testing.assert_close(skips.resample(skips.resample(y, fine), coarse), y)


@pytest.mark.parametrize("kind", skips.KINDS)
def test_link_is_its_equation(kind):
    """relu(x + BN(...)) of a coarser and a finer source, with the batch's statistics."""
    c_from, c = (8, 24), 16
    link = woken(skips.KINDS[kind](c_from, c)).train()
    sources, x = [random(3, 8, 2, 2, 2), random(3, 24, 8, 8, 8, seed=1)], random(3, c, 4, 4, 4, seed=2)
    here = sources[0].repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    there = sources[1].view(3, 24, 4, 2, 4, 2, 4, 2).mean((3, 5, 7))

    def point(layer, v):
        bias = 0 if layer.bias is None else layer.bias.view(1, -1, 1, 1, 1)
        return torch.einsum("oc,bcxyz->boxyz", layer.weight.flatten(1), v) + bias

    if kind == "dense":
        joined = point(link.project, torch.cat((here, there), 1))
    elif kind == "fused":
        lateral = sum(point(layer, v) for layer, v in zip(link.laterals, (here, there, x), strict=True))
        joined = nn.functional.conv3d(lateral, link.mix.weight, padding=1)
    else:
        inner = torch.relu(point(link.gate.theta, there) + point(link.gate.phi, x))
        joined = point(link.project, there * torch.sigmoid(point(link.gate.score, inner)))
    mean, sd = joined.mean((0, 2, 3, 4), True), (joined.var((0, 2, 3, 4), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = torch.relu(x + (joined - mean) / sd * link.norm.weight.view(1, -1, 1, 1, 1))
    torch.testing.assert_close(link(x, *sources), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", skips.KINDS)
def test_links_across_are_refused_where_the_truth_goes_in(kind):
    with pytest.raises(ConfigError, match=r"'across' under task 'autoencode': .* become a copy; .* accepted") as caught:
        config.replace(tiny(), {"model.links": Links(kind=kind, side="across")})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", skips.KINDS)
@pytest.mark.parametrize("name", GRIDS)
def test_links_across_show_the_encoders_features_to_the_decoder(name, kind):
    """Once woken: what is decoded from one code depends on features of the decoder's grids, and of others as linked."""
    model, grid = network(name, links=Links(kind=kind, side="across")).eval(), GRIDS[name]
    features = model.network.features(random(2, 2, grid, grid, grid))
    seen = {key: v.detach().requires_grad_() for key, v in features.items()}
    code = random(2, 16)
    for wake in (False, True):
        y = (woken(model) if wake else model).network.decode(code, model.standard, seen)
        gradients = torch.autograd.grad(y.square().sum(), list(seen.values()), allow_unused=True)
        felt = {key for key, g in zip(seen, gradients, strict=True) if g is not None and g.any()}
        deepest = {"encoder1"} if kind == "guided" else set()  # no stage of the decoder is on the grid of the code
        assert y.shape == (2, 2, grid, grid, grid) and felt == (set(seen) - deepest if wake else set())


def residual(c):
    return 2 * 27 * c * c + 4 * c


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("name", GRIDS)
def test_depth_has_the_parameters_of_its_equation(name, depth):
    """Legacy: in each stage of the encoder; ours: in each stage but the one before the code, which has two already."""
    channels = (32, 64, 128, 256) if name == "legacy" else (32, 64, 128, 128, 64, 32)
    assert full(name, depth=depth) == full(name) + (depth - 1) * sum(map(residual, channels))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("name", GRIDS)
def test_deeper_network_starts_as_the_plain_one(name, depth, training):
    """Bit for bit, and no longer once the last normalisations of its blocks are woken."""
    deeper, plain, x = network(name, depth=depth), network(name), volumes(GRIDS[name])
    assert_same_pass(deeper.train(training), plain.train(training), x)
    for addition in deeper.network.added.values():
        assert len(addition.blocks) == depth - 1
        for block in addition.blocks:
            nn.init.ones_(block.second[1].weight)
    assert passed(deeper, x)["y"] != passed(plain, x)["y"]


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("name", GRIDS)
def test_dropout_drops_whole_maps_at_its_rate(name, rate):
    """Behind every stage but the last: a map is all zero, or all its voxels are as before over 1 - rate."""
    model, x, seen = network(name, dropout=rate).train(), volumes(GRIDS[name], 16), {}
    for key, addition in model.network.added.items():
        addition.dropout.register_forward_hook(lambda m, x, y, key=key: seen.update({key: (x[0], y)}))
    torch.manual_seed(0)
    with torch.no_grad():
        model(x)
        stages = [*model.network.features(model.standard(x)), *model.network.halves["decoder"]]
    assert list(seen) == stages[:-1] and len(stages) >= 5
    dropped = total = 0
    for before, after in seen.values():
        live = before.flatten(2).any(2)
        kept = after.flatten(2).any(2)
        torch.testing.assert_close(after[kept], before[kept] / (1 - rate))
        dropped, total = dropped + (live & ~kept).sum().item(), total + live.sum().item()
    low, high = stats.binom.interval(1 - 1e-6, total, rate)
    assert low <= dropped <= high and high - low < rate * total


@pytest.mark.parametrize("name", GRIDS)
def test_dropout_is_nothing_to_a_network_that_is_judged(name):
    x = volumes(GRIDS[name])
    models = [network(name, dropout=rate).eval() for rate in (0.5, 0.0)]
    assert torch.equal(inference.predict(models[0], x), inference.predict(models[1], x))
    with torch.no_grad():
        assert not torch.equal(models[0].train()(x), models[1].train()(x))


def test_links_without_two_stages_are_one_line():
    """A decoder of one stage, at 16^3."""
    with pytest.raises(ConfigError) as error:
        build(Model(name="stage1", width=2, code=8, links=Links(kind="dense", side="decoder")), 16, 0, MEAN, SD)
    assert str(error.value) == "model.links: no two stages in 'decoder'; here: encoder2, encoder1, decoder1"
