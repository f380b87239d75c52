"""docs/columns.md: the fields of stored rows and the columns of summary.csv, from their declarations.

`python -m kvbench.report.columns` prints it.
"""

from collections.abc import Iterable

from kvbench.report.format import markdown_table
from kvbench.runs.fields import COLUMNS, DECLARED, KINDS
from kvbench.runs.schema import SCHEMA, Field

_PREFACE = """\
# Fields and columns

Written from `kvbench/runs/fields.py` by `make docs`.

A line of `cells-*.jsonl` is one row, a JSON object. Each has a kind: its `row`, or for rows of methods what `timing`
says. `schema` is the version of the form, now {schema}: older lines are read, newer ones are refused with a message.
Types are written as in Python; null is `None`, and a `float` may be a whole number. A dotted name is a key of a nested
field.

A plugin declares its own fields, keys of `meta` of its tasks or fields of rows that it stores itself, with
`kvbench.runs.fields.declare`.
"""


def page() -> str:
    """The page as Markdown."""
    lines = [_PREFACE.format(schema=SCHEMA), "## Kinds of row\n"]
    lines.append(
        markdown_table(["kind", "one row is"], [[f"`{kind}`", text] for kind, text in KINDS.items()])
    )
    for kinds in dict.fromkeys(field.kinds for field in DECLARED):
        title = "all" if set(kinds) == set(KINDS) else ", ".join(kinds)
        lines += [f"\n## Fields of rows: {title}\n", _table(f for f in DECLARED if f.kinds == kinds)]
    lines += ["\n## Columns of summary.csv\n", _COLUMNS, _table(COLUMNS)]
    return "\n".join(lines) + "\n"


_COLUMNS = """\
One row per model, task, length, protocol, method, parameters, budget and seed. Scores and KL are averaged over samples,
(mean) and (median) are over cells. Differences from dense are paired on the same samples. Empty: not measured.
"""


def _table(fields: Iterable[Field]) -> str:
    rows = []
    for field in fields:
        meaning = f"{field.meaning} ({field.over})" if field.over else field.meaning
        rows.append([f"`{field.name}`", f"`{field.type_name}`", field.unit, meaning])
    return markdown_table(["name", "type", "unit", "meaning"], rows)


if __name__ == "__main__":
    print(page(), end="")
