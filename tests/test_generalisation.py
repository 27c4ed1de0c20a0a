"""The generalisation matrix against hand-made judgements and closed forms."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from test_criteria import made, row, rows_of

from dotlib.sections import generalisation


@pytest.fixture(scope="module")
def crossed():
    errors = {
        ("default", "default"): [0.20, 0.22], ("default", "small"): [0.30, 0.31],
        ("default", "input noise 1 %"): [0.20, 0.23],
        ("small", "default"): [0.50, 0.40], ("small", "small"): [0.20, 0.20], ("small", "input noise 1 %"): [0.1, 0.1],
    }  # fmt: skip
    rows = [
        r for (family, on), values in errors.items()
        for r in rows_of(generalisation.TRAINED[family], on, ("nrmse", "mua"), values)
    ]  # fmt: skip
    return generalisation.matrix(
        made([*rows, (generalisation.TRAINED["small"], 0, "training", "roughness", "", 0.1, 3)])
    )


def test_matrix_relates_each_set_to_home_and_to_the_specialist(crossed):
    assert len(crossed) == 5 * 3  # without the learning curves
    found = row(crossed, **{"trained on": "small", "tested on": "default"})
    assert found["nrmse"] == pytest.approx(0.45) and not found["home"]
    logs = np.log([0.5 / 0.2, 0.4 / 0.2])
    low, high = scipy_stats.t.interval(0.95, 1, logs.mean(), scipy_stats.sem(logs))
    expected = np.exp([logs.mean(), low, high])
    assert [found[name] for name in ("ratio", "ratio low", "ratio high")] == pytest.approx(expected)
    special = np.exp(np.log([0.5 / 0.20, 0.4 / 0.22]).mean())
    assert found["specialist"] == pytest.approx(special)
    home = row(crossed, **{"trained on": "small", "tested on": "small"})
    assert (home["ratio"], home["ratio low"], home["specialist"], home["home"]) == (1, 1, 1, True)


def test_matrix_leaves_out_what_was_not_judged(crossed):
    found = row(crossed, **{"trained on": "superficial", "tested on": "small"})
    assert found["seeds"] == 0 and np.isnan(found["ratio"]) and np.isnan(found["specialist"])
    assert np.isnan(row(crossed, **{"trained on": "default", "tested on": "input noise 1 %"})["specialist"])
    cells = generalisation.matrix_table(crossed).set_index("tested on")
    assert cells.loc["small", "trained on superficial"] == "--"
    assert cells.loc["default", "trained on default"] == "0.21 (home)"
    assert cells.loc["small", "trained on default"].startswith("0.305, x 1.45 [")


def test_matrix_answer_begins_with_the_greatest_loss(crossed):
    first, second, *rest = generalisation.matrix_answer(crossed).splitlines()
    assert first == (
        "* **Trained on small**. Not resolved on default (x 2.24); below home on input noise 1 % (x 0.50). "
        "Not resolved on default (x 2.13)."
    )
    assert second.startswith("* **Trained on default**. Not resolved on small (x 1.45), input noise")
    assert second.endswith(". Above those trained there on small (x 1.52).")
    assert len(rest) == 3 and all(line.endswith(": not computed.**") for line in rest)
