"""`kvbench ls`: lines for a terminal, tab-separated ones elsewhere, or JSON."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from kvbench.cli.left_out import LEFT_OUT
from kvbench.config.groups import Groups
from kvbench.config.typed import unknown

# groups of experiments, in the order in which `kvbench ls experiments` shows them
GROUPS = (
    "start here",
    "methods compared",
    "papers",
    "time and memory",
    "cost",
    "Claude",
    "vLLM",
    "yours",
)


def show(what: str, name: str | None, config_dirs: Sequence[str], as_json: bool = False) -> str:
    """The text of `kvbench ls`.

    Args:
        what: methods, tasks, models, experiments, hardware, shapes or runs.
        name: one entry of it, with all that is known; None for all of them.
        config_dirs: the user's folders.
        as_json: a JSON list, with all that is known of each entry.

    Raises:
        UserError: there is no such entry.
    """
    entries = _entries(what, Groups(tuple(config_dirs)))
    if name is not None:
        entries = [entry for entry in entries if entry["name"] == name] or _unknown(what, name, entries)
    if as_json:
        return json.dumps(entries, indent=1, ensure_ascii=False)
    if name is not None:
        return _details(entries[0])
    if not entries:
        return f"no {what} yet: kvbench run quickstart"
    return _columns(what, entries)


def kinds(names: Sequence[str]) -> str:
    """The text of a bare `kvbench ls`: what can be listed, and how many there are.

    Args:
        names: the kinds of listing.
    """
    width = max(map(len, names))
    lines = [f"kvbench ls {what:<{width}}  {len(_entries(what, Groups()))}" for what in names]
    return "\n".join(
        [*lines, "", "kvbench ls methods snapkv   all about one of them;   --json   for programs"]
    )


def _entries(what: str, groups: Groups) -> list[dict[str, Any]]:
    """Everything about every entry of a listing, in the order in which it is shown."""
    if what == "runs":
        from kvbench.report.console import runs

        return runs()
    group = what.removesuffix("s")
    if group == "method":
        return _methods(groups)
    if group == "task":
        return _tasks(groups)
    entries = [
        {"name": name, "description": groups.description(group, name)} for name in groups.options(group)
    ]
    if group != "experiment":
        return entries
    grouped = [
        {**entry, "group": groups.remark(group, entry["name"], "group") or "yours"} for entry in entries
    ]
    return sorted(grouped, key=lambda entry: GROUPS.index(entry["group"]))


def _methods(groups: Groups) -> list[dict[str, Any]]:
    """The options of `method=[...]`: the registered methods, and named settings of them."""
    classes = groups.declared("method")
    rows = []
    for name in groups.options("method"):
        settings = dict(groups.entry("method", name))
        # the method of a plugin is unknown here
        cls = classes.get(settings.pop("method", ""))
        of_class = cls.constants if cls else {}
        of_mode = of_class.get("source_defaults", {}).get(settings.get("mode"), {})
        settings = {key: of_mode.get(key) if value is None else value for key, value in settings.items()}
        row = {
            "name": name,
            "family": of_class.get("family", ""),
            "description": groups.description("method", name),
            "parameters": settings,
            "budget": of_class.get("budget_meaning", ""),
            "bytes": of_class.get("bytes_formula", ""),
            "source": of_class.get("source", ""),
        }
        rows.append(row)
    return sorted(rows, key=lambda row: (row["family"], row["name"]))


def _tasks(groups: Groups) -> list[dict[str, Any]]:
    """The options of `task=[...]`: what each needs, and where it comes from; those that need nothing first."""
    options, classes = groups.declared("task"), groups.registered("task")
    rows = []
    for name in groups.options("task"):
        settings = dict(groups.entry("task", name))
        # the family of a plugin is unknown here
        cls = options.get(name) or classes.get(settings.pop("family", ""))
        of_class = cls.constants if cls else {}
        settings.pop("family", None)
        row = {"name": name, "source": of_class.get("source", "")}
        row |= {key: of_class.get(key, "") for key in ("licence", "lengths", "scored", "needs")}
        rows.append({**row, "description": groups.description("task", name), "parameters": settings})
    return sorted(rows, key=lambda row: (row["needs"] != "nothing", row["source"], row["name"]))


def _unknown(what: str, name: str, entries: Sequence[dict[str, Any]]) -> NoReturn:
    raise unknown(what, name, [entry["name"] for entry in entries], what.removesuffix("s"))


# of any listing, in their order
_COLUMNS = "name family group cells description source licence lengths scored needs".split()


def _columns(what: str, entries: Sequence[dict[str, Any]]) -> str:
    """Names and descriptions: cut to the width of a terminal, tab-separated and whole elsewhere."""
    columns = [key for key in _COLUMNS if key in entries[0]]
    if not sys.stdout.isatty():
        rows = [columns, *([str(entry[key]) for key in columns] for entry in entries)]
        return "\n".join("\t".join(row) for row in rows)
    heading = next((key for key in ("family", "group", "source") if key in columns), None)
    # the other facts of a task are in its heading
    columns = [key for key in columns if key in ("name", "cells", "description")]
    widths = [max(len(str(entry[key])) for entry in entries) for key in columns[:-1]]
    total = shutil.get_terminal_size().columns
    lines, last = [], None
    for entry in entries:
        if heading and entry[heading] != last:
            last = entry[heading]
            lines += ([""] if lines else []) + textwrap.wrap(_heading(what, entry, heading), total)
        *first, text = (str(entry[key]) for key in columns)
        start = "  " + "".join(f"{cell:<{width}}  " for cell, width in zip(first, widths, strict=True))
        lines.append((start + _cut(text, total - len(start))).rstrip())
    return "\n".join(lines)


def _heading(what: str, entry: dict[str, Any], key: str) -> str:
    of = str(entry[key])
    if what == "tasks":
        facts = ("licence", "lengths", "scored", "needs")
        return "; ".join([of, *(f"{name}: {entry[name]}" for name in facts if entry[name])])
    return _FAMILIES.get(of, of) if what == "methods" else of


def _cut(text: str, width: int) -> str:
    """The text on one line of so many characters."""
    return text if len(text) <= width else text[: max(width - 1, 0)].rstrip(" ,;:") + "…"


def _details(entry: dict[str, Any]) -> str:
    """All that is known of one entry, a fact a line."""
    facts = {key: value for key, value in entry.items() if key != "name" and value not in ("", None, {})}
    width = max(map(len, facts), default=0)
    lines = [entry["name"]]
    for key, value in facts.items():
        text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        lines += textwrap.wrap(
            text, 80, initial_indent=f"  {key:<{width}}  ", subsequent_indent=" " * (width + 4)
        )
    return "\n".join(lines)


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
    lines += ["", "## Not included, and why", ""]
    lines += [_wrap(f"- {names}: {reason}.", "  ") for names, reason in LEFT_OUT.items()]
    return "\n".join(lines) + "\n"


def _entry(cls: Any) -> Iterator[str]:
    paragraphs = (inspect.getdoc(cls) or "").split("\n\n")
    for paragraph in paragraphs:
        # formulas stand as they are
        formulas = paragraph.startswith("    ")
        yield from (
            f"```\n{inspect.cleandoc(paragraph)}\n```" if formulas else _wrap(" ".join(paragraph.split())),
            "",
        )
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
    """`name=default`, with the other choices of a Literal, and the defaults of other modes."""
    hints, defaults = get_type_hints(cls), cls().params()
    for field in dataclasses.fields(cls):
        if field.name in ("eviction", "selection", "format", "keep"):
            continue
        default = defaults[field.name]
        others = [str(c) for c in get_args(hints[field.name]) if c != default]
        remarks = [f"or {', '.join(others)}"] if get_origin(hints[field.name]) is Literal and others else []
        for mode, values in cls.source_defaults.items():
            if values.get(field.name, default) != default:
                remarks.append(f"{mode}: {values[field.name]}")
        shown = str(default).lower() if isinstance(default, bool) else default
        yield f"`{field.name}={shown}`" + (f" ({'; '.join(remarks)})" if remarks else "")


def _code(formula: str) -> str:
    """The expression as code, the remark after it as text."""
    expression, mark, remark = formula.partition(";")
    return f"`{expression}`{mark}{remark}" if "*" in expression else formula
