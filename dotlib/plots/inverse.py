"""Pictures of section 4.6: classical settings, recovery by place, lesions found, other light, calibration."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from . import STYLE, TEXT_WIDTH, released

MARKERS = "osD^vP*Xhp"
NAMES = {"tikhonov": "Tikhonov", "gaussian": "Gauss-Newton, Gaussian", "tv": "Gauss-Newton, total variation"}


def settings(table: pd.DataFrame) -> Figure:
    """Validation error over lambda, a panel a method, a line a length of the prior; `table` as tuning records it."""
    methods = list(table["method"].unique())
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(methods), sharey=True, squeeze=False, figsize=(TEXT_WIDTH, 2.3))
        for ax, method in zip(axes[0], methods, strict=True):
            rows = table[table["method"] == method]
            for i, (length, line) in enumerate(rows.groupby("length")):
                line = line.sort_values("regularisation")
                look = {"color": f"C{i}", "ms": 4, "lw": 1}
                ax.plot(line["regularisation"], line["nrmse_covered"], f"-{MARKERS[i]}", label=f"{length:g} mm", **look)
            best = rows.loc[rows["nrmse_covered"].idxmin()]
            ax.plot(best["regularisation"], best["nrmse_covered"], "o", ms=9, mfc="none", mec="black", lw=0.8)
            ax.set(xscale="log", xlabel=r"$\lambda$", title=NAMES.get(method, method))
            ticks = sorted(rows["regularisation"].unique())
            ax.xaxis.set_major_locator(FixedLocator(ticks))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            if method != "tv":
                ax.legend(title="prior", fontsize=6, title_fontsize=6)
        axes[0, 0].set_ylabel(r"nrmse of $\mu_a$, covered")
    return released(figure)


def recovery(tables: Mapping[str, pd.DataFrame], labels: Mapping[str, str]) -> Figure:
    """Median crc over bins of a fact, a panel a fact, a marker a method, interval over seeds where there is one.

    Each table has the columns of `inverse_inclusions.binned`; the dashed line is full recovery.
    """
    names = list(next(iter(tables.values()))["method"].unique())
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(tables), sharey=True, squeeze=False, figsize=(TEXT_WIDTH, 3.0))
        for ax, (fact, table) in zip(axes[0], tables.items(), strict=True):
            bins = list(table["bin"].unique())
            for i, name in enumerate(names):
                rows = table[table["method"] == name].set_index("bin").reindex(bins)
                x = np.arange(len(bins)) + 0.7 * ((i + 0.5) / len(names) - 0.5)
                known = np.isfinite(rows["low"].to_numpy())
                ax.vlines(x[known], rows["low"][known], rows["high"][known], color=f"C{i}", lw=1)
                ax.plot(x, rows["median"], MARKERS[i % len(MARKERS)], color=f"C{i}", ms=4, label=name)
            ax.axhline(1, color="0.5", lw=0.8, ls="--")
            counts = table.groupby("bin", sort=False)["inclusions"].max()
            ax.set_xticks(range(len(bins)), [f"{b}\n(n = {counts[b]})" for b in bins], fontsize=6)
            ax.set_xlabel(textwrap.fill(labels[fact], 28), fontsize=7)
        axes[0, 0].set_ylabel(r"crc of $\mu_a$, median")
        handles, words = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, words, loc="outside upper center", ncols=3, fontsize=7)
    return released(figure)


def lesions(curves: pd.DataFrame, points: pd.DataFrame) -> Figure:
    """Recall over false lesions a phantom, a line a method, as the threshold falls; dots: the operating points."""
    with plt.style.context(STYLE):
        figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 3.2))
        for i, (name, rows) in enumerate(curves.groupby("method", sort=False)):
            rows = rows.sort_values("threshold")
            ax.plot(rows["false_lesions"], rows["recall"], color=f"C{i}", lw=1.2, label=name)
            at = points[points["method"] == name]
            ax.plot(at["false_lesions"], at["recall"], "o", color=f"C{i}", ms=6)
        ax.set(xlabel="false lesions a phantom", ylabel="recall", ylim=(0, None))
        ax.set_xscale("symlog", linthresh=0.1, linscale=0.4)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(FixedLocator([0, 0.1, 0.3, 1, 3, 10, 30]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        figure.legend(loc="outside upper center", ncols=3, fontsize=7)
    return released(figure)


def views(table: pd.DataFrame) -> Figure:
    """Error on each set over that on fresh phantoms, a row a set, a marker a method; `table`: `inverse_views.views`."""
    rows = table[table["group"] != ""]
    sets, names = list(rows["set"].unique()), list(rows["method"].unique())
    places = {name: -i for i, name in enumerate(sets)}
    with plt.style.context(STYLE), plt.rc_context({"axes.grid.axis": "x"}):
        figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 0.2 * len(sets) + 1.0))
        for i, name in enumerate(names):
            mine = rows[rows["method"] == name]
            y = np.array([places[one] for one in mine["set"]]) - 0.6 * ((i + 0.5) / len(names) - 0.5)
            known = np.isfinite(mine["ratio high"].to_numpy())  # of one run the limits are 0 and infinity
            ax.hlines(y[known], mine["ratio low"][known], mine["ratio high"][known], color=f"C{i}", lw=1)
            ax.plot(mine["ratio"], y, MARKERS[i % len(MARKERS)], color=f"C{i}", ms=3.5, label=name)
        ends = rows.drop_duplicates("set").groupby("group", sort=False)["set"].last()
        for last in list(ends)[:-1]:
            ax.axhline(places[last] - 0.5, color="0.8", lw=0.6)
        ax.axvline(1, color="0.4", lw=0.8)
        ax.set(xscale="log", xlabel=r"nrmse of $\mu_a$ over that on fresh phantoms, covered tissue")
        ax.set_yticks(list(places.values()), sets, fontsize=7)
        ax.set_ylim(-len(sets) + 0.4, 0.6)
        low, high = ax.get_xlim()
        kept = [x for x in (0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5) if low <= x <= high]
        ax.xaxis.set_major_locator(FixedLocator(kept))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        figure.legend(loc="outside upper center", ncols=3, fontsize=7)
    return released(figure)


def calibration(table: pd.DataFrame) -> Figure:
    """Error over sd in bins of sd, a panel a channel, both logarithmic; hollow: sd as it is, filled: scaled.

    `table` is a record's `calibration`; on the line an sd is the size of its error.
    """
    channels = list(table["channel"].unique())
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(channels), squeeze=False, figsize=(TEXT_WIDTH, 2.9))
        for ax, channel in zip(axes[0], channels, strict=True):
            mine = table[table["channel"] == channel]
            for i, (part, rows) in enumerate(mine.groupby("part", sort=False)):
                for scaled, bins in rows.groupby("scaled"):
                    label = f"{part}, {'scaled' if scaled else 'as it is'}"
                    look = {"color": f"C{i}", "mfc": f"C{i}" if scaled else "none", "ms": 4, "lw": 0.8}
                    ax.plot(bins["sd"], bins["rmse"], f"-{MARKERS[i]}", label=label, **look)
            values = mine[["sd", "rmse"]].to_numpy()
            ends = [values[values > 0].min(), values.max()]
            ax.plot(ends, ends, color="0.4", lw=0.8, ls="--")
            unit = r"$\mu_a$" if channel == "mua" else r"$\mu_s'$"
            ax.set(xscale="log", yscale="log", xlabel=f"sd of {unit} (mm$^{{-1}}$)", ylabel="rms error (mm$^{-1}$)")
        handles, words = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, words, loc="outside upper center", ncols=2, fontsize=7)
    return released(figure)
