"""Section 4.5's ablation: each improvement added to the baseline, and had in the full recipe, as tables.

`add` and `leave` are the records of 4.5-add-one-in and 4.5-leave-one-out, or None. Effects are of the nrmse of mua, per
cent, negative is better: with the improvement against without it. An alternative takes another improvement's place, so
that without it the full recipe has neither; what it does instead of the other is `instead`.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from .. import arms, stats
from ..comparison import ASSUMED
from ..improvements import ALTERNATIVES, IMPROVEMENTS, STUDIES, label
from ..stats import Interval
from ..stats_crossed import detectable_difference
from .attention_costs import training_operations
from .optimisers import PRIMARY, Pair, contrasts, effect, errors, failures, forest_rows

ALONE, WITHIN = "alone", "in full"  # the two directions: on the baseline, in the full recipe
OF = {ALONE: "4.5-add-one-in", WITHIN: "4.5-leave-one-out"}
REFERENCE = {ALONE: "baseline", WITHIN: "full"}
LEVEL = 0.05  # of each family, after Holm
SAME = "the same runs"
COUNTS = (3, 10)  # seeds: of an exploratory study, and of a confirmatory one (results/PLAN.md)
NOT_COMPUTED = "not computed"


def arm(name: str, where: str) -> str:
    """The arm in which an improvement's state differs from the reference's."""
    kind = "add" if where == ALONE else "swap" if name in ALTERNATIVES else "leave"
    return f"{kind}-{label(name)}"


def pair(name: str, where: str) -> Pair:
    """With the improvement against without it; in the full recipe an alternative stands in for what it replaces."""
    if where == ALONE:
        return Pair(where, arm(name, where), REFERENCE[where])
    having = arm(name, where) if name in ALTERNATIVES else REFERENCE[where]
    return Pair(where, having, arm(ALTERNATIVES.get(name, name), where))


def named(name: str) -> str:
    """An improvement as tables name it, an alternative with what it replaces."""
    return f"{name} (for {ALTERNATIVES[name]})" if name in ALTERNATIVES else name


def grid(add, leave) -> pd.DataFrame:
    """The plan's grid: a row an improvement, its arm in each direction, and how many runs of it the records hold."""
    rows = []
    for name in IMPROVEMENTS:
        row: dict[str, Any] = {"improvement": named(name)}
        for where, record in ((ALONE, add), (WITHIN, leave)):
            changed = arm(name, where)
            row[where] = changed if changed in STUDIES[OF[where]].arms else "no arm"
            row[f"runs {where}"] = 0 if record is None else int((record.runs["arm"] == changed).sum())
        rows.append(row)
    return pd.DataFrame(rows)


def power(phantoms: int) -> pd.DataFrame:
    """What so many seeds can find, before any result: a row a family and number of seeds.

    The smallest reduction of the error found with 80 % power if the paired log difference varies as `ASSUMED`: by an
    interval of its own at 5 %, and at Holm's first step, where every contrast of the family competes.
    """
    families = {"H3, two gates": ("4.4-gates", 2), "ablation, each direction": (OF[ALONE], len(IMPROVEMENTS))}
    rows = []
    for name, (study, size) in families.items():
        for seeds in COUNTS:
            row = {"family": name, "contrasts": size, "seeds": seeds}
            row |= {"planned": "yes" if seeds == STUDIES[study].seeds else "no"}
            row["by itself, %"] = detectable_difference(ASSUMED, seeds, phantoms)
            rows.append(row | {"in the family, %": detectable_difference(ASSUMED, seeds, phantoms, alpha=LEVEL / size)})
    return pd.DataFrame(rows)


def effects(add, leave) -> pd.DataFrame:
    """A row an improvement (`name`) and direction (`where`): its contrast as a forest's row, Holm p, operations, word.

    Intervals are of 95 %, for new runs and new phantoms; Holm's p is over one direction's family; operations: of the
    training, counted (`attention_costs.training_operations`), with the improvement over without. For the words see
    `word`. `instead`: of an alternative in the full recipe, what it does in the other's place, unadjusted; else ''.
    """
    tables = [_direction(record, where) for where, record in ((ALONE, add), (WITHIN, leave))]
    return pd.concat(tables, ignore_index=True)


