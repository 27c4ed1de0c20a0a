"""Section 4.6: reconstructions of the test phantoms by method, and what was asked of them.

`record` is a `reconstruction_records.Reconstructed`. Networks have seeds, the other methods one value a phantom.
"""

import numpy as np
import pandas as pd

from .. import stats
from ..reconstruction_judgement import BEST, ENSEMBLES, FITTED, LIFTED, METHODS, SHUFFLED
from ..reconstruction_records import TRUTH
from ..reconstruction_sets import HOME
from ..reconstructions import CONTROL, OURS, SHORT_CONTROL
from ..stats import Interval
from ..stats_crossed import crossed_contrast
from .measured import over_seeds, standing, text

CONTROLS = (BEST, FITTED, CONTROL, SHORT_CONTROL, SHUFFLED)
CLASSICAL = (LIFTED, *METHODS.values())
GAUSS_NEWTON = METHODS["gaussian"]
ORDER = (*CONTROLS, *CLASSICAL, *OURS, *ENSEMBLES.values())  # of methods, the others after them
FIDELITY = {
    "nrmse": "nrmse", "covered": "nrmse_covered", "not covered": "nrmse_uncovered", "skill": "skill_homogeneous",
    "skill covered": "skill_homogeneous_covered", "SSIM": "ssim",
}  # fmt: skip
IMAGE = {
    "crc": "crc", "CNR": "cnr", "Dice": "dice", "background noise": "background_noise_covered", "bias": "bias_covered",
}  # fmt: skip
VERDICTS = ("worse", "not resolved", "better")
ERRORS = {"covered": "nrmse_covered", "tissue": "nrmse"}
ASKED = {"covered": (20, 50), "tissue": (8, 15)}  # per cent below Gauss-Newton: must, aim


def chosen(record, arm: str, on: str, metric: str, channel: str = "mua") -> pd.DataFrame:
    """The rows of one method, set and metric."""
    return record.chosen(arm, on, metric, channel)


def matrix(record, arm: str, on: str, metric: str, channel: str = "mua") -> pd.DataFrame:
    """One metric of one method, a row a seed, a column a phantom, or a phantom and inclusion."""
    rows = chosen(record, arm, on, metric, channel)
    return rows.pivot(index="seed", columns=["phantom", "inclusion"], values="value")


def per_seed(record, arm: str, on: str, metric: str, channel: str = "mua") -> pd.Series:
    """One number a seed: mean over phantoms, median over inclusions, of what exists."""
    rows = chosen(record, arm, on, metric, channel)
    kept = rows[np.isfinite(rows["value"])].groupby("seed")["value"]
    return kept.median() if (rows["inclusion"] >= 0).all() else kept.mean()


def methods(record, on: str = HOME) -> list[str]:
    """The methods that were judged on a set, controls first."""
    v = record.values
    found = v.loc[(v["set"] == on) & (v["arm"] != TRUTH), "arm"].unique()
    return sorted(found, key=lambda arm: (ORDER.index(arm) if arm in ORDER else len(ORDER), arm))


def table(record, columns=FIDELITY, channel: str = "mua") -> pd.DataFrame:
    """Methods by metrics of a channel at home: mean over phantoms (crc, CNR, Dice: median over inclusions), then over
    seeds with Student's interval."""
    rows = []
    for arm in methods(record):
        values = {label: per_seed(record, arm, HOME, metric, channel) for label, metric in columns.items()}
        seeds = len(next(iter(values.values())))
        rows.append({"method": arm, "seeds": seeds} | {name: text(over_seeds(v)) for name, v in values.items()})
    return pd.DataFrame(rows)


def effect(record, arm: str, reference: str, metric: str, on: str = HOME, channel: str = "mua") -> Interval:
    """Change of an error against another method's, per cent, negative is better; for new runs and new phantoms.

    Runs are paired by seed, those without a partner left out; a method of one value a phantom has the same errors
    beside every seed. One run of `arm` has no limits, whatever it is compared with. Phantoms in which either error does
    not exist are left out.
    """
    first, second = (matrix(record, name, on, metric, channel) for name in (arm, reference))
    if len(first) > 1 and len(second) > 1:
        first, second = first.align(second, join="inner", axis=0)
    if first.empty or second.empty:
        return Interval()
    runs, (a, b) = len(first), np.broadcast_arrays(first.to_numpy(), second.to_numpy())
    known = (np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)).all(0)
    if not known.any():
        return Interval()
    if known.sum() == 1 or runs == 1:
        ratio = float(np.log(a[:, known] / b[:, known]).mean())
        return stats.per_cent(Interval(ratio, -np.inf, np.inf, runs))
    return crossed_contrast(a[:, known], b[:, known]).effect


