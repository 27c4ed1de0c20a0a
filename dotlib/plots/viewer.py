"""Pictures of the volume viewer: planes as PNG straight from arrays, their colour bar, and the scene in space."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps, get_data_path
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import proj3d
from PIL import Image, ImageDraw, ImageFont

from ..data.probe import Probe
from . import STYLE, TEXT_WIDTH, light
from .reconstruction import PLANES

SIDE, LEFT, TOP, RIGHT, BOTTOM = 256, 46, 24, 10, 40  # px: a plane, and what surrounds it
SIZE = (LEFT + SIDE + RIGHT, TOP + SIDE + BOTTOM)
DOTS = 115  # px to the inch, of what is not a plane
DASH, GAP = 4, 6  # px: of the crosshair; its least distance from its middle, where the voxel is seen
NO_VALUE = "0.6"  # the grey of NaN


@dataclass(frozen=True)
class Layer:
    """A volume (C, D, H, W) as it is shown: label and range of its colours for each channel."""

    volume: np.ndarray
    labels: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    colours: str = "viridis"

    def colour(self, values: np.ndarray, channel: int) -> np.ndarray:
        """Values of one channel as bytes (..., 3): red, green, blue."""
        palette = colormaps[self.colours].with_extremes(bad=NO_VALUE)
        return palette(Normalize(*self.ranges[channel])(values), bytes=True)[..., :3]


def centres(n: int, cube: float) -> np.ndarray:
    """The centres (n,) of the voxels along an axis of `cube` mm about 0."""
    return (np.arange(n) + 0.5) * cube / n - cube / 2


def plane(layer: Layer, channel: int, voxel: Sequence[int], normal: int, cube: float) -> bytes:
    """The plane through a voxel along axis `normal` (0, 1, 2) as PNG, the later letter upwards, with a crosshair."""
    shape, (across, up, _) = layer.volume.shape[1:], PLANES[normal]
    values = np.take(layer.volume[channel], voxel[normal], normal)
    small = Image.fromarray(layer.colour(values.T[::-1], channel))
    pixels = np.array(small.resize((SIDE, SIDE), Image.Resampling.NEAREST))
    rows, columns = values.shape[1], values.shape[0]
    column = int((voxel["xyz".index(across)] + 0.5) * SIDE / columns)
    row = SIDE - 1 - int((voxel["xyz".index(up)] + 0.5) * SIDE / rows)
    along = np.arange(SIDE)
    dashes = (255 * (along // DASH % 2)).astype(np.uint8)[:, None]  # black and white: seen on every colour
    for line, middle, voxels in ((pixels[:, column], row, rows), (pixels[row], column, columns)):
        apart = np.abs(along - middle) > max(GAP, SIDE / voxels / 2 + 1)
        line[apart] = dashes[apart]
    canvas = _frame(across, up, cube).copy()
    canvas.paste(Image.fromarray(pixels), (LEFT, TOP))
    title = f"{'xyz'[normal]} = {centres(shape[normal], cube)[voxel[normal]]:.4g} mm"
    ImageDraw.Draw(canvas).text((LEFT + SIDE / 2, TOP - 4), title, "black", _font(), "mb")
    return _png(canvas)


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "STIXGeneral.ttf"), 14)


@cache
def _frame(across: str, up: str, cube: float) -> Image.Image:
    """What surrounds a plane: its ticks and the names of its axes."""
    canvas = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((LEFT - 1, TOP - 1, LEFT + SIDE, TOP + SIDE), outline="black")
    for tick in light.ticks(cube):
        x, y = LEFT + (tick / cube + 0.5) * SIDE, TOP + (0.5 - tick / cube) * SIDE
        draw.line((x, TOP + SIDE, x, TOP + SIDE + 4), "black")
        draw.line((LEFT - 5, y, LEFT - 1, y), "black")
        draw.text((x, TOP + SIDE + 5), f"{tick:g}", "black", _font(), "mt")
        draw.text((LEFT - 7, y), f"{tick:g}", "black", _font(), "rm")
    draw.text((LEFT + SIDE / 2, SIZE[1] - 3), f"{across} (mm)", "black", _font(), "mb")
    name = Image.new("RGB", (SIDE, 18), "white")
    ImageDraw.Draw(name).text((SIDE / 2, 9), f"{up} (mm)", "black", _font(), "mm")
    canvas.paste(name.rotate(90, expand=True), (2, TOP))
    return canvas


@lru_cache(64)
def bar(label: str, limits: tuple[float, float], colours: str) -> bytes:
    """A colour bar as PNG, as high as a plane."""
    with plt.style.context(STYLE):
        figure = Figure((0.85, SIZE[1] / DOTS), dpi=DOTS, layout="none")
        ax = figure.add_axes((0.02, BOTTOM / SIZE[1], 0.2, SIDE / SIZE[1]))
        figure.colorbar(ScalarMappable(Normalize(*limits), colours), ax, label=label, ticks=MaxNLocator(5))
        return _png(_drawn(figure))


def still(layers: Mapping[str, Layer], channel: int, voxel: Sequence[int], cube: float) -> Figure:
    """The three planes through a voxel, marked by a cross, a row for each layer of one kind."""
    left, side, gap, foot, height = 0.85, 1.2, 0.3, 0.45, 1.3 * len(layers) + 0.7  # inches, as the layout takes long
    places, first = light.ticks(cube), next(iter(layers.values()))
    with plt.style.context(STYLE), plt.rc_context({"axes.grid": False}):
        figure = Figure((TEXT_WIDTH, height), dpi=DOTS, layout="none")
        for (row, (name, layer)), (across, up, normal) in product(enumerate(reversed(layers.items())), PLANES):
            place = [centres(n, cube)[i] for n, i in zip(layer.volume.shape[1:], voxel, strict=True)]
            corner = ((left + normal * (side + gap)) / TEXT_WIDTH, (foot + row * 1.3) / height)
            ax = figure.add_axes((*corner, side / TEXT_WIDTH, side / height))
            values = np.take(layer.volume[channel], voxel[normal], normal).T
            ax.imshow(layer.colour(values, channel), extent=(-cube / 2, cube / 2) * 2)
            ax.plot(place["xyz".index(across)], place["xyz".index(up)], "+", color="white", markersize=5)
            ax.set(
                xticks=() if row else places, yticks=() if normal else places, xlabel="" if row else f"{across} (mm)"
            )
            ax.set_ylabel(f"{up} (mm)" if normal else f"{textwrap.fill(name, 18)}\n{up} (mm)", labelpad=1)
            if row == len(layers) - 1:
                ax.set_title(f"{'xyz'[normal]} = {place[normal]:.4g} mm")
        corner = ((left + 3 * side + 2 * gap + 0.08) / TEXT_WIDTH, foot / height)
        ax = figure.add_axes((*corner, 0.08 / TEXT_WIDTH, (height - 0.7 - 0.1) / height))
        colours = ScalarMappable(Normalize(*first.ranges[channel]), first.colours)
        figure.colorbar(colours, ax, label=first.labels[channel])
    return figure


def scene(
    rows: np.ndarray | None, probe: Probe | None, peaks: np.ndarray, angles: tuple[float, float], cube: float
) -> tuple[Image.Image, Callable[[Sequence[float]], tuple[float, float]]]:
    """Tissue and tumours of `rows` (6, 13), or else the points `peaks` (N, 3), mm, and the optodes, in space.

    `angles`: elevation and azimuth in degrees. Returned with it: where in the picture, px, a point in mm lies.
    """
    with plt.style.context(STYLE):
        figure = Figure((4.8, 3.8), dpi=DOTS)
        ax = light.stage(figure, (1, 1, 1), *angles, reach=cube / 2)
        ax.set_box_aspect((1, 1, 1), zoom=1.2)
        if rows is not None:
            light.anatomy(ax, rows)
        elif len(peaks):
            ax.scatter(*peaks.T, s=9, lw=0, alpha=0.5, color=light.TUMOURS[0], label=r"the highest $\mu_a$")
        if probe is not None:
            light.optodes(ax, probe)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        picture = _drawn(figure)

    def place(point: Sequence[float]) -> tuple[float, float]:
        across, up, _ = proj3d.proj_transform(*point, ax.get_proj())
        x, y = ax.transData.transform((across, up))
        return x, picture.height - y

    return picture, place


def marked(picture: Image.Image, x: float, y: float) -> bytes:
    """The picture as PNG with a cross at a pixel."""
    canvas = picture.copy()
    draw = ImageDraw.Draw(canvas)
    for width, reach, colour in ((6, 10, "white"), (2, 8, "black")):
        draw.line((x - reach, y, x + reach, y), colour, width)
        draw.line((x, y - reach, x, y + reach), colour, width)
    return _png(canvas)


def peaks(volume: np.ndarray, cube: float) -> np.ndarray:
    """Where a volume (D, H, W) exceeds halfway from its positive values' median to its maximum: the outermost voxels'
    centres (N, 3), mm."""
    positive = volume[volume > 0]
    if not positive.size:
        return np.zeros((0, 3))
    high = np.pad(volume > (np.median(positive) + positive.max()) / 2, 1)
    core = high.copy()
    for axis in range(3):
        core &= np.roll(high, 1, axis) & np.roll(high, -1, axis)
    index = np.argwhere((high & ~core)[1:-1, 1:-1, 1:-1])
    return (index + 0.5) * cube / volume.shape - cube / 2


def _drawn(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png", compress_level=1)
    return file.getvalue()
