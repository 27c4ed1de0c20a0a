"""The training loop that one writes first: the baseline of speed."""

import statistics
import time

import torch
import torch.nn.functional as F

from .. import machine
from ..config import Config
from ..data import dataset
from ..inference import mixed, network

CONTIGUOUS = torch.contiguous_format


def naive_loop(
    config: Config,
    dense_ssim: bool = True,
    steps: int = 4,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = CONTIGUOUS,
    on: str | None = None,
) -> float:
    """Samples/s of the loop that one writes first: fp32, contiguous, RMSE + dense 11^3 SSIM, `.item()` each step.

    The median step after the first; `dtype` (autocast) and `layout` may be changed alone.
    """
    on = on or machine.device()
    train = dataset.load(config.data).volumes("train")
    model = network(config, *dataset.standard(train)).to(on, memory_format=layout).train()
    opt = torch.optim.Adam(model.parameters(), lr=5e-5)
    window = torch.ones(1, 1, 11, 11, 11, device=on) / 11**3  # its cost does not depend on the weights
    times, batch = [], config.training.batch
    for i in range(steps):
        start = time.perf_counter()
        x = train[torch.arange(i * batch, (i + 1) * batch) % len(train)].to(on).contiguous(memory_format=layout)
        with mixed(on, dtype):
            y = model(x)
        loss = (y - x).square().mean().sqrt()
        if dense_ssim:
            p, t = y.flatten(0, 1)[:, None], x.flatten(0, 1)[:, None]
            mp, mt, pp, tt, pt = (F.conv3d(v, window, padding=5) for v in (p, t, p * p, t * t, p * t))
            ssim = (2 * mp * mt + 1e-4) * (2 * (pt - mp * mt) + 9e-4)
            ssim = ssim / ((mp**2 + mt**2 + 1e-4) * (pp - mp**2 + tt - mt**2 + 9e-4))
            loss = 0.7 * loss + 0.3 * (1 - ssim.mean())
        opt.zero_grad()
        loss.backward()
        opt.step()
        loss.item()
        times.append(time.perf_counter() - start)
    return batch / statistics.median(times[1:])
