"""The store of runs: what is listed, removed and taken over, and that nothing but plain data ever is."""

import json
import pickle
import shutil

import filelock
import pytest
import yaml
from tiny import Inline, a_run

from dotlib import __main__ as command
from dotlib import arms, checkpoint, records, run_store, study, trainer, trivial
from dotlib.config import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A store of two finished runs, one that diverged, and one that was begun."""
    store = tmp_path_factory.mktemp("store")
    for seed in (0, 1):
        a_run(store, seed=seed).result()
    a_run(store, "stage1-onecycle", optim__lr=1e38, optim__div=1).result()
    begun = a_run(store, seed=2)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(begun.config, begun.folder(), save_every=0.0, report=lambda row: 1 / 0)
    return store


@pytest.fixture
def store(original, tmp_path):
    shutil.copytree(original, tmp_path / "runs")
    return tmp_path / "runs"


def states(store, **options):
    return run_store.table(store, **options).set_index("run")["state"].to_dict()


def test_table_says_where_each_run_stands(store):
    found = run_store.table(store)
    runs = [a_run(store, seed=seed) for seed in (0, 1, 2)]
    by_name = found.set_index("run")
    assert len(found) == 4 and set(found["state"]) == {"done", "failed", "started"}
    assert by_name.loc[[r.path.name for r in runs], "state"].tolist() == ["done", "done", "started"]
    assert by_name.loc[[r.path.name for r in runs], "epoch"].tolist() == ["2/2", "2/2", "0/2"]
    assert by_name.loc[runs[0].path.name, "nrmse mua"] == runs[0].result().epochs["nrmse_mua"].iloc[-1]
    on_disk = sum(file.stat().st_blocks * 512 for file in runs[0].path.rglob("*"))
    assert by_name.loc[runs[0].path.name, "MB"] == pytest.approx(on_disk / 1e6)


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_verifying_finds_a_flipped_bit_of_the_weights(store, name):
    path = a_run(store).path / name
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)
    assert states(store)[path.parent.name] == "done"
    assert states(store, verify=True)[path.parent.name] == "damaged"


def test_damaged_result_is_not_trusted(store):
    path = a_run(store).path / "history.pt"
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)
    assert states(store)[path.parent.name] == "damaged" and not a_run(store).done()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:100],
        lambda text: "[]",
        lambda text: text.replace('"version": 2', '"version": 1'),
        lambda text: text.replace('"seed": 0', '"seed": 5'),
        lambda text: text + " " * run_store.LARGEST,
    ],
)
def test_configuration_that_is_not_the_folders_is_of_another_version(store, change):
    path = a_run(store).path / "config.json"
    path.write_text(change(path.read_text()))
    assert states(store)[path.parent.name] == "other"


def test_run_is_shown_in_yaml(store):
    shown = yaml.safe_load(run_store.show(a_run(store).path))
    assert shown["state"] == "done" and shown["failure"] is None and shown["last epoch"]["epoch"] == 1
    assert shown["config"]["optim"]["name"] == a_run(store).config.optim.name
    (diverged,) = (folder for folder, run in run_store.runs(store) if (f := run.kept()) and f.failed)
    assert "learning rate" in yaml.safe_load(run_store.show(diverged))["failure"]


def test_names_may_be_cut_short_but_must_fit_one_run(store):
    path = a_run(store).path
    assert run_store.named(store, [path.name, path.name[-16:]]) == [path]
    for name, fits in (("autoencode", 4), ("x", 0)):
        with pytest.raises(ConfigError, match=f"{fits} runs are named '{name}'"):
            run_store.named(store, [name])


def test_run_that_is_trained_is_not_removed(store):
    run = a_run(store)
    with filelock.FileLock(run.path / "lock"), pytest.raises(ConfigError, match="a process is training this run"):
        run_store.remove([a_run(store, seed=1).path, run.path])
    assert len(states(store)) == 4
    assert run_store.remove([run.path]) > 0 and run.path.name not in states(store)


def test_finished_runs_are_taken_over_and_count(store, tmp_path, nothing_computes):
    mine, lines = tmp_path / "mine", []
    assert run_store.merge(store, mine, lines.append) == 3
    assert len(lines) == 1 and "not finished" in lines[0]
    for seed in (0, 1):
        run = a_run(mine, seed=seed)
        assert run.result().metrics.equals(a_run(store, seed=seed).result().metrics)
        assert (run.path / "last.pt").read_bytes() == (a_run(store, seed=seed).path / "last.pt").read_bytes()
    study.compute({("a", seed): a_run(mine, seed=seed) for seed in (0, 1)})
    assert run_store.merge(store, mine, lines.append) == 0


def test_run_of_ones_own_is_never_replaced(store, tmp_path):
    mine = a_run(tmp_path / "mine")
    mine.result()
    before = {path.name: path.stat().st_mtime_ns for path in mine.path.iterdir()}
    run_store.merge(store, tmp_path / "mine", lambda line: None)
    assert {path.name: path.stat().st_mtime_ns for path in mine.path.iterdir()} == before


class Harm:
    """What calls a program when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["job.pkl", "history.pt", "last.pt", "queued.json", "config.json", "judged/x.csv"])
