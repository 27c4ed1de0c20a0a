"""Section 4.5 in one page: what to switch on, what to leave out, what is not resolved; Markdown made of the tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .. import stats
from ..comparison import ASSUMED
from ..improvements import IMPROVEMENTS
from ..stats_crossed import Components, detectable_difference
from .ablation import ALONE, LEVEL, NOT_COMPUTED, SAME, WITHIN, agreement, named
from .hypotheses import ORDER

OUT, DEPENDS, EITHER, OPEN, ON = "leave out", "depends on the rest", "either way", "open in full", "switch on"
ADVICE = (OUT, DEPENDS, SAME, EITHER, OPEN, NOT_COMPUTED, ON)  # negative results first
HEADS = {
    OUT: "Leave out: worse",
    DEPENDS: "Depends on the rest: the two directions disagree",
    SAME: "Never took effect: with and without it the runs are the same",
    EITHER: "Not resolved, so either way",
    OPEN: "Better alone, not resolved in the full recipe",
    NOT_COMPUTED: "Not computed",
    ON: "Switch on: better in the full recipe, and not worse alone",
}


def rule(alone: str, within: str, instead: str = "") -> str:
    """What is advised, by the words of both directions (`ablation.word`), and of an alternative by `instead`.

    Leave out what is worse in one direction and not better in the other, switch on what is better in the full recipe
    and not worse alone; an alternative only if it is better there than what it takes the place of, too. Only a word
    that Holm's p bears out resolves; an unadjusted one is enough to speak against it.
    """
    if NOT_COMPUTED in (alone, within, instead):
        return NOT_COMPUTED
    if alone == within == SAME:
        return SAME
    if within == "better":
        if alone.startswith("worse"):
            return DEPENDS
        return ON if not instead or instead.startswith("better") else OUT if instead.startswith("worse") else EITHER
    if "worse" in (alone, within):
        other = within if alone == "worse" else alone
        return DEPENDS if other.startswith("better") else OUT
    if alone == "better":
        return DEPENDS if within.startswith("worse") else OPEN
    return EITHER


def advice(effects: pd.DataFrame) -> pd.DataFrame:
    """A row an improvement of `ablation.effects`, negative advice first: advice, both effects, seeds, operations.

    `operations`: those of the training with it over without, in the full recipe; above 1 it costs.
    """
    sides = {where: effects[effects["where"] == where].set_index("name") for where in (ALONE, WITHIN)}
    rows = []
    for name in IMPROVEMENTS:
        alone, within = (sides[where].loc[name] for where in sides)
        row = {"improvement": named(name), "advice": rule(alone["word"], within["word"], within["instead"])}
        row |= {WITHIN: _found(within), ALONE: _found(alone), "agree": agreement(alone["word"], within["word"])}
        row["operations"] = within["operations"]
        rows.append(row | {"failed": alone["failed"] + within["failed"]})
    table = pd.DataFrame(rows)
    return table.sort_values("advice", key=lambda words: words.map(ADVICE.index), kind="stable", ignore_index=True)


def _found(row: pd.Series) -> str:
    if not np.isfinite(row["effect"]):
        return NOT_COMPUTED
    return ", ".join(filter(None, (_change(row), row["word"], row["instead"])))


def _change(row: Mapping[str, Any]) -> str:
    return f"{row['effect']:+.1f} % {stats.limits(row['low'], row['high'])}".removesuffix(" --")


def page(table: pd.DataFrame, claims: pd.DataFrame, remarks: Sequence[str] = ()) -> str:
    """The verdict in Markdown: advice of `advice`, the hypotheses of `hypotheses_architecture.claims`, and remarks."""
    parts = [_part(word, table[table["advice"] == word]) for word in ADVICE]
    counts = ", ".join(f"{(table['advice'] == word).sum()} {word}" for word in ADVICE)
    lines = [
        f"**By the nrmse of mua, of {len(table)} improvements: {counts}.**",
        *filter(None, parts),
        _hypotheses(claims),
    ]
    said = "\n".join(["**How far these numbers carry.**\n", *(f"* {remark}" for remark in remarks)])
    return "\n\n".join([*lines, *[said] * bool(remarks)])


def altogether(row: dict[str, Any]) -> str:
    """What everything together does (`ablation.altogether`), in one sentence."""
    if not np.isfinite(row["effect"]):
        return "All together, the full recipe against the baseline: not computed."
    scope = f"{row['seeds']} seeds" + (f", failed runs: {row['failed']}" if row["failed"] else "")
    return f"All together, the full recipe against the baseline: {_change(row)}, {scope}."


def interplay(table: pd.DataFrame) -> str:
    """What `ablation.interactions` resolves, in one sentence."""
    known = table[table["low"].notna()]
    if known.empty:
        reason = next(iter(table["note"]), "")
        return f"Interactions: not computed{f', {reason}' if reason else ''}."
    words = [f"{row['label']} ({row['effect']:+.1f} %)" for _, row in known[known["confirmatory"]].iterrows()]
    found = f"{len(words)} of {len(known)} resolved after Holm's adjustment" + f": {', '.join(words)}" * bool(words)
    return f"Interactions, in the full recipe over alone, above 0 a smaller gain or more of a loss: {found}."


def reach(effects: pd.DataFrame, phantoms: int) -> str:
    """What so many seeds could not have found, in one sentence: by the plan's assumed spreads, and by those found."""
    seeds = int(effects.loc[effects["seeds"] > 0, "seeds"].min()) if (effects["seeds"] > 0).any() else 0
    if seeds < 2:
        return "What could have been found: not computed, fewer than two seeds."
    sizes = [[float(sd) for sd in text.split(",")] for text in effects["sizes"].dropna() if text != "--"]
    median = Components(*np.median(sizes, axis=0)) if sizes else ASSUMED
    found = []
    for sd in (ASSUMED, median) if sizes and median.seed + median.rest > 0 else (ASSUMED,):
        alone, family = (detectable_difference(sd, seeds, phantoms, alpha=LEVEL / n) for n in (1, len(IMPROVEMENTS)))
        found.append(f"of {alone:.1f} % by an interval of its own and of {family:.1f} % at Holm's first step")
    return (
        f"At {seeds} seeds and {phantoms} phantoms, if runs vary as the plan assumed, 80 % power finds a reduction "
        + found[0]
        + "".join(f"; if they vary as the median contrast here does, one {text}" for text in found[1:])
        + ": 'not resolved' is not 'no effect'."
    )