def _direction(record, where: str) -> pd.DataFrame:
    pairs, record = [pair(name, where) for name in IMPROVEMENTS], _primary(record)
    if record is None:
        blank = {"seeds": 0, "failed": 0, "P(better)": "--"}
        blank |= dict.fromkeys(("effect", "low", "high", "p", "Cohen dz"), np.nan)
        table = forest_rows([blank | {"contrast": f"{a} against {b}"} for _, a, b in pairs])
    else:
        table = contrasts(record, pairs)
    table = table.assign(name=IMPROVEMENTS, where=where, group=where, label=[named(name) for name in IMPROVEMENTS])
    table["Holm p"] = stats.holm(table["p"])
    table["operations"] = [_operations(record, a, b) for _, a, b in pairs]
    table["standing"] = [SAME if _same(record, a, b) else "exploratory" for _, a, b in pairs]
    table["instead"] = [_instead(record, name) if where == WITHIN else "" for name in IMPROVEMENTS]
    table["confirmatory"] = table["Holm p"] < LEVEL  # what a forest fills
    return table.assign(word=[word(row) for row in table.to_dict("records")])


def _primary(record):
    """The record with nothing but the endpoint, which is soon searched."""
    if record is None:
        return None
    metric, channel = PRIMARY
    rows = record.metrics
    chosen = (rows["metric"] == metric) & (rows["channel"] == channel) & (rows["checkpoint"] == "last")
    return replace(record, metrics=rows[chosen])


def _same(record, a: str, b: str) -> bool:
    """Whether two arms ended with the very same runs."""
    if record is None or not {a, b} <= set(record.runs["arm"]):
        return False
    table = errors(record)
    return table.loc[a].equals(table.loc[b])


def _instead(record, name: str) -> str:
    if name not in ALTERNATIVES:
        return ""
    arms_of = Pair(WITHIN, arm(name, WITHIN), REFERENCE[WITHIN])
    if record is None or not set(arms_of[1:]) <= set(record.runs["arm"]):
        return NOT_COMPUTED
    (row,) = contrasts(record, [arms_of]).to_dict("records")
    if np.isnan(row["low"]):
        return NOT_COMPUTED
    change = stats.verdict(Interval(row["effect"], row["low"], row["high"], row["seeds"]))
    return f"{change} than {ALTERNATIVES[name]}" if change != "not resolved" else f"{change} from {ALTERNATIVES[name]}"


def _operations(record, a: str, b: str) -> float:
    if record is None:
        return np.nan
    counted = [training_operations(arms.arm(name, record.profile)) for name in (a, b)]
    return counted[0] / counted[1]


def word(row: dict[str, Any]) -> str:
    """'better' or 'worse' where Holm's p says so too, 'better, unadjusted' where the row's own interval does alone."""
    if row["standing"] == SAME:
        return SAME
    if np.isnan(row["low"]):
        return NOT_COMPUTED
    change = stats.verdict(Interval(row["effect"], row["low"], row["high"], row["seeds"]))
    return change if change == "not resolved" or row["Holm p"] < LEVEL else f"{change}, unadjusted"


def agreement(alone: str, within: str) -> str:
    """Whether two words say the same, adjusted or not."""
    a, b = (text.removesuffix(", unadjusted") for text in (alone, within))
    if NOT_COMPUTED in (a, b):
        return NOT_COMPUTED
    return f"yes: {a}" if a == b else f"no: {a} {ALONE}, {b} {WITHIN}"


