"""The arms of the studies, and where their numbers come from."""

from typing import Any

from . import improvements, reconstructions
from .config import Config, ConfigError, Optim, named, profile, replace
from .recipes import ADAM, BASELINES, SHORTENED, Arm, Study, averaging, epochs, patience, shortened, varied

# What is tuned: optimisers and schedules, each with the same points of one Sobol sequence, at half the horizon.
_SCHEDULES = {
    "constant": {"schedule": "constant"},
    "cosine": {"schedule": "cosine"},
    "onecycle": {"schedule": "onecycle", "momentum": None},
    "onecycle-momentum": {"schedule": "onecycle"},
}
FACTORIAL = {
    f"{name}-{schedule}": {"name": name, "spare": True, **fields}
    for name in ("adam", "adamw")
    for schedule, fields in _SCHEDULES.items()
}
CANDIDATES: dict[str, dict[str, Any]] = FACTORIAL | {
    "adam-constant-b95": FACTORIAL["adam-constant"] | {"betas": (0.9, 0.95)},
    "adamw-onecycle-momentum-b95": FACTORIAL["adamw-onecycle-momentum"] | {"betas": (0.9, 0.95)},
    "schedule-free": {"name": "schedule-free", "schedule": "constant"},
    "muon": {"name": "muon", "schedule": "onecycle"},
}
# The first eight points of Sobol's sequence (Sobol 1967) in three dimensions, in eighths.
SOBOL = ((0, 0, 0), (4, 4, 4), (6, 2, 2), (2, 6, 6), (3, 3, 5), (7, 7, 1), (5, 1, 7), (1, 5, 3))
TUNING = {name: tuple(f"tune-{name}-{i}" for i in range(len(SOBOL))) for name in CANDIDATES}
TUNING_SEED = 1000
LR, L2, DECAY, WARMUP = (3e-4, 3e-2), (1e-7, 1e-3), (1e-4, 1.0), (0.05, 0.5)  # ranges, evenly filled in the logarithm


def ranges(candidate: str) -> dict[str, tuple[float, float]]:
    """Where a candidate's lr, weight decay and warm-up share are sought, evenly in the logarithm.

    Decay in Adam's gradient and decoupled decay differ in kind: each has a range of its own, of the same width.
    """
    decay = L2 if CANDIDATES[candidate]["name"] == "adam" else DECAY
    return {"lr": LR, "weight_decay": decay, "warmup": WARMUP}


def points(candidate: str, number: int = len(SOBOL)) -> list[dict[str, float]]:
    """The values of lr, weight decay and warm-up share that a candidate is tried with, to three digits.

    The first eight are the middles of `SOBOL`'s cells. It goes on with Sobol's sequence, all of it moved by half a
    cell, modulo 1 (Cranley & Patterson 1976), of which they are the begin: a point depends on its place alone.
    """
    places = [[(i + 0.5) / len(SOBOL) for i in cell] for cell in SOBOL]
    if number > len(places):
        from scipy.stats import qmc  # large, and only here

        further = qmc.Sobol(3, scramble=False).fast_forward(len(places))
        rows = [further.random(1)[0] for _ in range(number - len(places))]  # one at a time: any number is balanced
        places += [[float(x + 0.5 / len(SOBOL)) % 1 for x in row] for row in rows]
    names, limits = zip(*ranges(candidate).items(), strict=True)
    return [
        {
            name: rounded(low * (high / low) ** place)
            for name, (low, high), place in zip(names, limits, row, strict=True)
        }
        for row in places[:number]
    ]


def rounded(value: float) -> float:
    """Three digits: configurations, and so runs, are named by them."""
    return float(f"{value:.3g}")


def _tuning() -> dict[str, Arm]:
    found = {}
    for name, arms in TUNING.items():
        for arm, point in zip(arms, points(name), strict=True):
            optim = Optim.model_validate(CANDIDATES[name] | point)
            changes = {"model.name": "stage1", "optim": optim, "training.epochs": epochs(0.5)}
            found[arm] = Arm(changes, f"point of a Sobol sequence: {point}")
    return found


_TUNED = {
    name: Arm({"model.name": "stage1"}, f"ours: {fields}, the rest as tuned", tuned=name)
    for name, fields in CANDIDATES.items()
}
_FROM_CONSTANT = "what was tuned for adamw-constant"
_ADDITIONS = {
    "plateau": Arm({"optim.schedule": "plateau"}, f"{_FROM_CONSTANT}, with a plateau rule", "adamw-constant"),
    "progressive": Arm(
        {"optim.schedule": "progressive"},
        f"{_FROM_CONSTANT}, in the earlier work's phases: 30, 50, 20 % of the steps at 1, 1/2, 1/10 of the rate",
        "adamw-constant",
    ),
    "ema": Arm({"training.ema": averaging}, f"{_FROM_CONSTANT}, with a moving average of weights", "adamw-constant"),
    "progressive-specified": Arm(
        {"model.name": "stage1", "optim": ADAM.model_copy(update={"lr": 1e-4, "schedule": "progressive"})},
        "phases 1a, 1b, 1c of the earlier work: 1e-4, 5e-5, 1e-5 for 30, 50, 20 % of the steps",
    ),
}