def contrasts(record) -> pd.DataFrame:
    """Each network against each classical method and control: effect on the nrmse of mua, per cent, in both parts.

    Columns network, against, part, seeds, effect, low, high, verdict.
    """
    rows = []
    found = methods(record)
    for arm in [arm for arm in found if arm in (*OURS, *ENSEMBLES.values())]:
        for other in [other for other in found if other in (*CLASSICAL, *CONTROLS)]:
            for part, metric in ERRORS.items():
                one = effect(record, arm, other, metric)
                row = {"network": arm, "against": other, "part": part, "seeds": one.n, "effect": one.estimate}
                rows.append(row | {"low": one.low, "high": one.high, "verdict": stats.verdict(one)})
    return pd.DataFrame(rows, columns=["network", "against", "part", "seeds", "effect", "low", "high", "verdict"])


def contrasts_table(found: pd.DataFrame) -> pd.DataFrame:
    """`contrasts` as it is read: a row a pair, a column a part."""
    cells = found.assign(cell=[text(Interval(r.effect, r.low, r.high, r.seeds)) for r in found.itertuples()])
    wide = cells.pivot(index=["network", "against"], columns="part", values="cell")
    order = list(dict.fromkeys(zip(found["network"], found["against"], strict=True)))
    wide = wide.reindex(order).reindex(columns=list(ERRORS)).rename(columns=lambda part: f"{part}, %")
    return wide.reset_index().rename_axis(columns=None)


def answer(record, found: pd.DataFrame) -> str:
    """What the comparison says, in Markdown, negative results first: each network against the best classical method."""
    lines, known = [], [name for name in CLASSICAL if name in methods(record)]
    for part, metric in ERRORS.items() if known else ():
        best = min(known, key=lambda name: per_seed(record, name, HOME, metric).mean())
        rows = found[(found["against"] == best) & (found["part"] == part)]
        for row in rows.to_dict("records"):
            change = text(Interval(row["effect"], row["low"], row["high"], row["seeds"]))
            line = f"* {row['network']} against {best}, {part}: {change} %: {row['verdict']}, {row['seeds']} run(s)."
            lines.append((VERDICTS.index(row["verdict"]), line))
    return "\n".join(line for _, line in sorted(lines, key=lambda pair: pair[0])) or "* Not computed."


def targets(record, arm: str) -> pd.DataFrame:
    """What is asked of one network at home: what, asked, found with its interval, standing; must and aim."""
    rows = []
    for part, limits in ASKED.items():
        one = effect(record, arm, GAUSS_NEWTON, ERRORS[part])
        for word, limit in zip(("must", "aim"), limits, strict=True):
            what = f"nrmse of mua below Gauss-Newton's, {part}, %"
            lower = Interval(-one.estimate, -one.high, -one.low, one.n)
            rows.append(asking(what, f"{word} {limit} or more", lower, (limit, np.inf)))
    for part, metric, limit in (("tissue", "skill_homogeneous", 0.35), ("covered", "skill_homogeneous_covered", 0.75)):
        one = over_seeds(per_seed(record, arm, HOME, metric))
        what = f"skill against the best homogeneous volume, {part}"
        rows.append(asking(what, f"{limit} or more", one, (limit, np.inf)))
    return pd.DataFrame(rows)


def asking(what: str, asked: str, found: Interval, limits: tuple[float, float]) -> dict:
    return {"what": what, "asked": asked, "found": text(found), "standing": standing(found, limits)}


def asked(record, arms, of) -> pd.DataFrame:
    """What each of `of` asks of each network, one below the other, with a column `network`."""
    return pd.concat([part(record, arm).assign(network=arm) for arm in arms for part in of], ignore_index=True)
