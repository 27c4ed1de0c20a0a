"""Configuration as frozen data: one tree, and the profiles.

A run is named by its fields that differ from their defaults. So a default says what holds where nobody chose, is never
changed, and a new field's default means "as before": then runs that are already computed keep their names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from .config_parts import CHANNELS as CHANNELS
from .config_parts import LIFTED as LIFTED
from .config_parts import TOKEN as TOKEN
from .config_parts import Attention as Attention
from .config_parts import Augmentation, ConfigError, Data, Frozen, Lift, Loss, Model, Positive, Seed
from .config_parts import FamilyName as FamilyName
from .config_parts import Features as Features
from .config_parts import Links as Links
from .config_parts import Measurements as Measurements
from .config_parts import Noise as Noise
from .config_parts import Pretrained as Pretrained

ProfileName = Literal["smoke", "quick", "full"]
Beta = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Scale = Annotated[float, Field(gt=1)]
M = TypeVar("M", bound=BaseModel)


class Optim(Frozen):
    """Optimiser and schedules; a schedule's shares are those of the run's steps."""

    name: Literal["adam", "adamw", "schedule-free", "muon"]
    lr: float = Field(gt=0)  # the highest of the schedule
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(ge=0)  # L2 in the gradient for adam, decoupled for the others
    final_decay: float | None = Field(None, gt=0)  # weight decay runs there geometrically
    spare: bool | None = None  # no decay of norms and biases; None: for all but adam
    schedule: Literal["plateau", "onecycle", "constant", "cosine", "progressive"]
    warmup: float = Field(0.2, gt=0, lt=1)  # share of onecycle, cosine and schedule-free
    div: float = Field(25.0, ge=1)
    final_div: float = Field(1e4, ge=1)
    momentum: tuple[Beta, Beta] | None = (0.85, 0.95)  # cycled beta1, onecycle; None keeps betas[0]
    plateau: tuple[Factor, Positive] = (0.5, 5)  # factor, patience in epochs: ours, the earlier work names neither
    phases: tuple[tuple[Factor, Share], ...] = ((0.3, 1.0), (0.5, 0.5), (0.2, 0.1))  # progressive: share, factor of lr
    clip: float | None = Field(1.0, gt=0)  # largest gradient norm

    @model_validator(mode="after")
    def _fits(self) -> Optim:
        if self.name == "schedule-free" and (self.schedule != "constant" or not self.betas[0]):
            raise ValueError(
                f"schedule-free with {self.schedule!r}, {self.betas}: 'constant', betas[0] > 0 are accepted"
            )
        if self.final_decay and not self.weight_decay:
            raise ValueError("final_decay needs a positive weight_decay to start from")
        if abs(sum(share for share, _ in self.phases) - 1) > 1e-9:
            raise ValueError(f"phases {self.phases}: shares that add up to 1 are accepted")
        return self


class Training(Frozen):
    """How long, in which batches and in which arithmetic."""

    epochs: Positive
    batch: int = Field(strict=True, gt=1)
    micro: Annotated[int, Field(strict=True, gt=1)] | Literal["auto"] | None = None  # at once, gradients add up
    memory: float = Field(35.0, gt=0)  # GB, for micro = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    scaler: tuple[Scale, Scale, Positive] = (65536.0, 2.0, 2000)  # fp16: initial scale, growth, steps between growths
    compile: Literal["auto", "off", "default", "graphs"] = "auto"  # auto: default on CUDA, off elsewhere
    checkpointing: bool = False  # activations of blocks are computed twice, not kept; excludes compilation
    ema: Factor | None = None  # decay of the weights' moving average, which is then what is judged
    patience: Positive | None = None  # early stopping, epochs; a comparison of arms runs its whole horizon
    milestones: tuple[Positive, ...] = ()  # epochs after which a checkpoint is kept


# AdamW with one cycle, by the numbers of the earlier work's revision
ONECYCLE = Optim(name="adamw", lr=3e-3, betas=(0.9, 0.95), weight_decay=1e-4, schedule="onecycle")


class Config(Frozen):
    """Everything that a run's numbers depend on; `test`: phantoms whose test part judges it, by default its own."""

    task: Literal["autoencode", "reconstruct"] = "autoencode"
    data: Data
    model: Model
    loss: Loss = Loss()
    augment: Augmentation | None = None
    test: Data | None = None
    optim: Optim
    training: Training
    seed: Seed = 0
    lift: Lift | None = None

    @model_validator(mode="after")
    def _trainable(self) -> Config:
        share, t = train_share(self.data), self.training
        self._require_task()
        if self.model.links and self.model.links.side == "across" and self.task == "autoencode":
            raise ValueError(
                "model.links.side = 'across' under task 'autoencode': links across the bottleneck would let the truth "
                "past the code, and the task become a copy; 'encoder', 'decoder' or 'both' is accepted"
            )
        if self.test and self.test.grid != self.data.grid:
            raise ValueError(f"test.grid {self.test.grid}: that of data, {self.data.grid}, is accepted")
        if t.batch > share:
            raise ValueError(f"training.batch {t.batch} exceeds the {share} training phantoms")
        if t.micro not in (None, "auto") and t.batch % t.micro:
            raise ValueError(f"training.micro {t.micro}: a divisor of batch {t.batch} is accepted")
        if self.loss.features and self.loss.features.seed == self.seed:
            raise ValueError(f"loss.features.seed {self.seed}: another than the run's own seed is accepted")
        if t.ema and self.optim.name == "schedule-free":
            raise ValueError("training.ema with schedule-free, which averages weights itself: one of both is accepted")
        return self

    def _require_task(self) -> None:
        """Raise ValueError where the task and what it needs do not fit."""
        if self.task == "autoencode":
            if self.lift or self.model.name in ("unet", "tokens"):
                what = "lift" if self.lift else f"model.name = {self.model.name!r}"
                raise ValueError(f"{what} under task 'autoencode', which reads no light; accepted with 'reconstruct'")
            if self.model.pretrained:
                raise ValueError("model.pretrained under task 'autoencode', its source; accepted with 'reconstruct'")
            if self.augment and self.augment.symmetry:
                raise ValueError("augment.symmetry under task 'autoencode': rotation and elastic are accepted there")
            return
        if self.lift is None or self.data.measurements is None:
            missing = "lift" if self.lift is None else "data.measurements"
            raise ValueError(f"{missing} is missing: task 'reconstruct' needs data.measurements and lift")
        fitting = "'tokens'" if self.lift.kind == "tokens" else "'unet' or 'stage1'"
        if repr(self.model.name) not in fitting:
            what = f"model.name {self.model.name!r} under task 'reconstruct' with lift.kind {self.lift.kind!r}"
            raise ValueError(f"{what}: {fitting} is accepted")
        if self.model.pretrained and self.loss.features:
            raise ValueError("loss.features beside model.pretrained, each with a network of its own: one is accepted")
        if a := self.augment:
            if a.symmetry and self.lift.kind == "tokens":
                raise ValueError("augment.symmetry with lift.kind 'tokens': stored optodes stay; off is accepted")
            wrong = {"rotation": a.rotation, "elastic": a.elastic, "noise": a.noise}
            if named := [f"{name} = {value:g}" for name, value in wrong.items() if value]:
                raise ValueError(
                    f"augment.{named[0]} under task 'reconstruct': readings are not those of the changed medium; "
                    "'symmetry' moves medium and optodes together, and lift.draws are fresh noise and pairs"
                )

    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:12]


