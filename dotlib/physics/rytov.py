"""What a probe has read, as Rytov data: the logarithm of readings over a model's, whitened, free of unknown gains.

Rows are those of the M pairs' log-amplitude, then those of minus their phase: real and imaginary part of
ln(phi / phi0). A recording has an arbitrary gain and phase offset, of the instrument or of every optode; they are
projected out, so that no factor on the readings changes anything behind this module.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

MODEL_ERROR = 0.03  # sd of ln A and of the phase (rad) beside each pair's noise: what diffusion on a grid leaves out
Gain = Literal["global", "optode", "known"]


@dataclass(frozen=True)
class Readings:
    """Sources (S, 3) and detectors (K, 3), mm, fp64; pairs (M, 2), 0-based; log-amplitude, phase (rad) (M,); sd (M, 2).

    The phase grows with the way and may be wrapped. `gain`: what is unknown of amplitude and phase, one factor of the
    instrument, one of every optode, or nothing; `model_error`: an sd of all rows beside `sigma`. Raises ValueError for
    shapes that do not fit and values that are not finite.
    """

    sources: Tensor
    detectors: Tensor
    pairs: Tensor
    log_amplitude: Tensor
    phase: Tensor
    sigma: Tensor
    frequency: float
    n: float = 1.33
    gain: Gain = "global"
    model_error: float = MODEL_ERROR

    def __post_init__(self):
        m = len(self.pairs)
        shapes = [tuple(v.shape) for v in (self.pairs, self.log_amplitude, self.phase, self.sigma)]
        if not m or shapes != [(m, 2), (m,), (m,), (m, 2)]:
            raise ValueError(
                f"readings: pairs, log-amplitude, phase, sd have shapes {shapes}; one row a pair is accepted"
            )
        rows = torch.cat([self.log_amplitude[:, None], self.phase[:, None], self.sigma], 1)
        if (bad := ~rows.isfinite().all(1)).any():
            raise ValueError(f"readings: pair {bad.nonzero()[0, 0].item()} is not finite; leave lost pairs out")
        most = self.pairs.new_tensor([len(self.sources), len(self.detectors)])
        if (bad := ((self.pairs < 0) | (self.pairs >= most)).any(1)).any():
            first = bad.nonzero()[0, 0].item()
            found, most = tuple(self.pairs[first].tolist()), tuple(most.tolist())
            raise ValueError(f"readings: pair {first} is {found}; indices below {most} are accepted")
        if self.gain not in ("global", "optode", "known"):
            raise ValueError(f"readings: gain {self.gain!r}; 'global', 'optode' or 'known' is accepted")

    @cached_property
    def weight(self) -> Tensor:
        """What whitens each row (2M,): one over the sd of noise and model error together."""
        return 1 / torch.hypot(self.sigma, torch.full_like(self.sigma, self.model_error)).T.flatten()

    @cached_property
    def gains(self) -> Tensor:
        """Orthonormal whitened directions (2M, q) in which unknown gains and offsets move the rows."""
        m = len(self.pairs)
        parts = [torch.ones(m, 1, dtype=self.weight.dtype, device=self.weight.device)]
        if self.gain == "optode":
            parts += [(column[:, None] == column.unique()).to(parts[0]) for column in self.pairs.T]
        of_pair = torch.cat(parts, 1) if self.gain != "known" else parts[0][:, :0]
        directions = self.weight[:, None] * torch.block_diag(of_pair, of_pair)
        if self.gain == "optode":  # a constant is in the span of either side's optodes
            left, size, _ = torch.linalg.svd(directions, full_matrices=False)
            return left[:, size > 1e-10 * size[0]]
        return torch.linalg.qr(directions)[0]

    def white(self, rows: Tensor) -> Tensor:
        """Rows (2M, ...) whitened and without what gains could have made of them."""
        shape = (-1,) + (1,) * (rows.ndim - 1)
        flat = (self.weight.to(rows.dtype).view(shape) * rows).flatten(1) if rows.ndim > 1 else self.weight * rows
        gains = self.gains.to(rows.dtype)
        return (flat - gains @ (gains.T @ flat)).view(rows.shape)

    def difference(self, phi: Tensor) -> Tensor:
        """Rytov data (2M,) against a model's readings (M,), complex: ln(phi_measured / phi).

        Phases are compared modulo a turn, about the weighted mean of their differences.
        """
        turn = torch.polar(torch.ones_like(self.phase), -self.phase - phi.angle())
        mean = (turn * self.weight[len(phi) :].square()).sum()
        mean = mean / mean.abs().clamp_min(1e-30)
        around = (turn * mean.conj()).angle() + mean.angle()
        return torch.cat([self.log_amplitude - phi.abs().log(), around])

    def take(self, chosen: Tensor) -> Readings:
        """The same with some of the pairs."""
        parts = {name: getattr(self, name)[chosen] for name in ("pairs", "log_amplitude", "phase", "sigma")}
        return replace(self, **parts)


def rows(derivatives: Tensor, phi: Tensor) -> Tensor:
    """Derivatives of readings (M, ...), complex, as real rows (2M, ...): of ln A, then of minus the phase."""
    logarithmic = derivatives / phi.view(-1, *[1] * (derivatives.ndim - 1)).to(derivatives.dtype)
    return torch.cat([logarithmic.real, logarithmic.imag])
