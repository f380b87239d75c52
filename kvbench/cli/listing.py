"""`kvbench ls`: a table on a terminal, tab-separated lines elsewhere."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rich.console import Console
from rich.table import Table

from kvbench.config.groups import Groups

_HEADER = ["name", "family", "description", "budget", "bytes per layer and KV head", "source"]


def show(what: str, config_dirs: Sequence[str], console: Console | None = None) -> None:
    """Print all methods, tasks, models, experiments, devices or model shapes."""
    console = console or Console(highlight=False)
    groups, group = Groups(tuple(config_dirs)), what.removesuffix("s")
    if group == "method":
        header, rows = _HEADER, _methods(groups)
    else:
        header = ["name", "description"]
        rows = [[name, groups.description(group, name)] for name in groups.options(group)]
    if not console.is_terminal:
        for row in [header, *rows]:
            console.file.write("\t".join(row) + "\n")
        return
    table = Table(*header, show_lines=group == "method")
    for row in rows:
        # rich would take [...] in formulas for markup
        table.add_row(*[cell.replace("[", "\\[") for cell in row])
    console.print(table)


def _methods(groups: Groups) -> list[list[str]]:
    """The options of `method=[...]`: the registered methods, and named settings of them."""
    classes = groups.declared("method")
    rows = []
    for name in groups.options("method"):
        # the method of a plugin is unknown here
        cls = classes.get(groups.entry("method", name).get("method", ""))
        of_class = cls.constants if cls else {}
        facts = [of_class.get(key, "") for key in ("family", "budget_meaning", "bytes_formula", "source")]
        rows.append([name, facts[0], groups.description("method", name), *facts[1:]])
    return sorted(rows, key=lambda row: (row[1], row[0]))


_FAMILIES = {
    "eviction": "Evictions: what is kept after prefill",
    "selection": "Selections: what a decode step reads",
    "method": "Both under one budget rule",
    "format": "Formats: how keys and values are stored",
}


_PREFACE = (
    "Written from the code by `make docs` (`kvbench ls methods --markdown`). T tokens of the prompt, M new tokens, D "
    "channels of a head, G query heads per KV head; bytes are per layer and KV head, after compression. Any eviction "
    "goes with any selection and any format, but for those that evict while decoding, which int2, int4 and int8 "
    "refuse. A composition of both reads `budget` tokens of the `keep` tokens (or the fraction `keep` of the prompt) "
    "that the eviction leaves; without `keep` it keeps `budget` too. Behind heads=query_head every query head chooses "
    "`budget` tokens of its own list, with its own auxiliary data, as in a cache expanded to query heads; K and V "
    "stay per KV head, and bytes count 4 per entry of the lists. What a selection knows of keys in a lossy format "
    "comes, for the prompt, from the keys before they are stored."
)


def methods_page() -> str:
    """The shipped methods as Markdown, the content of docs/methods.md."""
    from kvbench.methods import registry

    # without those of plugins and notebooks
    shipped = {n: cls for n, cls in registry().items() if cls.__module__.startswith("kvbench.")}
    lines = ["# Methods", "", _wrap(_PREFACE)]
    for family, title in _FAMILIES.items():
        lines += ["", f"## {title}"]
        for name in sorted(n for n, cls in shipped.items() if cls.family == family):
            lines += ["", f"### {name}", "", *_entry(shipped[name])]
    return "\n".join(lines) + "\n"


def _entry(cls: Any) -> Iterator[str]:
    paragraphs = (inspect.getdoc(cls) or "").split("\n\n")
    for paragraph in paragraphs:
        yield from (_wrap(" ".join(paragraph.split())), "")
    parameters = ", ".join(_parameters(cls))
    facts = {
        "Parameters": parameters,
        "Budget": cls.budget_meaning,
        "Bytes": _code(cls.bytes_formula),
        "Paper and code": cls.differs,
        "Source": "" if cls.source == "-" else cls.source,
    }
    yield from (_wrap(f"- {title}: {text}", "  ") for title, text in facts.items() if text)


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _parameters(cls: Any) -> Iterator[str]:
    """`name=default`, with the other choices of a Literal."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in ("eviction", "selection", "format", "keep"):
            continue
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        others = [str(c) for c in get_args(hints[field.name]) if c != field.default]
        choice = get_origin(hints[field.name]) is Literal and others
        yield f"`{field.name}={default}`" + (f" (or {', '.join(others)})" if choice else "")


def _code(formula: str) -> str:
    """The expression as code, the remark after it as text."""
    expression, mark, remark = formula.partition(";")
    return f"`{expression}`{mark}{remark}" if "*" in expression else formula
