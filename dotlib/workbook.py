"""The workbook: every notebook executed in one profile, as HTML, with an index of its figures and tables."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from . import checkpoint
from .latex import cell
from .report import sidecars

# the page of a notebook without the scripts that it would fetch: formulas are MathML; on a narrow screen its output
# would be table rows, which cut what is too wide, and as a block it scrolls
OFFLINE = "{% extends 'lab/index.html.j2' %}" + "".join(
    f"{{% block html_head_js_{name} %}}{{% endblock %}}" for name in ("requirejs", "mathjax", "mermaidjs")
)
SCROLL = (
    "@media (max-width: 760px) { .jp-OutputArea-child .jp-OutputArea-output { display: block; overflow-x: auto; } }"
)
OFFLINE += f"{{% block html_head_css %}}<style>{SCROLL}</style>{{% endblock %}}"


class WorkbookError(RuntimeError):
    """One line for each notebook that failed: notebook, cell, error."""


def run(
    profile: str,
    folder: Path = Path("build"),
    notebooks: Path = Path("notebooks"),
    parameters: Mapping[str, object] | None = None,
) -> Path:
    """Execute the notebooks in order, from the working directory, and return `folder/<profile>/index.html`.

    `notebooks` is a folder or one notebook; the others' pages then stay as they are. All notebooks are executed and
    all executed copies kept before WorkbookError tells which of them failed. Raises ValueError, with nothing launched,
    where there is no notebook or one of them does not know a parameter.
    """
    paths = sorted(notebooks.glob("*.ipynb")) if notebooks.is_dir() else [notebooks]
    if not paths or not paths[0].is_file():
        raise ValueError(f"{notebooks}: no notebook; a folder of .ipynb files or one such file is accepted")
    given = {**(parameters or {}), "profile": profile}
    for path in paths:
        check_parameters(path, given)
    book = folder / profile
    book.mkdir(parents=True, exist_ok=True)
    failures = []
    for path in paths:
        for stale in (book / "figures").glob(f"{path.stem.split('-')[0]}-*.json"):
            stale.unlink()  # what this notebook does not write again leaves the gallery
        failures += execute(path, book / path.name, given)
        checkpoint.write(book / f"{path.stem}.html", to_html(book / path.name).encode(), durable=False)
    checkpoint.write(book / "index.html", index(book).encode(), durable=False)
    if failures:
        raise WorkbookError("\n".join(failures))
    return book / "index.html"


def check_parameters(path: Path, given: Mapping[str, object]) -> None:
    """Refuse a parameter that the notebook does not declare: papermill would warn and run the defaults."""
    import papermill

    known = papermill.inspect_notebook(path)
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{path}: unknown parameter {unknown[0]!r}; {', '.join(sorted(known)) or 'none'} accepted")


def execute(path: Path, copy: Path, given: Mapping[str, object]) -> list[str]:
    """Execute a notebook into `copy`; where it fails, one line names notebook, cell and error."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    print(f"{path} -> {copy}", file=sys.stderr)
    try:
        papermill.execute_notebook(
            path, copy, dict(given), kernel_name="python3", progress_bar=sys.stderr.isatty(), log_output=False
        )
    except papermill.PapermillExecutionError as error:
        return [f"{path}, cell [{error.exec_count}]: {error.ename}: {(error.evalue.splitlines() or [''])[0]}"]
    except DeadKernelError as error:  # out of memory, say: papermill leaves no trace of it in the copy
        notebook = nbformat.read(copy, as_version=4)
        notebook.metadata.papermill.exception = True
        nbformat.write(notebook, copy)
        return [f"{path}: {error}"]
    except OSError as error:  # a full disk names no file
        error.filename = error.filename or str(copy)
        raise
    return []


def to_html(notebook: Path) -> str:
    """The executed notebook as one HTML page that needs no network."""
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Formulas(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return convert(body)

        def block_math(self, body: str) -> str:
            return convert(body.replace("{aligned}", "{align*}"), display="block")

    def markdown(source: str) -> str:
        return MarkdownWithMath(renderer=Formulas(escape=False)).render(source)

    page, _ = HTMLExporter(raw_template=OFFLINE, filters={"markdown2html": markdown}).from_filename(str(notebook))
    return page


def index(book: Path) -> str:
    """The page that leads to all chapters, figures and tables of `book`, which is `folder/<profile>`."""
    records, provenance = sidecars(book / "figures"), {}
    for record in records:
        line = ", ".join(f"{key} {value}" for key, value in record["provenance"].items())
        provenance.setdefault(line, []).append(record["name"])
        if record["kind"] == "table":
            table = pd.read_csv(book / "figures" / f"{record['name']}.csv").map(cell)
            record["table"] = Markup(table.to_html(index=False, border=0))
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["raised"] = lambda text: Markup(re.sub(r"\^(-?\d+)", r"<sup>\1</sup>", str(escape(text))))
    chapters = [_chapter(path) for path in sorted(book.glob("*.ipynb"))]
    page = environment.get_template("workbook.html")
    return page.render(profile=book.name, chapters=chapters, records=records, provenance=provenance)


def _chapter(path: Path) -> dict[str, str | bool]:
    """A chapter's file, its first heading and whether a cell of it failed or was never reached."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    prose = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    heading = re.search(r"^# (.+)$", prose, re.MULTILINE)
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and cell["source"]]
    failed = notebook["metadata"]["papermill"]["exception"] or any(code["execution_count"] is None for code in codes)
    return {"stem": path.stem, "title": heading[1] if heading else path.stem, "failed": bool(failed)}
