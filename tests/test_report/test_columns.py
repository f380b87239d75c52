"""docs/columns.md, and the synthetic rows of these tests."""

from pathlib import Path

from kvbench.report import columns
from kvbench.runs.fields import DECLARED, checked

ROOT = Path(__file__).parents[2]


def test_the_page_is_current():
    text = (ROOT / "docs" / "columns.md").read_text(encoding="utf-8")
    assert text == columns.page(), "docs/columns.md is stale: make docs"


def test_the_page_has_every_field():
    page = columns.page()
    for field in DECLARED:
        assert f"| `{field.name}` | " in page and field.meaning.replace("|", "\\|") in page


def test_the_rows_of_these_tests_are_as_declared(accuracy, efficiency):
    for row in accuracy(samples=2):
        checked(row)
    shared = {field.name for field in DECLARED if "efficiency" in field.kinds}
    for row in efficiency():
        checked({name: value for name, value in row.items() if name in shared})
