"""Pictures of phantoms with their probes and of the forward model's errors, noise and sensitivity."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from ..data import phantoms
from ..data.probe import Probe
from ..data.surface import Surface
from . import CHANNELS, STYLE, TEXT_WIDTH, released

SOURCE, DETECTOR = {"marker": "^", "color": "#d55e00"}, {"marker": "s", "color": "#0173b2"}
TUMOURS = ("#de8f05", "#029e73", "#cc78bc", "#ca9161", "#56b4e9")
LINES = ("-", "--", ":", "-.")
ERRORS = {"log_amplitude": "error of ln A", "phase": "error of the phase (deg)"}
PLANES = ("x", "y", "z")


def gallery(volumes: np.ndarray, points: np.ndarray) -> Figure:
    """Phantoms (P, 2, D, H, W), mm^-1, a row each: the three planes through a point (P, 3), mm, of both channels."""
    count, grid = len(volumes), volumes.shape[-1]
    voxel = ((points / phantoms.CUBE + 0.5) * grid).astype(int).clip(0, grid - 1)
    reach = (-phantoms.CUBE / 2, phantoms.CUBE / 2) * 2
    with plt.style.context(STYLE), plt.rc_context({"axes.grid": False}):
        figure, axes = plt.subplots(count, 6, squeeze=False, figsize=(TEXT_WIDTH, 0.98 * count + 0.65))
        for channel, label in enumerate(CHANNELS):
            block = axes[:, 3 * channel : 3 * channel + 3]
            top = volumes[:, channel].max()
            for p, axis in np.ndindex(count, 3):
                plane = np.take(volumes[p, channel], voxel[p, axis], axis).T  # the later letter upwards
                image = block[p, axis].imshow(plane, extent=reach, vmin=0, vmax=top)
                block[p, axis].set_title(f"${PLANES[axis]} = {round(points[p, axis])}$ mm", size=7, pad=2)
            bar = figure.colorbar(image, ax=block, location="bottom", aspect=35, pad=0.03, ticks=MaxNLocator(4))
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=7)
            bar.set_label(label, size=8)
        for (row, column), ax in np.ndenumerate(axes):
            across, up = (letter for letter in PLANES if letter != PLANES[column % 3])
            ax.set(xticks=(-20, 0, 20), yticks=(-20, 0, 20))
            ax.tick_params(labelsize=6, labelleft=column == 0, labelbottom=row == count - 1)
            ax.set_xlabel(f"{across} (mm)" if row == count - 1 else "", size=7, labelpad=1)
            ax.set_ylabel(f"{up} (mm)" if column == 0 else up, size=7, labelpad=1)
    return released(figure)


def scene(rows: np.ndarray, probe: Probe, source: int = 0) -> Figure:
    """One phantom `(6, 13)` in the frame of its probe, from two sides: surface, tumours, optodes, pairs.

    The pairs of one source are drawn; the tissue is transparent.
    """
    with plt.style.context(STYLE):
        figure = plt.figure(figsize=(TEXT_WIDTH, 3.2))
        views = {"from the side": (14, -62), "from above": (90, -90)}
        for i, (title, (elevation, azimuth)) in enumerate(views.items()):
            ax = stage(figure, (1, 2, i + 1), elevation, azimuth)
            anatomy(ax, rows)
            optodes(ax, probe, source)
            ax.set_title(title, y=0.97)
            ax.set_box_aspect((1, 1, 1), zoom=1.2 if i else 1.02)
            if i:
                ax.set(zticks=(), zlabel="")
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return released(figure)


def stage(figure: Figure, place: tuple[int, int, int], elevation: float, azimuth: float, reach: float = 30.0) -> Axes:
    """Axes in space, seen along parallel rays from these angles (degrees), +-`reach` mm wide, without walls."""
    ax = figure.add_subplot(*place, projection="3d", computed_zorder=False, proj_type="ortho")
    ax.view_init(elevation, azimuth)
    limits, places = (-reach, reach), ticks(2 * reach)
    ax.set(xlim=limits, ylim=limits, zlim=limits, xlabel="x (mm)", ylabel="y (mm)", zlabel="z (mm)")
    ax.set(xticks=places, yticks=places, zticks=places)
    ax.tick_params(pad=-2)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.pane.set_visible(False)
        axis.labelpad = -5
    ax.zaxis.labelpad = -9
    return ax


def ticks(cube: float) -> list[float]:
    """Round places along an axis of `cube` mm about 0."""
    return [t for t in MaxNLocator(4, steps=(1, 2, 5, 10)).tick_values(-cube / 2, cube / 2) if abs(t) <= cube / 2]


def anatomy(ax: Axes, rows: np.ndarray) -> None:
    """A phantom `(6, 13)`: the tissue's surface as wires, its tumours, clipped to the tissue, filled."""
    polar, azimuth = np.linspace(0, np.pi, 31), np.linspace(0, 2 * np.pi, 61)
    directions = np.stack(
        [np.outer(np.sin(polar), f(azimuth)) for f in (np.cos, np.sin)]
        + [np.outer(np.cos(polar), np.ones_like(azimuth))], -1,
    )  # fmt: skip
    tissue = Surface(rows[0])
    for k, row in enumerate(rows[np.isfinite(rows[:, phantoms.MUA])]):
        points = Surface(row).along(directions.reshape(-1, 3))
        wall = tissue.along(points)  # a tumour is clipped to the tissue
        points = np.where((points**2).sum(1, keepdims=True) > (wall**2).sum(1, keepdims=True), wall, points)
        x, y, z = points.T.reshape(3, *directions.shape[:2])
        if k == 0:
            ax.plot_wireframe(x, y, z, rstride=5, cstride=6, color="0.6", lw=0.35, zorder=1)
        else:
            ax.plot_surface(x, y, z, rstride=1, cstride=2, color=TUMOURS[k - 1], alpha=0.75, lw=0, zorder=2)


