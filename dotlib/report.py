"""What the thesis takes: figures and tables in its formats, with captions, sources and provenance."""

import io
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral, Real
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from . import checkpoint
from .plots import STYLE, TEXT_WIDTH
from .provenance import commit

HERE = Path(__file__).parent
PACKAGES = ("dotlib", "torch", "numpy", "pandas", "matplotlib", "seaborn")
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


@dataclass(frozen=True)
class Book:
    """Where one chapter's figures and tables go: every file is `folder/<chapter>-<name>.*`.

    Outside the profile `full` each figure and table bears the profile's name, unless `marked` is off
    (for a drawing that no profile changes).
    """

    chapter: str
    profile: str
    folder: Path
    marked: bool = True

    def save(
        self,
        artefact: Figure | pd.DataFrame,
        name: str,
        caption: str,
        *,
        task: str,
        n: int | str,
        inputs: Mapping[str, str],
        cites: Sequence[str] = (),
        mark: str = "",
    ) -> list[Path]:
        """Write a figure (PDF, PNG, LaTeX) or a table (LaTeX, CSV) with its sidecar, and the folder's bibliography.

        `caption` is plain text (`mm^-1` is raised), `n` what a number rests on, `inputs` the names and hashes or run
        ids of the data, `cites` keys of sources.bib, `mark` what the profile's mark says instead of n.
        Unchanged inputs give the same bytes. Raises ValueError for a bad name, an unknown key, a free layout or a
        table without columns or wider than a page.
        """
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            raise ValueError(f"chapter {self.chapter}: name {name!r}; lower-case letters, digits, hyphens are accepted")
        stem, known = f"{self.chapter}-{name}", sources()
        if unknown := sorted(set(cites) - set(known)):
            raise ValueError(f"{stem}: unknown citation {unknown[0]!r}; sources.bib has {', '.join(known)}")
        scope = f"Task: {task}; profile: {self.profile}; n = {n}."
        words = latex(f"{caption} {scope}") + (rf" \cite{{{','.join(cites)}}}" if cites else "")
        if isinstance(artefact, Figure):
            stamp = f"{self.profile} profile: {mark or f'n = {n}'}" if self.marked and self.profile != "full" else ""
            kind, contents = "figure", _figure_files(artefact, stem, words, stamp)
        elif isinstance(artefact, pd.DataFrame):
            if artefact.columns.empty:
                raise ValueError(f"{stem}: a table without columns; nothing can read its file again")
            kind, contents = "table", _table_files(artefact, stem, words)
        else:
            raise ValueError(f"{stem}: {type(artefact).__name__}; a matplotlib Figure or pandas DataFrame is accepted")
        record = {"name": stem, "chapter": self.chapter, "kind": kind, "files": sorted(contents), "caption": caption}
        record |= {"scope": scope, "task": task, "profile": self.profile, "n": n, "cites": list(cites)}
        record |= {"inputs": dict(inputs), "provenance": provenance()}
        # the sidecar comes last: what it lists is complete
        contents[f"{stem}.json"] = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            checkpoint.write(self.folder / file, content, durable=False)
        _write_index(self.folder, known)
        return [self.folder / file for file in contents]

    def remove(self, name: str) -> None:
        """Delete what a former run wrote under a name, if it did: what is not computed is not shown as computed."""
        stale = sorted(self.folder.glob(f"{self.chapter}-{name}.*"), key=lambda path: path.suffix != ".json")
        for path in stale:  # the sidecar first: what it lists is complete
            path.unlink()
        if stale:
            _write_index(self.folder, sources())

    def written(self) -> pd.DataFrame:
        """What this chapter has in the folder: name, kind, files, caption."""
        rows = [record for record in sidecars(self.folder) if record["chapter"] == self.chapter]
        frame = pd.DataFrame(rows, columns=["name", "kind", "files", "caption"])
        return frame.assign(files=[", ".join(files) for files in frame["files"]])


def sources() -> dict[str, str]:
    """The BibTeX entries that may be cited, by key."""
    entries = (HERE / "sources.bib").read_text(encoding="utf-8").strip().split("\n\n")
    return {re.match(r"@\w+\{([^,]+),", entry)[1]: entry for entry in entries}


