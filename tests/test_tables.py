"""Tables as the thesis takes them: within the page, legible, nothing lost."""

import re
import shutil
import subprocess
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from dotlib import latex, report
from dotlib.sections import hypotheses

SCOPE = {"task": "autoencode", "n": 64, "inputs": {}}
LONG = "adamw-onecycle-momentum-b95 against adam-constant"
INTERVAL = "[-22.2, -5.47]"
KINDS = re.compile(r">\{\\raggedright\\arraybackslash\}p\{(\d+)pt\}|([lr])")
ROMAN = FontProperties(fname=Path(matplotlib.get_data_path()) / "fonts/ttf/cmr10.ttf", size=10)


def numbers(*names, values=(0.0123456, -1234.5)):
    return dict.fromkeys(names, values)


TWO_HEADS = pd.MultiIndex.from_product([["mua", "musp"], ["nrmse", "SSIM", "skill"]])
TABLES = {
    "plan": hypotheses.plan(64),
    "ends": pd.DataFrame(
        {"contrast": [LONG, "a"], **numbers("seeds", "failed", "effect, %"), "interval, %": INTERVAL}
        | {"seeds alone": "[-0.467, 5.6]", "sizes": "0.084, 0.096, 0.058", "standing": "nrmse musp: secondary"}
        | numbers("P(better)", "Holm p", "sd of log", "p", values=(1.2e-9, 0.5))
    ),
    "verdicts": pd.DataFrame(
        {"hypothesis": ["H1, as specified", "H8"], "expected, %": "15-25", "found, %": [1.5, np.nan]}
        | {"interval, %": "[-0.000123, 1.23e-05]", "seeds": 10, "failed": 0, "standing": "exploratory"}
        | {"verdict": "not resolved", "against 0": "not resolved", "note": ["90 % interval over seeds " * 3, ""]}
    ),
    "arms": pd.DataFrame({"arm": ["ellipsoid, own background"], "seeds": 2} | numbers(*"abcd", values=[0.5]))
    .assign(**{f"{metric} of {c}": f"0.416 {INTERVAL}" for metric in ("nrmse", "SSIM", "crc") for c in "ab"})
    .assign(**{f"background noise {c}": "-0.0131 [-0.000413, 1.23e-05]" for c in "ab"}),
    "intervals": pd.DataFrame({f"nrmse {i}": ["0.1 [-0.000022, -0.000547]"] for i in range(7)}),
    "failed": pd.DataFrame(columns=["study", "arm", "seed", "failed"]),
    "many": pd.DataFrame(numbers(*(f"W/(MW) at {i}" for i in range(18)))),
    "notes": pd.DataFrame({"a": ["some words, and more of them; " * 30], "b": ["M W " * 40], "c": ["0a1b2c3d" * 4]}),
    "symbols": pd.DataFrame({"from <b> & {c}": [r"a|b~c^2 \ # $ 100 % of_it, -5 < x > -inf " * 3], "n": [-1]}),
    "heads": pd.DataFrame(np.full((2, 6), -0.123), columns=TWO_HEADS, index=pd.Index([LONG, "b"], name="arm")),
}


def wide(text, size):
    """Width in pt as set in Computer Modern at 10 pt, scaled: another source than the code's own."""
    return text_to_path.get_text_width_height_descent(text.replace("-", "+"), ROMAN, False)[0] * size / 10


def spelt(table):
    """The table with its index as columns, cells as they are written."""
    return (table if isinstance(table.index, pd.RangeIndex) else table.reset_index()).map(latex.cell)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex on this machine")
