"""Arms of sections 4.4 and 4.5: each differs in what it declares, in both directions, and all share a test set."""

import dataclasses

import numpy as np
import pytest

from dotlib import arms, improvements, perceptual, study
from dotlib.arms import ARMS, STUDIES
from dotlib.config import ONECYCLE, PROFILES, Attention, Augmentation, ConfigError, Links, train_share
from dotlib.data import dataset
from dotlib.factors import DECLARED, FIELDS, differing
from dotlib.improvements import ALTERNATIVES, IMPROVEMENTS, label
from dotlib.models.stages import Addition
from dotlib.recipes import ADAM, steps

SIZES = ("smoke", "quick", "full")
NEW = [name for name in STUDIES if name.startswith(("4.4", "4.5")) and name != "4.4-maps"]


def judged_on(config):
    """What tells a configuration's test phantoms apart: its description without the number trained with."""
    return (config.test or config.data).model_copy(update={"train": None})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NEW)
def test_arms_of_a_study_share_the_bases_test_set(name, size):
    assert {judged_on(arms.arm(arm, size)) for arm in STUDIES[name].arms} == {PROFILES[size].base.data}


def test_every_improvement_is_studied_in_both_directions():
    assert set(FIELDS) == set(IMPROVEMENTS) and len(IMPROVEMENTS) == 24
    added, left = set(STUDIES["4.5-add-one-in"].arms), set(STUDIES["4.5-leave-one-out"].arms)
    assert added == {"baseline", *(f"add-{label(name)}" for name in IMPROVEMENTS)}
    ways = {name: "swap" if name in ALTERNATIVES else "leave" for name in IMPROVEMENTS}
    assert left == {"full", *(f"{way}-{label(name)}" for name, way in ways.items())}


@pytest.mark.parametrize("size", ["quick", "full"])
@pytest.mark.parametrize("name", IMPROVEMENTS)
def test_improvement_changes_its_own_fields_alone(name, size):
    way = "swap" if name in ALTERNATIVES else "leave"
    for reference, other in (("baseline", f"add-{label(name)}"), ("full", f"{way}-{label(name)}")):
        found = differing(arms.arm(reference, size), arms.arm(other, size))
        more = {"test"} if name in ("data size", "tumour size") else set()  # the same one, which must be named
        if reference == "full" and name in ("duration", "batch", "data size"):
            more.add("training.ema")  # the same share of another number of steps
        assert found and found - more <= FIELDS[name], (reference, found)


def test_study_refuses_an_arm_that_differs_in_more_than_it_declares(tmp_path, monkeypatch):
    def wrong(name, **changes):
        monkeypatch.setitem(ARMS, name, dataclasses.replace(ARMS[name], changes=ARMS[name].changes | changes))
        with pytest.raises(ConfigError) as error:
            study.runs([DECLARED[name][0], name], "quick", 1, tmp_path)
        return str(error.value)

    assert wrong("add-ema", augment=Augmentation()) == (
        "arm add-ema: differs from baseline in augment; declared: training.ema"
    )
    bare = wrong("swap-depth-3", model=lambda base: base.model.model_copy(update={"name": "hybrid", "depth": 3}))
    said = "arm swap-depth-3: differs from full in model.attention, model.dropout, model.links; declared: model.depth"
    assert bare == said
    more = wrong("add-batch", **{"training.epochs": lambda base: base.training.epochs})
    assert more == "arm add-batch: sees 3072 training samples, baseline 4128; as many are accepted"
    # a moving average follows the number of steps; one that comes, goes or is another one is a factor
    for name, ema in (("add-depth", 0.99), ("leave-depth", None), ("leave-depth", 0.5), ("sigmoid-2", 0.5)):
        assert "training.ema; declared: " in wrong(name, **{"training.ema": ema}), name
    assert "augment; declared: model.attention" in wrong("identity-2", augment=Augmentation())
    for name in ("hybrid", "trained-small", "phantoms-512", "legacy-phase2", "half-4", "specified-4"):
        assert f"arm {name}: differs from {DECLARED[name][0]} in " in wrong(name, **{"training.patience": 3}), name