def train_share(data: Data) -> int:
    """Phantoms to train with, before any are excluded."""
    part = data.phantoms * data.fractions[0] // sum(data.fractions)
    return min(part, data.train or part)


@dataclass(frozen=True)
class Profile:
    """The size at which a study is run."""

    base: Config
    seeds: int
    trivial: int  # phantoms for the trivial predictors, and their grid
    trivial_grid: int


def _base(data: Data, width: int, epochs: int, batch: int) -> Config:
    model, training = Model(name="stage1", width=width), Training(epochs=epochs, batch=batch)
    return Config(data=data, model=model, optim=ONECYCLE, training=training)


PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        _base(Data(phantoms=24, fractions=(4, 1, 1), grid=16, measurements=Measurements()), width=4, epochs=2, batch=8),
        seeds=2, trivial=4, trivial_grid=32,
    ),
    # half the width, so that two cores have the time for 512 steps of 16
    "quick": Profile(
        _base(Data(phantoms=384, fractions=(4, 1, 1), grid=32, measurements=Measurements()),
              width=8, epochs=32, batch=16),
        seeds=3, trivial=32, trivial_grid=64,
    ),
    "full": Profile(
        _base(Data(phantoms=5000, grid=64, measurements=Measurements()), width=16, epochs=100, batch=32),
        seeds=10, trivial=160, trivial_grid=64,
    ),
}  # fmt: skip


