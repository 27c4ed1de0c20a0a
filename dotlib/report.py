"""What the thesis takes: figures and tables in its formats, with captions, sources and provenance."""

import io
import json
import platform
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from . import checkpoint
from .latex import UPRIGHT, latex, table_files
from .plots import STYLE, TEXT_WIDTH
from .provenance import commit
from .shown import Line, Shown, escaped, italic, raised, readable

HERE = Path(__file__).parent
HIGHEST = 540  # pt: of a figure
PACKAGES = ("dotlib", "torch", "numpy", "pandas", "matplotlib", "seaborn")


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
        scope, marked = self.scope(task, n), self.marked and self.profile != "full"
        words = latex(f"{caption} {scope}") + (rf" \cite{{{','.join(cites)}}}" if cites else "")
        if isinstance(artefact, Figure):
            stamp = f"{self.profile} profile: {mark or f'n = {n}'}" if marked else ""
            kind, contents = "figure", _figure_files(artefact, stem, words, stamp)
        elif isinstance(artefact, pd.DataFrame):
            if artefact.columns.empty:
                raise ValueError(f"{stem}: a table without columns; nothing can read its file again")
            kind, contents = "table", table_files(artefact, stem, words)
        else:
            raise ValueError(f"{stem}: {type(artefact).__name__}; a matplotlib Figure or pandas DataFrame is accepted")
        record = {"name": stem, "chapter": self.chapter, "kind": kind, "files": sorted(contents), "caption": caption}
        record |= {
            "scope": scope,
            "task": task,
            "profile": self.profile,
            "n": n,
            "cites": list(cites),
            "marked": marked,
        }
        record |= {"inputs": dict(inputs), "provenance": provenance()}
        # the sidecar comes last: what it lists is complete
        contents[f"{stem}.json"] = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            checkpoint.write(self.folder / file, content, durable=False)
        _write_index(self.folder)
        return [self.folder / file for file in contents]

    def show(
        self, artefact: Figure | pd.DataFrame, name: str, caption: str, *, task: str, n: int | str, **how
    ) -> Shown:
        """What `save` writes, and what a notebook shows of it: the artefact over its caption. Arguments as there."""
        self.save(artefact, name, caption, task=task, n=n, **how)
        scope = self.scope(task, n)
        shown = readable(artefact) if isinstance(artefact, pd.DataFrame) else artefact
        return Shown(shown, Line(f"{italic(caption)} {scope}"), caption)

    def scope(self, task: str, n: int | str) -> str:
        """What numbers are of: task, profile, n."""
        return f"Task: {task}; profile: {self.profile}; n = {n}."

    def remove(self, name: str) -> None:
        """Delete what a former run wrote under a name, if it did: what is not computed is not shown as computed."""
        stale = sorted(self.folder.glob(f"{self.chapter}-{name}.*"), key=lambda path: path.suffix != ".json")
        for path in stale:  # the sidecar first: what it lists is complete
            path.unlink()
        if stale:
            _write_index(self.folder)

    def written(self) -> pd.DataFrame:
        """What this chapter has in the folder: name, kind, files, caption."""
        rows = [record for record in sidecars(self.folder) if record["chapter"] == self.chapter]
        frame = pd.DataFrame(rows, columns=["name", "kind", "files", "caption"])
        return frame.assign(files=[", ".join(files) for files in frame["files"]])


def sources() -> dict[str, str]:
    """The BibTeX entries that may be cited, by key."""
    entries = (HERE / "sources.bib").read_text(encoding="utf-8").strip().split("\n\n")
    return {re.match(r"@\w+\{([^,]+),", entry)[1]: entry for entry in entries}


def bibliography(keys: Collection[str]) -> str:
    """The BibTeX entries of these keys, in the order of sources.bib."""
    return "".join(f"{entry}\n\n" for key, entry in sources().items() if key in keys)


def sidecars(folder: Path) -> list[dict]:
    """The records of all figures and tables in a folder, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def provenance(root: Path = HERE.parent) -> dict[str, str | bool | None]:
    """Versions, the last commit of the code below `root` and whether the code differs from it.

    A commit that changes only figures or results is not the code's: what was made before it stays as it is.
    """
    versions = {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}
    return commit(root) | versions


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
    if height * 72.27 > HIGHEST:
        raise ValueError(f"{stem}: {height * 72.27:.0f} pt high; up to {HIGHEST} leave room for a caption on the page")
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


def _write_index(folder: Path) -> None:
    """The cited sources, a LaTeX document that takes in everything in the folder, and a list for readers."""
    records = sidecars(folder)
    cited = {key for record in records for key in record["cites"]}
    checkpoint.write(folder / "references.bib", bibliography(cited).encode(), durable=False)
    lines = [r"\documentclass[11pt]{article}", r"\usepackage{array,booktabs,graphicx,rotating}"]
    lines += [rf"\setlength{{\textwidth}}{{{UPRIGHT}pt}}", r"\setlength{\textheight}{590pt}", r"\begin{document}"]
    lines += [rf"\input{{{record['name']}.tex}}\clearpage" for record in records]
    lines += [r"\bibliographystyle{plain}", r"\bibliography{references}"] * bool(cited) + [r"\end{document}", ""]
    checkpoint.write(folder / "all.tex", "\n".join(lines).encode(), durable=False)
    checkpoint.write(folder / "index.md", "\n".join(_listed(records)).encode(), durable=False)


def _listed(records: Sequence[Mapping]) -> list[str]:
    """The lines of index.md: each figure as a picture, each table by its file, over caption, scope and files."""
    lines = ["# Figures and tables", ""]
    for record in records:
        name = record["name"]
        lines += [f"## {name}", ""]
        if record["kind"] == "figure":
            lines += [f"![{escaped(record['caption'])}]({name}.png)", ""]
        files = ", ".join(f"[{file}]({file})" for file in (*record["files"], f"{name}.json"))
        lines += [f"{raised(record['caption'])} {record['scope']} Files: {files}.", ""]
    return lines
