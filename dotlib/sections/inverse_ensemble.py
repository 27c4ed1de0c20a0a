"""Section 4.6: is the spread of a deep ensemble the size of its error? And what a reconstruction takes."""

import numpy as np
import pandas as pd

from ..reconstruction_judgement import FITTED, METHODS
from ..reconstruction_scores import BINS


def calibration(record) -> pd.DataFrame:
    """The ensemble's sd against its error, by part and channel, as it is and scaled by what validation asks for.

    Columns part, channel, scaled by, sd and rmse (root mean square, mm^-1), error / sd, beyond 1.96 sd (share of the
    voxels), most certain tenth over least (of their errors).
    """
    rows, order = [], ["part", "channel", "scaled"]
    columns = [*order[:2], "scaled by", "sd", "rmse", "error / sd", "beyond 1.96 sd", "most certain tenth over least"]
    for (part, channel, scaled), bins in record.calibration.groupby(order, sort=False):
        weight = bins["n"] / bins["n"].sum()
        sd, rmse = (float(np.sqrt((weight * bins[name] ** 2).sum())) for name in ("sd", "rmse"))
        ends = bins.set_index("bin")["rmse"]
        row = {"part": part, "channel": channel, "scaled by": bins["scale"].iloc[0] if scaled else 1.0}
        row |= {"sd": sd, "rmse": rmse, "error / sd": rmse / sd}
        row["beyond 1.96 sd"] = float((weight * bins["beyond"]).sum())
        rows.append(row | {"most certain tenth over least": ends[0] / ends[BINS - 1]})
    return pd.DataFrame(rows, columns=columns)


def answer(found: pd.DataFrame) -> str:
    """What calibration says of mua, in Markdown."""
    lines = []
    for row in found[found["channel"] == "mua"].to_dict("records"):
        how = "as it is" if row["scaled by"] == 1 else f"scaled by {row['scaled by']:.2f}"
        share, ratio = row["beyond 1.96 sd"], row["error / sd"]
        lines.append(f"* {row['part']}, {how}: the error is {ratio:.2f} times the sd; {share:.0%} beyond 1.96 sd.")
    return "\n".join(lines) or "* Not computed: fewer than two seeds."


def times(record) -> pd.DataFrame:
    """Seconds a reconstruction by method: every one with the fit that it starts from, the network's with its lift."""
    taken = record.times.set_index("step")["seconds"]
    n, threads = (int(record.times[name].iloc[0]) for name in ("n", "threads"))
    rows = [{"method": FITTED, "seconds": taken["fit"]}]
    rows += [{"method": name, "seconds": taken["fit"] + taken[m]} for m, name in METHODS.items() if m in taken]
    if "network" in taken:
        rows.append({"method": "network", "seconds": taken["fit"] + taken["lift"] + taken["network"]})
    return pd.DataFrame(rows).assign(phantoms=n, threads=threads)