def read(table: pd.DataFrame) -> pd.DataFrame:
    """`effects` as they are read, a row an improvement."""
    sides = {where: table[table["where"] == where].set_index("name") for where in OF}
    out = pd.DataFrame({"improvement": [named(name) for name in IMPROVEMENTS]})
    for where, side in sides.items():
        out[f"{where}, %"] = side["effect"].to_numpy()
        out[f"interval {where}"] = [stats.limits(*bounds) for bounds in side[["low", "high"]].itertuples(index=False)]
        out[f"Holm p {where}"] = side["Holm p"].to_numpy()
    for where, side in sides.items():
        out[f"operations {where}"] = side["operations"].to_numpy()
    out["seeds"] = [f"{a}, {b}" for a, b in zip(*(side["seeds"] for side in sides.values()), strict=True)]
    out["failed"] = sum(side["failed"].to_numpy() for side in sides.values())
    words = zip(*(side["word"] for side in sides.values()), strict=True)
    instead = [text or "--" for text in sides[WITHIN]["instead"]]
    return out.assign(agree=[agreement(*pair) for pair in words], instead=instead)


def strength(table: pd.DataFrame) -> pd.DataFrame:
    """`effects` beside their spread, a row an improvement: of each direction Cohen's dz over paired seeds, and the
    probability that a run with the improvement has a lower error than one without, with its interval."""
    out = pd.DataFrame({"improvement": [named(name) for name in IMPROVEMENTS]})
    for where in OF:
        side = table[table["where"] == where].set_index("name").loc[list(IMPROVEMENTS)]
        out[f"Cohen dz {where}"] = side["Cohen dz"].to_numpy()
        out[f"P(better) {where}"] = side["P(better)"].to_numpy()
    return out


def incomparable(add, leave) -> str:
    """Why runs of the two studies cannot be combined, or ''."""
    if add is None or leave is None:
        return "a study is not computed"
    if add.profile != leave.profile:
        return f"the studies are of the profiles {add.profile} and {leave.profile}"
    if not all("test" in record.runs and record.runs["test"].all() for record in (add, leave)):
        return "a record does not name its test phantoms"
    if len({*add.runs["test"], *leave.runs["test"]}) > 1:
        return "the studies were judged on different phantoms"
    return ""


def weights(name: str) -> dict[str, float]:
    """The log effect of having an improvement in the full recipe less that on the baseline, as weights of four arms."""
    (_, having, lacking), (_, added, base) = pair(name, WITHIN), pair(name, ALONE)
    return {having: 1, lacking: -1, added: -1, base: 1}


def interactions(add, leave) -> pd.DataFrame:
    """A row an improvement: how much more (negative: more of a reduction) it does in the full recipe than alone.

    The ratio of the two ratios of errors, less 1, per cent, over the seeds that all four arms have; the rows of
    `optimisers.contrasts`, Holm's p over the family, and `note`, why a row is not computed. Runs of two studies are
    combined only where they name the same test phantoms.
    """
    reason, rows = incomparable(add, leave), []
    record = None if reason else _joined(add, leave)
    for name in IMPROVEMENTS:
        row = {"group": "in full less alone", "label": name, "contrast": name, "note": reason}
        if record is None:
            blank = dict.fromkeys(("effect", "low", "high", "p", "Cohen dz"), np.nan)
            rows.append(row | {"seeds": 0, "failed": 0} | blank)
        else:
            rows.append(row | effect(record, weights(name)) | {"failed": failures(record, weights(name))})
    table = forest_rows(rows)
    table["Holm p"] = stats.holm(table["p"])
    return table.assign(standing="exploratory", confirmatory=table["Holm p"] < LEVEL)


def altogether(add, leave) -> dict[str, Any]:
    """The full recipe against the baseline, as `optimisers.effect`; without numbers, and with 0 seeds, where the two
    studies cannot be combined."""
    blank = {"seeds": 0, "failed": 0} | dict.fromkeys(("effect", "low", "high"), np.nan)
    if incomparable(add, leave):
        return blank
    record, ends = _joined(add, leave), {REFERENCE[WITHIN]: 1, REFERENCE[ALONE]: -1}
    return blank | effect(record, ends) | {"failed": failures(record, ends)}


def _joined(add, leave):
    records = [_primary(record) for record in (add, leave)]
    parts = {name: pd.concat([getattr(r, name) for r in records]) for name in ("metrics", "epochs", "runs")}
    return replace(add, **parts)
