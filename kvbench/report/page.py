"""The page of a run: one HTML file that loads nothing, with charts and tables that answer to the reader."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2

from kvbench.report.format import BETTER, WORSE, Table
from kvbench.report.style import Style


@dataclass(frozen=True)
class Column:
    """How a column of an explorer is shown.

    Attributes:
        label: its name, with the unit.
        log: whether its axis is logarithmic.
        floor: on a logarithmic axis, the smallest value that is told apart from 0.
        range: values that its axis always shows.
        prefix: text before its values in the titles of panels.
        suffix: text behind them.
        text: whether its values are sentences.
    """

    label: str
    log: bool = False
    floor: float | None = None
    range: tuple[float, ...] = ()
    prefix: str = ""
    suffix: str = ""
    text: bool = False

    def plain(self) -> dict[str, Any]:
        """What the script reads."""
        return {name: value for name, value in vars(self).items() if value not in ("", None, (), False)}


@dataclass(frozen=True)
class Explorer:
    """Rows that the page draws and tabulates as the reader asks.

    Attributes:
        caption: what the rows are.
        rows: their values by column; `reference: True` marks those that all others are compared with.
        columns: every column that is named below.
        series: column whose values get a colour each.
        styles: their looks.
        table: columns of the table.
        x: columns that can go across, the first one at the start; of a table of `pivot`, none.
        y: columns that can go up; none: no chart.
        intervals: the columns with the bounds of a column.
        panel: columns of which each combination gets a panel.
        filters: columns by whose values the reader can choose rows.
        chosen: the values chosen at the start, by column; all rows elsewhere.
        loose: filters that leave the reference rows.
        hover: columns that a point shows.
        folded: columns of the table that are hidden at first.
        marks: column that says whether a column's value is "worse" or "better".
        lines: whether points of a series are joined.
        title: a heading.
        pivot: columns whose combinations become the columns of a table of `y`, with a row per series; no charts.
    """

    caption: str
    rows: Sequence[Mapping[str, Any]]
    columns: Mapping[str, Column]
    series: str
    styles: Mapping[str, Style]
    table: Sequence[str]
    x: Sequence[str]
    y: Sequence[str] = ()
    intervals: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    panel: Sequence[str] = ()
    filters: Sequence[str] = ()
    chosen: Mapping[str, Any] = field(default_factory=dict)
    loose: Sequence[str] = ()
    hover: Sequence[str] = ()
    folded: Sequence[str] = ()
    marks: Mapping[str, str] = field(default_factory=dict)
    lines: bool = True
    title: str = ""
    pivot: Sequence[str] = ()

    def json(self) -> str:
        """The rows and how they are shown, for a script element of HTML; what is not finite is null."""
        spec = {name: value for name, value in vars(self).items() if name not in ("caption", "title")}
        spec["columns"] = {name: column.plain() for name, column in self.columns.items()}
        spec["styles"] = {name: vars(look) for name, look in self.styles.items()}
        spec["rows"] = [{name: _plain(value) for name, value in row.items()} for row in self.rows]
        text = json.dumps(spec, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        # nothing in a value may end the element
        return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@dataclass(frozen=True)
class Picture:
    """A figure for the page.

    Attributes:
        caption: what it shows.
        name: file name without suffix; it names the setting.
        svg: content of the file.
    """

    caption: str
    name: str
    svg: bytes

    @property
    def uri(self) -> str:
        """A data URI for an `<img>`, which runs no scripts."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


@dataclass(frozen=True)
class Example:
    """One sample's outputs under every method."""

    title: str
    gold: str
    rows: list[list[str]]


@dataclass(frozen=True)
class Link:
    """A link to another page: a relative path, the text of the link, and a few words behind it."""

    target: str
    text: str
    about: str = ""


@dataclass(frozen=True)
class Page:
    """The content of a page; parts without content are left out.

    Attributes:
        title: its heading.
        lead: the sentence below it.
        answer: the box at the top, sentences and tables.
        notes: what weakens the numbers.
        failures: cells without a number, and why.
        explorers: charts and tables of rows.
        examples: outputs side by side.
        text: HTML, trusted: whoever makes it escapes what it quotes.
        tables: tables of text.
        guide: how to read them.
        pictures: figures.
        facts: where the numbers come from.
        config: the configuration.
        links: other pages.
    """

    title: str
    lead: str = ""
    answer: Sequence[str | Table] = ()
    notes: Sequence[str] = ()
    failures: Sequence[str] = ()
    explorers: Sequence[Explorer] = ()
    examples: Sequence[Example] = ()
    text: str = ""
    tables: Sequence[Table] = ()
    guide: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    links: Sequence[Link] = ()

    def html(self) -> str:
        """The page as one document; all text but `text` is escaped."""
        assets = resources.files("kvbench.report").joinpath("assets")
        template, css, js = (
            assets.joinpath(name).read_text(encoding="utf-8")
            for name in ("page.html.jinja", "page.css", "page.js")
        )
        environment = jinja2.Environment(
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        return environment.from_string(template).render(
            page=self, css=css, js=js, hash=_hash, worse=WORSE, better=BETTER
        )


def _hash(text: str) -> str:
    """The source of a Content-Security-Policy that allows this text alone."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _plain(value: Any) -> Any:
    """A value for JSON, numbers at the six digits that a page shows at most."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
