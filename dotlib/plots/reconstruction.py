"""Pictures of reconstructions."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ..data.phantoms import CUBE
from . import CHANNELS, STYLE, TEXT_WIDTH, released

PLANES = (("y", "z", 0), ("x", "z", 1), ("x", "y", 2))  # across, up, normal


def planes(mean: np.ndarray, sd: np.ndarray | None = None) -> Figure:
    """Three planes through the largest mua of one reconstruction (2, G, G, G), mm^-1, in the frame of its probe.

    A row for each channel, and, where there are several networks, for the `sd` (2, G, G, G) over them; the probe's
    patch lies on +z. The cross marks where mua is largest.
    """
    top = np.unravel_index(mean[0].argmax(), mean[0].shape)
    place = [(i + 0.5) * CUBE / len(mean[0]) - CUBE / 2 for i in top]
    rows = [(volume, label) for volume, label in zip(mean, CHANNELS, strict=True)]
    if sd is not None:
        rows += [(volume, f"sd of {label}") for volume, label in zip(sd, CHANNELS, strict=True)]
    with plt.style.context(STYLE), plt.rc_context({"axes.grid": False}):
        size = (TEXT_WIDTH, 1.45 * len(rows) + 0.5)
        figure, axes = plt.subplots(len(rows), 3, squeeze=False, layout="compressed", figsize=size)
        for row, (line, (volume, label)) in enumerate(zip(axes, rows, strict=True)):
            for ax, (across, up, normal) in zip(line, PLANES, strict=True):
                image = ax.imshow(
                    np.take(volume, top[normal], normal).T, origin="lower", cmap="viridis", vmin=0, vmax=volume.max(),
                    extent=(-CUBE / 2, CUBE / 2) * 2,
                )  # fmt: skip
                ax.plot(place["xyz".index(across)], place["xyz".index(up)], "+", color="white", markersize=5)
                ax.set(xticks=(-20, 0, 20), yticks=(-20, 0, 20), ylabel=f"{up} (mm)")
                if row == len(rows) - 1:
                    ax.set_xlabel(f"{across} (mm)")
                if row == 0:
                    ax.set_title(f"{'xyz'[normal]} = {place[normal]:.0f} mm")
            figure.colorbar(image, ax=line, label=label, shrink=0.85)
    return released(figure)
