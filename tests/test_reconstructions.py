"""The arms of section 4.6: what they are compared with, and what each changes."""

import pytest

from dotlib import arms, factors, recipes, reconstructions
from dotlib.config import PROFILES
from dotlib.reconstructions import ARMS, STUDIES


@pytest.mark.parametrize("size", PROFILES)
def test_main_arm_changes_task_lift_and_network_alone(size):
    made = arms.arm("reconstruct", size)
    assert factors.differing(made, arms.arm("stage1-onecycle", size)) == {"task", "model.name", "lift"}
    assert (made.task, made.model.name) == ("reconstruct", "unet")
    assert (made.lift.count, made.lift.draws, made.lift.pattern) == (256, 4, "random")


@pytest.mark.parametrize("size", PROFILES)
@pytest.mark.parametrize("name", [name for name in ARMS if name != "reconstruct"])
def test_arm_differs_in_its_factor_alone(name, size):
    against, fields = factors.DECLARED[name]
    found = factors.differing(arms.arm(name, size), arms.arm(against, size))
    if name == "reconstruct-more":  # its test set is named, and the smallest profile has no more phantoms
        assert found - {"test"} == (fields if size != "smoke" else {"lift"})
    else:
        assert found == fields
    factors.require(name, arms.arm(name, size), arms.arm(against, size))


@pytest.mark.parametrize("size", PROFILES)
def test_longer_arms_take_four_times_as_many_steps(size):
    """To the rounding of an epoch to whole batches, whatever the number of phantoms."""
    steps = {name: recipes.steps(arms.arm(f"reconstruct{name}", size)) for name in ("", "-longer", "-symmetry-longer")}
    assert steps["-longer"] == pytest.approx(4 * steps[""], rel=0.01) and steps["-symmetry-longer"] == 4 * steps[""]


def test_every_arm_is_in_a_study_beside_what_it_is_compared_with():
    assert set(ARMS) == {arm for study in STUDIES.values() for arm in study.arms}
    for name in ("4.6-inputs", "4.6-networks"):
        assert {factors.DECLARED[arm][0] for arm in STUDIES[name].arms[1:]} <= set(STUDIES[name].arms)
    assert all(ARMS[arm].source for arm in ARMS)


def test_control_sees_no_readings_and_gauss_newton_one_or_two_steps():
    lifts = {name: arms.arm(name, "quick").lift for name in reconstructions.INPUTS}
    assert lifts["reconstruct-blind"].kind == "none"
    assert [lifts[f"reconstruct-gauss-newton{more}"].steps for more in ("", "-2")] == [1, 2]
    assert len({lift.model_dump_json() for lift in lifts.values()}) == len(lifts)
