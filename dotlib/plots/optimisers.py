"""Pictures of schedules and of what optimisers reach: per seed, as effects, over time, over what was tuned."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from . import STYLE, TEXT_WIDTH, Decimals, released

LINES = ("-", "--", "-.", ":")
BAD, GREY = "#d55e00", "0.55"
CHANGES = (-90, -75, -50, -30, -20, -10, -5, 0, 5, 10, 20, 50, 100, 300, 900)  # per cent: candidates for ticks
FIELDS = {"lr": "learning rate", "beta1": r"$\beta_1$", "weight_decay": "weight decay"}


def schedules(table: pd.DataFrame) -> Figure:
    """Learning rate, beta1 and weight decay over the share of the steps; rows of arm, share and these three.

    A panel leaves out what coincides with a curve that it has.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(TEXT_WIDTH, 2.7), width_ratios=(1.5, 1, 1))
        handles = {}
        for ax, (field, label) in zip(axes, FIELDS.items(), strict=True):
            for i, (arm, rows) in enumerate(table.groupby("arm", sort=False)):
                y = rows[field].to_numpy()
                if not any(np.allclose(y, line.get_ydata(), atol=0) for line in ax.lines):
                    (handles[arm],) = ax.plot(100 * rows["share"], y, color=f"C{i}", ls=LINES[i % 4])
            ax.set(ylabel=label, yscale="linear" if field == "beta1" else "log", xticks=(0, 50, 100))
            ax.set_xlabel("share of the steps (%)")
        figure.legend(handles.values(), handles, loc="outside upper center", ncols=3)
    return released(figure)


