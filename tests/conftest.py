"""What the tests share: which marked tests can run here, and processes that may be killed."""

import multiprocessing
import shutil

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_runtest_setup(item):
    if item.get_closest_marker("slow") and not item.config.getoption("--slow"):
        pytest.skip("slow: runs with --slow")
    if item.get_closest_marker("slurm") and not shutil.which("sbatch"):
        pytest.skip("no sbatch on this machine")
    if item.get_closest_marker("browser") and not any(map(shutil.which, CHROMIUM)):
        pytest.skip("no Chromium on this machine")
    if item.get_closest_marker("gpu"):
        import torch  # kept out of the start of every other test

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device on this machine")


@pytest.fixture(scope="session")
def mortal():
    """Starts processes that a test kills; torch is imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dotlib.study"])
    return context.Process
