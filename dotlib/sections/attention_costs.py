"""Section 4.4: what attention costs, counted in parameters and operations and timed in steps, and the error it buys."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from scipy.stats import quantile_test
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .. import arms, losses, perceptual, stats
from ..config import PROFILES, Attention, Config, Loss, Model, replace
from ..improvements import GATES
from ..inference import network
from ..models.attention import KINDS
from ..models.autoencoder import NETWORKS, Autoencoder
from ..models.blocks import Standard
from ..recipes import steps
from .efficiency import ON_GPU, Size, Way, base, kept_bytes
from .optimisers import all_failed, runs_of

PLAIN = GATES[0]
CLAIM, DIGIT = 0.03, 0.01  # per cent: what the specification says that attention adds, and its last digit
SPECIFIED = "sigmoid"  # the specification's gate
PLACES = ((1, 2), (1, 2, 3))  # stages, counted from the deepest
FULL = PROFILES["full"].base.model
GROUPS = {
    "plain": (PLAIN,),
    "gate": ("sigmoid-2", "identity-2", "sigmoid-3", "identity-3"),
    "control": ("random-2", "conv-2"),
    "comparator": ("se-2", "cbam-2", "attention-gate-2"),
    "other network": ("narrow", "wide", "hybrid", "vit"),
}
TIMED = ("sigmoid-2", "identity-2", "cbam-2", "se-2", "attention-gate-2")  # beside the plain network
WIDTHS = ("narrow", PLAIN, "wide")  # the plain network, by its cost
SIZES = {  # from six rounds on, a median has an interval
    "smoke": Size(rounds=1, epochs=1, batches=2, run_epochs=0, product=0, tracking="disabled"),
    "quick": Size(rounds=6, epochs=1, batches=2, run_epochs=0, product=0, tracking="disabled"),
    "full": Size(rounds=6, epochs=2, batches=4, run_epochs=0, product=0, tracking="disabled"),
}
SLOWER, FASTER, ALIKE = "slower", "faster", "not resolved"
FEW = 5  # per cent: "a few", which a gate's step may take more at most


def parameters(model: Model, grid: int = 64) -> tuple[int, int]:
    """Parameters of a network, and those of them that are trained; nothing is allocated."""
    with torch.device("meta"):
        every = list(NETWORKS[model.name](grid, model).parameters())
    return sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad)


def overheads() -> pd.DataFrame:
    """What each kind adds to the full networks, 64^3 and width 16: a row a kind and choice of stages.

    Columns: kind, stages (from the deepest), added, trained (of those), and for each network the share in per cent of
    its own parameters, and how many times the claim that is. First the claim's own case, one gate at 128 channels.
    """
    plain = {name: parameters(FULL.model_copy(update={"name": name})) for name in ("legacy", "stage1")}
    cases, rows = [(SPECIFIED, (2,)), *((kind, stages) for stages in PLACES for kind in KINDS)], []
    for kind, stages in cases:
        with_it = FULL.model_copy(update={"attention": Attention(kind=kind, stages=stages)})
        row: dict = {"kind": kind, "stages": ", ".join(map(str, stages))}
        for name, (own, trained) in plain.items():
            every, learnt = parameters(with_it.model_copy(update={"name": name}))
            row |= {"added": every - own, "trained": learnt - trained, f"of {name}, %": 100 * (every - own) / own}
        rows.append(row | {"claim, %": CLAIM, "over the claim": row["of legacy, %"] / CLAIM})
    return pd.DataFrame(rows)


def costs(profile: str) -> pd.DataFrame:
    """Parameters and GFLOP of one volume's forward pass, of each arm of 4.4-attention in a profile: arm, group, ...

    An addition and a multiplication are two operations. Of attention in a transformer the two products count as well,
    for which it is computed in its plain form.
    """
    rows = []
    for group, names in GROUPS.items():
        for arm in names:
            rows.append({"arm": arm, "group": group} | _cost(arms.arm(arm, profile)))
    return pd.DataFrame(rows)


@contextlib.contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """A counter of operations, within which tensors have shapes alone: nothing is computed, and what is made outside
    cannot be used."""
    # the counter knows no product inside a fused attention
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def _cost(config: Config) -> dict[str, float]:
    with counting() as counter, torch.no_grad():
        model = network(config).eval()
        model(torch.zeros(1, 2, *(config.data.grid,) * 3))
    return {"parameters": sum(p.numel() for p in model.parameters()), "GFLOP": counter.get_total_flops() / 1e9}


def operations(config: Config) -> float:
    """GFLOP of a training step, a sample: forward, loss and backward pass, products and convolutions alone.

    Elementwise work is not counted, that of augmentation above all; nor is validation.
    """
    return _operations(config.data.grid, config.model, config.loss)


def training_operations(config: Config) -> float:
    """GFLOP of a whole training, `operations` of all its samples, and of the network that its loss looks through."""
    runs = filter(None, (config, perceptual.teacher_config(config)))
    return sum(operations(run) * steps(run) * run.training.batch for run in runs)


@functools.cache
def _operations(grid: int, model: Model, loss: Loss) -> float:
    with counting() as counter:
        own, volumes = _random(grid, model), torch.rand(2, 2, *(grid,) * 3)
        # what a perceptual term looks through takes as many operations with random weights as with trained ones
        seen = _random(grid, Model(name="stage1", width=model.width, code=model.code)).eval().requires_grad_(False)
        criterion = losses.Criterion(loss, own.standard, lambda x: list(seen.features(x).values()))
        criterion.total(criterion(own(volumes), volumes)).backward()
    return counter.get_total_flops() / len(volumes) / 1e9


def _random(grid: int, model: Model) -> Autoencoder:
    return Autoencoder(NETWORKS[model.name](grid, model), Standard(torch.ones(2), torch.ones(2)))


def efficiency(record, counted: pd.DataFrame) -> pd.DataFrame:
    """The errors of a record's arms beside what they cost: `costs`, and seeds, error, low, high, failed.

    The error is the nrmse of mua, geometric mean over test phantoms and seeds; its 95 % interval is Student's over
    seeds, unbounded from one, absent where every run of an arm failed. Arms without runs are left out.
    """
    runs, rows = runs_of(record, counted["arm"]), []
    for row in counted.to_dict("records"):
        chosen = runs[runs["arm"] == row["arm"]]
        if len(chosen):
            logs = stats.seeds_interval(np.log(chosen["value"].to_numpy()))
            limits = (np.nan, np.nan) if all_failed(record, [row["arm"]]) else (np.exp(logs.low), np.exp(logs.high))
            row |= {"seeds": logs.n, "error": np.exp(logs.estimate), "low": limits[0], "high": limits[1]}
            rows.append(row | {"failed": int((chosen["failed"] != "").sum())})
    return pd.DataFrame(rows, columns=[*counted, "seeds", "error", "low", "high", "failed"])


def bought(table: pd.DataFrame) -> pd.DataFrame:
    """What each arm of `efficiency` buys beside plain width at its cost: arm, group, and for parameters and GFLOP each
    the cost over the plain network's, and the error over that of a plain network of the same cost, both in per cent.

    That network is read off the line through those of `WIDTHS` (log error over log cost). NaN beyond its ends, for a
    point alone is no law there; empty without the three.
    """
    found, columns = table.set_index("arm"), ["arm", "group"]
    columns += [f"{what}, %" for cost in ("parameters", "GFLOP") for what in (cost, f"error at these {cost}")]
    if not set(WIDTHS) <= set(found.index):
        return pd.DataFrame(columns=columns)
    line, rows = np.log(found.loc[list(WIDTHS), ["parameters", "GFLOP", "error"]]), []
    for arm, row in found.drop(index=list(WIDTHS)).iterrows():
        new: dict = {"arm": arm, "group": row["group"]}
        for cost in ("parameters", "GFLOP"):
            at = np.log(float(row[cost]))
            width = np.interp(at, line[cost], line["error"], left=np.nan, right=np.nan)
            new[f"{cost}, %"] = 100 * np.expm1(at - line.loc[PLAIN, cost])
            new[f"error at these {cost}, %"] = 100 * np.expm1(np.log(row["error"]) - width)
        rows.append(new)
    return pd.DataFrame(rows, columns=columns)


def bought_answer(table: pd.DataFrame) -> str:
    """`bought` in words, in Markdown, the arms that lie furthest above plain width first."""
    lines = ["**Beside plain width of the same cost, furthest above it first** (point estimates):\n"] * bool(len(table))
    for row in table.sort_values(table.columns[-1], ascending=False).to_dict("records"):
        said = []
        for cost, word in (("parameters", "parameters"), ("GFLOP", "operations")):
            over = row[f"error at these {cost}, %"]
            beside = f"error {over:+.1f} %" if np.isfinite(over) else "outside the widths that were run"
            said.append(f"{row[f'{cost}, %']:+.2g} % {word} ({beside})")
        lines.append(f"* `{row['arm']}`: {', '.join(said)}.")
    return "\n".join(lines)


def size_of(profile: str, on: str) -> Size:
    """What is timed in a profile on a device: a GPU's epoch of few batches would be all start and end."""
    return dataclasses.replace(SIZES[profile], **({"batches": ON_GPU["batches"]} if on == "cuda" else {}))