def paired(values: pd.DataFrame, pairs: Mapping[str, tuple[str, str]], label: str) -> Figure:
    """One panel a pair of arms (b, then a), a line a seed; crosses are failed runs; bars are geometric means.

    `values` has the columns arm, seed, value and failed (a line of text, empty where all went well).
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(pairs), squeeze=False, sharey=True, figsize=(TEXT_WIDTH, 2.9))
        shown = []
        for ax, (title, (a, b)) in zip(axes[0], pairs.items(), strict=True):
            runs = {arm: values[values["arm"] == arm].set_index("seed") for arm in (b, a)}
            common = runs[a].index.intersection(runs[b].index)
            for seed in common:
                ax.plot((0, 1), [runs[arm]["value"][seed] for arm in (b, a)], "-", color=GREY, lw=0.7, zorder=1)
            means = []
            for x, arm in enumerate((b, a)):
                chosen = runs[arm].loc[common]
                _dots(ax, np.full(len(chosen), x), chosen["value"], chosen["failed"] != "", f"C{x}")
                means.append(np.exp(np.log(chosen["value"]).mean()))
                ax.hlines(means[-1], x - 0.16, x + 0.16, color=f"C{x}", lw=2, zorder=3)
            shown += [*means, *(run for arm in runs.values() for run in arm.loc[arm["failed"] == "", "value"])]
            ax.set(title=f"{title} (n = {len(common)})", xlim=(-0.5, 1.5))
            ax.set_xticks((0, 1), [textwrap.fill(arm, 16) for arm in (b, a)])
        _decimal_log(axes[0, 0], shown)
        axes[0, 0].set_ylabel(label)
    return released(figure)


def forest(table: pd.DataFrame, label: str) -> Figure:
    """Effects with their intervals, a row each, on a logarithmic axis of ratios; below 0 is better.

    Columns: label, effect, low, high (per cent), group (its first row is headed by the name), seeds, confirmatory
    (filled) and failed (number of runs). A grey bar spans `expected low` to `expected high`.
    """
    starts = (table["group"] != table["group"].shift()).to_numpy()
    y = -(np.arange(len(table)) + np.cumsum(starts))
    left, right = _reach(table)
    with plt.style.context(STYLE), plt.rc_context({"axes.grid.axis": "x"}):
        figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 0.17 * (len(table) + starts.sum()) + 0.75))
        for place, (_, row) in zip(y, table.iterrows(), strict=True):
            _effect(ax, place, row, left, right)
        _ratios(ax, left, right, label)
        ax.set(ylim=(y.min() - 0.7, 0.5))
        ax.set_yticks([*y, *y[starts] + 1], [*table["label"], *table.loc[starts, "group"]])
        for text in ax.get_yticklabels()[len(y) :]:
            text.set_style("italic")
        beside = ax.twinx()
        beside.set(ylim=ax.get_ylim())
        beside.set_yticks(y, [_numbers(row) for _, row in table.iterrows()])
        for side in (ax, beside):
            side.spines[["left", "right"]].set_visible(False)
            side.tick_params(axis="y", length=0, labelsize=7.5)
    return released(figure)


def _reach(table: pd.DataFrame) -> tuple[float, float]:
    """The axis of ratios: all that is finite, but never so far that one failed run hides the others."""
    values = table[["effect", "low", "high", "expected low", "expected high"]].to_numpy(float)
    values = np.clip([*values[np.isfinite(values)], -10, 10], -80, 150)
    return (1 + values.min() / 100) / 1.05, (1 + values.max() / 100) * 1.05


def _ratios(ax: Axes, left: float, right: float, label: str) -> None:
    """A logarithmic axis of ratios, its ticks in per cent."""
    ax.axvline(1, color="0.2", lw=0.8)
    ax.set(xscale="log", xlim=(left, right), xlabel=label)
    ticks = [c for c in CHANGES if left <= 1 + c / 100 <= right]
    ax.xaxis.set_major_locator(FixedLocator([1 + c / 100 for c in _spread(ticks, left, right)]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * (x - 1):+.0f}" if abs(x - 1) > 1e-9 else "0"))
    ax.xaxis.set_minor_locator(NullLocator())


def _effect(ax: Axes, y: float, row: pd.Series, left: float, right: float) -> None:
    """One row of a forest: what was expected, the interval (an arrow where it leaves the axis), the estimate."""
    ratio = {name: 1 + row[name] / 100 for name in ("effect", "low", "high", "expected low", "expected high")}
    if np.isfinite(ratio["expected low"]):
        edges = np.clip([ratio["expected low"], ratio["expected high"]], left, right)
        ax.barh(y, edges[1] - edges[0], left=edges[0], height=0.8, color="0.85", zorder=0)
    color = BAD if row["failed"] else "C0"
    if np.isfinite([ratio["low"], ratio["high"]]).all():
        ax.plot(np.clip([ratio["low"], ratio["high"]], left, right), (y, y), color=color, lw=1.2)
        inset = (right / left) ** 0.01
        ends = ((ratio["low"] < left, left * inset, "<"), (ratio["high"] > right, right / inset, ">"))
        for beyond, edge, marker in ends:
            if beyond:
                ax.plot(edge, y, marker, color=color, ms=4, clip_on=False)
    face = color if row["confirmatory"] else "white"
    if left <= ratio["effect"] <= right:
        ax.plot(ratio["effect"], y, "o", color=color, markerfacecolor=face, ms=4.5, zorder=3)


def _numbers(row: pd.Series) -> str:
    if not np.isfinite(row["effect"]):
        return "not computed"
    if row.get("standing") == "the same runs":
        return f"the same runs, n = {row['seeds']}"
    none = "one seed" if row["seeds"] == 1 else "no interval"
    limits = f"[{row['low']:+.1f}, {row['high']:+.1f}]" if np.isfinite(row["low"]) else none
    return f"{row['effect']:+.1f} {limits}, n = {row['seeds']}" + f", {row['failed']} failed" * bool(row["failed"])


def _spread(changes: list[int], left: float, right: float) -> list[int]:
    """The changes whose places on the logarithmic axis leave room for their labels; zero always has its own."""
    room, kept = np.log(right / left) / 10, [0]
    for change in sorted(changes, key=abs):
        if all(abs(np.log((100 + change) / (100 + other))) > room for other in kept):
            kept.append(change)
    return sorted(kept)


def survival(table: pd.DataFrame, label: str) -> Figure:
    """Share of runs that have not yet reached the target: rows of panel, arm, time, share, censored (a tick)."""
    groups = list(table.groupby("panel", sort=False))
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(groups), squeeze=False, sharey=True, figsize=(TEXT_WIDTH, 2.9))
        for ax, (title, panel) in zip(axes[0], groups, strict=True):
            for i, (arm, rows) in enumerate(panel.groupby("arm", sort=False)):
                ax.step(rows["time"], rows["share"], where="post", color=f"C{i}", ls=LINES[i], label=arm)
                missed = rows[rows["censored"] > 0]
                ax.plot(missed["time"], missed["share"], "|", color=f"C{i}", ms=9, mew=1.5)
            ax.set(title=title, xlabel=label, ylim=(-0.03, 1.05), xlim=(0, 1.02 * table["time"].max()))
            ax.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.22))  # curves may be anywhere
        axes[0, 0].set_ylabel("share of runs still above")
    return released(figure)


def budgets(values: pd.DataFrame, label: str) -> Figure:
    """The error over the share of the full number of epochs, each with its own schedule: a dot a run, a line an arm.

    `values` has the columns optimiser, budget (per cent), seed, value and failed; lines are geometric means.
    """
    with plt.style.context(STYLE):
        figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 2.6))
        shown = []
        for i, (name, rows) in enumerate(values.groupby("optimiser", sort=False)):
            shown += _line(ax, rows["budget"], rows, 0.8 * (2 * i - 1), color=f"C{i}", ls=LINES[i % 4], label=name)
        ax.set(xlabel="epochs (% of the full number)", ylabel=label, xticks=sorted(values["budget"].unique()))
        _decimal_log(ax, shown)
        figure.legend(loc="outside upper center", ncols=2)
    return released(figure)


def factorial(values: pd.DataFrame, label: str) -> Figure:
    """The error over the schedule, an optimiser a line: dots are runs, lines geometric means over seeds.

    `values` has the columns optimiser, schedule, seed, value and failed. Parallel lines: no interaction.
    """
    order = list(values["schedule"].unique())
    with plt.style.context(STYLE):
        figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 2.7))
        shown = []
        for i, (name, rows) in enumerate(values.groupby("optimiser", sort=False)):
            x = rows["schedule"].map(order.index)
            shown += _line(ax, x, rows, 0.05 * (2 * i - 1), color=f"C{i}", ls=LINES[i % 4], label=name)
        ax.set_xticks(range(len(order)), order)
        ax.set(ylabel=label, xlim=(-0.4, len(order) - 0.6))
        _decimal_log(ax, shown)
        figure.legend(loc="outside upper center", ncols=2)
    return released(figure)


def tuning(points: pd.DataFrame, label: str, columns: int = 4) -> Figure:
    """Validation error over the learning rate, a panel an arm: a dot a point, the chosen one ringed.

    `points` has the columns arm, lr, error, failed, chosen, edge (names of settings). Failed points are crosses at the
    top. The title of an arm whose chosen rate is the lowest or highest tried says so.
    """
    arms, good = list(points["arm"].unique()), points.loc[points["failed"] == "", "error"]
    rows = -(-len(arms) // columns)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, sharex=True, sharey=True, squeeze=False, figsize=(TEXT_WIDTH, 1.25 * rows + 0.5)
        )
        for ax, arm in zip(axes.flat, arms, strict=False):
            chosen = points[points["arm"] == arm]
            failed = chosen["failed"] != ""
            _dots(ax, chosen["lr"], chosen["error"], failed, "C0")
            best = chosen[chosen["chosen"]]
            edge = best["edge"].str.contains("lr").any()
            ax.plot(best["lr"], best["error"], "o", ms=9, color=BAD if edge else "C2", mfc="none", mew=1.3)
            name = textwrap.fill(arm, 19) + (" (edge)" if edge else "")
            ax.set_title(name, size=7, pad=2, color=BAD if edge else "black")
            ax.set(xscale="log")
            ax.tick_params(labelsize=7)
            _decimal_log(ax, [*good, good.min() / 1.08])  # room for the ring
        for ax in axes.flat[len(arms) :]:
            ax.set_visible(False)
        for ax in axes.flat[max(0, len(arms) - columns) : len(arms)]:
            ax.tick_params(labelbottom=True)
        figure.supxlabel("learning rate", size=9)
        figure.supylabel(label, size=9)
    return released(figure)


def sensitivity(values: pd.DataFrame, label: str) -> Figure:
    """The error over one setting a panel, all others at their base: a dot a run, lines join geometric means.

    `values` has the columns setting, value_of (its value), seed, value, base (whether it is the base point), failed.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(2, 2, sharey=True, figsize=(TEXT_WIDTH, 3.9))
        shown = []
        for ax, (setting, rows) in zip(axes.flat, values.groupby("setting", sort=False), strict=False):
            levels = sorted(rows["value_of"].unique())  # equal steps: beta2 crowds towards one on any other axis
            x = rows["value_of"].map(levels.index)
            shown += _line(ax, x, rows, color="C0", lw=1)
            base = levels.index(rows.loc[rows["base"], "value_of"].iloc[0]) if rows["base"].any() else None
            if base is not None:
                ax.axvspan(base - 0.3, base + 0.3, color="0.88", zorder=0, lw=0)
            ax.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
            ax.set(xlabel=setting, xlim=(-0.5, len(levels) - 0.5))
            _decimal_log(ax, shown)
        for ax in axes[:, 0]:
            ax.set_ylabel(label)
    return released(figure)


