"""What benchmarks/precision.py makes of its rows, one of a run that failed."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
from tiny import every_step, tiny

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "precision.py"


@pytest.fixture(scope="module")
def precision():
    spec = importlib.util.spec_from_file_location("precision", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(errors):
    """Errors by precision, a seed each; None: failed."""
    return [
        {"precision": name, "seed": seed, "nrmse_mua": math.nan if error is None else error}
        for name, found in errors.items()
        for seed, error in enumerate(found)
    ]


def test_failed_run_has_the_worst_error_of_all(precision):
    base = {"fp32": [0.2, 0.22, 0.21], "bf16": [0.21, 0.21, 0.22]}
    failed, named = (precision.summary(rows(base | {"fp16": [0.2, error, 0.9]})) for error in (None, 0.9))
    assert [row.pop("failed") for row in failed] == [0, 1] and [row.pop("failed") for row in named] == [0, 0]
    assert failed == named and [row["seeds"] for row in failed] == [3, 3]


def test_precision_whose_every_run_failed_has_a_row(precision):
    found = precision.summary(rows({"fp32": [0.2, 0.22, 0.21], "fp16": [None] * 3}))
    assert [(row["failed"], row["failed, fp32"], row["seeds"]) for row in found] == [(3, 0, 3)]
    assert found[0]["effect, %"] > 0
    assert precision.summary(rows({"fp32": [None, None], "fp16": [None, None]})) == []


@pytest.mark.parametrize("step", [0, 3])
def test_run_that_fails_is_a_row_without_an_error(precision, monkeypatch, tmp_path, step):
    """In its first epoch, or later: not by the last that was good."""
    every_step(monkeypatch, lambda i, loss, pred, truth: loss * math.nan if i == step else loss)
    row = precision.run(tiny(epochs=3), "fp32", 1, "cpu")
    assert math.isnan(row["nrmse_mua"]) and row["failed"].startswith(f"epoch {step // 2}, ") and row["skipped"] == 0
    for _ in range(2):
        precision.write(tmp_path / "rows", row | {"machine": "x"})
    lines = (tmp_path / "rows").read_text().splitlines()
    assert [json.loads(line)["nrmse_mua"] for line in lines] == [None, None] and "NaN" not in lines[0]
    assert json.loads(lines[0]) == row | {"machine": "x", "nrmse_mua": None}
