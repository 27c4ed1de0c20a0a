"""Stage 1: a volume of (mua, musp) into a code, and back."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..config import Model
from .blocks import Conv3d, Residual, Standard, conv_bn, depth_to_space, initialise, space_to_depth
from .stages import Staged
from .vit import ViT, VoxelTransformer


class Legacy(Staged):
    """The earlier work's network, 6,977,954 parameters at 64^3 and width 16.

    Its global average pooling keeps no position; its outputs may be negative. On 32^3 and 16^3 the last one or two
    decoder stages, and the max-pooling or also the stem's stride, fall away, so that 2^3 stays before the pooling.
    """

    def __init__(self, grid: int, config: Model):
        super().__init__()
        width, code, stages = config.width, config.code, {64: 5, 32: 4, 16: 3}[grid]
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
        self.halves = {
            "encoder": {f"encoder{4 - i}": ("encoder", slice(i, i + 1)) for i in range(4)},
            "decoder": {f"decoder{i + 1}": ("decoder", slice(3 * i, 3 * i + 3)) for i in range(stages)},
        }
        encoder = {f"encoder{4 - i}": width << i + 1 for i in range(4)}
        self.extend(config, encoder | {f"decoder{i}": channels[i] for i in range(1, stages + 1)}, tuple(encoder))

    def first(self, z: Tensor) -> Tensor:
        return self.stem(z)

    def code(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.to_code(features["encoder1"].mean((2, 3, 4)))

    def decode(self, code: Tensor, standard: Standard, features: Mapping[str, Tensor] | None = None) -> Tensor:
        y = self.from_code(code).view(-1, self.top, 2, 2, 2)
        *_, y = self.walk("decoder", y, features).values()
        return standard.back(self.head(y).float())


class Stage1(Staged):
    """Our network: it keeps position (flattened 2^3 bottleneck) and cannot predict a negative coefficient.

    Space-to-depth by `patch` in place of strided stems (Shi 2016); residual stages that halve the grid down to 2^3, the
    deepest of them twice as deep; the mirror image back; output = occupancy gate x softplus level x the tissue's mean.
    6,928,960 parameters at 64^3 and width 16.
    """

    patch = 4

    def __init__(self, grid: int, config: Model):
        super().__init__()
        halvings = {64: 3, 32: 2, 16: 1}[grid]
        self.top = 16 * config.width
        channels = [self.top >> i for i in range(halvings, -1, -1)]
        down, up = [], []
        for i, (a, b) in enumerate(itertools.pairwise(channels), 1):
            depth = 2 if i == halvings else 1
            down.append([*self.inner(a, 4 << halvings - i, depth), *conv_bn(a, b, 3, 2), nn.ReLU()])
            rise = [nn.ConvTranspose3d(b, a, 2, 2, bias=False), nn.BatchNorm3d(a), nn.ReLU()]
            up.insert(0, [*rise, *(Residual(a, a, start_identity=True) for _ in range(depth))])
        self.stem = nn.Sequential(*conv_bn(2 * self.patch**3, channels[0], 3), nn.ReLU())
        self.encoder, self.decoder = (nn.Sequential(*itertools.chain.from_iterable(half)) for half in (down, up))
        self.to_code, self.from_code = nn.Linear(self.top * 8, config.code), nn.Linear(config.code, self.top * 8)
        self.head = Conv3d(channels[0], 3 * self.patch**3, 3, padding=1)
        self.halves = {
            "encoder": {f"encoder{len(channels)}": ("stem", slice(None))}
            | {f"encoder{halvings - i}": ("encoder", chosen) for i, chosen in enumerate(_slices(down))},
            "decoder": {f"decoder{i}": ("decoder", chosen) for i, chosen in enumerate(_slices(up), 1)},
        }
        encoder = {f"encoder{len(channels) - i}": c for i, c in enumerate(channels)}
        decoder = {f"decoder{i}": c for i, c in enumerate(channels[-2::-1], 1)}
        self.extend(config, encoder | decoder, [name for name in encoder | decoder if name != "encoder1"])

    def inner(self, c: int, grid: int, depth: int) -> list[nn.Module]:
        """What a stage of the encoder does on its input's grid."""
        return [Residual(c, c, start_identity=True) for _ in range(depth)]

    def first(self, z: Tensor) -> Tensor:
        return space_to_depth(z, self.patch)

    def code(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.to_code(features["encoder1"].flatten(1))

    def decode(self, code: Tensor, standard: Standard, features: Mapping[str, Tensor] | None = None) -> Tensor:
        y = torch.relu(self.from_code(code)).view(-1, self.top, 2, 2, 2)
        *_, y = self.walk("decoder", y, features).values()
        return standard.positive(depth_to_space(self.head(y), self.patch))


class Hybrid(Stage1):
    """`Stage1` whose encoder has transformer blocks on voxels (4^3 tokens) in its deepest stage, for residual ones."""

    def inner(self, c: int, grid: int, depth: int) -> list[nn.Module]:
        if grid > 4:
            return super().inner(c, grid, depth)
        return [VoxelTransformer(c, grid) for _ in range(depth)]


def _slices(stages: Sequence[Sequence[nn.Module]]) -> Iterator[slice]:
    """Where each stage's layers lie once they are one sequence."""
    ends = list(itertools.accumulate(map(len, stages)))
    return map(slice, [0, *ends[:-1]], ends)


NETWORKS = {"legacy": Legacy, "stage1": Stage1, "hybrid": Hybrid, "vit": ViT}


class Autoencoder(nn.Module):
    """A network between physical units: (B, 2, D, H, W) in mm^-1 -> the same, through a code of (B, `code`)."""

    def __init__(self, network: nn.Module, standard: Standard):
        super().__init__()
        self.network, self.standard = network, standard

    def forward(self, x: Tensor) -> Tensor:
        return self.network.decode(self.encode(x), self.standard)

    def encode(self, x: Tensor) -> Tensor:
        return self.network.encode(self.standard(x))

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """What lies behind each stage of the encoder, (B, C, D, D, D), by stage; to be asked in evaluation mode."""
        return self.network.features(self.standard(x))

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """The attention of each gated stage of the encoder, (B, 1, D, D, D); to be asked in evaluation mode."""
        return self.network.maps(self.standard(x))


def build(config: Model, grid: int, seed: int, mean: Tensor, sd: Tensor) -> Autoencoder:
    """A seeded autoencoder whose channels are standardised with `mean` and `sd`, (2,) each, in mm^-1.

    Raises ConfigError for an addition to a stage that the network does not have on this grid.
    """
    return Autoencoder(initialise(NETWORKS[config.name](grid, config), seed), Standard(mean, sd))
