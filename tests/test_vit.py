"""Transformers on patches and on voxels: against torch's, by their equations, and what tells tokens apart."""

import pytest
import torch
from tiny import tiny
from torch import nn

from dotlib import config, inference, memory
from dotlib.config import Attention, ConfigError, Links, Model
from dotlib.models import vit
from dotlib.models.autoencoder import NETWORKS, build
from dotlib.models.blocks import initialise

MEAN, SD = torch.tensor([0.006, 1.1]), torch.tensor([0.003, 0.4])


def network(name="vit", grid=16, width=4, seed=0):
    return build(Model(name=name, width=width, code=16), grid, seed, MEAN, SD)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def size(module):
    return sum(p.numel() for p in module.parameters())


def full(name, grid=64, width=16, code=256):
    """Parameters of a network that is only described."""
    with torch.device("meta"):
        return size(NETWORKS[name](grid, Model(name=name, width=width, code=code)))


def redrawn(module):
    """Every parameter normal, by fan-in: normalisations and positions too."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(random(*p.shape, seed=i) / max(1, p[0].numel()) ** 0.5)
    return module


def transformer(c):
    """12 C^2 + 13 C."""
    qkv, project, expand, contract = 3 * c * c + 3 * c, c * c + c, 4 * c * c + 4 * c, 4 * c * c + c
    return 2 * 2 * c + qkv + project + expand + contract


def test_patches_of_the_hand_made_volume():
    """Two channels of 4^3 voxels that hold their place: channel, plane, row, column as digits."""
    digits = [torch.arange(4.0).view([4 if i == axis else 1 for i in range(3)]) for axis in range(3)]
    place = 100 * digits[0] + 10 * digits[1] + digits[2]
    tokens = vit.Patches(2)(torch.stack([place, 1000 + place])[None])
    assert tokens.shape == (1, 8, 16)
    block = [0, 1, 10, 11, 100, 101, 110, 111]
    for n, corner in enumerate([0, 2, 20, 22, 200, 202, 220, 222]):
        assert tokens[0, n].tolist() == [corner + b for b in block] + [1000 + corner + b for b in block]


@pytest.mark.parametrize(("patch", "grid", "channels"), [(8, 16, 2), (8, 64, 3), (2, 12, 1), (4, 4, 2)])
def test_patches_and_back_are_the_identity(patch, grid, channels):
    patches, x = vit.Patches(patch), random(2, channels, grid, grid, grid)
    tokens = patches(x)
    assert tokens.shape == (2, (grid // patch) ** 3, channels * patch**3) and torch.equal(patches.back(tokens), x)


@pytest.mark.parametrize("c", [24, 64, 192])
def test_transformer_has_the_parameters_of_its_equation(c):
    assert size(vit.Transformer(c)) == transformer(c) == 12 * c * c + 13 * c


@pytest.mark.parametrize(("grid", "width", "code"), [(64, 16, 256), (32, 8, 100), (16, 3, 5)])
def test_vit_has_the_parameters_of_its_equation(grid, width, code):
    c, n, patch = 12 * width, (grid // 8) ** 3, 8**3
    stem, head = 2 * patch * c + c, c * 3 * patch + 3 * patch
    places = 2 * n * c + c  # of the encoder's and the decoder's tokens, and of the one that gathers
    blocks, norms = 14 * transformer(c), 2 * 2 * c
    bottleneck = (c * code + code) + (code * c + c)
    found = full("vit", grid, width, code)
    assert found == stem + head + places + blocks + norms + bottleneck
    assert found == 7_017_664 or grid != 64


@pytest.mark.parametrize("grid", [16, 32, 64])
def test_hybrid_has_transformers_in_place_of_the_deepest_residual_blocks(grid):
    c, tokens = 128, 4**3
    residual, voxels = 2 * 27 * c * c + 4 * c, tokens * c + transformer(c)
    found = full("hybrid", grid)
    assert found == full("stage1", grid) - 2 * residual + 2 * voxels
    assert found == 5_571_392 or grid != 64


def test_hybrid_starts_with_the_weights_it_shares_with_the_convolutional_network():
    hybrid, plain = (dict(network(name, 32).named_parameters()) for name in ("hybrid", "stage1"))
    common, alone = hybrid.keys() & plain.keys(), hybrid.keys() - plain.keys()
    assert all(torch.equal(hybrid[key], plain[key]) for key in common)
    deepest = {f"network.encoder.{i}" for i in (4, 5)}  # behind a block, a convolution, its normalisation and a ReLU
    assert {".".join(key.split(".")[:3]) for key in alone} == deepest


@pytest.mark.parametrize(("c", "heads"), [(24, 1), (64, 2), (192, 6)])
def test_transformer_is_that_of_torch(c, heads):
    """With the normalisations before, as in Dosovitskiy 2021; weights in torch's order."""
    ours = redrawn(vit.Transformer(c))
    theirs = nn.TransformerEncoderLayer(c, heads, 4 * c, 0.0, "gelu", norm_first=True, batch_first=True)
    names = {
        "qkv.weight": "self_attn.in_proj_weight", "qkv.bias": "self_attn.in_proj_bias",
        "project.weight": "self_attn.out_proj.weight", "project.bias": "self_attn.out_proj.bias",
        "expand": "linear1", "contract": "linear2",
    }  # fmt: skip
    state = {}
    for key, value in ours.state_dict().items():
        found = next((name for name in names if key.startswith(name)), key)
        state[key.replace(found, names.get(found, found))] = value
    theirs.load_state_dict(state)
    x = random(3, 27, c)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert ours.heads == heads and not torch.allclose(ours(x), x, atol=0.1)


