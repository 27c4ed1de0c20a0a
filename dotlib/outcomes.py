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


def summary(histories: dict[tuple[str, int], History]) -> pd.DataFrame:
    """The arms as they ran: a row each, with the resolved optimiser state of the last step (seed 0), median speed."""
    rows = []
    for arm in arms(histories):
        infos = [history.info for (a, _), history in histories.items() if a == arm]
        info, optimiser = infos[0], infos[0]["optimiser"]
        rows.append(
            {
                "arm": arm,
                "seeds": len(infos),
                "parameters": info["parameters"],
                "samples seen": info["samples_seen"],
                "failed": sum(bool(histories[key].failed) for key in histories if key[0] == arm),
                "optimiser": optimiser["name"],
                "last lr": f"{optimiser['lr']:.2g}",
                "last betas": f"{optimiser['beta1']:.3g}, {optimiser['beta2']:.3g}",
                "decay": f"{optimiser['weight_decay']:g}",
                "precision": ", ".join(sorted({i["precision"] for i in infos})),
                "samples/s": pd.Series([i["samples_per_second"] for i in infos]).median(),
            }
        )
    return pd.DataFrame(rows)


def arms(histories: dict[tuple[str, int], History]) -> list[str]:
    """The arms, in the study's order."""
    return list(dict.fromkeys(arm for arm, _ in histories))


def provenance(histories: dict[tuple[str, int], History]) -> dict[str, str]:
    """What a table of these runs rests on: digests of the data, and of each run's configuration and code."""
    data = ", ".join(sorted({history.info["data"] for history in histories.values()}))
    runs = {f"{a}, seed {s}": f"{h.info['config_digest']}, code {h.info['code']}" for (a, s), h in histories.items()}
    return {"data": data} | runs