def _part(word: str, rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    if word == NOT_COMPUTED:
        return f"**{HEADS[word]}.** {', '.join(rows['improvement'])}."
    found = [(row["improvement"], row[WITHIN], row[ALONE], _cost(row)) for _, row in rows.iterrows()]
    lines = [f"* {name}: {WITHIN} {within}; {ALONE} {alone}{cost}" for name, within, alone, cost in found]
    return "\n".join([f"**{HEADS[word]}.**{_leaning(rows) if word == EITHER else ''}\n", *lines])


def _leaning(rows: pd.DataFrame) -> str:
    """What both unadjusted intervals agree on among the unresolved, as a place to spend more seeds."""
    found = [(word, rows.loc[rows["agree"] == f"yes: {word}", "improvement"]) for word in ("worse", "better")]
    said = "; ".join(f"{word}: {', '.join(names)}" for word, names in found if len(names))
    return f" Worth more seeds, for both intervals, unadjusted, say the same: {said}." if said else ""


def _cost(row: pd.Series) -> str:
    more = 100 * (row["operations"] - 1)
    return (f"; {more:+.0f} % operations" if abs(more) >= 0.5 else "") + (
        f"; failed runs: {row['failed']}" if row["failed"] else ""
    )


def _hypotheses(claims: pd.DataFrame) -> str:
    words = [word for word in ORDER if (claims["verdict"] == word).any()]
    rows = {word: claims[claims["verdict"] == word].to_dict("records") for word in words}
    lines = [f"* {word}: {'; '.join(map(_claim, rows[word]))}." for word in words]
    head = "**What the specification expects.** What is not primary is by an interval of its own, unadjusted.\n"
    return "\n".join([head, *lines])


def _claim(row: dict[str, Any]) -> str:
    """A claim with its standing and what is to be said of it."""
    said = [word for word in (row["standing"], row["note"]) if word not in ("", "--")]
    return f"{row['claim']} ({', '.join(said)})"
