"""The command line: what it accepts, what it says, and its exit codes."""

import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import histories
import numpy as np
import pandas as pd
import pytest
from judged import errors, judged
from tiny import Inline, a_run

from dotlib import __main__ as command
from dotlib import (
    arms,
    bench,
    config,
    reconstruction_judgement,
    reconstruction_records,
    reconstruction_tuning,
    records,
    study,
    trainer,
    workbook,
)
from dotlib.data import checks, phantoms, simulate, store

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "simulate",
    "check",
    "study",
    "status",
    "runs",
    "sweep",
    "judge",
    "tune",
    "reconstruct",
    "snirf",
    "workbook",
    "figures",
    "thesis",
    "bench",
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project, and a folder inside it to work in."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def refused(capsys, code, *arguments):
    """The one line on standard error of a command that ends with that exit code."""
    assert command.main([*arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dotlib: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("simulate --profile large", ("unknown profile 'large'", "smoke, quick, full")),
        ("simulate --profile smoke --family flat", ("simulate: family = 'flat'", "default")),
        ("simulate --profile smoke --phantoms 0", ("simulate: phantoms = 0", "greater than 0")),
        ("simulate --profile smoke --grid 20", ("simulate: measurements.grid = 20", "32, 48, 64 or 96")),
        ("simulate --profile smoke --workers 0", ("--workers 0", "positive")),
        ("simulate --profile smoke --out=", ("dotlib: .: a directory",)),
        ("simulate --profile smoke --out ..", ("..: a directory",)),
        ("simulate --profile smoke --out /proc/x.h5", ("/proc/x.h5: ",)),
        ("check none.h5", ("none.h5", "no such file")),
        ("check ..", ("..: a directory",)),
        (f"check {'x' * 300}", ("File name too long",)),
        ("judge --sets home", ("--sets", "--task reconstruct")),
        ("judge --task reconstruct --sets moon", ("unknown set 'moon'", "home, fresh phantoms")),
        ("tune --profile large", ("unknown profile 'large'", "smoke, quick, full")),
        ("study 4.9", ("unknown study '4.9'", "4.2-baseline")),
        ("status 4.9", ("unknown study '4.9'", "4.2-baseline")),
        ("thesis --draft large", ("unknown profile 'large'", "smoke, quick, full")),
        ("study 4.2-baseline --profile large", ("unknown profile 'large'", "smoke, quick, full")),
        ("status 4.2-baseline --profile large --seeds 1", ("unknown profile 'large'", "smoke, quick, full")),
        ("study 4.2-baseline --profile smoke --seeds -1", ("--seeds -1", "positive")),
        (
            "study 4.3-ends --profile smoke",
            ("arm adam-constant: its tuning is not computed", "study 4.3-tuning does it"),
        ),
        ("status 4.3-factorial --profile smoke", ("arm adam-constant", "study 4.3-tuning does it")),
        ("study 4.3-sensitivity --profile large", ("unknown profile 'large'", "smoke, quick, full")),
        ("sweep adamm --profile smoke", ("unknown candidate 'adamm'", "all, adam-constant, ")),
        ("sweep muon --profile large", ("unknown profile 'large'", "smoke, quick, full")),
        ("sweep muon --trials 0", ("--trials 0", "positive")),
        ("sweep muon --per-gpu 0", ("--per-gpu 0", "positive")),
        ("sweep muon --per-gpu 2 --on slurm", ("--per-gpu", "--on here")),
        ("workbook --profile large", ("unknown profile 'large'", "smoke, quick, full")),
        ("workbook --profile smoke", ("notebooks", "no notebook")),
        ("workbook --profile smoke --notebook none.ipynb", ("none.ipynb", "no notebook")),
        ("workbook --profile smoke -p seeds [", ("--parameter",)),
        ("reconstruct none.h5 --model none.pt", ("none.pt", "no such checkpoint")),
        ("bench sleep", ("unknown benchmark 'sleep'", "phantoms, training")),
        ("bench phantoms --profile large", ("unknown profile 'large'", "smoke, quick, full")),
    ],
)
def test_bad_input_is_one_line(project, capsys, line, parts):
    err = refused(capsys, 2, *line.split())
    assert all(part in err for part in parts), err
    assert not (project / "runs").exists() and not (project / "data").exists()


