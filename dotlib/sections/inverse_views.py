"""Section 4.6: the same networks on light that was measured otherwise, and on other phantoms."""

import numpy as np
import pandas as pd

from ..reconstruction_judgement import FITTED, LIFTED
from ..reconstruction_sets import COUNTS, COVERAGES, FAMILIES, FRESH, NOISES, PATTERNS, PROBES, TUMOUR_FREE
from ..reconstructions import EVERYWHERE, NETWORK
from ..reconstructions import PATTERNS as TRAINED
from ..stats import Interval
from .inverse import asking, methods, per_seed
from .measured import over_seeds, ratio, text

GROUPS = {
    "pattern": PATTERNS, "pairs": tuple(f"{n} pairs" for n in COUNTS), "noise": tuple(NOISES),
    "probe": tuple(PROBES), "family": FAMILIES,
}  # fmt: skip
GOLD = "readings at "  # of the set whose readings are finer than those of training
OWN = {"random": NETWORK} | {arm.removeprefix("reconstruct-"): arm for arm in TRAINED}
LOSS, GOLD_LOSS = 15, 10  # per cent, at most: on patterns that were not trained on, on finer readings
VIEWS = ["group", "set", "method", "seeds", "nrmse", "low", "high", "ratio", "ratio low", "ratio high"]


def _shown(record) -> list[str]:
    return [arm for arm in methods(record, FRESH) if arm in (FITTED, LIFTED, *EVERYWHERE)]


def _readings(record) -> tuple[str, ...]:
    return tuple(name for name in record.values["set"].unique() if name.startswith(GOLD))


def views(record, metric: str = "nrmse_covered") -> pd.DataFrame:
    """Error of mua on each set, over that of the same runs on the fresh phantoms as the networks were trained.

    Columns group, set, method, seeds, nrmse, low, high, ratio, ratio low, ratio high: means over phantoms, then over
    seeds with Student's interval; ratios paired by seed.
    """
    groups = {"": (FRESH,)} | GROUPS | {"readings": _readings(record)}
    rows = []
    for group, names in groups.items():
        for name in names:
            for arm in _shown(record):
                values, home = per_seed(record, arm, name, metric), per_seed(record, arm, FRESH, metric)
                if values.empty:
                    continue
                one, to = over_seeds(values), ratio(values, home)
                row = {"group": group, "set": name, "method": arm, "seeds": one.n, "nrmse": one.estimate}
                row |= {"low": one.low, "high": one.high, "ratio": to.estimate}
                rows.append(row | {"ratio low": to.low, "ratio high": to.high})
    return pd.DataFrame(rows, columns=VIEWS)


def with_contrast(found: pd.DataFrame) -> pd.DataFrame:
    """`views` of the sets whose inclusions have a contrast of mua: elsewhere a ratio of errors says little."""
    return found[~found["set"].isin((TUMOUR_FREE, "musp-only"))]


def views_table(found: pd.DataFrame) -> pd.DataFrame:
    """`views` as it is read: a row a set, a column a method: error, x ratio."""
    cells = found.assign(cell=[_cell(row) for row in found.to_dict("records")])
    wide = cells.pivot(index=["group", "set"], columns="method", values="cell")
    order = list(dict.fromkeys(zip(found["group"], found["set"], strict=True)))
    return wide.reindex(order)[list(found["method"].unique())].rename_axis(columns=None).reset_index()


def _cell(row: dict) -> str:
    if row["set"] == FRESH:
        return text(Interval(row["nrmse"], row["low"], row["high"], row["seeds"]))
    return f"{row['nrmse']:.3g}, x {text(Interval(row['ratio'], row['ratio low'], row['ratio high'], row['seeds']))}"


