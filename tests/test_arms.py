"""Arms of the studies: each a declared change of one base, by the numbers of its source, with equal tuning."""

import itertools
import math

import pytest
from scipy.stats import qmc

from dotlib import arms, improvements, optim, reconstructions
from dotlib.arms import ADAM, ARMS, CANDIDATES, FACTORIAL, SHORTENED, SOBOL, STUDIES, TUNING
from dotlib.config import ONECYCLE, PROFILES, ConfigError, Optim

SIZES = ("quick", "full")
EARLIER = {
    name: arm for name, arm in ARMS.items() if name not in improvements.ARMS | reconstructions.ARMS | SHORTENED
}  # of sections 4.2 and 4.3
POINT = {"lr": 2e-3, "weight_decay": 3e-3, "warmup": 0.1}  # made up
RANGES = {"lr": (3e-4, 3e-2), "warmup": (0.05, 0.5)}


def built(name, size="quick", seed=0):
    """An arm's configuration; what tuning would have found is made up."""
    candidate = ARMS[name].tuned
    return arms.arm(name, size, seed, Optim.model_validate(CANDIDATES[candidate] | POINT) if candidate else None)


def flat(tree, prefix=""):
    """The leaves of a tree of dicts by dotted name."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {path: leaf for key, value in tree.items() for path, leaf in flat(value, f"{prefix}{key}.").items()}


def changes(a, b):
    """Where configuration `a` differs from `b`: dotted name -> value of `a`."""
    first, second = flat(a.model_dump()), flat(b.model_dump())
    assert set(first) == set(second)
    return {path: value for path, value in first.items() if value != second[path]}


@pytest.mark.parametrize("size", SIZES)
def test_arms_differ_from_the_base_in_what_they_name_only(size):
    """Same data, loss and seed for every arm of a profile: the comparison is paired."""
    for name, arm in EARLIER.items():
        declared = {*arm.changes, *(["optim"] if arm.tuned else [])}
        assert not declared & {"seed", "task", "loss"} and not any(path.startswith("data") for path in declared)
        found = changes(built(name, size, 3), PROFILES[size].base)
        assert found.pop("seed") == 3
        undeclared = [path for path in found if not any(f"{path}.".startswith(f"{field}.") for field in declared)]
        assert not undeclared, name
        assert arm.source


@pytest.mark.parametrize("size", PROFILES)
def test_baseline_is_two_networks_by_two_recipes(size):
    for name in STUDIES["4.2-baseline"].arms:
        network, recipe = name.split("-")
        made, base = built(name, size), PROFILES[size].base
        assert made.optim == {"adam": ADAM, "onecycle": ONECYCLE}[recipe]
        assert (made.model.name, made.model.width, made.model.code) == (network, base.model.width, base.model.code)
        assert made.training == base.training


def test_optimisers_hold_the_published_numbers():
    """The earlier work's baseline and its revision, and the size at which both are compared."""
    assert (ADAM.name, ADAM.schedule) == ("adam", "plateau")
    assert (ADAM.lr, ADAM.weight_decay, ADAM.clip) == (5e-5, 1e-4, 1.0)
    assert (ONECYCLE.name, ONECYCLE.schedule) == ("adamw", "onecycle")
    assert (ONECYCLE.lr, ONECYCLE.weight_decay, ONECYCLE.clip) == (3e-3, 1e-4, 1.0)
    assert (ONECYCLE.betas, ONECYCLE.momentum) == ((0.9, 0.95), (0.85, 0.95))
    assert (ONECYCLE.warmup, ONECYCLE.div, ONECYCLE.final_div) == (0.2, 25, 1e4)
    full = PROFILES["full"].base
    assert (full.data.phantoms, full.data.grid, full.training.batch, full.model.width) == (5000, 64, 32, 16)
    assert [f / sum(full.data.fractions) for f in full.data.fractions] == [0.7, 0.15, 0.15]


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("legacy-adam", "04675896309e"),
        ("legacy-onecycle", "1e309511094c"),
        ("stage1-adam", "364887b67af8"),
        ("stage1-onecycle", "1a847a8cdc33"),
    ],
)
def test_baseline_keeps_its_names(name, digest):
    """The quick profile's digests before the trainer had any of its options."""
    assert built(name, "quick", 1).digest() == digest


