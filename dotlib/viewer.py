"""A viewer of volumes for notebooks: three linked planes, and the scene in space, of widgets; elsewhere a picture."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from .data import phantoms
from .data.probe import Probe
from .plots import CHANNELS
from .plots.viewer import SIZE, Layer, bar, centres, marked, peaks, plane, scene, still

NAMES = ("mua", "musp")
ERRORS = "RdBu_r"  # colours of errors


def view(
    truth: np.ndarray | None = None,
    predictions: Mapping[str, np.ndarray] | None = None,
    *,
    attention: Mapping[str, np.ndarray] | None = None,
    uncertainty: Mapping[str, np.ndarray] | None = None,
    phantom: np.ndarray | None = None,
    probe: Probe | None = None,
    cube: float = phantoms.CUBE,
) -> Viewer:
    """A viewer of one phantom's volumes, opened at its largest tumour, or where the first volume is largest.

    `truth`, each of `predictions` and of `uncertainty` (sd) are (2, D, H, W) in mm^-1, each of `attention` (D, H, W);
    their keys are names of arms. `phantom` (6, 13) and `probe` are drawn in space; `cube` is the volumes' width in mm.
    Any may be missing, but not all volumes; NaN is shown in grey. Raises ValueError for another type, shape or width.
    """
    named = {"predictions": predictions, "attention": attention, "uncertainty": uncertainty}
    for name, volumes in named.items():
        if volumes is not None and not isinstance(volumes, Mapping):
            raise ValueError(f"view: {name} is of type {type(volumes).__name__}; a mapping name -> volume is accepted")
    groups = {"truth": {} if truth is None else {"truth": truth}} | {k: dict(v or {}) for k, v in named.items()}
    shape: tuple[int, ...] = ()
    for group, volumes in groups.items():
        for arm, volume in volumes.items():
            name = group if group == "truth" else f"{group}[{arm!r}]"
            volumes[arm] = _checked(name, volume, () if group == "attention" else (2,), shape)
            shape = volumes[arm].shape[1:]
    if not shape:
        raise ValueError("view: no volume; at least one of truth, predictions, attention, uncertainty is accepted")
    if not (isinstance(cube, Real) and 0 < cube < np.inf):
        raise ValueError(f"view: cube is {cube!r}; a width in mm is accepted")
    if probe is not None and not isinstance(probe, Probe):
        raise ValueError(f"view: probe is of type {type(probe).__name__}; a Probe is accepted")
    if phantom is not None:
        phantom = np.asarray(phantom, dtype=float)
        if phantom.shape != (phantoms.ROWS, phantoms.COLUMNS) or not np.isfinite(phantom[0]).all():
            raise ValueError(f"view: phantom has shape {phantom.shape}; (6, 13) with a finite first row is accepted")
    layers = _layers(**groups)
    return Viewer(layers, _opening(layers, phantom, cube), phantom, probe, float(cube))


def _checked(name: str, given: Any, channels: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """A volume as (C, D, H, W) in double precision."""
    volume, lead = np.asarray(given), len(channels)
    if volume.dtype.kind not in "biuf":
        raise ValueError(f"view: {name} holds {volume.dtype}; numbers are accepted")
    if volume.ndim != lead + 3 or volume.shape[:lead] != channels or (shape and volume.shape[lead:] != shape):
        accepted = ", ".join(map(str, (*channels, *(shape or "DHW"))))
        raise ValueError(f"view: {name} has shape {volume.shape}; ({accepted}) is accepted")
    volume = volume.astype(float).reshape(-1, *volume.shape[lead:])
    if np.isinf(volume).any() or not np.isfinite(volume).any((1, 2, 3)).all():
        raise ValueError(f"view: {name} is infinite, or not a number throughout a channel; NaN in places is accepted")
    return volume


def _layers(truth: Mapping, predictions: Mapping, attention: Mapping, uncertainty: Mapping) -> dict[str, Layer]:
    """All that can be shown, by its name; layers of one kind share their ranges, attention maps do not."""
    values = {**truth, **{f"prediction of {arm}": volume for arm, volume in predictions.items()}}
    errors = {f"error of {arm}": volume - true for true in truth.values() for arm, volume in predictions.items()}
    layers = _alike(values, CHANNELS) | _alike(errors, tuple(f"error of {label}" for label in CHANNELS), ERRORS)
    for arm, volume in attention.items():
        layers |= _alike({f"attention of {arm}": volume}, ("attention",))
    sds = {f"sd of {arm}": volume for arm, volume in uncertainty.items()}
    return layers | _alike(sds, tuple(f"sd of {label}" for label in CHANNELS), least=0.0)


def _alike(
    volumes: Mapping[str, np.ndarray], labels: tuple[str, ...], colours: str = "viridis", least: float = np.inf
) -> dict[str, Layer]:
    """Layers with one range per channel: of what is finite, down to `least` at least; about zero for errors."""
    ranges = []
    for channel in range(len(labels)):
        finite = [volume[channel][np.isfinite(volume[channel])] for volume in volumes.values()]
        low = min([least, *(values.min(initial=np.inf) for values in finite)])
        high = max([-np.inf, *(values.max(initial=-np.inf) for values in finite)])
        if colours == ERRORS:
            high = max(-low, high, 0.0)
            low = -high
        ranges.append((float(low), float(high)) if low < high else (low - 0.5, low + 0.5))
    return {name: Layer(volume, labels, tuple(ranges), colours) for name, volume in volumes.items()}


def _opening(layers: Mapping[str, Layer], phantom: np.ndarray | None, cube: float) -> tuple[int, ...]:
    """The voxel at the largest tumour's centre; without tumours, where the first volume is largest."""
    first = next(iter(layers.values())).volume[0]
    size = np.full(1, np.nan) if phantom is None else phantom[1:, phantoms.AXES].prod(1)
    if np.isnan(size).all():
        return tuple(int(i) for i in np.unravel_index(np.nanargmax(first), first.shape))
    shares = phantom[1 + np.nanargmax(size), phantoms.CENTRE] / cube + 0.5
    return tuple(int(np.clip(share * n, 0, n - 1)) for share, n in zip(shares, first.shape, strict=True))


