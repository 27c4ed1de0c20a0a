"""Pictures of what tuning tried: errors along each setting, and how much each setting tells good points from others."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from . import STYLE, TEXT_WIDTH, released
from .optimisers import BAD, _decimal_log

NAMES = {"lr": "learning rate", "weight_decay": "weight decay", "warmup": "warm-up share"}
MARKERS, ASIDE = ("o", "s", "^", "D"), 1.03
SHARES = (0.05, 0.1, 0.2, 0.4)


def slices(table: pd.DataFrame, label: str) -> Figure:
    """The error over each setting, a panel each: a marker a trial, by optimiser; crosses at the top: failed.

    `table` has the columns optimiser, setting, value, ratio, failed. Lines join the medians over candidates at each
    value; of weight decay, which has two ranges, of each.
    """
    kinds = list(table["optimiser"].unique())
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(NAMES), sharey=True, figsize=(TEXT_WIDTH, 2.8))
        for ax, (setting, name) in zip(axes, NAMES.items(), strict=True):
            rows = table[table["setting"] == setting]
            good, bad = rows[rows["failed"] == ""], rows[rows["failed"] != ""]
            for i, kind in enumerate(kinds):
                of = good[good["optimiser"] == kind]
                x = of["value"] * ASIDE ** (2 * i - len(kinds) + 1)  # beside each other
                ax.plot(x, of["ratio"], MARKERS[i % 4], color=f"C{i}", ms=3, mew=0, alpha=0.7, label=kind)
            ax.plot(bad["value"], np.full(len(bad), 0.95), "x", color=BAD, ms=5, transform=ax.get_xaxis_transform())
            in_gradient = good["optimiser"] == "adam"
            for part in (good[in_gradient], good[~in_gradient]) if setting == "weight_decay" else (good,):
                medians = part.groupby("value")["ratio"].median()
                ax.plot(medians.index, medians, "-", color="0.2", lw=1.2, zorder=3)
            ax.set(xscale="log", xlabel=name)
        axes[-1].set_xticks(SHARES, map(str, SHARES))
        axes[-1].xaxis.set_minor_locator(NullLocator())
        _decimal_log(axes[0], [1.0, *table.loc[table["failed"] == "", "ratio"]])
        axes[0].set_ylabel(label)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(kinds))
    return released(figure)


def importance(table: pd.DataFrame) -> Figure:
    """The importance of each setting, a panel each, a row a candidate; grey: the middle 90 % by chance.

    `table` has the columns candidate, n, setting, importance, low, high, used; hollow: a setting that does nothing.
    """
    order = list(table["candidate"].unique())
    counts = table.groupby("candidate")["n"].first()
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(NAMES), sharey=True, figsize=(TEXT_WIDTH, 0.2 * len(order) + 0.8))
        for ax, (setting, name) in zip(axes, NAMES.items(), strict=True):
            rows = table[table["setting"] == setting].set_index("candidate").loc[order]
            y = -np.arange(len(order))
            ax.barh(y, rows["high"] - rows["low"], left=rows["low"], height=0.75, color="0.87", zorder=0)
            for used, face in ((True, "C0"), (False, "white")):
                chosen = (rows["used"] == used).to_numpy()
                ax.plot(rows["importance"][chosen], y[chosen], "o", color="C0", mfc=face, ms=4.5, zorder=3)
            ax.set(title=name, xlim=(-0.03, 1.03), xticks=(0, 0.5, 1), ylim=(y.min() - 0.6, 0.6))
        axes[0].set_yticks(y, [f"{candidate}, n = {counts[candidate]}" for candidate in order])
        axes[1].set_xlabel("share of the importance")
    return released(figure)
