"""Pictures of judged runs: what a network loses away from the phantoms that it was trained on; the roadmap."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from . import STYLE, TEXT_WIDTH, Decimals, released

STYLES = ("-", "--", "-.", ":")
RATIOS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10)  # candidates for the colour bar's ticks
SHOWN = ("RMSE", "SSIM")  # PSNR is RMSE in other words


def matrix(table: pd.DataFrame) -> Figure:
    """Error over the error at home, on a logarithmic colour scale about 1; `table` is `generalisation.matrix`.

    A row a set, a column a training family. Home is framed and holds the nrmse itself; a ratio whose interval holds 1
    is in brackets; what was not judged is empty.
    """
    sets, families = list(table["tested on"].unique()), list(table["trained on"].unique())
    wide = table.pivot(index="tested on", columns="trained on", values="ratio").loc[sets, families]
    reach = float(np.nanmax(np.abs(np.log(wide.to_numpy())), initial=np.log(1.25)))
    with plt.style.context(STYLE), plt.rc_context({"axes.grid": False}):
        figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 0.21 * len(sets) + 1.2))
        scale = LogNorm(np.exp(-reach), np.exp(reach))
        image = ax.imshow(wide, cmap="RdBu_r", norm=scale, aspect="auto", origin="upper")
        for row in table.to_dict("records"):
            x, y = families.index(row["trained on"]), sets.index(row["tested on"])
            dark = abs(np.log(row["ratio"])) > 0.6 * reach
            ax.text(x, y, _written(row), ha="center", va="center", size=7, color="white" if dark else "black")
            if row["home"]:
                ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, lw=1.4, clip_on=False))
        ax.set_xticks(range(len(families)), families)
        ax.set_yticks(range(len(sets)), sets)
        ax.set(xlabel="trained on", ylabel="tested on")
        ax.tick_params(length=0)
        bar = figure.colorbar(image, ax=ax, label=r"nrmse of $\mu_a$ over that at home", aspect=30)
        kept = [ratio for ratio in RATIOS if scale.vmin <= ratio <= scale.vmax]
        bar.ax.yaxis.set_major_locator(FixedLocator(kept))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.set_yticklabels([f"{ratio:g}" for ratio in kept])
        bar.outline.set_visible(False)
    return released(figure)


def _written(row: dict) -> str:
    if np.isnan(row["ratio"]):
        return ""
    if row["home"]:
        return f"{row['nrmse']:.3f}"
    held = not (row["ratio low"] > 1 or row["ratio high"] < 1)
    return f"({row['ratio']:.2f})" if held else f"{row['ratio']:.2f}"


def roadmap(table: pd.DataFrame, levels: pd.DataFrame) -> Figure:
    """Phases of the roadmap: means with their intervals, a colour a network, over what was asked of each phase (grey).

    `table` is `criteria.roadmap`, `levels` are `criteria.trivial_levels` (horizontal lines). A row a measure, a column
    a test set; means of single runs have no interval, and what was not judged no dot.
    """
    sets = list(table["tested on"].unique())
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            len(SHOWN), len(sets), sharex=True, sharey="row", squeeze=False, figsize=(TEXT_WIDTH, 4.6)
        )
        for line, measure in zip(axes, SHOWN, strict=True):
            for ax, on in zip(line, sets, strict=True):
                _phases(ax, table[(table["measure"] == measure) & (table["tested on"] == on)])
                _levels(ax, levels[(levels["measure"] == measure) & (levels["tested on"] == on)])
        for ax, on in zip(axes[0], sets, strict=True):
            ax.set(title=f"tested on {on}", yscale="log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            ax.yaxis.set_major_formatter(Decimals(labelOnlyBase=False, minor_thresholds=(9, 9)))
            ax.yaxis.set_minor_formatter(NullFormatter())
        axes[0, 0].set_ylabel(r"legacy RMSE (mm$^{-1}$)")
        axes[1, 0].set_ylabel("legacy SSIM")
        for ax in axes[-1]:
            ax.set(xlabel="phase", xticks=sorted(table["phase"].unique()))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return released(figure)


def _phases(ax: Axes, rows: pd.DataFrame) -> None:
    asked = rows.drop_duplicates("phase")
    for i, row in enumerate(asked.to_dict("records")):
        low, high = sorted((row["asked from"], row["asked to"]))
        look = {"color": "0.75", "zorder": 0, "label": "asked (phase 0: reported)" if i == 0 else None}
        x = (row["phase"] - 0.35, row["phase"] + 0.35)
        ax.fill_between(x, low, high, lw=2, **look)  # with an edge: what was reported has no width
    for i, (network, found) in enumerate(rows.groupby("network", sort=False)):
        x = found["phase"] + 0.24 * (i - 0.5)
        known = np.isfinite(found["low"])
        ax.vlines(x[known], found["low"][known], found["high"][known], color=f"C{i}", lw=1.2)
        if found["estimate"].notna().any():
            ax.plot(x, found["estimate"], "o", color=f"C{i}", ms=4, label=network)


def _levels(ax: Axes, rows: pd.DataFrame) -> None:
    for i, row in enumerate(rows.dropna(subset=["value"]).to_dict("records")):
        ax.axhline(row["value"], color="0.35", lw=0.8, ls=STYLES[i % 4], zorder=1, label=row["predictor"])
