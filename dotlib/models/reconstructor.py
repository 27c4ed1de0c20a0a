"""From a lift, or from pairs as tokens, to a volume: the network that reconstructs (mua, musp) from measurements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import CHANNELS, LIFTED, TOKEN, Model
from .autoencoder import Stage1
from .blocks import Residual, Standard, ZeroConv3d, conv_bn, depth_to_space, initialise, space_to_depth
from .stages import Staged
from .vit import Positions, Transformer

LARGEST = 3.0  # of ln(mua / mua0): twenty times the fitted value


class UNet(Staged):
    """Encoder-decoder on the lift's own grid, with `stage1`'s blocks and sums across the bottleneck (Ronneberger 2015).

    16^3, 8^3 and 4^3 voxels of 4, 8 and 16 times `width` channels; the last convolution gives a lift's voxel all the
    output's voxels in it, and starts at zero: the untrained network answers with the homogeneous fit.
    """

    def __init__(self, grid: int, channels: int, config: Model):
        super().__init__()
        self.patch = grid // LIFTED
        a, b, c = (config.width << i for i in (2, 3, 4))
        self.stem = nn.Sequential(*conv_bn(channels, a, 3), nn.ReLU(), self.inner(a))
        down = [[*conv_bn(low, high, 3, 2), nn.ReLU(), self.inner(high)] for low, high in ((a, b), (b, c))]
        self.encoder = nn.Sequential(*(layer for stage in down for layer in stage))
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose3d(high, low, 2, 2, bias=False), nn.BatchNorm3d(low), nn.ReLU())
            for high, low in ((c, b), (b, a))
        )
        self.decoder = nn.Sequential(self.inner(b), self.inner(a))
        self.head = ZeroConv3d(a, 2 * self.patch**3, 3, padding=1)
        self.halves = {
            "encoder": {
                "encoder3": ("stem", slice(None)), "encoder2": ("encoder", slice(0, 4)),
                "encoder1": ("encoder", slice(4, 8)),
            },
            "decoder": {"decoder1": ("decoder", slice(0, 1)), "decoder2": ("decoder", slice(1, 2))},
        }  # fmt: skip
        every = {"encoder3": a, "encoder2": b, "encoder1": c, "decoder1": b, "decoder2": a}
        self.extend(config, every, list(every))

    @staticmethod
    def inner(c: int) -> nn.Module:
        return Residual(c, c, start_identity=True)

    def first(self, z: Tensor) -> Tensor:
        return z

    def forward(self, z: Tensor) -> Tensor:
        """Logarithms of (mua / mua0, musp / musp0), (B, 2, grid, grid, grid), of standardised channels."""
        features = self.features(z)
        y, seen = features["encoder1"], {}
        for i, name in enumerate(self.halves["decoder"]):
            y = self.up[i](y) + features[f"encoder{i + 2}"]
            seen |= self.stage("decoder", name, y, features | seen)
            y = seen[name]
        return depth_to_space(self.head(y).float(), self.patch)


class FromLift(Stage1):
    """`stage1` with a stem for lifts in place of volumes: the same code, decoder and links."""

    def __init__(self, grid: int, channels: int, config: Model):
        super().__init__(grid, config)
        self.fold = 4 * LIFTED // grid
        first = self.stem[0].out_channels
        self.stem = nn.Sequential(*conv_bn(channels * self.fold**3, first, 3), nn.ReLU())

    def first(self, z: Tensor) -> Tensor:
        return space_to_depth(z, self.fold)


class FromTokens(Stage1):
    """`stage1` with a transformer over the readings' pairs in place of its encoder: the same code and decoder.

    A token of its own gathers the code (Dosovitskiy 2021); no token has a position but its optodes', so that the order
    of the pairs means nothing. Six blocks of 12 `width` channels have fewer parameters than the encoder has.
    """

    blocks = 6

    def __init__(self, grid: int, channels: int, config: Model):
        super().__init__(grid, config)
        c = 12 * config.width
        self.stem, self.gather, self.norm = nn.Linear(channels, c), Positions(1, c), nn.LayerNorm(c)
        self.encoder = nn.ModuleList(Transformer(c) for _ in range(self.blocks))
        self.to_code = nn.Linear(c, config.code)

    def encode(self, z: Tensor, there: Tensor) -> Tensor:
        """(B, code) of standardised tokens (B, 13, M, 1, 1); those that are not `there` (B, M) are not looked at."""
        tokens = self.stem(z.flatten(2).transpose(1, 2))
        tokens = torch.cat((self.gather(torch.zeros_like(tokens[:, :1])), tokens), 1)
        seen = nn.functional.pad(there, (1, 0), value=True)[:, None, None]
        for block in self.encoder:
            tokens = block(tokens, seen)
        return self.to_code(self.norm(tokens[:, 0]))

    def maps(self, z: Tensor) -> dict[str, Tensor]:
        return {}


class Reconstructor(nn.Module):
    """A network between units: (B, channels, 16, 16, 16) of a lift and the tissue's fractions -> (B, 2, grid^3), mm^-1.

    The input is that of `data.samples`: a lift's eight channels and, for each of its voxels, the tissue's fractions of
    the output's; or tokens (B, 13, M, 1, 1), without a fitted medium where there is no pair. `standard` is that of the
    volumes, `seen` that of the input's channels.
    """

    def __init__(self, network: nn.Module, standard: Standard, seen: Standard, grid: int):
        super().__init__()
        self.network, self.standard, self.seen = network, standard, seen
        self.patch = grid // LIFTED

    def forward(self, x: Tensor) -> Tensor:
        z = self.seen(x)
        if isinstance(self.network, FromTokens):
            return self.network.decode(self.network.encode(z, x[:, -1].flatten(1) > 0), self.standard)
        if isinstance(self.network, FromLift):
            features = self.network.features(z)
            return self.network.decode(self.network.code(features), self.standard, features)
        lifted, fraction = x.float().split((len(CHANNELS), self.patch**3), 1)
        level, fraction = lifted[:, -2:].amax((2, 3, 4), keepdim=True), depth_to_space(fraction, self.patch)
        return level * self.network(z).clamp(-LARGEST, LARGEST).exp() * fraction

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """The attention of each gated stage of the encoder, (B, 1, D, D, D); to be asked in evaluation mode."""
        return self.network.maps(self.seen(x))


def channels(grid: int, name: str = "unet") -> int:
    """Channels of a network's input for an output of grid^3 voxels."""
    return len(TOKEN) if name == "tokens" else len(CHANNELS) + (grid // LIFTED) ** 3


def build(config: Model, grid: int, seed: int, volumes: Sequence[Tensor], seen: Sequence[Tensor]) -> Reconstructor:
    """A seeded network: `volumes` and `seen` are mean and sd of the output's and the input's channels.

    Raises ConfigError for an addition to a stage that the network does not have.
    """
    kind = {"unet": UNet, "stage1": FromLift, "tokens": FromTokens}[config.name]
    network = initialise(kind(grid, channels(grid, config.name), config), seed)
    return Reconstructor(network, Standard(*volumes), Standard(*seen), grid)
