"""Gates behind stages: what they start as, where they are, what they cost, what they show, and their equations."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import expit
from test_optim import OFF, YES
from tiny import bits, tiny
from torch import nn

from dotlib import inference, losses, optim
from dotlib.config import Attention, ConfigError, Model
from dotlib.data import phantoms
from dotlib.models.attention import KINDS, AttentionGate, SpatialGate
from dotlib.models.autoencoder import NETWORKS, build
from dotlib.models.blocks import initialise

LAST = torch.channels_last_3d
MEAN, SD = torch.tensor([0.006, 1.1]), torch.tensor([0.003, 0.4])
GRIDS = {"legacy": 16, "stage1": 32, "hybrid": 32}  # with three stages before the code and two behind it at least
MAPPED = ("sigmoid", "identity", "cbam", "attention-gate", "random")
# parameters behind C channels, C a multiple of 16
COST = {
    "sigmoid": lambda c: c * c / 8 + c / 4 + 1,
    "identity": lambda c: c * c / 8 + c / 4 + 1,
    "random": lambda c: c * c / 8 + c / 4 + 1,
    "cbam": lambda c: c * c / 8 + 17 * c / 16 + 2 * 7**3,
    "se": lambda c: c * c / 8 + 17 * c / 16,
    "attention-gate": lambda c: c * c / 4 + c / 4 + 1,
    "conv": lambda c: c * c / 8 + c / 16,
}
# behind 6 channels, with one inner channel
NARROW = {"cbam": 6 + 1 + 6 + 6 + 686, "se": 6 + 1 + 6 + 6, "attention-gate": 6 + 6 + 1 + 1 + 1, "conv": 6 + 1 + 6}


def network(name="stage1", attention=None, grid=None, width=4):
    model = build(Model(name=name, width=width, code=16, attention=attention), grid or GRIDS[name], 0, MEAN, SD)
    return model.to(memory_format=LAST)


def volumes(grid, n=2):
    return inference.prepared(phantoms.rasterise(phantoms.sample("default", n, 0), grid))


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def redrawn(module, scale=1.0):
    """Weights that are not what anything starts with: normal, by fan-in, but for normalisations."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * scale / max(1, p[0].numel()) ** 0.5)
    return module


def gate(kind, c=16, scale=1.0):
    return redrawn(KINDS[kind](c), scale)


def size(module):
    return sum(p.numel() for p in module.parameters())


def full(name="legacy", width=16, **options):
    """Parameters at 64^3, of a network that is only described."""
    with torch.device("meta"):
        return size(NETWORKS[name](64, Model(name=name, width=width, **options)))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["identity", "conv"])
@pytest.mark.parametrize("name", GRIDS)
def test_gate_that_starts_as_identity_changes_no_bit(name, kind, dtype, training):
    """Of outputs, codes and running statistics; the gate that starts near a half changes them all."""
    x, found = volumes(GRIDS[name]), []
    for chosen in (None, kind, "sigmoid"):
        model = network(name, chosen and Attention(kind=chosen, side="both")).train(training)
        with torch.no_grad(), inference.mixed("cpu", dtype):
            tensors = {"y": model(x), "code": model.encode(x), **dict(model.named_buffers())}
        found.append({key: bits(tensor) for key, tensor in tensors.items()})
    plain, gated, halved = found
    assert plain.keys() == gated.keys() and not [key for key in plain if gated[key] != plain[key]]
    assert halved["y"] != plain["y"] and halved["code"] != plain["code"]


@pytest.mark.parametrize("kind", ["sigmoid", "random"])
def test_sigmoid_gate_without_its_last_layer_halves_exactly(kind):
    module, x = gate(kind), random(2, 16, 4, 4, 4)
    nn.init.zeros_(module.score.weight)
    nn.init.zeros_(module.score.bias)
    assert torch.equal(module(x), x / 2)


@pytest.mark.parametrize("kind", MAPPED)
def test_map_stays_inside_its_range_and_fills_it(kind):
    top = 2.0 if kind == "identity" else 1.0
    found = gate(kind, 64, scale=2.5).map(random(4, 64, 4, 4, 4)) / top
    assert found.shape == (4, 1, 4, 4, 4)
    assert 0 < found.min() < 0.2 and 0.8 < found.max() < 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRIDS)
