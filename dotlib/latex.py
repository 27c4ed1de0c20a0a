"""LaTeX: text, a table's cells, and tables that are no wider than a page."""

import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from textwrap import wrap
from typing import NamedTuple

import pandas as pd

ESCAPES = {c: "\\" + c for c in "&%$#_{}"} | {
    c: rf"\text{word}{{}}"
    for c, word in zip("\\~^<>|", ("backslash", "asciitilde", "asciicircum", "less", "greater", "bar"), strict=True)
}

# widths of Computer Modern's characters in em at 10 pt, rounded up, any other 1; smaller fonts are wider for their size
WIDTHS = {0.28: "ijl.,:;!'`[]|", 0.4: "frst()- ", 0.54: "acegkovxyz0123456789/*?", 0.56: "bdhnpqu_$^{}I"}
WIDTHS = {c: em for em, group in (WIDTHS | {0.79: "ABCDEFGHJKLNOPQRSTUVXYZw+<>=~#&"}).items() for c in group}
SMALLER = {9: 1.03, 8: 1.07, 7: 1.14}
MINUS = re.compile(r"(?<![\w)])-(?=\d|inf)|(?<=\de)-(?=\d)")
INSIDE = re.compile(r" (?=[^\[]*\])")  # an interval's space
UPRIGHT, SIDEWAYS, GAP = 418, 560, 8  # pt: a line of text, a page on its side, between columns
HEIGHTS, CAPTION, RULES = {UPRIGHT: 580, SIDEWAYS: 408}, 13.6, 40  # pt: of pages, a caption's line, rules and spaces
BROKEN = r">{\raggedright\arraybackslash}p{?pt}"  # the kind of a column whose texts take several lines
KINDS = re.compile(re.escape(BROKEN).replace(r"\?", r"(\d+)") + "|([lr])")
COUNTED = r"\addtocounter{table}{-1}"


class Setting(NamedTuple):
    """How a table is set: type and page width in pt, the lines that a text may take, the scale of the whole."""

    size: int
    width: float
    lines: int = 4
    scale: float = 1


SETTINGS = [Setting(9, UPRIGHT, 1)] + [Setting(size, width) for width in (UPRIGHT, SIDEWAYS) for size in SMALLER]
SETTINGS += [Setting(7, SIDEWAYS, lines, scale) for lines in (4, 99) for scale in (6 / 7, 5 / 7)]  # not below 5 pt


class Column(NamedTuple):
    """A table's column: its name, its head and its kind in LaTeX, least and natural width in pt."""

    name: object
    head: str
    kind: str
    least: float
    natural: float


def latex(text: object) -> str:
    """Plain text as LaTeX: special characters escaped, the exponents of `mm^-1` and `32^3` raised."""
    escaped = "".join(ESCAPES.get(c, c) for c in str(text))
    return re.sub(r"\\textasciicircum\{\}(-?\d+)", r"\\textsuperscript{\1}", escaped)


def cell(value: object) -> str:
    """A table's cell as read by people: three significant digits, `--` for what is missing."""
    if not isinstance(value, Real) or isinstance(value, Integral):
        return str(value)
    if not math.isfinite(value):
        return "--" if math.isnan(value) else str(value)
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def table_files(table: pd.DataFrame, stem: str, words: str) -> dict[str, bytes]:
    """A table as LaTeX, in as many parts as pages need, and as CSV; `words`: its caption, in LaTeX."""
    numbered = isinstance(table.index, pd.RangeIndex)
    setting, kinds, heads = layout(table if numbered else table.reset_index(), stem)
    made = []
    for first, last in parts(table if numbered else table.reset_index(), setting, kinds, heads, words):
        said = words if not first else rf"{COUNTED}\emph{{continued}}"
        made.append(_part(table.iloc[first:last], setting, kinds, heads, said, f"tab:{stem}" if not first else ""))
    if table.columns.nlevels > 1:  # one header line, so that any program reads the file
        table = table.set_axis([" ".join(map(str, names)).strip() for names in table.columns], axis=1)
    csv = table.to_csv(index=not numbered, lineterminator="\n")
    return {f"{stem}.tex": "".join(made).encode(), f"{stem}.csv": csv.encode()}


