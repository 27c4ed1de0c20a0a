"""Section 4.6: what of the inclusions is recovered, where it is placed, and whether it is found at all."""

import itertools

import numpy as np
import pandas as pd

from ..metrics_regions import LEAST_CONTRAST
from ..reconstruction_judgement import BEST, ENSEMBLES, FITTED, SHUFFLED
from ..reconstruction_limits import NOISE, TISSUE
from ..reconstruction_records import TRUTH
from ..reconstruction_sets import FRESH, HOME
from ..reconstructions import CONTROL, EVERYWHERE, NETWORK, SHORT_CONTROL
from ..stats import Interval, wilson
from .inverse import GAUSS_NEWTON, asking, chosen, methods
from .measured import over_seeds, text

FLAT = (BEST, FITTED, CONTROL, SHORT_CONTROL, SHUFFLED)  # what knows nothing of the inclusions
# edges of the bins of each fact, and how it is called
BINS = {
    "distance": ((0, 14, 20, np.inf), "distance of the centre from the nearest optode, mm"),
    "radius": ((0, 8, 11, np.inf), "equivalent radius, mm"),
    "contrast": ((0.1, 1, 1.75, np.inf), "true contrast of mua"),
    "covered": ((0, 0.5, 0.9, 1.001), "covered share"),
}
NEAR, SHARES = (
    20,
    {"more than 90 % covered": (0.9, 2), "50 to 90 % covered": (0.5, 4)},
)  # mm: distance; least share, limit
SEEN = 0.05  # contrast of a prediction below which it places nothing
DEEP = 0.70  # crc asked for within NEAR
COUNTED = "inclusions"
TOLD = 0.5  # least sd of crc below which readings tell a contrast from none at two sd
REACHED = (GAUSS_NEWTON, *EVERYWHERE)


def facts(record, on: str = HOME) -> pd.DataFrame:
    """A row for each inclusion that is there: phantom, inclusion and, in mm or as a share, the facts of `BINS`."""
    rows = pd.concat([chosen(record, TRUTH, on, fact) for fact in BINS])
    wide = rows.pivot(index=["phantom", "inclusion"], columns="metric", values="value")
    return wide[wide["distance"].notna()].rename_axis(columns=None).reset_index()


def _with_facts(record, arm: str, metric: str) -> pd.DataFrame:
    rows = chosen(record, arm, HOME, metric)[["seed", "phantom", "inclusion", "value"]]
    return rows.merge(facts(record), on=["phantom", "inclusion"])


def binned(record, fact: str, metric: str = "crc") -> pd.DataFrame:
    """Median of a metric of mua over the inclusions of each bin of a fact, by method.

    Columns method, bin, middle, inclusions, seeds, median with low and high (Student's over seeds), q25 and q75 over
    inclusions (of all seeds).
    """
    (edges, _), out = BINS[fact], []
    for arm in methods(record):
        rows = _with_facts(record, arm, metric)
        rows = rows[np.isfinite(rows["value"]) & rows[fact].notna()]
        for low, high in itertools.pairwise(edges):
            part = rows[(rows[fact] >= low) & (rows[fact] < high)]
            one = over_seeds(part.groupby("seed")["value"].median())
            row = {"method": arm, "bin": _named(low, high, edges), "middle": part[fact].median()}
            row |= {COUNTED: part.groupby(["phantom", "inclusion"]).ngroups, "seeds": one.n}
            row |= {"median": one.estimate, "low": one.low, "high": one.high}
            quartiles = part["value"].quantile([0.25, 0.75]).to_numpy() if len(part) else (np.nan, np.nan)
            out.append(row | dict(zip(("q25", "q75"), quartiles, strict=True)))
    return pd.DataFrame(out)


def _named(low: float, high: float, edges: tuple) -> str:
    if high == edges[-1]:
        return f"{low:g} and more"
    return f"below {high:g}" if low == edges[0] else f"{low:g} to {high:g}"