def test_arms_share_the_initial_values_they_share_by_name(name, kind):
    few, more = Attention(kind=kind), Attention(kind=kind, stages=(1, 2, 3))
    plain, gated, wider = (network(name, chosen).state_dict() for chosen in (None, few, more))
    assert plain.keys() < gated.keys() < wider.keys()
    assert all(torch.equal(plain[key], gated[key]) for key in plain)
    assert all(torch.equal(gated[key], wider[key]) for key in gated)


def test_gates_share_the_initial_values_they_share_by_name():
    """But for what one of them starts at zero."""
    drawn = {kind: dict(network(attention=Attention(kind=kind)).named_parameters()) for kind in KINDS}
    shared = set()
    for a, b in combinations(KINDS, 2):
        for key in drawn[a].keys() & drawn[b].keys():
            p, q = drawn[a][key], drawn[b][key]
            if ".gate." in key and p.shape == q.shape and p.any() and q.any():
                assert torch.equal(p, q), (a, b, key)
                shared.add((a, b, key.split(".gate.")[1]))
    assert {("sigmoid", "identity", "squeeze.weight"), ("sigmoid", "random", "score.bias")} <= shared
    assert ("cbam", "se", "excite.weight") in shared


@pytest.mark.parametrize("side", ["encoder", "decoder", "both"])
@pytest.mark.parametrize("stages", [(1, 2), (1, 2, 3), (3, 1)])
@pytest.mark.parametrize("name", GRIDS)
def test_gates_are_behind_the_named_stages_alone(name, stages, side):
    """In the order of the pass, and by channels and grid of what reaches them: the code is between 2^3 and 2^3."""
    model, w, seen = network(name, Attention(kind="sigmoid", stages=stages, side=side), 64, 2).eval(), 2, {}
    for key, module in model.named_modules():
        if isinstance(module, SpatialGate):
            module.register_forward_pre_hook(lambda m, x, key=key: seen.update({key: tuple(x[0].shape[1:3])}))
    with torch.no_grad():
        model(torch.rand(1, 2, 64, 64, 64))
    down = {f"network.added.encoder{k}.gate": (32 * w >> k, 2**k) for k in sorted(stages, reverse=True)}
    up = {f"network.added.decoder{k}.gate": (16 * w >> k, 2 ** (k + 1)) for k in sorted(stages)}
    expected = {"encoder": down, "decoder": up, "both": down | up}[side]
    assert list(seen.items()) == list(expected.items())


@pytest.mark.parametrize(
    ("name", "stages", "side", "missing", "accepted"),
    [
        ("stage1", (1, 2, 3), "encoder", "encoder3", "encoder2, encoder1, decoder1"),
        ("hybrid", (1, 2), "decoder", "decoder2", "encoder2, encoder1, decoder1"),
        ("legacy", (4, 5), "both", "encoder5, decoder4, decoder5", "encoder4, .*, decoder1, decoder2, decoder3"),
    ],
)
def test_missing_stage_is_one_line(name, stages, side, missing, accepted):
    with pytest.raises(ConfigError, match=rf"^model\.attention: .* {missing} .*: {accepted}$") as caught:
        network(name, Attention(kind="se", stages=stages, side=side), 16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_gate_has_the_parameters_of_its_equation(kind):
    for c in (64, 128, 256):
        assert size(KINDS[kind](c)) == COST[kind](c)
    assert size(KINDS[kind](6)) == NARROW.get(kind, 6 + 1 + 1 + 1)  # the specification's gate, and its two relatives


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRIDS)
def test_network_with_gates_has_the_parameters_of_both(name, kind):
    """Behind 256, 128 and 64 channels, of the two or three deepest stages."""
    for stages, channels in (((1, 2), (256, 128)), ((1, 2, 3), (256, 128, 64)), ((2,), (128,))):
        extra = full(name, attention=Attention(kind=kind, stages=stages)) - full(name)
        assert extra == sum(map(COST[kind], channels))


