"""Where tables go in the README, and the files that it names; test_regenerate checks the tables."""

from pathlib import Path

from kvbench.report.readme import insert

ROOT = Path(__file__).parents[2]


def test_a_table_goes_between_its_marks_and_nowhere_else():
    page = "a\n<!-- one table -->\nold\n<!-- end -->\nb\n<!-- two table -->\nkept\n<!-- end -->\n"
    assert insert(page, "one", "new") == page.replace("old", "new")
    assert insert(page, "three", "new") == page


def test_every_local_file_that_the_readme_names_exists():
    import re

    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