def _part(
    table: pd.DataFrame, setting: Setting, kinds: str, heads: Mapping[object, str], words: str, label: str
) -> str:
    # a line breaks neither after a minus sign nor within an interval
    styler = table.style.format(lambda value: MINUS.sub("$-$", INSIDE.sub("~", latex(cell(value)))))
    styler = styler.format_index(lambda name: heads.get(name) or latex(name), axis=1)
    hidden = isinstance(table.index, pd.RangeIndex)
    styler = styler.hide(axis="index") if hidden else styler.format_index(latex, axis=0)
    place = {"position": "htbp"} if setting.width == UPRIGHT else {"environment": "sidewaystable", "position": "p"}
    place |= {"caption": words, "label": label or None, "position_float": "centering"}
    before, begin, tex = styler.to_latex(hrules=True, column_format=kinds, **place).partition(r"\begin{tabular}")
    body, end, after = tex.rpartition(r"\end{tabular}")
    if words.startswith(COUNTED):  # the former part's number once more
        before = before.replace(rf"\caption{{{words}}}", rf"{COUNTED}\caption{{{words.removeprefix(COUNTED)}}}")
    size = rf"\fontsize{{{setting.size}}}{{{setting.size + 2}}}\selectfont\setlength{{\tabcolsep}}{{{GAP / 2:g}pt}}"
    if setting.scale < 1:
        begin, end = rf"\scalebox{{{setting.scale:.3f}}}{{{begin}", f"{end}}}"
    return f"{before}{size}\n{begin}{body}{end}{after}"


def parts(
    table: pd.DataFrame, setting: Setting, kinds: str, heads: Mapping[object, str], words: str
) -> list[tuple[int, int]]:
    """The first and last rows of parts that are no higher than a page, by what each row is estimated to take."""
    widths = [float(width or "inf") for width, _ in KINDS.findall(kinds)]
    line = (setting.size + 2) * setting.scale
    rows = [
        line * max(_lines(cell(value), width, setting.size) for value, width in zip(row, widths, strict=True))
        for row in table.itertuples(index=False)
    ]
    head = line * max([table.columns.nlevels, *(text.count(r"\\") + 1 for text in heads.values())])
    room = HEIGHTS[setting.width] - head - RULES
    first, found, left = 0, [], room - CAPTION * math.ceil(len(words) * 5.6 / setting.width)
    for i, height in enumerate(rows):
        if height > left and i > first:
            found.append((first, i))
            first, left = i, room - CAPTION
        left -= height
    return [*found, (first, len(rows))]


def _lines(text: str, width: float, size: int) -> int:
    """How many lines of this width a text takes, broken at spaces."""
    lines, used, space = 1, 0.0, _width(" ", size)
    for word in text.split():
        needed = _width(word, size)
        if used and used + space + needed > width:
            lines, used = lines + 1, needed
        else:
            used += needed + space * bool(used)
    return lines


def layout(table: pd.DataFrame, stem: str) -> tuple[Setting, str, dict[object, str]]:
    """The first of SETTINGS in which a table is no wider than the page, its column kinds and its heads by name.

    What numbers and short texts leave is shared out among the longer texts by their lengths, lines broken at words.
    """
    for setting in SETTINGS:
        columns = [_column(table.iloc[:, i], name, setting) for i, name in enumerate(table.columns)]
        room = setting.width / setting.scale - GAP * (len(columns) - 1)
        for percent in range(100, 0, -1):
            widths = [math.ceil(max(c.least, c.natural * percent / 100)) for c in columns]
            if sum(widths) <= room:
                kinds = "".join(c.kind.replace("?", str(w)) for c, w in zip(columns, widths, strict=True))
                return setting, f"@{{}}{kinds}@{{}}", {c.name: c.head for c in columns}
    raise ValueError(f"{stem}: {len(columns)} columns are wider than a page; fewer or narrower ones are accepted")


def _column(values: pd.Series, name: object, setting: Setting) -> Column:
    texts, kind = [cell(value) for value in values], "r" if pd.api.types.is_numeric_dtype(values) else "l"
    longest = max(map(len, texts), default=0)
    heads = list(map(str, name)) if isinstance(name, tuple) else [str(name)]
    if broken := setting.lines > 1 and not isinstance(name, tuple):
        heads = wrap(heads[0], min(longest, 14) or 1, break_long_words=False, break_on_hyphens=False) or [""]
    natural = least = max(_width(text, setting.size) for text in texts + heads)
    if setting.lines > 1 and longest > 14 and kind == "l":
        kind = BROKEN
        words = [word for text in texts for word in re.split(r"\s|(?<=-)", MINUS.sub("+", INSIDE.sub("~", text)))]
        least = max(natural / setting.lines, *(_width(word, setting.size) for word in words + heads))
    head = r"\\".join(map(latex, heads))
    if broken and len(heads) > 1:
        head = rf"\begin{{tabular}}[b]{{@{{}}{kind[0].replace('>', 'l')}@{{}}}}{head}\end{{tabular}}"
    return Column(name, head, kind, least, natural)


def _width(text: str, size: int) -> float:
    """About how wide a text is in pt, rather too much than too little."""
    return size * SMALLER[size] * sum(WIDTHS.get(c, 1) for c in MINUS.sub("+", text))
