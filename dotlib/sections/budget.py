"""Section 4.5's longest runs: what the best recipe is, by validation; its error over the budget; the gates it reaches.

`add` and `leave` are the records of the ablation's two directions, `record` that of `STUDY`, `judged` the judged runs.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from .. import arms, config, power_law
from ..improvements import ALTERNATIVES, BEST, GIVEN, IMPROVEMENTS, LONG
from ..power_law import PowerLaw
from .ablation import ALONE, WITHIN, pair
from .attention_costs import operations
from .criteria import CRITERIA, GRID, measure, trivial_words
from .measured import failures, shortfall
from .optimisers import runs_of

STUDY = "4.5-best"
GATE, AMBITION = 0.10, 0.06  # nrmse of mua
ONE_RUN = sorted((c for c in CRITERIA if c.target and c.of != "spread"), key=lambda c: c.convention == "legacy")
WORDS, FAILED = ("not reached", "reached", "other grid"), "failed"
LEAST = 3  # budgets that a law without a floor needs


def chosen(add, leave) -> pd.DataFrame:
    """The rule of the plan, a row an improvement that the one-cycle recipe leaves open: name, alone, in full, chosen.

    The numbers are changes of the validation nrmse of mua at the last epoch, per cent, geometric mean over the seeds
    that both arms ended; chosen: 'yes' where both are below 0. Point estimates choose here, no test. NaN and 'not
    computed' without runs. Alternatives are not candidates.
    """
    rows = []
    for name in IMPROVEMENTS:
        if name in GIVEN or name in ALTERNATIVES:
            continue
        found = [_validation(record, *pair(name, where)[1:]) for where, record in ((ALONE, add), (WITHIN, leave))]
        word = "not computed" if np.isnan(found).any() else "yes" if max(found) < 0 else "no"
        rows.append({"improvement": name, f"{ALONE}, %": found[0], f"{WITHIN}, %": found[1], "chosen": word})
    return pd.DataFrame(rows)


def _validation(record, a: str, b: str) -> float:
    """The change from arm b to arm a, per cent."""
    if record is None:
        return np.nan
    whole = record.runs.loc[record.runs["failed"] == "", ["arm", "seed"]]
    ends = np.log(record.epochs.merge(whole).groupby(["arm", "seed"])["nrmse_mua"].last()).unstack("arm")
    return float(100 * np.expm1((ends[a] - ends[b]).mean())) if {a, b} <= set(ends) else np.nan


def runs(record) -> pd.DataFrame:
    """A row a run, by network and budget: network, arm, seed, samples, PFLOP, hours, value, failed.

    PFLOP: operations of all steps, counted (`attention_costs.operations`); hours: samples over the measured samples a
    second, on the cores that a run had; value: nrmse of mua, geometric mean over test phantoms. Empty without a record.
    """
    columns = ["network", "arm", "seed", "samples", "PFLOP", "hours", "value", "failed"]
    if record is None:
        return pd.DataFrame(columns=columns)
    speeds = record.runs.set_index(["arm", "seed"])[["samples_seen", "samples_per_second"]]
    table = runs_of(record, LONG).join(speeds, on=["arm", "seed"])
    table["network"], table["samples"] = table["arm"].str.rsplit("-", n=1).str[0], table["samples_seen"]
    counted = {arm: operations(arms.arm(arm, record.profile)) for arm in table["arm"].unique()}
    table["PFLOP"] = table["arm"].map(counted) * table["samples"] / 1e6
    table["hours"] = table["samples"] / table["samples_per_second"] / 3600
    return table[columns].sort_values(["network", "samples", "seed"], ignore_index=True)


def laws(table: pd.DataFrame) -> dict[str, PowerLaw]:
    """a S^-b through the errors of each network at S samples; none for a network with fewer budgets than `LEAST`."""
    found = {}
    for network, rows in table[table["failed"] == ""].groupby("network"):
        errors = rows.pivot(index="seed", columns="samples", values="value").dropna()
        if errors.shape[1] >= LEAST and len(errors):
            found[network] = power_law.fit(errors.to_numpy(), errors.columns.to_numpy(dtype=float), floor=False)
    return found


def trend(table: pd.DataFrame) -> pd.DataFrame:
    """A row a network: budgets, seeds, the law's exponent b, the change between its last two budgets and the law's for
    the next factor of four, and the samples at which the law meets the gate and the ambition: predictions, without a
    floor, so that the truth is likely to take more."""
    rows = []
    for network, law in laws(table).items():
        errors = table[(table["network"] == network) & (table["failed"] == "")].groupby("samples")["value"]
        levels = np.exp(errors.apply(lambda x: np.log(x).mean()))
        most = float(levels.index[-1])
        row = {"network": network, "budgets": len(levels), "seeds": law.b.n, "b": law.b.estimate}
        row["last step, %"] = 100 * (levels.iloc[-1] / levels.iloc[-2] - 1)
        row["next four-fold, % (predicted)"] = power_law.change(law, most, 4 * most).estimate
        for name, target in (("gate", GATE), ("ambition", AMBITION)):
            row[f"samples to the {name} (predicted)"] = _reached(law, target)
        rows.append(row)
    columns = ["network", "budgets", "seeds", "b", "last step, %", "next four-fold, % (predicted)"]
    columns += [f"samples to the {name} (predicted)" for name in ("gate", "ambition")]
    return pd.DataFrame(rows, columns=columns)


def _reached(law: PowerLaw, target: float) -> float:
    """The samples at which a law without a floor comes down to a target; infinite where it does not fall."""
    return float((law.a.estimate / target) ** (1 / law.b.estimate)) if law.b.estimate > 0 else np.inf


def gates(judged, computed: Iterable[str] = LONG) -> pd.DataFrame:
    """Each criterion that one run can meet, the convention that can fail first: criterion, convention, what trivial
    predictors reach, and a column an arm of `computed`: its number, 'reached' or not; 'failed' where its run did.

    Of one run an arm, so that no interval says how another run would end. SSIM's gate is one of `GRID` voxels a side.
    """
    other = config.profile(judged.profile).base.data.grid != GRID
    rows = []
    for c in ONE_RUN:
        row = {"criterion": c.name, "convention": c.convention, "trivial predictors": trivial_words(judged, c)}
        for arm in computed:
            value = measure(judged, arm, c).estimate
            missed = shortfall(value, c.target) > 0
            word = WORDS[2] if other and c.column[0] == "ssim" else WORDS[0] if missed else WORDS[1]
            row[arm] = FAILED if failures(judged, arm) else "--" if np.isnan(value) else f"{value:.3g}: {word}"
        rows.append(row)
    return pd.DataFrame(rows)


def answer(judged, table: pd.DataFrame, rule: pd.DataFrame) -> str:
    """What the longest runs say, in Markdown: the lowest error, what it does not reach, what it does, and the trend.

    First what `rule`, the table of `chosen`, would have otherwise than the recipe that was trained.
    """
    whole = table[table["failed"] == ""]
    if whole.empty:
        return "No long run is computed."
    best, lines = whole.loc[whole["value"].idxmin()], [f"* {recipe(rule)}"]
    how = f"{best['samples']:,.0f} samples, {best['hours']:.1f} h at its measured speed"
    how += f"; one run, no interval, and of {len(whole)} runs the one that the test set favours"
    lines.append(f"* **Lowest nrmse of mua: {best['value']:.3g}, `{best['arm']}`** ({how}).")
    if judged is not None:
        found = gates(judged, [best["arm"]])
        for convention, rows in found.groupby("convention", sort=False):
            for word in WORDS:
                names = rows.loc[rows[best["arm"]].str.endswith(f": {word}"), "criterion"]
                lines += [f"* {convention}, {word}: {', '.join(names)}."] * bool(len(names))
    for row in trend(table).to_dict("records"):
        last, more = row["last step, %"], row["next four-fold, % (predicted)"]
        lines.append(
            f"* {row['network']} width: the last step brought {last:+.1f} %; predicted of the next: {more:+.1f} %."
        )
    return "\n".join(lines)


def recipe(rule: pd.DataFrame) -> str:
    """The best recipe in one line, and where the rule of the plan would have another one, which."""
    more = [name for name in BEST if name not in GIVEN]
    by_rule = rule.loc[rule["chosen"] == "yes", "improvement"].tolist()
    said = f"The best recipe: one cycle, with {', '.join(more) or 'nothing added'}."
    if (rule["chosen"] == "not computed").any() or set(by_rule) == set(more):
        return said
    return f"{said} **By these records the rule has another one: {', '.join(by_rule) or 'nothing added'}.**"
