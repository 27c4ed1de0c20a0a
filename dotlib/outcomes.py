"""The histories of a study as tables: test metrics, learning curves, what ran."""

import pandas as pd

from .study import StudyError
from .trainer import History

ERRORS = ("nrmse", "rmse", "legacy_rmse")  # lower is better, and a run that diverged has the worst value


def metrics(histories: dict[tuple[str, int], History]) -> pd.DataFrame:
    """All test metrics in one table: arm, seed, checkpoint, metric, phantom, inclusion, channel, value.

    A run that diverged has, of `ERRORS`, each phantom's worst value of all runs; its other metrics are NaN.
    """
    whole = {key: h.metrics for key, h in histories.items() if not h.failed}
    if not whole:
        raise StudyError("every run diverged: " + "; ".join(h.failed for h in histories.values()))
    keys = ["checkpoint", "metric", "phantom", "inclusion", "channel"]
    every = pd.concat(whole.values())
    worst = every.groupby(keys, as_index=False, sort=False)["value"].max()
    worst["value"] = worst["value"].where(worst["metric"].isin(ERRORS))
    frames = [whole.get(key, worst).assign(arm=key[0], seed=key[1]) for key in histories]
    return pd.concat(frames, ignore_index=True)


def epochs(histories: dict[tuple[str, int], History]) -> pd.DataFrame:
    """All learning curves in one table: arm, seed, and a row per epoch."""
    curves = [h.epochs.assign(arm=arm, seed=seed) for (arm, seed), h in histories.items() if len(h.epochs)]
    return pd.concat(curves, ignore_index=True)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """The arms as they ran, of a record's `runs`: a row each, with the optimiser's state in the last step of the first
    seed, and the median speed."""
    rows = []
    for arm, of in runs.groupby("arm", sort=False):
        first = of.iloc[0]
        row = {"arm": arm, "seeds": len(of), "parameters": first["parameters"], "samples seen": first["samples_seen"]}
        row |= {"failed": int((of["failed"] != "").sum()), "optimiser": first["optimiser"]}
        row |= {"last lr": f"{first['last_lr']:.2g}", "decay": f"{first['last_weight_decay']:g}"}
        row["last betas"] = f"{first['last_beta1']:.3g}, {first['last_beta2']:.3g}"
        row["precision"] = ", ".join(sorted(set(of["precision"])))
        rows.append(row | {"samples/s": of["samples_per_second"].median()})
    return pd.DataFrame(rows)


def provenance(histories: dict[tuple[str, int], History]) -> dict[str, str]:
    """What a table of these runs rests on: digests of the data, and of each run's configuration and code."""
    data = ", ".join(sorted({history.info["data"] for history in histories.values()}))
    runs = {f"{a}, seed {s}": f"{h.info['config_digest']}, code {h.info['code']}" for (a, s), h in histories.items()}
    return {"data": data} | runs