def test_every_arm_declares_its_factor_but_those_that_others_are_compared_with():
    found = {name: set(STUDIES[name].arms) - set(DECLARED) for name in NEW}
    assert found == {
        **{name: {"stage1-onecycle"} for name in ("4.4-shown", "4.4-gates", "4.4-attention", "4.5-data")},
        "4.5-add-one-in": {"baseline"}, "4.5-leave-one-out": {"full"}, "4.5-best": {"specified-1"},
        "4.5-roadmap": {"legacy-phase0", "stage1-phase0"},
    }  # fmt: skip


@pytest.mark.parametrize("size", ["quick", "full"])
def test_improvements_are_compared_at_as_many_samples(size):
    """But for the duration, which is half; whole epochs leave 2 % at most."""
    base = PROFILES[size].base
    whole = steps(base) * base.training.batch
    for name in (*STUDIES["4.5-add-one-in"].arms, *STUDIES["4.5-leave-one-out"].arms, *STUDIES["4.5-data"].arms):
        config = arms.arm(name, size)
        half = name == "leave-duration" or ((name == "baseline" or name[:4] == "add-") and name != "add-duration")
        seen = steps(config) * config.training.batch
        assert seen == pytest.approx(whole / 2 if half else whole, rel=0.02), name


@pytest.mark.parametrize("size", ["quick", "full"])
def test_no_arm_trains_with_the_draw_of_a_phantom_that_it_is_judged_on(size):
    """Nor with phantoms of another family that rest on its random numbers."""
    every = {(c.data, c.test or c.data) for name in NEW for c in (arms.arm(arm, size) for arm in STUDIES[name].arms)}
    assert len({data.family for data, _ in every}) == 5
    for pair in every:  # without readings, whose files would be simulated; test_split has some with
        used, judged = (dataset.load(data.model_copy(update={"measurements": None})).labels for data in pair)
        n = min(len(used), len(judged))
        assert not (np.isin(used[:n], (0, 1)) & (judged[:n] == 2)).any() and (judged == 2).sum() >= 64


@pytest.mark.parametrize("size", ["quick", "full"])
def test_arms_of_attention_and_families_change_their_own_field_alone(size):
    reference = arms.arm("stage1-onecycle", size)
    declared = {"model.attention": improvements.ATTENTION, "data.family": improvements.FAMILIES}
    declared |= {"model.width": ("narrow", "wide"), "model.name": ("hybrid", "vit")}
    assert {*improvements.ATTENTION, *improvements.SIZES} == {n for k, v in declared.items() if k[0] == "m" for n in v}
    for field, names in declared.items():
        for name in names:
            assert differing(reference, arms.arm(name, size)) - {"test"} == {field}, name


@pytest.mark.parametrize("size", ["quick", "full"])
def test_teachers_take_the_profiles_steps_on_their_arms_phantoms(size):
    base = PROFILES[size].base
    arms_of = (arms.arm(name, size) for name in STUDIES["4.5-leave-one-out"].arms + STUDIES["4.5-add-one-in"].arms)
    teachers = {teacher for config in arms_of if (teacher := perceptual.teacher_config(config))}
    assert {teacher.data.train for teacher in teachers} == {None, improvements.fewer(base)}
    for teacher in teachers:
        assert steps(teacher) == pytest.approx(steps(base), rel=0.01)


def test_full_recipe_has_what_each_improvement_says():
    full, base = arms.arm("full", "quick"), PROFILES["quick"].base
    assert (full.optim.name, full.optim.lr, full.optim.betas) == ("adamw", 3e-3, (0.9, 0.95))
    assert (full.optim.weight_decay, full.optim.final_decay) == (5e-4, 1e-5)
    assert (full.training.batch, full.training.micro) == (2 * base.training.batch, base.training.batch)
    assert (full.loss.rmse, full.loss.ssim, full.loss.perceptual, full.loss.channels) == (1.0, 0.3, 0.1, (2.0, 1.0))
    assert full.loss.features.source == "trained" and full.loss.features.seed == improvements.TEACHER
    assert (full.model.name, full.model.depth, full.model.dropout) == ("hybrid", 2, 0.1)
    assert full.data == base.data and full.test is None
    assert full.model.attention == Attention(kind="sigmoid", side="encoder", stages=(1, 2))
    assert full.model.links == Links(kind="dense", side="both")
    assert (full.augment.rotation, full.augment.elastic, full.augment.noise) == (5.0, 1.0, 0.01)
    assert full.training.ema == pytest.approx(1 - 1 / (0.1 * steps(full)))


