"""The error of one recipe over the number of training phantoms, at as many steps, and the power laws through it."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from .. import arms, power_law, stats
from ..config import train_share
from ..improvements import PHANTOMS
from ..power_law import PowerLaw
from .optimisers import runs_of

STUDY = "4.5-data"
OWN = "stage1-onecycle"  # trained with the profile's own number of phantoms
FORMS = {"c + a N^-b": True, "a N^-b": False}  # whether with a floor
LEAST = 4  # sizes that a law with a floor needs
POINTS = 60  # of a drawn curve


def runs(record) -> pd.DataFrame:
    """Runs by size: phantoms (training), arm, seed, value (geometric mean over test phantoms), failed.

    Where an arm of the curve trained with the profile's own number, the recipe itself is the same runs and left out.
    Empty without a record.
    """
    parts, known = [], set()
    for arm in (*PHANTOMS, OWN) if record is not None else ():
        number, found = train_share(arms.arm(arm, record.profile).data), runs_of(record, [arm])
        if number not in known and len(found):
            known.add(number)
            parts.append(found.assign(phantoms=number))
    columns = ["phantoms", "arm", "seed", "value", "failed"]
    table = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
    return table[columns].sort_values(["phantoms", "seed"], ignore_index=True)


def paired(table: pd.DataFrame) -> pd.DataFrame:
    """Errors, seeds by sizes, of the seeds that have a run of every size of which none failed."""
    good = table["value"].where(table["failed"] == "")
    return table.assign(value=good).pivot(index="seed", columns="phantoms", values="value").dropna()


def laws(table: pd.DataFrame) -> dict[str, PowerLaw]:
    """The power laws through `runs`, by form, that of the lower AICc first; empty for fewer sizes than they need."""
    errors = paired(table)
    if errors.empty or errors.shape[1] < LEAST:
        return {}
    sizes = errors.columns.to_numpy(dtype=float)
    found = {form: power_law.fit(errors.to_numpy(), sizes, floor) for form, floor in FORMS.items()}
    return dict(sorted(found.items(), key=lambda item: item[1].aicc))


def drawn(found: Mapping[str, PowerLaw], table: pd.DataFrame) -> pd.DataFrame:
    """The laws between the smallest and the largest size: rows of form, phantoms, value, low, high."""
    columns = ["form", "phantoms", "value", "low", "high"]
    if not found:
        return pd.DataFrame(columns=columns)
    sizes = np.geomspace(table["phantoms"].min(), table["phantoms"].max(), POINTS)
    limits = {form: power_law.curve(law, sizes) for form, law in found.items()}
    rows = [(form, n, *x[:3]) for form, of in limits.items() for n, x in zip(sizes, of, strict=True)]
    return pd.DataFrame(rows, columns=columns)


def levels(table: pd.DataFrame) -> pd.DataFrame:
    """A row a size: seeds, failed, geometric mean over seeds with Student's interval, and what each law says there."""
    found, rows = laws(table), []
    for number, of in table.groupby("phantoms"):
        x = stats.seeds_interval(np.log(of["value"].to_numpy(dtype=float))).map(np.exp)
        row = {"training phantoms": int(number), "seeds": len(of), "failed": int((of["failed"] != "").sum())}
        row |= {"nrmse of mua": x.estimate, "interval": x.limits()}
        rows.append(row | {form: power_law.curve(law, [number])[0].estimate for form, law in found.items()})
    return pd.DataFrame(rows)


def forms(table: pd.DataFrame) -> pd.DataFrame:
    """A row a law, that of the lower AICc first: parameters with 95 % intervals over seeds (a where b is resolved),
    whether b is, and the change of the error, per cent, predicted for twice the largest number, beyond what was run."""
    rows, most = [], table["phantoms"].max()
    for form, law in laws(table).items():
        row = {"law": form, "seeds": law.b.n, "a": _text(law.a) if law.identified else "--", "b": _exponent(law)}
        row |= {"c": _text(law.c), "b resolved": "yes" if law.identified else "no", "AICc": law.aicc}
        rows.append(row | {f"from {most:,} to {2 * most:,}, %": _doubled(law, most)})
    return pd.DataFrame(rows)


def _exponent(law: PowerLaw) -> str:
    """b with its interval."""
    return f"{law.b.estimate:.3g} (largest tried)" if _flat(law) else _text(law.b)


def _doubled(law: PowerLaw, most: float) -> str:
    """The predicted change for twice the largest number, per cent."""
    return "--" if _flat(law) else _text(power_law.change(law, most, 2 * most))


def _flat(law: PowerLaw) -> bool:
    """Whether b is at its upper bound: errors on their floor from the second size on say nothing of what comes."""
    return law.b.estimate > 0.999 * power_law.STEEPEST


def _text(x: stats.Interval) -> str:
    return f"{x.estimate:.3g} {x.limits()}"


def answer(table: pd.DataFrame) -> str:
    """What the laws say, in one sentence: exponents, and what twice the largest number would change."""
    found = laws(table)
    if not found:
        sizes = paired(table).shape[1] if len(table) else 0
        return f"Learning curve: no law is fitted, {sizes} sizes with paired seeds are known and {LEAST} are needed."
    most, said = table["phantoms"].max(), []
    for form, law in found.items():
        resolved = "" if law.identified else ", not resolved"
        change = "no prediction" if _flat(law) else f"{_doubled(law, most)} %"
        said.append(f"{form}: b = {_exponent(law)}{resolved}, {change}")
    beyond = f"predicted change from {most:,} to {2 * most:,} phantoms, beyond what was run, negative is better"
    return f"Learning curve, the law of the lower AICc first; {beyond}. {'; '.join(said)}."
