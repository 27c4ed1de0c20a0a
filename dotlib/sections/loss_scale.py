"""What a gradient scaler does with gradients whose true size does not change (Micikevicius 2018)."""

import math
from collections.abc import Mapping

import pandas as pd
import torch

HALF = torch.finfo(torch.float16).max  # 65504: a larger scaled gradient overflows
INITIAL = 2.0**16  # torch's default
EDGE = 0.9  # a gradient that just fits at that scale
GROWTH = {"growth factor 2 (default)": 2.0, "growth factor 2^15": 2.0**15}


def trace(growth: float, gradient: float, on: str, interval: int = 20, growths: int = 3) -> pd.DataFrame:
    """Steps of torch's own GradScaler until it is about to grow for the time after `growths`, all with one gradient.

    The scaled gradient passes through fp16, as a network's does. Columns: step, scale, skipped (the optimiser's
    parameter did not move), grown (how often the scale has grown before this step).
    """
    scaler = torch.amp.GradScaler(on, init_scale=INITIAL, growth_factor=growth, growth_interval=interval)
    weight = torch.nn.Parameter(torch.zeros(1, device=on))
    opt, rows, grown = torch.optim.SGD([weight], lr=1.0), [], 0
    while grown <= growths:
        scale, before = scaler.get_scale(), weight.item()
        weight.grad = scaler.scale(torch.full((1,), gradient, device=on)).half().float()
        scaler.step(opt)
        scaler.update()
        rows.append({"step": len(rows), "scale": scale, "skipped": weight.item() == before, "grown": grown})
        grown += scaler.get_scale() > scale
    return pd.DataFrame(rows)


def fits(gradient: float) -> float:
    """The largest power of two by which `gradient` may be scaled in fp16."""
    return 2.0 ** math.floor(math.log2(HALF / gradient))


def skips(steps: pd.DataFrame) -> pd.Series:
    """Skipped steps after each growth; index: the how manieth."""
    return steps[steps["grown"] > 0].groupby("grown")["skipped"].sum()


def cost(skipped: float, interval: int = 2000) -> float:
    """Share of steps that are lost where `skipped` follow each growth, at torch's default interval between growths."""
    return skipped / (skipped + interval)


def answer(traces: Mapping[str, pd.DataFrame], gradient: float, on: str) -> str:
    """What each growth costs, in words: counted in `traces`, by name of the growth factor."""
    lines = []
    for name, steps in traces.items():
        after = skips(steps)
        small = skips(trace(GROWTH[name], gradient / 1000, on))
        lines.append(
            f"* **{name}**: after its growths {', '.join(map(str, after))} steps were skipped. At the default interval "
            f"of 2000 steps between growths that is {cost(after.iloc[-1]):.2%} of all steps. With a gradient a "
            f"thousand times smaller: {', '.join(map(str, small))}."
        )
    return "\n".join(lines)
