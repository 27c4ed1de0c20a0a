"""What the thesis takes: figures/ from recorded results alone, and the document of all of it."""

import shutil
import subprocess
from pathlib import Path

import matplotlib
import nbformat
import pandas as pd
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dotlib import plots, report, thesis, workbook

PARAMETERS = "profile: str = ''  # size\nrecorded: bool = False  # results/ alone"
TABLE = """
import pandas as pd
from pathlib import Path
from dotlib.report import Book
assert recorded and profile == "full"
book = Book("4.3", profile, Path("build/recorded/figures"))
book.save(pd.DataFrame({"n": [NUMBER]}), "ends", "Ends.", task="none", n=1, inputs={})
"""
ROOT = Path(__file__).resolve().parents[1]
SCOPE = {"task": "none", "n": 1, "inputs": {}}
needs_tex = pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex on this machine")


def write(folder, stem, number, parameters=PARAMETERS, own="raise RuntimeError('computed')"):
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(metadata=metadata)
    codes = [parameters, own, own, TABLE.replace("NUMBER", str(number))]
    notebook.cells = [nbformat.v4.new_markdown_cell(f"# {stem}"), *map(nbformat.v4.new_code_cell, codes)]
    for cell, tag in zip(notebook.cells[1:4], ("parameters", "own-runs", "own-runs"), strict=True):
        cell.metadata["tags"] = [tag]
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"{stem}.ipynb")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a notebook that can render from results/ and one that cannot."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "notebooks", "4.3-renders", 3)
    write(tmp_path / "notebooks", "4.7-times", 7, parameters="profile: str = ''  # size")
    return tmp_path


def test_figures_are_those_of_notebooks_that_can_and_nothing_is_computed(project):
    (project / "figures").mkdir()
    (project / "figures" / "4.3-former.csv").write_text("n\n1\n")
    page = workbook.render()
    names = {path.name for path in (project / "figures").iterdir()}
    assert names == {"4.3-ends.csv", "4.3-ends.json", "4.3-ends.tex", "all.tex", "index.md", "references.bib"}
    assert (project / "figures" / "4.3-ends.csv").read_text() == "n\n3\n"
    executed = nbformat.read(project / "build" / "recorded" / "4.3-renders.ipynb", as_version=4)
    assert [cell.source for cell in executed.cells].count(workbook.LEFT_OUT) == 1
    assert page.read_text().count("4.3-renders.html") and "4.7" not in page.read_text()


def test_what_did_not_change_is_not_touched_and_a_failure_leaves_all(project):
    workbook.render()
    before = {path.name: path.stat().st_mtime_ns for path in (project / "figures").iterdir()}
    workbook.render()
    assert {path.name: path.stat().st_mtime_ns for path in (project / "figures").iterdir()} == before
    write(project / "notebooks", "4.4-fails", "1 / 0")
    write(project / "notebooks", "4.3-renders", 4)
    with pytest.raises(workbook.WorkbookError, match=r"4.4-fails.*ZeroDivisionError"):
        workbook.render()
    assert {path.name: path.stat().st_mtime_ns for path in (project / "figures").iterdir()} == before


@pytest.fixture
def drawn():
    plots.style()
    figure, ax = plt.subplots()
    ax.plot([1, 2], label=r"$\mu_a$ (mm$^{-1}$)")
    yield figure
    plt.close("all")
    plt.rcdefaults()


@pytest.fixture
def folders(tmp_path, drawn):
    """figures/ with one table of the full profile; a quick profile's folder with another of its name, and a figure."""
    full, quick = tmp_path / "figures", tmp_path / "build" / "quick" / "figures"
    table = pd.DataFrame({"n": [1]})
    report.Book("4.3", "full", full).save(table, "ends", "Ends of mm^-1.", cites=["wang2004"], **SCOPE)
    report.Book("4.3", "quick", quick).save(table, "ends", "Others.", **SCOPE)
    report.Book("4.1", "quick", quick).save(drawn, "light", "Light.", cites=["arridge1995", "wang2004"], **SCOPE)
    return [full, quick]


def test_mark_is_refused_but_in_a_draft(folders):
    with pytest.raises(thesis.ThesisError, match=r"^4.1-light \(quick profile\) is marked, .*; DRAFT=1 accepts them$"):
        thesis.gather(folders, draft=False)
    found = thesis.gather(folders, draft=True)
    assert [(name, where) for name, (where, _) in found.items()] == [
        ("4.1-light", folders[1]),
        ("4.3-ends", folders[0]),
    ]
    assert list(thesis.gather(folders[:1], draft=False)) == ["4.3-ends"]
    with pytest.raises(thesis.ThesisError, match=r"no figures and tables; `make figures`"):
        thesis.gather([folders[0] / "none"], draft=True)


def test_missing_tex_is_one_line_that_names_the_packages(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(thesis.ThesisError, match=r"^no pdflatex on this machine; it needs texlive-latex-recommended, "):
        thesis.compile(folders, tmp_path / "notebooks", tmp_path / "build" / "thesis", draft=True)


@needs_tex
def test_thesis_holds_every_figure_table_and_source(folders, tmp_path):
    write(tmp_path / "notebooks", "4.1-light", 1)
    pdf = thesis.compile(folders, tmp_path / "notebooks", tmp_path / "build" / "thesis", draft=True)
    text = subprocess.run(["pdftotext", pdf, "-"], capture_output=True, text=True, check=True).stdout
    for words in ("4.1-light", "Light. Task: none; profile: quick; n = 1.", "Ends of mm", "Arridge", "Wang"):
        assert words in text.replace("\n", " ")
    assert "Others." not in text and "?" not in text


@needs_tex
@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (r"\noindent\rule{419pt}{1pt}", "Overfull"),
        (r"\cite{nobody}", "Citation `nobody'"),
        (r"\font\bits=ecrm1000 \bits A", "font of bitmaps"),
    ],
)
def test_what_a_thesis_would_refuse_is_named(tmp_path, body, fault):
    (tmp_path / "t.tex").write_text(thesis.HEAD + r"\begin{document}" + body + r"\end{document}")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "t.tex"], cwd=tmp_path, capture_output=True, text=True
    )
    if "Metric (TFM) file" in done.stdout or not (tmp_path / "t.pdf").is_file():
        pytest.skip("no font of bitmaps on this machine")
    assert [line for line in thesis.refused(tmp_path / "t.pdf") if fault in line]


def test_committed_figures_are_whole_and_of_recorded_runs():
    """Each file that a sidecar lists is there and no other; each run that a number rests on is one of results/."""
    found = report.sidecars(ROOT / "figures")
    listed = {name for record in found for name in (*record["files"], f"{record['name']}.json")}
    assert len(found) > 90
    assert {path.name for path in (ROOT / "figures").iterdir()} == listed | {"all.tex", "index.md", "references.bib"}
    runs = pd.concat([pd.read_csv(path, dtype=str) for path in sorted((ROOT / "results").glob("*/runs.csv"))])
    known = set(runs["config"] + ", code " + runs["code"])
    rests = {value for record in found for value in record["inputs"].values() if ", code " in str(value)}
    assert rests and not rests - known
    assert not any(record["provenance"]["dirty"] for record in found)
