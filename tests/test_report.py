"""Figures and tables as the thesis takes them, and the pictures themselves."""

import errno
import json
import os
import re
import shutil
import subprocess

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dotlib import latex, plots, report

SCOPE = {"task": "autoencode", "n": 64, "inputs": {"data": "5f3a"}}


@pytest.fixture
def figure():
    plots.style()
    figure, ax = plt.subplots()
    ax.plot([1, 2, 3], label=r"$\mu_a$ (mm$^{-1}$)")
    ax.set(xlabel="epoch", ylabel="loss")
    yield figure
    plt.close("all")
    plt.rcdefaults()


@pytest.fixture
def table():
    return pd.DataFrame({"arm": ["one_cycle", "Adam & co"], "nrmse of mua (%)": [1 / 3, np.nan], "n": [6977954, 2]})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_unchanged_inputs_give_the_same_bytes(tmp_path, table, monkeypatch):
    volume = np.random.default_rng(0).random((2, 8, 8, 8))
    for day, folder in enumerate("ab"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(86400 * day))
        book = report.Book("4.2", "quick", tmp_path / folder)
        book.save(plots.slices(volume, {"legacy": volume / 2}), "slices", "S.", cites=("wang2004",), **SCOPE)
        book.save(table, "arms", "Arms.", **SCOPE)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 10  # 4 of the figure, 3 of the table, bibliography, all.tex, index.md


def test_commit_changes_the_sidecar_alone(tmp_path, table, monkeypatch):
    for commit in "ab":
        monkeypatch.setattr(report, "provenance", lambda commit=commit: {"commit": commit})
        report.Book("4.2", "quick", tmp_path / commit).save(table, "arms", "Arms.", **SCOPE)
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert {name for name in a if a[name] != b[name]} == {"4.2-arms.json"}


def test_pdf_is_as_wide_as_the_text_with_truetype_fonts(tmp_path, figure):
    figure.set_size_inches(9, 3)
    pdf, png, *_ = report.Book("4.2", "quick", tmp_path).save(figure, "loss", "Loss.", **SCOPE)
    page = pdf.read_bytes()
    width = float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", page)[1])
    assert width / 72 * 72.27 == pytest.approx(418, abs=0.01)
    assert b"/FontFile2" in page and b"/Type3" not in page and b"CreationDate" not in page
    assert int.from_bytes(png.read_bytes()[16:20]) == int(418 / 72.27 * 200)


def test_mark_is_inside_the_page_and_covers_nothing(tmp_path, figure):
    report.Book("4.2", "quick", tmp_path).save(figure, "loss", "Loss.", mark="32^3, n = 64", **SCOPE)
    report.Book("4.2", "quick", tmp_path).save(figure, "loss", "Loss.", mark="32^3, n = 64", **SCOPE)
    (mark,) = figure.texts
    assert mark.get_text() == "quick profile: 32^3, n = 64"
    box = mark.get_window_extent()
    assert not box.overlaps(figure.axes[0].get_tightbbox())
    page = figure.bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1


@pytest.mark.parametrize(("profile", "marked"), [("full", True), ("quick", False)])
def test_mark_is_absent_from_full_and_unmarked(tmp_path, figure, profile, marked):
    report.Book("4.2", profile, tmp_path, marked=marked).save(figure, "loss", "Loss.", **SCOPE)
    assert "".join(text.get_text() for text in figure.texts) == ""


def test_table_is_booktabs_with_escapes_and_scope(tmp_path, table):
    tex, csv, _ = report.Book("4.2", "quick", tmp_path).save(
        table, "arms", "Error in mm^-1, 5 % of_all.", cites=("wang2004",), **SCOPE
    )
    text = tex.read_text()
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\label{tab:4.2-arms}"))
    assert r"one\_cycle & 0.333 & 6977954 \\" in text and r"Adam \& co & -- & 2 \\" in text
    assert r"arm & nrmse of mua (\%) & n \\" in text
    scope = "Task: autoencode; profile: quick; n = 64."
    assert rf"\caption{{Error in mm\textsuperscript{{-1}}, 5 \% of\_all. {scope} \cite{{wang2004}}}}" in text
    assert csv.read_text() == "arm,nrmse of mua (%),n\none_cycle,0.3333333333333333,6977954\nAdam & co,,2\n"


