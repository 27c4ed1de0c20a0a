"""What the specification expects of networks, losses and data, and the verdicts on all its hypotheses, H1 to H14.

An improvement that is judged alone on the baseline and in the full recipe has two rows, and the weaker verdict.
"""

import re

import numpy as np
import pandas as pd

from .. import config as configuration
from .. import stats
from ..data import phantoms
from ..improvements import ALTERNATIVES
from ..reconstructions import LINKS, NETWORK, PATTERNS
from ..stats import Interval
from . import ablation, hypotheses
from .hypotheses import NO_PROMISE, Hypothesis

LIGHT = ("4.6-patterns", "4.6-architecture")  # of task reconstruct
STUDIES = ("4.5-add-one-in", "4.5-leave-one-out", "4.5-data", "4.5-roadmap", "4.4-gates", *LIGHT)
WEAK = ("refuted", "not computed", "not resolved", NO_PROMISE, "confirmed")  # what is not computed may be refuted
PREMISE = "H7, premise"
_GATE = "10-15 % better mua by spatial attention"
CONTROLS = "it is attention's doing only where it exceeds both controls of section 4.4"
_SAMPLED = "task reconstruct; trained with pairs chosen so and at random, each tested with its own"
_LIGHT = "task reconstruct"
_AT_ONCE = "data size, tumour size and optimiser change at once"


def _both(name: str, expected: str, improvement: str, low: float, high: float = np.inf, **more) -> list[Hypothesis]:
    """A hypothesis on one improvement, in both directions."""
    notes = dict.fromkeys(ablation.OF, more.pop("note", ""))
    if improvement in ALTERNATIVES:
        notes[ablation.WITHIN] = "against none in the full recipe"  # not against what it takes the place of
    return [
        Hypothesis(f"{name}, {where}", expected, *ablation.pair(improvement, where)[1:], low, high, note=note, **more)
        for where, note in notes.items()
    ]


# Table H of the specification: its words and ranges; the arms are ours, the pairs those of results/PLAN.md.
HYPOTHESES = (
    *_both("H2, more data", "5-15 % from more data", "data size", 5, 15),
    *_both("H2, larger tumours", "a factor of its own, without a range", "tumour size", np.nan),
    Hypothesis(
        "H2, first phase", "20-30 % better on unseen data from 2,000 to 5,000 phantoms", "stage1-phase1",
        "stage1-phase0", 20, 30, note=_AT_ONCE,
    ),
    *(
        Hypothesis(f"H3, gate {how}", _GATE, arm, "stage1-onecycle", 10, 15, standing="primary", note=CONTROLS)
        for how, arm in (("as specified", "sigmoid-2"), ("from identity", "identity-2"))
    ),
    *(
        Hypothesis(f"H4, {name}{more}", expected, arm, NETWORK, low, high, of, note=_SAMPLED)
        for more, expected, low, high, of in (
            ("", "10-20 % better SSIM by the choice of pairs", 10, 20, "ssim"),
            (", gap", "less overfitting by the choice of pairs", 0, np.inf, "gap"),
        )
        for name, arm in ((arm.removeprefix("reconstruct-"), arm) for arm in PATTERNS)
    ),
    *_both("H5", "5-10 % better generalisation by augmentation", "augmentation", 5, 10),
    *_both("H6", "5-12 % better SSIM by the multi-scale loss", "multi-scale loss", 5, 12, of="ssim"),
    *_both("H7, weight", "better mua by a channel-weighted loss", "channel weight", 0),
    *_both("H9, 2 blocks", "5-10 % better features by 2-3 residual blocks a stage", "depth", 5, 10),
    *_both("H9, 3 blocks", "5-10 % better features by 2-3 residual blocks a stage", "depth 3", 5, 10),
    *_both("H12, dropout", "less overfitting by spatial dropout", "dropout", 0, of="gap"),
    *_both("H12, dropout, endpoint", "less overfitting by spatial dropout, so a lower error", "dropout", 0),
    *_both("H12, decay", "less overfitting by a weight-decay schedule", "decay schedule", 0, of="gap"),
    *_both("H14, dense", "better information flow by dense links", "dense links", 0),
    *_both("H14, fused", "better information flow by fused links", "fused links", 0),
    *_both("H14, guided", "better information flow by attention-guided links", "guided links", 0),
    *(
        Hypothesis(f"H14, {name} under reconstruct", f"better information flow by {name} links", f"reconstruct-{name}",
                   NETWORK, 0, note=_LIGHT)
        for name in LINKS
    ),
    *_both("H14, hybrid", "better long-range modelling by a hybrid encoder", "hybrid ViT", 0),
)  # fmt: skip
# what this section has no runs for: what is expected, and where it is answered
ELSEWHERE = {
    "H13, speed": ("20-30 % faster training by mixed precision", "section 4.7 times it"),
}


def premise(profile: str) -> pd.DataFrame:
    """Contrasts of the inclusions of a profile's own phantoms: a row a channel, tumour over healthy tissue.

    Columns: channel, inclusions, 5 %, median, 95 %, lower in (share of the inclusions whose contrast is the lower of
    the two in this channel, per cent, with Wilson's interval). From the tables of the phantoms, no run.
    """
    contrast, rows = contrasts(_tables(profile)), []
    for i, channel in enumerate(("mua", "musp")):
        low, middle, high = np.percentile(contrast[:, i], (5, 50, 95))
        share = _lower(contrast, i)
        row = {"channel": channel, "inclusions": share.n, "5 %": low, "median": middle, "95 %": high}
        rows.append(row | {"lower in, %": share.estimate, "interval, %": share.limits()})
    return pd.DataFrame(rows)


