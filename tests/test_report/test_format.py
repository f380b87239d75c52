"""Formatted numbers and Markdown tables."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from kvbench.report import format as module
from kvbench.report.format import csv_text, escaped, frame_table, markdown_table, number


@pytest.mark.parametrize(
    ("value", "spec", "scale", "text"),
    [
        (1.234, ".2f", 1, "1.23"),
        (np.float64(0.05), ".3g", 100, "5"),
        (1234.5, ".3g", 1, "1,234"),
        (999.4, ".3g", 1, "999"),
        (5000, ",d", 1, "5,000"),
        (0.5, ",.1f", 1e3, "500.0"),
        (None, ".2f", 1, "-"),
        (float("nan"), ",.0f", 1000, "-"),
    ],
)
def test_numbers(value, spec, scale, text):
    assert number(value, spec, scale) == text


def test_a_table_is_plain_aligned_or_padded():
    header, rows = ["a", "bb"], [["1|2", "<i>"]]
    assert markdown_table(header, rows).splitlines() == [
        "| a | bb |",
        "| --- | --- |",
        "| 1\\|2 | &lt;i&gt; |",
    ]
    assert markdown_table(header, rows, right=[False, True]).splitlines()[1] == "|---|---:|"
    padded = markdown_table(header, rows, padded=True).splitlines()
    assert padded[:2] == ["| a    | bb        |", "|------|-----------|"]


def test_a_table_without_rows_has_a_header():
    assert markdown_table(["a"], []) == "| a |\n| --- |"


def test_a_frame_is_a_table_with_numbers_to_the_right():
    frame = pd.DataFrame({"name": ["x"], "share": [0.25], "n": [3], "known": [True]})
    lines = ["| name | share | n | known |", "|---|---:|---:|---:|", "| x | 0.2500 | 3 | True |"]
    assert frame_table(frame) == "\n".join(lines) + "\n"
    assert "| x | 0.2 | 3 |" in frame_table(frame, digits=1)
    assert frame_table(frame[:0]) == "None.\n"


def test_the_module_imports_neither_pandas_nor_matplotlib():
    code = "import sys, kvbench.report.format; sys.exit(bool({'pandas', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- text of data in Markdown

EVIL = "http://evil"
LINKS = {
    "a link": f"[x]({EVIL})",
    "an image": f"![x]({EVIL})",
    "a definition": f"[ref]: {EVIL}",
    "a definition behind blanks": f"  [ref]: {EVIL}",
    "an address": f"<{EVIL}>",
    "HTML": f"<a href='{EVIL}'>x</a>",
    "an image of HTML": f"<img src={EVIL}>",
    "a script": "<script>x</script>",
    "a comment": "<!-- x",
    "an entity": "&lt;a&gt;",
    "a link over lines": f"[x]\n({EVIL})\r\n[y]({EVIL})",
    "a link behind a pipe": f"a|[x]({EVIL})",
    "an escaped link": f"\\[x]({EVIL})",
}
PIPES = ["a|b", "a\\|b", "a\\\\|b", "a\\", "|", "\\|\\|", "a||b"]


def rendered(text):
    """As GitHub does, but for plain addresses, which show where they lead."""
    return MarkdownIt("commonmark").enable("table").render(text)


def harmful(page):
    """Tags that text alone does not make."""
    return [tag for tag in ("<a", "<img", "<script", "<!--", "</script") if tag in page]


@pytest.mark.parametrize("name", LINKS)
def test_links_and_html_of_data_are_text(name):
    text = LINKS[name]
    assert not harmful(rendered(escaped(text)))
    assert not harmful(rendered(f"# {escaped(text)}")) and not harmful(rendered(f"- **{escaped(text)}**"))
    assert not harmful(rendered(markdown_table(["a", text], [[text, "b"]])))
    # all of it is seen
    assert "x" not in text or "x" in rendered(escaped(text))


def test_what_is_defused_did_harm():
    """The check sees links: most of the texts are, as they stand."""
    assert [name for name, text in LINKS.items() if not harmful(rendered(text))] == [
        "a definition", "a definition behind blanks", "an entity", "an escaped link",
    ]  # fmt: skip
    # a definition gives a link to what others wrote
    assert "<a" in rendered(f"{LINKS['a definition'].replace('ref', 'mine')}\n\n[mine]")
    assert "<a" not in rendered(f"{escaped(LINKS['a definition'].replace('ref', 'mine'))}\n\n[mine]")
    assert "<a" not in rendered(f"{escaped(f'  [mine]: {EVIL}')}\n\n[mine]")


@pytest.mark.parametrize("text", PIPES)
def test_a_pipe_is_no_border_and_a_backslash_stays(text):
    page = rendered(markdown_table(["h", "i"], [[text, "last"]]))
    cells = page[page.index("<tbody>") :].split("<td>")[1:]
    assert len(cells) == 2 and cells[1].startswith("last<")
    assert cells[0].partition("<")[0].replace("\\", "") == text.replace("\\", "")
    assert cells[0].count("\\") >= text.count("\\") // 2


@pytest.mark.parametrize(
    ("part", "weaker", "name"),
    [
        ("_LINK", "(?!)", "a link"),
        ("_LINK", "(?!)", "an image"),
        ("html", None, "HTML"),
        ("html", None, "an address"),
    ],
)
def test_every_part_of_the_escape_counts(monkeypatch, part, weaker, name):
    import re
    from types import SimpleNamespace

    other = SimpleNamespace(escape=lambda text, quote: text) if weaker is None else re.compile(weaker)
    monkeypatch.setattr(module, part, other)
    assert harmful(rendered(escaped(LINKS[name])))


def test_a_terminal_obeys_nothing_of_a_table():
    assert escaped("\x1b[31mred\x07\u202e") == "\\u001b[31mred\\u0007\\u202e"


# --- text of data in CSV

FORMULAS = [
    "=1+1", "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-cmd", "=", "@", "==", "-1-1",
    "=\"a\"", "\uff1d1+1", "\uff0b1+1", "\uff0d1+1", "\uff20x",
]  # fmt: skip
PLAIN = [
    "",
    "a",
    "a=b",
    "1",
    "-1",
    "+1.5",
    "-1e-5",
    "-",
    "nan",
    "-inf",
    " =1",
    "a\n=1",
    "'=1",
    "a\r=1",
    "a\r\n=1",
    "a\n\r=1",
]


def obeyed(text):
    """Whether a spreadsheet would compute a cell's text."""
    if text in ("-", "+") or not text.startswith((*"=+-@\t\r\n\uff1d\uff0b\uff0d\uff20",)):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def read_back(text):
    """As a spreadsheet reads it: a row begins at every line break, of any kind, outside of quotes."""
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)