def ways(profile: str, size: Size) -> list[Way]:
    """The profile's own network first, and then with each kind of attention at the two deepest stages."""
    own = base(PROFILES[profile], size)
    gates = {arm: arms.arm(arm, profile).model.attention for arm in TIMED}
    return [Way("network", PLAIN, own)] + [
        Way("network", arm, replace(own, {"model.attention": gate})) for arm, gate in gates.items()
    ]


def step_times(times: pd.DataFrame, chosen: list[Way], on: str) -> pd.DataFrame:
    """A row a network that `measure` timed: samples/s (median), and the time of a step over the plain network's.

    That ratio is taken round by round; its median has the sign test's 95 % interval over the rounds, which fewer than
    six do not give (NaN). `kept`: memory for the backward pass of a batch, counted; NaN for what a compiler arranges.
    `word`: slower, faster, not resolved; `a few`: whether that is `FEW` per cent at most, by the interval.
    """
    speed = times.pivot(index="setting", columns="round", values="speed")
    memory, rows = {way.setting: kept_bytes(way, on) / 1e6 for way in chosen}, []
    for arm in memory:
        ratio = (speed.loc[PLAIN] / speed.loc[arm]).to_numpy()
        low, high = quantile_test(ratio, q=1, p=0.5).confidence_interval(0.95)
        row = {"network": arm, "samples/s": speed.loc[arm].median(), "rounds": len(ratio)}
        row |= {"time, ratio": np.median(ratio), "low": low, "high": high}
        row |= {"kept, MB": memory[arm], "kept, ratio": memory[arm] / memory[PLAIN]}
        row |= {"word": SLOWER if low > 1 else FASTER if high < 1 else ALIKE}
        row |= {"a few": "yes" if 100 * (high - 1) <= FEW else "no" if 100 * (low - 1) > FEW else ALIKE}
        rows.append(row | ({"word": "--", "a few": "--"} if arm == PLAIN else {}))
    return pd.DataFrame(rows)


def steps_answer(table: pd.DataFrame) -> str:
    """What attention costs in time and memory, in Markdown, what is slower first."""
    lines = []
    for word in (SLOWER, ALIKE, FASTER):
        for row in table[table["word"] == word].to_dict("records"):
            limits = f"[{row['low']:.3f}, {row['high']:.3f}]" if np.isfinite(row["low"]) else "no interval"
            over = f"{limits} over {row['rounds']} round{'s' * (row['rounds'] > 1)}"
            time = f"{row['time, ratio']:.3f} times the plain network's step, {over}"
            more = 100 * (row["kept, ratio"] - 1)
            kept = f"; {more:+.2g} % memory kept for the backward pass (counted)" if np.isfinite(more) else ""
            few = f"; at most {FEW} %: {row['a few']}"
            lines.append(f"* **{row['network']}: {word}.** {time}{few}{kept}.")
    return "\n".join(lines)