@pytest.mark.parametrize(
    ("stages", "extra", "percent"), [((2,), 2081, 0.030), ((1, 2), 10_338, 0.148), ((1, 2, 3), 10_867, 0.156)]
)
def test_gates_cost_what_the_specification_claims_of_one(stages, extra, percent):
    found = full(attention=Attention(kind="sigmoid", stages=stages)) - 6_977_954
    assert found == extra and round(100 * found / 6_977_954, 3) == percent


@pytest.mark.parametrize(("c", "percent"), [(64, -2.46), (128, -1.20), (256, -0.59)])
def test_control_has_nearly_the_parameters_of_the_gate(c, percent):
    """Within 2 % behind 128 and 256 channels."""
    found = 100 * (size(KINDS["conv"](c)) / size(KINDS["sigmoid"](c)) - 1)
    assert found == pytest.approx(percent, abs=0.005) and (abs(found) < 2 or c < 128)


@pytest.mark.parametrize("name", ["adam", "adamw", "schedule-free", "muon"])
def test_random_gate_stays_as_it_was_drawn(name):
    """Weight decay of everything does not move it either; whatever else there is moves."""
    schedule = {"optim__schedule": "constant"} if name == "schedule-free" else {}
    attention = Attention(kind="random", side="both", stages=(1,))
    c = tiny(model__attention=attention, optim__name=name, optim__weight_decay=0.1, optim__spare=False, **schedule)
    model, x = inference.network(c, MEAN, SD).to(memory_format=LAST), volumes(16, 4)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    opt = optim.optimiser(model, c.optim)
    for _ in range(3):
        optim.train(opt, model)
        opt.zero_grad()
        losses.rmse(model.standard(model(x)), model.standard(x)).backward()
        optim.step(opt, OFF, YES)
    optim.evaluate(opt, model)
    kept = {key for key, p in model.named_parameters() if torch.equal(p, before[key])}
    layers = ("squeeze.weight", "squeeze.bias", "score.weight", "score.bias")
    assert kept == {f"network.added.{stage}1.gate.{layer}" for stage in ("encoder", "decoder") for layer in layers}


def fitted(model, x):
    """Ready to be judged, with the batch statistics of `x` for its running ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def observed(model, x):
    """What reaches and leaves each gate in a pass, by stage."""
    seen, hooks = {}, []
    for name, addition in model.network.added.items():
        hook = addition.gate.register_forward_hook(lambda m, x, y, name=name: seen.update({name: (x[0], y)}))
        hooks.append(hook)
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("kind", MAPPED)
@pytest.mark.parametrize("name", GRIDS)
def test_maps_are_what_the_gate_multiplies_by(name, kind):
    """Features behind it over features before it; CBAM's channels have a factor each beside."""
    model, x = network(name, Attention(kind=kind, stages=(1, 2, 3))), volumes(GRIDS[name])
    redrawn(model.network.added)
    fitted(model, x)
    with torch.no_grad():
        maps, features = model.maps(x), model.features(x)
    seen = observed(model, x)
    assert set(maps) == set(seen) == {"encoder1", "encoder2", "encoder3"}
    for k in (1, 2, 3):
        weights, (before, after) = maps[f"encoder{k}"], seen[f"encoder{k}"]
        assert weights.shape == (2, 1, *(2**k,) * 3) and weights.std() > 1e-3
        assert torch.equal(features[f"encoder{k}"], after)
        ratio = torch.where(before > 1e-4, after / (before * weights), torch.nan).flatten(2).numpy()
        factor = np.nanmean(ratio, 2, keepdims=True) if kind == "cbam" else 1.0
        live = ~np.isnan(ratio)
        assert live.mean() > 0.2
        np.testing.assert_allclose(ratio[live], (factor + 0 * ratio)[live], rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_leave_nothing_behind(kind):
    model, x = network(attention=Attention(kind=kind)).eval(), volumes(32)

    def state():
        hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks)]
        return [set(vars(m)) for m in model.modules()], hooks, {k: bits(v) for k, v in model.state_dict().items()}

    with torch.no_grad():
        expected, before = model(x), state()
        model.maps(x)
        assert state() == before and not before[1] and torch.equal(model(x), expected)


