"""The book's pages and JupyterLab in a real browser: headless Chromium, driven by Playwright."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
PAGES = ("index", "4.2-baseline", "figures", "tables")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
NOTEBOOK = "4.2-baseline"


@pytest.fixture(scope="module")
def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "DOTLIB_PROFILE": "smoke", "WANDB_MODE": "disabled"}


@pytest.fixture(scope="module")
def project(tmp_path_factory, environment):
    """A project whose notebook 4.2 is executed in the smoke profile."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "results"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    command = [sys.executable, "-m", "dotlib", "workbook", "--profile", "smoke"]
    command += ["--notebook", f"notebooks/{NOTEBOOK}.ipynb"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    program = next(path for name in CHROMIUM if (path := shutil.which(name)))
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=list(QUIET))


@pytest.fixture(params=PAGES)
def opened(request, browser, project):
    """`opened(size)` opens a page of the book; what it asked a network for, and what it complained of."""
    context = browser.new_context(java_script_enabled=True)
    page, asked, complaints = context.new_page(), [], []
    page.on("request", lambda r: asked.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def opening(size):
        page.set_viewport_size(size)
        page.goto((project / "build" / "smoke" / f"{request.param}.html").as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        return page

    yield opening, asked, complaints
    context.close()


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_page_is_accessible(opened, size):
    """No violation that axe-core calls serious or critical, with everything unfolded."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(opened[0](size)).response["violations"]
    bad = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not bad, "\n".join(f"{v['id']}: {v['nodes'][0]['html'][:200]} ({len(v['nodes'])})" for v in bad)


def test_page_fits_a_phone_and_needs_no_network(opened):
    opening, asked, complaints = opened
    page = opening(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for picture in page.locator("img").all():
        picture.scroll_into_view_if_needed()
        page.wait_for_function("e => e.complete && e.naturalWidth > 0", arg=picture.element_handle())
        words = picture.get_attribute("alt")
        assert words and "No description" not in words
    assert asked == complaints == []


def test_formulas_are_drawn(browser, project):
    page = browser.new_page(viewport=DESK)
    page.goto((project / "build" / "smoke" / f"{NOTEBOOK}.html").as_uri())
    boxes = [formula.bounding_box() for formula in page.locator("math").all()]
    assert len(boxes) > 5 and all(box["width"] > 3 and box["height"] > 3 for box in boxes)
    assert page.evaluate("!/[$]\\\\mu|\\\\frac/.test(document.body.innerText)")
    page.close()


def test_page_is_printed_whole(browser, project, tmp_path):
    page = browser.new_page(viewport=DESK)
    page.goto((project / "build" / "smoke" / "index.html").as_uri())
    (tmp_path / "printed.pdf").write_bytes(page.pdf(format="A4"))
    if not shutil.which("pdftotext"):
        pytest.skip("no pdftotext on this machine")
    text = subprocess.run(["pdftotext", tmp_path / "printed.pdf", "-"], capture_output=True, text=True).stdout
    for heading in ("Abstract", "Roadmap, criteria and verdicts", "Provenance", "The baseline"):
        assert heading in text
    page.close()


@pytest.fixture(scope="module")
def lab(project, environment, tmp_path_factory):
    """The address of a JupyterLab of that project, whose notebooks are shown whole."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "settings" / "@jupyterlab" / "notebook-extension"
    folder.mkdir(parents=True)
    (folder / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}"]
    command += ["--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", "--LabApp.news_url=None"]
    places = {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTER_CONFIG_DIR": str(home / "config")}
    places |= {"JUPYTER_DATA_DIR": str(home / "data"), "JUPYTER_RUNTIME_DIR": str(home / "runtime")}
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, cwd=project, env=environment | places, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert server.poll() is None, (home / "log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def test_notebook_runs_in_jupyterlab_and_its_viewer_follows_a_slider(browser, lab):
    page = browser.new_page(viewport={"width": 1500, "height": 1100})
    broken = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(f"{lab}/lab/tree/notebooks/{NOTEBOOK}.ipynb")
    page.get_by_text(re.compile(r"Python 3 .*\| Idle")).wait_for(timeout=120_000)  # the kernel is ready by itself
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All( Cells)?$")).click()
    planes = page.locator("img.widget-image, .widget-image img")
    planes.nth(2).wait_for(timeout=300_000)
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").filter(
        has_text=re.compile("Traceback|Error")
    ).count() == 0  # fmt: skip
    planes.nth(2).scroll_into_view_if_needed()
    readout = page.locator(".widget-html-content table")
    before, said = [planes.nth(i).screenshot() for i in range(3)], readout.inner_text()
    handle = page.locator(".noUi-handle").nth(2)  # z
    handle.focus()
    for _ in range(3):
        handle.press("ArrowRight")
    page.wait_for_function("said => document.querySelector('.widget-html-content table').innerText !== said", arg=said)
    page.wait_for_timeout(500)
    after = [planes.nth(i).screenshot() for i in range(3)]
    assert all(a != b for a, b in zip(before, after, strict=True))  # the plane, and the crosshairs of the others
    assert broken == []
    page.close()