# arm -> what it is compared with, and all that tells the two apart, in the full profile
ADDED = {
    "plateau": ("adamw-constant", {"optim.schedule": "plateau"}),
    "progressive": ("adamw-constant", {"optim.schedule": "progressive"}),
    "ema": ("adamw-constant", {"training.ema": 1 - 1 / 1090}),  # 10,900 steps
    "progressive-specified": ("stage1-adam", {"optim.schedule": "progressive", "optim.lr": 1e-4}),
    "decay-schedule": ("stage1-onecycle", {"optim.weight_decay": 5e-4, "optim.final_decay": 1e-5}),
    "batch-48": ("stage1-onecycle", {"training.batch": 48}),
    "batch-64": ("stage1-onecycle", {"training.batch": 64}),
    "batch-64-accumulated": ("batch-64", {"training.micro": 32}),
    "ema-onecycle": ("stage1-onecycle", {"training.ema": 1 - 1 / 1090}),
    "stopped": ("stage1-onecycle", {"training.patience": 15}),
    "fp32": ("stage1-onecycle", {"training.precision": "fp32"}),
    "stage1-onecycle-25": ("stage1-onecycle", {"training.epochs": 25}),
    "stage1-onecycle-50": ("stage1-onecycle", {"training.epochs": 50}),
    "stage1-onecycle-75": ("stage1-onecycle", {"training.epochs": 75}),
    "stage1-adam-25": ("stage1-adam", {"training.epochs": 25, "optim.plateau": (0.5, 1)}),
    "stage1-adam-50": ("stage1-adam", {"training.epochs": 50, "optim.plateau": (0.5, 2)}),
    "beta2-0.9": ("stage1-onecycle", {"optim.betas": (0.9, 0.9)}),
    "beta2-0.99": ("stage1-onecycle", {"optim.betas": (0.9, 0.99)}),
    "beta2-0.999": ("stage1-onecycle", {"optim.betas": (0.9, 0.999)}),
    "lr-0.0003": ("stage1-onecycle", {"optim.lr": 3e-4}),
    "lr-0.001": ("stage1-onecycle", {"optim.lr": 1e-3}),
    "lr-0.01": ("stage1-onecycle", {"optim.lr": 1e-2}),
    "lr-0.03": ("stage1-onecycle", {"optim.lr": 3e-2}),
    "warmup-0.05": ("stage1-onecycle", {"optim.warmup": 0.05}),
    "warmup-0.1": ("stage1-onecycle", {"optim.warmup": 0.1}),
    "warmup-0.4": ("stage1-onecycle", {"optim.warmup": 0.4}),
    "decay-0.001": ("stage1-onecycle", {"optim.weight_decay": 1e-3}),
    "decay-0.01": ("stage1-onecycle", {"optim.weight_decay": 1e-2}),
    "decay-0.1": ("stage1-onecycle", {"optim.weight_decay": 1e-1}),
    "adam-constant-b95": ("adam-constant", {"optim.betas": (0.9, 0.95)}),
    "adamw-onecycle-momentum-b95": ("adamw-onecycle-momentum", {"optim.betas": (0.9, 0.95)}),
}


@pytest.mark.parametrize("name", ADDED)
def test_addition_adds_one_thing(name):
    reference, expected = ADDED[name]
    found = changes(built(name, "full"), built(reference, "full"))
    assert found == {path: pytest.approx(value) for path, value in expected.items()}


def test_every_arm_is_compared_by_a_law_here():
    """Those of the 4.3 studies that `ADDED` leaves out are its references, the factorial's cells, and three more."""
    rest = set(EARLIER) - set(ADDED) - set(sum(TUNING.values(), ()))
    assert rest == {*STUDIES["4.2-baseline"].arms, *FACTORIAL, "schedule-free", "muon", "batch-32"}
    assert changes(built("batch-32"), built("stage1-onecycle")) == {"training.batch": 32}
    assert not changes(built("batch-32", "full"), built("stage1-onecycle", "full"))  # 32 is what full has


def test_quick_shares_are_those_of_its_own_steps():
    """512 steps of 16, 32 epochs."""
    assert 1 / (1 - built("ema").training.ema) == pytest.approx(51.2)
    assert built("stopped").training.patience == 5
    found = [built(f"stage1-onecycle-{share}").training.epochs for share in (25, 50, 75)]
    assert found == [8, 16, 24]


def test_specified_progression_is_that_of_the_earlier_work():
    """Phases 1a, 1b, 1c: 1e-4, 5e-5 and 1e-5 for 30, 50 and 20 % of the steps."""
    rates = [optim.settings(built("progressive-specified").optim, step, 100).lr for step in range(100)]
    assert rates == pytest.approx([1e-4] * 30 + [5e-5] * 50 + [1e-5] * 20)


def test_factorial_is_the_whole_product():
    """Two optimisers by four schedules, beta2 0.999; a pair of cells differs in these factors only."""
    cells = {name: built(name) for name in FACTORIAL}
    factors = {
        (c.optim.name, c.optim.schedule, c.optim.schedule == "onecycle" and c.optim.momentum) for c in cells.values()
    }
    schedules = [("constant", False), ("cosine", False), ("onecycle", None), ("onecycle", (0.85, 0.95))]
    assert factors == {(name, *schedule) for name in ("adam", "adamw") for schedule in schedules} and len(cells) == 8
    for a, b in itertools.combinations(cells.values(), 2):
        assert set(changes(a, b)) <= {"optim.name", "optim.schedule", "optim.momentum"}
        assert a.digest() != b.digest()
    assert {c.optim.betas for c in cells.values()} == {(0.9, 0.999)} and all(c.optim.spare for c in cells.values())