def test_heads_share_the_channels_of_every_width():
    """12 channels a unit of width in the full ViT, 8 in the hybrid's deepest stage."""
    with torch.device("meta"):
        heads = {c: vit.Transformer(c).heads for width in range(2, 33) for c in (12 * width, 8 * width)}
    assert not {c: n for c, n in heads.items() if c % n}
    assert all(32 <= c / n < 64 for c, n in heads.items() if c >= 64)


def test_block_does_not_tell_tokens_apart_by_order_and_positions_do():
    x, order = random(2, 27, 64), torch.randperm(27, generator=torch.Generator().manual_seed(0))
    block, positions = redrawn(vit.Transformer(64)), redrawn(vit.Positions(27, 64))
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(block(positions(x[:, order])), block(positions(x))[:, order], atol=0.1)


def test_voxel_transformer_does_not_tell_a_flip_but_by_positions():
    module, x = redrawn(vit.VoxelTransformer(24, 4, 2)), random(2, 24, 4, 4, 4)
    assert module(x).shape == x.shape and not torch.allclose(module(x.flip(3)), module(x).flip(3), atol=0.1)
    nn.init.zeros_(module.positions.weight)
    torch.testing.assert_close(module(x.flip(3)), module(x).flip(3), rtol=1e-4, atol=1e-5)


def silenced(module):
    """Every transformer block leaves its tokens as they are."""
    for block in module.modules():
        if isinstance(block, vit.Transformer):
            for layer in (block.project, block.contract):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
    return module


def test_voxels_are_tokens_in_their_places():
    """What a voxel holds, and the vector of its place, arrive at that voxel."""
    module, x = silenced(redrawn(vit.VoxelTransformer(6, 4))), random(2, 6, 4, 4, 4)
    places = module.positions.weight.detach().view(4, 4, 4, 6).permute(3, 0, 1, 2)
    torch.testing.assert_close(module(x), torch.relu(x + places))


def test_patch_is_the_feature_at_its_place():
    """Of the network: what differs in one patch of 8^3 voxels differs in one voxel of the features."""
    model, x = silenced(network(grid=32)), random(1, 2, 32, 32, 32)
    y = x.clone()
    y[0, 1, 9:13, 25:30, 2:5] += 1.0
    with torch.no_grad():
        changed = model.features(y)["encoder1"] != model.features(x)["encoder1"]
    assert changed.shape == (1, 48, 4, 4, 4) and changed.any(1).nonzero().tolist() == [[0, 1, 3, 0]]


def test_patch_of_the_output_is_that_of_its_token():
    """Without blocks the decoder's tokens differ by their places alone: one that is changed changes its patch."""
    model, code = silenced(network(grid=32)), random(1, 16)
    decode = model.network.decode
    with torch.no_grad():
        before = decode(code, model.standard)
        model.network.targets.weight[(1 * 4 + 3) * 4 + 2] += random(48)
        changed = decode(code, model.standard) != before
    patch = changed[:, :, 8:16, 24:32, 16:24]
    assert patch.float().mean() > 0.95 and changed.sum() == patch.sum()


def test_code_is_that_of_a_token_of_its_own():
    """Without blocks nothing is gathered: the code is that of the token's own vector, whatever the volume."""
    model = silenced(network()).network
    expected = model.to_code(nn.functional.layer_norm(model.gather.weight, (48,))).expand(3, -1)
    torch.testing.assert_close(model.encode(random(3, 2, 16, 16, 16)), expected)


def test_code_sees_every_patch():
    model = network(grid=32)
    x = random(1, 2, 32, 32, 32).requires_grad_()
    model.encode(x).square().sum().backward()
    seen = vit.Patches(8)(x.grad).abs().amax(2)
    assert seen.shape == (1, 64) and (seen > 0).all()


@pytest.mark.parametrize("n", [64, 1000])
def test_positions_are_drawn_with_a_small_deviation(n):
    weight = initialise(nn.Sequential(vit.Positions(n, 48)), 0)[0].weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05) and weight.abs().max() <= 0.02 * 3**0.5
    assert not torch.equal(weight, initialise(nn.Sequential(vit.Positions(n, 48)), 1)[0].weight)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("grid", [16, 32])
@pytest.mark.parametrize("name", ["vit", "hybrid"])
def test_network_is_never_negative(name, grid, training):
    for seed in range(3):
        model = network(name, grid, seed=seed).train(training)
        with torch.no_grad():
            for p in model.network.head.parameters():
                p.mul_(100)
            y = model(random(4, 2, grid, grid, grid, seed=seed) * 10)
        assert y.isfinite().all() and y.min() >= 0 and y.max() > 10 * MEAN.max()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depth", 2), ("dropout", 0.1), ("attention", Attention(kind="sigmoid")), ("links", Links(kind="dense")),
    ],
)  # fmt: skip
def test_vit_refuses_what_needs_stages(field, value):
    with pytest.raises(
        ConfigError, match=r"model = .*vit has no stages: .* are accepted with other networks"
    ) as caught:
        config.replace(tiny(), {"model.name": "vit", f"model.{field}": value})
    assert "\n" not in str(caught.value)
    assert config.replace(tiny(), {"model.name": "hybrid", f"model.{field}": value}).model.name == "hybrid"


@pytest.mark.parametrize(("name", "share"), [("vit", 0.5), ("hybrid", 0.9)])
def test_checkpointing_keeps_less(name, share):
    """Of a block nothing but its tokens, which most of a ViT consists of."""
    c = tiny(model__name=name, model__width=4)
    x = inference.prepared(torch.rand(2, 2, 16, 16, 16))

    def kept(on):
        model = inference.network(config.replace(c, {"training.checkpointing": on}))
        return memory.kept(lambda: model(x).sum(), model)

    assert kept(True) < share * kept(False)