@pytest.mark.parametrize(
    "attention", [None, Attention(kind="se"), Attention(kind="conv"), Attention(kind="sigmoid", side="decoder")]
)
def test_there_are_no_maps_without_a_gate_of_the_encoder_that_tells_places_apart(attention):
    assert network(attention=attention).eval().maps(volumes(32)) == {}


@pytest.mark.parametrize("kind", ["sigmoid", "identity", "random", "attention-gate"])
def test_map_follows_a_flip_of_its_input(kind):
    module, x = gate(kind), random(2, 16, 4, 4, 4)
    plain = module.map(x)
    for axes in [(2,), (3,), (4,), (2, 3, 4)]:
        torch.testing.assert_close(module.map(x.flip(axes)), plain.flip(axes))
        assert not torch.allclose(plain, plain.flip(axes), atol=0.01)


def arrays(module):
    """Weights as arrays, those of 1^3 kernels as matrices."""
    values = {key: p.detach().double().numpy() for key, p in module.named_parameters()}
    return {key: v[..., 0, 0, 0] if v.ndim == 5 and v.shape[-1] == 1 else v for key, v in values.items()}


def mixed(weight, x, bias=0.0):
    """Channels of (B, C, ...) mixed by a matrix, in float64."""
    y = np.einsum("oc,bc...->bo...", weight, x)
    return y + np.reshape(bias, (-1, *(1,) * (x.ndim - 2)))


def hidden(p, v):
    inner = np.maximum(mixed(p["squeeze.weight"], v, p["squeeze.bias"]), 0)
    last = "excite" if "excite.weight" in p else "score"
    return mixed(p[f"{last}.weight"], inner, p[f"{last}.bias"])


def reference(kind, p, x):
    """x behind a gate, by the papers' equations."""
    if kind in ("sigmoid", "identity", "random"):
        return x * expit(hidden(p, x)) * (2 if kind == "identity" else 1)
    if kind == "conv":
        return x + mixed(p["expand.weight"], np.maximum(mixed(p["squeeze.weight"], x, p["squeeze.bias"]), 0))
    if kind == "attention-gate":
        return x * additive(p, x, x.mean((2, 3, 4), keepdims=True))
    pooled = [x.mean((2, 3, 4)), x.max((2, 3, 4))] if kind == "cbam" else [x.mean((2, 3, 4))]
    x = x * expit(sum(hidden(p, v) for v in pooled))[:, :, None, None, None]
    if kind == "se":
        return x
    kernel, shown = p["score.weight"][0], np.stack([x.mean(1), x.max(1)], 1)
    score = [sum(ndimage.correlate(s[c], kernel[c], mode="constant") for c in (0, 1)) for s in shown]
    return x * expit(np.stack(score))[:, None]


def additive(p, x, signal):
    inner = np.maximum(mixed(p["theta.weight"], x) + mixed(p["phi.weight"], signal, p["phi.bias"]), 0)
    return expit(mixed(p["score.weight"], inner, p["score.bias"]))


@pytest.mark.parametrize("kind", KINDS)
def test_gate_is_its_papers_equation(kind):
    module, x = gate(kind, 32, scale=1.5), random(3, 32, 5, 4, 6)
    expected = reference(kind, arrays(module), x.double().numpy())
    assert not np.allclose(expected, x, atol=0.1)
    np.testing.assert_allclose(module(x).detach(), expected, rtol=1e-4, atol=1e-5)


def test_attention_gate_is_guided_by_a_signal_of_other_channels():
    module = initialise(AttentionGate(16, 24), 0)
    x, signal = random(2, 16, 4, 4, 4), random(2, 24, 4, 4, 4, seed=1)
    expected = additive(arrays(module), x.double().numpy(), signal.double().numpy())
    np.testing.assert_allclose(module.map(x, signal).detach(), expected, rtol=1e-5)
    assert not np.allclose(module.map(x, signal.flip(2)).detach(), expected, rtol=1e-3)