def test_points_are_sobols():
    assert (qmc.Sobol(3, scramble=False).random(8) * 8).tolist() == [list(cell) for cell in SOBOL]


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_points_hit_each_eighth_of_every_range_once(candidate):
    """Eighths of the logarithm; as many points, as wide a range, for every candidate."""
    decay = (1e-7, 1e-3) if CANDIDATES[candidate]["name"] == "adam" else (1e-4, 1.0)
    points = arms.points(candidate)
    assert len(points) == len(TUNING[candidate]) == 8
    for field, (low, high) in (RANGES | {"weight_decay": decay}).items():
        places = [8 * math.log(point[field] / low) / math.log(high / low) for point in points]
        assert sorted(map(math.floor, places)) == list(range(8))
        assert all(abs(place % 1 - 0.5) < 0.05 for place in places)  # three digits are kept


def test_further_points_go_on_with_sobols_sequence_moved_by_half_a_cell():
    """By their places: each power of two fills the ranges evenly, and a point does not depend on how many follow."""
    expected = (qmc.Sobol(3, scramble=False).random(64) + 1 / 16) % 1
    points, limits = arms.points("muon", 64), arms.ranges("muon")
    for row, point in zip(expected, points, strict=True):
        found = [math.log(point[name] / low) / math.log(high / low) for name, (low, high) in limits.items()]
        assert found == pytest.approx(row, abs=2e-3)  # three digits are kept
        assert all(low <= point[name] <= high for name, (low, high) in limits.items())
    for number in (1, 8, 9, 13):
        assert arms.points("muon", number) == points[:number]
    assert len({tuple(point.values()) for point in points}) == 64


def test_candidates_are_tried_at_the_same_rates_and_warm_ups():
    tried = {tuple((p["lr"], p["warmup"]) for p in arms.points(candidate)) for candidate in CANDIDATES}
    assert len(tried) == 1


@pytest.mark.parametrize("size", SIZES)
def test_tuning_tries_each_point_at_half_the_horizon(size):
    base = PROFILES[size].base
    for candidate, names in TUNING.items():
        for name, point in zip(names, arms.points(candidate), strict=True):
            made = built(name, size)
            assert made.optim == Optim.model_validate(CANDIDATES[candidate] | point)
            assert made.training == base.training.model_copy(update={"epochs": base.training.epochs // 2})
            assert made.model.name == "stage1"


def test_tuned_arms_take_what_tuning_found_and_keep_the_rest():
    for name in CANDIDATES:
        assert built(name).optim.model_dump(include=set(POINT)) == POINT
        assert ARMS[name].tuned == name
    for name in ("plateau", "progressive", "ema"):
        assert ARMS[name].tuned == "adamw-constant"
        assert built(name).optim.model_dump(include=set(POINT)) == POINT


def test_arm_without_its_tuning_is_one_line():
    with pytest.raises(ConfigError) as error:
        arms.arm("muon", "quick")
    assert str(error.value) == "arm muon: its tuning is not computed in this profile; study 4.3-tuning does it"


def test_studies_are_of_known_arms_and_their_declared_seeds():
    for study in STUDIES.values():
        assert set(study.arms) <= set(ARMS) and len(set(study.arms)) == len(study.arms)
    seeds = {name: (study.seeds, study.first) for name, study in STUDIES.items()}
    assert seeds.pop("4.3-tuning") == (1, 1000)
    assert seeds == {
        "4.2-baseline": (0, 0), "4.2-shown": (1, 0), "4.4-maps": (2, 0),
        "4.3-ends": (10, 0), "4.3-factorial": (5, 0), "4.3-additions": (3, 0),
        "4.3-sensitivity": (3, 0), "4.4-shown": (0, 0), "4.4-gates": (10, 0), "4.4-attention": (3, 0),
        "4.5-roadmap": (3, 0), "4.5-add-one-in": (3, 0), "4.5-leave-one-out": (3, 0), "4.5-data": (3, 0),
        "4.5-best": (1, 0), "4.6-shown": (2, 0), "4.6-control": (1, 0), "4.6-inputs": (3, 0), "4.6-networks": (3, 0),
        "4.6-patterns": (3, 0), "4.6-architecture": (3, 0), "4.6-more": (3, 0),
    }  # fmt: skip
    assert STUDIES["4.3-ends"].arms == (
        "stage1-adam",
        "stage1-onecycle",
        "adam-constant",
        "adamw-onecycle-momentum-b95",
    )
    assert set(STUDIES["4.3-tuning"].arms) == {arm for names in TUNING.values() for arm in names}