def test_nothing_that_could_run_is_taken_over_or_run(store, tmp_path, name):
    """A pickle in the place of each file, and beside them."""
    path, trap = a_run(store).path / name, tmp_path / "trap"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(Harm(str(trap))))
    run_store.merge(store, tmp_path / "mine", lambda line: None)
    run_store.table(store, verify=True)
    assert not trap.exists()
    taken = {file.name for file in (tmp_path / "mine").rglob("*") if file.is_file()}
    assert taken <= {"config.json", "history.pt", "last.pt", "best.pt", "lock"}
    pickle.loads(pickle.dumps(Harm(str(trap))))
    assert trap.exists()  # it would have


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"beside": 3},
        {
            "beside": {},
            "epochs": {"a": {"texts": 1, "codes": 2}},
            "steps": {},
            "metrics": {},
            "info": "{}",
            "failed": "",
        },
        {"beside": {}, "epochs": {}, "steps": {}, "metrics": {}, "info": "[", "failed": ""},
        {"beside": {}, "epochs": [1], "steps": {}, "metrics": {}, "info": "{}", "failed": ""},
    ],
)
def test_whole_file_that_is_no_result_is_one_of_many(store, tmp_path, state):
    """Its digest is right, as anyone can make it: the others are listed and taken over."""
    bad, lines = a_run(store), []
    checkpoint.save(bad.path / "history.pt", state, bad.key)
    assert bad.kept() is None and states(store)[bad.path.name] == "damaged"
    assert run_store.merge(store, tmp_path / "mine", lines.append) == 2
    assert any(str(bad.path) in line for line in lines)


def test_nested_configuration_is_one_of_many(store):
    (a_run(store).path / "config.json").write_text("[" * 100_000)
    assert states(store)[a_run(store).path.name] == "other" and len(states(store)) == 4


def test_link_out_of_the_store_is_not_followed(store, tmp_path):
    """What merging copies is read and verified: a link to a file of the user's is no checkpoint."""
    secret = tmp_path / "secret"
    secret.write_text("key")
    path = a_run(store).path / "epoch-1.pt"
    path.symlink_to(secret)
    run_store.merge(store, tmp_path / "mine", lambda line: None)
    assert not (tmp_path / "mine" / path.parent.name / "history.pt").exists()


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands(store, project, capsys, monkeypatch):
    name = a_run(store).path.name
    assert command.main(["runs", "ls", "--verify"]) == 0
    out = capsys.readouterr().out
    assert name in out and "4 runs; " in out and " MB on the disk" in out
    assert command.main(["runs", "show", name]) == 0 and yaml.safe_load(capsys.readouterr().out)["run"] == name
    assert command.main(["runs", "merge", "runs", "--store", "mine"]) == 0
    assert "runs: 3 runs taken over" in capsys.readouterr().out
    assert command.main(["runs", "rm", name]) == 0 and capsys.readouterr().out.startswith(f"removed: {name}; ")
    assert command.main(["runs", "rm", name]) == 2 and "0 runs are named" in capsys.readouterr().err
    assert command.main(["runs", "merge", "nowhere"]) == 2


def test_export_writes_what_is_finished(project, capsys, monkeypatch):
    wanted = {("stage1-adam", seed): a_run(project / "runs", seed=seed) for seed in (0, 1)}
    monkeypatch.setattr(arms, "STUDIES", {"4.2-baseline": arms.STUDIES["4.2-baseline"]})
    monkeypatch.setattr(study, "members", lambda name, profile, seeds, store: wanted)
    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    export = ["runs", "export", "4.2-baseline", "--profile", "smoke"]
    assert command.main(export) == 0 and not (project / "results").exists()
    wanted["stage1-adam", 1].result()
    assert command.main(export) == 0
    folder = project / "results" / "4.2-baseline"
    assert f"recorded in {folder}: 1 runs from here, 0 that were there" in capsys.readouterr().out
    found = records.load(project / "results" / "4.2-baseline")
    assert found.runs[["arm", "seed"]].values.tolist() == [["stage1-adam", 1]]
    about = json.loads((project / "results" / "4.2-baseline" / "about.json").read_text())
    assert about["runs"] == 1 and set(about["tables"]) == {"metrics", "epochs", "runs", "details", "beside"}
    keys, every = ["checkpoint", "metric", "phantom", "inclusion", "channel"], wanted["stage1-adam", 1].result().metrics
    every = every[(every["checkpoint"] == "last") | every["metric"].isin(["nrmse", "legacy_rmse"])]
    kept = found.metrics.set_index(keys)["value"].sort_index()  # a whole record: every metric, contrasts of inclusions
    assert {"crc", "background_noise"} <= set(every["metric"])
    assert kept.to_numpy() == pytest.approx(every.set_index(keys)["value"].sort_index(), rel=1e-5, nan_ok=True)
    assert set(found.beside["arm"]) == set(trivial.PREDICTORS) and set(found.beside["metric"]) >= {"rmse", "nrmse"}
    shutil.rmtree(project / "runs")
    wanted["stage1-adam", 0].result()
    assert command.main(export) == 0  # the other, which only the record has, stays in it
    assert records.load(folder).runs["seed"].tolist() == [0, 1]
    assert command.main(["runs", "export", "4.9"]) == 2


def test_export_goes_on_after_a_study_that_cannot_be_written(project, capsys, monkeypatch):
    wanted = {("stage1-adam", 0): a_run(project / "runs")}
    wanted["stage1-adam", 0].result()
    monkeypatch.setattr(study, "members", lambda name, *_: wanted)
    wrong = project / "results" / "4.3-ends"
    wrong.mkdir(parents=True)
    (wrong / "about.json").write_text("{")
    names = ["4.3-ends", "4.2-baseline"]
    assert command.main(["runs", "export", *names, "--profile", "smoke"]) == 1
    said = capsys.readouterr()
    assert "4.3-ends: " in said.err and f"recorded in {project / 'results' / names[1]}" in said.out
    monkeypatch.setattr(study, "members", lambda name, *_: {("stage1-adam", 5): a_run(project / "runs", seed=5)})
    assert command.main(["runs", "export", "4.2-baseline", "--profile", "smoke"]) == 0
    assert "4.2-baseline: no finished run of the smoke profile" in capsys.readouterr().err
