"""The earlier work's roadmap and the criteria, of judged runs: in its own convention, and in one that can fail."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from .. import config as configuration
from .. import trivial
from ..comparison import Column
from ..judged_scores import INSIDE, TRAINING
from ..stats import Interval
from .measured import (
    WORDS,
    Range,
    above,
    below,
    failures,
    listed,
    over_seeds,
    passed,
    per_seed,
    point,
    shortfall,
    spread,
    standing,
    text,
)

NETWORKS, SETS = ("legacy", "stage1"), ("default", "small")
# the measures of `trivial.ROADMAP`, and which side of its weaker end meets it; PSNR is RMSE in other words
MEASURES: dict[str, tuple[Column, Callable[[float], Range]]] = {
    "RMSE": (("legacy_rmse", ""), below),
    "SSIM": (("legacy_ssim", ""), above),
    "PSNR": (("legacy_psnr", ""), above),
}
BASE = "stage1-onecycle"
GRID = 64  # voxels a side that the gate of SSIM is meant for
ELSEWHERE = "of reconstruction: section 4.6"


@dataclass(frozen=True)
class Criterion:
    """What is asked of one number; `target` None: no threshold, the number is reported.

    of: mean over seeds; fraction: the same, its limits kept within 0 and 1; share: of the inclusions that pass,
    Wilson's interval; tail: 95 % quantile over median, of phantoms; spread: sd over seeds of the log, per cent.
    `absent`: what is said where there is no number.
    """

    name: str
    convention: Literal["legacy", "honest", "both"]
    column: Column
    target: Range | None
    of: Literal["mean", "fraction", "share", "tail", "spread"] = "mean"
    on: str = "default"
    absent: str = "not computed"


_MUA, _MUSP = "RMSE of mua < 0.015 mm^-1", "RMSE of musp < 0.10 mm^-1"
_NOISE, _CONTRAST = "background noise of mua < 5 %", "tumour contrast > 20 %"
# the specification's thresholds; of share, spread, loss_ratio and tail ours
CRITERIA = (
    Criterion("RMSE < 0.07", "legacy", ("legacy_rmse", ""), below(0.07)),
    Criterion("SSIM > 0.75", "legacy", ("legacy_ssim", ""), above(0.75)),
    Criterion("PSNR > 24 dB", "legacy", ("legacy_psnr", ""), above(24)),
    Criterion(_MUA, "legacy", ("legacy_rmse", "mua"), below(0.015)),
    Criterion(_MUSP, "legacy", ("legacy_rmse", "musp"), below(0.10)),
    Criterion(f"{_CONTRAST} (median, without twins)", "legacy", ("contrast", "mua"), above(0.20)),
    Criterion(_NOISE, "legacy", ("background_noise", "mua"), below(0.05)),
    Criterion("nrmse of mua <= 0.10", "honest", ("nrmse", "mua"), below(0.10)),
    Criterion("nrmse of mua <= 0.06 (ambition)", "honest", ("nrmse", "mua"), below(0.06)),
    Criterion(f"{_MUA} (tissue)", "honest", ("rmse", "mua"), below(0.015)),
    Criterion(f"{_MUSP} (tissue)", "honest", ("rmse", "musp"), below(0.10)),
    Criterion(f"SSIM of mua >= 0.95 at {GRID}^3", "honest", ("ssim", "mua"), above(0.95)),
    Criterion(f"SSIM of musp >= 0.95 at {GRID}^3", "honest", ("ssim", "musp"), above(0.95)),
    Criterion("skill of mua >= 0.9 (mean; over own background)", "honest", ("skill", "mua"), above(0.9)),
    Criterion("skill of mua >= 0.9 (median phantom)", "honest", ("skill_p50", "mua"), above(0.9)),
    Criterion(
        f"{_CONTRAST} and <= 5 % in the twin: 80 % pass", "honest", ("contrast_passed", "mua"), above(0.8), "share"
    ),
    Criterion("median crc of mua 0.85-1.10", "honest", ("crc", "mua"), INSIDE),
    Criterion("80 % of crc of mua inside 0.85-1.10", "honest", ("crc_inside", "mua"), above(0.8), "fraction"),
    Criterion(_NOISE, "honest", ("background_noise", "mua"), below(0.05)),
    Criterion("size of background bias of mua < 5 %", "honest", ("abs_bias", "mua"), below(0.05)),
    Criterion("legacy RMSE <= 0.035", "honest", ("legacy_rmse", ""), below(0.035)),
    Criterion("legacy RMSE <= 0.025 (ambition)", "honest", ("legacy_rmse", ""), below(0.025)),
    Criterion("stability: sd over seeds of log nrmse of mua <= 5 %", "both", ("log_nrmse", "mua"), below(5), "spread"),
    Criterion("roughness of the loss curve", "both", ("roughness", ""), None, on=TRAINING),
    Criterion("validation / training loss <= 1.1", "both", ("loss_ratio", ""), below(1.1), on=TRAINING),
    Criterion(
        "consistency: 95 % quantile / median of nrmse of mua <= 2", "both", ("nrmse_p95", "mua"), below(2), "tail"
    ),
    Criterion("GPU use > 85 %", "both", ("gpu_busy", ""), above(0.85), on=TRAINING, absent="not measured"),
)


def measure(judged, arm: str, c: Criterion) -> Interval:
    """The number of an arm that a criterion is about."""
    values = per_seed(judged, arm, c.on, c.column)
    if c.of == "share":
        return passed(values, per_seed(judged, arm, c.on, c.column, "n"))
    if c.of == "spread":
        return spread(values)
    if c.of == "fraction":
        return over_seeds(values, 0, 1)
    return over_seeds(values / per_seed(judged, arm, c.on, ("nrmse_p50", c.column[1])) if c.of == "tail" else values)


def without_network(of: Callable[[str], Interval], target: Range | None) -> dict[str, Any]:
    """The best of the trivial predictors and its value; `met by`: of those that meet the target, who knows least, and
    `met with`, the value of that one."""
    found = {name: of(name).estimate for name in trivial.PREDICTORS}
    found = {name: value for name, value in found.items() if not np.isnan(value)}
    if target is None or not found:
        return {"best trivial": "--", "its value": np.nan, "met by": "", "met with": np.nan}
    best = min(found, key=lambda name: shortfall(found[name], target))
    met = next((name for name, value in found.items() if standing(point(value), target) == "met"), "")
    return {"best trivial": best, "its value": found[best], "met by": met, "met with": found.get(met, np.nan)}


def trivial_words(judged, c: Criterion) -> str:
    """What predictors without a network reach of a criterion: who meets it, or who comes nearest."""
    found = without_network(lambda arm: measure(judged, arm, c), c.target)
    if found["met by"]:
        return f"met by {found['met by']} ({found['met with']:.3g})"
    if np.isnan(found["its value"]):
        return "--"
    return f"not met; best: {found['best trivial']} ({found['its value']:.3g})"


def roadmap(judged) -> pd.DataFrame:
    """A row for each phase, network, test set and measure of the earlier work's roadmap.

    Columns: phase, network, arm, tested on, measure, asked from, asked to (its weaker and its better end; of phase 0
    what was reported), estimate, low, high (Student's interval over seeds), seeds, failed, verdict (against the weaker
    end; an arm with a failed run meets nothing), and those of `without_network`.
    """
    rows = []
    phases = enumerate(trivial.ROADMAP.values())
    for (number, asked), network, on in itertools.product(phases, NETWORKS, SETS):
        arm = f"{network}-phase{number}"
        for (name, (column, side)), ends in zip(MEASURES.items(), asked, strict=True):
            target, of = side(ends[0]), _level(judged, on, column)
            found = of(arm)
            row = {"phase": number, "network": network, "arm": arm, "tested on": on, "measure": name}
            row |= {"asked from": ends[0], "asked to": ends[1], "estimate": found.estimate, "low": found.low}
            row |= {"high": found.high, "seeds": found.n, "failed": failures(judged, arm)}
            row["verdict"] = "not met" if row["failed"] else standing(found, target)
            rows.append(row | without_network(of, target))
    return pd.DataFrame(rows)


def _level(judged, on: str, column: Column) -> Callable[[str], Interval]:
    return lambda arm: over_seeds(per_seed(judged, arm, on, column))


def roadmap_table(roadmap: pd.DataFrame) -> pd.DataFrame:
    """The roadmap as it is read: a row a phase, network and test set; of each measure what was asked, what was measured
    and whether it is met, the best trivial predictor's value, and the predictor without a network that meets it too."""
    rows = []
    for (phase, network, on), part in roadmap.groupby(["phase", "network", "tested on"], sort=False):
        row = {"phase": phase, "network": network, "tested on": on, "seeds": part["seeds"].max()}
        for r in part.to_dict("records"):
            name, ends = r["measure"], dict.fromkeys((r["asked from"], r["asked to"]))
            row[f"{name} asked"] = " to ".join(f"{end:g}" for end in ends)
            row[name] = _cell(r)
        row["trivial, RMSE / SSIM / PSNR"] = " / ".join(f"{value:.3g}" for value in part["its value"])
        met = part[part["met by"] != ""]
        row["met without a network"] = "; ".join(met["measure"] + " by " + met["met by"]) or "--"
        rows.append(row | {"failed": part["failed"].max()})
    return pd.DataFrame(rows)