_ADDITIONS |= {
    "decay-schedule": varied("weight decay from 5e-4 to 1e-5", optim__weight_decay=5e-4, optim__final_decay=1e-5),
    "batch-64-accumulated": varied("batch 64 as 2 x 32", training__batch=64, training__micro=32),
    "ema-onecycle": varied("moving average of weights, over a tenth of the steps", training__ema=averaging),
    "stopped": varied("early stopping, patience 15 of 100 epochs", training__patience=patience),
    "fp32": varied("no mixed precision", training__precision="fp32"),
} | {f"batch-{n}": varied(f"batches of {n}, whole ones of as many epochs", training__batch=n) for n in (32, 48, 64)}


def _budget(name: str, share: int) -> Arm:
    """A baseline in a share of the epochs, in per cent; of a plateau rule the patience as well."""
    changes = {**BASELINES[name].changes, "training.epochs": epochs(share / 100)}
    if changes["optim"].schedule == "plateau":
        factor, patience = changes["optim"].plateau
        changes["optim.plateau"] = (factor, max(1, round(patience * share / 100)))
    return Arm(changes, f"{name} in {share} % of the epochs")


_BUDGETS = {
    f"{name}-{share}": _budget(name, share)
    for name, shares in {"stage1-adam": (25, 50), "stage1-onecycle": (25, 50, 75)}.items()
    for share in shares
}
_SENSITIVITY = (
    {f"beta2-{b}": varied("sensitivity", optim__betas=(0.9, b)) for b in (0.9, 0.99, 0.999)}
    | {f"lr-{lr:g}": varied("sensitivity", optim__lr=lr) for lr in (3e-4, 1e-3, 1e-2, 3e-2)}
    | {f"warmup-{share}": varied("sensitivity", optim__warmup=share) for share in (0.05, 0.1, 0.4)}
    | {f"decay-{decay:g}": varied("sensitivity", optim__weight_decay=decay) for decay in (1e-3, 1e-2, 1e-1)}
)
ARMS: dict[str, Arm] = BASELINES | _tuning() | _TUNED | _ADDITIONS | _BUDGETS | _SENSITIVITY | improvements.ARMS
ARMS |= reconstructions.ARMS
ARMS |= {short: shortened(name, ARMS[name]) for short, name in SHORTENED.items()}
_ENDS = ("stage1-adam", "stage1-onecycle", "adam-constant", "adamw-onecycle-momentum-b95")
STUDIES: dict[str, Study] = {
    "4.2-baseline": Study(tuple(BASELINES), whole=True),
    "4.2-shown": Study(("legacy-onecycle-short", "stage1-onecycle-short"), 1),
    "4.4-maps": Study(("stage1-onecycle-short", "sigmoid-2-short"), 2),
    "4.3-tuning": Study(sum(TUNING.values(), ()), 1, TUNING_SEED),
    "4.3-ends": Study(_ENDS, 10),
    "4.3-factorial": Study((*FACTORIAL, "adam-constant-b95", "adamw-onecycle-momentum-b95"), 5),
    "4.3-additions": Study(
        ("stage1-adam", "stage1-onecycle", "adamw-constant", "adamw-onecycle-momentum", *_ADDITIONS, *_BUDGETS,
         "schedule-free", "muon"), 3,
    ),
    "4.3-sensitivity": Study(("stage1-onecycle", *_SENSITIVITY), 3),
    **improvements.STUDIES,
    **reconstructions.STUDIES,
}  # fmt: skip


def arm(name: str, profile_name: str, seed: int = 0, tuned: Optim | None = None) -> Config:
    """The configuration of one run: the profile's base, changed by the arm, with a paired seed.

    An arm that was tuned needs what tuning found: `tuned`.
    """
    base, chosen = profile(profile_name).base, named("arm", ARMS, name)
    if chosen.tuned:
        if tuned is None:
            raise ConfigError(f"arm {name}: its tuning is not computed in this profile; study 4.3-tuning does it")
        base = replace(base, {"optim": tuned})
    changes = {path: change(base) if callable(change) else change for path, change in chosen.changes.items()}
    return replace(base, {**changes, "seed": seed})
