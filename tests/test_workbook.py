"""The workbook on two tiny notebooks: one that works and one that fails."""

import re
from html import escape
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest

from dotlib import report, workbook

PARAMETERS = "profile: str = 'smoke'  # size of everything\nseeds: int = 3  # paired seeds"
WORKS = """
import pandas as pd
from pathlib import Path
from types import SimpleNamespace
from dotlib import chapter
from dotlib.report import Book
book = Book("4.1", profile, Path("build") / profile / "figures")
book.save(pd.DataFrame({"seeds_used": [seeds]}), "seeds", "In mm^-1 & <b>.", task="none", n=1, inputs={"data": "5f3a"})
runs, metrics = pd.DataFrame({"arm": ["a"]}), pd.DataFrame({"phantom": [0]})
page = chapter.Page(book, SimpleNamespace(profile=profile, runs=runs, metrics=metrics, provenance={}))
display(page.show(lambda record: pd.DataFrame({"shown": [seeds / 9]}), "shown", "In mm^-1 of adamw-* & <b>."))
import matplotlib.pyplot as plt
from dotlib import plots
plots.style()
figure, ax = plt.subplots()
ax.plot([0, seeds])
plt.close(figure)
drawn = book.show(figure, "drawn", "A line in mm^-1 & <up>.", task="none", n=1, inputs={})
listed = book.show(pd.DataFrame({"name": ["a"], "n": [1]}), "drawn-up", "Listed.", task="none", n=1, inputs={})
display(drawn, listed)
"""
ANSWER = """
from IPython.display import Markdown
Markdown(f"**{seeds}** seeds.")
"""


def write(path, *cells):
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(metadata=metadata)
    notebook.cells = [nbformat.v4.new_markdown_cell(cells[0]), *map(nbformat.v4.new_code_cell, cells[1:])]
    notebook.cells[1].metadata["tags"] = ["parameters"]
    for cell in notebook.cells:
        if cell.source == ANSWER:
            cell.metadata["tags"] = ["answer"]
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with `seeds=7`, and its error."""
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").mkdir()
    words = "# 4.1 Light & tissue\n\n**How many seeds of $\\mu_a$?**\n\n$$\\frac{\\mu_a}{2}$$"
    write(root / "notebooks" / "4.1-works.ipynb", words, PARAMETERS, WORKS, ANSWER)
    write(root / "notebooks" / "4.2-fails.ipynb", "# 4.2 Fails", PARAMETERS, "assert seeds < 7, 'too many\\nseeds'")
    book = root / "build" / "smoke"
    scope = {"task": "none", "n": 1, "inputs": {}}
    for chapter in ("4.1", "4.9"):
        report.Book(chapter, "smoke", book / "figures").save(pd.DataFrame({"a": [1]}), "former", "F.", **scope)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        with pytest.raises(workbook.WorkbookError) as error:
            workbook.run("smoke", parameters={"seeds": 7})
    return book, str(error.value)


class Links(HTMLParser):
    """What a page refers to."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("href", "src")]


def test_failure_is_one_line_and_hides_no_other_notebook(run):
    book, error = run
    assert error == "notebooks/4.2-fails.ipynb, cell [3]: AssertionError: too many"
    assert "AssertionError" in (book / "4.2-fails.html").read_text()
    assert nbformat.read(book / "4.2-fails.ipynb", as_version=4).cells[-1].outputs[-1].ename == "AssertionError"
    items = re.findall(r'<li><a href="4.*', (book / "index.html").read_text())
    assert ["failed" in item for item in items] == [False, True]
    said = [
        "A cell of this chapter failed" in (book / f"{name}.html").read_text() for name in ("4.1-works", "4.2-fails")
    ]
    assert said == [False, True]


def test_copies_hold_no_widgets(tmp_path):
    notebook = nbformat.v4.new_notebook(metadata={"widgets": {"a": 1}, "kept": 2})
    nbformat.write(notebook, tmp_path / "a.ipynb")
    for _ in range(2):
        workbook.without_widgets(tmp_path / "a.ipynb")
        assert nbformat.read(tmp_path / "a.ipynb", as_version=4).metadata == {"kept": 2}
    workbook.without_widgets(tmp_path / "none.ipynb")
    assert not (tmp_path / "none.ipynb").exists()