def _cell(row: Mapping[str, Any]) -> str:
    if np.isnan(row["estimate"]):
        return row["verdict"]
    return f"{text(Interval(row['estimate'], row['low'], row['high'], row['seeds']))}: {row['verdict']}"


def roadmap_answer(roadmap: pd.DataFrame) -> str:
    """What the roadmap's rows say, in Markdown: a line a network and test set, what is missed first."""
    lines = []
    for (network, on), rows in roadmap.groupby(["network", "tested on"], sort=False):
        words = [word for word in WORDS if (rows["verdict"] == word).any()]
        said = "; ".join(f"{word}: {_phases(rows[rows['verdict'] == word])}" for word in words)
        plain = rows[rows["met by"] != ""]
        free = ", ".join(f"{_phases(part)} by {name}" for name, part in plain.groupby("met by", sort=False))
        line = f"* **{network}, tested on {on}**: {said}." + f" Met without a network: {free}." * bool(free)
        lines.append(([-int((rows["verdict"] == word).sum()) for word in ("not met", "not resolved", "met")], line))
    return "\n".join(line for _, line in sorted(lines, key=lambda pair: pair[0]))


def _phases(rows: pd.DataFrame) -> str:
    """'RMSE of 1, 2, SSIM of 3': the measures with their phases."""
    parts = rows.groupby("measure", sort=False)["phase"]
    return ", ".join(
        f"{name} of {'phases' if len(found) > 1 else 'phase'} {', '.join(map(str, found))}" for name, found in parts
    )


