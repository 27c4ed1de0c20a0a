"""Section 4.4: how gates start, and what their maps find, as tables of `localisation.table`; exploratory throughout."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from .. import arms, localisation, outcomes, study
from ..data import phantoms
from ..inference import network
from ..localisation import GRADIENT, INPUT, MAP, MUA, NORM, RANDOM, Scores, entering, gate_of
from ..recipes import SHORTENED
from ..stats import Interval
from .attention_costs import GROUPS, PLAIN
from .measured import over_seeds

STARTED = (*GROUPS["gate"][:2], *GROUPS["control"], *GROUPS["comparator"])  # at the two deepest stages
FEW = 4  # phantoms to start with
AWAY, OPEN, FINDS = "looks away", "not resolved", "finds"  # negative results first
LESS, MORE = "less", "more"
MEASURES = ["auc", "ap", "prevalence"]
BESIDE = ["arm", "stage", "map less", "seeds", "AUC", "interval", "word", "random as high"]


def networks(
    profile: str, seeds: int, store: Path, on: str = "cpu"
) -> tuple[dict[tuple[str, int], nn.Module], dict[str, str]]:
    """The networks whose maps the page shows, trained here where they are not, by the name of the whole arm and seed;
    and what they ran as.

    Short of the full profile those of `4.4-maps`, in a quarter of the steps.
    """
    name = "4.4-shown" if profile == "full" else "4.4-maps"
    histories = study.results(name, profile, seeds, store)
    found = localisation.networks(name, profile, seeds, store, on)
    return {(SHORTENED.get(arm, arm), seed): m for (arm, seed), m in found.items()}, outcomes.provenance(histories)


def layers(scores: Scores) -> dict[str, np.ndarray]:
    """The first phantom's first draw of each score, (D, H, W), by name."""
    return {f"{score}, {stage}": values[0, 0].cpu().numpy() for (stage, score), values in scores.items()}


def stages_of(arm: str, profile: str) -> list[str]:
    """The gated stages of an arm's encoder, in the order of the pass."""
    return [f"encoder{k}" for k in sorted(arms.arm(arm, profile).model.attention.stages, reverse=True)]


def starts(profile: str) -> pd.DataFrame:
    """What each gate does before any step, on a few phantoms: a row an arm and stage.

    `kept`: norm of what leaves over that of what enters. `lowest`, `highest`: of the map; of kinds without one, dashes.
    `output`: the largest difference of the network's output from the plain network's, over the largest value there.
    """
    base = arms.arm(PLAIN, profile)
    volumes = phantoms.rasterise(phantoms.sample(base.data.family, FEW, base.data.seed), base.data.grid)
    mean, sd = volumes.mean((0, 2, 3, 4)), volumes.std((0, 2, 3, 4))
    with torch.no_grad():
        plain, rows = network(base, mean, sd).eval()(volumes), []
        for arm in STARTED:
            model = network(arms.arm(arm, profile), mean, sd).eval()
            change = float((model(volumes) - plain).abs().max() / plain.abs().max())
            for stage, x in entering(model, volumes, stages_of(arm, profile)).items():
                gate = gate_of(model, stage)
                seen, kept = gate.map(x), float(gate(x).norm() / x.norm())
                limits = (np.nan, np.nan) if seen is None else (float(seen.min()), float(seen.max()))
                row = {"arm": arm, "stage": stage, "grid": x.shape[-1], "kept": kept}
                rows.append(row | {"lowest": limits[0], "highest": limits[1], "output": change})
    return pd.DataFrame(rows)