def test_parameters_and_profile_reach_the_notebook(run):
    book, _ = run
    assert (book / "figures" / "4.1-seeds.csv").read_text() == "seeds_used\n7\n"


def test_pages_show_what_this_run_wrote(run):
    book, _ = run
    tables, index = (book / "tables.html").read_text(), (book / "index.html").read_text()
    # 4.1-former was not written again; 4.9 has no notebook
    assert re.findall(r'<figure id="(.*?)"', tables) == ["4.1-drawn-up", "4.1-seeds", "4.1-shown", "4.9-former"]
    assert re.findall(r"<h2>(.*?)</h2>", tables) == ["4.1 Light &amp; tissue", "4.9"]
    assert "In mm<sup>-1</sup> &amp; &lt;b&gt;." in tables and ">7</td>" in tables
    assert "Task: none; profile: smoke; n = 1." in tables and "data: 5f3a" in tables
    assert "smoke profile" in index and ">4.1 Light &amp; tissue<" in index and "commit " in index


def test_front_page_asks_and_answers(run):
    index = (run[0] / "index.html").read_text()
    question, answer = index.index("<p>How many seeds of <math"), index.index("<strong>7</strong> seeds.")
    assert question < answer < index.index('<h2 id="chapters">')


def test_every_figure_says_what_is_to_be_seen(run):
    book, _ = run
    for name in ("4.1-works", "figures", "index"):
        pictures = re.findall(r"<img .*?>", (book / f"{name}.html").read_text(), re.DOTALL)
        assert pictures and all('alt="A line in mm^-1 &amp; &lt;up&gt;."' in picture for picture in pictures)


def test_text_is_left_and_code_is_behind_a_word(run):
    page = (run[0] / "4.1-works.html").read_text()
    assert "#T_4-1-drawn-up .col0 {\n  text-align: left;" in (run[0] / "tables.html").read_text()
    assert re.search(r'<details class="code"><summary>Code 3</summary>\s*<div class="\s*highlight', page)


def test_caption_is_below_what_it_describes(run):
    page = (run[0] / "4.1-works.html").read_text()
    caption = "<em>In mm<sup>-1</sup> of adamw-* &amp; &lt;b&gt;.</em> Task: autoencode; profile: smoke; n = "
    assert page.count(caption) == 1 and page.index("0.778</td>") < page.index(caption)


def test_wide_output_scrolls_and_can_be_reached(run):
    for name in ("4.1-works", "tables"):
        page = (run[0] / f"{name}.html").read_text()
        assert ".wide { overflow-x: auto;" in page
        assert page.count("<table") == len(re.findall(r'<div [^>]*class="wide"[^>]* tabindex="0"', page)) > 0


def test_pages_need_no_network_and_lead_somewhere(run):
    book, _ = run
    pages = {path.name: path.read_text() for path in book.glob("*.html")}
    for page in pages.values():
        for link in [link for link in Links(page).found if not link.startswith("data:image/png;base64,")]:
            name, _, anchor = link.partition("#")
            assert not name or (book / name).is_file(), link
            assert not anchor or f'id="{escape(anchor)}"' in (pages[name] if name else page), link
        assert "<script" not in page and "@import" not in page and "url(http" not in page
    assert "<mfrac>" in pages["4.1-works.html"]


@pytest.mark.parametrize(
    ("notebooks", "parameters", "message"),
    [
        ("one", {"sedes": 7}, r"one/4.1-a.ipynb: unknown parameter 'sedes'; profile, seeds accepted$"),
        ("one/4.1-a.ipynb", {"sedes": 7}, r"one/4.1-a.ipynb: unknown parameter 'sedes'; profile, seeds accepted$"),
        ("none", {}, r"none: no notebook; a folder of .ipynb files or one such file is accepted$"),
    ],
)
def test_bad_input_is_refused_before_anything_is_launched(tmp_path, notebooks, parameters, message):
    (tmp_path / "one").mkdir()
    write(tmp_path / "one" / "4.1-a.ipynb", "# A", PARAMETERS)
    with pytest.raises(ValueError, match=message):
        workbook.run("smoke", tmp_path / "build", tmp_path / notebooks, parameters)
    assert not (tmp_path / "build").exists()


def test_full_disk_names_the_notebook(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("papermill.execute_notebook", full)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: .*copy\.ipynb'$"):
        workbook.execute(tmp_path / "a.ipynb", tmp_path / "copy.ipynb", {})