def test_alternatives_are_what_they_say():
    found = {name: arms.arm(f"swap-{label(name)}", "quick") for name in ALTERNATIVES}
    values = {"rmse": 1.0, "ssim": 0.0, "perceptual": 0.0, "gradient": 0.0}
    losses = {"SSIM loss": {"rmse": 0.7, "ssim": 0.3}, "gradient loss": {"gradient": 1.0}}
    losses["random features"] = {"ssim": 0.3, "perceptual": 0.1}
    for name, changed in losses.items():
        loss = found.pop(name).loss
        assert {key: getattr(loss, key) for key in values} == values | changed, name
        assert (loss.features.source if loss.features else None) == {"random features": "random"}.get(name), name
    optim = found.pop("progressive").optim
    assert (optim.schedule, optim.lr) == ("progressive", 1e-4)
    assert found.pop("identity gate").model.attention == Attention(kind="identity", side="encoder", stages=(1, 2))
    for kind in ("fused", "guided"):
        assert found.pop(f"{kind} links").model.links == Links(kind=kind, side="both")
    assert found.pop("depth 3").model.depth == 3 and not found


def test_baseline_is_the_earlier_recipe_on_our_network():
    found, base = arms.arm("baseline", "full"), PROFILES["full"].base
    assert found.optim == ADAM and found.model == base.model and found.loss == base.loss and found.augment is None
    assert (found.data.family, found.data.train) == ("small", 1408)  # 40 % of 3,500 in whole double batches of 64
    assert steps(found) == pytest.approx(steps(base) / 2, rel=0.01)


def test_roadmap_is_cumulative():
    for network in ("legacy", "stage1"):
        rows = [arms.arm(f"{network}-phase{n}", "quick") for n in range(4)]
        assert {row.model.name for row in rows} == {network}
        assert rows[0].optim == ADAM and all(row.optim == ONECYCLE for row in rows[1:])
        changed = {"optim.name", "optim.lr", "optim.betas", "optim.schedule", "data.family", "data.train", "test"}
        assert differing(rows[0], rows[1]) == {*changed, "training.epochs"}
        assert differing(rows[1], rows[2]) == {"model.attention"}
        assert rows[2].model.attention == Attention(kind="sigmoid", side="encoder", stages=(1, 2))
        assert (rows[3].loss.rmse, rows[3].loss.ssim, rows[3].loss.perceptual) == (1.0, 0.3, 0.1)
        assert differing(rows[2], rows[3]) == FIELDS["multi-scale loss"]
        assert (rows[0].data.family, rows[0].data.train, rows[1].data.train) == ("small", 96, None)
        assert steps(rows[0]) == pytest.approx(steps(rows[1]), rel=0.01)


def test_learning_curve_doubles_the_phantoms_of_one_draw():
    found = [arms.arm(f"phantoms-{n}", "quick") for n in improvements.SIZES_OF_DATA]
    assert [train_share(c.data) for c in found] == [256, 512, 1024, 2048, 4096]
    assert {steps(c) for c in found} == {512}
    assert len({c.data.model_copy(update={"train": None}) for c in found[1:]}) == 1
    assert found[0] == arms.arm("stage1-onecycle", "quick")


@pytest.mark.parametrize("size", SIZES)
def test_gates_are_behind_stages_that_the_network_has(size):
    from dotlib.inference import network

    for name in improvements.ATTENTION:
        kind, deepest = name.rsplit("-", 1)
        stages = range(1, min(int(deepest), 2 if size == "smoke" else 3) + 1)
        assert arms.arm(name, size).model.attention == Attention(kind=kind, side="encoder", stages=tuple(stages))
        added = network(arms.arm(name, size)).network.added
        assert {place: type(one) for place, one in added.items()} == {f"encoder{n}": Addition for n in stages}
