"""The losses against numpy and finite differences."""

import numpy as np
import pytest
import torch

from dotlib import losses


@pytest.fixture
def volumes():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, 4, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_rmse_is_per_phantom(volumes):
    pred, truth = (x.numpy() for x in volumes)
    expected = np.mean([np.sqrt(np.mean((p - t) ** 2)) for p, t in zip(pred, truth, strict=True)])
    assert losses.rmse(*volumes).item() == pytest.approx(expected, rel=1e-11)


def test_rmse_gradient_agrees_with_differences(volumes):
    pred, truth = volumes
    assert torch.autograd.gradcheck(lambda p: losses.rmse(p, truth), pred.requires_grad_(), fast_mode=True)


def test_rmse_gradient_is_finite_at_no_error(volumes):
    pred = volumes[0].float().requires_grad_()
    losses.rmse(pred, pred.detach()).backward()
    assert pred.grad.equal(torch.zeros_like(pred))


def test_rmse_ignores_autocast(volumes):
    pred, truth = (x.float() for x in volumes)
    plain = losses.rmse(pred, truth)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert losses.rmse(pred, truth).equal(plain)
        assert losses.rmse(pred.bfloat16(), truth).equal(losses.rmse(pred.bfloat16().float(), truth))


def test_loss_is_found_by_name_or_refused():
    assert losses.loss("rmse") is losses.rmse
    with pytest.raises(ValueError, match=r"'rsme' is unknown.*'rmse'"):
        losses.loss("rsme")


def test_rmse_refuses_shapes_that_would_broadcast(volumes):
    with pytest.raises(ValueError, match="equal shapes"):
        losses.rmse(volumes[0], volumes[1][:, :1])
