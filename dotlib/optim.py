"""Optimisers from their configuration, and their settings as functions of the step."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import schedulefree
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .config import Optim

OUTER = ("stem", "head")  # first and last layers, which Muon leaves to AdamW


class Settings(NamedTuple):
    """What one step uses: learning rate, first moment's decay (momentum), weight decay."""

    lr: float
    beta1: float
    weight_decay: float


def settings(config: Optim, step: int, steps: int, losses: Sequence[float] = ()) -> Settings:
    """The settings of `step` (0-based) of `steps`; `losses` are the validation losses so far, for the plateau rule.

    One cycle (Smith & Topin 2019): a cosine from lr / div up to `lr` in the first `warmup` share, and down to lr / div
    / final_div; with `momentum` (low, high), beta1 runs the opposite way and replaces betas[0]. Cosine: a line up from
    lr / div, then the same way down. Progressive: the phases of the earlier work, each with its factor of `lr`.
    Schedule-free: a line up to `lr`, which stays. Weight decay is constant, or falls geometrically to `final_decay`.
    """
    lr, beta1, decay = config.lr, config.betas[0], config.weight_decay
    start, end = lr / config.div, lr / config.div / config.final_div
    top = config.warmup * steps - 1  # the step at which the rate is highest
    rise, fall = _share(step, 0, top), _share(step, top, steps - 1)
    if config.schedule == "onecycle":
        lr = _cosine(start, lr, rise) if step <= top else _cosine(lr, end, fall)
        if config.momentum:
            low, high = config.momentum
            beta1 = _cosine(high, low, rise) if step <= top else _cosine(low, high, fall)
    elif config.schedule == "cosine":
        lr = start + (lr - start) * rise if step <= top else _cosine(lr, end, fall)
    elif config.schedule == "progressive":
        lr *= _phase(config.phases, step / steps)
    elif config.name == "schedule-free":
        lr *= min(1.0, (step + 1) / max(1, round(config.warmup * steps)))
    elif config.schedule == "plateau":
        lr *= config.plateau[0] ** reductions(losses, config.plateau[1])
    if config.final_decay:
        decay *= (config.final_decay / decay) ** _share(step, 0, steps - 1)
    return Settings(lr, beta1, decay)


def _share(step: float, first: float, last: float) -> float:
    return min(1.0, (step - first) / (last - first)) if last > first else 1.0


def _cosine(a: float, b: float, share: float) -> float:
    return b + (a - b) * (1 + math.cos(math.pi * share)) / 2


def _phase(phases: Sequence[tuple[float, float]], share: float) -> float:
    end = 0.0
    for length, factor in phases:
        end += length
        if share < end - 1e-9:
            return factor
    return phases[-1][1]


def reductions(losses: Sequence[float], patience: int, threshold: float = 1e-4) -> int:
    """How often a plateau rule has reduced the rate: after more than `patience` epochs without a new best loss.

    A loss is a new best where it is lower by the relative `threshold`; the count starts anew after each reduction.
    """
    best, bad, count = math.inf, 0, 0
    for loss in losses:
        best, bad = (loss, 0) if loss < best * (1 - threshold) else (best, bad + 1)
        if bad > patience:
            count, bad = count + 1, 0
    return count


def optimiser(model: nn.Module, config: Optim):
    """Adam with L2 in the gradient, AdamW, schedule-free AdamW (Defazio 2024) or Muon (Jordan 2024) beside AdamW.

    Norms and biases have no weight decay, unless `spare` is off, as it is by default for Adam.
    """
    spare = config.name != "adam" if config.spare is None else config.spare
    options = {"lr": config.lr, "betas": config.betas}
    if config.name == "muon":
        return Muon(model, config, spare)
    groups = _groups(model.parameters(), config.weight_decay, spare)
    if config.name == "schedule-free":
        return schedulefree.AdamWScheduleFree(groups, foreach=True, **options)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name](groups, fused=True, **options)