def per_run(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the phantoms that have a tumour, and over draws: a row a run, stage and score."""
    table = table.assign(prevalence=table["prevalence"].where(table["auc"].notna()))
    return table.groupby(["arm", "seed", "stage", "score"], sort=False)[MEASURES].mean().reset_index()


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """AUC and AP of each arm, stage and score: means over phantoms, then over seeds with Student's 95 % interval.

    `word`: `FINDS` where the whole interval of the AUC lies above one half, `AWAY` where it lies below: the score is
    then lower in tumours than elsewhere. AP is to be read against `prevalence`, what a score has that knows nothing.
    """
    rows, phantoms_of = [], table.dropna(subset="auc").groupby("arm")["phantom"].nunique()
    for (arm, stage, score), runs in per_run(table).groupby(["arm", "stage", "score"], sort=False):
        auc, ap = (over_seeds(runs[column], 0, 1) for column in ("auc", "ap"))
        row = {"arm": arm, "stage": stage, "score": score, "seeds": len(runs), "phantoms": phantoms_of.get(arm, 0)}
        row |= {"AUC": auc.estimate, "AUC, interval": auc.limits(), "AP": ap.estimate, "AP, interval": ap.limits()}
        rows.append(row | {"prevalence": runs["prevalence"].mean(), "word": _side(auc, 0.5, AWAY, FINDS)})
    return pd.DataFrame(rows)


def _side(found: Interval, level: float, below: str, above: str) -> str:
    return below if found.high < level else above if found.low > level else OPEN


def beside(table: pd.DataFrame) -> pd.DataFrame:
    """The map's AUC less that of what needs no attention, over paired seeds: a row a gated arm, stage and other score.

    The others: the norm of the features that enter the gate, and of the plain network's at the same stage; gates with
    random weights; the input gradient; mua itself. `word`: `MORE` or `LESS` where the whole interval lies on one side
    of 0. `random as high`: share of the random gates, one number a draw and run, whose AUC is the map's or more.
    """
    runs = per_run(table).set_index(["arm", "stage", "score", "seed"])["auc"].sort_index()
    rows = []
    for arm, stage in table.loc[table["score"] == MAP, ["arm", "stage"]].drop_duplicates().itertuples(index=False):
        others = ((arm, stage, NORM), (PLAIN, stage, NORM), (arm, stage, RANDOM))
        for other in (*others, (arm, INPUT, GRADIENT), (arm, INPUT, MUA)):
            if other in runs.index.droplevel("seed"):
                found = over_seeds((runs.loc[arm, stage, MAP] - runs.loc[other]).dropna(), -1, 1)
                name = f"{other[2]} of {other[0]}" if other[0] != arm else other[2]
                row = {"arm": arm, "stage": stage, "map less": name, "seeds": found.n, "AUC": found.estimate}
                row |= {"interval": found.limits(), "word": _side(found, 0, LESS, MORE)}
                rows.append(row | {"random as high": as_high(table, arm, stage) if other[2] == RANDOM else np.nan})
    return pd.DataFrame(rows, columns=BESIDE)


def as_high(table: pd.DataFrame, arm: str, stage: str) -> float:
    """Share of the random gates whose mean AUC over the phantoms reaches that of the run's own map."""
    chosen = table[(table["arm"] == arm) & (table["stage"] == stage)]
    means = chosen.groupby(["score", "seed", "draw"])["auc"].mean()
    own, drawn = means.loc[MAP].groupby("seed").first(), means.loc[RANDOM]
    return float((drawn.to_numpy() >= own.loc[drawn.index.get_level_values("seed")].to_numpy()).mean())


SAID = {
    AWAY: "the map is lower in tumours than elsewhere: it looks away from them",
    OPEN: "not resolved whether the map is higher in tumours",
    FINDS: "the map is higher in tumours than elsewhere",
}


def answer(table: pd.DataFrame) -> str:
    """What the gates' maps find, in Markdown, negative results first."""
    found, others, lines = summary(table), beside(table), []
    for word, said in SAID.items():
        for row in found[(found["score"] == MAP) & (found["word"] == word)].to_dict("records"):
            mine = others[(others["arm"] == row["arm"]) & (others["stage"] == row["stage"])]
            n = f"{row['seeds']} seeds, {row['phantoms']} phantoms, exploratory"
            lines.append(
                f"* **{row['arm']}, {row['stage']}: {said}** (AUC {row['AUC']:.2f} {row['AUC, interval']}, {n}). "
                f"{_compared(mine)}"
            )
    return "\n".join(lines) if lines else "* No network at hand has a map."


def _compared(rows: pd.DataFrame) -> str:
    words = {LESS: "It finds less than", OPEN: "Not resolved against", MORE: "It finds more than"}
    named = {word: ", ".join(rows.loc[rows["word"] == word, "map less"]) for word in words}
    drawn = rows["random as high"].dropna()
    parts = [f"{said} {named[word]}." for word, said in words.items() if named[word]]
    return " ".join([*parts, *(f"{share:.0%} of the random gates do as well or better." for share in drawn)])
