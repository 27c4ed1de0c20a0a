"""Parts that the networks share, and their seeded initialisation."""

import contextlib
import hashlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class Conv3d(nn.Conv3d):
    """A convolution that is also right in bf16 on a CPU.

    The bf16 weight gradient of oneDNN reads uninitialised memory where a padded kernel is larger than the volume, in
    channels-last (torch 2.13, AVX512-BF16: NaN in some weights after a few steps; 3^3 on 2^3 voxels, 7^3 on 4^3); such
    volumes are convolved in fp32.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_cuda or x.shape[-1] >= max(3, self.kernel_size[0]):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class ZeroConv3d(Conv3d):
    """A convolution that starts at zero, so that what it adds starts as nothing."""

    bound = 0.0


class Standard(nn.Module):
    """Standardised channels: (x - mean) / sd and back, with buffers fitted on the training split."""

    def __init__(self, mean: torch.Tensor, sd: torch.Tensor):
        super().__init__()
        self.register_buffer("mean", mean.view(1, -1, 1, 1, 1).float().clone())
        self.register_buffer("sd", sd.view(1, -1, 1, 1, 1).float().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.sd

    def back(self, z: torch.Tensor) -> torch.Tensor:
        return z * self.sd + self.mean

    def positive(self, y: torch.Tensor) -> torch.Tensor:
        """Occupancy gate x softplus level x the tissue's mean, never negative, of (B, 1 + C, D, H, W)."""
        y = y.float()
        occupancy, level = y[:, :1].sigmoid(), F.softplus(y[:, 1:] + 0.5413)  # softplus(0.5413) = 1
        return occupancy * level * self.mean


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, and batch normalisation; padded to keep (or divide by the stride) the grid."""
    padding = (kernel - 1) // 2
    return nn.Sequential(Conv3d(c_in, c_out, kernel, stride, padding, bias=False), nn.BatchNorm3d(c_out))


class Block(nn.Module):
    """A part whose activations, with `recompute`, are not kept for the backward pass but computed again.

    Gradient checkpointing (Chen 2016). What a block does is in its `block`; random numbers are the same both times.
    """

    recompute = False

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return self.block(*x)
        again = (contextlib.nullcontext(), frozen_statistics(self))
        return checkpoint(self.block, *x, use_reentrant=False, context_fn=lambda: again)


class Residual(Block):
    """Basic block (He 2016): two 3^3 convolutions beside the identity, or a 1^3 projection where the shape changes.

    With `start_identity` the last normalisation's weight starts at 0, and the block with its shortcut.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1, start_identity: bool = False):
        super().__init__()
        self.first, self.second = conv_bn(c_in, c_out, 3, stride), conv_bn(c_out, c_out, 3)
        self.shortcut = conv_bn(c_in, c_out, 1, stride) if c_in != c_out or stride != 1 else nn.Identity()
        if start_identity:
            nn.init.zeros_(self.second[1].weight)

    def block(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch statistics are used but not remembered: a pass that repeats another must not count twice."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def space_to_depth(x: torch.Tensor, r: int) -> torch.Tensor:
    """(B, C, D, H, W) -> (B, C r^3, D/r, H/r, W/r): blocks of r^3 voxels become channels (Shi 2016, inverted)."""
    b, c, d, h, w = x.shape
    x = x.reshape(b, c, d // r, r, h // r, r, w // r, r).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, c * r**3, d // r, h // r, w // r)


def depth_to_space(x: torch.Tensor, r: int) -> torch.Tensor:
    """The inverse of `space_to_depth`."""
    b, c, d, h, w = x.shape
    x = x.reshape(b, c // r**3, r, r, r, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // r**3, d * r, h * r, w * r)


def initialise(model: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter from its own generator, keyed by (seed, name): networks share what they share by name.

    Weights and biases of convolutions and linear layers are uniform in +-1/sqrt(fan-in), torch's own default, or in
    +-`bound` where a module has one; normalisations keep what their block gave them.
    """
    for name, module in model.named_modules():
        bound = getattr(module, "bound", None)
        if bound is None and isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
            bound = 1 / math.sqrt(nn.init._calculate_fan_in_and_fan_out(module.weight)[0])
        if bound is None:
            continue
        for key, parameter in module.named_parameters(recurse=False):
            digest = hashlib.sha256(f"{seed}/{name}.{key}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            with torch.no_grad():
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    return model
