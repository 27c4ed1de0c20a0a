"""Attention behind a stage: the specification's gate, comparators, and controls that attend to nothing.

A gate takes features (B, C, D, H, W) and returns as many. `map` is what it multiplies each voxel by,
(B, 1, D, H, W), or None where it does not tell voxels apart.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .blocks import Conv3d, ZeroConv3d


def squeezed(c: int, ratio: int) -> int:
    return max(1, c // ratio)


class SpatialGate(nn.Module):
    """x * sigmoid(W2 relu(W1 x)), W1: C -> C/8 and W2: C/8 -> 1 at each voxel, C^2/8 + C/4 + 1 parameters.

    The specification's gate: it starts near 1/2, and so halves what passes. With `start_identity` it is 2 sigmoid, and
    W2 starts at 0: it lets all pass to begin with. `frozen`: a control, whose weights stay as they were drawn.
    """

    def __init__(self, c: int, start_identity: bool = False, frozen: bool = False):
        super().__init__()
        self.scale = 2.0 if start_identity else 1.0
        self.squeeze = Conv3d(c, squeezed(c, 8), 1)
        self.score = (ZeroConv3d if start_identity else Conv3d)(squeezed(c, 8), 1, 1)
        self.requires_grad_(not frozen)

    def map(self, x: Tensor) -> Tensor:
        return self.scale * torch.sigmoid(self.score(torch.relu(self.squeeze(x))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.map(x).to(x.dtype)


class SqueezeExcitation(nn.Module):
    """Channels weighted by sigmoid(W2 relu(W1 mean(x))), reduction 16 (Hu 2018, eq. 2-4); blind to place."""

    def __init__(self, c: int):
        super().__init__()
        self.squeeze, self.excite = nn.Linear(c, squeezed(c, 16)), nn.Linear(squeezed(c, 16), c)

    def map(self, x: Tensor) -> None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3, 4))))))
        return x * weights[:, :, None, None, None].to(x.dtype)


class Cbam(nn.Module):
    """Channel, then spatial attention (Woo 2018, eq. 2-3), in 3-D: reduction 16, a 7^3 kernel on mean and maximum."""

    def __init__(self, c: int):
        super().__init__()
        self.squeeze, self.excite = nn.Linear(c, squeezed(c, 16)), nn.Linear(squeezed(c, 16), c)
        self.score = Conv3d(2, 1, 7, padding=3, bias=False)

    def channels(self, x: Tensor) -> Tensor:
        pooled = (x.mean((2, 3, 4)), x.amax((2, 3, 4)))
        weights = torch.sigmoid(sum(self.excite(torch.relu(self.squeeze(v))) for v in pooled))
        return x * weights[:, :, None, None, None].to(x.dtype)

    def place(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.score(torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)))

    def map(self, x: Tensor) -> Tensor:
        return self.place(self.channels(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.channels(x)
        return x * self.place(x).to(x.dtype)


class AttentionGate(nn.Module):
    """Additive attention, sigmoid(W relu(Wx x + Wg g)), inner channels C/8 (Oktay 2018, eq. 1).

    `signal`, g, is (B, C_g, ...) on x's grid, or broadcast to it; inside an encoder nothing coarser exists yet, and it
    is the mean of x over its voxels.
    """

    def __init__(self, c: int, c_signal: int | None = None):
        super().__init__()
        inner = squeezed(c, 8)
        self.theta = Conv3d(c, inner, 1, bias=False)
        self.phi, self.score = Conv3d(c_signal or c, inner, 1), Conv3d(inner, 1, 1)

    def map(self, x: Tensor, signal: Tensor | None = None) -> Tensor:
        signal = x.mean((2, 3, 4), keepdim=True) if signal is None else signal
        return torch.sigmoid(self.score(torch.relu(self.theta(x) + self.phi(signal))))

    def forward(self, x: Tensor, signal: Tensor | None = None) -> Tensor:
        return x * self.map(x, signal).to(x.dtype)


class Pointwise(nn.Module):
    """A control with the gate's parameters and no gate: x + W2 relu(W1 x), C -> C/16 -> C, C^2/8 + C/16 parameters.

    It starts as identity.
    """

    def __init__(self, c: int):
        super().__init__()
        self.squeeze, self.expand = Conv3d(c, squeezed(c, 16), 1), ZeroConv3d(squeezed(c, 16), c, 1, bias=False)

    def map(self, x: Tensor) -> None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(torch.relu(self.squeeze(x))).to(x.dtype)


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "sigmoid": SpatialGate,
    "identity": lambda c: SpatialGate(c, start_identity=True),
    "cbam": Cbam,
    "se": SqueezeExcitation,
    "attention-gate": AttentionGate,
    "random": lambda c: SpatialGate(c, frozen=True),
    "conv": Pointwise,
}
