"""report.html of a run that has no cells of methods: from the table, figures and CSV files of its folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from kvbench.config.files import write
from kvbench.report import charts, style
from kvbench.report.page import Column, Explorer, Page, Picture

_FEW = 12  # values of a column that are worth a filter


def write_page(folder: Path) -> Path:
    """Write report.html from table.md, figures/*.svg, *.csv and config.yaml; returns it.

    Args:
        folder: the run's.
    """
    return write(folder / "report.html", page(folder).html())


def page(folder: Path) -> Page:
    """The page of a folder: its text, and charts or the table of each CSV file.

    Args:
        folder: the run's; needs table.md.
    """
    text = (folder / "table.md").read_text(encoding="utf-8")
    title, body = _split(text, folder.resolve().name)
    figures = sorted((folder / "figures").glob("*.svg"))
    config = folder / "config.yaml"
    return Page(
        title=title,
        explorers=list(_explorers(folder)),
        text=rendered(body),
        pictures=[Picture(_caption(path), path.stem, path.read_bytes()) for path in figures],
        config=config.read_text(encoding="utf-8") if config.exists() else "",
    )


def _split(text: str, name: str) -> tuple[str, str]:
    """The heading of a page of Markdown, and what follows it."""
    first, _, rest = text.lstrip().partition("\n")
    return (first.removeprefix("# ").strip(), rest) if first.startswith("# ") else (name, text)


def rendered(text: str) -> str:
    """Markdown as HTML for a page: HTML in it is shown, not obeyed; tables sort; links stay on the page or the web.

    Args:
        text: from a table.md, whose figures the page shows elsewhere.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    # figures are embedded: a link to their file would break once the page is moved
    parser.disable("image")
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    parser.add_render_rule("link_open", _link_open)
    parser.add_render_rule("link_close", lambda *_: "</a>")
    parser.add_render_rule("th_open", lambda *_: '<th scope="col">')
    parser.add_render_rule("td_open", _td_open)
    return parser.render(text)


def _table_open(*_: object) -> str:
    return '<div class="wide"><table class="sortable">\n'


def _td_open(_: RendererHTML, tokens: Sequence[Token], index: int, *__: object) -> str:
    aligned = "right" in str(tokens[index].attrs.get("style", ""))
    # sentences wrap
    long = len(tokens[index + 1].content) > 60
    return f'<td class="{"number" if aligned else "text" if long else ""}">'


def _link_open(_: RendererHTML, tokens: Sequence[Token], index: int, *__: object) -> str:
    target = str(tokens[index].attrs.get("href", ""))
    # a style attribute or another file would need the network or a folder beside the page
    return f'<a href="{target}">' if re.match(r"https://[\w./#?=&%~-]+$|#", target) else "<a>"


def _caption(path: Path) -> str:
    return path.stem.replace("_", " ").replace(".", ", ")


def _explorers(folder: Path) -> Iterator[Explorer]:
    """Charts of each CSV file where it has some, its rows elsewhere."""
    for path in sorted(folder.glob("*.csv")):
        frame = pd.read_csv(path)
        if len(frame):
            yield charts.chart(path.stem, frame) or table(path.stem, frame)


def table(title: str, frame: pd.DataFrame) -> Explorer:
    """The rows of a frame as a table with filters.

    Args:
        title: its heading.
        frame: the rows; the first column names them.
    """
    names = [str(name) for name in frame.columns]
    texts = [
        name for name in names if frame[name].dtype == object or str(frame[name].dtype).startswith("str")
    ]
    few = [name for name in texts if 1 < frame[name].nunique() <= _FEW]
    rows: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return Explorer(
        title=title,
        caption=f"All {len(frame):,} rows of {title}.csv.",
        rows=rows,
        columns={name: Column(name.replace("_", " ")) for name in names},
        series=names[0],
        styles=style.styles([]),
        table=names,
        x=[names[0]],
        filters=few,
    )
