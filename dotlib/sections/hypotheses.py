"""What the specification expects of optimisers, what is planned to test it, and the verdicts.

The functions take any list of hypotheses; `hypotheses_architecture` has that of sections 4.4 and 4.5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from .. import arms, convergence, stats
from ..comparison import ASSUMED
from ..stats import Interval
from ..stats_crossed import crossed_contrast, detectable_difference
from .optimisers import ENDS, PROMISE, all_failed, combined, errors, failures, gaps, twin
from .speed import times
from .stability import reasons

PHANTOMS = 64  # test phantoms of the recorded size (results/PLAN.md)
MARGIN = 5.0  # per cent: precisions that differ by less count as equal


@dataclass(frozen=True)
class Hypothesis:
    """An improvement, `low` to `high` per cent, that the specification expects of arm a over arm b; NaN: of no size.

    `of` says of what: the endpoint, the epochs to the target, the gap between validation and training loss, the mean
    SSIM of mua; `equal` is an endpoint that stays within `low` per cent. `standing`: primary (one family), secondary,
    exploratory. `note`: what is to be known of the comparison, whatever is found.
    """

    name: str
    expected: str
    a: str
    b: str
    low: float
    high: float = np.inf
    of: Literal["error", "time", "gap", "equal", "ssim"] = "error"
    standing: Literal["primary", "secondary", "exploratory"] = "exploratory"
    note: str = ""

    @property
    def promise(self) -> str:
        """The range in words, per cent."""
        if self.of == "equal":
            return f"within {self.low:g}"
        if np.isnan(self.low):
            return "--"
        return f"{self.low:g}-{self.high:g}" if np.isfinite(self.high) else f"above {self.low:g}"


_RMSE, _FASTER = "15-25 % better RMSE by AdamW + OneCycle", "20-30 % faster convergence by AdamW + OneCycle"
_STEPWISE, _LONGER = "3-8 % by progressive training", "5-10 % better by 100 epochs, not 50 (here all, not half)"
# Table H of the specification: its words and ranges; the arms are ours.
HYPOTHESES = (
    Hypothesis("H1, as specified", _RMSE, *ENDS["as specified"], *PROMISE, standing="primary"),
    Hypothesis("H1, tuned", _RMSE, *ENDS["tuned"], *PROMISE, standing="primary"),
    Hypothesis("H1, speed as specified", _FASTER, *ENDS["as specified"], 20, 30, "time", "secondary"),
    Hypothesis("H1, speed tuned", _FASTER, *ENDS["tuned"], 20, 30, "time", "secondary"),
    Hypothesis("H8", "3-7 % better convergence by batch 64 as 2 x 32", "batch-64-accumulated", "batch-32", 3, 7),
    Hypothesis("H10", _LONGER, "stage1-onecycle", "stage1-onecycle-50", 5, 10),
    Hypothesis("H10, stopped early", f"{_LONGER} with early stopping", "stopped", "stage1-onecycle-50", 5, 10),
    Hypothesis("H11, as specified", _STEPWISE, "progressive-specified", "stage1-adam", 3, 8),
    Hypothesis("H11, tuned", _STEPWISE, "progressive", "adamw-constant", 3, 8),
    Hypothesis("H12", "less overfitting by a weight-decay schedule", "decay-schedule", "stage1-onecycle", 0, of="gap"),
    Hypothesis(
        "H13, quality",
        f"mixed precision ends as fp32 does, within {MARGIN:g} %",
        "stage1-onecycle",
        "fp32",
        MARGIN,
        of="equal",
    ),
)
FAMILY = sum(h.standing == "primary" for h in HYPOTHESES)  # of this list's; any other list has as many
OF = {"error": "endpoint", "time": "epochs to target", "gap": "validation / training", "equal": "equal endpoint"}
OF |= {"ssim": "SSIM of mua"}
BOUNDS = ("at least", "at most")
NO_PROMISE = "nothing expected"
ORDER = ("refuted", "not resolved", "not computed", NO_PROMISE, "confirmed")  # negative results first


class Finding(NamedTuple):
    """Improvement found (per cent, positive is better), the verdict on what was expected, whether a is better or worse
    at all, and what else there is to say."""

    improvement: Interval
    verdict: str
    change: str
    note: str


def study_of(h: Hypothesis) -> str:
    """The study that h is judged by: of those that hold both arms, the one with most seeds."""
    holding = {name: study.seeds for name, study in arms.STUDIES.items() if {h.a, h.b} <= set(study.arms)}
    return max(holding, key=holding.get)


def share(h: Hypothesis) -> float:
    """The error rate of one test: 5 %, shared out among the primary family (Bonferroni)."""
    return 0.05 / (FAMILY if h.standing == "primary" else 1)


def plan(phantoms: int, hypotheses: Sequence[Hypothesis] = HYPOTHESES) -> pd.DataFrame:
    """What is tested, and what so many seeds and test phantoms can find: a row a hypothesis, before any result.

    Of the endpoint alone, with 80 % power if the paired log difference varies as `ASSUMED`: `detectable`, the smallest
    reduction of the error that differs from none; and the true reductions from which on the expectation is confirmed,
    and up to which it is refuted. Between these two the likely word is 'not resolved'.
    """
    rows = []
    for h in hypotheses:
        n, error = arms.STUDIES[study_of(h)].seeds, h.of == "error"
        row = {"hypothesis": h.name, "expected": h.expected, "contrast": f"{h.a} against {h.b}"}
        row |= {"of": OF[h.of], "standing": h.standing, "seeds": n, "expected, %": h.promise}
        found = detectable_difference(ASSUMED, n, phantoms, alpha=share(h)) if error else np.nan
        reach, promised = np.log1p(-found / 100), np.log1p(-h.low / 100)
        row |= {"detectable, %": found, "confirmed from, %": -100 * np.expm1(promised + reach)}
        rows.append(row | {"refuted up to, %": -100 * np.expm1(promised - reach)})
    return pd.DataFrame(rows)


def power_of_equality(phantoms: int) -> float:
    """Probability that two arms of H13 that do not differ are found equal, if seeds vary as `ASSUMED`."""
    h = next(h for h in HYPOTHESES if h.of == "equal")
    sd = float(np.hypot(ASSUMED.seed, ASSUMED.rest / np.sqrt(phantoms)))
    return stats.equivalence_power(sd, arms.STUDIES[study_of(h)].seeds, h.low)


def finding(record, h: Hypothesis, targets: Mapping[str, float]) -> Finding | str:
    """The finding on one hypothesis, or a line that says why there is none.

    Confirmed: the whole interval of the improvement is at or above `low`; refuted: all of it below. Not resolved is
    what ratios that cannot be compared say, and an SSIM so high that no improvement could keep the promise.
    """
    if all_failed(record, (h.a, h.b)):
        return "every run of an arm failed"
    found = {"error": _error, "time": _time, "gap": _gap, "equal": _equal, "ssim": _ssim}[h.of](record, h, targets)
    if isinstance(found, str | Finding):
        return found
    improvement, note = found
    promised = not np.isnan(h.low)
    judged = stats.judge(improvement, h.low if promised else 0, h.high if promised else np.inf)
    same = twin(record, h.a) or (h.b if twin(record, h.b) == h.a else "")
    notes = [note, "more than expected" * judged.exceeded, f"the same runs as {same}" if same else "", h.note]
    word = judged.verdict if improvement.low or improvement.high else "refuted"  # an improvement of exactly nothing
    return Finding(improvement, word if promised else NO_PROMISE, judged.change, "; ".join(filter(None, notes)))


def _error(record, h: Hypothesis, targets: Mapping[str, float]) -> tuple[Interval, str] | str:
    ratio = combined(errors(record), {h.a: 1, h.b: -1})
    if ratio is None:
        return "an arm has no runs"
    return crossed_contrast(ratio, np.ones_like(ratio), 1 - share(h)).effect.negated(), ""


def _time(record, h: Hypothesis, targets: Mapping[str, float]) -> tuple[Interval, str] | Finding | str:
    target = next((targets.get(name) for name, pair in ENDS.items() if pair == (h.a, h.b)), None)
    if target is None:
        return "there is no target"
    if not (found := times(record, (h.a, h.b), target)):
        return "an arm has no runs"
    ratio, reading = convergence.speedup(found[h.a], found[h.b], 1 - share(h))
    saved = convergence.time_saved(ratio)
    if reading == "not resolved":
        return Finding(saved, reading, reading, "runs of both arms miss the target")
    return saved, "" if reading == "measured" else f"a bound: {reading}"


def _over_seeds(record, h: Hypothesis) -> str:
    """What there is to say of an interval over seeds, from which failed runs are left out."""
    left_out = failures(record, (h.a, h.b))
    return f"over seeds alone; {left_out} failed left out" if left_out else "over seeds alone"


def _gap(record, h: Hypothesis, targets: Mapping[str, float]) -> tuple[Interval, str] | Finding | str:
    table = gaps(record, (h.a, h.b))
    if table.empty:
        return "an arm has no runs"
    improvement = stats.paired_contrast(table[h.a], table[h.b], 1 - share(h)).effect.negated()
    one, other = (set(reasons(arms.arm(name, record.profile))) for name in (h.a, h.b))
    if apart := one ^ other:
        note = f"no verdict from ratios that cannot be compared: {', '.join(sorted(apart))}"
        change = stats.judge(improvement, 0).change
        return Finding(improvement, "not resolved", change, "; ".join((_over_seeds(record, h), note)))
    return improvement, _over_seeds(record, h)


def similarity(record, names: Sequence[str]) -> pd.DataFrame:
    """Mean SSIM of mua over the test phantoms, seeds by arms, of the seeds in which none of them failed."""
    means = errors(record, ("ssim", "mua")).mean(axis=1)
    return means.unstack("arm").reindex(columns=list(names)).dropna()


def _ssim(record, h: Hypothesis, targets: Mapping[str, float]) -> tuple[Interval, str] | Finding | str:
    table = similarity(record, (h.a, h.b))
    if table.empty:
        return "an arm has no runs, or none with an SSIM"
    improvement = stats.paired_contrast(table[h.a], table[h.b], 1 - share(h)).effect
    most = 100 * (1 / table[h.b].mean() - 1)
    if most < h.low and improvement.high >= 0:
        note = f"from an SSIM of {table[h.b].mean():.3f} no more than {most:.1f} % is possible"
        note = "; ".join((_over_seeds(record, h), note))
        return Finding(improvement, "not resolved", stats.judge(improvement, 0).change, note)
    return improvement, _over_seeds(record, h)


def _equal(record, h: Hypothesis, targets: Mapping[str, float]) -> Finding | str:
    kinds = {arm: set(record.runs.loc[record.runs["arm"] == arm, "precision"]) for arm in (h.a, h.b)}
    ratio = combined(errors(record), {h.a: 1, h.b: -1})
    if ratio is None:
        return "an arm has no runs"
    if kinds[h.a] & kinds[h.b]:
        return f"both arms ran in {', '.join(sorted(kinds[h.a]))}: this machine has no other"
    e = stats.equivalence(ratio, np.ones_like(ratio), h.low)
    words, improvement = {"equivalent": "confirmed", "not equivalent": "refuted"}, e.effect.negated()
    note = f"90 % interval over seeds against {h.low:g} % either way"
    change = stats.verdict(crossed_contrast(ratio, np.ones_like(ratio), 1 - share(h)).effect)
    return Finding(improvement, words.get(e.verdict, e.verdict), change, note)


def verdicts(
    records: Mapping[str, Any], targets: Mapping[str, float], hypotheses: Sequence[Hypothesis] = HYPOTHESES
) -> pd.DataFrame:
    """A row a hypothesis: what is expected, what was found with its interval, failed runs, and the verdict.

    `records`: by study; `targets`: of the epochs, by pair of ends. `against 0` says whether the arm is better at all.
    """
    return pd.DataFrame([_row(records.get(study_of(h)), h, targets) for h in hypotheses])


def _row(record, h: Hypothesis, targets: Mapping[str, float]) -> dict[str, Any]:
    found = "its study is not computed" if record is None else finding(record, h, targets)
    if isinstance(found, str):
        found = Finding(Interval(), "not computed", "--", found)
    x, known = found.improvement, found.improvement.n > 0
    row = {"hypothesis": h.name, "expected, %": h.promise, "found, %": x.estimate}
    row |= {"interval, %": f"[{x.low:.3g}, {x.high:.3g}]" if known else "--", "seeds": x.n}
    row |= {"failed": 0 if record is None else failures(record, (h.a, h.b)), "standing": h.standing}
    return row | {"verdict": found.verdict, "against 0": found.change, "note": found.note}


def answer(table: pd.DataFrame, hypotheses: Sequence[Hypothesis] = HYPOTHESES) -> str:
    """The verdicts in Markdown, negative results first."""
    words, lines = {h.name: h.expected for h in hypotheses}, []
    for word in ORDER:
        for row in table[table["verdict"] == word].to_dict("records"):
            bound = next((f"{word} " for word in BOUNDS if word in row["note"]), "")
            found = f"{bound}{row['found, %']:+.1f} % {row['interval, %']}, against 0: {row['against 0']}"
            found = f" Found: {found}." if np.isfinite(row["found, %"]) else ""
            failed = f", {row['failed']} failed" if row["failed"] else ""
            scope = f"{row['standing']}, {row['seeds']} seeds{failed}" + f"; {row['note']}" * bool(row["note"])
            lines.append(f"* **{row['hypothesis']}: {word}** ({scope}). Expected: {words[row['hypothesis']]}.{found}")
    return "\n".join(lines)
