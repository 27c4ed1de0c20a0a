"""The real notebooks, run as a user runs them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import papermill
import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {"build", "data", "runs", "figures"}
CACHES = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "IPYTHONDIR", "NUMBA_CACHE_DIR")


def ours():
    """What git holds or would take in."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The project's files in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("a clone")
    for name in ours():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_refuses_a_misspelt_parameter_under_plain_papermill(notebook, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=r"unknown field sedes; accepted: profile, seeds"):
        given = {"profile": "smoke", "sedes": 3}
        papermill.execute_notebook(notebook, tmp_path / "out.ipynb", given, progress_bar=False, cwd=str(ROOT))


def test_workbook_leaves_nothing_outside_its_folders(clone, tmp_path):
    before = {path for path in clone.rglob("*") if path.is_file()}
    home = tmp_path / "home"
    home.mkdir()
    # caches as the Makefile sends them, into build/
    caches = {name: str(clone / "build/.cache") for name in CACHES}
    caches |= {f"JUPYTER_{name}_DIR": str(clone / "build/.cache/jupyter") for name in ("CONFIG", "DATA", "RUNTIME")}
    environment = os.environ | caches | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(clone)}
    command = [sys.executable, "-m", "dotlib", "workbook", "--profile", "smoke"]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"open {clone}/build/smoke/index.html" in done.stdout
    new = {path.relative_to(clone) for path in clone.rglob("*") if path.is_file() and path not in before}
    assert {path.parts[0] for path in new} <= ALLOWED
    assert not list(home.rglob("*"))
    assert Path("build/smoke/figures/4.2-verdicts.csv") in new
