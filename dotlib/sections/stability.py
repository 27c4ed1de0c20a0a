"""What a recorded study says of its arms one by one: their spread over seeds, and validation over training loss."""

import numpy as np
import pandas as pd

from .. import arms, stats
from ..config import Config, Loss
from .measured import below, spread, standing
from .optimisers import all_failed, runs_of
from .optimisers import gaps as ratios

STABLE = 5.0  # per cent: the sd over seeds that is called stable; a threshold of ours


def stability(record) -> pd.DataFrame:
    """A row an arm: arm, seeds, failed, sd (per cent, of the log endpoint over seeds), low, high (95 %), verdict.

    The interval is chi-square's, for normal logarithms: at three seeds it spans a factor of twelve. A failed run counts
    with its worst value; an arm all of whose runs failed has no spread of its own. The verdict is on `STABLE`.
    """
    rows, values = [], runs_of(record, record.runs["arm"])
    for arm in record.runs["arm"].unique():
        runs = values[values["arm"] == arm]
        row = {"arm": arm, "seeds": len(runs), "failed": int((runs["failed"] != "").sum())}
        logs = np.log(runs["value"]) if not all_failed(record, [arm]) else pd.Series([], dtype=float)
        found = spread(logs)
        row |= {"sd": found.estimate, "low": found.low, "high": found.high}
        rows.append(row | {"verdict": standing(found, below(STABLE))})
    return pd.DataFrame(rows)


def gaps(record) -> pd.DataFrame:
    """A row an arm: validation over training loss after the last epoch, with Student's interval over seeds, and why the
    training loss is another thing than the baseline's, where it is.

    Geometric means over the seeds that did not fail.
    """
    rows = []
    for arm in record.runs["arm"].unique():
        found = np.log(ratios(record, [arm])[arm])
        row = {"arm": arm, "seeds": len(found), "ratio": np.nan, "low": np.nan, "high": np.nan}
        if len(found):
            row |= dict(zip(("ratio", "low", "high"), np.exp(stats.seeds_interval(found)[:3]), strict=True))
        rows.append(row | {"not comparable": ", ".join(reasons(arms.arm(arm, record.profile)))})
    return pd.DataFrame(rows)


def reasons(config: Config) -> list[str]:
    """Why a run's training loss cannot be set beside that of a plain run, or its own validation loss."""
    found = {
        "dropout is on in training only": config.model.dropout > 0,
        "training volumes are augmented": config.augment is not None,
        "validated with averaged weights": config.training.ema is not None,
        "another loss": config.loss != Loss(),
    }
    return [words for words, holds in found.items() if holds]


def table(record) -> pd.DataFrame:
    """`stability` and `gaps` as they are read, a row an arm."""
    spreads, gap = stability(record), gaps(record)
    out = spreads[["arm", "seeds", "failed"]].assign(**{"sd, %": spreads["sd"], "sd interval, %": _limits(spreads)})
    out["stable"] = spreads["verdict"]
    return out.assign(**{"validation / training": gap["ratio"], "its interval": _limits(gap)}).assign(
        **{"not comparable": gap["not comparable"]}
    )


def _limits(rows: pd.DataFrame) -> list[str]:
    return [stats.limits(*bounds) for bounds in rows[["low", "high"]].itertuples(index=False)]
