"""Pictures of volumes and result tables, in the thesis's style."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogFormatter, MaxNLocator

if TYPE_CHECKING:
    import pandas as pd  # which a picture of one recording does not wait for

STYLE = Path(__file__).with_name("style.mplstyle")
TEXT_WIDTH = 418 / 72.27  # inches: a LaTeX text line of 418 pt, 72.27 pt to the inch
CHANNELS = (r"$\mu_a$ (mm$^{-1}$)", r"$\mu_s'$ (mm$^{-1}$)")


def style() -> None:
    """Draw everything from here on in the thesis's style; a notebook calls it once."""
    plt.style.use(STYLE)


def slices(
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    *,
    normal: str = "z",
    index: int | None = None,
    cube: float = 64.0,
) -> Figure:
    """One plane of a phantom: the truth and, below it, each arm's prediction beside its error, for both channels.

    `truth` and each prediction are (2, D, H, W) in mm^-1; the plane is voxel `index` (the middle one by default) along
    `normal`; `cube` is the volume's width in mm. Truth and predictions share a colour range, errors one that is
    symmetric about zero. Raises ValueError where shapes differ.
    """
    volumes = {arm: np.asarray(volume, dtype=float) for arm, volume in {"truth": truth, **predictions}.items()}
    shape = volumes["truth"].shape
    for arm, volume in volumes.items():
        if volume.shape != shape or volume.ndim != 4 or shape[0] != 2:
            raise ValueError(f"slices: {arm} has shape {volume.shape}; (2, D, H, W) is accepted, the same for all")
    axis = 1 + "xyz".index(normal)
    index = shape[axis] // 2 if index is None else index
    planes = np.stack([np.take(volume, index, axis).swapaxes(1, 2) for volume in volumes.values()])
    side, step = min(1.3, 6.6 / len(planes)), 2 if predictions else 1
    with plt.style.context(STYLE), plt.rc_context({"axes.grid": False}):
        figure, axes = plt.subplots(
            len(planes), 2 * step, squeeze=False, layout="compressed", figsize=(TEXT_WIDTH, len(planes) * side + 0.6)
        )
        for ax in axes.flat:
            ax.set(xticks=(), yticks=(), frame_on=False)
        for channel, label in enumerate(CHANNELS):
            images, errors = planes[:, channel], planes[1:, channel] - planes[0, channel]
            _column(axes[:, step * channel], images, label, cube, "viridis", np.nanmin(images), np.nanmax(images))
            if predictions:
                reach = np.nanmax(np.abs(errors))
                _column(axes[1:, step * channel + 1], errors, f"error of {label}", cube, "RdBu_r", -reach, reach)
        for ax, arm in zip(axes[:, 0], volumes, strict=True):
            ax.set_ylabel(textwrap.fill(arm, 16, break_on_hyphens=False))
        _scale(axes[0, 0], cube, *(letter for letter in "xyz" if letter != normal))
    return released(figure)


def curves(history: pd.DataFrame, values: Mapping[str, str]) -> Figure:
    """Learning curves, one panel per entry of `values` (column of `history` -> axis label).

    `history` has one row per arm, seed and epoch. The line is the median over seeds, the band their whole range.
    """
    import seaborn  # a second, and a single picture does without it

    if missing := {"arm", "seed", "epoch", *values} - set(history):
        raise ValueError(f"curves: no column {min(missing)!r}; the table has {', '.join(map(str, history))}")
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(values), squeeze=False, sharex=True)
        for ax, (column, label) in zip(axes[0], values.items(), strict=True):
            seaborn.lineplot(
                history, x="epoch", y=column, hue="arm", style="arm", estimator="median", errorbar=("pi", 100),
                ax=ax,
            )  # fmt: skip
            ax.set(ylabel=label, yscale="log")
            ax.yaxis.set_major_formatter(Decimals())
            ax.yaxis.set_minor_formatter(Decimals())
            handles, labels = ax.get_legend_handles_labels()
            ax.get_legend().remove()
        columns = 2 if max(map(len, labels)) > 20 else min(4, len(labels))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)
    return released(figure)