@pytest.mark.parametrize("kind", ["object", "string", "category"])
def test_no_cell_and_no_name_is_a_formula(kind):
    texts = [*FORMULAS, *PLAIN]
    frame = pd.DataFrame({"=name": pd.Series(texts, dtype=kind), "n": range(len(texts)), "x": -1.5})
    back = read_back(csv_text(frame))
    assert [name for name in back if obeyed(name)] == [] and list(back) == ["'=name", "n", "x"]
    for text, shown in zip(texts, back["'=name"], strict=True):
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        assert not obeyed(shown) and shown == (f"'{text}" if obeyed(text) else text)
    assert list(back["x"]) == ["-1.5"] * len(texts) and frame.columns[0] == "=name"


def test_what_is_no_text_is_as_it_was():
    frame = pd.DataFrame(
        {"a": [None, -1, "=x", True, 2.5], "b": [-1, -2, -3, -4, -5], "c": [np.nan, -1.0, 2, 3, 4]}
    )
    back = read_back(csv_text(frame, "%.3g"))
    assert list(back["a"]) == ["", "-1", "'=x", "True", "2.5"] and list(back["b"]) == [
        "-1",
        "-2",
        "-3",
        "-4",
        "-5",
    ]
    assert list(back["c"]) == ["", "-1", "2", "3", "4"]


@pytest.mark.parametrize("sign", [*"=+-@\t\n\uff1d\uff0b\uff0d\uff20"])
def test_every_sign_of_a_formula_counts(monkeypatch, sign):
    monkeypatch.setattr(module, "_FORMULA", tuple(set(module._FORMULA) - {sign}))
    text = f"{sign}1+1"
    assert csv_text(pd.DataFrame({"a": [text]})) == pd.DataFrame({"a": [text]}).to_csv(index=False)
