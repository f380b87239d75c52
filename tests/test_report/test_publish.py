"""A committed run holds what the run said: its cells can be judged, compared and explained."""

import pandas as pd
import pytest

from kvbench.cli.main import main
from kvbench.cli.publish import FIGURES, publish
from kvbench.config.errors import UserError
from kvbench.report import explain, load
from kvbench.runs.store import Store


def test_a_committed_run_compares_as_equal_with_its_source(run_dir, tmp_path, capsys):
    files = publish(run_dir, tmp_path / "small")
    names = ["summary.csv", "cells-packed.jsonl.gz", "table.md", *(f"{kind}.svg" for kind in FIGURES)]
    assert [path.name for path in files] == names
    assert main(["compare", str(run_dir), str(tmp_path / "small")]) == 0
    assert capsys.readouterr().out.endswith("scores equal 56 of 56, KL within 0.0001\n")
    assert load(tmp_path / "small").best().text() == load(run_dir).best().text()
    cell = load(run_dir).records[0]["cell"]
    assert explain(tmp_path / "small", cell).splitlines()[1:] == explain(run_dir, cell).splitlines()[1:]
    assert (
        (tmp_path / "small" / "table.md").read_text().endswith("Made with `kvbench run small`, 2026-01-01.\n")
    )
    # what `make tables` reads
    summary = pd.read_csv(files[0])
    assert len(summary) == len(load(run_dir).summary()) and set(summary["run"]) == {"small"}


def test_an_unfinished_run_is_not_committed(run_dir, tmp_path):
    records = load(run_dir).records
    store = Store(tmp_path / "part", worker="w")
    store.extend(records[:-1])
    store.write_plan([("task", "method", record["cell"]) for record in records], {})
    with pytest.raises(UserError, match="1 cells that are not done, and 0 failed"):
        publish(tmp_path / "part", tmp_path / "out")
    assert not (tmp_path / "out").exists()
