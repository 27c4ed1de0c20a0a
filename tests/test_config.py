"""Configuration: frozen, refused in one line, and named by what differs from its defaults."""

import csv
import json
import math
import os
import typing
from pathlib import Path

import pydantic
import pytest

from dotlib import arms, config
from dotlib.arms import ADAM, ARMS, STUDIES
from dotlib.config import PROFILES, Config, ConfigError, Frozen, Optim, Training
from dotlib.data import store

BASE = arms.arm("stage1-onecycle", "smoke")
RECONSTRUCT = {"task": "reconstruct", "model.name": "unet", "lift": config.Lift()}  # what makes a task of another one


def leaves(model, prefix=""):
    """Every field of a tree of models that is no model itself: dotted name, value, annotation."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, pydantic.BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, field.annotation


def other(value, annotation):
    """A legal value of the field beside the one that it has, or None where there is but one."""
    for kind in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(kind) is typing.Literal:
            return next((choice for choice in typing.get_args(kind) if choice != value), None)
    if isinstance(value, tuple):
        return (other(value[0], None), *value[1:])
    if value is None:
        return 2
    if isinstance(value, int):
        return value + 1
    return value / 2 if value == 1 else (value + 1) / 2


STILL = {"rotation": 0.0, "elastic": 0.0, "noise": 0.0}
# fields for which `other` would find nothing legal
ODD = {
    "optim.spare": False,
    "optim.phases": ((0.4, 1.0), (0.6, 0.5)),
    "training.ema": 0.9,
    "training.milestones": (1,),
    "data.train": 8,
    "test": BASE.data.model_copy(update={"seed": 9}),
    "augment": config.Augmentation(),
    "model.attention": config.Attention(kind="se"),
    "model.links": config.Links(kind="dense"),
    "loss": config.Loss(perceptual=0.1, features=config.Features(source="random")),
}
TIED = {"loss.perceptual", "loss.features", "task", "lift", "model.pretrained"}  # legal together only
# where one source, detector or pair more is legal too
MEASURED = config.replace(BASE, {"data.measurements": {"sources": 1, "detectors": 4, "pairs": 2}})
CHANGES = {path: other(value, annotation) for path, value, annotation in leaves(MEASURED) if path not in {*ODD, *TIED}}
CHANGES = {path: value for path, value in CHANGES.items() if value is not None} | ODD
TOKENS = RECONSTRUCT | {"model.name": "tokens", "lift": config.Lift(kind="tokens")}
BEGUN = {"model.name": "stage1", "model.pretrained": config.Pretrained(epochs=2, batch=8)}
# fields that stand under task 'reconstruct' alone
LIFTED = config.replace(
    MEASURED,
    RECONSTRUCT
    | {"lift": config.Lift(noise=config.Noise()), "augment": config.Augmentation(rotation=0, elastic=0, noise=0)},
)
LIFTS = {path: other(value, annotation) for path, value, annotation in leaves(LIFTED) if path.startswith("lift.")}
LIFTS |= {"augment.symmetry": True, "model.links": config.Links(kind="dense", side="across"), "model.name": "stage1"}


def fault(*arguments, of=config.replace):
    """The one line in which a call is refused."""
    with pytest.raises(ConfigError) as error:
        of(*arguments)
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(("model", "field"), [(BASE, "seed"), (BASE.optim, "lr"), (ADAM, "lr"), (BASE.data, "grid")])
def test_config_is_frozen(model, field):
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(model, field, getattr(model, field))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"optim.lr": -1.0}, ("optim.lr", "-1.0", "greater than 0")),
        ({"optim.lr": 0}, ("optim.lr", "greater than 0")),
        ({"optim.lr": math.nan}, ("optim.lr", "nan")),
        ({"optim.lr": math.inf}, ("optim.lr", "inf", "finite")),
        ({"optim.lr": "fast"}, ("optim.lr", "'fast'", "number")),
        ({"optim.warmup": 1.0}, ("optim.warmup", "less than 1")),
        ({"optim.betas": (0.9, 1.0)}, ("optim.betas.1", "less than 1")),
        ({"optim.momentum": (-0.1, 0.9)}, ("optim.momentum.0", "greater than or equal to 0")),
        ({"optim.plateau": (1.0, 5)}, ("optim.plateau.0", "less than 1")),
        ({"optim.momentum": "cycled"}, ("optim.momentum", "'cycled'", "tuple")),
        ({"optim.name": "sgd"}, ("optim.name", "'sgd'", "'adam', 'adamw', 'schedule-free' or 'muon'")),
        (
            {"optim.schedule": "step"},
            ("optim.schedule", "'plateau', 'onecycle', 'constant', 'cosine' or 'progressive'"),
        ),
        (
            {"optim.name": "schedule-free"},
            ("optim", "schedule-free with 'onecycle'", "'constant', betas[0] > 0 are accepted"),
        ),
        ({"optim.final_decay": 0}, ("optim.final_decay", "greater than 0")),
        (
            {"optim.final_decay": 1e-5, "optim.weight_decay": 0},
            ("optim", "final_decay needs a positive weight_decay"),
        ),
        ({"optim.phases": ((0.5, 1), (0.4, 0.1))}, ("optim", "(0.5, 1.0), (0.4, 0.1)", "add up to 1")),
        ({"optim.phases": ()}, ("optim", "phases ()", "add up to 1")),
        ({"optim.phases": ((0.5, 1), (0.5, 2))}, ("optim.phases.1.1", "less than or equal to 1")),
        ({"optim.phases": ((0.5, 1), (0.5, 0))}, ("optim.phases.1.1", "greater than 0")),
        ({"optim.spare": "some"}, ("optim.spare", "'some'", "boolean")),
        ({"optim": 3}, ("optim = 3", "Optim")),
        ({"optim": {**ADAM.model_dump(), "rate": 1}}, ("optim.rate", "accepted: name, lr, betas")),
        ({"optim.rate": 1}, ("optim.rate", "accepted: name, lr, betas")),
        ({"optim.lr.x": 1}, ("optim.lr.x", "accepted")),
        ({"optimiser.lr": 1}, ("optimiser.lr", "accepted: task, data, model")),
        ({"rate": 1}, ("rate", "accepted: task, data, model")),
        ({"seed": -1}, ("seed = -1", "greater than or equal to 0")),
        ({"seed": 0.5}, ("seed = 0.5", "integer")),
        ({"seed": 2**63}, ("seed = 9223372036854775808", "less than")),
        ({"data.seed": 2**63}, ("data.seed", "less than")),
        ({"data.measurements.noise.seed": 2**63}, ("data.measurements.noise.seed", "less than")),
        ({"data.phantoms": 10_000_001}, ("data.phantoms", "less than or equal to 10000000")),
        ({"data.measurements.grid": 16}, ("data.measurements.grid = 16", "32, 48, 64 or 96")),
        ({"data.measurements.radius": 0}, ("data.measurements.radius = 0", "greater than 0")),
        ({"data.measurements.radius": math.inf}, ("data.measurements.radius = inf", "finite")),
        ({"data.measurements.patches": 3}, ("data.measurements.patches = 3", "1 or 2")),
        (
            {"data.measurements.patches": 2, "data.measurements.radius": None},
            ("data.measurements", "patches = 2, radius = None", "one patch is accepted", "whole surface"),
        ),
        ({"data.grid": 17}, ("data.grid", "16, 32 or 64")),
        ({"data.phantoms": 0}, ("data.phantoms", "greater than 0")),
        ({"data.family": "huge"}, ("data.family", "'huge'", "'default', 'small'")),
        ({"data.fractions": (4, 1, 0)}, ("data.fractions.2", "greater than")),
        ({"data.fractions": (4, -1, 1)}, ("data.fractions.1", "greater than")),
        ({"data.fractions": (4, 1)}, ("data.fractions", "missing")),
        ({"model.name": "resnet"}, ("model.name", "'legacy', 'stage1', 'hybrid', 'vit', 'unet' or 'tokens'")),
        ({"model.name": "unet"}, ("model.name = 'unet' under task 'autoencode'", "no light", "with 'reconstruct'")),
        ({"lift": config.Lift()}, ("lift under task 'autoencode'", "no light", "with 'reconstruct'")),
        ({"augment": {"symmetry": True}}, ("augment.symmetry under task 'autoencode'", "rotation and elastic")),
        ({"task": "reconstruct"}, ("lift is missing", "needs data.measurements and lift")),
        (RECONSTRUCT | {"data.measurements": None}, ("data.measurements is missing", "task 'reconstruct'")),
        *(
            (RECONSTRUCT | {"model.name": name}, (f"model.name {name!r} under", "'unet' or 'stage1' is accepted"))
            for name in ("legacy", "hybrid", "vit")
        ),
        *(
            (
                RECONSTRUCT | {"augment": STILL | {name: 2.5}},
                (f"augment.{name} = 2.5", "not those of the changed medium"),
            )
            for name in STILL
        ),
        ({"model.name": "tokens"}, ("model.name = 'tokens' under task 'autoencode'", "with 'reconstruct'")),
        (
            RECONSTRUCT | {"model.name": "tokens"},
            ("'tokens' under task 'reconstruct' with lift.kind 'linear'", "'unet' or 'stage1' is accepted"),
        ),
        *(
            (TOKENS | {"model.name": name}, (f"model.name {name!r}", "with lift.kind 'tokens': 'tokens' is accepted"))
            for name in ("unet", "stage1", "vit")
        ),
        (TOKENS | {"augment": STILL | {"symmetry": True}}, ("augment.symmetry with lift.kind 'tokens'", "off is")),
        *(
            (TOKENS | {f"model.{name}": value}, ("tokens has no stages: depth, dropout, attention and links",))
            for name, value in {
                "depth": 2,
                "dropout": 0.1,
                "attention": {"kind": "se"},
                "links": {"kind": "dense"},
            }.items()
        ),
        (BEGUN, ("model.pretrained under task 'autoencode'", "accepted with 'reconstruct'")),
        *(
            (BEGUN | {"model.name": name}, (f"pretrained with {name!r}: accepted with 'stage1' and 'tokens'",))
            for name in ("unet", "legacy", "hybrid", "vit")
        ),
        (
            RECONSTRUCT | BEGUN | {"loss.perceptual": 0.1, "loss.features": {"source": "random"}},
            ("loss.features beside model.pretrained", "one is accepted"),
        ),
        (RECONSTRUCT | {"model.pretrained": {"epochs": 1, "batch": 1}}, ("model.pretrained.batch", "greater than 1")),
        (
            RECONSTRUCT | {"model.pretrained": {"epochs": 1, "batch": 2, "steps": 1}},
            ("unknown field model.pretrained.steps", "epochs, batch, seed"),
        ),
        (RECONSTRUCT | {"augment": {}}, ("augment.rotation = 5", "'symmetry' moves", "lift.draws are fresh noise")),
        (RECONSTRUCT | {"lift": {"counts": 9}}, ("unknown field lift.counts", "accepted: kind, steps, pattern, count")),
        ({"augment": {"turn": 9}}, ("unknown field augment.turn", "accepted: rotation, elastic")),
        (RECONSTRUCT | {"lift": {"count": 0}}, ("lift.count", "greater than 0")),
        (RECONSTRUCT | {"lift": {"draws": 0}}, ("lift.draws", "greater than 0")),
        (RECONSTRUCT | {"lift": {"steps": 3}}, ("lift.steps", "1 or 2")),
        (
            RECONSTRUCT | {"lift": {"kind": "born"}},
            ("lift.kind", "'born'", "'closed-form', 'back-projection', 'none' or 'tokens'"),
        ),
        (RECONSTRUCT | {"lift": {"gain": "none"}}, ("lift.gain", "'global', 'optode' or 'known'")),
        (RECONSTRUCT | {"lift": {"pattern": "grid"}}, ("lift.pattern", "'grid'", "'stratified'")),
        ({"training.batch": 17}, ("training.batch 17", "16 training phantoms")),
        ({"training.patience": 0}, ("training.patience", "greater than 0")),
        ({"training.batch": "8"}, ("training.batch", "'8'", "integer")),
        ({"training.batch": 1}, ("training.batch", "greater than 1")),
        ({"training.epochs": True}, ("training.epochs", "True", "integer")),
        ({"training.epochs": "2"}, ("training.epochs", "'2'", "integer")),
        ({"training.micro": 3}, ("training.micro 3", "a divisor of batch 8")),
        ({"training.micro": 16}, ("training.micro 16", "a divisor of batch 8")),
        ({"training.ema": 1.0}, ("training.ema", "less than 1")),
        ({"training.precision": "fp8"}, ("training.precision", "'auto', 'fp32', 'bf16' or 'fp16'")),
        ({"training.scaler": (1, 2, 9)}, ("training.scaler.0", "greater than 1")),
        ({"training.memory": 0}, ("training.memory", "greater than 0")),
        ({"training.compile": "on"}, ("training.compile", "'auto', 'off', 'default' or 'graphs'")),
        ({"training.milestones": (0,)}, ("training.milestones.0", "greater than 0")),
        (
            {"optim.name": "schedule-free", "optim.schedule": "constant", "training.ema": 0.9},
            ("training.ema with schedule-free", "one of both"),
        ),
        ({"loss": "mae"}, ("loss = 'mae'", "dictionary or instance of Loss")),
        ({"loss.mae": 1.0}, ("unknown field loss.mae", "rmse, ssim, perceptual, gradient, channels, features")),
        ({"loss.rmse": 0.0}, ("loss", "every term has weight 0")),
        ({"loss.channels": (2, 0)}, ("loss.channels.1", "greater than 0")),
        ({"loss.perceptual": 0.1}, ("loss", "features None", "both or none are accepted")),
        ({"loss.features": {"source": "random"}}, ("loss", "perceptual 0", "both or none are accepted")),
        (
            {"loss.perceptual": 0.1, "loss.features": {"source": "trained"}},
            ("loss.features", "epochs and batch are accepted with 'trained', and needed there"),
        ),
        (
            {"loss.perceptual": 0.1, "loss.features": {"source": "random", "seed": 3}, "seed": 3},
            ("loss.features.seed 3", "another than the run's own seed"),
        ),
        ({"model.depth": 4}, ("model.depth", "1, 2 or 3")),
        ({"model.dropout": 1.0}, ("model.dropout", "less than 1")),
        ({"model.attention": {"kind": "sigmoid", "stages": ()}}, ("model.attention.stages", "at least 1 item")),
        ({"model.attention": {"kind": "gate"}}, ("model.attention.kind", "'attention-gate'")),
        ({"model.name": "vit", "model.depth": 2}, ("model", "vit has no stages")),
        (
            {"model.links": {"kind": "guided", "side": "across"}},
            ("model.links.side = 'across' under task 'autoencode'", "a copy", "'encoder', 'decoder' or 'both'"),
        ),
        ({"augment": {"rotation": 90}}, ("augment.rotation", "less than or equal to 45")),
        ({"data.train": 0}, ("data.train", "greater than 0")),
        ({"data.train": 4}, ("training.batch 8 exceeds the 4 training phantoms",)),
        ({"test": BASE.data.model_copy(update={"grid": 32})}, ("test.grid 32", "that of data, 16")),
    ],
)
def test_replace_refuses_in_one_line(changes, parts):
    line = fault(BASE, changes)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("call", "arguments", "wrong", "accepted"),
    [
        (arms.arm, ("legacy-sgd", "smoke"), "legacy-sgd", ARMS),
        (arms.arm, ("legacy-adam", "large"), "large", PROFILES),
        (config.profile, ("large",), "large", PROFILES),
        (config.named, ("study", STUDIES, "4.9"), "4.9", STUDIES),
    ],
)
def test_unknown_name_is_one_line(call, arguments, wrong, accepted):
    line = fault(*arguments, of=call)
    assert repr(wrong) in line and all(name in line for name in accepted)


@pytest.mark.parametrize(("size", "phantoms", "grid"), [("smoke", 24, 32), ("quick", 384, 32), ("full", 5000, 64)])
def test_fields_of_the_probe_rename_no_file_at_their_defaults(size, phantoms, grid):
    """A file of readings is known by what it was known by before it had them; named, the defaults say the same."""
    data = PROFILES[size].base.data
    known = {"measurements": {"grid": grid}, "phantoms": phantoms, "physics": 1}
    assert json.loads(store.identity(data)) == known
    named = data.measurements.model_dump() | {"radius": 30.0, "patches": 1}
    assert store.identity(data.model_copy(update={"measurements": config.Measurements(**named)})) == store.identity(
        data
    )
    for changes in ({"radius": 20.0}, {"radius": None}, {"patches": 2}):
        other = data.model_copy(update={"measurements": data.measurements.model_copy(update=changes)})
        assert json.loads(store.identity(other))["measurements"] == changes | {"grid": grid}


@pytest.mark.parametrize(
    ("grid", "named", "light", "model"),
    [(16, None, 32, 32), (32, None, 32, 32), (64, None, 64, 64), (32, 48, 48, 32), (16, 96, 96, 32), (64, 96, 96, 64)],
)
def test_model_of_a_reconstruction_knows_nothing_of_the_grid_of_the_readings(grid, named, light, model):
    data = config.Data(phantoms=1, grid=grid, measurements=config.Measurements(grid=named))
    assert (data.light_grid, data.model_grid) == (light, model)
    assert data.model_copy(update={"measurements": None}).model_grid == model


def test_every_fault_has_its_line():
    values = BASE.model_dump() | {"seed": -1, "loss": "mae"}
    del values["data"]["grid"]
    with pytest.raises(ConfigError) as error:
        config.validate(Config, values)
    assert [line.split(":")[1].split()[0] for line in str(error.value).splitlines()] == ["data.grid", "loss", "seed"]


def test_replace_leaves_the_base_untouched():
    before = BASE.model_dump_json()
    changed = config.replace(BASE, {"optim": ADAM, "data.seed": 7})
    assert BASE.model_dump_json() == before
    assert (changed.optim, changed.data.seed) == (ADAM, 7)
    assert changed.model_dump(exclude={"optim", "data"}) == BASE.model_dump(exclude={"optim", "data"})


@pytest.mark.parametrize("size", PROFILES)
def test_default_fields_are_no_part_of_the_digest(size):
    """A field that is added later, at its default, renames no run."""

    class LaterOptim(Optim):
        nesterov: bool = False

    class Later(Config):
        optim: LaterOptim
        ema: float | None = None

    base = arms.arm("stage1-onecycle", size, 1)
    values = base.model_dump()
    assert Later.model_validate(values).digest() == base.digest()
    assert Later.model_validate(values | {"ema": 0.9}).digest() != base.digest()
    values["optim"]["nesterov"] = True
    assert Later.model_validate(values).digest() != base.digest()


def test_fields_of_the_trainer_mean_as_before_at_their_defaults():
    """A configuration that names none of them is that of one which names them all."""
    before = {
        Optim: {
            "name",
            "lr",
            "betas",
            "weight_decay",
            "schedule",
            "warmup",
            "div",
            "final_div",
            "momentum",
            "plateau",
            "clip",
        },
        Training: {"epochs", "batch", "precision", "patience"},
    }
    values, plain = BASE.model_dump(), BASE.model_dump()
    for name, model in (("optim", Optim), ("training", Training)):
        added = set(model.model_fields) - before[model]
        defaults = {field: model.model_fields[field].default for field in added}
        assert added and not any(model.model_fields[field].is_required() for field in added)
        values[name] |= defaults
        plain[name] = {field: plain[name][field] for field in before[model]}
    assert Config.model_validate(values).digest() == Config.model_validate(plain).digest() == BASE.digest()
    assert Config.model_validate(plain) == BASE


def test_digest_changes_with_every_field():
    some = {"data.fractions", "data.measurements.noise.dropout", "optim.betas", "training.patience", "seed"}
    added = {
        "optim.final_decay",
        "optim.spare",
        "optim.phases",
        *(f"training.{name}" for name in Training.model_fields),
    }
    assert some | added <= set(CHANGES)
    digests = {config.replace(MEASURED, {path: value}).digest() for path, value in CHANGES.items()}
    assert len(digests | {BASE.digest(), MEASURED.digest()}) == len(CHANGES) + 2


def test_digest_changes_with_every_field_of_a_reconstruction():
    """Those that no autoencoder has; task and lift, legal together only, each by itself."""
    fields = {f"lift.{name}" for name in config.Lift.model_fields if name != "noise"}
    assert fields | {f"lift.noise.{name}" for name in config.Noise.model_fields} <= set(LIFTS)
    digests = {config.replace(LIFTED, {path: value}).digest() for path, value in LIFTS.items()}
    alone = {LIFTED.model_copy(update=change).digest() for change in ({"task": "autoencode"}, {"lift": None})}
    assert len(digests | alone | {MEASURED.digest(), LIFTED.digest()}) == len(LIFTS) + 4


def test_digest_changes_with_tokens_and_every_field_of_a_pretrained_decoder():
    fields = {name: other(value, None) for name, value in config.Pretrained(epochs=2, batch=8)}
    assert set(fields) == set(config.Pretrained.model_fields)
    begun = config.replace(LIFTED, BEGUN)
    digests = {config.replace(begun, {f"model.pretrained.{name}": value}).digest() for name, value in fields.items()}
    plain = config.replace(LIFTED, {"model.name": "stage1"})
    tokens = config.replace(BASE, TOKENS)
    more = config.replace(tokens, {"model.pretrained": BEGUN["model.pretrained"]})
    assert len(digests | {c.digest() for c in (begun, plain, tokens, more)}) == len(fields) + 4


def test_reconstruction_is_accepted_with_what_it_needs():
    """With either network, links across the bottleneck and motions of medium and optodes together."""
    still = config.Augmentation(**STILL, symmetry=True)
    for name in ("unet", "stage1"):
        changes = {"model.name": name, "model.links": config.Links(kind="guided", side="across"), "augment": still}
        found = config.replace(BASE, RECONSTRUCT | changes)
        assert (found.task, found.model.name, found.augment.symmetry) == ("reconstruct", name, True)


def test_recorded_runs_keep_their_names():
    """Each run in results/ that rests on no tuning, by the digest that was recorded with it."""
    named = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    rows = []
    for path in sorted((Path(__file__).resolve().parents[1] / "results").glob("*/runs.csv")):
        with path.open(newline="") as file:
            rows += [(path.parent.name, row) for row in csv.DictReader(file)]
    rows = [(study, row) for study, row in rows if "precision" in row and not ARMS[row["arm"]].tuned]
    assert {"4.3-ends", "4.4-attention", "4.5-roadmap"} <= {study for study, _ in rows}
    for study, row in rows:
        run = arms.arm(row["arm"], "quick", int(row["seed"]))
        run = config.replace(run, {"training.precision": named[row["precision"]]})
        assert run.digest() == row["config"], (study, row["arm"], row["seed"])


def test_digest_is_that_of_the_values():
    """Neither the order of the fields nor the way in which they were given is part of the name."""
    again = json.loads(BASE.model_dump_json())
    backwards = {key: again[key] for key in reversed(again)}
    backwards["optim"] = {key: again["optim"][key] for key in reversed(again["optim"])}
    assert Config.model_validate(backwards).digest() == BASE.digest()


class Chapter(config.Parameters):
    """A notebook's parameters with one of its own."""

    noise: float = 0.01