def _line(ax: Axes, x: pd.Series, rows: pd.DataFrame, shift: float = 0, **look) -> list[float]:
    """Runs as dots, and a line through their geometric means at each x; gives the values that should be seen."""
    mean = np.exp(np.log(rows["value"]).groupby(np.asarray(x)).mean())
    ax.plot(mean.index, mean, **look)
    _dots(ax, x + shift, rows["value"], rows["failed"] != "", look["color"])
    return [*mean, *rows.loc[rows["failed"] == "", "value"]]


def _dots(ax: Axes, x: pd.Series, y: pd.Series, failed: pd.Series, color: str) -> None:
    """Runs as dots, failed ones as crosses at the top, below each other: their value is the worst run's, not theirs."""
    x, y, failed = np.asarray(x, float), np.asarray(y, float), np.asarray(failed, bool)
    ax.plot(x[~failed], y[~failed], "o", color=color, ms=3.5, mew=0, alpha=0.8, zorder=2)
    top = 0.93 - 0.08 * pd.Series(x[failed]).groupby(x[failed]).cumcount().to_numpy()
    ax.plot(x[failed], top, "x", color=BAD, ms=5.5, mew=1.4, zorder=4, transform=ax.get_xaxis_transform())


def _decimal_log(ax: Axes, shown: Sequence[float]) -> None:
    """A logarithmic axis of decimals with room for `shown`."""
    ax.set(yscale="log", ylim=(min(shown, default=0.5) / 1.1, max(shown, default=1.0) * 1.12))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
    ax.yaxis.set_major_formatter(Decimals(labelOnlyBase=False, minor_thresholds=(9, 9)))
    ax.yaxis.set_minor_formatter(NullFormatter())
