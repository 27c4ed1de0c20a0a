"""Pictures of attention: error over cost, maps in three planes of a phantom, what maps find."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter

from ..localisation import GRADIENT, INPUT, MAP, MUA, NORM, RANDOM
from . import CHANNELS, STYLE, TEXT_WIDTH, Decimals, _column, released
from .optimisers import BAD, GREY, _decimal_log

COSTS = {"parameters": (1e6, "parameters (millions)"), "GFLOP": (1, "forward pass of one volume (GFLOP)")}
LOOKS = (("0.15", "*"), ("C0", "o"), ("C1", "D"), ("C2", "s"), ("C4", "v"))  # of groups; orange is for failed runs
FAR = 1.35  # times the median error: beyond, arms stand as arrows at the upper edge, so that the others can be read
ALIKE, STEP = 0.02, 0.016  # costs that differ by less count as one place; distance there, as a share of the axis
LINE = 9.5  # pt from name to name
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # normal: z, y, x
SHORT = {MAP: "gate", NORM: "norm", RANDOM: "random", GRADIENT: "gradient", MUA: r"$\mu_a$"}


def efficiency(table: pd.DataFrame, label: str) -> Figure:
    """The error over parameters and over operations, an arm a point with its interval, named at the right.

    Columns: arm, group, parameters, GFLOP, error, low, high, failed (orange). Arms of nearly one cost stand side by
    side; an arm's height is the same in both panels, and a thin line leads from it to its name. An arm far above the
    others is an arrow at the upper edge, its number beside its name. The axis has room for all other points, and for
    the intervals of those without failed runs.
    """
    looks = dict(zip(table["group"].unique(), LOOKS, strict=False))
    table = table.sort_values("error").reset_index(drop=True)
    with plt.style.context(STYLE), plt.rc_context({"axes.grid": False}):
        figure, axes = plt.subplots(1, 2, sharey=True, figsize=(TEXT_WIDTH, max(2.9, 1.1 + LINE * len(table) / 72)))
        near = table[table["error"] <= FAR * table["error"].median()]
        good = near.loc[near["failed"] == 0, ["low", "high"]].to_numpy(float)
        _decimal_log(axes[0], [*near["error"], *good[np.isfinite(good)]])
        for ax, (cost, (unit, words)) in zip(axes, COSTS.items(), strict=True):
            _points(ax, table[cost].to_numpy(float) / unit, table, looks)
            ax.set_xlabel(words)
        axes[0].set_ylabel(label)
        _names(axes[1], table)
        marks = {group: Line2D([], [], color=color, marker=mark, ls="") for group, (color, mark) in looks.items()}
        figure.legend(marks.values(), marks, loc="outside upper center", ncols=len(looks))
    return released(figure)


def _points(ax: Axes, cost: np.ndarray, table: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> None:
    """Arms with their intervals, over thin lines at their heights."""
    for place, row in zip(_side_by_side(cost), table.to_dict("records"), strict=True):
        color, mark = looks[row["group"]]
        color = BAD if row["failed"] else color
        if row["error"] > ax.get_ylim()[1]:
            ax.plot(place, 0.97, "^", color=color, ms=5.5, mew=0.5, transform=ax.get_xaxis_transform())
            continue
        ax.axhline(row["error"], color="0.9", lw=0.5, zorder=0)
        if np.isfinite([row["low"], row["high"]]).all():
            ax.plot((place, place), (row["low"], row["high"]), color=color, lw=1, zorder=2)
        ax.plot(place, row["error"], mark, color=color, ms=4.5, mew=0.5, zorder=3)
    ax.set(xscale="log", xlim=(cost.min() / 1.15, cost.max() * 1.15))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    ax.xaxis.set_major_formatter(Decimals(labelOnlyBase=False, minor_thresholds=(9, 9)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _side_by_side(cost: np.ndarray) -> np.ndarray:
    """Places on a logarithmic axis: costs within `ALIKE` of the next are spread about their mean, in their order."""
    logs, order = np.log(cost), np.argsort(cost, kind="stable")
    starts = np.flatnonzero(np.diff(logs[order]) > ALIKE) + 1
    place, step = logs.copy(), STEP * (np.ptp(logs) + 2 * np.log(1.15))
    for chosen in np.split(order, starts):
        place[np.sort(chosen)] = logs[chosen].mean() + step * (np.arange(len(chosen)) - (len(chosen) - 1) / 2)
    return np.exp(place)


def _names(ax: Axes, table: pd.DataFrame) -> None:
    """The arms' names beside the panel, in the order of their errors, apart from each other by a line."""
    low, high = np.log(ax.get_ylim())
    far = table["error"].to_numpy() > ax.get_ylim()[1]
    heights = np.minimum((np.log(table["error"].to_numpy()) - low) / (high - low), np.where(far, 0.97, 1))
    room = LINE / 72 / (ax.figure.get_size_inches()[1] - 0.9)  # what the layout leaves to the panel, about
    line = {"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 2, "shrinkB": 0, "relpos": (0, 0.5), "patchA": None}
    for row, height, beyond, y in zip(table.to_dict("records"), heights, far, _apart(heights, room), strict=True):
        ax.annotate(
            f"{row['arm']}: {row['error']:.2g}" if beyond else row["arm"],
            (1, height),
            (1.12, y),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            size=7,
            color=BAD if row["failed"] else "black",
            arrowprops=line,
        )


def _apart(heights: Sequence[float], room: float) -> np.ndarray:
    """Ascending places on [0, 1] that keep `room` from each other, about where they were: what touches moves as one."""
    blocks: list[tuple[float, int]] = []  # where a block starts, and its number
    for height in heights:
        start, n = float(height), 1
        while blocks and start < blocks[-1][0] + room * blocks[-1][1]:
            former, m = blocks.pop()
            start, n = (m * former + n * (start - m * room)) / (m + n), m + n
        blocks.append((start, n))
    places, steps = np.concatenate([start + room * np.arange(n) for start, n in blocks]), room * np.arange(len(heights))
    return np.clip(places, steps, 1 - steps[::-1])


def planes(scores: Mapping, labels: np.ndarray, at: tuple[int, int, int], cube: float = 64.0) -> Figure:
    """Three planes through the voxel `at` of one phantom: the truth's mua, and each score as `localisation.scores`.

    `scores` holds (1, draws, D, H, W) by (stage, score), of which random gates are left out; `labels` (D, H, W). Only
    the tissue is shown, where scores are judged; white: the outline of the inclusions. `cube`: a panel's width, mm.
    """
    columns = [(INPUT, MUA), *(key for wanted in (MAP, NORM) for key in scores if key[1] == wanted), (INPUT, GRADIENT)]
    with plt.style.context(STYLE), plt.rc_context({"axes.grid": False}):
        figure, axes = plt.subplots(3, len(columns), squeeze=False, layout="compressed", figsize=(TEXT_WIDTH, 3.5))
        for ax in axes.flat:
            ax.set(xticks=(), yticks=(), frame_on=False)
        for key, below in zip(columns, axes.T, strict=True):
            volume = np.where(labels > 0, np.asarray(scores[key][0, 0].cpu(), dtype=float), np.nan)
            cut = [np.take(volume, at[axis], axis).T for axis in PLANES.values()]
            _column(below, np.stack(cut), "", cube, "viridis", np.nanmin(cut), np.nanmax(cut))
            below[0].set_title(_title(key), size=7.5)
            for ax, axis in zip(below, PLANES.values(), strict=True):
                _outline(ax, np.take(labels, at[axis], axis).T > 1, cube)
        for ax, (name, axis) in zip(axes[:, 0], PLANES.items(), strict=True):
            ax.set_ylabel(f"{name}: {', '.join(letter for i, letter in enumerate('xyz') if i != axis)}")
        for ax in figure.axes[axes.size :]:
            ax.tick_params(labelsize=6.5)
    return released(figure)


def _title(key: tuple[str, str]) -> str:
    stage, score = key
    if stage == INPUT:
        return f"truth, {CHANNELS[0]}" if score == MUA else "input gradient"
    return f"{score},\n{stage}"


def _outline(ax: Axes, mask: np.ndarray, cube: float) -> None:
    if mask.any():
        centres = (np.arange(len(mask)) + 0.5) * cube / len(mask) - cube / 2
        drawn = ax.contour(centres, centres, mask, levels=[0.5], colors="white", linewidths=0.8)
        drawn.set(path_effects=[withStroke(linewidth=1.6, foreground="black")])


def found(runs: pd.DataFrame) -> Figure:
    """AUC of every score, a panel a stage, a dot a run (its mean over phantoms), a bar the arm's mean; dashed: chance.

    `runs` has the columns arm, seed, stage, score, auc; the panel of the input is the last.
    """
    stages = sorted(runs["stage"].unique(), key=lambda stage: (stage == INPUT, list(runs["stage"]).index(stage)))
    shown = {stage: [s for s in SHORT if s in set(runs.loc[runs["stage"] == stage, "score"])] for stage in stages}
    names = list(runs["arm"].unique())
    grid = {"squeeze": False, "sharey": True, "width_ratios": [len(scores) for scores in shown.values()]}
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(stages), figsize=(TEXT_WIDTH, 2.7), **grid)
        for ax, (stage, scores) in zip(axes[0], shown.items(), strict=True):
            for (arm, score), rows in runs[runs["stage"] == stage].groupby(["arm", "score"]):
                i = names.index(arm)
                x = scores.index(score) + 0.25 * (i - (len(names) - 1) / 2)
                _runs(ax, x, rows["auc"], *LOOKS[i % len(LOOKS)])
            ax.axhline(0.5, color="0.3", lw=0.9, ls="--")
            ax.set(title=stage, xlim=(-0.6, len(scores) - 0.4), ylim=(0, 1.02))
            ax.set_xticks(range(len(scores)), [SHORT[score] for score in scores])
        axes[0, 0].set_ylabel("AUC, tumour against other tissue")
        looks = [LOOKS[i % len(LOOKS)] for i in range(len(names))]
        marks = [Line2D([], [], color=color, marker=mark, ls="") for color, mark in looks]
        figure.legend(marks, names, loc="outside upper center", ncols=len(names))
    return released(figure)


def _runs(ax: Axes, x: float, values: pd.Series, color: str, mark: str) -> None:
    ax.plot(np.full(len(values), x), values, mark, color=color, ms=4, mew=0.5, alpha=0.8, zorder=3)
    ax.hlines(values.mean(), x - 0.1, x + 0.1, color=color, lw=1.5, zorder=2)