def read(**names):
    return config.parameters(Chapter, {"profile": "smoke", "seeds": 2, **names})


def test_parameters_are_the_public_names_of_plain_data():
    def helper():
        return 3

    others = {"os": os, "Path": Path, "Chapter": Chapter, "here": Path(), "helper": helper, "base": BASE}
    assert read(noise=0.1, _hidden=1, __name__="__main__", **others) == Chapter(profile="smoke", seeds=2, noise=0.1)


def test_parameters_ignore_the_names_of_ipython(tmp_path, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config as Settings

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell(config=Settings({"HistoryManager": {"enabled": False}}))
    shell.run_cell("import os; profile: str = 'smoke'; seeds: int = 2; 1", store_history=True)
    assert {"In", "Out", "get_ipython"} < set(shell.user_ns)
    assert config.parameters(config.Parameters, shell.user_ns) == config.Parameters(profile="smoke", seeds=2)


def test_parameters_of_a_cell_run_again_are_the_same():
    """What later cells have bound in between is none; a parameter that was changed in between is."""
    namespace = {"profile": "smoke", "seeds": 2, "noise": 0.1}
    config.parameters(Chapter, namespace)
    namespace |= {"table": [1], "count": 3, "noise": 0.2}
    assert config.parameters(Chapter, namespace).noise == 0.2


@pytest.mark.parametrize("value", [0.1, 2, True, "deep", None, [1], (1,), {"a": 1}])
def test_parameters_refuse_a_misspelt_name(value):
    line = fault(Chapter, {"profile": "smoke", "seeds": 2, "nosie": value}, of=config.parameters)
    assert "nosie" in line and "accepted: profile, seeds, recorded, noise" in line


@pytest.mark.parametrize(
    ("given", "part"), [({"profile": "large"}, "'smoke', 'quick' or 'full'"), ({"seeds": -1}, "seeds")]
)
def test_parameters_refuse_a_wrong_value(given, part):
    assert part in fault(Chapter, {"profile": "smoke", "seeds": 2, **given}, of=config.parameters)


@pytest.mark.parametrize(("environment", "expected"), [("smoke", "smoke"), ("", "quick"), (None, "quick")])
def test_empty_profile_is_the_environments(monkeypatch, environment, expected):
    monkeypatch.delenv("DOTLIB_PROFILE", raising=False)
    if environment is not None:
        monkeypatch.setenv("DOTLIB_PROFILE", environment)
    assert read(profile="").profile == expected
    assert read(profile="full").profile == "full"


def test_empty_profile_of_a_wrong_environment_is_refused(monkeypatch):
    monkeypatch.setenv("DOTLIB_PROFILE", "large")
    assert "large" in fault(Chapter, {"profile": "", "seeds": 0}, of=config.parameters)


def test_seeds_fall_back_to_the_profiles():
    assert read(seeds=0).n_seeds == PROFILES["smoke"].seeds
    assert read(seeds=5).n_seeds == 5


def test_parameters_are_frozen():
    assert issubclass(config.Parameters, Frozen)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        read().seeds = 3


def test_root_is_the_nearest_project_upwards(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    inner = tmp_path / "notebooks" / "deep"
    (inner / "notebooks").mkdir(parents=True)
    (inner.parent / "pyproject.toml").touch()  # one without the other is no project
    monkeypatch.chdir(inner)
    assert config.root() == tmp_path
    (tmp_path / "pyproject.toml").unlink()
    assert str(inner) in fault(of=config.root)