def _tables(profile: str) -> np.ndarray:
    """A profile's own phantoms, (P, 6, 13)."""
    data = configuration.profile(profile).base.data
    return phantoms.sample(data.family, data.phantoms, data.seed)


def contrasts(tables: np.ndarray) -> np.ndarray:
    """Tumour over healthy tissue, (inclusions, 2: mua, musp), of tables of phantoms (P, 6, 13)."""
    values = np.asarray(tables, float)[:, :, [phantoms.MUA, phantoms.MUSP]]
    ratio = values[:, 1:] / values[:, :1]
    return ratio[np.isfinite(ratio).all(axis=-1)]


def _lower(contrast: np.ndarray, channel: int) -> Interval:
    """The share of inclusions, per cent, in which a channel's contrast is the lower one, with Wilson's interval."""
    lower = contrast[:, channel] < contrast[:, 1 - channel]
    return stats.wilson(int(lower.sum()), len(lower)).map(lambda x: 100 * x)


def premise_row(profile: str) -> dict:
    """H7's premise, that mua has the lower contrast, as a row of `hypotheses.verdicts`.

    Confirmed where the interval of the share of such inclusions lies above one half, refuted where it lies below.
    """
    share = _lower(contrasts(_tables(profile)), 0)
    word = stats.judge(share, 50).verdict
    row = {"hypothesis": PREMISE, "expected, %": "above 50", "found, %": share.estimate}
    row |= {"interval, %": share.limits(), "seeds": 0, "failed": 0, "standing": "exploratory"}
    note = f"share of {share.n} inclusions of the phantoms themselves, no run"
    return row | {"verdict": word, "against 0": "--", "note": note}


def _elsewhere() -> list[dict]:
    blank = {"expected, %": "--", "found, %": np.nan, "interval, %": "--", "seeds": 0, "failed": 0, "standing": "--"}
    blank |= {"verdict": "not computed", "against 0": "--"}
    return [{"hypothesis": name} | blank | {"note": note} for name, (_, note) in ELSEWHERE.items()]


def every_row(records: dict, targets: dict, profile: str) -> pd.DataFrame:
    """All rows on H1 to H14, in their order: those of 4.3, those of 4.4 and 4.5, the premise, and what is elsewhere.

    `records`: by study; `targets`: as `hypotheses.verdicts`; `profile`: whose phantoms the premise is tested on.
    """
    tables = [hypotheses.verdicts(records, targets, some) for some in (hypotheses.HYPOTHESES, HYPOTHESES)]
    table = pd.concat([*tables, pd.DataFrame([premise_row(profile), *_elsewhere()])], ignore_index=True)
    table = table.assign(expected=table["hypothesis"].map(words()))
    return table.sort_values("hypothesis", key=lambda names: names.map(number), kind="stable", ignore_index=True)


def number(name: str) -> int:
    """The number of a hypothesis: 12 of 'H12, dropout, alone'."""
    return int(re.match(r"H(\d+)", name)[1])


def words() -> dict[str, str]:
    """What is expected, by row, in the specification's words."""
    found = {h.name: h.expected for h in (*hypotheses.HYPOTHESES, *HYPOTHESES)}
    found |= {name: expected for name, (expected, _) in ELSEWHERE.items()}
    return found | {PREMISE: "mua has the lower contrast"}


def claim_of(name: str) -> str:
    """A row's claim: its name without the direction."""
    return re.sub(rf", ({'|'.join(ablation.OF)})$", "", name)


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """A row a claim of `every_row`: what was found in each direction, and the weaker of the verdicts (`WEAK`)."""
    rows = []
    for claim, of in table.groupby(table["hypothesis"].map(claim_of), sort=False):
        notes = [[part for part in note.split("; ") if part] for note in of["note"]]
        common = [part for part in notes[0] if all(part in note for note in notes)]
        own = [[part for part in note if part not in common] for note in notes]
        found = "; ".join(_found(row, claim, more) for row, more in zip(of.to_dict("records"), own, strict=True))
        row = {"claim": claim, "expected": of["expected"].iloc[0], "expected, %": of["expected, %"].iloc[0]}
        row |= {"found, %": found, "seeds": of["seeds"].min(), "failed": of["failed"].sum()}
        row |= {"standing": of["standing"].iloc[0], "verdict": min(of["verdict"], key=WEAK.index)}
        rows.append(row | {"note": "; ".join(common)})
    return pd.DataFrame(rows)


def _found(row: dict, claim: str, notes: list[str]) -> str:
    """What one row of a claim found, with its verdict and what is to be said of this direction alone."""
    where = row["hypothesis"].removeprefix(claim).removeprefix(", ")
    found = f"{row['found, %']:+.1f} {row['interval, %']}" if np.isfinite(row["found, %"]) else "--"
    return f"{where}: {found} ({', '.join([row['verdict'], *notes])})" if where else found


def answer(table: pd.DataFrame) -> str:
    """The claims in Markdown, negative results first; those that are not computed on one line."""
    lines = []
    for word in hypotheses.ORDER:
        rows = table[table["verdict"] == word].to_dict("records")
        if word == "not computed" and rows:
            lines.append(f"* **Not computed:** {', '.join(row['claim'] for row in rows)}.")
        elif rows:
            lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(row: dict) -> str:
    failed = f", {row['failed']} failed" if row["failed"] else ""
    scope = f"{row['standing']}, {row['seeds']} seeds{failed}" if row["seeds"] else row["standing"]
    note = f" {row['note'][0].upper()}{row['note'][1:]}." if row["note"] else ""
    found = f"Expected: {row['expected']}. Found: {row['found, %']} %.{note}"
    return f"* **{row['claim']}: {row['verdict']}** ({scope}). {found}"
