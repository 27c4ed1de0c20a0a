"""The optimisers' settings in section 4.3: what tuning chose, and what is found around the one-cycle recipe."""

import numpy as np
import pandas as pd
import pytest
from test_optimisers import STEPS, record_of

from dotlib import arms, config, optim
from dotlib.sections import settings


def at_the_edge(candidate, i):
    """Which settings of a point are the lowest or highest tried."""
    points = pd.DataFrame(arms.points(candidate))
    return ", ".join(name for name, values in points.items() if values[i] in (values.min(), values.max()))


def test_tuning_chooses_the_lowest_last_error_and_names_what_is_at_an_edge():
    levels = dict.fromkeys(arms.TUNING["muon"], 0.0) | {"tune-muon-6": -0.1, "tune-muon-2": -9.0}
    highest = int(np.argmax([point["lr"] for point in arms.points("muon")]))
    levels |= dict.fromkeys(arms.TUNING["adam-cosine"], -0.5) | {f"tune-adam-cosine-{highest}": -0.6}
    warmest = int(np.argmax([point["warmup"] for point in arms.points("adamw-constant")]))
    levels |= dict.fromkeys(arms.TUNING["adamw-constant"], 0.0) | {f"tune-adamw-constant-{warmest}": -0.2}
    record = record_of(levels, seeds=1, failed=[("tune-muon-2", 0)])
    table = settings.tuning_points(record)
    chosen = table[table["chosen"]].set_index("arm")
    assert chosen["lr"].to_dict() == {
        "muon": arms.points("muon")[6]["lr"],
        "adam-cosine": table["lr"].max(),
        "adamw-constant": arms.points("adamw-constant")[warmest]["lr"],
    }
    assert chosen.loc["muon", "edge"] == at_the_edge("muon", 6) == "warmup"
    assert "lr" in chosen.loc["adam-cosine", "edge"]
    assert "warmup" not in chosen.loc["adamw-constant", "edge"]  # without a schedule there is none
    assert (table.loc[~table["chosen"], "edge"] == "").all()
    assert settings.tuned(record).set_index("candidate")["at the edge"].to_dict() == {
        **dict.fromkeys(arms.TUNING, ""), **chosen["edge"]
    }  # fmt: skip
    assert table.loc[table["arm"] == "muon", "failed"].tolist().count("") == 7
    assert (table.loc[table["arm"] == "adamw-cosine", "failed"] == "no run").all()


def test_sensitivity_is_each_setting_against_the_recipe():
    study = arms.STUDIES["4.3-sensitivity"].arms
    levels = {arm: i / 10 for i, arm in enumerate(study)}
    table = settings.sensitivity(record_of(levels, seeds=3)).set_index("label")
    assert set(table.index) == set(study) - {"stage1-onecycle"}
    for arm in table.index:
        assert np.log1p(table.loc[arm, "effect"] / 100) == pytest.approx(levels[arm] - levels["stage1-onecycle"])


def test_answer_on_the_settings_names_what_is_better_first():
    levels = dict.fromkeys(arms.STUDIES["4.3-sensitivity"].arms, 0.0) | {"warmup-0.4": -0.1, "lr-0.01": 0.2}
    record = record_of(levels, seeds=3, spread=0.001)
    _, _, first, *others = settings.answer(record).splitlines()
    assert first.startswith("* **warm-up share: the recipe's 0.2 is not the best tried.** Better: 0.4 (-9.")
    [rate] = [line for line in others if "rate" in line]
    assert "nothing was found better than the recipe's 0.003.** Worse: 0.01 (+22." in rate
    assert settings.answer(record_of(levels, seeds=1)).count("Not resolved.") == 4


def test_meaning_of_the_settings_is_that_of_their_formulas():
    record = record_of(dict.fromkeys(arms.STUDIES["4.3-sensitivity"].arms, 0.0), seeds=1)
    table = settings.meaning(record).set_index("arm")
    recipe = config.ONECYCLE
    assert set(table.index) == set(arms.STUDIES["4.3-sensitivity"].arms) and (table["steps"] == STEPS).all()
    assert table.loc["beta2-0.999", ["memory of squares", "warm-up by rule"]].tolist() == pytest.approx([1000, 2000])
    assert table.loc["warmup-0.4", "warm-up"] == pytest.approx(0.4 * STEPS)
    # a cosine up and one down, each half its height on the average, the very end apart
    assert table.loc["stage1-onecycle", "sum of rates"] == pytest.approx(recipe.lr * STEPS / 2, rel=0.02)
    assert table.loc["lr-0.03", "sum of rates"] == pytest.approx(10 * table.loc["stage1-onecycle", "sum of rates"])
    rates = [optim.settings(recipe, step, STEPS).lr for step in range(STEPS)]
    left = np.prod([1 - rate * 0.1 for rate in rates])  # AdamW without gradients, step by step
    assert table.loc["decay-0.1", "decay leaves, %"] == pytest.approx(100 * left, rel=1e-4)


def test_sensitivity_has_the_recipe_as_base_of_every_panel():
    study = arms.STUDIES["4.3-sensitivity"].arms
    table = settings.sensitivity_runs(record_of({arm: i / 10 for i, arm in enumerate(study)}, seeds=2))
    recipe = arms.arm("stage1-onecycle", "quick").optim
    base = table[table["base"]].drop_duplicates("setting")["value_of"].tolist()
    assert base == [recipe.betas[1], recipe.lr, recipe.warmup, recipe.weight_decay]
    assert table.groupby("setting")["value_of"].nunique().tolist() == [4, 5, 4, 4]
    for _, row in table[~table["base"]].iterrows():
        optim = arms.arm(row["arm"], "quick").optim
        assert row["value_of"] in (optim.betas[1], optim.lr, optim.warmup, optim.weight_decay)
    assert table["value"].nunique() == 2 * len(study)