def test_table_of_two_headers_and_an_index_keeps_its_values(tmp_path):
    columns = pd.MultiIndex.from_product([["mua", "musp"], ["rmse", "ssim"]])
    table = pd.DataFrame(np.arange(8.0).reshape(2, 4), columns=columns, index=pd.Index(["a_b", "c"], name="arm"))
    tex, csv, _ = report.Book("4.2", "quick", tmp_path).save(table, "arms", "Arms.", **SCOPE)
    assert csv.read_text().splitlines() == [
        "arm,mua rmse,mua ssim,musp rmse,musp ssim", "a_b,0.0,1.0,2.0,3.0", "c,4.0,5.0,6.0,7.0",
    ]  # fmt: skip
    assert r"a\_b & 0.00 & 1.00 & 2.00 & 3.00 \\" in tex.read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.08312, "0.0831"), (0.5, "0.500"), (21.64, "21.6"), (100.0, "100"), (999.6, "1000"), (12345.6, "12346"),
        (4.5e-7, "4.50e-07"), (-0.25, "-0.250"), (np.float32(0.5), "0.500"), (np.inf, "inf"), (np.nan, "--"),
        (6977954, "6977954"), (np.int64(3), "3"), (True, "True"), ("a", "a"),
    ],
)  # fmt: skip
def test_cell_has_three_significant_digits(value, text):
    assert latex.cell(value) == text


def test_sidecar_says_what_the_figure_rests_on(tmp_path, figure):
    book = report.Book("4.2", "quick", tmp_path)
    paths = book.save(figure, "loss", "Loss.", cites=("wang2004",), **SCOPE)
    record = json.loads(paths[-1].read_text())
    provenance = record.pop("provenance")
    assert record == {
        "name": "4.2-loss", "chapter": "4.2", "kind": "figure", "caption": "Loss.", "task": "autoencode", "n": 64,
        "profile": "quick", "scope": "Task: autoencode; profile: quick; n = 64.", "cites": ["wang2004"],
        "marked": True, "inputs": {"data": "5f3a"}, "files": ["4.2-loss.pdf", "4.2-loss.png", "4.2-loss.tex"],
    }  # fmt: skip
    assert set(provenance) == {"commit", "dirty", "python", *report.PACKAGES}
    assert provenance["numpy"] == np.__version__
    assert [path.name for path in paths] == [*record["files"], "4.2-loss.json"]
    report.Book("4.3", "quick", tmp_path).save(figure, "other", "Other.", **SCOPE)
    assert book.written().to_dict("records") == [
        {"name": "4.2-loss", "kind": "figure", "files": ", ".join(record["files"]), "caption": "Loss."}
    ]


def test_provenance_names_the_commit_of_the_code(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)

    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def state():
        return tuple(report.provenance(tmp_path)[key] for key in ("commit", "dirty"))

    monkeypatch.setattr(report, "commit", report.commit.__wrapped__)
    assert state() == ("unknown", None)
    for folder in ("dotlib", "figures"):
        (tmp_path / folder).mkdir()
    git("init", "--quiet")
    assert state() == ("unknown", None)
    (tmp_path / "dotlib" / "a.py").write_text("1")
    git("add", "."), git("commit", "--quiet", "-m", "code")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "figures" / "a.pdf").write_text("1")
    assert state() == (commit, False)
    git("add", "."), git("commit", "--quiet", "-m", "figures")
    assert state() == (commit, False)
    (tmp_path / "dotlib" / "a.py").write_text("2")
    assert state() == (commit, True)


def test_commit_is_asked_for_once(tmp_path, monkeypatch):
    """What is committed while a study runs is not the code that its processes hold."""
    asked, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: (asked.append(words), run(*words, **options))[1])
    assert report.commit(tmp_path) == report.commit(tmp_path) and len(asked) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cites": ("wang2005",)}, r"^4.2-arms: unknown citation 'wang2005'; sources.bib has adebayo2018, "),
        ({"name": "Arms of 4.2"}, r"^chapter 4.2: name 'Arms of 4.2'; lower-case"),
        ({"artefact": pd.DataFrame()}, r"^4.2-arms: a table without columns"),
        ({"artefact": [1]}, r"^4.2-arms: list; a matplotlib Figure or pandas DataFrame"),
        ({"artefact": matplotlib.figure.Figure()}, r"^4.2-arms: the figure's layout is not constrained"),
        ({"artefact": matplotlib.figure.Figure((5, 7.5), layout="constrained")}, r"^4.2-arms: 542 pt high; up to 540"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, table, change, message):
    given = {"artefact": table, "name": "arms", "caption": "Arms.", **SCOPE, **change}
    with pytest.raises(ValueError, match=message) as error:
        report.Book("4.2", "quick", tmp_path).save(given.pop("artefact"), **given)
    assert "\n" not in str(error.value) and contents(tmp_path) == {}


def test_references_hold_what_is_cited_and_no_more(tmp_path, table):
    report.Book("4.3", "quick", tmp_path).save(table, "a", "A.", cites=("wang2004", "holm1979"), **SCOPE)
    report.Book("4.2", "quick", tmp_path).save(table, "b", "B.", cites=("efron1987", "wang2004"), **SCOPE)
    keys = re.findall(r"^@\w+\{(.+),$", (tmp_path / "references.bib").read_text(), re.MULTILINE)
    assert keys == ["efron1987", "holm1979", "wang2004"]


