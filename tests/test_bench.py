"""Benchmarks: what they print, and that a baseline does the same work."""

import json
import math
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import histories
import numpy as np
import pandas as pd
import pytest
import torch

from dotlib import __main__ as command
from dotlib import bench, bench_forward, bench_lift, bench_rows, bench_sharing, bench_store, config, study
from dotlib.data import phantoms
from dotlib.physics import geometry, homogeneous, jacobian, lift
from dotlib.sections import step_profile

ROOT = Path(__file__).resolve().parents[1]
KEYS = {"name", "value", "unit", "baseline", "ratio", "n", "machine"}


def not_json(constant):
    raise AssertionError(f"{constant} is not JSON")


def rows_of(part, capsys):
    assert command.main(["bench", part, "--json", "--profile", "smoke"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [json.loads(line, parse_constant=not_json) for line in out.splitlines()]


def assert_rows(rows, outside=()):
    """Each baseline is a row of the same call, or one of those measured beside it; ratios are those of the values."""
    values = {row["name"]: row["value"] for row in rows}
    for row in rows:
        assert set(row) == KEYS
        assert row["value"] > 0 and row["n"] >= 3 and row["unit"].endswith("/s")
        assert torch.__version__ in row["machine"]
        if row["baseline"] in values:
            assert row["ratio"] == pytest.approx(row["value"] / values[row["baseline"]])
        else:
            assert row["baseline"] in outside or (row["baseline"], row["ratio"]) == ("", None)
    assert any(row["ratio"] for row in rows)


@pytest.mark.parametrize(("gpus", "runs"), [(0, [1, 2]), (2, [2, 4, 8])])
def test_sharing_asks_the_engine_for_so_many_runs_at_once(monkeypatch, gpus, runs):
    """And reports the samples a second of all."""
    asked = []

    def here(work, total, per_gpu):
        asked.append((len(work), per_gpu))
        monkeypatch.setattr(bench_sharing.Run, "result", lambda run: histories.made_up(run.config))
        monkeypatch.setattr(bench_sharing.Clocked, "ends", lambda it: [0.1 * i for i in range(bench_sharing.EPOCHS)])
        return {}

    monkeypatch.setattr(bench_sharing.study, "here", here)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(bench_sharing, "cpu_cores", lambda: 2)
    rows = bench_sharing.bench_sharing(config.profile("smoke"))
    assert asked == [(n, n // max(gpus, 1)) for n in runs] and [row["n"] for row in rows] == runs
    assert [row["value"] for row in rows] == pytest.approx([n * 16 / 0.1 for n in runs])
    assert [row["ratio"] for row in rows][1:] == pytest.approx([n / runs[0] for n in runs[1:]])


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (([1, 2, 3],), 10),  # alone, its first epoch left out
        (([1, 2, 3], [1, 2, 3]), 20),
        (([1, 2, 3], [2, 4, 6]), 15),  # of the second, half of an epoch
        (([1, 2, 3], [4, 5, 6]), float("nan")),  # one after the other: no throughput of two
    ],
)
def test_sharing_counts_while_all_runs_train(ends, expected):
    assert bench_sharing.together(ends, [[10, 20, 30]] * len(ends)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.slow
def test_store_compares_the_engine_with_a_bare_pool(monkeypatch):
    """And results of full size are read whole."""
    for name, value in {"RUNS": 2, "REPEATS": 1, "STUDY": 3}.items():
        monkeypatch.setattr(bench_store, name, value)
    modes, compute = {}, study.compute

    def noted(runs, *arguments):
        modes.update({run.store.name: os.environ.get("WANDB_MODE") for run in runs.values()})
        compute(runs, *arguments)

    monkeypatch.setattr(study, "compute", noted)
    rows = {row["name"]: row for row in bench_store.bench_store(config.profile("smoke"))}
    assert (modes["runs"], modes["tracked"]) == ("disabled", "offline")
    bare, engine = (rows[f"2 runs, {name}"] for name in ("bare pool", "engine"))
    assert engine["ratio"] == pytest.approx(engine["value"] / bare["value"])
    added = rows["what the engine adds to a run"]
    assert added["value"] == pytest.approx((engine["value"] - bare["value"]) / 2)
    assert rows["what offline tracking adds to a run"]["baseline"] == "2 s"
    assert rows["2 finished runs, study again"]["baseline"] == "1 s"
    (saved,) = (name for name in rows if name.startswith("result of a full run"))
    assert float(saved.split(", ")[1].split()[0]) > 1  # MB


def of_unit(rows, unit):
    return [row for row in rows if row["unit"] == unit]


def test_phantoms_prints_a_json_object_a_line(capsys):
    rows = rows_of("phantoms", capsys)
    assert_rows(rows)
    assert {"sample", "rasterise 16^3", "rasterise 64^3"} <= {row["name"] for row in rows}


@pytest.mark.slow
def test_training_prints_a_json_object_a_line(capsys):
    rows = rows_of("training", capsys)
    assert_rows(rows, outside=("a 2048^3 matrix product",))
    shares = [row["ratio"] for row in rows if row["unit"] == "GFLOP/s"]
    assert shares and all(0 < share < 1.1 for share in shares)


def test_forward_prints_a_json_object_a_line(capsys):
    """Rates are rows like any other; exponents, iterations and memory have no baseline."""
    rows = rows_of("forward", capsys)
    rates = [row for row in rows if row["unit"].endswith("/s")]
    assert_rows(rates)
    assert {"readings 16^3", "readings 16^3, direct solve (splu)"} <= {row["name"] for row in rates}
    assert {row["unit"] for row in rows if row not in rates} == {"1", "GB", "iterations"}
    assert [row["name"].rsplit(" ", 1)[1] for row in of_unit(rows, "1")] == ["phantoms", "optodes", "voxels"]
    assert all(np.isfinite(row["value"]) for row in of_unit(rows, "1"))
    assert of_unit(rows, "iterations")[0]["value"] < 100 and 0.05 < of_unit(rows, "GB")[0]["value"] < 100


@pytest.mark.slow
def test_lift_prints_a_json_object_a_line(capsys):
    rows = rows_of("lift", capsys)
    assert_rows(rows)
    assert sum(bool(row["baseline"]) for row in rows) == 5


def test_plain_sensitivity_is_that_of_the_fields():
    """It leaves out what the tissue around an optode does to its operator, and nothing else."""
    scene, pairs = bench_lift.recorded(32, "cpu")
    fit, few = homogeneous.fit([scene])[0], pairs[::100]
    found = bench_lift.by_pairs(fit, few, 4)
    expected = jacobian.jacobian(fit.system, fit.light, few, 16, "mua D")[1].flatten(2)
    near = torch.zeros(len(few), 16**3, dtype=torch.bool)
    places = geometry.centres(torch.arange(16**3), 16, 4.0)
    for points in (scene.readings.sources[few[:, 0]], scene.readings.detectors[few[:, 1]]):
        near |= (places - points[:, None]).norm(dim=-1) < 4 * math.sqrt(3) / 2 + 3.6 * 2 + 2
    scale = expected.abs().amax(2, keepdim=True)
    error = ((found - expected) / scale).abs().amax(1)
    assert error[~near].max() < 1e-9 and error[near].max() > 1e-3


def test_solutions_among_voxels_and_readings_agree():
    """On a problem with few voxels; the plain one is regularised a little more, lest the covariance be singular."""
    generator = torch.Generator().manual_seed(0)
    tissue = torch.zeros(16, 16, 16, dtype=torch.bool)
    tissue[6:9, 6:9, 6:9] = True
    J = torch.randn(20, 2, int(tissue.sum()), generator=generator)
    problem = lift.Linear(J, torch.randn(20, generator=generator), tissue * 1.0, tissue, torch.ones(2), 4.0)
    prior = lift.Prior()
    x = lift.solve(problem, prior, (1.0,))[0][:, tissue].flatten()
    torch.testing.assert_close(
        bench_lift.among_voxels(problem, prior).float(), x, atol=2e-3 * x.abs().max().item(), rtol=0
    )


def test_overhead_is_of_a_run_of_that_length(monkeypatch):
    """The run is made longer until it lasts as long as is asked for; its parts add up to it."""
    asked = []

    def of_run(c, epochs, mode):
        asked.append((epochs, mode))
        spent = {"steps": 6.0, "validation": 1.0, "checkpoints": 0.5, "tracking": 0.3, "monitoring": 0.2, "start-up": 9}
        history = SimpleNamespace(epochs=pd.DataFrame({"seconds": [7.2] * epochs}))
        return history, step_profile.shares({part: epochs * value for part, value in spent.items()})

    monkeypatch.setattr(step_profile, "of_run", of_run)
    whole, *parts, overhead = bench.bench_overhead(config.profile("smoke"))
    assert asked == [(2, "offline"), (46, "offline")]  # 331 s, a tenth beyond 300
    assert (whole["name"], whole["value"]) == ("46 epochs", pytest.approx(46 * 8))
    assert sum(part["value"] for part in parts) == pytest.approx(whole["value"])
    assert overhead["ratio"] == pytest.approx(1 / 8)


def test_gpu_script_names_what_there_is(tmp_path):
    """Each part is a benchmark, a test file or a notebook of the project; one that fails keeps none from running."""
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/sh\necho "$@" >> \'{tmp_path}/calls\'\n[ "$3" != bench ] || [ "$4" != forward ]\n')
    stub.chmod(0o755)
    script = [ROOT / "benchmarks" / "gpu.sh", tmp_path / "out", stub]
    done = subprocess.run(["bash", *script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "") and "forward: exit code 1" in done.stdout
    words = (tmp_path / "calls").read_text().split()
    assert {words[i + 1] for i, word in enumerate(words) if word == "bench"} <= set(bench.PARTS)
    files = [word for word in words if word.startswith(("tests/", "notebooks/", "benchmarks/"))]
    assert len(files) == 3 and all((ROOT / name).is_file() for name in files)
    assert {path.name for path in (tmp_path / "out").glob("*.jsonl")} == {
        "forward.jsonl", "lift.jsonl", "training.jsonl", "overhead.jsonl", "sharing.jsonl", "store.jsonl"
    }  # fmt: skip
    (tmp_path / "calls").unlink()
    done = subprocess.run(["bash", *script, "tests", "training"], capture_output=True, text=True)
    assert done.returncode == 0 and [line.split(":")[0] for line in done.stdout.splitlines()] == ["tests", "training"]


def test_direct_readings_are_those_of_the_model():
    """What the model is measured against does the same work."""
    found, expected = bench_forward.readings(16, "cpu", 2)(), bench_forward.direct_readings(16)().numpy()
    assert found.shape == (2, 1000)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-4)


def test_matrix_is_the_operator():
    s, b = bench_forward.system(16, "cpu")
    np.testing.assert_allclose(bench_forward.matrix(s) @ b.numpy(), s.apply(b), rtol=1e-12, atol=1e-14)


def test_exponent_is_the_slope_of_a_power_law():
    seconds = [3 * n**1.5 for n in (1, 2, 4, 8)]
    assert bench_forward.exponent("n", (1, 2, 4, 8), seconds)["value"] == pytest.approx(1.5)


def test_table_names_the_machine_and_leaves_missing_ratios_empty(capsys, monkeypatch):
    rows = [bench_rows.row("slow", 2.0, "runs/s"), bench_rows.row("fast", 6.0, "runs/s", "slow", 2.0)]
    monkeypatch.setitem(bench.PARTS, "part", lambda profile: rows)
    bench.run("part", config.profile("smoke"))
    title, head, slow, fast = capsys.readouterr().out.splitlines()
    assert title.startswith("part: ") and torch.__version__ in title
    assert head.split() == ["name", "value", "unit", "baseline", "ratio", "n"]
    assert slow.split() == ["slow", "2", "runs/s", "5"] and fast.split() == ["fast", "6", "runs/s", "slow", "3", "5"]


def test_unknown_part_is_one_line():
    with pytest.raises(
        config.ConfigError,
        match=r"^unknown benchmark 'sleep'; accepted: phantoms, training, forward, lift, overhead, store, sharing$",
    ):
        bench.run("sleep", config.profile("smoke"))


def test_rate_is_that_of_the_median_after_a_warm_up(monkeypatch):
    now, costs = 0.0, iter([100.0, 1.0, 9.0, 2.0])

    def work():
        nonlocal now
        now += next(costs)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert bench_rows.rate(work, 10, repeats=3) == 10 / 2


@pytest.mark.parametrize("family", ["default", "none", "many"])
def test_plain_rasteriser_makes_the_same_volume(family):
    """What the window is measured against computes the same thing."""
    tables = phantoms.sample(family, 3, 5)
    fast = phantoms.rasterise(tables, 16)
    for table, expected in zip(tables, fast, strict=True):
        found = bench.rasterise_everywhere(table, 16)
        np.testing.assert_allclose(found, expected, atol=1e-5)
