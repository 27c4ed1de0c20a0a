"""The workbook's HTML pages: each executed notebook, the figures, the tables, and the page that leads to them.

No page needs a network or a script: styles and notebooks' pictures are inside, formulas are MathML.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from ..report import sidecars
from ..shown import html, readable

ANSWER = "answer"  # tag of the cell whose output answers a notebook's question
RECORDED = "recorded"  # in the place of a profile: what `make figures` renders
FRONT = ("roadmap-table", "criteria", "verdicts")  # tables that the first page holds whole, by the ends of their names
# what a cell's output is shown as: the first that it has; a widget is shown by its picture
KINDS = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]


@dataclass(frozen=True)
class Chapter:
    """An executed notebook."""

    path: Path

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def number(self) -> str:
        return self.stem.split("-")[0]

    @cached_property
    def cells(self) -> list[dict[str, Any]]:
        return self._notebook["cells"]

    @cached_property
    def _notebook(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8"))

    @property
    def title(self) -> str:
        """The first heading."""
        return self._first(r"^# (.+)$") or self.stem

    @property
    def question(self) -> Markup:
        """The first paragraph that is bold throughout."""
        return Markup(markdown(self._first(r"^\*\*([^*]+)\*\*$")))

    def _first(self, pattern: str) -> str:
        prose = "\n".join("".join(cell["source"]) for cell in self.cells if cell["cell_type"] == "markdown")
        found = re.search(pattern, prose, re.MULTILINE)
        return found[1] if found else ""

    @property
    def answer(self) -> Markup:
        """What the cell tagged `answer` wrote last."""
        tagged = [cell for cell in self.cells if ANSWER in cell["metadata"].get("tags", [])]
        outputs = [output.get("data", {}).get("text/markdown", "") for cell in tagged for output in cell["outputs"]]
        return Markup(markdown("".join(outputs[-1]) if outputs else ""))

    @property
    def failed(self) -> bool:
        """Whether a cell failed or was never reached."""
        codes = [cell for cell in self.cells if cell["cell_type"] == "code" and cell["source"]]
        stopped = any(code["execution_count"] is None for code in codes)
        return bool(self._notebook["metadata"]["papermill"]["exception"] or stopped)


def markdown(source: str) -> str:
    """Markdown as HTML, its formulas as MathML."""
    from latex2mathml.converter import convert
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Formulas(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return convert(body)

        def block_math(self, body: str) -> str:
            formula = convert(body.replace("{aligned}", "{align*}"), display="block")
            return formula.replace("<math ", '<math tabindex="0" ', 1)  # where it is too wide, it scrolls

    return MarkdownWithMath(renderer=Formulas(escape=False, anchor_link_text="#")).render(source)


def write(book: Path) -> dict[str, str]:
    """All pages of `book`, which is `folder/<profile>`: file names and contents."""
    chapters = [Chapter(path) for path in sorted(book.glob("*.ipynb"))]
    records = [_record(record, book / "figures") for record in sidecars(book / "figures")]
    shared = {"mark": "recorded results" if book.name == RECORDED else f"{book.name} profile", "chapters": chapters}
    made = {f"{chapter.stem}.html": chapter_page(chapter, **shared) for chapter in chapters}
    groups = {kind: _by_chapter((r for r in records if r["kind"] == kind), chapters) for kind in ("figure", "table")}
    for kind, those in groups.items():
        title = f"{kind.capitalize()}s"
        made[f"{kind}s.html"] = _render("artefacts.html", kind=kind, title=title, groups=those, **shared)
    front = [r for end in FRONT for r in records if r["kind"] == "table" and r["name"].endswith(f"-{end}")]
    made["index.html"] = _render(
        "index.html", title="Workbook", front=front, groups=groups, provenance=_provenance(records), **shared
    )
    return made


def chapter_page(chapter: Chapter, **shared: Any) -> str:
    """An executed notebook as a page: prose, results, and the code behind a word that opens it."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter
    from traitlets.config import Config

    template = (Path(__file__).parent / "notebook.html").read_text(encoding="utf-8")
    config = Config({"NbConvertBase": {"display_data_priority": KINDS}})
    exporter = HTMLExporter(raw_template=template, filters={"markdown2html": markdown}, config=config)
    body, _ = exporter.from_filename(str(chapter.path))
    sections = re.findall(r'<h2 id="([^"]*)">(.*?)<a class="anchor-link"', body)
    colours = HtmlFormatter(style="default").get_style_defs(".highlight")
    parts = {
        "body": Markup(body),
        "sections": [(Markup(i), Markup(text)) for i, text in sections],
        "colours": Markup(colours),
    }
    return _render("chapter.html", chapter=chapter, title=chapter.title, **parts, **shared)


def _record(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A sidecar, and the table that it describes."""
    if record["kind"] == "figure":
        return record
    shown = readable(pd.read_csv(folder / f"{record['name']}.csv")).set_uuid(record["name"].replace(".", "-"))
    return record | {"table": Markup(shown.to_html())}


def _by_chapter(records: Iterable[dict[str, Any]], chapters: Iterable[Chapter]) -> dict[str, list[dict[str, Any]]]:
    """Records under the titles of their chapters, in the order of names."""
    titles, found = {chapter.number: chapter.title for chapter in chapters}, {}
    for record in records:
        found.setdefault(titles.get(record["chapter"], record["chapter"]), []).append(record)
    return found


def _provenance(records: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Commit and versions in a line, and what was made with them."""
    found: dict[str, list[str]] = {}
    for record in records:
        line = ", ".join(f"{key} {value}" for key, value in record["provenance"].items())
        found.setdefault(line, []).append(record["name"])
    return found


def _render(template: str, **parts: Any) -> str:
    environment = Environment(
        loader=PackageLoader("dotlib", "pages"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["raised"] = lambda text: Markup(html(text))
    return environment.get_template(template).render(**parts)