def patterns(record) -> pd.DataFrame:
    """Networks trained on one pattern and tested on all, in the columns of `generalisation.matrix`.

    `ratio`: over the same runs on their own pattern; `specialist`: over the runs that were trained on the pattern
    tested on, which tells how hard a pattern is from what a network does not know of it.
    """
    sets = {name: FRESH if name == "random" else name for name in OWN}
    known = {name: arm for name, arm in OWN.items() if arm in methods(record, FRESH)}
    errors = {(own, on): per_seed(record, arm, name, "nrmse_covered")
              for own, arm in known.items() for on, name in sets.items()}  # fmt: skip
    rows = []
    for (own, on), values in errors.items():
        if values.empty:
            continue
        one, home, special = over_seeds(values), ratio(values, errors[own, own]), Interval()
        if on in known:
            special = ratio(values, errors[on, on])
        row = {"trained on": own, "tested on": on, "home": own == on, "seeds": one.n, "failed": 0}
        row |= {"nrmse": one.estimate, "low": one.low, "high": one.high}
        row |= {"ratio": home.estimate, "ratio low": home.low, "ratio high": home.high}
        row |= {"specialist": special.estimate, "specialist low": special.low, "specialist high": special.high}
        rows.append(row)
    return pd.DataFrame(rows)


def coverage(record) -> pd.DataFrame:
    """Errors of mua by how much of the surface the probe covers, with as many measurements.

    Columns probe, method, seeds, and the nrmse in what this probe covers, in what any of the three covers, and in all
    tissue.
    """
    rows, parts = [], {"covered by it": "nrmse_covered", "covered by any": "nrmse_union", "tissue": "nrmse"}
    for name in COVERAGES:
        for arm in methods(record, name):
            values = {label: per_seed(record, arm, name, metric) for label, metric in parts.items()}
            row = {"probe": name, "method": arm, "seeds": len(values["tissue"])}
            rows.append(row | {label: text(over_seeds(found)) for label, found in values.items()})
    return pd.DataFrame(rows)


def crosstalk(record) -> pd.DataFrame:
    """Contrast that appears in the wrong channel, median over the inclusions that truly have it in the other alone."""
    rows = []
    for name, wrong, right in (("musp-only", "mua", "musp"), ("mua-only", "musp", "mua")):
        for arm in _shown(record):
            there = over_seeds(per_seed(record, arm, name, "crosstalk", wrong))
            recovered = over_seeds(per_seed(record, arm, name, "crc", right))
            row = {"inclusions": name, "method": arm, "wrong channel": wrong, "contrast there": text(there)}
            rows.append(row | {"crc of the right one": text(recovered)})
    return pd.DataFrame(rows)


def worst(found: pd.DataFrame, arm: str, names) -> tuple[str, Interval]:
    """The set on which a method loses most, and its ratio."""
    rows = found[(found["method"] == arm) & found["set"].isin(names)]
    if rows.empty:
        return "", Interval()
    row = rows.loc[rows["ratio"].idxmax()]
    return row["set"], Interval(row["ratio"], row["ratio low"], row["ratio high"], row["seeds"])


def targets(record, arm: str = NETWORK) -> pd.DataFrame:
    """What is asked of a network where light is measured otherwise, in the columns of `inverse.targets`."""
    found, rows = views(record), []
    for names, what, limit in (
        (PATTERNS, "loss on a pattern not trained on, covered, %", LOSS),
        (_readings(record), "loss on finer readings, covered, %", GOLD_LOSS),
    ):
        name, one = worst(found, arm, names)
        loss = one.map(lambda x: 100 * (x - 1))
        row = asking(what, f"{limit} or less", loss, (-np.inf, limit))
        rows.append(row | {"found": f"{row['found']} ({name})" if name else "--"})
    return pd.DataFrame(rows)


def answer(found: pd.DataFrame, arm: str = NETWORK) -> str:
    """Where a network loses most, in Markdown, a line a group, the largest loss first."""
    lines = []
    for group, rows in found[(found["method"] == arm) & (found["group"] != "")].groupby("group", sort=False):
        order = rows.sort_values("ratio", ascending=False)
        said = ", ".join(f"{r.set} x {r.ratio:.2f}" for r in order.itertuples())
        lines.append((-order["ratio"].iloc[0], f"* **{group}**: {said}."))
    return "\n".join(line for _, line in sorted(lines)) or "* Not computed."
