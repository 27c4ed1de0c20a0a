"""Links that bring earlier stages' features to a later one, which starts as if there were none.

Inside an encoder the earlier stages are finer, inside a decoder coarser; across the bottleneck they are the encoder's,
which only a reconstruction may use: an autoencoder would copy its input past the code.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import AttentionGate
from .blocks import Block, Conv3d


def resample(x: Tensor, size: int, mode: str = "nearest") -> Tensor:
    """(B, C, D, D, D) on a grid of size^3: means over blocks, or values repeated, or between centres with the mode
    'trilinear'; one grid divides the other."""
    here = x.shape[-1]
    if here > size:
        return F.avg_pool3d(x, here // size)
    return F.interpolate(x, size=(size,) * 3, mode=mode) if here < size else x


class Link(Block):
    """relu(x + BN(joined(sources, x))); the normalisation's weight starts at 0, and the link as nothing (x >= 0).

    `sources`: features (B, C_i, D_i, D_i, D_i) of the stages with channels `c_from`.
    """

    def __init__(self, c: int):
        super().__init__()
        self.norm = nn.BatchNorm3d(c)
        nn.init.zeros_(self.norm.weight)

    def joined(self, x: Tensor, sources: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def block(self, x: Tensor, *sources: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.joined(x, sources)).to(x.dtype))


class Dense(Link):
    """Every earlier stage, projected by a 1^3 convolution of their concatenation (Huang 2017): C sum(C_i) weights."""

    def __init__(self, c_from: Sequence[int], c: int):
        super().__init__(c)
        self.project = Conv3d(sum(c_from), c, 1, bias=False)

    def joined(self, x: Tensor, sources: Sequence[Tensor]) -> Tensor:
        return self.project(torch.cat([resample(s, x.shape[-1]).to(x.dtype) for s in sources], 1))


class Fused(Link):
    """All scales, the own one too, each projected to C/4 channels and mixed by a 3^3 convolution (Lin 2017)."""

    def __init__(self, c_from: Sequence[int], c: int):
        super().__init__(c)
        inner = max(1, c // 4)
        self.laterals = nn.ModuleList(Conv3d(n, inner, 1) for n in (*c_from, c))
        self.mix = Conv3d(inner, c, 3, padding=1, bias=False)

    def joined(self, x: Tensor, sources: Sequence[Tensor]) -> Tensor:
        scales = zip(self.laterals, (*sources, x), strict=True)
        return self.mix(sum(lateral(resample(s, x.shape[-1])) for lateral, s in scales))


class Guided(Link):
    """The nearest earlier stage, weighted by an attention gate that x guides, and projected (Oktay 2018)."""

    def __init__(self, c_from: Sequence[int], c: int):
        super().__init__(c)
        self.gate = AttentionGate(c_from[-1], c)
        self.project = Conv3d(c_from[-1], c, 1, bias=False)

    def joined(self, x: Tensor, sources: Sequence[Tensor]) -> Tensor:
        return self.project(self.gate(resample(sources[-1], x.shape[-1]), x))


KINDS: dict[str, Callable[[Sequence[int], int], Link]] = {"dense": Dense, "fused": Fused, "guided": Guided}