@pytest.mark.parametrize("line", ["simulate", "study 4.2-baseline", "status 4.2-baseline", "workbook --profile smoke"])
def test_outside_the_project_is_one_line(tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    assert "not inside the project" in refused(capsys, 2, *line.split())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "reconstruct",
        "reconstruct own.h5 --model",
        "reconstruct own.snirf --model last.pt --radius wide",
        "check",
        "simulate --grid fine",
        "study",
        "bench",
        "status x --seeds many",
        "study x --on mars",
        "sweep",
        "sweep muon --sampler grid",
        "sweep muon --pruner worst",
        "sweep muon --trials many",
    ],
)
def test_wrong_usage_ends_with_2(capsys, line):
    with pytest.raises(SystemExit) as end:
        command.main(line.split())
    assert end.value.code == 2
    assert "dotlib" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_that_is_accepted(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    assert end.value.code == 0
    program, *example = shlex.split(re.search(r"example: (.*)", capsys.readouterr().out)[1])
    assert program == "dotlib" and example[0] == name
    given = command._parser().parse_args(example)
    assert getattr(given, "profile", "quick") in config.PROFILES
    assert getattr(given, "study", "4.2-baseline") in arms.STUDIES
    assert getattr(given, "part", "phantoms") in bench.PARTS


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    listed = re.findall(r"^    (\w+)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    assert tuple(listed) == COMMANDS


@pytest.mark.parametrize(
    "error", [study.StudyError("a, seed 0: died"), FloatingPointError("nan"), OSError("disk full")]
)
def test_failure_ends_with_1_and_its_line(project, capsys, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(study, "compute", fail)
    assert refused(capsys, 1, "study", "4.2-baseline", "--profile", "smoke") == f"dotlib: {error}\n"


@pytest.mark.parametrize(
    ("options", "changes", "workers", "name"),
    [
        ("", {}, None, "data/default-24-32-"),
        ("--family deep --phantoms 7 --seed 5", {"family": "deep", "phantoms": 7, "seed": 5}, None, "data/deep-7-32-"),
        ("--grid 48 --precise", {"measurements": {"grid": 48, "precise": True}}, None, "data/default-24-48-"),
        ("--workers 3 --out own.h5", {}, 3, "notebooks/own.h5"),
    ],
)
def test_simulate_writes_the_file_that_was_asked_for(project, capsys, monkeypatch, options, changes, workers, name):
    asked = []

    def simulated(c, path, workers, elsewhere):
        assert elsewhere is None
        asked.append((c, workers))
        path.parent.mkdir(exist_ok=True)
        store.write(path, three(0, 0, 1), {"legend": checks.LEGEND})

    monkeypatch.setattr(simulate, "simulate", simulated)
    assert command.main(["simulate", "--profile", "smoke", *options.split()]) == 0
    base = config.PROFILES["smoke"].base.data.model_dump() | {"measurements": {}}
    assert asked == [(config.Data.model_validate(base | changes), workers)]
    out = capsys.readouterr().out
    assert out.endswith(": 3 phantoms, 1 of them excluded by their checks\n")
    assert str((project / "notebooks" / out.split(": ")[0]).relative_to(project)).startswith(name)


def three(*faults):
    """Three phantoms with these faults."""
    return {"ellipsoids": phantoms.sample("default", 3, 0), "checks": np.array(faults, "i4")}


def test_simulate_without_a_usable_phantom_ends_with_1(project, capsys, monkeypatch):
    attributes = {"legend": checks.LEGEND}
    monkeypatch.setattr(simulate, "simulate", lambda c, path, *_: store.write(path, three(2, 1, 1), attributes))
    assert command.main(["simulate", "--profile", "smoke", "--out", "own.h5"]) == 1
    out, err = capsys.readouterr()
    assert "3 of them excluded" in out
    assert err == f"dotlib: own.h5: no usable phantom; phantom 0: {checks.REASONS[1]}\n"


def test_simulate_refuses_a_file_of_another_configuration(project, capsys, recorded):
    err = refused(capsys, 2, "simulate", "--profile", "smoke", "--out", str(recorded))
    assert f"{recorded}: holds" in err


def test_status_of_the_full_profile_simulates_nothing(project, capsys, monkeypatch):
    monkeypatch.setattr(simulate, "simulate", lambda *arguments: pytest.fail("simulated"))
    assert command.main(["status", "4.2-baseline", "--profile", "full", "--seeds", "1"]) == 0
    assert capsys.readouterr().out.count("missing") == 4 and not (project / "data").exists()


@pytest.mark.parametrize(("options", "seeds"), [([], 2), (["--seeds", "0"], 2), (["--seeds", "3"], 3)])
def test_study_computes_arms_times_seeds_in_the_projects_store(project, capsys, monkeypatch, options, seeds):
    asked = []
    monkeypatch.setattr(study, "compute", lambda wanted, *how: asked.append(wanted))
    monkeypatch.setattr(trainer, "fit", histories.fit)
    assert command.main(["study", "4.2-baseline", "--profile", "smoke", *options]) == 0
    (wanted,) = asked
    assert list(wanted) == [(arm, seed) for arm in arms.STUDIES["4.2-baseline"].arms for seed in range(seeds)]
    assert {Path(run.store) for run in wanted.values()} == {project / "runs"}
    assert all(run.config.model == arms.arm(arm, "smoke").model for (arm, _), run in wanted.items())
    assert all(run.config.seed == seed for (_, seed), run in wanted.items())
    assert capsys.readouterr().out.count(" done ") == len(wanted)  # where each run stands, afterwards


def test_status_prints_a_row_for_each_run_and_writes_nothing(project, capsys):
    assert command.main(["status", "4.2-baseline", "--profile", "smoke", "--seeds", "1"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["arm", "seed", "state", "epoch"]
    assert [row.split() for row in rows] == [
        [arm, "0", "missing", "0/2", "-", "-"] for arm in arms.STUDIES["4.2-baseline"].arms
    ]
    assert not (project / "runs").exists()


def test_workbook_passes_parameters_as_their_types(project, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(workbook, "run", lambda *arguments: asked.append(arguments) or Path("index.html"))
    line = "workbook --profile smoke -p seeds 2 -p noise 0.5 -p name deep -p flag true"
    assert command.main(line.split()) == 0
    given = {"seeds": 2, "noise": 0.5, "name": "deep", "flag": True}
    assert asked == [("smoke", project / "build", project / "notebooks", given)]
    assert capsys.readouterr().out == "open index.html\n"


def test_failed_workbook_ends_with_1(project, capsys, monkeypatch):
    def fail(*arguments):
        raise workbook.WorkbookError("4.2, cell 3: AssertionError")

    monkeypatch.setattr(workbook, "run", fail)
    assert "4.2, cell 3" in refused(capsys, 1, "workbook")


HELP = """
import contextlib, io, sys
from dotlib.__main__ import main
for line in sys.argv[1:]:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(line.split())
print(*sys.modules)
"""


def test_help_and_refusals_load_none_of_the_large_libraries():
    """They answer at once; what computes is loaded by the commands that compute."""
    lines = ["--help", *(f"{name} --help" for name in COMMANDS), "status 4.9", "study 4.3-ends --profile large"]
    lines += ["sweep adamm", "sweep muon --trials 0"]
    arguments = [sys.executable, "-c", HELP, *lines]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"dotlib.__main__", "dotlib.arms"} <= loaded
    assert not loaded & {
        "torch",
        "scipy",
        "pandas",
        "numpy",
        "matplotlib",
        "submitit",
        "wandb",
        "optuna",
        "dotlib.study",
    }


@pytest.fixture
def one_diverges(tmp_path, monkeypatch):
    """A study of two tiny runs, of which the second diverges in its second step."""

    def members(name, profile, seeds, store):
        runs = {("stage1-adam", 0): a_run(store)}
        return runs | {("stage1-onecycle", 0): a_run(store, "stage1-onecycle", optim__lr=1e38, optim__div=1)}

    monkeypatch.setattr(study, "members", members)
    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)


STUDY = ("study", "4.2-baseline", "--profile", "smoke", "--record")


def test_diverged_run_is_named_and_a_failure_every_time(project, capsys, one_diverges, request, monkeypatch):
    for again in (False, True):
        if again:
            request.getfixturevalue("nothing_computes")
        assert command.main([*STUDY]) == 1
        out, err = capsys.readouterr()
        (line,) = [line for line in err.splitlines() if line.startswith("dotlib")]
        assert re.match(r"dotlib: stage1-onecycle, seed 0 diverged: epoch 0, step \d .*: loss .*, learning rate", line)
        states = [row.split()[:3] for row in out.splitlines() if row.lstrip().startswith("stage1")]
        assert states == [["stage1-adam", "0", "done"], ["stage1-onecycle", "0", "failed"]]


def test_record_writes_what_can_be_loaded(project, capsys, one_diverges):
    command.main([*STUDY])
    folder = project / "results" / "4.2-baseline"
    assert f"recorded in {folder}: 2 runs from here, 0 that were there\n" in capsys.readouterr().out
    found = records.load(folder)
    assert [bool(failed) for failed in found.runs.failed] == [False, True] and found.profile == "smoke"
    assert not any(str(project) in path.read_text() for path in folder.iterdir())


def test_recorded_runs_are_not_computed_again_where_the_store_is_gone(project, capsys, one_diverges, monkeypatch):
    command.main([*STUDY])
    folder = project / "results" / "4.2-baseline"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(project / "runs")
    monkeypatch.setattr(trainer, "fit", lambda *a, **o: pytest.fail("a run was computed"))
    capsys.readouterr()
    assert command.main([*STUDY]) == 1  # of the two the second had diverged
    out, err = capsys.readouterr()
    assert "recorded" not in out and "stage1-onecycle, seed 0 diverged" in err
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_finished_is_recorded_without_computing_the_rest(project, capsys, monkeypatch):
    runs = {("stage1-adam", seed): a_run(project / "runs", seed=seed) for seed in range(3)}
    monkeypatch.setattr(study, "members", lambda *arguments: runs)
    monkeypatch.setattr(trainer, "fit", histories.fit)
    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda *a: pytest.fail("a run was computed"))
    folder, nowhere = project / "results" / "4.2-baseline", [*STUDY, "--on", "nowhere"]
    assert command.main(nowhere) == 0 and not folder.exists()
    runs["stage1-adam", 2].result()
    assert command.main(nowhere) == 0 and records.load(folder).runs["seed"].tolist() == [2]
    shutil.rmtree(project / "runs")
    runs["stage1-adam", 0].result()
    assert command.main(nowhere) == 0 and records.load(folder).runs["seed"].tolist() == [0, 2]
    assert "1 runs from here, 1 that were there" in capsys.readouterr().out


def test_nothing_is_recorded_without_being_asked_for(project, capsys, one_diverges):
    command.main([*STUDY[:-1]])
    assert not (project / "results").exists()


def test_study_of_complete_runs_ends_with_0(project, monkeypatch):
    monkeypatch.setattr(study, "members", lambda name, profile, seeds, store: {("stage1-adam", 0): a_run(store)})
    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(trainer, "fit", histories.fit)
    assert command.main([*STUDY]) == 0


@pytest.mark.parametrize(("line", "code"), [("status 4.9", 2), ("--help", 0)])
def test_process_ends_with_the_exit_code(line, code):
    done = subprocess.run([sys.executable, "-m", "dotlib", *line.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert (done.stdout == "", done.stderr.count("\n")) == ((True, 1) if code else (False, 0))


def test_interruption_is_one_line_and_a_failure(project, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "compute", interrupt)
    assert command.main(["study", "4.2-baseline", "--profile", "smoke"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "dotlib: interrupted; the same command continues from the last checkpoints"
    ]


def test_sweep_prints_what_each_candidate_took_and_a_candidate_without_a_result_is_a_failure(
    project, capsys, monkeypatch
):
    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr("dotlib.data.samples.prepare", lambda configs: None)
    monkeypatch.setattr(trainer, "fit", histories.fit)
    assert command.main(["sweep", "muon", "adam-cosine", "muon", "--profile", "smoke", "--trials", "9"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["candidate", "trials", "epochs", "pruned", "spared", "failed"]
    assert [row.split()[:6] for row in rows] == [[name, "9", "9", "0", "0", "0"] for name in ("muon", "adam-cosine")]
    assert len(list((project / "runs").glob("autoencode-*"))) == 18
    monkeypatch.setattr(trainer, "fit", lambda c, *a, **o: histories.made_up(c, failed="epoch 0: loss nan"))
    assert command.main(["sweep", "schedule-free", "--profile", "smoke"]) == 1
    assert capsys.readouterr().out.splitlines()[1].split() == ["schedule-free", *"80008", *"----"]


def test_settings_are_tuned_and_recorded(project, capsys, monkeypatch):
    points = [(method, *point, 0.3, 0.2, 4) for method, of in reconstruction_tuning.SETTINGS.items() for point in of]
    found = pd.DataFrame(points, columns=["method", "regularisation", "length", "nrmse", "nrmse_covered", "n"])
    monkeypatch.setattr(reconstruction_tuning, "table", lambda base: found)
    for record in ((), ("--record",)):
        assert command.main(["tune", "--profile", "smoke", *record]) == 0
        assert (project / "results" / "4.6-tuning").exists() == bool(record)
    assert "tikhonov" in capsys.readouterr().out
    pd.testing.assert_frame_equal(reconstruction_tuning.load(project / "results" / "4.6-tuning")[0], found)


def test_reconstructions_are_judged_on_the_sets_that_are_named_and_join_the_record(project, capsys, monkeypatch):
    """What is finished; home is always among them, and a run that is recorded from elsewhere stays."""
    asked, arms_of = [], iter([("reconstruct-blind",), ("reconstruct",)])
    done, missing = (types.SimpleNamespace(done=lambda s=s: s) for s in (True, False))
    wanted = {("reconstruct", 0): done, ("reconstruct", 1): missing}

    def judge(finished, profile, settings, names=None):
        asked.append((list(finished), settings, names))
        return judged(*(errors(arm, [0.2, 0.3]) for arm in (*next(arms_of), "truth")), profile=profile)

    monkeypatch.setattr(reconstruction_judgement, "members", lambda profile, seeds, store: wanted)
    monkeypatch.setattr(reconstruction_judgement, "judged", judge)
    monkeypatch.setattr(reconstruction_judgement, "everywhere", lambda *given: judge(*given[:3]))
    monkeypatch.setattr(reconstruction_tuning, "recorded", lambda: "settings")
    line = ["judge", "--task", "reconstruct", "--profile", "smoke", "--record"]
    assert command.main([*line, "--sets", "deep"]) == command.main(line) == 0
    assert asked == [([("reconstruct", 0)], "settings", {"home", "deep"}), ([("reconstruct", 0)], "settings", None)]
    assert "missing: reconstruct, seed 1" in capsys.readouterr().out
    found = reconstruction_records.load(project / "results" / "4.6-judged")
    assert set(found.runs["arm"]) == {"reconstruct", "reconstruct-blind"}