def optodes(ax: Axes, probe: Probe, source: int | None = None) -> None:
    """Sources as triangles, detectors as squares, and the pairs of one source, if it is given, as lines."""
    wired = probe.pairs[probe.pairs[:, 0] == source, 1] if source is not None else ()
    for i, detector in enumerate(wired):
        line = np.stack([probe.sources[source], probe.detectors[detector]])
        ax.plot(*line.T, color="0.25", lw=0.6, zorder=3, label="" if i else f"the {len(wired)} pairs of one source")
    parts = (("source", probe.sources, SOURCE), ("detector", probe.detectors, DETECTOR))
    for name, points, look in parts:
        ax.scatter(*points.T, s=11, depthshade=False, lw=0, zorder=4, label=f"{len(points)} {name}s", **look)
    if source is not None:
        ax.scatter(*probe.sources[source], s=30, marker="^", facecolor="white", edgecolor="k", lw=0.8, zorder=5)


def over_separation(errors: pd.DataFrame, by: str, width: float = 3.0) -> Figure:
    """Absolute errors over separation, a line for each value of the column `by`: median, band to the 95 % quantile."""
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 2, sharex=True)
        edges = np.arange(errors["separation"].min() // 1, errors["separation"].max() + width, width)
        bins = pd.cut(errors["separation"], edges, labels=(edges[:-1] + edges[1:]) / 2).astype(float)
        for ax, (column, label) in zip(axes, ERRORS.items(), strict=True):
            for i, (name, part) in enumerate(errors.groupby(by, sort=False)):
                size = part[column].abs().groupby(bins)
                middle, high = size.median(), size.quantile(0.95)
                (line,) = ax.plot(middle.index, middle, LINES[i], label=str(name))
                ax.fill_between(middle.index, middle, high, color=line.get_color(), alpha=0.15, lw=0)
            ax.set(xlabel="separation (mm)", ylabel=label, yscale="log")
            _plain(ax)
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return released(figure)


def over_grid(errors: pd.DataFrame, levels: pd.DataFrame) -> Figure:
    """Absolute differences from the finest grid over the voxel's width, median and 95 % quantile, log over log.

    `levels` has the columns of `errors` and a name: the noise that is drawn as horizontal lines, its median per name.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 2, sharex=True)
        for ax, (column, label) in zip(axes, ERRORS.items(), strict=True):
            size = errors[column].abs().groupby(phantoms.CUBE / errors["grid"])
            median, high = size.median(), size.quantile(0.95)
            ax.plot(median.index, median, "-o", color="C0", label="median")
            ax.plot(high.index, high, "--s", color="C0", mfc="w", label="95 % quantile")
            guide = median.iloc[0] * (median.index / median.index[0]) ** 2
            ax.plot(median.index, guide, color="0.5", lw=0.8, label="second order")
            for i, (name, part) in enumerate(levels.groupby("name", sort=False)):
                ax.axhline(
                    part[column].median(), ls=LINES[2 + i], lw=1.1, color=f"C{1 + 2 * i}", label=f"noise, {name}"
                )
            ax.set(xscale="log", yscale="log", xlabel="voxel (mm)", ylabel=label.replace("error", "difference"))
            ax.xaxis.set(major_locator=FixedLocator(list(median.index)), minor_locator=FixedLocator([]))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))
            _plain(ax)
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return released(figure)


def noise(study: pd.DataFrame, targets: Sequence[float]) -> Figure:
    """Standard deviation of ln A (%) and of the phase (deg) over amplitude: each pair as measured, and as stored.

    `targets` are the values asked for at the reference amplitude.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 2, sharex=True)
        names = {"log_amplitude": ("sd of ln A (%)", 100), "phase": ("sd of the phase (deg)", 1)}
        ordered = study.sort_values("brightness")
        for ax, (column, (label, scale)), target in zip(axes, names.items(), targets, strict=True):
            ax.plot(ordered["brightness"], scale * ordered[column], ".", ms=2, alpha=0.35, mew=0, rasterized=True,
                    label="over repeated recordings, one dot a pair")  # fmt: skip
            ax.plot(ordered["brightness"], scale * ordered["stored_" + column], color="C3", lw=1, label="as stored")
            ax.plot(1, target, "kx", ms=6, mew=1.4, label="target at the reference amplitude", zorder=5)
            ax.set(xscale="log", yscale="log", xlabel=r"amplitude $A / A_\mathrm{ref}$", ylabel=label)
            _plain(ax)
        handles, labels = ax.get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside upper center", ncols=3)
        legend.legend_handles[0].set(alpha=1, markersize=5)
    return released(figure)


