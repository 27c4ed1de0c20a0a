"""Section 4.4: do attention gates lower the error, and more than their controls do? Tables of recorded runs, verdicts.

A record is a `records.Record`. Effects are of errors, in per cent, negative is better.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from .. import arms, stats
from ..comparison import ASSUMED, Column
from ..improvements import ATTENTION, GATES, SIZES
from ..reconstructions import GATES as LIGHT
from ..reconstructions import NETWORK
from ..stats import Interval
from ..stats_crossed import detectable_difference
from . import hypotheses, hypotheses_architecture
from .attention_costs import CLAIM, DIGIT, GROUPS, PLAIN, overheads
from .hypotheses import ORDER
from .optimisers import Pair, contrasts, failures, family, other_errors

CONFIRMED, EXPLORED, SHOWN = "4.4-gates", "4.4-attention", "4.4-shown"
STUDIES = (CONFIRMED, EXPLORED)
H3 = tuple(h for h in hypotheses_architecture.HYPOTHESES if h.name.startswith("H3"))
PAIRS = [Pair(f"{h.name.removeprefix('H3, ')}, against {h.b}", h.a, h.b) for h in H3]
PANELS = {h.name.removeprefix("H3, "): (h.a, h.b) for h in H3}
CONTROLS, COMPARATORS = GROUPS["control"], GROUPS["comparator"]
SSIM: Column = ("ssim", "mua")
MORE, LESS, OPEN, NONE = "more than both", "less than a control", "not resolved", "not computed"
COLUMNS = ["hypothesis", "expected", "expected, %", "found, %", "interval, %", "seeds", "failed", "standing", "verdict"]
COLUMNS += ["against 0", "note"]


def plan(phantoms: int) -> pd.DataFrame:
    """What is tested, and what so many seeds and test phantoms can find: H3's rows of `hypotheses.plan`, and one more.

    That is of every exploratory contrast, by an interval of its own at 5 %.
    """
    seeds = arms.STUDIES[EXPLORED].seeds
    row = {"hypothesis": "arms, controls, other kinds", "expected": "--", "contrast": "any two arms", "of": "endpoint"}
    row |= {"standing": "exploratory", "seeds": seeds, "expected, %": "--"}
    row["detectable, %"] = detectable_difference(ASSUMED, seeds, phantoms)
    return pd.concat([hypotheses.plan(phantoms, H3), pd.DataFrame([row])], ignore_index=True)


def primary(record) -> pd.DataFrame:
    """The confirmatory family, H3's two gates: intervals at 5 % shared out among them (Bonferroni), Holm's p."""
    return family(record, PAIRS, [(h.low, h.high) for h in H3])


def secondary(record) -> pd.DataFrame:
    """Both gates on the other errors, and on the primary one at the checkpoint that validation found best."""
    similar = contrasts(dissimilar(record), PAIRS, SSIM).assign(standing="1 - SSIM of mua: secondary")
    return pd.concat([other_errors(record, PAIRS), similar], ignore_index=True)


def dissimilar(record):
    """The record with 1 - SSIM of mua, an error, in the place of its SSIM, of the runs that have one.

    A run that failed has none: its seed is left out of what is compared.
    """
    rows = record.metrics[(record.metrics["metric"] == SSIM[0]) & (record.metrics["channel"] == SSIM[1])]
    whole = rows["value"].notna().groupby([rows["arm"], rows["seed"]]).transform("all")
    return replace(record, metrics=rows[whole].assign(value=1 - rows["value"]))


def gates(record) -> pd.DataFrame:
    """The confirmatory contrasts, and below them the secondary ones."""
    return pd.concat([primary(record), secondary(record)], ignore_index=True)


def exploratory(record) -> pd.DataFrame:
    """Each arm against the plain network, and both gates against their controls and the other kinds; unadjusted."""
    pairs = [Pair(f"against {PLAIN}", arm, PLAIN) for arm in (*ATTENTION, *SIZES)]
    for gate in GATES[1:]:
        pairs += [Pair(f"{gate} against its controls", gate, other) for other in CONTROLS]
        pairs += [Pair(f"{gate} against other kinds", gate, other) for other in COMPARATORS]
    labels = [pair.a if pair.b == PLAIN else f"against {pair.b}" for pair in pairs]
    return contrasts(record, pairs).assign(standing="exploratory", label=labels)


def under_light(record) -> pd.DataFrame:
    """Gates in the network that reconstructs, against the plain one and against the gate that is never trained."""
    gates = [f"reconstruct-{kind}" for kind in LIGHT]
    pairs = [Pair(f"against {NETWORK}", gate, NETWORK) for gate in gates]
    pairs += [Pair("against the control", gate, gates[-1]) for gate in gates[:-1]]
    return contrasts(record, pairs).assign(standing="exploratory")


def controls(record) -> pd.DataFrame:
    """Whether each gate does more than both controls: gate, the effect against each, seeds, word; record may be None.

    `MORE`: both intervals lie below 0. `LESS`: one of them lies above. Else not resolved.
    """
    rows = []
    for gate in GATES[1:]:
        row: dict[str, Any] = {"gate": gate, "seeds": 0, "word": NONE} | dict.fromkeys(CONTROLS, "--")
        if record is not None:
            table = contrasts(record, [Pair("", gate, control) for control in CONTROLS])
            row |= {"seeds": int(table["seeds"].min()), "word": _more(table)}
            row |= {control: _effect(found) for control, found in zip(CONTROLS, table.to_dict("records"), strict=True)}
        rows.append(row)
    return pd.DataFrame(rows)


def _more(table: pd.DataFrame) -> str:
    if (table["low"] > 0).any():
        return LESS
    if table["high"].isna().any():
        return NONE
    return MORE if (table["high"] < 0).all() else OPEN


def _effect(row: Mapping[str, Any]) -> str:
    return f"{row['effect']:+.1f} % {stats.limits(row['low'], row['high'])}" if np.isfinite(row["low"]) else "--"


def arithmetic() -> pd.DataFrame:
    """The claim on parameters as rows of verdicts, by counting: confirmed where it is right to its last digit."""
    cases, rows = {"2": "one gate at 128 channels", "1, 2": "two deepest stages", "1, 2, 3": "three deepest stages"}, []
    for row in overheads().query("kind == 'sigmoid'").to_dict("records"):
        share = row["of legacy, %"]
        name = f"H3, parameters, {cases[row['stages']]}"
        note = f"counted: {row['added']:,} of the legacy network's at 64^3, width 16; no run"
        word = "confirmed" if abs(share - CLAIM) < DIGIT / 2 else "refuted"
        rows.append(_row(name, f"+{CLAIM} % parameters", f"{CLAIM}", Interval(share, share, share, 0), word, note))
    return pd.DataFrame(rows)


def contrast(records: Mapping[str, Any]) -> pd.DataFrame:
    """Better tumour contrast, a row a gate: the improvement of |1 - crc| of mua, per seed the median over inclusions.

    From the first of `records`, by study, that has crc. Student's interval over seeds, 95 %, without the seeds in which
    a run failed. crc is the contrast that is recovered: 1 is all of it.
    """
    having = {name: record for name, record in records.items() if record is not None and _has_crc(record)}
    study, record = next(iter(having.items()), ("", None))
    rows = []
    for h in H3:
        found, failed = Interval(), 0
        note = "no record at hand has crc"
        if study:
            note = f"study {study}, |1 - crc| of mua, over seeds alone; {hypotheses_architecture.CONTROLS}"
        if record is not None:
            table, failed = shortfall(record, [h.a, h.b]), failures(record, [h.a, h.b])
            if len(table):
                found = stats.paired_contrast(table[h.a], table[h.b]).effect
            else:
                note = f"study {study} has no runs of {h.a}"
        change = stats.verdict(found) if found.n else "--"
        word = {"better": "confirmed", "worse": "refuted", "--": NONE}.get(change, OPEN)
        found = found.negated()
        words = (f"H3, contrast, {h.a}", "better tumour contrast", "above 0")
        rows.append(_row(*words, found, word, note, change, failed))
    rows.append(_row("H3, edges", "better tumour edges", "--", Interval(), NONE, "no metric of edges is computed"))
    return pd.DataFrame(rows)


def _has_crc(record) -> bool:
    return bool((record.metrics["metric"] == "crc").any())


def shortfall(record, names: list[str]) -> pd.DataFrame:
    """|1 - crc| of mua, median over the test set's inclusions, seeds by arms, of the seeds in which none failed."""
    keys = {"metric": "crc", "channel": "mua", "checkpoint": "last"}
    rows = record.metrics[(record.metrics[list(keys)] == pd.Series(keys)).all(axis=1)]
    medians = rows.assign(value=(1 - rows["value"]).abs()).groupby(["seed", "arm"])["value"].median()
    return medians.unstack("arm").reindex(columns=names).dropna()


