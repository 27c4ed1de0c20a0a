"""What a notebook shows: figures and tables over their captions, lines of Markdown."""

import re
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from .latex import cell


class Line(str):
    """A line of Markdown, rendered where a notebook names it."""

    def _repr_markdown_(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Shown:
    """A figure or table as a notebook shows it, over `words` in Markdown; its other attributes are the artefact's.

    `alt` is what a figure says to those who do not see it.
    """

    artefact: Any
    words: Line
    alt: str = ""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.artefact, name)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.artefact, metadata={"image/png": {"alt": self.alt}} if self.alt else None)
        display(self.words)


def escaped(text: str) -> str:
    """Plain text as Markdown that shows its characters."""
    return re.sub(r"([\\`*_\[\]<>#|~$])", r"\\\1", text.strip())


def raised(text: str) -> str:
    """Plain text as Markdown, the exponents of `mm^-1` and `32^3` raised."""
    return re.sub(r"\^(-?\d+)", r"<sup>\1</sup>", escaped(text))


def italic(text: str) -> str:
    """Plain text as italic Markdown."""
    return f"*{raised(text)}*"


def html(value: object) -> str:
    """A table's cell or plain text as HTML, the exponents of `mm^-1` and `32^3` raised."""
    return re.sub(r"\^(-?\d+)", r"<sup>\1</sup>", escape(cell(value), quote=False))


def readable(table: pd.DataFrame):
    """Any table as a page shows it: three digits, dashes for what is missing, texts whole; above it, if so, that it has
    no rows.

    For a notebook to show, with or without a Page; what `Book.save` takes is the table itself. Texts are set left,
    numbers right.
    """
    styler = table.style.format(html).format_index(html, axis=1).hide(axis="index")
    texts = [i for i, kind in enumerate(table.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    styler = styler.set_table_styles([{"selector": f".col{i}", "props": "text-align: left"} for i in texts])
    return styler if len(table) else styler.set_caption("No rows.")