def binned_table(found: pd.DataFrame) -> pd.DataFrame:
    """`binned` as it is read: a row a method, a column a bin with its number of inclusions."""
    counts = found.groupby("bin", sort=False)[COUNTED].max()
    cells = found.assign(cell=[text(Interval(r.median, r.low, r.high, r.seeds)) for r in found.itertuples()])
    wide = cells.pivot(index="method", columns="bin", values="cell").reindex(found["method"].unique())[counts.index]
    return wide.rename(columns=lambda name: f"{name} (n = {counts[name]})").rename_axis(columns=None).reset_index()


def limits(record) -> pd.DataFrame:
    """What the readings tell of mua's contrast by distance: the least sd of crc, beside the crc that is reached.

    Columns distance, inclusions, the medians of the least sd by noise alone and in an unknown tissue, the share of
    inclusions whose sd there is below `TOLD`, and the median crc of each method of `REACHED`.
    """
    known = _told(record)
    if known.empty:
        return pd.DataFrame()
    (edges, heading), out = BINS["distance"], []
    reached = {arm: binned(record, "distance").query("method == @arm") for arm in REACHED if arm in methods(record)}
    for low, high in itertools.pairwise(edges):
        part = known[(known["distance"] >= low) & (known["distance"] < high)]
        row = {heading: _named(low, high, edges), COUNTED: len(part), "noise alone": part[NOISE].median()}
        row |= {"tissue unknown": part[TISSUE].median(), f"below {TOLD:g}, share": (part[TISSUE] < TOLD).mean()}
        for arm, rows in reached.items():
            one = rows[rows["bin"] == _named(low, high, edges)].iloc[0]
            row[f"crc, {arm}"] = text(Interval(one["median"], one["low"], one["high"], one["seeds"]))
        out.append(row)
    return pd.DataFrame(out)


def _told(record) -> pd.DataFrame:
    """`facts` of the inclusions with a contrast of mua, with both least sd; no rows where they were not computed."""
    known, keys = facts(record), ["phantom", "inclusion"]
    for name in (NOISE, TISSUE):
        rows = chosen(record, TRUTH, HOME, name)[[*keys, "value"]]
        known = known.merge(rows.rename(columns={"value": name}), on=keys)
    return known[known["contrast"].abs() >= LEAST_CONTRAST]


def near(record, arm: str) -> Interval:
    """Median crc of mua of the inclusions whose centre lies within `NEAR` mm of an optode."""
    rows = _with_facts(record, arm, "crc")
    rows = rows[np.isfinite(rows["value"]) & (rows["distance"] < NEAR)]
    return over_seeds(rows.groupby("seed")["value"].median())


def localised(record) -> pd.DataFrame:
    """How far an inclusion is from where it is placed, mm, by its covered share.

    Columns method, part, inclusions, shown, median with low and high over seeds, chance. `shown`: share of the
    inclusions in which the prediction has a contrast of at least 0.05; without one nothing is placed, and a flat image
    would answer with the middle of the window in which it is searched. Chance: an image that knows nothing, on all.
    """
    out, chance = [], _with_facts(record, TRUTH, "localisation")
    for arm in [arm for arm in methods(record) if arm not in FLAT]:
        rows, contrast = _with_facts(record, arm, "localisation"), chosen(record, arm, HOME, "contrast")
        keys = ["seed", "phantom", "inclusion"]
        rows = rows.merge(contrast[[*keys, "value"]].rename(columns={"value": "shown"}), on=keys)
        for part, (low, high) in _parts().items():
            mine = rows[(rows["covered"] >= low) & (rows["covered"] < high)]
            placed = mine[np.isfinite(mine["value"]) & (mine["shown"] >= SEEN)]
            one = over_seeds(placed.groupby("seed")["value"].median())
            luck = chance[(chance["covered"] >= low) & (chance["covered"] < high)]["value"].median()
            row = {"method": arm, "part": part, COUNTED: mine.groupby(["phantom", "inclusion"]).ngroups}
            row |= {"shown": len(placed) / max(len(mine), 1), "median": one.estimate, "low": one.low, "high": one.high}
            out.append(row | {"seeds": one.n, "chance": luck})
    return pd.DataFrame(out)


def _parts() -> dict[str, tuple[float, float]]:
    edges = [share for share, _ in SHARES.values()]
    return dict(zip((*SHARES, "less than 50 % covered"), zip((*edges, 0.0), (1.001, *edges), strict=True), strict=True))