def _row(name, expected, promise, found: Interval, word, note, change="--", failed=0) -> dict[str, Any]:
    limits = found.limits() if found.n > 1 else "--"
    values = (name, expected, promise, found.estimate, limits, found.n, failed, "exploratory", word, change, note)
    return dict(zip(COLUMNS, values, strict=True))


def verdicts(records: Mapping[str, Any]) -> pd.DataFrame:
    """All rows on H3, by study: the error of mua, the parameters, tumour contrast and edges."""
    words = {h.name: h.expected for h in H3}
    table = hypotheses.verdicts(records, {}, H3)
    table = table.assign(expected=table["hypothesis"].map(words))[COLUMNS]
    return pd.concat([table, arithmetic().assign(standing="arithmetic"), contrast(records)], ignore_index=True)


def answer(records: Mapping[str, Any]) -> str:
    """The answer in Markdown, negative results first: the verdicts on H3, then the gates beside their controls."""
    table = verdicts(records)
    lines = [_line(row) for word in ORDER for row in table[table["verdict"] == word].to_dict("records")]
    beside = controls(records.get(EXPLORED))
    order = (LESS, OPEN, NONE, MORE)
    lines += [_beside(row) for word in order for row in beside[beside["word"] == word].to_dict("records")]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    interval = f" {row['interval, %']}" if row["interval, %"] != "--" else ""
    change = f", against 0: {row['against 0']}" if row["against 0"] != "--" else ""
    found = f" Found: {row['found, %']:+.3g} %{interval}{change}." if np.isfinite(row["found, %"]) else ""
    seeds = f", {row['seeds']} seeds" if row["seeds"] else ""
    failed = f", {row['failed']} failed" if row["failed"] else ""
    scope = f"{row['standing']}{seeds}{failed}" + f"; {row['note']}" * bool(row["note"])
    return f"* **{row['hypothesis']}: {row['verdict']}** ({scope}). Expected: {row['expected']}.{found}"


READING = {
    MORE: "what it does may be read as attention",
    LESS: "what it does is not read as attention",
    OPEN: "what it does is not read as attention until it is resolved",
    NONE: "nothing is read as attention",
}


def _beside(row: Mapping[str, Any]) -> str:
    question = f"**Does {row['gate']} do more than both controls? "
    if row["word"] == NONE:
        return f"* {question}Not computed:** {READING[NONE]}."
    beside = "; ".join(f"against {control} {row[control]}" for control in CONTROLS)
    said = {MORE: "Yes", LESS: "No", OPEN: "Not resolved"}[row["word"]]
    return f"* {question}{said}** (exploratory, {row['seeds']} seeds): {beside}; {READING[row['word']]}."
