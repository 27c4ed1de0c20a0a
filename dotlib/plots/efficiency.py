"""Pictures of speed, memory, time and ceilings of a training step, and of the gradient scaler."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..sections.roofline import GPUS
from ..sections.step_profile import CLASSES
from . import STYLE, TEXT_WIDTH, released

GREY = "0.6"


def ways(table: pd.DataFrame) -> Figure:
    """A row per way that was run: its ratio to the naive loop with the range over rounds, and its memory for backward.

    `table` is that of `efficiency.table`.
    """
    shown = table[table["note"] == ""].reset_index(drop=True)
    names = [f"{row.factor}: {row.setting}" for row in shown.itertuples()]
    place = np.arange(len(shown))
    factors = dict(zip(shown["factor"].unique(), sns.color_palette("colorblind"), strict=False))
    colors = [factors[factor] for factor in shown["factor"]]
    with plt.style.context(STYLE), plt.rc_context({"axes.grid.axis": "x"}):
        figure, (left, right) = plt.subplots(1, 2, sharey=True, figsize=(TEXT_WIDTH, 0.2 * len(shown) + 0.6))
        left.hlines(place, shown["lowest"], shown["highest"], colors, lw=2, alpha=0.5)
        left.scatter(shown["ratio"], place, c=colors, s=18, zorder=3)
        left.axvline(1, color="0.3", lw=0.8, ls="--")
        left.set(yticks=place, yticklabels=names, xlabel="samples/s, ratio to the naive loop", xlim=(0, None))
        left.invert_yaxis()
        right.barh(place, shown["kept, MB"], color=colors, height=0.6)
        right.set(xlabel="kept for the backward pass (MB)")
    return released(figure)


def stacked(times: pd.DataFrame, label: str, by: str = "class") -> Figure:
    """One bar of `seconds`, a segment for each name in the column `by`, its share written where it has room.

    What is negative (more was accounted for than passed) is named with its share, and has no segment.
    """
    total, start = times["seconds"].sum(), 0.0
    hues = sns.color_palette("colorblind", 10) + sns.color_palette("pastel", 10)
    known = {name: hues[i] for i, name in enumerate(CLASSES)}
    with plt.style.context(STYLE), plt.rc_context({"axes.grid": False}):
        figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 1.9))
        for i, (name, seconds) in enumerate(times[[by, "seconds"]].itertuples(index=False)):
            color = known.get(name, hues[i])
            share = f"{name}, {round(seconds / total, 3) + 0.0:.1%}"  # no minus before zero
            seconds = max(seconds, 0.0)
            ax.barh(0, 1e3 * seconds, left=1e3 * start, color=color, label=share, height=0.7)
            if seconds > 0.05 * total:
                ax.text(1e3 * (start + seconds / 2), 0, f"{seconds / total:.0%}", ha="center", va="center", size=8)
            start += seconds
        ax.set(yticks=(), xlabel=label, xlim=(0, 1e3 * start))
        ax.spines["left"].set_visible(False)
        figure.legend(loc="outside upper center", ncols=3)
    return released(figure)


def roofline(points: pd.DataFrame, ceilings: pd.DataFrame, predicted: float) -> Figure:
    """Arithmetic speed over intensity: the machine's ceilings, its measured points, and the GPUs of the data sheets.

    `points` and `ceilings` as those of `roofline`; `predicted` is the intensity of the full network's step.
    """
    intensity = np.geomspace(1, 3000, 200)
    at_ceiling = ceilings.set_index("ceiling")["value"]
    with plt.style.context(STYLE), plt.rc_context({"axes.grid.axis": "both"}):
        figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 3.5))
        for product in dict.fromkeys(gpu.product for gpu in GPUS.values()):
            alike = {name: gpu for name, gpu in GPUS.items() if gpu.product == product}
            for gpu in alike.values():
                ax.plot(intensity, np.minimum(intensity * gpu.bandwidth, 1e3 * product), color=GREY, lw=0.9)
            ax.text(3000, 1.1e3 * product, ", ".join(alike), color="0.35", size=7, ha="right", va="bottom")
        products = [name for name in at_ceiling.index if name != "copy"]
        for i, name in enumerate(products):
            roof = np.minimum(intensity * at_ceiling["copy"], at_ceiling[name])
            ax.plot(intensity, roof, color=f"C{i}", lw=1.4, label=f"this machine, {name} (measured)")
        ax.plot([], [], color=GREY, lw=0.9, label="data sheets, bf16 (not measured)")
        ax.axvline(predicted, color=GREY, ls=":", lw=1.2, label="full network, whole step (counted)")
        _points(ax, points[points["GFLOP/s"] > 0])
        ax.set(xscale="log", yscale="log", xlabel="intensity (FLOP/byte, unfused count)", ylabel="GFLOP/s")
        figure.legend(loc="outside upper center", ncols=2)
    return released(figure)


def _points(ax: Axes, points: pd.DataFrame) -> None:
    for i, row in enumerate(points.to_dict("records")):
        ax.plot(row["flop/byte"], row["GFLOP/s"], "osD^v"[i], color="k", mfc="w", ms=5, ls="", label=row["class"])


def scaler(traces: Mapping[str, pd.DataFrame], limit: float) -> Figure:
    """The scale over the steps and the steps skipped so far, a column per growth factor; `limit` is what still fits."""
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(2, len(traces), sharex=True, sharey="row", squeeze=False, figsize=(TEXT_WIDTH, 3.3))
        for (name, steps), (upper, lower) in zip(traces.items(), axes.T, strict=True):
            upper.step(steps["step"], steps["scale"], where="post", color="C0", label="scale")
            lost = steps[steps["skipped"]]
            upper.plot(lost["step"], lost["scale"], "x", color="C3", ms=4, label="step skipped")
            upper.axhline(limit, color="0.4", ls="--", lw=0.8, label="largest scale that fits into fp16")
            upper.set_yscale("log", base=2)
            upper.set_title(name)
            lower.step(steps["step"], steps["skipped"].cumsum(), where="post", color="C3")
            lower.set(xlabel="step")
        axes[0, 0].set_ylabel("scale")
        axes[1, 0].set_ylabel("steps skipped so far")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return released(figure)
