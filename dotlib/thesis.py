"""A LaTeX document that takes in every figure and table, compiled and checked as a thesis would be."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import checkpoint, report
from .latex import UPRIGHT, latex
from .pages import Chapter

PACKAGES = "texlive-latex-recommended, texlive-fonts-recommended, lmodern and poppler-utils (as Debian names them)"
TITLE = "Stage 1 of near-infrared diffuse optical tomography: figures and tables"
# the widths that tables are made for are those of Computer Modern; Latin Modern has them, and no bitmaps
HEAD = rf"""\documentclass[11pt,a4paper]{{article}}
\usepackage[T1]{{fontenc}}
\usepackage{{lmodern,array,booktabs,graphicx,rotating}}
\setlength{{\textwidth}}{{{UPRIGHT}pt}}
\setlength{{\textheight}}{{630pt}}
\setlength{{\oddsidemargin}}{{16pt}}
\setlength{{\topmargin}}{{-20pt}}
\hfuzz=0.1pt
"""


class ThesisError(RuntimeError):
    """A document that cannot be made, or that a thesis could not take, as one line a fault."""


def gather(folders: Sequence[Path], draft: bool) -> dict[str, tuple[Path, dict]]:
    """Every figure and table by name, each with its folder: the first that has it.

    Raises ThesisError where there is none, and, but for a draft, where one bears the mark of a profile.
    """
    found: dict[str, tuple[Path, dict]] = {}
    for folder in folders:
        for record in report.sidecars(folder):
            found.setdefault(record["name"], (folder, record))
    if not found:
        raise ThesisError(f"{folders[0]}: no figures and tables; `make figures` renders those of results/")
    marked = [name for name, (_, record) in found.items() if record["marked"]]
    if marked and not draft:
        others = f" and {len(marked) - 1} others are" if len(marked) > 1 else " is"
        first = found[marked[0]][1]["profile"]
        raise ThesisError(
            f"{marked[0]} ({first} profile){others} marked, not of the full profile; DRAFT=1 accepts them"
        )
    return dict(sorted(found.items()))


def cited(found: dict[str, tuple[Path, dict]]) -> set[str]:
    """The keys of all sources."""
    return {key for _, record in found.values() for key in record["cites"]}


def document(found: dict[str, tuple[Path, dict]], titles: dict[str, str], folder: Path) -> str:
    """The LaTeX source, which lies in `folder`: a section a chapter, then the sources."""
    used = sorted({os.path.relpath(where, folder) for where, _ in found.values()})
    lines = [HEAD, rf"\graphicspath{{{''.join(f'{{{path}/}}' for path in used)}}}", rf"\title{{{latex(TITLE)}}}"]
    lines += [r"\date{}", r"\begin{document}", r"\maketitle", r"\tableofcontents", r"\clearpage"]
    chapter = None
    for name, (where, record) in found.items():
        if record["chapter"] != chapter:
            chapter = record["chapter"]
            lines += [rf"\section*{{{latex(titles.get(chapter, chapter))}}}"]
            lines += [rf"\addcontentsline{{toc}}{{section}}{{{latex(titles.get(chapter, chapter))}}}"]
        lines += [rf"\input{{{os.path.relpath(where, folder)}/{name}.tex}}", r"\clearpage"]
    if cited(found):
        lines += [r"\bibliographystyle{plain}", r"\bibliography{references}"]
    return "\n".join((*lines, r"\end{document}", ""))


def compile(folders: Sequence[Path], notebooks: Path, folder: Path, draft: bool = False) -> Path:
    """Compile figures and tables of `folders` into `folder`/thesis.pdf.

    Raises ThesisError where TeX is not installed, where it fails, and for what a thesis would refuse: text or a table
    that is too wide or too high, an unknown reference, a font of bitmaps (Type 3).
    """
    found = gather(folders, draft)
    if missing := [tool for tool in ("pdflatex", "bibtex", "pdffonts") if not shutil.which(tool)]:
        raise ThesisError(f"no {missing[0]} on this machine; it needs {PACKAGES}")
    titles = {chapter.number: chapter.title for chapter in map(Chapter, sorted(notebooks.glob("*.ipynb")))}
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("thesis.*"):
        stale.unlink()
    checkpoint.write(folder / "thesis.tex", document(found, titles, folder).encode(), durable=False)
    bibliography = report.bibliography(cited(found))
    checkpoint.write(folder / "references.bib", bibliography.encode(), durable=False)
    run = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "thesis.tex"]
    _call(run, folder)
    if bibliography:
        _call(["bibtex", "thesis"], folder)
        _call(run, folder)
    _call(run, folder)
    if faults := refused(folder / "thesis.pdf"):
        raise ThesisError("\n".join(f"{folder / 'thesis.pdf'}: {fault}" for fault in faults))
    return folder / "thesis.pdf"


def refused(pdf: Path) -> list[str]:
    """What of a compiled document a thesis would refuse, from its log and its fonts."""
    log = pdf.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
    faults = re.findall(
        r"^Overfull .*|.*too large for page.*|LaTeX Warning: (?:Reference|Citation) .*", log, re.MULTILINE
    )
    fonts = subprocess.run(["pdffonts", pdf], capture_output=True, text=True, check=True).stdout.splitlines()[2:]
    return faults + [f"font of bitmaps: {line.split()[0]}" for line in fonts if " Type 3 " in line]


def _call(command: Sequence[str], folder: Path) -> None:
    # lines of the log are not to be broken, or no message could be found in it
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"max_print_line": "1000"},
    )
    if done.returncode:
        told = [line for line in done.stdout.splitlines() if line.startswith("!") or "error" in line.lower()]
        raise ThesisError(
            f"{command[0]} failed: {(told or [done.stdout[-200:]])[0]}; {folder / 'thesis.log'} says more"
        )
