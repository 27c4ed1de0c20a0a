"""Stage 1: a volume of (mua, musp) into a code, and back."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import Conv3d, Residual, Standard, conv_bn, depth_to_space, initialise, space_to_depth


class Legacy(nn.Module):
    """The earlier work's network, 6,977,954 parameters at 64^3 and width 16.

    Its global average pooling keeps no position; its outputs may be negative. On 32^3 and 16^3 the last one or two
    decoder stages, and the max-pooling or also the stem's stride, fall away, so that 2^3 stays before the pooling.
    """

    def __init__(self, grid: int, width: int, code: int):
        super().__init__()
        stages = {64: 5, 32: 4, 16: 3}[grid]
        self.top = 16 * width
        self.stem = nn.Sequential(
            *conv_bn(2, width, 7, 2 if grid > 16 else 1),
            nn.ReLU(),
            nn.MaxPool3d(3, 2, 1) if grid > 32 else nn.Identity(),
        )
        self.encoder = nn.Sequential(*(Residual(width << i, width << i + 1, 1 if i == 0 else 2) for i in range(4)))
        self.to_code, self.from_code = nn.Linear(self.top, code), nn.Linear(code, self.top * 8)
        channels = [self.top, 8 * width, 4 * width, 2 * width, width, width]
        ups = [
            (nn.ConvTranspose3d(channels[i], channels[i + 1], 4, 2, 1), nn.BatchNorm3d(channels[i + 1]), nn.ReLU())
            for i in range(stages)
        ]
        self.decoder = nn.Sequential(*(layer for up in ups for layer in up))
        self.head = nn.Conv3d(channels[stages], 2, 3, padding=1)

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        return self.to_code(self.encoder(self.stem(z)).mean((2, 3, 4)))

    def decode(self, code: torch.Tensor, standard: Standard) -> torch.Tensor:
        y = self.from_code(code).view(-1, self.top, 2, 2, 2)
        return standard.back(self.head(self.decoder(y)).float())


class Stage1(nn.Module):
    """Our network: it keeps position (flattened 2^3 bottleneck) and cannot predict a negative coefficient.

    Space-to-depth by `patch` in place of strided stems (Shi 2016); residual stages that halve the grid down to 2^3, the
    deepest of them twice as deep; the mirror image back; output = occupancy gate x softplus level x the tissue's mean.
    6,928,960 parameters at 64^3 and width 16.
    """

    patch = 4

    def __init__(self, grid: int, width: int, code: int):
        super().__init__()
        halvings = {64: 3, 32: 2, 16: 1}[grid]
        self.top = 16 * width
        channels = [self.top >> i for i in range(halvings, -1, -1)]
        down, up = [], []
        for i, (a, b) in enumerate(itertools.pairwise(channels), 1):
            depth = 2 if i == halvings else 1
            down += [Residual(a, a, start_identity=True) for _ in range(depth)] + [*conv_bn(a, b, 3, 2), nn.ReLU()]
            rise = [nn.ConvTranspose3d(b, a, 2, 2, bias=False), nn.BatchNorm3d(a), nn.ReLU()]
            up = rise + [Residual(a, a, start_identity=True) for _ in range(depth)] + up
        self.stem = nn.Sequential(*conv_bn(2 * self.patch**3, channels[0], 3), nn.ReLU())
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up)
        self.to_code, self.from_code = nn.Linear(self.top * 8, code), nn.Linear(code, self.top * 8)
        self.head = Conv3d(channels[0], 3 * self.patch**3, 3, padding=1)

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        return self.to_code(self.encoder(self.stem(space_to_depth(z, self.patch))).flatten(1))

    def decode(self, code: torch.Tensor, standard: Standard) -> torch.Tensor:
        y = torch.relu(self.from_code(code)).view(-1, self.top, 2, 2, 2)
        y = depth_to_space(self.head(self.decoder(y)), self.patch).float()
        occupancy, level = y[:, :1].sigmoid(), F.softplus(y[:, 1:] + 0.5413)  # softplus(0.5413) = 1
        return occupancy * level * standard.mean


NETWORKS = {"legacy": Legacy, "stage1": Stage1}


class Autoencoder(nn.Module):
    """A network between physical units: (B, 2, D, H, W) in mm^-1 -> the same, through a code of (B, `code`)."""

    def __init__(self, network: nn.Module, standard: Standard):
        super().__init__()
        self.network, self.standard = network, standard

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.decode(self.encode(x), self.standard)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.encode(self.standard(x))


def build(name: str, grid: int, width: int, code: int, seed: int, mean: torch.Tensor, sd: torch.Tensor) -> Autoencoder:
    """A seeded autoencoder whose channels are standardised with `mean` and `sd`, (2,) each, in mm^-1."""
    return Autoencoder(initialise(NETWORKS[name](grid, width, code), seed), Standard(mean, sd))