def localised_table(found: pd.DataFrame) -> pd.DataFrame:
    """`localised` as it is read."""
    rows = found.assign(placed=[text(Interval(r.median, r.low, r.high, r.seeds)) for r in found.itertuples()])
    rows = rows.rename(columns={"placed": "median distance, mm", "chance": "by chance, mm"})
    return rows[["method", "part", COUNTED, "shown", "median distance, mm", "by chance, mm"]]


def _lesions(record) -> pd.DataFrame:
    rows = record.lesions[record.lesions["channel"] == "mua"]
    return rows.astype({"operating": bool, "threshold": float, "recall": float, "false_lesions": float})


def operating(record) -> pd.DataFrame:
    """Recall and false lesions of mua on the test phantoms, at the threshold that other, tumour-free ones give.

    Columns method, seeds, threshold, recall, false lesions (a phantom).
    """
    rows, out = _lesions(record), []
    for arm in [arm for arm in methods(record) if arm in set(rows["arm"])]:
        at = rows[(rows["arm"] == arm) & rows["operating"]].set_index("seed")
        cells = {name: text(over_seeds(at[column])) for name, column in (
            ("threshold, mm^-1", "threshold"), ("recall", "recall"), ("false lesions", "false_lesions"))}  # fmt: skip
        out.append({"method": arm, "seeds": len(at)} | cells)
    return pd.DataFrame(out)


def visible(record) -> pd.DataFrame:
    """The clinical criterion on fresh phantoms: contrast of mua at least 0.20, at most 0.05 in the tumour-free twin.

    Columns method, seeds, met, inclusions, share with Wilson's interval over inclusions (mean count of the seeds).
    """
    out = []
    true = chosen(record, TRUTH, FRESH, "contrast")
    present = true[true["value"] >= LEAST_CONTRAST].set_index(["phantom", "inclusion"]).index
    for arm in methods(record, FRESH):
        rows = chosen(record, arm, FRESH, "contrast_visible").set_index(["phantom", "inclusion"])
        rows = rows[rows.index.isin(present)]
        if rows.empty:
            continue
        counts = (rows["value"] == 1).groupby(rows["seed"]).sum()
        found = wilson(round(counts.mean()), len(present))
        cell = text(Interval(counts.mean() / len(present), found.low, found.high, len(counts)))
        out.append({"method": arm, "seeds": len(counts), COUNTED: len(present), "met, share": cell})
    return pd.DataFrame(out)


def targets(record, arm: str = NETWORK) -> pd.DataFrame:
    """What is asked of the inclusions, in the columns of `inverse.targets`."""
    rows = [asking(f"median crc of mua, centre within {NEAR} mm of an optode", f"{DEEP} or more", near(record, arm),
                   (DEEP, np.inf))]  # fmt: skip
    beside = text(near(record, GAUSS_NEWTON)) if GAUSS_NEWTON in methods(record) else "--"
    rows[0]["found"] += f"; {GAUSS_NEWTON}: {beside}"
    known = _told(record)
    told = known[known["distance"] < NEAR][TISSUE] < TOLD
    rows[0]["found"] += f"; told in an unknown tissue: {told.sum()} of {len(told)}" if len(told) else ""
    placed = localised(record)
    for part, (_, limit) in SHARES.items():
        mine = placed[(placed["method"] == arm) & (placed["part"] == part)]
        one = Interval(*mine.iloc[0][["median", "low", "high", "seeds"]]) if len(mine) else Interval()
        rows.append(asking(f"localisation, {part}, mm", f"{limit} or less", one, (-np.inf, limit)))
    return pd.DataFrame(rows)


def lesion_curves(record) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Free-response curves of mua, means over seeds, and their operating points: method, recall, false_lesions."""
    rows = _lesions(record)
    rows = rows[~rows["arm"].isin((*FLAT, *ENSEMBLES.values()))]
    wide = rows.groupby(["arm", "threshold"], as_index=False, sort=False)[["recall", "false_lesions"]].mean()
    points = rows[rows["operating"]].groupby("arm")[["recall", "false_lesions"]].mean()
    return wide.rename(columns={"arm": "method"}), points.rename_axis("method").reset_index()