def test_no_table_is_wider_or_higher_than_the_page(tmp_path):
    for name, table in TABLES.items():
        report.Book("4.3", "quick", tmp_path).save(table, name, "What is tested, and what it can find. " * 4, **SCOPE)
    command = ["pdflatex", "-draftmode", "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    log = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert log.returncode == 0, log.stdout[-2000:]
    assert not re.findall(r"Overfull.*|.*too large.*|.*undefined.*", log.stdout)


@pytest.mark.parametrize("name", TABLES)
def test_columns_hold_their_words_and_no_more_than_the_page(name):
    table = spelt(TABLES[name])
    setting, kinds, _ = latex.layout(TABLES[name].reset_index() if name == "heads" else TABLES[name], name)
    assert setting.size * setting.scale >= 5
    total, columns = latex.GAP * (table.shape[1] - 1), KINDS.findall(kinds)
    assert len(columns) == table.shape[1] and kinds == "@{}" + "".join(m[0] for m in KINDS.finditer(kinds)) + "@{}"
    for i, (width, _) in enumerate(columns):
        cells = [str(value) for value in table.iloc[:, i]]
        words = [word for text in cells for word in re.findall(r"\[[^]]*\]|[^\s-]+", text)] if width else cells
        widest = max((wide(word, setting.size) for word in words), default=0)
        assert not width or widest <= float(width)
        assert not width or max(wide(text, setting.size) for text in cells) <= setting.lines * float(width)
        total += float(width) if width else widest
    assert total <= setting.width / setting.scale


def test_narrow_table_stays_in_the_text_with_whole_lines(tmp_path):
    table = pd.DataFrame({"a text of more than fourteen": [LONG], "value, %": [0.5], "verdict": ["refuted"]})
    tex, *_ = report.Book("4.3", "quick", tmp_path).save(table, "a", "A.", **SCOPE)
    assert r"\begin{table}[htbp]" in tex.read_text() and r"\begin{tabular}{@{}lrl@{}}" in tex.read_text()


@pytest.mark.parametrize("name", ["plan", "ends", "verdicts", "arms", "notes"])
def test_long_texts_are_broken_and_numbers_are_not(name):
    table = TABLES[name]
    _, kinds, _ = latex.layout(table, name)
    for column, (width, kind) in zip(table, KINDS.findall(kinds), strict=True):
        if pd.api.types.is_numeric_dtype(table[column]):
            assert kind == "r"
        else:
            assert bool(width) == (table[column].str.len().max() > 14) and kind in ("", "l")


@pytest.mark.parametrize("name", ["plan", "ends", "verdicts", "arms"])
def test_heads_lose_nothing_over_lines(name):
    _, _, heads = latex.layout(TABLES[name], name)
    lines = [re.sub(r"^\\begin{tabular}\[b\]{@{}.@{}}|\\end{tabular}$", "", head) for head in heads.values()]
    assert [line.replace(r"\\", " ") for line in lines] == [latex.latex(column) for column in TABLES[name]]
    assert any(r"\\" in line for line in lines)


def test_line_does_not_break_after_a_minus_or_in_an_interval(tmp_path):
    table = pd.DataFrame({"found": [f"-0.3 {INTERVAL}, 15-25 %"], "from": ["1.2e-05"], "arm": ["-inf (-1)"]})
    tex, csv, _ = report.Book("4.3", "quick", tmp_path).save(table, "a", "A.", **SCOPE)
    assert r"$-$0.3 [$-$22.2,~$-$5.47], 15-25 \% & 1.2e$-$05 & $-$inf ($-$1) \\" in tex.read_text()
    pd.testing.assert_frame_equal(pd.read_csv(csv, dtype=str), table)


def test_table_beyond_a_page_is_one_line_and_writes_nothing(tmp_path):
    table = pd.DataFrame(numbers(*map(str, range(60))))
    with pytest.raises(ValueError, match=r"^4.3-a: 60 columns are wider than a page; fewer or narrower ones are acc"):
        report.Book("4.3", "quick", tmp_path).save(table, "a", "A.", **SCOPE)
    assert not list(tmp_path.iterdir())


TALL = pd.DataFrame({"arm": [f"{LONG} {i}" for i in range(120)], "note": ["words that take their lines " * 4] * 120})
TALL = TALL.assign(**numbers(*"abcdef", values=0.5))


@pytest.mark.parametrize("table", [TALL, TALL[["arm", "a"]]], ids=["on its side", "upright"])
def test_table_higher_than_a_page_is_set_in_parts_that_hold_every_row_once(tmp_path, table):
    tex, csv, _ = report.Book("4.3", "quick", tmp_path).save(table, "a", "A.", **SCOPE)
    found = re.findall(r"against adam-constant (\d+) &", tex.read_text().replace("~", " "))
    assert found == [str(i) for i in range(120)]
    count = tex.read_text().count(r"\toprule")
    assert count > 2 and tex.read_text().count(r"\addtocounter{table}{-1}\caption{\emph{continued}}") == count - 1
    assert tex.read_text().count(r"\label{tab:4.3-a}") == 1 and len(pd.read_csv(csv)) == 120
    if shutil.which("pdflatex"):
        command = ["pdflatex", "-draftmode", "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
        log = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
        assert not re.findall(r"Overfull.*|.*too large.*", log)
