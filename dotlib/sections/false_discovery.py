"""How often the judgement of section 4.5 finds something where there is nothing, on recorded runs of section 4.3."""

from typing import Any

import numpy as np
import pandas as pd

from .. import stats_aa
from ..comparison import ASSUMED
from ..improvements import IMPROVEMENTS
from .optimisers import errors

STUDY = "4.3-ends"  # ten runs an arm
TWO, FOUR, APART = "two arms", "four arms", "two arms apart on these phantoms"
OWN = ASSUMED.phantom / np.sqrt(2)  # sd over phantoms of what an arm of `APART` has on its own; of a contrast ASSUMED's
# arm, seeds, contrasts in the family, of how many arms each: a contrast by itself, a direction of the ablation, its
# interactions, the factorial's number of seeds, the two gates of H3; and arms whose errors differ on the phantoms at
# hand as real arms' do, in the mean over new ones not at all: runs of one arm alone try the seeds' part of an interval
EXPERIMENTS = (
    ("stage1-onecycle", 3, 1, TWO),
    ("stage1-onecycle", 3, len(IMPROVEMENTS), TWO),
    ("stage1-onecycle", 3, len(IMPROVEMENTS), FOUR),
    ("stage1-onecycle", 5, 1, TWO),
    ("stage1-onecycle", 10, 2, TWO),
    ("stage1-onecycle", 3, len(IMPROVEMENTS), APART),
    ("stage1-onecycle", 5, 1, APART),
    ("stage1-onecycle", 10, 2, APART),
    ("stage1-adam", 3, 1, TWO),
    ("stage1-adam", 5, 1, TWO),
    ("stage1-adam", 10, 2, TWO),
)
REPETITIONS = {"smoke": 40, "quick": 2000, "full": 2000}
ENOUGH = 2000  # repetitions, below which a rate carries no verdict
LIMIT = {3: 0.08, 5: 0.07, 10: 0.07}  # of the rate, by seeds: what is accepted as 5 %
FEWEST = 3  # runs that an arm needs
ORDER = ("exceeded", "not resolved", "held")  # negative results first


def rates(record, repetitions: int, seed: int = 0) -> pd.DataFrame:
    """A row an experiment: how often a family has a false discovery, per cent, with Clopper and Pearson's interval.

    In each repetition every arm of the family is made of runs of *one* real arm, so that whatever is found is false;
    arms `APART` differ on the phantoms at hand, and have the same mean over new ones. Small families are cheap: they
    have five times as many repetitions.
    Runs that failed are left out; without a record nothing is computed. 'held': the whole interval is at or below what
    is accepted; 'exceeded': above.
    """
    rows = []
    for arm, seeds, family, of in EXPERIMENTS:
        runs = _good(record, arm)
        row = {"arm": arm, "runs": len(runs), "seeds": seeds, "contrasts": family, "of": of}
        n = repetitions * (5 if family <= 2 else 1)
        accepted = {"accepted, %": 100 * LIMIT[seeds]}
        if len(runs) < FEWEST:
            rows.append(row | {"repetitions": 0, "false, %": np.nan, "interval, %": "--"} | accepted)
            rows[-1]["verdict"] = "not computed"
            continue
        rng = np.random.default_rng(seed)
        found = stats_aa.false_discovery(runs, seeds, family, n, rng=rng, **_kind(of))
        row |= {"repetitions": n, "false, %": 100 * found.rate}
        row["interval, %"] = f"[{100 * found.low:.3g}, {100 * found.high:.3g}]"
        rows.append(row | accepted | {"verdict": _verdict(found, LIMIT[seeds])})
    return pd.DataFrame(rows)


def _kind(of: str) -> dict[str, Any]:
    return {"interaction": of == FOUR, "phantom": OWN if of == APART else 0.0}


def _good(record, arm: str) -> np.ndarray:
    """Errors of an arm's runs that did not fail, (R, P)."""
    if record is None:
        return np.zeros((0, 0))
    kept = record.runs.loc[(record.runs["arm"] == arm) & (record.runs["failed"] == ""), "seed"]
    table = errors(record)
    return table[table.index.isin([(arm, seed) for seed in kept])].to_numpy()


def _verdict(found: stats_aa.Rate, limit: float) -> str:
    if found.repetitions < ENOUGH:
        return "too few repetitions"
    if found.high <= limit:
        return "held"
    return "exceeded" if found.low > limit else "not resolved"


def answer(table: pd.DataFrame) -> str:
    """What the rates say, in one sentence; where the level was exceeded, that first."""
    known = table[table["repetitions"] > 0]
    if known.empty:
        return "The false discovery rate is not computed."
    if (known["repetitions"] < ENOUGH).any():
        few = known["repetitions"].min()
        return f"With {few} repetitions the false discovery rate is a check that the code runs, and says nothing else."
    rows = known.sort_values("verdict", key=lambda words: words.map(ORDER.index), kind="stable").to_dict("records")
    found = "; ".join(f"{r['verdict']} at {r['seeds']} seeds, family of {r['contrasts']} of {r['of']}, {r['arm']} "
                      f"({r['false, %']:.1f} % {r['interval, %']})" for r in rows)  # fmt: skip
    return f"Level of the judgement where no mean differs: {found}."
