"""Formatted numbers and Markdown tables; imports neither pandas nor matplotlib."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvbench.config.text import printable

if TYPE_CHECKING:
    import pandas as pd

MB = 1e6
MISSING = "-"
# characters with which a spreadsheet's formula begins, wide forms too, and texts of one of them that are none
_FORMULA, _SIGNS = (*"=+-@\t\n\uff1d\uff0b\uff0d\uff20",), ("-", "+")
# what makes a link, or an image, of a text in brackets; and the definition of one
_LINK, _DEFINITION = re.compile(r"(?<=\])(?=[(\[])"), re.compile(r"^(\s*)(?=\[[^\]]+\]:)")
# backslashes before a pipe would escape the one that escapes it
_PIPE = re.compile(r"(\\*)\|")
# marks of a difference that is detectable
WORSE, BETTER = "▼", "▲"


def number(value: float | None, spec: str, scale: float = 1) -> str:
    """A formatted number, or a dash for None and NaN.

    Args:
        value: the number.
        spec: format specification. With `g`, numbers from 1000 on become whole numbers with separators, not 1.5e+03.
        scale: factor to the unit shown.
    """
    if value is None or math.isnan(value):
        return MISSING
    if scale != 1:
        value *= scale
    return format(value, ",.0f" if spec.endswith("g") and abs(value) >= 1000 else spec)


def escaped(text: str) -> str:
    """Text for a Markdown table or heading, on one line: HTML, pipes, links and what a terminal obeys are escaped."""
    plain = printable(" ".join(re.split(r"[\r\n]+", text)))
    cell = _PIPE.sub(r"\1\1\\|", html.escape(plain, quote=False))
    return _DEFINITION.sub(r"\1\\", _LINK.sub(r"\\", cell))


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[bool] = (), padded: bool = False
) -> str:
    """A GitHub-flavoured Markdown table without a final newline; cells are escaped.

    Args:
        header: column names.
        rows: the cells.
        right: per column whether it is right-aligned; no alignment when empty.
        padded: pad the cells, so that the columns line up in the source.
    """
    cells = [[escaped(text) for text in row] for row in (header, *rows)]
    if padded:
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        cells = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in cells]
        rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    elif right:
        rule = f"|{'|'.join('---:' if numeric else '---' for numeric in right)}|"
    else:
        rule = f"| {' | '.join('---' for _ in header)} |"
    first, *others = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([first, rule, *others])


def csv_text(frame: pd.DataFrame, floats: str | None = None) -> str:
    """A data frame as CSV, in which no text is a formula for a spreadsheet: such text gets a quote before it.

    Carriage returns become line breaks, which are quoted: spreadsheets begin a row at both.

    Args:
        frame: the table.
        floats: format of its floats, as `%.6g`.
    """
    shown = frame.rename(columns=_no_formula)
    for name in shown.columns[[kind.kind not in "biufcMm" for kind in frame.dtypes]]:
        shown[name] = shown[name].map(_no_formula, na_action="ignore")
    return shown.to_csv(index=False, float_format=floats, lineterminator="\n")


def _no_formula(value: Any) -> Any:
    """The value, behind a quote where a spreadsheet would run it."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    if not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return value if value in _SIGNS else f"'{value}"
    return value


def frame_table(frame: pd.DataFrame, digits: int = 4) -> str:
    """A data frame as a Markdown table with a final newline; `None.` for one without rows.

    Args:
        frame: the table; columns of numbers are right-aligned.
        digits: decimals of floats.
    """
    if frame.empty:
        return "None.\n"

    def cell(value: Any) -> str:
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    rows = [[cell(value) for value in values] for values in frame.to_numpy(object)]
    right = [kind.kind in "biufc" for kind in frame.dtypes]
    return markdown_table([str(name) for name in frame.columns], rows, right=right) + "\n"


@dataclass(frozen=True)
class Table:
    """A table of strings; `caption` says everything needed to read it on its own."""

    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """GitHub-flavoured Markdown, title and caption included; all text is escaped."""
        table = markdown_table(self.header, self.rows, padded=True)
        return "\n".join([f"### {escaped(self.title)}", "", escaped(self.caption), "", table, ""])

    def text(self) -> str:
        """The table for a terminal: title, columns under each other, caption."""
        cells = [[" ".join(text.split()) for text in row] for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rows = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        return "\n".join([self.title, *(f"  {row}" for row in rows), *textwrap.wrap(self.caption, 100)])