def trivial_levels(judged) -> pd.DataFrame:
    """What each trivial predictor scores on the roadmap's measures: tested on, measure, predictor, value."""
    rows = [
        {"tested on": on, "measure": name, "predictor": predictor, "value": _level(judged, on, column)(predictor)[0]}
        for on in SETS
        for name, (column, _) in MEASURES.items()
        for predictor in trivial.PREDICTORS
    ]
    return pd.DataFrame(rows)


def subjects(judged) -> dict[str, str]:
    """The arms that the criteria are put to: of each network the phase with the lowest nrmse of mua, and our base.

    The best phase is chosen on the set that it is then judged on, which favours it.
    """
    found = {}
    for label, network in zip(("legacy network, best phase", "ours, best phase"), NETWORKS, strict=True):
        arms = [f"{network}-phase{number}" for number in range(len(trivial.ROADMAP))]
        levels = {arm: _level(judged, SETS[0], ("nrmse", "mua"))(arm).estimate for arm in arms}
        known = {arm: value for arm, value in levels.items() if not np.isnan(value)}
        found[label] = min(known, key=known.get, default=arms[-1])
    return found | {"ours, base": BASE}


def standings(judged) -> pd.DataFrame:
    """A row for each criterion and arm: criterion, convention, of, arm, estimate, low, high, seeds, failed, verdict.

    And `trivial`, what predictors without a network reach. SSIM's gate is for its own grid; a failed run meets nothing.
    """
    other_grid = configuration.profile(judged.profile).base.data.grid != GRID
    rows, arms = [], subjects(judged)
    for c in CRITERIA:
        words = trivial_words(judged, c)
        for label, arm in arms.items():
            found = measure(judged, arm, c)
            row = {"criterion": c.name, "convention": c.convention, "trivial": words, "of": label, "arm": arm}
            row |= {"estimate": found.estimate, "low": found.low, "high": found.high, "seeds": found.n}
            failed, verdict = failures(judged, arm), "no threshold" if c.target is None else standing(found, c.target)
            verdict = c.absent if verdict == "not computed" else verdict
            verdict = "not met" if failed and c.target and verdict != "not measured" else verdict
            elsewhere = other_grid and c.column[0] == "ssim" and verdict != c.absent
            rows.append(row | {"failed": failed, "verdict": "other grid" if elsewhere else verdict})
    return pd.DataFrame(rows)


