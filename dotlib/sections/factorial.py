"""The factorial of section 4.3, optimiser x schedule and beta2 on two ends, as contrasts of log errors."""

import pandas as pd

from .optimisers import effect, failures, forest_rows, runs_of, same_seeds

OPTIMISERS = {"adam": "Adam, L2", "adamw": "AdamW"}
SCHEDULES = {
    "constant": "constant",
    "cosine": "warm-up, cosine",
    "onecycle": "one cycle",
    "onecycle-momentum": "one cycle,\nmomentum cycled",
}
# what each schedule adds to another
STEPS = {
    "annealing": ("cosine", "constant"),
    "one cycle's shape": ("onecycle", "cosine"),
    "momentum cycling": ("onecycle-momentum", "onecycle"),
}
ENDS = ("adam-constant", "adamw-onecycle-momentum")  # of the factorial: there beta2 is crossed


def runs(record) -> pd.DataFrame:
    """Runs of the factorial: optimiser, schedule, seed, value, failed."""
    parts = [
        runs_of(record, [f"{o}-{s}"]).assign(optimiser=title, schedule=shape)
        for o, title in OPTIMISERS.items()
        for s, shape in SCHEDULES.items()
    ]
    return same_seeds(pd.concat(parts))


def weights() -> dict[tuple[str, str], dict[str, float]]:
    """Each effect, by (heading, label), as weights of the arms' log errors.

    A main effect averages over the other factor; an interaction is a schedule's effect under AdamW less that under
    Adam.
    """
    signs = {"adamw": 1.0, "adam": -1.0}
    found = {
        ("main effects", "AdamW, not Adam"): {f"{o}-{s}": sign / 4 for o, sign in signs.items() for s in SCHEDULES}
    }
    for name, (a, b) in STEPS.items():
        found["main effects", name] = {f"{o}-{s}": w / 2 for o in signs for s, w in ((a, 1), (b, -1))}
    for name, (a, b) in STEPS.items():
        found["interactions of AdamW with", name] = {
            f"{o}-{s}": sign * w for o, sign in signs.items() for s, w in ((a, 1), (b, -1))
        }
    for end in ENDS:
        found["beta2 0.95, not 0.999, in", end] = {f"{end}-b95": 1.0, end: -1.0}
    return found


def effects(record) -> pd.DataFrame:
    """Main effects, interactions and beta2 as rows like those of `optimisers.contrasts`, over paired seeds."""
    rows = []
    for (group, label), of in weights().items():
        row = {"group": group, "label": label, "contrast": f"{group}: {label}"} | effect(record, of)
        rows.append(row | {"failed": failures(record, of), "standing": "exploratory"})
    return forest_rows(rows)
