"""Learning rate, momentum and weight decay over the steps, as the configuration alone gives them."""

from collections.abc import Mapping

import pandas as pd

from .. import arms, optim
from ..config import ONECYCLE, Optim

STEPS = 1000  # over which schedules are drawn; their shares hold for any number


def drawn() -> dict[str, Optim]:
    """Optimisers whose schedules are drawn: arms as specified, and the factorial's shapes at the recipe's values."""
    specified = ("stage1-adam", "progressive-specified", "stage1-onecycle", "decay-schedule")
    names = ("adamw-constant", "adamw-cosine", "adamw-onecycle")
    shapes = {name: ONECYCLE.model_dump() | arms.FACTORIAL[name] for name in names}
    return {name: arms.arm(name, "smoke").optim for name in specified} | {
        name: Optim.model_validate(fields) for name, fields in shapes.items()
    }


def table(optims: Mapping[str, Optim], steps: int = STEPS) -> pd.DataFrame:
    """What each step uses: rows of arm, step, share (0 to 1), lr, beta1, weight_decay; no plateau is met."""
    rows = [
        {"arm": arm, "step": step, "share": step / (steps - 1)} | optim.settings(config, step, steps)._asdict()
        for arm, config in optims.items()
        for step in range(steps)
    ]
    return pd.DataFrame(rows)


def facts(table: pd.DataFrame) -> pd.DataFrame:
    """A row an arm: first, highest and last rate, its mean over the highest, ranges of beta1 and weight decay."""
    rows = []
    for arm, steps in table.groupby("arm", sort=False):
        lr, beta1, decay = steps["lr"], steps["beta1"], steps["weight_decay"]
        row = {"arm": arm, "first lr": lr.iloc[0], "highest lr": lr.max(), "last lr": lr.iloc[-1]}
        row |= {"mean / highest": lr.mean() / lr.max(), "lowest beta1": beta1.min(), "highest beta1": beta1.max()}
        rows.append(row | {"first decay": decay.iloc[0], "last decay": decay.iloc[-1]})
    return pd.DataFrame(rows)