def _groups(parameters, weight_decay: float, spare: bool) -> list[dict]:
    parameters = [p for p in parameters if p.requires_grad]
    if not spare:
        return [{"params": parameters, "weight_decay": weight_decay}]
    decayed = [p for p in parameters if p.ndim > 1]
    spared = [p for p in parameters if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


class Muon:
    """Muon on hidden weights, each flattened to (first axis, all others), and AdamW on everything else.

    torch's Muon takes matrices only; a convolution's matrix shares its storage, and the order of the matrix's columns
    does not matter to an orthogonalised step. Updates are scaled to the root mean square of AdamW's, so that one
    learning rate serves both (Liu 2025).
    """

    def __init__(self, model: nn.Module, config: Optim, spare: bool):
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        hidden = [p for name, p in named.items() if p.ndim > 1 and not set(name.split(".")) & set(OUTER)]
        self.pairs = [(p, nn.Parameter(_matrix(p.detach()))) for p in hidden]
        chosen = {id(p) for p in hidden}
        others = _groups((p for p in named.values() if id(p) not in chosen), config.weight_decay, spare)
        self.parts = {
            "muon": torch.optim.Muon(
                [flat for _, flat in self.pairs], config.lr, config.weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            "adamw": torch.optim.AdamW(others, lr=config.lr, betas=config.betas, fused=True),
        }

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts.values() for group in part.param_groups]

    def zero_grad(self) -> None:
        self.parts["adamw"].zero_grad()
        for p, flat in self.pairs:
            p.grad = flat.grad = None

    def step(self) -> None:
        for part in self.parts.values():
            part.step()

    def collect(self) -> None:
        """Take over the gradients of the hidden weights, after clipping."""
        for p, flat in self.pairs:
            flat.grad = _matrix(p.grad)

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def _matrix(weight: Tensor) -> Tensor:
    """(O, I, ...) as (O, ...) without a copy where a convolution is stored channels-last."""
    return (weight.movedim(1, -1) if weight.ndim > 2 else weight).flatten(1)


def apply(opt: Optimizer | Muon, now: Settings) -> None:
    """Give every group of parameters the settings of the coming step; groups without decay keep none."""
    for group in opt.param_groups:
        group["lr"] = now.lr
        if "betas" in group:
            group["betas"] = (now.beta1, group["betas"][1])
        else:
            group["momentum"] = now.beta1
        if group["weight_decay"]:
            group["weight_decay"] = now.weight_decay


def train(opt: Optimizer | Muon, model: nn.Module) -> None:
    """Make ready for steps; schedule-free weights return to where gradients are taken."""
    model.train()
    if isinstance(opt, schedulefree.AdamWScheduleFree):
        opt.train()


def evaluate(opt: Optimizer | Muon, model: nn.Module) -> None:
    """Make ready to be judged; schedule-free weights become their average."""
    model.eval()
    if isinstance(opt, schedulefree.AdamWScheduleFree):
        opt.eval()


def unscale(opt: Optimizer | Muon, scaler: torch.amp.GradScaler) -> None:
    """Take the fp16 loss scale out of the gradients, before they are clipped."""
    if isinstance(opt, Muon):
        opt.collect()
    scaler.unscale_(opt)


def step(opt: Optimizer | Muon, scaler: torch.amp.GradScaler, finite: Tensor) -> None:
    """Take a step if `finite`, a boolean on the device, for which the host does not wait.

    Fused optimisers skip the step as a whole, the others take one and take it back, but for what schedule-free counts
    on the host (steps, the sum of their weights); an fp16 scaler knows by itself.
    """
    if scaler.is_enabled():
        scaler.step(opt)
        scaler.update()
        return
    if isinstance(opt, Muon):
        opt.collect()
    for part in opt.parts.values() if isinstance(opt, Muon) else (opt,):
        if getattr(part, "_step_supports_amp_scaling", False):
            part.grad_scale, part.found_inf = None, (~finite).float()
            part.step()
        else:
            _step_or_not(part, finite)


@torch.no_grad()
def _step_or_not(opt: Optimizer, finite: Tensor) -> None:
    weights = [p for group in opt.param_groups for p in group["params"] if p.grad is not None]
    for p in weights:  # a first step makes a state, which must not begin with what is not finite
        p.grad = torch.where(finite, p.grad, 0)
    moved = weights + [value for p in weights for value in opt.state[p].values()]
    before = [tensor.clone() for tensor in moved]
    opt.step()
    for tensor, value in zip(moved, before, strict=True):
        tensor.copy_(torch.where(finite, tensor, value))


@torch.no_grad()
def average(kept: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average (Polyak & Juditsky 1992): kept <- decay kept + (1 - decay) model, statistics included.

    Counters are copied.
    """
    pairs = list(zip(kept.state_dict().values(), model.state_dict().values(), strict=True))
    floating = [(a, b) for a, b in pairs if a.is_floating_point()]
    torch._foreach_lerp_(*map(list, zip(*floating, strict=True)), 1 - decay)
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)


@torch.no_grad()
def update_ratio(before: Sequence[Tensor], model: nn.Module) -> Tensor:
    """Median over trained weights, norms and biases left out, of |change| / |weight| since `before`."""
    pairs = [(a, b) for a, b in zip(before, model.parameters(), strict=True) if b.ndim > 1 and b.requires_grad]
    return torch.stack([(b - a).norm() / b.norm() for a, b in pairs]).median()


def second_moment(opt: Optimizer | Muon) -> Tensor | float:
    """Root mean square of the gradient as the second moments remember it, before bias correction; NaN without any."""
    parts = opt.parts.values() if isinstance(opt, Muon) else (opt,)
    kept = [state["exp_avg_sq"] for part in parts for state in part.state.values() if "exp_avg_sq" in state]
    if not kept:
        return math.nan
    return (torch.stack([v.sum() for v in kept]).sum() / sum(v.numel() for v in kept)).sqrt()