class Viewer:
    """Volumes of one phantom in three planes and in space; `view` makes it, a notebook shows it where it is named.

    Its controls are widgets, whose `value` may be set, too: `show` (a name in `layers`), `channel` (0 mua, 1 musp),
    `sliders` (voxels along x, y, z), `elevation` and `azimuth` (degrees); `box` holds all.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        voxel: Sequence[int],
        phantom: np.ndarray | None,
        probe: Probe | None,
        cube: float,
    ):
        self.layers, self.start, self.phantom, self.probe, self.cube = dict(layers), tuple(voxel), phantom, probe, cube
        first = next(iter(self.layers.values()))
        self.axes = [centres(n, cube) for n in first.volume.shape[1:]]
        self._peaks = peaks(first.volume[0], cube) if phantom is None and first.labels == CHANNELS else np.zeros((0, 3))
        self._scene = None
        self.show = widgets.Dropdown(options=list(self.layers), description="show")
        self.channel = widgets.ToggleButtons(options=[(name, i) for i, name in enumerate(NAMES)])
        self.channel.style.button_width = "60px"
        self.sliders = [
            widgets.SelectionSlider(
                options=[(f"{c:.4g}", i) for i, c in enumerate(axis)], value=i, description=f"{letter} (mm)"
            )
            for letter, axis, i in zip("xyz", self.axes, self.start, strict=True)
        ]
        fixed = {"width": f"{SIZE[0]}px", "height": f"{SIZE[1]}px", "flex": "0 0 auto"}
        self.planes = [widgets.Image(format="png", layout=fixed) for _ in range(3)]
        self.bar, self.space = (widgets.Image(format="png", layout={"flex": "0 0 auto"}) for _ in range(2))
        # an Image has no alternative text, and with a tooltip JupyterLab shows an error in its place
        self.label, self.readout = widgets.Label(), widgets.HTML()
        look = {"continuous_update": False, "step": 5, "style": {"description_width": "110px"}}
        self.elevation = widgets.IntSlider(15, -90, 90, description="elevation (deg)", **look)
        self.azimuth = widgets.IntSlider(-60, -180, 180, description="azimuth (deg)", **look)
        words = widgets.Label("tissue, tumours, sources, detectors and the crosshair, as far as they are known")
        turned = widgets.VBox([_line(self.elevation, self.azimuth), words, _line(self.space)])
        self.fold = widgets.Accordion([turned], titles=("in space",), selected_index=None)
        controls, planes = [_line(self.show, self.channel), _line(*self.sliders)], _line(*self.planes, self.bar)
        self.box = widgets.VBox([*controls, self.label, planes, self.readout, self.fold])
        for control in (self.show, self.channel):
            control.observe(self._choose, "value")
        for slider in self.sliders:
            slider.observe(self._move, "value")
        for control, name in ((self.elevation, "value"), (self.azimuth, "value"), (self.fold, "selected_index")):
            control.observe(self._turn, name)
        self._choose()

    @property
    def voxel(self) -> tuple[int, ...]:
        """The voxel under the crosshair."""
        return tuple(slider.value for slider in self.sliders)

    @property
    def point(self) -> tuple[float, ...]:
        """The centre of that voxel, mm."""
        return tuple(float(axis[i]) for axis, i in zip(self.axes, self.voxel, strict=True))

    def values(self) -> dict[str, tuple[float, ...]]:
        """Every layer's values in that voxel: mua and musp in mm^-1, or one of attention."""
        return {name: tuple(layer.volume[:, *self.voxel].tolist()) for name, layer in self.layers.items()}

    def figure(self) -> Figure:
        """The picture that stands for the viewer where there are no widgets: the planes through its first voxel.

        A row for the truth and for each prediction, of mua; without them, of the first layer.
        """
        shown = {name: layer for name, layer in self.layers.items() if layer.labels == CHANNELS}
        return still(shown or dict([next(iter(self.layers.items()))]), 0, self.start, self.cube)

    def __repr__(self) -> str:
        return f"Viewer of {', '.join(self.layers)}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        file = io.BytesIO()
        self.figure().savefig(file, format="png", dpi="figure")
        picture = base64.b64encode(file.getvalue()).decode()
        place = ", ".join(
            f"{letter} = {axis[i]:.4g}" for letter, axis, i in zip("xyz", self.axes, self.start, strict=True)
        )
        words = f"Three planes through {place} mm of the volumes that the viewer shows: {', '.join(self.layers)}."
        bundle = self.box._repr_mimebundle_() | {"text/plain": repr(self), "image/png": picture}
        return bundle, {"image/png": {"alt": words}}

    def _choose(self, _: Any = None) -> None:
        """Another layer or channel: its colour bar and its planes."""
        layer = self.layers[self.show.value]
        self.channel.disabled = len(layer.volume) == 1
        self._channel = 0 if self.channel.disabled else self.channel.value
        self.bar.value = bar(layer.labels[self._channel], layer.ranges[self._channel], layer.colours)
        what = self.show.value if self.channel.disabled else f"{self.show.value}, {NAMES[self._channel]} in mm^-1"
        self.label.value = f"{what}: the planes normal to x, y and z through the crosshair, and their colours"
        self._move()

    def _move(self, _: Any = None) -> None:
        """Another voxel: the planes through it, its values, and its mark in space."""
        for normal, image in enumerate(self.planes):
            image.value = plane(self.layers[self.show.value], self._channel, self.voxel, normal, self.cube)
        self.readout.value = _table(self.values(), self.point)
        self._mark()

    def _turn(self, _: Any = None) -> None:
        """Another view in space: drawn while it is open."""
        self._scene, angles = None, (self.elevation.value, self.azimuth.value)
        if self.fold.selected_index is not None:
            self._scene = scene(self.phantom, self.probe, self._peaks, angles, self.cube)
            self._mark()

    def _mark(self) -> None:
        if self._scene:
            picture, place = self._scene
            self.space.value = marked(picture, *place(self.point))


def _line(*children: widgets.Widget) -> widgets.HBox:
    return widgets.HBox(children, layout={"flex_flow": "row wrap"})


def _table(values: Mapping[str, Sequence[float]], point: Sequence[float]) -> str:
    """The readout as HTML: a row for each layer."""
    place = ", ".join(f"{letter} = {c:.4g}" for letter, c in zip("xyz", point, strict=True))
    look = 'style="padding: 0 1em; text-align: right"'
    head = "".join(f"<th {look}>{name} (mm<sup>-1</sup>)</th>" for name in NAMES)
    rows = [f'<tr><th style="text-align: left">at {place} mm</th>{head}</tr>']
    for name, numbers in values.items():
        unit = "" if len(numbers) == 2 else " (no unit)"
        cells = "".join(f"<td {look}>{number:.4g}</td>" for number in numbers)
        rows.append(f"<tr><td>{html.escape(name)}{unit}</td>{cells}</tr>")
    return f'<table style="line-height: 1.4">{"".join(rows)}</table>'
