"""Pictures of the ablation: both directions of every improvement, spread over seeds, error over the data's size."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from . import STYLE, TEXT_WIDTH, released
from .optimisers import BAD, LINES, _decimal_log, _dots, _line, _numbers, _ratios, _reach

MARKERS, COLORS, OFFSET = ("o", "s"), ("C0", "C2"), 0.2  # of the two directions
SPREADS = (0.1, 0.3, 1, 3, 10, 30, 100, 300)  # per cent: candidates for ticks


def forest(effects: pd.DataFrame, label: str) -> Figure:
    """Both directions of every improvement, two markers a row, filled where `confirmatory`; below 0 is better.

    `effects` has the columns of `plots.optimisers.forest`, and `name` (a row each) and `where` (a marker each). Arrows
    where an interval leaves the axis, orange where runs failed.
    """
    places = {name: -i for i, name in enumerate(effects["name"].unique())}
    sides = {where: i for i, where in enumerate(effects["where"].unique())}
    left, right = _reach(effects)
    y = [places[row["name"]] + OFFSET * (1 - 2 * sides[row["where"]]) for _, row in effects.iterrows()]
    with plt.style.context(STYLE), plt.rc_context({"axes.grid.axis": "x"}):
        figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 0.26 * len(places) + 0.9))
        for place, (_, row) in zip(y, effects.iterrows(), strict=True):
            _marker(ax, place, row, sides[row["where"]], left, right)
        _ratios(ax, left, right, label)
        ax.set(ylim=(-len(places) + 0.4, 0.6))
        ax.set_yticks(list(places.values()), effects.drop_duplicates("name")["label"])
        beside = ax.twinx()
        beside.set(ylim=ax.get_ylim())
        beside.set_yticks(y, [_numbers(row) for _, row in effects.iterrows()])
        for side, size in ((ax, 7.5), (beside, 6)):
            side.spines[["left", "right"]].set_visible(False)
            side.tick_params(axis="y", length=0, labelsize=size)
        for text, (_, row) in zip(beside.get_yticklabels(), effects.iterrows(), strict=True):
            text.set_color(COLORS[sides[row["where"]]])
        looks = zip(sides, COLORS, MARKERS, strict=True)
        marks = [Line2D([], [], color=c, marker=m, ms=4.5, mfc="white", label=where) for where, c, m in looks]
        figure.legend(handles=marks, loc="outside upper center", ncols=2)
    return released(figure)


def _marker(ax: Axes, y: float, row: pd.Series, side: int, left: float, right: float) -> None:
    """One effect with its interval, an arrow where that leaves the axis."""
    low, centre, high = (1 + row[name] / 100 for name in ("low", "effect", "high"))
    color = BAD if row["failed"] else COLORS[side]
    if np.isfinite([low, high]).all():
        ax.plot(np.clip([low, high], left, right), (y, y), color=color, lw=1.1)
        for beyond, edge, mark in ((low < left, left, "<"), (high > right, right, ">")):
            if beyond:
                ax.plot(edge, y, mark, color=color, ms=3.5, clip_on=False)
    if left <= centre <= right:
        face = color if row["confirmatory"] else "white"
        ax.plot(centre, y, MARKERS[side], color=color, markerfacecolor=face, ms=4, zorder=3)


def spread(tables: Mapping[str, pd.DataFrame], limit: float, label: str) -> Figure:
    """Standard deviations with their intervals, a panel a study, a row an arm; the line is what is asked for.

    A table has the columns arm, sd, low, high (per cent) and failed; orange where runs failed.
    """
    rows = max(map(len, tables.values()))
    with plt.style.context(STYLE), plt.rc_context({"axes.grid.axis": "x"}):
        figure, axes = plt.subplots(1, len(tables), squeeze=False, sharex=True, figsize=(TEXT_WIDTH, 0.16 * rows + 0.9))
        for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
            for i, (_, row) in enumerate(table.iterrows()):
                color = BAD if row["failed"] else "C0"
                ax.plot((row["low"], row["high"]), (-i, -i), color=color, lw=1.1)
                ax.plot(row["sd"], -i, "o", color=color, ms=3.5)
            ax.axvline(limit, color="0.3", lw=0.9, ls="--")
            ax.set_yticks(-np.arange(len(table)), table["arm"])
            ax.set(title=title, xlabel=label, xscale="log", ylim=(-rows + 0.4, 0.6))
            ax.tick_params(axis="y", length=0, labelsize=6.5)
            ax.xaxis.set_major_locator(FixedLocator(SPREADS))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.spines[["left"]].set_visible(False)
    return released(figure)


def _math(form: str) -> str:
    return f"${form.replace('^-b', '^{-b}')}$"


def learning_curve(runs: pd.DataFrame, laws: pd.DataFrame, label: str) -> Figure:
    """The error over the number of training phantoms, a dot a run, on logarithmic axes; power laws with their bands.

    `runs` has the columns phantoms, value, failed; `laws` form, phantoms, value, low, high, and no rows where none was
    fitted.
    """
    good = runs.loc[runs["failed"] == "", "value"]
    with plt.style.context(STYLE):
        figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 2.9))
        for i, (form, law) in enumerate(laws.groupby("form", sort=False)):
            ax.plot(law["phantoms"], law["value"], color=COLORS[i], ls=LINES[i], lw=1.3, label=_math(form))
            if np.isfinite(law["high"]).all():  # one seed has no band
                ax.fill_between(law["phantoms"], law["low"], law["high"], color=COLORS[i], alpha=0.15, lw=0)
        _dots(ax, runs["phantoms"], runs["value"], runs["failed"] != "", "C0")
        ax.set(xscale="log", xlabel="training phantoms", ylabel=label)
        sizes = sorted(runs["phantoms"].unique())
        ax.xaxis.set_major_locator(FixedLocator(sizes))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        ax.xaxis.set_minor_locator(NullLocator())
        _decimal_log(ax, [*good, *laws["value"]])
        if len(laws):
            figure.legend(loc="outside upper center", ncols=2)
    return released(figure)


def longest(runs: pd.DataFrame, levels: Mapping[str, float], label: str) -> Figure:
    """The error over the operations of a training, a dot a run, a line a network, on logarithmic axes.

    `runs` has the columns network, PFLOP, value, failed; `levels`: what is aimed at, as dashed lines with their names.
    """
    with plt.style.context(STYLE):
        figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 2.9))
        shown = [*levels.values()]
        for i, (name, rows) in enumerate(runs.groupby("network", sort=False)):
            ended = rows[rows["failed"] == ""]
            shown += _line(ax, ended["PFLOP"], ended, color=COLORS[i], ls=LINES[i], lw=1.3, label=f"{name} width")
            failed = rows[rows["failed"] != ""]
            _dots(ax, failed["PFLOP"], failed["value"], failed["failed"] != "", COLORS[i])
        for name, level in levels.items():
            ax.axhline(level, color="0.3", lw=0.9, ls="--")
            ax.annotate(name, (1, level), (-2, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                        ha="right", size=7, color="0.3")  # fmt: skip
        ax.set(xscale="log", xlabel="operations of the training (PFLOP)", ylabel=label)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        _decimal_log(ax, shown)
        figure.legend(loc="outside upper center", ncols=2)
    return released(figure)
