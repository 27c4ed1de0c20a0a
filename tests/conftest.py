"""What the tests share: which marked tests can run here, processes that may be killed, and runs of tiny networks."""

import functools
import importlib.util
import multiprocessing
import os
import shutil
import subprocess

import pytest

os.environ.setdefault("WANDB_MODE", "disabled")  # no recorder but where a test is of one
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
DRIVERS = ("playwright", "axe_playwright_python")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_runtest_setup(item):
    if item.get_closest_marker("slow") and not item.config.getoption("--slow"):
        pytest.skip("slow: runs with --slow")
    if item.get_closest_marker("slurm") and (why := no_slurm()):
        pytest.skip(why)
    if item.get_closest_marker("browser"):
        if not any(map(shutil.which, CHROMIUM)):
            pytest.skip("no Chromium on this machine")
        if missing := [name for name in DRIVERS if not importlib.util.find_spec(name)]:
            pytest.skip(f"no {missing[0]}: make browser installs it")
    if item.get_closest_marker("gpu"):
        import torch  # kept out of the start of every other test

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device on this machine")


@functools.cache
def no_slurm() -> str:
    """Why no job can be submitted here."""
    if not shutil.which("sbatch"):
        return "no sbatch on this machine"
    answer = subprocess.run(["squeue"], capture_output=True, text=True)
    return f"no Slurm that answers: {answer.stderr.splitlines()[-1:]}" if answer.returncode else ""


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory):
    """The user's state folder, in which known files are noted: one for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder := tmp_path_factory.mktemp("state")))
        yield folder


@pytest.fixture(scope="session")
def mortal():
    """Starts processes that a test kills; torch is imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dotlib.study"])
    return context.Process


@pytest.fixture(scope="module")
def one_thread():
    """Sums are taken in an order that depends on the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """Runs that nothing disturbed, by name, each trained when first asked for: configuration, folder, history."""
    import tiny

    return tiny.Undisturbed(tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def stalled(one_thread, tmp_path_factory):
    """A run that stopped early: configuration, folder, history, weights after each epoch."""
    import tiny

    return tiny.stalled(tmp_path_factory.mktemp("stalled"))


@pytest.fixture
def nothing_computes(monkeypatch):
    """Whatever starts to train a run fails the test."""
    from dotlib import study, trainer

    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda *arguments: pytest.fail("workers were started"))
    monkeypatch.setattr(trainer, "fit", lambda *arguments: pytest.fail("a run was trained"))


@pytest.fixture(scope="session")
def lit(tmp_path_factory):
    """Small sets with readings on which reconstructions are judged, by name, each made when first asked for."""
    import seen

    return seen.Lit(tmp_path_factory.mktemp("lit"))


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A small dataset file, simulated by two workers: its path. Not to be changed."""
    import tiny

    from dotlib.data import simulate

    path = tmp_path_factory.mktemp("recorded") / "small.h5"
    simulate.simulate(tiny.RECORDED, path, workers=2)
    return path


@pytest.fixture
def columns(recorded):
    """All columns of the first six phantoms of that file, in memory, but what the file derives from them."""
    from dotlib.data import store

    with store.File(recorded) as file:
        return {name: file.raw(name, 0, 6) for name in file.names if name not in store.DERIVED}
