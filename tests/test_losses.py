"""The losses against numbers by hand, numpy, scikit-image, dense convolutions and finite differences."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import nn

from dotlib import losses, metrics
from dotlib.config import Features, Loss
from dotlib.models.blocks import Standard

SCALE = torch.tensor(metrics.RANGES, dtype=torch.float64).view(2, 1, 1, 1)
LOOK = torch.linspace(-1, 2, 56).view(8, 7)


def features(x):
    """Two linear stages."""
    return [x @ LOOK.to(x.dtype).T, 5 * x.mean((-3, -2))]


def seen(pred, truth):
    return losses.perceptual(features, pred, truth)


CHANNELWISE = list(losses.LOSSES.values())
TERMS = [*CHANNELWISE, seen]


@pytest.fixture
def volumes():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, 4, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.fixture
def physical():
    """Within the channels' ranges, mm^-1, and half alike."""
    generator = torch.Generator().manual_seed(1)
    truth, other = (torch.rand(3, 2, 9, 8, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    return SCALE * (truth + other) / 2, SCALE * truth


def gradient(term, pred, *rest, mixed=False):
    """With `mixed`, of the term under autocast; the backward pass is outside, as it is in training."""
    pred = pred.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        value = term(pred, *rest)
    return torch.autograd.grad(value, pred)[0]


@pytest.mark.parametrize("weights", [None, (2, 1), (0.3, 5)])
def test_rmse_is_per_phantom(volumes, weights):
    pred, truth = (x.numpy() for x in volumes)
    squares = ((pred - truth) ** 2).mean((2, 3, 4))
    expected = np.sqrt(np.average(squares, axis=1, weights=weights)).mean()
    assert losses.rmse(*volumes, weights).item() == pytest.approx(expected, rel=1e-11)


def test_rmse_gradient_is_finite_at_no_error(volumes):
    pred = volumes[0].float()
    assert gradient(losses.rmse, pred, pred).equal(torch.zeros_like(pred))


def voxel(mua, musp):
    return torch.tensor([mua, musp], dtype=torch.float64).view(1, 2, 1, 1, 1)


def ssim_of_a_voxel(p, t):
    """Alone in its window it has the weight w: means w p, w t; variances (w - w^2) p^2, ...; K = (.01, .03), L = 1."""
    w = sum(math.exp(-(k**2) / 4.5) for k in range(-5, 6)) ** -3
    v = w - w**2
    luminance = (2 * w * w * p * t + 1e-4) / (w * w * (p * p + t * t) + 1e-4)
    return luminance * (2 * v * p * t + 9e-4) / (v * (p * p + t * t) + 9e-4)


def test_dissimilarity_of_one_voxel_by_hand():
    mua, musp = metrics.RANGES
    pred, truth = voxel(0.5 * mua, 1.0 * musp), voxel(0.8 * mua, 0.1 * musp)
    a, b = 1 - ssim_of_a_voxel(0.5, 0.8), 1 - ssim_of_a_voxel(1.0, 0.1)
    assert b > 2 * a > 0.1
    assert losses.dissimilarity(pred, truth).item() == pytest.approx((a + b) / 2, rel=1e-12)
    assert losses.dissimilarity(pred, truth, (3, 1)).item() == pytest.approx((3 * a + b) / 4, rel=1e-12)


def test_dissimilarity_agrees_with_scikit_image(physical):
    """Within five zeros all round, the whole cube is where scikit-image's own borders do not reach."""
    pred, truth = (F.pad(x, (5,) * 6).numpy() for x in physical)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    maps = [
        structural_similarity(pred[b, c], truth[b, c], data_range=metrics.RANGES[c], **options)[1]
        for b in range(3)
        for c in range(2)
    ]
    expected = 1 - np.mean(maps, axis=0)[5:-5, 5:-5, 5:-5].mean()
    assert expected > 0.1
    assert losses.dissimilarity(*physical).item() == pytest.approx(expected, abs=1e-12)
    assert losses.dissimilarity(*(x.float() for x in physical)).item() == pytest.approx(expected, abs=1e-6)


def dense_dissimilarity(pred, truth, weights=None):
    line = torch.exp(-(torch.arange(-5, 6).double() ** 2) / 4.5)
    window = torch.einsum("i,j,k->ijk", line, line, line)
    window = (window / window.sum()).expand(2, 1, 11, 11, 11)
    p, t = pred / SCALE, truth / SCALE
    a, b, pp, tt, pt = (F.conv3d(x, window, padding=5, groups=2) for x in (p, t, p * p, t * t, p * t))
    top = (2 * a * b + 1e-4) * (2 * (pt - a * b) + 9e-4)
    maps = top / ((a * a + b * b + 1e-4) * (pp - a * a + tt - b * b + 9e-4))
    return 1 - (maps.mean((0, 2, 3, 4)) * torch.tensor(weights or (1, 1)) / sum(weights or (1, 1))).sum()


@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
def test_separable_dissimilarity_equals_the_dense_one(physical, weights):
    arguments = *physical, weights
    torch.testing.assert_close(losses.dissimilarity(*arguments), dense_dissimilarity(*arguments), atol=1e-12, rtol=0)
    found, expected = (gradient(term, *arguments) * SCALE for term in (losses.dissimilarity, dense_dissimilarity))
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=1e-9)
    assert expected.abs().max() > 1e-4


def test_dissimilarity_is_symmetric_and_bounded(physical):
    pred, truth = physical
    assert losses.dissimilarity(pred, truth).item() == pytest.approx(
        losses.dissimilarity(truth, pred).item(), abs=1e-14
    )
    board = torch.tensor([1.0, -1.0]).repeat(8)  # its mean in a window is about 0
    board = board[:, None, None] * board[:, None] * board * SCALE[None]
    assert 1.8 < losses.dissimilarity(board, -board).item() < 2


def test_gradient_difference_by_hand():
    """mua steps along the first axis by (2, 3) for (1, 1), musp along the last by 5 for 2: 1.5 / 3 and 3 / 3."""
    pred, truth = torch.zeros(2, 1, 2, 3, 2, 2)
    pred[0, 0], truth[0, 0] = (torch.tensor(x).view(3, 1, 1) for x in ([0.0, 2, -1], [0.0, -1, 0]))
    pred[0, 1], truth[0, 1] = torch.tensor([1.0, -4]), torch.tensor([0.0, 2])
    assert losses.gradient_difference(pred, truth).item() == pytest.approx((0.5 + 1) / 2)
    assert losses.gradient_difference(pred, truth, (3, 1)).item() == pytest.approx((3 * 0.5 + 1) / 4)


def test_gradient_difference_sees_neither_level_nor_sign(volumes):
    pred, truth = volumes
    value = losses.gradient_difference(pred, truth)
    torch.testing.assert_close(losses.gradient_difference(7 - pred, truth), value)
    assert value > 0.1
    assert not gradient(losses.gradient_difference, torch.ones_like(pred), truth).any()  # it cannot leave a flat image


def test_perceptual_by_hand():
    """Stages (3 mua, 3 musp) and mua - musp of a voxel; phantoms of errors (1, 0) of (1, 2) and (0, 3) of (4, 5)."""
    truth = torch.tensor([[1.0, 2], [4, 5]]).view(2, 2, 1, 1, 1)
    pred = torch.tensor([[2.0, 2], [4, 8]]).view(2, 2, 1, 1, 1)
    value = losses.perceptual(lambda x: [3 * x, x[:, :1] - x[:, 1:]], pred, truth)
    assert value.item() == pytest.approx(((1 / 5 + 1 / 1) / 2 + (9 / 41 + 9 / 1) / 2) / 2)


def test_perceptual_does_not_know_the_scale_of_a_stage(physical):
    def scaled(x):
        first, second = features(x)
        return [1e3 * first, 1e-3 * second]

    torch.testing.assert_close(losses.perceptual(scaled, *physical), seen(*physical), rtol=1e-5, atol=0)


def test_perceptual_trains_the_prediction_alone():
    network = nn.Conv3d(2, 3, 3).requires_grad_(False)
    recorded = []

    def looked(x):
        recorded.append(torch.is_grad_enabled())
        return (network(x).square(),)

    pred, truth = torch.rand(2, 2, 2, 4, 4, 4).requires_grad_().unbind()
    pred.retain_grad()
    truth.retain_grad()
    losses.perceptual(looked, pred, truth).backward()
    assert pred.grad.abs().min() > 0
    assert truth.grad is None and network.weight.grad is None
    assert sorted(recorded) == [False, True]


def test_perceptual_reduces_half_precision_features_in_fp32(physical):
    def half(x):
        return [stage.bfloat16() for stage in features(x)]

    value = losses.perceptual(half, *physical)
    assert value.dtype == torch.float32
    assert value.equal(losses.perceptual(lambda x: [stage.float() for stage in half(x)], *physical))


def test_perceptual_bears_a_stage_that_sees_nothing(physical):
    assert losses.perceptual(lambda x: [0 * x], *physical).item() == 0


@pytest.mark.parametrize("term", TERMS)
def test_equal_volumes_have_no_loss(physical, term):
    value = term(physical[0], physical[0].clone()).item()
    assert value == pytest.approx(0, abs=2e-6 if term is losses.rmse else 1e-14)  # eps under the root
    assert term(*physical) > 0.01


@pytest.mark.parametrize("weights", [None, (2.0, 1.0)])
@pytest.mark.parametrize("term", CHANNELWISE)
def test_gradient_agrees_with_differences(physical, term, weights):
    pred, truth = (x / SCALE for x in physical)

    def scaled(p):
        return term(p * SCALE, truth * SCALE, weights) if term is losses.dissimilarity else term(p, truth, weights)

    assert torch.autograd.gradcheck(scaled, pred.requires_grad_(), fast_mode=True)


def test_perceptual_gradient_agrees_with_differences(physical):
    assert torch.autograd.gradcheck(lambda p: seen(p, physical[1]), physical[0].requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("term", TERMS)
def test_batch_has_the_mean_of_its_phantoms_terms(physical, term):
    """So that micro-batches add up to their batch."""
    each = [term(p[None], t[None]) for p, t in zip(*physical, strict=True)]
    torch.testing.assert_close(term(*physical), torch.stack(each).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("term", TERMS)
def test_autocast_is_ignored(physical, term):
    pred, truth = (x.float() for x in physical)
    plain, slope = term(pred, truth), gradient(term, pred, truth)
    halves = pred.bfloat16(), truth.bfloat16()
    half = term(*(x.float() for x in halves))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert term(pred, truth).equal(plain)
        assert term(*halves).equal(half)
    assert gradient(term, pred, truth, mixed=True).equal(slope)
    assert plain.dtype == torch.float32 and term(*physical).dtype == torch.float64


@pytest.mark.parametrize("weights", [(2, 1), (0.5, 3)])
@pytest.mark.parametrize("term", CHANNELWISE)
def test_weights_scale_the_channels_gradients_by_their_ratio(physical, term, weights):
    pred, truth = (x[:1] / (1 if term is losses.dissimilarity else SCALE) for x in physical)
    before, after = gradient(term, pred, truth)[0], gradient(term, pred, truth, weights)[0]
    changes = [(after[c] / before[c])[before[c] != 0] for c in range(2)]
    for change in changes:
        torch.testing.assert_close(change, change[:1].expand_as(change), rtol=1e-7, atol=0)
    assert (changes[0][0] / changes[1][0]).item() == pytest.approx(weights[0] / weights[1], rel=1e-7)
    scaled = [10 * w for w in weights]
    torch.testing.assert_close(term(pred, truth, scaled), term(pred, truth, weights), rtol=1e-12, atol=0)
    torch.testing.assert_close(term(pred, truth, (4, 4)), term(pred, truth), rtol=1e-12, atol=0)


def test_weights_of_raw_channels_would_not_turn_the_gradient():
    """Errors of each channel's own size: 2:1 turns (1, 1) to (2, 1) if standardised, by 0.5 degrees in mm^-1."""
    signs = torch.randint(0, 2, (1, 2, 4, 4, 4), generator=torch.Generator().manual_seed(2)).double() * 2 - 1
    cosines = []
    for error in (signs, signs * SCALE):
        slopes = [gradient(losses.rmse, error, torch.zeros_like(error), w).flatten() for w in (None, (2, 1))]
        cosines.append(F.cosine_similarity(*slopes, dim=0).item())
    assert cosines[0] == pytest.approx(3 / math.sqrt(10), rel=1e-9)
    assert math.degrees(math.acos(cosines[1])) == pytest.approx(
        math.degrees(metrics.RANGES[0] / metrics.RANGES[1]), rel=1e-3
    )


STANDARD = Standard(torch.tensor([0.01, 1.0]), torch.tensor([0.002, 0.25]))
PERCEPTUAL = {"perceptual": 0.1, "features": Features(source="random")}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (Loss(rmse=0.7, ssim=0.3), ("rmse", "ssim")),
        (Loss(rmse=1, ssim=0.3, **PERCEPTUAL), ("rmse", "ssim", "perceptual")),
    ],
)
def test_published_weightings_by_hand(config, names):
    """Standardised errors of a voxel (2, 1); SSIM of its shares of the ranges; its mua is seen half as large again."""
    pred, truth = voxel(0.012, 1.5), voxel(0.008, 1.25)
    shares = [(p / r, t / r) for p, t, r in zip((0.012, 1.5), (0.008, 1.25), metrics.RANGES, strict=True)]
    values = {"rmse": math.sqrt((4 + 1) / 2), "ssim": 1 - sum(ssim_of_a_voxel(*x) for x in shares) / 2}
    values["perceptual"] = 0.25
    criterion = losses.Criterion(config, STANDARD, lambda x: [x[:, :1]])
    terms = criterion(pred, truth)
    assert criterion.names == names
    assert terms.tolist() == pytest.approx([values[name] for name in names], rel=1e-6)  # the statistics are fp32
    expected = sum(getattr(config, name) * values[name] for name in names)
    assert criterion.total(terms).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_plain_criterion_is_rmse_to_the_bit(physical, dtype):
    pred, truth = (x.to(dtype) for x in physical)
    criterion = losses.Criterion(Loss(), STANDARD)

    def plain(p, t):
        return losses.rmse(STANDARD(p), STANDARD(t))

    def total(p, t):
        return criterion.total(criterion(p, t))

    assert total(pred, truth).equal(plain(pred, truth))
    assert gradient(total, pred, truth).equal(gradient(plain, pred, truth))
    assert criterion(pred, truth).shape == (1,) and total(pred, truth).shape == ()


def test_criterion_orders_terms_and_standardises_once(physical):
    """Each volume, and none where no term wants it; the order is fixed, that of the columns of a run."""
    calls = []

    def standard(x):
        calls.append(x)
        return STANDARD(x)

    config = Loss(gradient=2, rmse=0.5, ssim=3, channels=(2, 1), **PERCEPTUAL)
    criterion = losses.Criterion(config, standard, features)
    pred, truth = physical
    terms = criterion(pred, truth)
    assert criterion.names == ("rmse", "ssim", "perceptual", "gradient") and calls == [pred, truth]
    standardised = STANDARD(pred), STANDARD(truth)
    expected = torch.stack(
        [
            losses.rmse(*standardised, (2, 1)),
            losses.dissimilarity(pred, truth, (2, 1)),
            losses.perceptual(features, pred, truth),
            losses.gradient_difference(*standardised, (2, 1)),
        ]
    )
    assert terms.equal(expected)
    assert criterion.total(terms).item() == pytest.approx(expected.tolist() @ np.array([0.5, 3, 0.1, 2]), rel=1e-12)
    losses.Criterion(Loss(rmse=0, ssim=1), standard)(pred, truth)
    assert len(calls) == 2


def test_terms_are_looked_up_when_called(physical, monkeypatch):
    criterion = losses.Criterion(Loss(), STANDARD)
    monkeypatch.setitem(losses.LOSSES, "rmse", lambda pred, truth: (pred - truth).sum())
    expected = (STANDARD(physical[0]) - STANDARD(physical[1])).sum()
    assert criterion(*physical).equal(expected[None])


def test_compiled_criterion_is_one_graph_and_the_same(physical):
    """One graph: nothing in it waits for a value."""
    pred, truth = (x.float() for x in physical)
    criterion = losses.Criterion(
        Loss(rmse=1, ssim=0.3, gradient=0.1, channels=(2, 1), **PERCEPTUAL), STANDARD, features
    )

    def total(p, t):
        return criterion.total(criterion(p, t))

    torch.compiler.reset()
    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(pred, truth), total(pred, truth))
    torch.testing.assert_close(gradient(compiled, pred, truth), gradient(total, pred, truth))


def test_criterion_refuses_a_perceptual_term_without_features():
    with pytest.raises(ValueError, match=r"perceptual 0\.1: features are needed"):
        losses.Criterion(Loss(**PERCEPTUAL), STANDARD)


@pytest.mark.parametrize("term", TERMS)
def test_shapes_that_would_broadcast_are_refused(physical, term):
    with pytest.raises(ValueError, match=r"pred \(3, 2, 9, 8, 7\), truth \(3, 1, 9, 8, 7\)"):
        term(physical[0], physical[1][:, :1])


@pytest.mark.parametrize("weights", [(1,), (1, 2, 3), (1, 0), (1, -1)])
@pytest.mark.parametrize("term", CHANNELWISE)
def test_weights_that_do_not_fit_are_refused(physical, term, weights):
    with pytest.raises(ValueError, match=r"weights \(1.*one positive number for each of 2 channels"):
        term(*physical, weights)