def sidecars(folder: Path) -> list[dict]:
    """The records of all figures and tables in a folder, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def provenance(root: Path = HERE.parent) -> dict[str, str | bool | None]:
    """Versions, the last commit of the code below `root` and whether the code differs from it.

    A commit that changes only figures or results is not the code's: what was made before it stays as it is.
    """
    versions = {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}
    return commit(root) | versions


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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _figure_files(figure: Figure, stem: str, words: str, stamp: str) -> dict[str, bytes]:
    engine = figure.get_layout_engine()
    if not isinstance(engine, ConstrainedLayoutEngine):
        raise ValueError(f"{stem}: the figure's layout is not constrained; call plots.style() before it is drawn")
    height = figure.get_size_inches()[1]
    room = 0.15 / height if stamp else 0  # inches for the profile's mark, below everything else
    figure.set_size_inches(TEXT_WIDTH, height)
    engine.set(rect=(0, room, 1, 1 - room))
    for former in [text for text in figure.texts if text.get_gid() == "mark"]:
        former.remove()
    files = {}
    with plt.style.context(STYLE):
        figure.text(0.995, 0.02 / height, stamp, ha="right", va="bottom", size=7, color="0.35", gid="mark")
        figure.draw_without_rendering()  # the first drawing's layout is not yet the settled one
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
            figure.savefig(buffer := io.BytesIO(), format=suffix, metadata=metadata)
            files[f"{stem}.{suffix}"] = buffer.getvalue()
    lines = (r"\begin{figure}[htbp]", r"\centering", rf"\includegraphics{{{stem}.pdf}}", rf"\caption{{{words}}}")
    files[f"{stem}.tex"] = "\n".join((*lines, rf"\label{{fig:{stem}}}", r"\end{figure}", "")).encode()
    return files


def _table_files(table: pd.DataFrame, stem: str, words: str) -> dict[str, bytes]:
    numbered = isinstance(table.index, pd.RangeIndex)
    setting, kinds, heads = layout(table if numbered else table.reset_index(), stem)
    # a line breaks neither after a minus sign nor within an interval
    styler = table.style.format(lambda value: MINUS.sub("$-$", INSIDE.sub("~", latex(cell(value)))))
    styler = styler.format_index(lambda name: heads.get(name) or latex(name), axis=1)
    styler = styler.hide(axis="index") if numbered else styler.format_index(latex, axis=0)
    place = {"position": "htbp"} if setting.width == UPRIGHT else {"environment": "sidewaystable", "position": "p"}
    place |= {"caption": words, "label": f"tab:{stem}", "position_float": "centering"}
    before, begin, tex = styler.to_latex(hrules=True, column_format=kinds, **place).partition(r"\begin{tabular}")
    body, end, after = tex.rpartition(r"\end{tabular}")
    size = rf"\fontsize{{{setting.size}}}{{{setting.size + 2}}}\selectfont\setlength{{\tabcolsep}}{{{GAP / 2:g}pt}}"
    if setting.scale < 1:
        begin, end = rf"\scalebox{{{setting.scale:.3f}}}{{{begin}", f"{end}}}"
    if table.columns.nlevels > 1:  # one header line, so that any program reads the file
        table = table.set_axis([" ".join(map(str, names)).strip() for names in table.columns], axis=1)
    csv = table.to_csv(index=not numbered, lineterminator="\n")
    return {f"{stem}.tex": f"{before}{size}\n{begin}{body}{end}{after}".encode(), f"{stem}.csv": csv.encode()}


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
        kind = r">{\raggedright\arraybackslash}p{?pt}"
        words = [word for text in texts for word in re.split(r"\s|(?<=-)", MINUS.sub("+", INSIDE.sub("~", text)))]
        least = max(natural / setting.lines, *(_width(word, setting.size) for word in words + heads))
    head = r"\\".join(map(latex, heads))
    if broken and len(heads) > 1:
        head = rf"\begin{{tabular}}[b]{{@{{}}{kind[0].replace('>', 'l')}@{{}}}}{head}\end{{tabular}}"
    return Column(name, head, kind, least, natural)


def _width(text: str, size: int) -> float:
    """About how wide a text is in pt, rather too much than too little."""
    return size * SMALLER[size] * sum(WIDTHS.get(c, 1) for c in MINUS.sub("+", text))


def _write_index(folder: Path, known: Mapping[str, str]) -> None:
    """The cited sources, and a LaTeX document that takes in everything in the folder."""
    records = sidecars(folder)
    cited = {key for record in records for key in record["cites"]}
    bibliography = "".join(f"{known[key]}\n\n" for key in known if key in cited)
    checkpoint.write(folder / "references.bib", bibliography.encode(), durable=False)
    lines = [r"\documentclass[11pt]{article}", r"\usepackage{array,booktabs,graphicx,rotating}"]
    lines += [rf"\setlength{{\textwidth}}{{{UPRIGHT}pt}}", r"\setlength{\textheight}{590pt}", r"\begin{document}"]
    lines += [rf"\input{{{record['name']}.tex}}\clearpage" for record in records]
    lines += [r"\bibliographystyle{plain}", r"\bibliography{references}"] * bool(cited) + [r"\end{document}", ""]
    checkpoint.write(folder / "all.tex", "\n".join(lines).encode(), durable=False)