def named(kind: str, table: Mapping[str, Any], name: str) -> Any:
    """Look up a profile, an arm or a study; an unknown name is one line that lists the accepted ones."""
    if name not in table:
        raise ConfigError(f"unknown {kind} {name!r}; accepted: {', '.join(table)}")
    return table[name]


def profile(name: str) -> Profile:
    return named("profile", PROFILES, name)


def validate(model: type[M], values: Mapping[str, Any], where: str = "config") -> M:
    """Build `model` from plain values; raises ConfigError, one line a fault: field, value, what is accepted."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {_line(model, e)}" for e in error.errors())) from None


def _line(model: type[BaseModel], error: Mapping[str, Any]) -> str:
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        owner: Any = model
        for part in error["loc"][:-1]:
            kind = owner.model_fields[part].annotation
            owner = next((k for k in get_args(kind) if k is not type(None)), kind)  # of an optional part too
        return f"unknown field {place}; accepted: {', '.join(owner.model_fields)}"
    if error["type"] == "missing":
        return f"{place} is missing"
    return f"{place} = {error['input']!r}: {error['msg']}" if place else error["msg"]


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
    """A validated copy of `config` with fields changed by dotted name, e.g. `{"optim.lr": 1e-3}`."""
    tree = config.model_dump()
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        node = tree
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(f"config: unknown field {path}; accepted: {', '.join(tree)}")
        node[leaf] = value.model_dump() if isinstance(value, BaseModel) else value
    return validate(Config, tree)


class Parameters(Frozen):
    """Parameters that every notebook has."""

    profile: ProfileName
    seeds: int = Field(ge=0)
    recorded: bool = False

    @property
    def size(self) -> Profile:
        return PROFILES[self.profile]

    @property
    def store(self) -> Path | None:
        """Where runs are; None where only what is recorded counts."""
        return None if self.recorded else root() / "runs"

    @property
    def figures(self) -> Path:
        """Where figures and tables go."""
        return root() / "build" / ("recorded" if self.recorded else self.profile) / "figures"

    @property
    def n_seeds(self) -> int:
        return self.seeds or self.size.seeds


def parameters(model: type[M], namespace: dict[str, Any]) -> M:
    """Validate a notebook's parameters, given its own namespace (`globals()`).

    Every public name bound there to plain data is taken for a parameter, so that a misspelt one, which papermill only
    warns about, stops the notebook. An empty `profile` means $DOTLIB_PROFILE, or quick.
    """
    plain = str | int | float | bool | list | tuple | dict | None
    names = {n for n, v in namespace.items() if not n.startswith("_") and isinstance(v, plain)} - {"In", "Out"}
    # when the cell is run again, what later cells have bound is none of its business
    first = namespace.setdefault("_parameters", names)
    values = {name: namespace[name] for name in names & (first | set(model.model_fields))}
    if values.get("profile") == "":
        values["profile"] = os.environ.get("DOTLIB_PROFILE") or "quick"
    return validate(model, values, "parameters")


def root() -> Path:
    """The project's folder: the nearest one, from the working directory upwards, with notebooks/ and pyproject.toml."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    raise ConfigError(f"{here}: not inside the project; run from its folder")