@pytest.mark.parametrize(("key", "entry"), report.sources().items())
def test_source_is_whole_and_named_after_author_and_year(key, entry):
    fields = dict(re.findall(r"^  (\w+) = \{(.+)\},?$", entry, re.MULTILINE))
    assert entry.count("{") == entry.count("}") and len(fields) == entry.count("\n") - 1
    assert {"title", "author", "year"} <= set(fields)
    assert key == fields["author"].split(",")[0].lower() + fields["year"]
    assert entry.startswith("@misc") or {"journal", "booktitle", "publisher"} & set(fields)
    assert re.fullmatch(r"10\.\d{4,5}/\S+", fields.get("doi", "10.1000/x"))


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex on this machine")
def test_everything_compiles_in_one_document(tmp_path, figure, table):
    book = report.Book("4.2", "quick", tmp_path)
    book.save(figure, "loss", r"All of \ { } ~ ^ < > | # $ & % _ in mm^-1.", cites=("wang2004",), **SCOPE)
    book.save(table, "arms", "Arms.", **SCOPE)
    command = ["pdflatex", "-draftmode", "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]
    assert "Overfull" not in result.stdout


def test_interrupted_write_leaves_the_former_files(tmp_path, table, monkeypatch):
    book = report.Book("4.2", "quick", tmp_path)
    book.save(table, "arms", "Arms.", **SCOPE)
    former = contents(tmp_path)

    def fail(*_):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        book.save(table[:1], "arms", "Arms.", **SCOPE)
    assert contents(tmp_path) == former


@pytest.mark.parametrize(("normal", "column", "row"), [("x", 2, 3), ("y", 1, 3), ("z", 1, 2)])
def test_slices_put_a_voxel_where_it_is(normal, column, row):
    truth = np.zeros((2, 4, 4, 4))
    truth[:, 1, 2, 3] = 1, 2
    index = {"x": 1, "y": 2, "z": 3}[normal]
    axes = plots.slices(truth, {"none": 0 * truth}, normal=normal, index=index).axes
    for ax, value in zip((axes[0], axes[2], axes[5], axes[7]), (1, 2, -1, -2), strict=True):
        (image,) = ax.images
        assert np.argwhere(image.get_array()).tolist() == [[row, column]] and image.get_array()[row, column] == value
        assert image.get_extent() == [-32, 32, -32, 32] and image.origin == "lower"
    assert [text.get_text() for text in axes[0].texts if len(text.get_text()) == 1] == [a for a in "xyz" if a != normal]
    plt.close("all")


@pytest.mark.parametrize("shift", [3, -3])
def test_slices_share_a_range_and_errors_are_symmetric(shift):
    truth = np.random.default_rng(0).random((2, 4, 4, 4))
    axes = plots.slices(truth, {"near": truth, "far": truth + shift}).axes
    limits = [[image.get_clim() for image in ax.images] for ax in axes[:12]]
    plane = truth[0, :, :, 2]
    low, high = plane.min() + min(0, shift), plane.max() + max(0, shift)
    assert limits[0] == limits[4] == limits[8] == [(low, high)]
    assert limits[1] == limits[3] == [] and limits[5] == limits[9]
    np.testing.assert_allclose([limits[9], limits[11]], [[(-3, 3)]] * 2)
    plt.close("all")


@pytest.mark.parametrize("count", [1, 7, 12])
def test_slices_of_many_arms_fit_a_page(tmp_path, count):
    volume = np.zeros((2, 4, 4, 4))
    figure = plots.slices(volume, {str(i): volume for i in range(count)})
    report.Book("4.6", "quick", tmp_path).save(figure, "example", "E.", **SCOPE)
    plt.close("all")


def test_slices_refuse_another_shape():
    with pytest.raises(ValueError, match=r"^slices: legacy has shape \(2, 4, 4, 3\); \(2, D, H, W\) is accepted"):
        plots.slices(np.zeros((2, 4, 4, 4)), {"legacy": np.zeros((2, 4, 4, 3))})


def test_curves_draw_the_median_and_the_range_of_seeds():
    rows = [("a", seed, epoch, value * (epoch + 1)) for seed, value in enumerate((1, 2, 6)) for epoch in range(3)]
    history = pd.DataFrame(rows, columns=["arm", "seed", "epoch", "loss"])
    (ax,) = plots.curves(history, {"loss": "validation loss"}).axes
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 4, 6])
    band = ax.collections[0].get_paths()[0].vertices
    assert [(band[band[:, 0] == e, 1].min(), band[band[:, 0] == e, 1].max()) for e in range(3)] == [
        (1, 6),
        (2, 12),
        (3, 18),
    ]
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "validation loss")
    plt.close("all")
    with pytest.raises(ValueError, match=r"^curves: no column 'lr'; the table has arm, seed, epoch, loss$"):
        plots.curves(history, {"lr": "learning rate"})
