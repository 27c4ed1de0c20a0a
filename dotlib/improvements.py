"""The arms of sections 4.4 and 4.5: attention and its controls, every improvement in both directions, the roadmap."""

import math
from collections.abc import Callable, Collection
from typing import Any

from .config import Attention, Augmentation, Config, Data, Features, Links, Loss, Model, Optim, replace, train_share
from .recipes import ADAM, BASELINES, Arm, Change, Study, averaging, steps, varied

TEACHER = 2000  # seed of the network that perceptual terms look through
SHARE = 0.4  # the earlier 2,000 of 5,000 phantoms

# Section 4.4: one thing behind the two deepest stages of the encoder, or the three deepest.
_GATES = {
    "sigmoid": "the specification's gate: 1^3 C -> C/8, ReLU, 1^3 -> 1, sigmoid, multiplied in",
    "identity": "the same gate as 2 sigmoid, its last layer starting at zero",
    "cbam": "CBAM (Woo 2018) in 3-D",
    "se": "squeeze-excitation (Hu 2018)",
    "attention-gate": "additive attention gate (Oktay 2018), guided by the stage's own mean",
    "random": "control: the gate as drawn, never trained",
    "conv": "control: a 1^3 bottleneck with the gate's parameters, added to what passes",
}


def gated(kind: str, deepest: int) -> Callable[[Config], Attention]:
    """Attention behind the `deepest` stages of the encoder, or as many as the profile's grid leaves."""
    stages = {64: 4, 32: 3, 16: 2}
    return lambda base: Attention(kind=kind, stages=tuple(range(1, min(deepest, stages[base.data.grid]) + 1)))


def _wider(share: float) -> Callable[[Config], int]:
    return lambda base: round(base.model.width * share)


ATTENTION = {
    f"{kind}-{n}": varied(f"{words}; {n} deepest stages", model__attention=gated(kind, n))
    for kind, words in _GATES.items()
    for n in ((2, 3) if kind in ("sigmoid", "identity") else (2,))
}
SIZES = {
    "narrow": varied("ours at three quarters of the width", model__width=_wider(0.75)),
    "wide": varied("ours at five quarters of the width", model__width=_wider(1.25)),
    "hybrid": varied("transformer blocks on the encoder's 4^3 voxels, for residual ones", model__name="hybrid"),
    "vit": varied("a full 3-D ViT on patches of 8^3 voxels (Dosovitskiy 2021, He 2022)", model__name="vit"),
}

# Section 4.5: what a recipe may have. Those in FULL can be had together; an alternative takes the place of one of them.
FULL = (
    "optimiser", "schedule", "decay schedule", "duration", "batch", "data size", "tumour size", "attention", "depth",
    "dropout", "multi-scale loss", "channel weight", "augmentation", "dense links", "hybrid ViT", "EMA",
)  # fmt: skip
ALTERNATIVES = {
    "progressive": "schedule",
    "SSIM loss": "multi-scale loss",
    "gradient loss": "multi-scale loss",
    "random features": "multi-scale loss",
    "fused links": "dense links",
    "identity gate": "attention",
    "guided links": "dense links",
    "depth 3": "depth",
}
IMPROVEMENTS = (*FULL, *ALTERNATIVES)
SOURCES = {
    "optimiser": "AdamW, betas (0.9, 0.95) for Adam with L2",
    "schedule": "one cycle to 3e-3 for 5e-5 and a plateau rule",
    "decay schedule": "weight decay from 5e-4 to 1e-5 for 1e-4",
    "duration": "all steps for half of them",
    "batch": "two batches in one, by accumulation, at as many samples",
    "data size": "all training phantoms for 40 % of them, at as many steps",
    "tumour size": "tumours of 5-15 mm for 5-9 mm in training",
    "attention": _GATES["sigmoid"],
    "depth": "one more residual block a stage",
    "dropout": "spatial dropout, rate 0.1",
    "multi-scale loss": "RMSE + 0.3 (1 - SSIM) + 0.1 perceptual",
    "channel weight": "mua counts twice",
    "augmentation": "rotations of 5 degrees, elastic deformation, noise of 1 % of each channel's range",
    "dense links": "every earlier stage feeds the later ones, in encoder and decoder",
    "hybrid ViT": SIZES["hybrid"].source,
    "EMA": "moving average of weights, over the last tenth of the steps",
    "progressive": "1e-4, 5e-5, 1e-5 for 30, 50, 20 % of the steps",
    "SSIM loss": "0.7 RMSE + 0.3 (1 - SSIM)",
    "gradient loss": "RMSE + gradient difference (Mathieu 2016)",
    "random features": "control: the multi-scale loss on the features of an untrained network",
    "fused links": "all stages feed the last, in encoder and decoder",
    "identity gate": _GATES["identity"],
    "guided links": "attention-guided links inside the encoder and the decoder",
    "depth 3": "two more residual blocks a stage",
}


