"""What the arms of every study are made of: the two baselines, and changes that depend on a profile's size."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .config import ONECYCLE, Config, Optim, train_share

Change = Any  # a value, or what makes one from the profile's base configuration
ADAM = Optim(name="adam", lr=5e-5, weight_decay=1e-4, schedule="plateau")


@dataclass(frozen=True)
class Arm:
    """A named change of a profile's base configuration, and where its numbers come from.

    With `tuned` the values that tuning found best for that candidate come first, and `changes` after them.
    """

    changes: Mapping[str, Change]
    source: str
    tuned: str = ""


@dataclass(frozen=True)
class Study:
    """Arms, with the number of paired seeds from `first` on; 0 seeds: as many as the profile has.

    A record of it holds every metric, and what trivial predictors score, if `whole`; else what contrasts need.
    """

    arms: tuple[str, ...]
    seeds: int = 0
    first: int = 0
    whole: bool = False


_LEGACY = "network of the earlier work (7^3 stem, four residual stages, global pooling, 6,977,954 parameters at 64^3)"
_STAGE1 = "ours: space-to-depth stem, flattened 2^3 bottleneck, occupancy gate"
_ADAM = "baseline of the earlier work: Adam (Kingma & Ba 2015), lr 5e-5, L2 1e-4, ReduceLROnPlateau"
_ONECYCLE = (
    "its revision: AdamW (Loshchilov & Hutter 2019), betas (0.9, 0.95), decay 1e-4, one cycle (Smith 2018) to 3e-3, "
    "20 % warm-up, div 25, final div 1e4, beta1 cycled 0.85-0.95"
)
BASELINES = {
    "legacy-adam": Arm({"model.name": "legacy", "optim": ADAM}, f"{_LEGACY}; {_ADAM}"),
    "legacy-onecycle": Arm({"model.name": "legacy", "optim": ONECYCLE}, f"{_LEGACY}; {_ONECYCLE}"),
    "stage1-adam": Arm({"model.name": "stage1", "optim": ADAM}, f"{_STAGE1}; {_ADAM}"),
    "stage1-onecycle": Arm({"model.name": "stage1", "optim": ONECYCLE}, f"{_STAGE1}; {_ONECYCLE}"),
}


def epochs(share: float) -> Callable[[Config], int]:
    return lambda base: max(1, round(base.training.epochs * share))


def steps(config: Config) -> int:
    return train_share(config.data) // config.training.batch * config.training.epochs


def patience(base: Config) -> int:
    return epochs(0.15)(base)  # 15 of 100


def averaging(base: Config) -> float:
    """A moving average over the last tenth of the steps."""
    return 1 - 10 / max(steps(base), 20)


# arms that a page trains itself, in a quarter of the steps
SHORTENED = {f"{name}-short": name for name in ("legacy-onecycle", "stage1-onecycle", "sigmoid-2")}


def shortened(name: str, arm: Arm) -> Arm:
    """An arm in a quarter of the steps."""
    return Arm({**arm.changes, "training.epochs": epochs(0.25)}, f"{name} in a quarter of the steps")


def varied(source: str, **changes: Change) -> Arm:
    """The one-cycle recipe with one thing changed; `optim__lr` is `optim.lr`."""
    fields = {name.replace("__", "."): value for name, value in changes.items()}
    return Arm({**BASELINES["stage1-onecycle"].changes, **fields}, source)
