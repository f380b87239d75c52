"""The README shows what the committed reference run measured."""

from pathlib import Path

import pandas as pd

from kvbench.report.readme import insert

ROOT = Path(__file__).parents[2]


def test_the_table_in_the_readme_is_that_of_the_reference_run():
    readme = (ROOT / "README.md").read_text()
    assert insert(readme, pd.read_csv(ROOT / "results/quickstart/summary.csv")) == readme


def test_every_local_file_that_the_readme_names_exists():
    import re

    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