def multiscale(base: Config, source: str = "trained", data: Data | None = None) -> Loss:
    """The specification's multi-scale loss; trained features come from a plain run on `data`, by default the base's, of
    as many steps as the base takes."""
    batch = base.training.batch
    trained = {"epochs": _epochs(base, data or base.data, batch), "batch": batch} if source == "trained" else {}
    return Loss(rmse=1.0, ssim=0.3, perceptual=0.1, features=Features(source=source, seed=TEACHER, **trained))


def _epochs(base: Config, data: Data, batch: int, share: float = 1.0) -> int:
    """Epochs on `data` in batches of `batch` in which a share of the base's samples is seen."""
    whole = steps(base) * base.training.batch
    return max(1, round(share * whole / (train_share(data) // batch * batch)))


def fewer(base: Config, share: float = SHARE) -> int:
    """A share of the training phantoms, in whole double batches."""
    batch = 2 * base.training.batch
    return max(1, round(share * train_share(base.data) / batch)) * batch


def _optim(on: Collection[str]) -> Optim:
    fields: dict[str, Any] = {}
    if "optimiser" in on:
        fields |= {"name": "adamw", "betas": (0.9, 0.95)}
    if "schedule" in on:
        fields |= {"schedule": "onecycle", "lr": 3e-3}
    if "progressive" in on:
        fields |= {"schedule": "progressive", "lr": 1e-4}
    if "decay schedule" in on:
        fields |= {"weight_decay": 5e-4, "final_decay": 1e-5}
    return ADAM.model_copy(update=fields)


def _model(on: Collection[str], base: Config) -> Model:
    kind = "sigmoid" if "attention" in on else "identity" if "identity gate" in on else None
    links = next((name.removesuffix(" links") for name in on if name.endswith(" links")), None)
    return Model(
        name="hybrid" if "hybrid ViT" in on else "stage1",
        width=base.model.width,
        depth=3 if "depth 3" in on else 2 if "depth" in on else 1,
        dropout=0.1 if "dropout" in on else 0.0,
        attention=gated(kind, 2)(base) if kind else None,
        links=Links(kind=links) if links else None,
    )


def _loss(on: Collection[str], base: Config, data: Data) -> Loss:
    fields: dict[str, Any] = {}
    if "multi-scale loss" in on or "random features" in on:
        fields = multiscale(base, "random" if "random features" in on else "trained", data).model_dump()
    elif "SSIM loss" in on:
        fields = {"rmse": 0.7, "ssim": 0.3}
    elif "gradient loss" in on:
        fields = {"gradient": 1.0}
    return Loss.model_validate(fields | ({"channels": (2.0, 1.0)} if "channel weight" in on else {}))


def _own_test(data: Callable[[Config], Data]) -> Callable[[Config], Data | None]:
    """The base's test set, for arms that train with other phantoms."""
    return lambda base: base.data if data(base) != base.data else None


def recipe(on: Collection[str]) -> dict[str, Change]:
    """What a profile's base is changed by where the improvements `on` are on, and all others off.

    All off is the earlier work's recipe on our network: Adam, half the steps, 40 % of the phantoms, small tumours.
    """

    def batch(base: Config) -> int:
        return base.training.batch * (2 if "batch" in on else 1)

    def data(base: Config) -> Data:
        family = base.data.family if "tumour size" in on else "small"
        changes = {"family": family} | ({} if "data size" in on else {"train": fewer(base)})
        return base.data.model_copy(update=changes)

    def epochs(base: Config) -> int:
        return _epochs(base, data(base), batch(base), 1.0 if "duration" in on else 0.5)

    changes: dict[str, Change] = {"optim": _optim(on), "model": lambda base: _model(on, base), "data": data}
    changes |= {"training.epochs": epochs, "training.batch": batch, "loss": lambda base: _loss(on, base, data(base))}
    changes |= {"test": _own_test(data)}
    if "batch" in on:
        changes["training.micro"] = lambda base: base.training.batch
    if "augmentation" in on:
        changes["augment"] = Augmentation()
    if "EMA" in on:
        changes["training.ema"] = lambda base: averaging(
            replace(base, {"data": data(base), "training.epochs": epochs(base), "training.batch": batch(base)})
        )
    return changes


def without(name: str) -> frozenset[str]:
    """The full recipe without an improvement; of an alternative, with it in its place."""
    if name in ALTERNATIVES:
        return frozenset(FULL) - {ALTERNATIVES[name]} | {name}
    return frozenset(FULL) - {name}


def label(name: str) -> str:
    """An improvement as arms are named: lower case, dashes."""
    return name.lower().replace(" ", "-")


ADD = {f"add-{label(name)}": Arm(recipe({name}), f"baseline and {SOURCES[name]}") for name in IMPROVEMENTS}
LEAVE = {
    f"{'swap' if name in ALTERNATIVES else 'leave'}-{label(name)}": Arm(
        recipe(without(name)),
        f"full recipe with {SOURCES[name]}, not {SOURCES[ALTERNATIVES[name]]}"
        if name in ALTERNATIVES
        else f"full recipe but for {SOURCES[name]}",
    )
    for name in IMPROVEMENTS
}
ENDS = {
    "baseline": Arm(recipe(()), "the earlier work's recipe on our network: Adam, half the steps, fewer small tumours"),
    "full": Arm(recipe(FULL), "every improvement that can be had together"),
}


def _phase(network: str, number: int) -> Arm:
    """A row of the roadmap, cumulative, at as many steps: 0 as reported, 1 data and optimiser, 2 gates, 3 the loss."""
    off = recipe({"duration"} if number == 0 else {"duration", "data size", "tumour size"})
    changes = {key: off[key] for key in ("data", "test", "training.epochs")}
    changes |= BASELINES[f"{network}-{'onecycle' if number else 'adam'}"].changes
    if number > 1:
        changes["model.attention"] = gated("sigmoid", 2)
    if number > 2:
        changes["loss"] = multiscale
    words = ("40 % of the phantoms, small tumours, Adam", "all phantoms, AdamW + one cycle", "+ attention", "+ loss")
    return Arm(changes, f"roadmap of the earlier work, {network}: " + ", ".join(words[: number + 1][-2:]))


ROADMAP = {f"{network}-phase{n}": _phase(network, n) for network in ("legacy", "stage1") for n in range(4)}
SIZES_OF_DATA = (256, 512, 1024, 2048, 4096)  # training phantoms


def _trained_with(n: int) -> Arm:
    """The recipe with so many training phantoms, the first of one draw, at as many steps and on the base's test set.

    A base that has fewer is appended to, for all larger sizes alike; the smallest profile trains with what it has.
    """

    def data(base: Config) -> Data:
        own = train_share(base.data)
        if n == own or base.data.grid == 16:
            return base.data
        part = base.data.fractions[0] / sum(base.data.fractions)
        drawn = math.ceil(SIZES_OF_DATA[-1] / part) if n > own else base.data.phantoms
        return base.data.model_copy(update={"phantoms": drawn, "train": n})

    def epochs(base: Config) -> int:
        return _epochs(base, data(base), base.training.batch)

    return varied(f"trained with {n} phantoms", data=data, test=_own_test(data), training__epochs=epochs)


PHANTOMS = {f"phantoms-{n}": _trained_with(n) for n in SIZES_OF_DATA}
FAMILIES = {
    f"trained-{family}": varied(
        f"trained on the family {family}",
        data=lambda base, family=family: base.data.model_copy(update={"family": family}),
        test=lambda base: base.data,
    )
    for family in ("small", "superficial", "high-contrast", "superellipsoid")
}
# The longest runs: the one-cycle recipe's five improvements, and those that validation speaks for in both directions of
# the ablation (results/PLAN.md, `sections.budget.chosen`).
GIVEN = ("optimiser", "schedule", "duration", "data size", "tumour size")
BEST = (*GIVEN, "channel weight")
WIDTHS = {"specified": 16, "half": 8}  # channels of the first stage
BUDGETS = (16, 4, 1)  # times `unit`


def unit(base: Config) -> int:
    """Samples of the smallest budget: those of the profile; of the full one, which is the largest, a sixteenth."""
    whole = steps(base) * base.training.batch
    return whole // 16 if base.data.grid == 64 else whole


def _longer(base: Config, width: int, budget: int) -> Config:
    """The base for so many units, of the largest training set of the learning curve where its own is smaller."""
    data = base.data if base.data.grid == 64 else PHANTOMS[f"phantoms-{SIZES_OF_DATA[-1]}"].changes["data"](base)
    epochs = max(1, round(unit(base) * budget / (train_share(data) // base.training.batch * base.training.batch)))
    return replace(base, {"data": data, "model.width": width, "training.epochs": epochs})


def _best(width: int, budget: int) -> Arm:
    def of(change: Change) -> Change:
        return (lambda base: change(_longer(base, width, budget))) if callable(change) else change

    changes = {path: of(change) for path, change in recipe(BEST).items()}
    changes["test"] = _own_test(changes["data"])
    return Arm(changes, f"the best recipe, width {width}, {budget} x the smallest budget")


LONG = {f"{name}-{n}": _best(width, n) for n in BUDGETS for name, width in WIDTHS.items()}  # the longest first
ARMS = ATTENTION | SIZES | ENDS | ADD | LEAVE | ROADMAP | PHANTOMS | FAMILIES | LONG
GATES = ("stage1-onecycle", "sigmoid-2", "identity-2")
STUDIES = {
    "4.4-shown": Study(GATES[:2], whole=True),
    "4.4-gates": Study(GATES, 10),
    "4.4-attention": Study(("stage1-onecycle", *ATTENTION, *SIZES), 3),
    "4.5-roadmap": Study(tuple(ROADMAP), 3),
    "4.5-add-one-in": Study(("baseline", *ADD), 3),
    "4.5-leave-one-out": Study(("full", *LEAVE), 3),
    "4.5-best": Study(tuple(LONG), 1),
    "4.5-data": Study(("stage1-onecycle", *PHANTOMS, *FAMILIES), 3),
}