def bananas(maps: np.ndarray, optodes: np.ndarray, radius: float) -> Figure:
    """Sensitivity (pair, 4, x, z) in one plane, each map over its own largest value; optodes (pair, 2, 3), mm."""
    titles = [f"{reading} by {p.split(' (')[0]}" for p in CHANNELS for reading in ("ln A", "phase")]
    reach = phantoms.CUBE / 2
    circle = np.linspace(0, 2 * np.pi, 200)
    with plt.style.context(STYLE), plt.rc_context({"axes.grid": False}):
        figure, axes = plt.subplots(len(maps), 4, sharex=True, sharey=True, figsize=(TEXT_WIDTH, 2.9))
        for (pair, kind), ax in np.ndenumerate(axes):
            top = np.abs(maps[pair, kind]).max()
            image = ax.imshow(maps[pair, kind].T / top, extent=(-reach, reach) * 2, cmap="RdBu_r",
                              norm=AsinhNorm(0.003, -1, 1))  # fmt: skip
            ax.plot(radius * np.sin(circle), radius * np.cos(circle), color="0.4", lw=0.6)
            for point, look in zip(optodes[pair], (SOURCE, DETECTOR), strict=True):
                ax.plot(point[0], point[2], ms=4, mec="k", mew=0.4, ls="", **look)
            ax.set(xlim=(-30, 30), ylim=(-8, 30), xticks=(-20, 0, 20), yticks=(0, 20))
            if pair == 0:
                ax.set_title(titles[kind], size=8.5)
            if pair == len(maps) - 1:
                ax.set_xlabel("x (mm)")
            if kind == 0:
                separation = np.linalg.norm(np.diff(optodes[pair], axis=0))
                ax.set_ylabel(f"{separation:.0f} mm apart\nz (mm)")
        bar = figure.colorbar(image, ax=axes, location="bottom", aspect=50, shrink=0.8, pad=0.03)
        bar.set_label("sensitivity / its largest value")
        bar.set_ticks((-1, -0.1, -0.01, 0, 0.01, 0.1, 1))
        bar.ax.minorticks_off()
        bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        bar.outline.set_visible(False)
    return released(figure)


def _plain(ax: Axes) -> None:
    """Decimals on a logarithmic ordinate, at its decades."""
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
