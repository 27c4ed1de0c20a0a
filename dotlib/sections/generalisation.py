"""Networks trained on one family of phantoms and judged on all: errors, ratios to home, ratios to the specialist."""

import numpy as np
import pandas as pd

from .. import improvements
from ..judged_sets import NAMES
from ..stats import Interval
from .measured import failures, over_seeds, per_seed, ratio, text

TRAINED = {"default": "stage1-onecycle"} | {name.removeprefix("trained-"): name for name in improvements.FAMILIES}
ERROR = ("nrmse", "mua")
# what a ratio is to, and what is said of it, negative results first
WORDS = {
    "ratio": ("above home", "not resolved", "below home"),
    "specialist": ("above those trained there", "not resolved", "below those trained there"),
}


def matrix(judged) -> pd.DataFrame:
    """A row for each family trained on and set tested on, in the sets' order.

    Columns: trained on, tested on, home, seeds, failed; nrmse of mua with low, high (mean over seeds, Student's
    interval); ratio to the same runs at home, with ratio low, ratio high; specialist, with specialist low, specialist
    high: ratio to the runs, paired by seed, that were trained on the family tested on, where there are such runs: it
    does not depend on how hard a family is. Intervals are of new runs on these phantoms.
    """
    sets = [name for name in NAMES if name in set(judged.table["set"])]
    errors = {(family, name): per_seed(judged, arm, name, ERROR) for family, arm in TRAINED.items() for name in sets}
    rows = []
    for (family, name), values in errors.items():
        found, home = over_seeds(values), _ratio(values, errors.get((family, family)))
        special = _ratio(values, errors.get((name, name)))
        row = {"trained on": family, "tested on": name, "home": name == family, "seeds": found.n}
        row |= {"failed": failures(judged, TRAINED[family]), "nrmse": found.estimate, "low": found.low}
        row |= {"high": found.high, "ratio": home.estimate, "ratio low": home.low, "ratio high": home.high}
        row |= {"specialist": special.estimate, "specialist low": special.low, "specialist high": special.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _ratio(values: pd.Series, reference: pd.Series | None) -> Interval:
    return Interval() if reference is None or values.empty or reference.empty else ratio(values, reference)


def matrix_table(matrix: pd.DataFrame) -> pd.DataFrame:
    """The matrix as it is read: a row a set, a column a training family: error, x ratio to home."""
    cells = matrix.assign(cell=[_cell(row) for row in matrix.to_dict("records")])
    wide = cells.pivot(index="tested on", columns="trained on", values="cell")
    order = list(matrix["trained on"].unique()), list(matrix["tested on"].unique())
    wide = wide.loc[order[1], order[0]].rename(columns=lambda family: f"trained on {family}")
    return wide.rename_axis(columns=None).reset_index()


def _cell(row: dict) -> str:
    error = f"{row['nrmse']:.3g}" if np.isfinite(row["nrmse"]) else "--"
    if row["home"] or not np.isfinite(row["ratio"]):
        return error + " (home)" * row["home"]
    return f"{error}, x {text(Interval(row['ratio'], row['ratio low'], row['ratio high'], row['seeds']))}"


def matrix_answer(matrix: pd.DataFrame) -> str:
    """What the matrix says, in Markdown: a line a training family, the one that loses most first."""
    lines = []
    for family, rows in matrix[~matrix["home"]].groupby("trained on", sort=False):
        if rows["ratio"].isna().all():
            lines.append((np.inf, f"* **Trained on {family}: not computed.**"))
            continue
        failed = f" ({rows['failed'].max()} runs failed)" if rows["failed"].max() else ""
        said = " ".join(f"{line[0].upper()}{line[1:]}." for to in WORDS if (line := _said(rows, to)))
        lines.append((-rows["ratio"].max(), f"* **Trained on {family}**{failed}. {said}"))
    return "\n".join(line for _, line in sorted(lines, key=lambda pair: pair[0]))


def _said(rows: pd.DataFrame, to: str) -> str:
    """'above home on a (x 1.5), b (x 1.2); not resolved on c (x 1.1)': sets by what their ratio's interval says."""
    known = rows.dropna(subset=[to]).sort_values(to, ascending=False)
    found = np.select([known[f"{to} low"] > 1, known[f"{to} high"] < 1], WORDS[to][::2], WORDS[to][1])
    parts = []
    for word in WORDS[to]:
        names = [f"{row['tested on']} (x {row[to]:.2f})" for row in known[found == word].to_dict("records")]
        parts += [f"{word} on {', '.join(names)}"] * bool(names)
    return "; ".join(parts)