def criteria(judged, convergence: Mapping[str, Mapping[str, Any]] | None = None) -> pd.DataFrame:
    """The criteria as they are read: criterion, convention, trivial predictors, and a column for each of `subjects`.

    A cell holds the number, its interval (over seeds; of shares over inclusions) and whether the criterion is met.
    `convergence`: by what is compared, rows of `hypotheses.verdicts` on speed (`found, %`, `interval, %`, `verdict`),
    which are 4.3's.
    """
    found = standings(judged)
    failed = [f", {n} failed" if n else "" for n in found["failed"]]
    cells = [_cell(row) for row in found.to_dict("records")]
    found["cell"] = [cell + note for cell, note in zip(cells, failed, strict=True)]
    keys, labels = ["criterion", "convention", "trivial"], list(found["of"].unique())
    wide = found.pivot(index=keys, columns="of", values="cell")
    wide = wide.loc[list(found[keys].drop_duplicates().itertuples(index=False, name=None)), labels]
    wide = wide.rename_axis(columns=None).reset_index().rename(columns={"trivial": "trivial predictors"})
    blank = {"convention": "both", "trivial predictors": "--"}
    speed = blank | dict.fromkeys(labels, "--") | {"criterion": "20-30 % faster convergence (4.3)"}
    patterns = blank | dict.fromkeys(labels, ELSEWHERE) | {"criterion": "loss <= 15 % on other measurement patterns"}
    speed[labels[-1]] = (
        "; ".join(f"{what}: {_speed(row)}" for what, row in (convergence or {}).items()) or "not computed"
    )
    return pd.concat([wide, pd.DataFrame([speed, patterns])], ignore_index=True)


def _speed(row: Mapping[str, Any]) -> str:
    if np.isnan(row["found, %"]):
        return "not computed"
    word = {"confirmed": "met", "refuted": "not met"}.get(row["verdict"], row["verdict"])
    return f"{row['found, %']:+.1f} % {row['interval, %']}: {word}"


def criteria_answer(judged) -> str:
    """What the criteria say, in Markdown: the convention that can fail first, what is missed first; then what needs no
    network."""
    found, lines = standings(judged), []
    for label, rows in found.groupby("of", sort=False):
        if rows["estimate"].isna().all():
            lines.append(f"* **{label}: not computed.**")
    for convention in ("honest", "both", "legacy"):
        for label, rows in found[found["convention"] == convention].groupby("of", sort=False):
            if rows["estimate"].notna().any():
                said = listed(rows["verdict"], rows["criterion"])
                lines.append(f"* **{label} (`{rows['arm'].iloc[0]}`), {convention}**: {said}.")
    plain = found[found["trivial"].str.startswith("met by")].drop_duplicates(["criterion", "convention"])
    free = "; ".join(f"{r['criterion']} ({r['convention']}): {r['trivial']}" for r in plain.to_dict("records"))
    return "\n".join([*lines, f"* **Met without a network**: {free or 'none'}."])