def seeds(values: pd.DataFrame, label: str, levels: Mapping[str, float]) -> Figure:
    """One dot per run: arms across, the value up, dots of one seed joined; `levels` are drawn as named lines.

    `values` has the columns arm, seed and value.
    """
    import seaborn

    with plt.style.context(STYLE):
        figure, ax = plt.subplots()
        for _, runs in values.groupby("seed"):
            ax.plot(runs["arm"], runs["value"], "-o", color="0.55", markerfacecolor="C0", markeredgecolor="C0", lw=0.8)
        for (name, level), color in zip(levels.items(), seaborn.color_palette("colorblind")[1:], strict=False):
            ax.axhline(level, ls="--", lw=1, color=color, label=name)
        ax.set(ylabel=label, ylim=(0, None))
        figure.legend(loc="outside upper center", ncols=2)
    return released(figure)


def dataset_summary(separation: np.ndarray, log_amplitude: np.ndarray, sigma: np.ndarray, radius: np.ndarray) -> Figure:
    """A dataset at a glance: separations, log-amplitude over separation, its sd, sizes of the inclusions.

    Flat arrays: the first three of one pair each (mm, ln, ln), the last of one inclusion each (mm); an empty one leaves
    its panel empty.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(TEXT_WIDTH, 0.8 * TEXT_WIDTH))
        kept = np.isfinite(log_amplitude)
        axes[0, 0].hist(separation, bins=40)
        axes[0, 0].set(xlabel="separation (mm)", ylabel=f"pairs (n = {len(separation):,})")
        axes[0, 1].hist2d(separation[kept], log_amplitude[kept], bins=60, cmin=1, cmap="viridis")
        axes[0, 1].set(xlabel="separation (mm)", ylabel="ln A")
        positive = sigma[sigma > 0]
        low, high = (positive.min(), positive.max()) if positive.size else (0.001, 1)
        axes[1, 0].hist(positive, bins=np.geomspace(low, 1.001 * high, 41))
        axes[1, 0].set(xscale="log", xlabel="sd of ln A", ylabel="pairs")
        axes[1, 1].hist(radius, bins=40)
        axes[1, 1].set(xlabel="equivalent radius (mm)", ylabel=f"inclusions (n = {len(radius):,})")
    return released(figure)


def released(figure: Figure) -> Figure:
    """The figure, no longer pyplot's: a notebook shows it where it is named, once."""
    plt.close(figure)
    return figure


def _column(axes: np.ndarray, planes: np.ndarray, label: str, cube: float, cmap: str, low: float, high: float) -> None:
    """Planes below each other in one colour range, its bar at the foot."""
    for ax, plane in zip(axes, planes, strict=True):
        image = ax.imshow(plane, extent=(-cube / 2, cube / 2) * 2, cmap=cmap, vmin=low, vmax=high)
    nice = float(f"{0.8 * high:.0e}")  # one digit: three ticks have room for their labels
    ticks = (-nice, 0, nice) if low == -high else MaxNLocator(2, steps=(1, 2, 5, 10))
    bar = ax.figure.colorbar(image, ax=axes[-1], location="bottom", label=label, aspect=14, pad=0.02, ticks=ticks)
    bar.outline.set_visible(False)


def _scale(ax: Axes, cube: float, across: str, up: str) -> None:
    """The plane's axes as arrows of 20 mm in a corner, where there is air."""
    start, arrow = -0.45 * cube, {"arrowstyle": "->", "color": "white", "shrinkA": 0, "shrinkB": 0}
    look = {"color": "white", "size": 7, "path_effects": [withStroke(linewidth=1.5, foreground="black")]}
    for x, y, name in ((start + 20, start, across), (start, start + 20, up)):
        ax.annotate("", (x, y), (start, start), arrowprops=arrow)
        ax.annotate(name, (x, y), (2, 2), textcoords="offset points", **look)
    ax.annotate("20 mm", (start, start), (3, 3), textcoords="offset points", **look)


class Decimals(LogFormatter):
    """Labels of a logarithmic axis as decimals: 0.05, not 5e-02."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""
