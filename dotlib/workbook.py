"""The workbook: every notebook executed in one profile, and the pages of all."""

import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import checkpoint, pages

OWN = "own-runs"  # tag of cells that train or time something, or show what did
LEFT_OUT = "*Left out here: this part computes what it shows, and that is not among the recorded results.*"


class WorkbookError(RuntimeError):
    """One line for each notebook that failed: notebook, cell, error."""


def run(
    profile: str,
    folder: Path = Path("build"),
    notebooks: Path = Path("notebooks"),
    parameters: Mapping[str, object] | None = None,
) -> Path:
    """Execute the notebooks in order, from the working directory, and return `folder/<profile>/index.html`.

    `notebooks` is a folder or one notebook; the others' copies then stay as they are. All notebooks are executed and
    all executed copies kept before WorkbookError tells which of them failed. Raises ValueError, with nothing launched,
    where there is no notebook or one of them does not know a parameter.
    """
    paths = sorted(notebooks.glob("*.ipynb")) if notebooks.is_dir() else [notebooks]
    if not paths or not paths[0].is_file():
        raise ValueError(f"{notebooks}: no notebook; a folder of .ipynb files or one such file is accepted")
    given = {**(parameters or {}), "profile": profile}
    for path in paths:
        check_parameters(path, given)
    return _written(paths, folder / profile, given)


def render(folder: Path = Path("build"), notebooks: Path = Path("notebooks"), figures: Path = Path("figures")) -> Path:
    """Render `figures` from results/ alone, by the notebooks that can; the page of `folder/recorded` leads to all.

    Cells tagged `own-runs` are left out. What is in `figures` stays as it is unless every notebook succeeded; then
    files that did not change are not touched, and those that were not written are removed.
    """
    import nbformat
    import papermill

    book, prepared = folder / pages.RECORDED, []
    (book / "prepared").mkdir(parents=True, exist_ok=True)
    for path in sorted(notebooks.glob("*.ipynb")):
        if "recorded" in papermill.inspect_notebook(path):
            nbformat.write(without_own_runs(nbformat.read(path, as_version=4)), book / "prepared" / path.name)
            prepared.append(book / "prepared" / path.name)
    page = _written(prepared, book, {"profile": "full", "recorded": True})
    new = {path.name: path.read_bytes() for path in sorted((book / "figures").iterdir())}
    figures.mkdir(exist_ok=True)
    for path in figures.iterdir():
        if path.name not in new:
            path.unlink()
    for name, content in new.items():
        if not (figures / name).is_file() or (figures / name).read_bytes() != content:
            checkpoint.write(figures / name, content, durable=False)
    return page


def without_own_runs(notebook: Any) -> Any:
    """The notebook without the cells tagged `own-runs`; a line stands for each row of them."""
    cells, before = [], False
    for cell in notebook.cells:
        own = OWN in cell.metadata.get("tags", [])
        if own and not before:
            cells.append(type(cell)(cell_type="markdown", id=cell.id, metadata={}, source=LEFT_OUT))
        if not own:
            cells.append(cell)
        before = own
    kept = copy.copy(notebook)
    kept.cells = cells
    return kept


def _written(paths: Sequence[Path], book: Path, given: Mapping[str, object]) -> Path:
    """Execute notebooks into `book`, write its pages, and return the first of them."""
    book.mkdir(parents=True, exist_ok=True)
    failures = []
    for path in paths:
        for stale in (book / "figures").glob(f"{path.stem.split('-')[0]}-*"):
            stale.unlink()  # what this notebook does not write again leaves the gallery
        failures += execute(path, book / path.name, given)
        without_widgets(book / path.name)
    for name, page in pages.write(book).items():
        checkpoint.write(book / name, page.encode(), durable=False)
    if failures:
        raise WorkbookError("\n".join(failures))
    return book / "index.html"


def check_parameters(path: Path, given: Mapping[str, object]) -> None:
    """Refuse a parameter that the notebook does not declare: papermill would warn and run the defaults."""
    import papermill

    known = papermill.inspect_notebook(path)
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{path}: unknown parameter {unknown[0]!r}; {', '.join(sorted(known)) or 'none'} accepted")


def execute(path: Path, to: Path, given: Mapping[str, object]) -> list[str]:
    """Execute a notebook into `to`; where it fails, one line names notebook, cell and error."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    print(f"{path} -> {to}", file=sys.stderr)
    try:
        papermill.execute_notebook(
            path, to, dict(given), kernel_name="python3", progress_bar=sys.stderr.isatty(), log_output=False,
            extra_arguments=["--Application.log_level=40"],  # kernels warn of TCP, which stays on this machine
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        return [f"{path}, cell [{error.exec_count}]: {error.ename}: {(error.evalue.splitlines() or [''])[0]}"]
    except DeadKernelError as error:  # out of memory, say: papermill leaves no trace of it
        notebook = nbformat.read(to, as_version=4)
        notebook.metadata.papermill.exception = True
        nbformat.write(notebook, to)
        return [f"{path}: {error}"]
    except OSError as error:  # a full disk names no file
        error.filename = error.filename or str(to)
        raise
    return []


def without_widgets(path: Path) -> None:
    """Leave out what an executed notebook's widgets hold: without a kernel their pictures show as much."""
    import nbformat

    if path.is_file() and "widgets" in (notebook := nbformat.read(path, as_version=4)).metadata:
        del notebook.metadata["widgets"]
        checkpoint.write(path, (nbformat.writes(notebook) + "\n").encode(), durable=False)
