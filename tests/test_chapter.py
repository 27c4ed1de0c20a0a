"""A chapter's page: captions below what they describe, and nothing of a former run."""

import copy
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from dotlib import chapter, plots, report

TABLE = pd.DataFrame({"arm": ["a"], "p": [1.23456e-8]})
RECORD = SimpleNamespace(
    profile="quick", runs=pd.DataFrame({"arm": ["a", "a"]}), metrics=pd.DataFrame({"phantom": [0, 1, 2]}), provenance={}
)


@pytest.fixture
def figure():
    plots.style()
    yield plt.figure()
    plt.close("all")
    plt.rcdefaults()


@pytest.fixture
def page(tmp_path):
    return chapter.Page(report.Book("4.3", "smoke", tmp_path), RECORD)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_not_computed_takes_the_former_artefact_away(tmp_path, page, figure):
    page.show(lambda r: TABLE, "ends", "Kept by no one.", cites=["wang2004"])
    page.show(lambda r: figure, "ends", "Drawn under the same name.", cites=["wang2004"])
    page.show(lambda r: TABLE, "ends-seeds", "Another.", cites=["holm1979"])
    line = chapter.Page(page.book, None).show(lambda r: TABLE, "ends", "C.")
    assert isinstance(line, chapter.Line) and "not computed" in line
    assert names(tmp_path) == ["4.3-ends-seeds.csv", "4.3-ends-seeds.json", "4.3-ends-seeds.tex", "all.tex",
                               "index.md", "references.bib"]  # fmt: skip
    assert [line for line in (tmp_path / "all.tex").read_text().splitlines() if "input" in line] == [
        r"\input{4.3-ends-seeds.tex}\clearpage"
    ]
    assert "wang2004" not in (tmp_path / "references.bib").read_text()
    chapter.Page(page.book, None).show(lambda r: TABLE, "ends-seeds", "C.")
    assert names(tmp_path) == ["all.tex", "index.md", "references.bib"]


def test_removal_of_nothing_writes_nothing(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        report.Book("4.3", "smoke", folder).remove("ends")
    assert names(tmp_path) == []


def test_removal_leaves_the_same_name_of_another_chapter(tmp_path, page):
    page.show(lambda r: TABLE, "ends", "C.")
    before = names(tmp_path)
    report.Book("4.2", "smoke", tmp_path).remove("ends")
    assert names(tmp_path) == before


def test_caption_is_shown_below_with_its_scope(page, figure, monkeypatch):
    shown, alt = [], []
    monkeypatch.setattr("IPython.display.display", lambda one, metadata=None: (shown.append(one), alt.append(metadata)))
    page.show(lambda r: figure, "drawn", "In mm^-1 of adamw-*.")._ipython_display_()
    page.show(lambda r: TABLE, "listed", "P_1 [a] <b>.")._ipython_display_()
    assert shown[0] is figure and shown[2].data is TABLE
    assert alt[0] == {"image/png": {"alt": "In mm^-1 of adamw-*."}}
    scope = "Task: autoencode; profile: quick; n = 3 phantoms, 2 seeds."
    assert shown[1]._repr_markdown_() == rf"*In mm<sup>-1</sup> of adamw-\*.* {scope}"
    assert shown[3]._repr_markdown_() == rf"*P\_1 \[a\] \<b\>.* {scope}"


def test_what_a_record_lacks_is_a_line_and_removes_what_was_written(page):
    page.show(lambda r: TABLE, "ends", "C.")
    line = page.show(lambda r: TABLE[[]], "ends", "C.")
    assert line == "*ends*: not among what was judged." and page.book.written().empty
    assert page.where(lambda r: r is RECORD) is page
    assert page.where(lambda r: False).show(lambda r: 1 / 0, "ends", "C.") == line
    empty = chapter.Page(page.book, None, "why")
    assert empty.where(lambda r: 1 / 0).show(lambda r: TABLE, "ends", "C.") == "*ends*: why."


def test_shown_has_the_attributes_of_what_it_shows(page, figure):
    drawn = page.show(lambda r: figure, "drawn", "C.")
    assert drawn.axes == figure.axes and page.show(lambda r: TABLE, "listed", "C.").data is TABLE
    assert copy.copy(drawn).artefact is figure
    with pytest.raises(AttributeError, match="absent"):
        _ = drawn.absent


def test_readable_shows_any_table_whole_with_three_digits():
    table = pd.DataFrame({"text": ["words " * 40], "p": [1.23456e-8], "gap": [float("nan")], "n": [6977954]})
    page = chapter.readable(table).to_html()
    assert all(word in page for word in ("words " * 40, "1.23e-08", "--", "6977954")) and "<caption" not in page
    foreign = chapter.readable(pd.DataFrame({"from <b>": ["a & <b> in mm^-1"]})).to_html()
    assert "from &lt;b&gt;" in foreign and "a &amp; &lt;b&gt; in mm<sup>-1</sup>" in foreign
    assert ">No rows.</caption>" in chapter.readable(table[:0]).to_html()
